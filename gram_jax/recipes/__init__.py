"""Recipes: the TOML files that say everything about a run."""
