"""The fleet program: inputs, model, reduction, solver, solution."""
