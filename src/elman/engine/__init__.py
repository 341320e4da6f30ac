"""Engines: the ways to run a layer's recurrence, and the choice between them."""
