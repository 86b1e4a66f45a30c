"""Loading of tokenizers: the only module that imports `transformers`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tokenizers import Tokenizer

from gram_jax.errors import CheckpointError

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
    except Exception as error:  # OSError, ValueError, KeyError, errors of the hub's client
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
