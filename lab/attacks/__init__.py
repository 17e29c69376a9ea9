"""Attacks on a protected model, as an intruder would store them: on stored values, through the gateway's rendering."""

from lab.attacks.registry import named, names

__all__ = ["named", "names"]
