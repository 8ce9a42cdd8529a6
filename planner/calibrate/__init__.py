"""The user's own measurements: result files in, corrections of the performance model out."""
