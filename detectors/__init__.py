"""Adversarial-example detectors and denoisers for imaging models, fused to one calibrated p-value."""
