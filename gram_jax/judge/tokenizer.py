"""Loading of tokenizers: the only module that imports `transformers`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tokenizers import Tokenizer

from gram_jax.errors import CheckpointError, GramError, JudgeError

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast


# Without PyTorch, importing transformers logs a warning, which does not concern its tokenizers. They are imported from
# their submodules, so that a type checker does not read every model of the package.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def folder_tokenizer(name: str | Path) -> "PreTrainedTokenizerFast":
    """The fast tokenizer of a Hugging Face folder or hub name. Raises CheckpointError if there is none."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # of the hub's client, and the panics of `tokenizers`
        raise CheckpointError(
            f"no tokenizer can be loaded from {str(name)!r}: {error}\n"
            "Expected a folder with tokenizer.json and tokenizer_config.json, or a hub name and "
            "network access."
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise CheckpointError(
            f"{str(name)!r} has only a slow tokenizer ({type(tokenizer).__name__}); gram_jax needs tokenizer.json."
        )
    return cast("PreTrainedTokenizerFast", tokenizer)


@contextmanager
def explain_tokenizer(name: str) -> Iterator[None]:
    """Raises JudgeError if the block fails in the library `tokenizers`, as with a damaged tokenizer.json."""
    try:
        yield
    except (GramError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise JudgeError(
            f"tokenizer {name} fails: {error}. Expected a tokenizer that encodes and decodes every text; this "
            "tokenizer.json is damaged, or lacks a token for unknown characters"
        ) from error


def wrap_tokenizer(
    backend: Tokenizer, *, chat_template: str | None = None, **settings: Any
) -> "PreTrainedTokenizerFast":
    """A transformers tokenizer around one of the `tokenizers` library. settings: of transformers, such as eos_token."""
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, clean_up_tokenization_spaces=False, **settings
    )
    tokenizer.chat_template = chat_template
    return tokenizer
