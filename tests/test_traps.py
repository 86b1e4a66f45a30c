"""Mistakes of public reward-model code that no other file here has a test for."""

import jax
import jax.numpy as jnp
import numpy as np
from conftest import tiny_config
from model_cases import LABELS, random_params, random_rows

from gram_jax.interop.models import load_model, load_tokenizer
from gram_jax.judge.spec import make_spec
from gram_jax.model.decoder import hidden_states
from gram_jax.model.execution import Execution
from gram_jax.model.heads import hidden_at, label_logits
from gram_jax.scoring.scorer import Scorer


def test_a_pad_token_that_is_the_end_token_changes_no_score(execution, one_device):
    """The verdict's position comes from the lengths that were made, never from a search for padding."""
    cfg, params = load_model("tiny-random", one_device, "float32")
    params = jax.tree.map(lambda w: w * 4, params)
    pairs = [("Name a prime.", "Seven." * n, "Nine.") for n in (1, 3, 9)]
    scores = []
    for pad_is_end in (False, True):
        tokenizer = load_tokenizer("tiny-random")
        if pad_is_end:
            tokenizer.pad_token = tokenizer.eos_token
            assert tokenizer.pad_token_id == tokenizer.eos_token_id
        spec = make_spec(tokenizer, max_length=256)
        scores.append(Scorer(params, cfg, tokenizer, spec, execution).score_many(pairs))
    assert scores[0] == scores[1]
    assert len({score.margin for score in scores[0]}) == len(pairs)


def test_a_judge_in_bfloat16_makes_no_false_ties(one_device):
    """Two labels whose rows differ by less than bfloat16 can tell in a logit are still told apart."""
    cfg = tiny_config("llama", tied=False)
    params = random_params(cfg, one_device)
    first, second = LABELS
    step = np.random.default_rng(0).normal(size=cfg.embed_size).astype(np.float32) * 1e-4
    params["head"] = params["head"].at[second].set(params["head"][first] + step)
    seqs = random_rows(cfg, [[12]] * 32, 12)
    verdict_at = np.full((32, 1), 11)

    execution = Execution("bfloat16", "blocked", "none", one_device)
    hidden = hidden_at(hidden_states(params, cfg, seqs, execution), verdict_at)
    logits = label_logits(params, cfg, hidden, LABELS)[:, 0]
    gap = np.asarray(logits[:, 1] - logits[:, 0])
    expected = np.asarray(hidden[:, 0], np.float64) @ step.astype(np.float64)

    rounded = logits.astype(jnp.bfloat16)
    assert (rounded[:, 0] == rounded[:, 1]).mean() > 0.5  # what reading bfloat16 logits would give
    assert (gap != 0).all()
    clear = np.abs(expected) > 1e-5
    assert clear.any()
    assert (np.sign(gap) == np.sign(expected))[clear].all()
