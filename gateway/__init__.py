"""The protection gateway: receives scans, examines them, decides, and leaves a signed record of it."""

import os

# onnxruntime reports its use to its maker unless this is set before it is loaded; nothing leaves a hospital by itself.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
