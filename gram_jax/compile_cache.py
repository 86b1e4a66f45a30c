"""Compiled programs outlive the process: the second start of the same work compiles nothing."""

import os
from pathlib import Path

import jax


def cache_folder() -> Path:
    """Where compiled programs are kept: $JAX_COMPILATION_CACHE_DIR or the user's cache folder."""
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gram_jax" / "xla"


def keep_compiled_programs() -> None:
    """Turn on the compilation cache that outlives the process, unless it was set up before."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
