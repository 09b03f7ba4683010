"""Flax models, independent of the rest of the package."""
