"""Attacks on a gateway that runs: what a sender without a look inside achieves, and what of it the gateway sees."""
