"""`python -m gram_jax`, for places where the program itself is not on the path."""

from gram_jax.cli import main

if __name__ == "__main__":
    main()
