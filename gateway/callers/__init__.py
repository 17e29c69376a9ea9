"""What each caller may use, and what it seems to be up to."""
