"""From two texts to a score: one way for files, evaluation, ranking and rewards.

Pairs are padded to one of a few lengths and scored a fixed number at a time. The length is chosen from the pair alone
and the number from the length, so a pair meets the same compiled program whatever is scored beside it, and inside one
program the bits of a score do not depend on its neighbours. Two responses are put in one fixed order before they
are encoded, so that score(a, b) and score(b, a) are the same computation and agree bit for bit.
"""

import warnings
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from gram_jax.batch import PairBatch
from gram_jax.checkpoint.models import load_model, load_spec, load_tokenizer, model_config
from gram_jax.data.encode import Encoded, Prompt, encode_comparisons
from gram_jax.errors import DoesNotFitError, JudgeError
from gram_jax.judge import DEFAULT_LENGTH, JudgeSpec, check_tokenizer, make_spec
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.scoring.padding import pad_pairs, padded_lengths
from gram_jax.scoring.pair import pair_logits, pair_scores
from gram_jax.scoring.ranking import order_of, round_robin, strengths, table_of
from gram_jax.sharding import Placement, make_placement
from gram_jax.tree import Tree

Comparison = tuple[Prompt, str, str]

# Tokens of one call and device. A CPU is busy with 1,024; more would only make a lone pair wait for dummy rows.
TOKENS_PER_CALL = {"cpu": 1024, "gpu": 32768, "tpu": 32768}
# Comparisons that are encoded, grouped by length and scored together: enough to fill the calls.
WINDOW = {"cpu": 64, "gpu": 2048, "tpu": 2048}
IN_FLIGHT = 4  # calls handed to the device before the first result is awaited


class PairScore(NamedTuple):
    """What the judge says of a pair, both orders together.

    first, second: probability that this response is the better one; they sum to 1.
    margin: log-odds of the first, the mean over both orders of the difference of the label logits.
    order_gap: P(first) when shown first minus P(first) when shown second; 0 for a judge without position preference.
    shortened: the texts did not fit the token budget and were cut inside the responses.
    """

    first: float
    second: float
    margin: float
    order_gap: float
    shortened: bool

    def swapped(self) -> "PairScore":
        """The score of the same pair with the responses exchanged."""
        return self._replace(first=self.second, second=self.first, margin=-self.margin)


@partial(jax.jit, static_argnames=("cfg", "label_ids", "execution"))
def _judge(
    params: Tree,
    cfg: ModelConfig,
    pair: PairBatch,
    label_ids: tuple[int, int],
    execution: Execution,
) -> tuple[jax.Array, jax.Array]:
    """(scores f32 [B, 2] as in `score_pair`, label logits f32 [B, O, Y] in the order shown)."""
    logits = pair_logits(params, cfg, pair, label_ids, execution)
    # Every process reads all of them.
    place = execution.placement.constrain
    return place(pair_scores(logits)), place(logits)


