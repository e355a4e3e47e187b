"""How draws are made: samplers by name, the grid, and what a search starts from."""
