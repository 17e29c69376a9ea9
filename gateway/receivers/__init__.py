"""The doors: each converts what arrives into a `Scan`, calls the service once, and converts the reply back."""
