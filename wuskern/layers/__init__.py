"""Layers with a plan beside Linear and Conv2d, one file for each; those of other packages together with their kind."""
