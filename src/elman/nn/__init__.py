"""Layers: what holds parameters."""
