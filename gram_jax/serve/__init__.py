"""`gram-jax serve`: the judge behind HTTP, in the protocols that RL trainers speak."""