class Scorer:
    """A judge that reads text.

    >>> judge = Scorer.load("tiny-random")
    >>> score = judge.score("Name a prime.", "Seven.", "Nine.")
    >>> round(score.first + score.second, 6)
    1.0
    """

    def __init__(
        self,
        params: Tree,
        cfg: ModelConfig,
        tokenizer: Any,
        spec: JudgeSpec,
        execution: Execution,
        *,
        tokens_per_call: int | None = None,
    ):
        check_tokenizer(spec, tokenizer)
        if "score" in params:
            raise JudgeError(
                "these are the weights of the discriminative baseline (a scalar head): they rate one response at a "
                "time and give no verdicts. Choose the model of a run of stage judge"
            )
        _check_budget(spec, cfg)
        self.params, self.cfg, self.tokenizer = params, cfg, tokenizer
        self.spec, self.execution = spec, execution
        self.shortened = 0  # pairs so far that did not fit
        platform = execution.placement.mesh.devices.flat[0].platform
        self.tokens_per_call = tokens_per_call or TOKENS_PER_CALL.get(
            platform, TOKENS_PER_CALL["gpu"]
        )
        self.lengths = padded_lengths(spec.max_length)
        self.window = WINDOW.get(platform, WINDOW["gpu"])

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        compute: Literal["auto", "float32", "bfloat16"] = "auto",
        max_length: int | None = None,
        tokens_per_call: int | None = None,
        placement: Placement | None = None,
        spec: JudgeSpec | None = None,
    ) -> "Scorer":
        """The judge of a run, an exported folder, a hub name, a GGUF file, or one of our own names.

        compute "auto": bfloat16 on accelerators, float32 on a CPU. Without a placement every device holds all
        weights and scores its own pairs. A model that carries no judge.json is asked with the default template, for
        which max_length can be given. tokens_per_call: how much one call and device takes; less needs less memory.
        spec: how to ask, in place of what was saved with the model; `make_spec` builds it.
        """
        placement = placement or make_placement({"data": -1})
        if compute == "auto":
            on_cpu = placement.mesh.devices.flat[0].platform == "cpu"
            compute = "float32" if on_cpu else "bfloat16"
        tokenizer, cfg = load_tokenizer(name), model_config(name)
        spec = spec or load_spec(name)
        if spec is None:
            spec = make_spec(
                tokenizer, max_length=max_length or min(DEFAULT_LENGTH, cfg.context_length)
            )
            warnings.warn(
                f"{name} carries no judge.json: it is asked with the default template, which it was not taught",
                stacklevel=2,
            )
        elif max_length not in (None, spec.max_length):
            raise JudgeError(
                f"this judge was taught with a budget of {spec.max_length} tokens, asked for is {max_length}: "
                "max_length is for models that carry no judge.json"
            )
        check_tokenizer(spec, tokenizer)
        _check_budget(spec, cfg)
        cfg, params = load_model(name, placement, compute)
        execution = Execution(compute, "auto", "none", placement, packed=False)
        return cls(params, cfg, tokenizer, spec, execution, tokens_per_call=tokens_per_call)

    def score(self, prompt: Prompt, first: str, second: str) -> PairScore:
        """Which of two responses answers the prompt better. A prompt is text or a list of messages."""
        return self.score_many([(prompt, first, second)])[0]

    def score_many(self, comparisons: Iterable[Comparison]) -> list[PairScore]:
        """`score` of many (prompt, first, second), in their order."""
        return list(self.stream(comparisons))

    def stream(
        self,
        comparisons: Iterable[Comparison],
        *,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[PairScore]:
        """`score_many` for any number of comparisons: a window of them is held at a time.

        progress is called with the number of pairs that each call to the device has scored.
        """
        remaining = iter(comparisons)
        while window := list(islice(remaining, self.window)):
            yield from self._score_window(window, progress or (lambda count: None))

    def compare(self, prompt: Prompt, responses: Sequence[str]) -> np.ndarray:
        """Log-odds that response i is better than response j: f32 [n, n], antisymmetric."""
        pairs = round_robin(len(responses))
        scores = self.score_many((prompt, responses[i], responses[j]) for i, j in pairs)
        return table_of(len(responses), [score.margin for score in scores])

    def rank(self, prompt: Prompt, responses: Sequence[str]) -> list[int]:
        """Indices of the responses, best first: every one meets every other, and log-odds are summed."""
        return order_of(strengths(self.compare(prompt, responses)))

    def best(self, prompt: Prompt, responses: Sequence[str]) -> int:
        """Index of the best response."""
        if not responses:
            raise JudgeError("there is no best of no responses: expected at least one")
        return self.rank(prompt, responses)[0]

    def _score_window(
        self, window: Sequence[Comparison], progress: Callable[[int], None]
    ) -> list[PairScore]:
        turned = [_is_turned(first, second) for _, first, second in window]
        fixed = [(p, b, a) if t else (p, a, b) for (p, a, b), t in zip(window, turned, strict=True)]
        shown = [shown for p, a, b in fixed for shown in ((p, a, b), (p, b, a))]
        encoded = encode_comparisons(self.tokenizer, self.spec, shown, overlong="shorten")
        pairs = list(zip(encoded[::2], encoded[1::2], strict=True))
        groups: dict[int, list[int]] = defaultdict(list)
        for at, pair in enumerate(pairs):
            groups[self.padded_length(pair)].append(at)
        found: list[PairScore | None] = [None] * len(pairs)
        flying: deque[tuple[list[int], tuple[jax.Array, jax.Array]]] = deque()
        with self._explain_out_of_memory():
            for length in sorted(groups, reverse=True):
                rows = self.pairs_per_call(length)
                for start in range(0, len(groups[length]), rows):
                    members = groups[length][start : start + rows]
                    call = self._dispatch([pairs[i] for i in members], length, rows)
                    flying.append((members, call))
                    if len(flying) > IN_FLIGHT:
                        progress(_land(flying.popleft(), pairs, found))
            while flying:
                progress(_land(flying.popleft(), pairs, found))
        self._count_shortened(found)
        return [score.swapped() if t else score for score, t in zip(found, turned, strict=True)]

    def padded_length(self, pair: tuple[Encoded, Encoded]) -> int:
        """The length to which both sides of a pair are padded."""
        return self.lengths[bisect_left(self.lengths, max(len(side.tokens) for side in pair))]

    def pairs_per_call(self, length: int) -> int:
        """How many pairs of this padded length one call scores: fixed, and a multiple of the mesh's batch shards."""
        shards = self.execution.placement.batch_shards
        return max(1, self.tokens_per_call // (2 * length)) * shards

    def _dispatch(
        self, pairs: Sequence[tuple[Encoded, Encoded]], length: int, rows: int
    ) -> tuple[jax.Array, jax.Array]:
        batch = pad_pairs([(a.tokens, b.tokens) for a, b in pairs], rows, length)
        spread = self.execution.placement.sharding("batch")
        batch = jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, spread, lambda at: x[at]), batch
        )
        return _judge(self.params, self.cfg, batch, self.spec.label_ids, self.execution)

    def _count_shortened(self, scores: Sequence[PairScore]) -> None:
        cut = sum(score.shortened for score in scores)
        if cut and not self.shortened:
            warnings.warn(
                f"{cut} of {len(scores)} pairs are longer than {self.spec.max_length} tokens and were shortened "
                "inside the responses (said once; PairScore.shortened marks each)",
                stacklevel=2,
            )
        self.shortened += cut

    @contextmanager
    def _explain_out_of_memory(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and not isinstance(error, MemoryError):
                raise
            raise DoesNotFitError(
                f"out of memory while scoring: {str(error).strip().splitlines()[0][:300]}\nTry fewer tokens a call "
                f"(now {self.tokens_per_call:,} for each device), bfloat16 as compute type, or a smaller model"
            ) from error


def _check_budget(spec: JudgeSpec, cfg: ModelConfig) -> None:
    if spec.max_length > cfg.context_length:
        raise JudgeError(
            f"the judge may read {spec.max_length} tokens (max_length), the model was made for "
            f"{cfg.context_length}: choose a smaller max_length"
        )


def _is_turned(first: str, second: str) -> bool:
    """Whether the fixed order of two responses, that of their text, is not the given one."""
    return isinstance(first, str) and isinstance(second, str) and second < first


def _land(
    flight: tuple[list[int], tuple[jax.Array, jax.Array]],
    pairs: Sequence[tuple[Encoded, Encoded]],
    found: list[PairScore | None],
) -> int:
    """Wait for one call and put its scores where they belong; how many there were."""
    members, outputs = flight
    scores, logits = jax.device_get(outputs)
    gaps = logits[..., 0] - logits[..., 1]  # [B, O], log-odds of whatever was shown first
    first_shown = 1 / (1 + np.exp(-gaps.astype(np.float64)))
    for row, at in enumerate(members):
        found[at] = PairScore(
            first=float(scores[row, 0]),
            second=float(scores[row, 1]),
            margin=float((gaps[row, 0] - gaps[row, 1]) / 2),
            order_gap=float(first_shown[row, 0] + first_shown[row, 1] - 1),
            shortened=any(side.shortened for side in pairs[at]),
        )
    return len(members)
