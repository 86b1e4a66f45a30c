"""JAX's compilation cache on disk, so that a second process does not compile the same programs."""

import os
from pathlib import Path

import jax


def keep_compiled_programs() -> None:
    """Enable the cache, in $JAX_COMPILATION_CACHE_DIR or the user's cache folder, unless JAX has one already."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(base / "gram_jax" / "xla")
        jax.config.update("jax_compilation_cache_dir", folder)
