"""Adversarial-example detectors and denoisers for imaging models, fused to one calibrated p-value."""

import os

# onnxruntime reports its use to its maker unless this is set before it is loaded; nothing leaves a hospital by itself.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
