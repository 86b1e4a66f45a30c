"""Arrays in, scores out: both ways of showing a pair go through one forward pass.

`score_pair` is the whole of it for arrays; the Scorer compiles its two halves with the logits kept as well.
"""

from functools import partial

import jax
import jax.numpy as jnp

from gram_jax.batch import PairBatch, Sequences
from gram_jax.model.config import ModelConfig
from gram_jax.model.execution import Execution
from gram_jax.model.heads import label_logits
from gram_jax.tree import Tree


@partial(jax.jit, static_argnames=("cfg", "label_ids", "execution"))
def score_pair(
    params: Tree,
    cfg: ModelConfig,
    pair: PairBatch,
    label_ids: tuple[int, int],
    execution: Execution,
) -> jax.Array:
    """Probability that each of two responses is the better one, averaged over both orders.

    pair.seqs: i32 [B, O, T], order 0 as given and order 1 swapped; pair.verdict_at: i32 [B, O].
    Returns f32 [B, 2], rows summing to 1.

    >>> import numpy as np
    >>> from gram_jax import load_model
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
    return pair_scores(pair_logits(params, cfg, pair, label_ids, execution))


def pair_logits(
    params: Tree,
    cfg: ModelConfig,
    pair: PairBatch,
    label_ids: tuple[int, int],
    execution: Execution,
) -> jax.Array:
    """Logits of the two labels in each order, as shown: f32 [B, O, Y]."""
    B, orders, T = pair.seqs.tokens.shape
    rows = Sequences(
        *(
            execution.placement.constrain(x.reshape(B * orders, T), "batch", "time")
            for x in pair.seqs
        )
    )
    at = pair.verdict_at.reshape(B * orders, 1)
    return label_logits(params, cfg, rows, at, label_ids, execution).reshape(B, orders, 2)


def pair_scores(logits: jax.Array) -> jax.Array:
    """Softmax over the labels in each order, swapped columns exchanged, mean.

    logits: f32 [B, O, Y], as shown. Returns f32 [B, 2].

    A softmax over two is (1 + tanh(gap / 2)) / 2. Written so, the two scores are 0.5 plus and minus
    the same number: exchanging the responses exchanges them bit for bit, and a judge that looks at
    the position alone gives exactly 0.5. (Softmax, exchange, mean did that in no batch of 100: XLA
    computes the two uses of a softmax apart.)

    >>> pair_scores(jnp.array([[[3.0, 1.0], [3.0, 1.0]]])).tolist()
    [[0.5, 0.5]]
    """
    logits = logits.astype(jnp.float32)
    leaning = jnp.tanh((logits[..., 0] - logits[..., 1]) / 2)  # [B, O], towards the one shown first
    lead = (leaning[:, 0] - leaning[:, 1]) / 4
    return jnp.stack([0.5 + lead, 0.5 - lead], axis=-1)
