"""The protected model as a differentiable torch module, and what its outputs mean."""
