"""Offline: test objects, attacks, fitting and evaluation; nothing in the product imports it but the demo command."""
