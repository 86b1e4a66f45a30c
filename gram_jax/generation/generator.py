"""A model that writes responses: prompts as its chat format has them, what it writes as text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gram_jax.compile_cache import keep_compiled_programs
from gram_jax.errors import DataError, JudgeError
from gram_jax.interop.models import load_model, load_tokenizer, model_config, stop_tokens
from gram_jax.judge.chat import ChatFrame, chat_frame, dialogue_frames
from gram_jax.judge.messages import Prompt, render_turns, turns_of
from gram_jax.judge.tokens import text_encoder
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import AskedCompute, Execution
from gram_jax.model.generate import Samples, sample
from gram_jax.scoring.scorer import compute_type
from gram_jax.sharding import Placement, make_placement
from gram_jax.tree import Tree


class Written(NamedTuple):
    """Responses as text, and the samples that they came from (rows in the same order)."""

    texts: list[str]
    samples: Samples


@dataclass(frozen=True)
class Policy:
    """Weights, and all that is needed to write with them.

    system: as in a judge's specification; prompts may have a system turn of their own. stops: ids that end a response,
    the tokenizer's end of text and what ends an assistant's turn among them.
    """

    params: Tree
    cfg: ModelConfig
    tokenizer: Any
    frame: ChatFrame
    system: str | None
    stops: tuple[int, ...]
    execution: Execution

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        compute: AskedCompute = "auto",
        placement: Placement | None = None,
        system: str | None = None,
    ) -> "Policy":
        """A model by name, as everywhere; system as in a judge's specification (None: the chat format's own)."""
        keep_compiled_programs()
        placement = placement or make_placement({"data": -1})
        number_format = compute_type(compute, placement)
        tokenizer, cfg = load_tokenizer(name), model_config(name)
        frame = chat_frame(tokenizer, system=system, thinking=False)
        _, params = load_model(name, placement, number_format)
        ends = text_encoder(tokenizer).frame(frame.end_of_turn)[:1].tolist()
        text_end: Any = tokenizer.eos_token_id
        own = () if text_end is None else (text_end,)
        stops = tuple(dict.fromkeys((*ends, *own, *stop_tokens(name))))
        execution = Execution(number_format, "auto", "none", placement)
        return cls(params, cfg, tokenizer, frame, system, stops, execution)

    def with_params(self, params: Tree) -> "Policy":
        """The same with other weights."""
        return replace(self, params=params)

    def encode(self, prompt: Prompt) -> np.ndarray:
        """i32 [n]: a prompt as the model reads it, turn by turn. Control tokens in what people said stay text.

        A conversation whose roles the chat template does not take (two users in a row, tools) is one user's text, each
        turn under a header, as the judge reads it.
        """
        encoder = text_encoder(self.tokenizer)
        texts, roles = [turn.content for turn in prompt], tuple(turn.role for turn in prompt)
        alone = self.frame.prefix, self.frame.generation_prompt
        frames = alone if roles == ("user",) else _frames(self.tokenizer, roles, self.system)
        if frames is None:
            frames, texts = alone, [render_turns(turns_of(prompt))]
        parts = [encoder.frame(frames[0])]
        for text, frame in zip(texts, frames[1:], strict=True):
            parts += [encoder.text(text), encoder.frame(frame)]
        return np.concatenate(parts)

    def encode_all(self, prompts: Sequence[Prompt], new: int) -> list[np.ndarray]:
        """Of every prompt `encode`. Raises DataError for one that leaves no room for `new` tokens in the context."""
        encoded = [self.encode(prompt) for prompt in prompts]
        room = self.cfg.context_length - new
        if encoded and (longest := max(map(len, encoded))) > room:
            raise DataError(
                f"a prompt has {longest} tokens and there is room for {max(0, room)} beside {new} new ones: leave out "
                "long prompts, or ask for less"
            )
        return encoded

    def decode(self, samples: Samples) -> list[str]:
        """Without the stop token, and without any other control token."""
        kept = [
            row[: length - stopped].tolist()
            for row, length, stopped in zip(
                samples.tokens, samples.lengths, samples.stopped, strict=True
            )
        ]
        return self.tokenizer.batch_decode(kept, skip_special_tokens=True)

    def write(
        self,
        prompts: Sequence[Prompt],
        *,
        new: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        rows: int = 32,
    ) -> Written:
        """A response to every prompt, of at most `new` tokens; options as of `sample`."""
        encoded = self.encode_all(prompts, new)
        found = sample(
            self.params,
            self.cfg,
            encoded,
            self.execution,
            new=new,
            stops=self.stops,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            rows=rows,
        )
        return Written(self.decode(found), found)


@lru_cache(maxsize=256)
def _frames(tokenizer: Any, roles: tuple[str, ...], system: str | None) -> tuple[str, ...] | None:
    """The literal strings around the turns; None where the chat template does not take the roles."""
    try:
        return dialogue_frames(tokenizer, roles, system=system, thinking=False)
    except JudgeError:
        return None
