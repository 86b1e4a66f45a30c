"""`python -m gram_jax`: the command line, if the program gram-jax is not on the path."""

from gram_jax.cli import main

if __name__ == "__main__":
    main()
