"""What an ensemble is worth against attacks on the model that it guards: the report of architecture 5.4."""
