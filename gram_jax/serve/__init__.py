"""`gram-jax serve`: a judge as an HTTP server, with the protocols of RL trainers."""
