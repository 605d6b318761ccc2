"""Reads the source of a model's blocks and of the code that calls them; see `interpreter`."""
