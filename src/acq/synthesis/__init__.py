"""Synthetic images: conditions, generators, losses, scenes, refinement and the dataset."""
