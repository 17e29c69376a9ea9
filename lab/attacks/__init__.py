"""Attacks on a protected model, as an intruder would store them: on stored values, through the gateway's rendering."""
