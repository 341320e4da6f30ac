"""The catalogue: what is known of a cell, from its class, its docstring and its graph, and how that is printed."""
