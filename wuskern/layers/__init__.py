"""Layers of other packages with a plan, one file for each, together with their kind."""
