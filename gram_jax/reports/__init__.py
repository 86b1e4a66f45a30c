"""What people read of an evaluation: pages, and the card of a model."""
