"""Models, losses, metrics and the one optimisation loop."""
