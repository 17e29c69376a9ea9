"""One file a method: what it fits, what it scores, the paper it comes from and the one that breaks it."""
