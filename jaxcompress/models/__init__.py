"""Ordinary Flax models that know nothing of the rest."""
