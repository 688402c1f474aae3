"""Layers without a product that keep less for backward than PyTorch's: ``convert(model, memory=True)``."""
