"""The choice between the templates of a model card, by their accuracy on labeled pairs."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gram_jax.data.reading import read_records
from gram_jax.errors import JudgeError
from gram_jax.evals.pairwise import evaluate_pairs
from gram_jax.interop.hub import CARD
from gram_jax.interop.models import load_model
from gram_jax.interop.resolve import local_source
from gram_jax.judge.card import GRAM_TAIL, CardTemplate, card_templates
from gram_jax.judge.spec import make_spec
from gram_jax.model.execution import inference_execution
from gram_jax.scoring.scorer import Scorer

logger = logging.getLogger(__name__)
PAIRS = 64  # tried


class CardChoice(NamedTuple):
    """The chosen template, and a row of each candidate: its place, whether it asks, accuracy, consistency of orders."""

    template: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def best_card_template(
    model: str | Path,
    tokenizer: Any,
    card: Path | None,
    tail: str,
    pairs: str | None,
    options: Mapping[str, Any],
) -> CardChoice:
    """The template of a model card that judges best: with `pairs` the most accurate, else the first that asks.

    card: a file; None for the README.md of the model. tail: as of card_templates. options: of make_spec. Raises
    JudgeError if there is no card, or no template in it.
    """
    path = card or local_source(model, (CARD,)).place / CARD
    try:
        found = card_templates(path.read_text(encoding="utf-8"), tail)
    except (OSError, UnicodeDecodeError) as error:
        raise JudgeError(
            f"the card {path} cannot be read ({error}): pass one with --card"
        ) from error
    except JudgeError as error:
        raise JudgeError(f"{path}: {error}") from error
    if not any(one.asks for one in found):
        logger.warning(
            "no template of %s asks for a verdict at its end; --tail appends a cue, GRAM's own evaluation uses %r",
            path,
            GRAM_TAIL,
        )
    figures = [(0.0, 0.0)] * len(found)
    if pairs is not None:
        figures = _figures(model, tokenizer, found, pairs, options)
    best = max(range(len(found)), key=lambda at: (*figures[at], -at))
    rows = [
        (
            one.place,
            "yes" if one.asks else "no",
            *(f"{x:.3f}" if pairs is not None else "" for x in of_one),
            "taken" if at == best else "",
        )
        for at, (one, of_one) in enumerate(zip(found, figures, strict=True))
    ]
    columns = ("template", "asks for a verdict", "accuracy", "same verdict in both orders", "")
    return CardChoice(found[best].template, columns, rows)


def _figures(
    model: str | Path,
    tokenizer: Any,
    found: list[CardTemplate],
    pairs: str,
    options: Mapping[str, Any],
) -> list[tuple[float, float]]:
    """(accuracy, consistency) of each template on the first pairs; the weights are loaded once."""
    records, _ = read_records(pairs, "preference", limit=PAIRS)
    execution = inference_execution("auto")
    cfg, params = load_model(model, execution.placement, execution.compute_dtype)
    figures = []
    for one in found:
        spec = make_spec(tokenizer, template=one.template, **options)
        metrics = evaluate_pairs(Scorer(params, cfg, tokenizer, spec, execution), records)
        figures.append((metrics.accuracy, metrics.consistency))
    return figures
