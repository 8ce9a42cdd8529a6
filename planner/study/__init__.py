"""Many solves and simulations of one instance."""
