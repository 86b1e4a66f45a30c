"""What tests do to files, and what they do it to."""

from pathlib import Path

from conftest import tiny_config
from model_cases import random_params
from test_orbax import State, new_state

from gram_jax.checkpoint.orbax import Checkpoints
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.tiny import tiny_tokenizer
from gram_jax.judge.spec import make_spec
from gram_jax.sharding import Placement


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def flip(path: Path, bit: int | None = None) -> None:
    """One bit of a file, by default in its middle."""
    raw = bytearray(path.read_bytes())
    bit = len(raw) * 4 if bit is None else bit
    raw[bit // 8] ^= 1 << bit % 8
    path.write_bytes(raw)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def exchange(one: Path, other: Path) -> None:
    a, b = one.read_bytes(), other.read_bytes()
    assert a != b
    one.write_bytes(b)
    other.write_bytes(a)


def three_steps(folder: Path, placement: Placement) -> tuple[Path, dict[int, State]]:
    """Three steps of a small state, saved: (folder, states)."""
    states = {step: new_state(placement, step) for step in (2, 4, 6)}
    with Checkpoints(folder, keep=3) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state)
    return folder, states


def exported(folder: Path, placement: Placement) -> Path:
    """A judge in several files."""
    cfg, tokenizer = tiny_config("qwen3", True), tiny_tokenizer()
    return export_hf(
        folder,
        cfg,
        random_params(cfg, placement),
        dtype=None,
        tokenizer=tokenizer,
        spec=make_spec(tokenizer, max_length=200),
        shard_bytes=20_000,
    )
