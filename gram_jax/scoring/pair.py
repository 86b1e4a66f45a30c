"""From label logits to the score of a pair: one formula for arrays, texts, files, rewards and the server."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gram_jax.batch import PairBatch
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.scoring.padded import padded_logits
from gram_jax.tree import Tree


class PairScore(NamedTuple):
    """Score of a pair, from both orders.

    first, second: probability that this response is the better one; the two sum to 1.
    margin: log-odds of the first response, the mean over both orders of the difference of the label logits.
    position_bias: P(first) when shown first minus P(first) when shown second; 0 without position bias.
    shortened: whether responses were truncated in the middle to fit the token budget.

    >>> score = PairScore(first=0.75, second=0.25, margin=1.1, position_bias=0.05, shortened=False)
    >>> score.swapped()
    PairScore(first=0.25, second=0.75, margin=-1.1, position_bias=0.05, shortened=False)
    """

    first: float
    second: float
    margin: float
    position_bias: float
    shortened: bool

    def swapped(self) -> "PairScore":
        """The score of the same pair with the responses exchanged."""
        return self._replace(first=self.second, second=self.first, margin=-self.margin)


@partial(jax.jit, static_argnames=("cfg", "label_ids", "execution"))
def score_pair(
    params: Tree,
    cfg: ModelConfig,
    pair: PairBatch,
    label_ids: tuple[int, int],
    execution: Execution,
) -> jax.Array:
    """Probability that each of two responses is the better one, averaged over both orders.

    pair: pair.seqs i32 [B, O, T], order 0 as given and order 1 swapped; pair.verdict_at i32 [B, O]. label_ids: tokens
    of the labels "first is better" and "second is better". Returns f32 [B, 2], whose rows sum to 1. A jitted function.

    >>> from gram_jax import load_model
    >>> from gram_jax.batch import Sequences
    >>> from gram_jax.sharding import make_placement
    >>> one_device = make_placement({}, devices=jax.devices()[:1])
    >>> cfg, params = load_model("tiny-random", one_device, "float32")
    >>> tokens = np.array([[[5, 9, 2], [9, 5, 2]]])                # B = 1 pair, O = 2 orders, T = 3
    >>> seqs = Sequences(tokens, np.arange(3) + 0 * tokens, np.ones_like(tokens))
    >>> pair = PairBatch(seqs, verdict_at=np.array([[2, 2]]))
    >>> run = Execution("float32", "blocked", "none", one_device)
    >>> scores = score_pair(params, cfg, pair, (65, 66), run)      # 65 and 66 answer "first" and "second"
    >>> scores.shape, round(float(scores.sum()), 6)
    ((1, 2), 1.0)
    """
    logits = padded_logits(params, cfg, pair, label_ids, execution)
    return pair_probabilities(logits[..., 0] - logits[..., 1])


def combine_orders(
    logit_diff: float | np.floating, swapped: float | np.floating, shortened: bool
) -> PairScore:
    """The score from the label logit difference as given and with the responses swapped."""
    diffs = np.array([logit_diff, swapped], np.float64)
    first, second = pair_probabilities(diffs).tolist()
    return PairScore(
        first=first,
        second=second,
        margin=float(diffs[0] - diffs[1]) / 2,
        position_bias=float(np.tanh(diffs / 2).sum()) / 2,
        shortened=shortened,
    )


def pair_probabilities(logit_diffs: Any) -> Any:
    """Softmax over the labels in each order, swapped columns exchanged, mean.

    logit_diffs: [..., O], label logit differences as shown, a numpy or a JAX array. Returns f32 [..., 2] of the same
    kind, computed in f64 by numpy and in f32 by JAX.

    A softmax over two is (1 + tanh(difference / 2)) / 2. The larger mean is rounded to float32 and the smaller one is
    what is left of 1, which is exact: both sum to exactly 1, exchanging the responses exchanges them bit for bit, and
    a judge that looks at the position alone gives exactly 0.5.

    >>> pair_probabilities(np.array([[2.0, 2.0], [2.0, -2.0]])).astype(float).round(3).tolist()
    [[0.5, 0.5], [0.881, 0.119]]
    """
    xp, wide = (jnp, jnp.float32) if isinstance(logit_diffs, jax.Array) else (np, np.float64)
    towards_shown_first = xp.tanh(logit_diffs.astype(wide) / 2)
    lead = (towards_shown_first[..., 0] - towards_shown_first[..., 1]) / 4
    high = (0.5 + xp.abs(lead)).astype(xp.float32)
    both = xp.stack([high, 1 - high], axis=-1)
    return xp.where(lead[..., None] >= 0, both, both[..., ::-1])
