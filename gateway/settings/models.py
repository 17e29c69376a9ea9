"""[engine] and [models]: the protected models and the worker that examines their input."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gateway.settings.fields import Directory, File, Table


class EngineConfig(Table):
    """The detection worker and the batches it is fed."""

    device: Literal["cpu", "cuda"]
    batch_size_max: Annotated[int, Field(ge=1, le=512)]
    batch_wait_ms_max: Annotated[float, Field(ge=0.0, le=10_000.0)]
    """How long the first scan of a batch waits for others."""
    queue_max: Annotated[int, Field(ge=1, le=65536)]
    threads: Annotated[int, Field(ge=1, le=1024)]
    """Threads of the worker's arithmetic on the CPU."""


class ModelConfig(Table):
    """A protected model, what it expects, and the detectors fitted for it."""

    profile: File
    model: File
    """ONNX, one file."""
    detectors: Directory
    """Artefact directory, as `scanward-lab fit` wrote it."""
