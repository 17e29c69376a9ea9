"""The demo: a gateway and its enemies on one machine, every row of one table checked."""
