"""Verifies and makes DICOM digital signatures (PS3.15 C, PS3.3 C.12.1.1.3)."""
