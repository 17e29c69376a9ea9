"""Procedural anatomy: what one axial slice of a chest looks like to a CT scanner, drawn from a random generator."""
