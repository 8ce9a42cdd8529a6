"""How well predictions hold: measured deployments and published results beside the model's."""
