"""The detection process and the batches that it is fed."""
