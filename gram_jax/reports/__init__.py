"""Reports and model cards of evaluations."""
