"""The protection gateway: receives scans, examines them, decides, and leaves a signed record of it."""
