"""Recipes: the TOML files that define a run."""
