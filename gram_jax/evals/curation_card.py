"""The files that `gram-jax curate` writes next to the pairs: figures as JSON, and a card as Markdown."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gram_jax.errors import DataError
from gram_jax.evals.curation import (
    CurationConfig,
    CurationFigures,
    JudgedPair,
    judge_agreement,
    suspects,
)
from gram_jax.evals.tables import Table
from gram_jax.files import write_atomic, write_json
from gram_jax.formatting import format_figure
from gram_jax.judge.messages import render_turns, turns_of

SHOWN = 20  # suspected pairs on the card
WIDTH = 200  # characters of a text on the card


def curation_table(figures: CurationFigures) -> Table:
    """The figures of all pairs, and of every source."""
    columns = ("source", "pairs", "confirmed", "uncertain", "suspected")
    shares = ("agreement", "unanimous", "order_consistency")
    rows = tuple(
        (
            name,
            *(f"{getattr(found, field):,}" for field in columns[1:]),
            *(format_figure(getattr(found, field)) for field in shares),
        )
        for name, found in [("all", figures.all), *figures.by_source.items()]
    )
    titles = (*columns, "agrees with the label", "unanimous", "order consistency")
    return Table("Labels and judges", titles, rows)


def write_curation(
    out: Path,
    judged: Sequence[JudgedPair],
    figures: CurationFigures,
    config: CurationConfig,
    inputs: dict[str, Any],
    written: int,
) -> tuple[Path, Path]:
    """Write OUT.curation.json and OUT.card.md; returns their paths. written: number of pairs in OUT."""
    found = suspects(judged, config)
    content = {
        "format": 1,
        "inputs": inputs,
        "config": asdict(config),
        "written": written,
        "all": asdict(figures.all),
        "by_source": {name: asdict(one) for name, one in figures.by_source.items()},
        "judge_agreement": judge_agreement(judged),
        "suspects": [{"id": j.pair.id, "p_chosen": j.p.tolist()} for j in found],
    }
    places = out.with_name(f"{out.name}.curation.json"), out.with_name(f"{out.name}.card.md")
    write_json(places[0], content, error=DataError)
    write_atomic(places[1], _card(out, content, figures, found), error=DataError)
    return places


def _card(
    out: Path,
    content: dict[str, Any],
    figures: CurationFigures,
    found: Sequence[JudgedPair],
) -> str:
    inputs, config = content["inputs"], content["config"]
    table = curation_table(figures)
    lines = [
        f"# {out.name}",
        "",
        f"{content['written']:,} pairs, curated by `gram-jax curate` from {inputs['source']} "
        f"(contents {inputs['contents']}) with the scores of:",
        "",
        *(
            f"- {one['model']}, weights {one['weights']}: sha256 {one['sha256']}"
            for one in inputs["scores"]
        ),
        "",
        "Settings: " + ", ".join(f"{name} {value}" for name, value in config.items()) + ".",
        "",
        *_rows([table.columns, ["---"] * len(table.columns), *table.rows]),
        "",
        "Share of pairs on which two judges prefer the same response, by judge: "
        + "; ".join(" ".join(f"{x:.3f}" for x in row) for row in content["judge_agreement"])
        + ".",
        "",
        f"## Suspected label errors: {len(found):,}",
        "",
        *_rows([["id", "P(chosen)", "prompt", "chosen", "rejected"], ["---"] * 5]),
        *_rows(map(_suspect, found[:SHOWN])),
        *([f"\nand {len(found) - SHOWN:,} more in the JSON file"] if len(found) > SHOWN else []),
    ]
    return "\n".join(lines) + "\n"


def _suspect(judged: JudgedPair) -> list[str]:
    pair, p = judged.pair, " ".join(f"{x:.3f}" for x in judged.p)
    texts = (render_turns(turns_of(pair.prompt)), pair.chosen, pair.rejected)
    return [pair.id, p, *map(_short, texts)]


def _short(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= WIDTH else f"{text[:WIDTH]} ..."


def _rows(rows: Any) -> list[str]:
    return [f"| {' | '.join(str(getattr(x, 'text', x)) for x in row)} |" for row in rows]
