"""The profile of a small network that tells three classes of CT apart: what attacks are tried on."""

from __future__ import annotations

from gateway.profile import Profile

PROFILE = Profile.from_toml(
    b"""
name = "small"
version = "1"
task = "multiclass"
classes = ["a", "b", "c"]
[input]
name = "image"
layout = "NCHW"
channels = 1
size = [24, 24]
range = [0.0, 1.0]
[[window]]
modality = "CT"
center = -600.0
width = 1500.0
"""
)
