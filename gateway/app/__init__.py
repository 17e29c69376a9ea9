"""One gateway process: what it opens, in which order, and what it looks after while it serves."""
