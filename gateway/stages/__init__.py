"""The examinations, each in a room of its own; `pipeline` walks a case through them."""
