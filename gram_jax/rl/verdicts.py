"""A judge as the policy: comparisons are its prompts, and the reward is 1 if its verdict is the label."""

import logging
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from gram_jax.data.mapping import ColumnMap
from gram_jax.data.reading import read_records
from gram_jax.errors import DataError, JudgeError
from gram_jax.generation.generator import Generations, TextGenerator
from gram_jax.judge.encode import encode_items
from gram_jax.judge.messages import Prompt, as_prompt
from gram_jax.judge.rationale import RationaleEncoder
from gram_jax.judge.spec import JudgeSpec
from gram_jax.model.generate import SamplingConfig, Stop
from gram_jax.rl.judged import RewardFunction
from gram_jax.rl.prompts import PromptSet

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VerdictGenerator(TextGenerator):
    """A judge that writes a rationale and its verdict, which is the last token of a sample.

    The text of a sample without a verdict in the format of the specification is "".
    """

    spec: JudgeSpec
    encoder: RationaleEncoder

    def generate_from_tokens(
        self,
        tokens: Sequence[np.ndarray],
        sampling: SamplingConfig,
        *,
        batch_size: int = 32,
        first: int = 0,
        stop: Stop | None = None,
    ) -> Generations:
        """As of TextGenerator. `stop` is that of the format."""
        written = super().generate_from_tokens(
            tokens, sampling, batch_size=batch_size, first=first, stop=Stop(self._ends)
        )
        samples, texts = written.samples, []
        for row, length in enumerate(samples.lengths.tolist()):
            ids = samples.tokens[row, :length].tolist()
            end = self.verdict_end(ids)
            texts.append("" if end is None else self.tokenizer.decode(ids[:end]))
            if end is not None:
                samples.tokens[row, end:] = samples.logprobs[row, end:] = 0
                samples.lengths[row], samples.stopped[row] = end, True
        return Generations(texts, samples)

    def verdict_end(self, tokens: Sequence[int]) -> int | None:
        """Number of tokens up to and with the verdict; None if there is none, or its token holds other text too."""
        text = self.tokenizer.decode(tokens)
        start = self.encoder.format.verdict_start(text)
        if start is None:
            return None
        count = bisect_left(
            range(len(tokens)), start, key=lambda n: len(self.tokenizer.decode(tokens[:n]))
        )
        whole = count < len(tokens) and self.tokenizer.decode(tokens[:count]) == text[:start]
        return count + 1 if whole else None

    def _ends(self, tokens: list[int]) -> bool:
        """Whether the rationale has ended, and more text than the closing follows."""
        text = self.tokenizer.decode(tokens)
        span = self.encoder.format.closing_span(text)
        return span is not None and len(text) > span[1]


def verdict_generator(loaded: TextGenerator, spec: JudgeSpec | None) -> VerdictGenerator:
    """The policy as a judge. Raises JudgeError if its model has no specification with a rationale."""
    if spec is None or spec.rationale is None:
        raise JudgeError(
            '[reward] kind = "label" trains a judge that writes rationales: expected a policy with such a judge.json, '
            'as a run of stage "rationale"'
        )
    encoder = RationaleEncoder(loaded.tokenizer, spec.generation_prompt, spec.rationale)
    values = {field.name: getattr(loaded, field.name) for field in fields(loaded)}
    return VerdictGenerator(**values, spec=spec, encoder=encoder)


def read_comparisons(
    source: str,
    generator: VerdictGenerator,
    *,
    schema: str,
    map: ColumnMap | None = None,
    longest: int,
    limit: int | None,
) -> PromptSet:
    """Up to `limit` pairs of a source in both orders, with at most `longest` tokens each; the label is `preferred`.

    Raises DataError if there are none, or what reading raises.
    """
    records, _ = read_records(source, "preference", schema=schema, map=map)
    spec, pairs = generator.spec, [record for record in records if record.has_preference]
    shown = [(order, one) for one in pairs for order in (one, one.swapped())]
    items = [(order.prompt, order.first, order.second) for order, _ in shown]
    encoded = encode_items(generator.tokenizer, spec.comparison, items, spec.max_length)
    tokens = [generator.encoder.prompt(one.tokens) for one in encoded]
    fits = [max(len(a), len(b)) <= longest for a, b in zip(tokens[::2], tokens[1::2], strict=True)]
    kept = np.flatnonzero(np.repeat(fits, 2)).tolist()[: limit and 2 * limit]
    if not kept:
        raise DataError(
            f"{source}: none of {len(pairs)} labeled pairs has at most {longest} tokens"
        )
    if len(kept) < len(tokens):
        logger.info("%s: %d of %d pairs are taken", source, len(kept) // 2, len(pairs))
    labels = [generator.tokenizer.decode([x]) for x in generator.encoder.format.label_ids]
    prompts = [as_prompt(generator.tokenizer.decode(tokens[at])) for at in kept]
    preferred = {
        prompt: labels[int(shown[at][0].label == 1)]
        for at, prompt in zip(kept, prompts, strict=True)
    }
    return PromptSet(prompts, [tokens[at] for at in kept], preferred)


def label_reward(generator: VerdictGenerator, *sets: PromptSet) -> RewardFunction:
    """1 for a text whose verdict is the label of its comparison, 0 for others and for texts without a verdict."""
    labels = {prompt: label for one in sets for prompt, label in one.preferred.items()}

    def reward(
        prompts: Sequence[Prompt], texts: Sequence[str], greedy: Sequence[str] | None
    ) -> list[float]:
        starts = [generator.encoder.format.verdict_start(text) for text in texts]
        return [
            float(start is not None and text[start:] == labels[prompt])
            for prompt, text, start in zip(prompts, texts, starts, strict=True)
        ]

    return reward
