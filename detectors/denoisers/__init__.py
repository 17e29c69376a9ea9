"""Denoisers: each removes noise, and with luck a perturbation, before the model is asked again."""
