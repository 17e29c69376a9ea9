"""The protected models: in this process, or behind a protocol."""
