"""Tables of a gateway's configuration that examines scans: an engine, the small model of a site, and its routes."""

from __future__ import annotations

ENGINE = """
[engine]
device = "cpu"
batch_size_max = 4
batch_wait_ms_max = 1.0
queue_max = 64
threads = 1
"""
SMALL = f"""{ENGINE}
[models.small]
profile = "small/profile.toml"
model = "small/model.onnx"
detectors = "small/detectors"
[trust.artefacts]
public_keys = ["small/artefacts.pub"]
"""
"""The folder `small` of the site holds all of it."""


def route(
    name: str, *, model: str = "small", upstream: str = "embedded", fpr: float = 0.01, grey_p: float | None = None,
    unsigned: str = "unsafe_admit", failed: str = "reject", studies: bool = False,
) -> str:  # fmt: skip
    """A route that holds what is suspect or cannot be told; with `grey_p` it lets denoising decide above that."""
    denoise = 'denoise = "never"' if grey_p is None else f'denoise = "if_agree", grey_p = {grey_p}'
    study = 'study = { false_discovery_rate = 0.05, suspect = "quarantine" }\n' if studies else ""
    return f"""
[routes.{name}]
trust = "open"
model = "{model}"
upstream = "{upstream}"
[routes.{name}.policy]
indeterminate = "quarantine"
unexaminable = "quarantine"
signature = {{ failed = "{failed}", unsigned = "{unsigned}", stripped = "reject" }}
detection = {{ false_positive_rate = {fpr}, suspect = "quarantine", {denoise} }}
{study}"""
