"""Studies that are sent as a whole."""
