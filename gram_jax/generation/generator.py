"""Text from a model: prompts are encoded in its chat format, and its tokens are decoded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gram_jax.errors import JudgeError
from gram_jax.interop.models import load_model, load_tokenizer, model_config, stop_tokens
from gram_jax.judge.chat import ChatFrame, chat_frame, dialogue_frames
from gram_jax.judge.messages import Prompt, check_list, render_turns, turns_of
from gram_jax.judge.tokenizer import explain_tokenizer
from gram_jax.judge.tokens import text_encoder, tokenizer_name
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import AskedCompute, Execution, inference_execution
from gram_jax.model.generate import Samples, SamplingConfig, Stop, check_lengths, generate
from gram_jax.sharding import Placement
from gram_jax.tree import Tree


class Generations(NamedTuple):
    """Responses as text, and the samples from which they were decoded, in the same order."""

    texts: list[str]
    samples: Samples


@dataclass(frozen=True)
class TextGenerator:
    """A model that generates responses to prompts; `TextGenerator.load` loads one.

    system: system turn of prompts that have none (None: the default of the chat format; "": no system turn).
    stop_token_ids: ids that end a response, including the tokenizer's end of text and the end of an assistant's turn.

    >>> from gram_jax import SamplingConfig, TextGenerator
    >>> generator = TextGenerator.load("tiny-random", compute_dtype="float32")
    >>> found = generator.generate(["Hi"], SamplingConfig(max_new_tokens=4))
    >>> len(found.texts), found.samples.tokens.shape
    (1, (1, 4))
    """

    params: Tree
    cfg: ModelConfig
    tokenizer: Any
    frame: ChatFrame
    system: str | None
    stop_token_ids: tuple[int, ...]
    execution: Execution

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        compute_dtype: AskedCompute = "auto",
        placement: Placement | None = None,
        system: str | None = None,
    ) -> "TextGenerator":
        """Load a model by name. system: system turn (None: the default of the chat format; "": none)."""
        execution = inference_execution(compute_dtype, placement, packed=True)
        tokenizer, cfg = load_tokenizer(name), model_config(name)
        frame = chat_frame(tokenizer, system=system, thinking=False)
        _, params = load_model(name, execution.placement, execution.compute_dtype)
        turn_end = text_encoder(tokenizer).frame(frame.end_of_turn)[:1].tolist()
        text_end: Any = tokenizer.eos_token_id
        ends = (*turn_end, text_end, *stop_tokens(name))
        stop_token_ids = tuple(dict.fromkeys(end for end in ends if end is not None))
        return cls(params, cfg, tokenizer, frame, system, stop_token_ids, execution)

    def with_params(self, params: Tree) -> "TextGenerator":
        """The generator with other weights."""
        return replace(self, params=params)

    def generate(
        self, prompts: Sequence[str | Prompt], sampling: SamplingConfig, *, batch_size: int = 32
    ) -> Generations:
        """Sample one response to each prompt. Raises DataError if a prompt exceeds the model's context."""
        check_list(prompts, "a list of prompts")
        tokens = [self.encode(prompt) for prompt in prompts]
        return self.generate_from_tokens(tokens, sampling, batch_size=batch_size)

    def generate_from_tokens(
        self,
        tokens: Sequence[np.ndarray],
        sampling: SamplingConfig,
        *,
        batch_size: int = 32,
        first: int = 0,
        stop: Stop | None = None,
    ) -> Generations:
        """`generate` for encoded prompts, each i32 [n]. The generator's own stop tokens also end a response.

        first: index of the first prompt in a larger list. stop: ends responses besides the stop tokens
        (model/generate.py).
        """
        sampling = replace(sampling, stop_token_ids=self.stop_token_ids + sampling.stop_token_ids)
        samples = generate(
            self.params,
            self.cfg,
            tokens,
            self.execution,
            sampling,
            batch_size=batch_size,
            first=first,
            stop=stop,
        )
        return Generations(self.decode(samples), samples)

    def encode(self, prompt: str | Prompt) -> np.ndarray:
        """A prompt in the model's chat format, i32 [n]. Control tokens in the content of a turn stay text.

        A conversation with roles that the chat template does not support (two users in a row, tools) becomes one user
        turn, in which each turn has a header.
        """
        encoder, prompt = text_encoder(self.tokenizer), turns_of(prompt)
        texts, roles = [turn.content for turn in prompt], tuple(turn.role for turn in prompt)
        alone = self.frame.prefix, self.frame.generation_prompt
        frames = alone if roles == ("user",) else _frames(self.tokenizer, roles, self.system)
        if frames is None:
            frames, texts = alone, [render_turns(prompt)]
        return encoder.dialogue(frames, texts)

    def encode_all(self, prompts: Sequence[str | Prompt], max_new_tokens: int) -> list[np.ndarray]:
        """`encode` for each prompt. Raises DataError if a prompt exceeds the model's context."""
        tokens = [self.encode(prompt) for prompt in prompts]
        check_lengths(self.cfg, tokens, max_new_tokens)
        return tokens

    def decode(self, samples: Samples) -> list[str]:
        """Texts without stop tokens and other control tokens."""
        rows = zip(samples.tokens, samples.lengths - samples.stopped, strict=True)
        kept = [row[:length].tolist() for row, length in rows]
        with explain_tokenizer(tokenizer_name(self.tokenizer)):
            return self.tokenizer.batch_decode(kept, skip_special_tokens=True)


@lru_cache(maxsize=256)
def _frames(tokenizer: Any, roles: tuple[str, ...], system: str | None) -> tuple[str, ...] | None:
    """The strings around the turns; None if the chat template does not support the roles."""
    try:
        return dialogue_frames(tokenizer, roles, system=system, thinking=False)
    except JudgeError:
        return None
