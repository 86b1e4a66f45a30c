"""An entry of evaluation.json as tables for a terminal."""

from typing import Any

Rows = list[tuple[str, ...]]
MOST_SUBSETS = 40


def evaluation_tables(found: dict[str, Any]) -> list[tuple[str, tuple[str, ...], Rows]]:
    """(title, columns, rows) of the official figures, of what stands beside them, and of the subsets."""
    title = f"{found['source']} ({found['benchmark']})"
    official = [
        (one["name"], f"{one['value']:.3f}", between(one["interval"]), one["by"])
        for one in found["official"]
    ]
    tables = [
        (title, ("", "figure", "95 %", "as defined by"), official),
        ("beside it, over pairs", ("", "figure"), _beside(found)),
    ]
    for table in found["tables"]:
        rows = [tuple(_cell(value) for value in row) for row in table["rows"]]
        tables.append((table["title"], tuple(table["columns"]), rows))
    if len(subsets := found["subsets"]) > 1:
        rows = [
            (one["name"], f"{one['n']:,}", f"{one['accuracy']:.3f}", between(one["interval"]))
            for one in subsets[:MOST_SUBSETS]
        ]
        if len(subsets) > MOST_SUBSETS:
            rows.append((f"and {len(subsets) - MOST_SUBSETS} more in evaluation.json", "", "", ""))
        tables.append(("subsets", ("", "items", "accuracy", "95 %"), rows))
    return tables


def between(interval: tuple[float, float] | None) -> str:
    """An interval in words.

    >>> between((0.25, 0.5))
    '0.250 to 0.500'
    """
    return "-" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def _beside(found: dict[str, Any]) -> Rows:
    pairs, calibration, length = found["pairs"], found["calibration"], found["length"]
    first, second = pairs["accuracy_chosen_first"], pairs["accuracy_chosen_second"]
    longer, shorter = _cell(pairs["accuracy_longer"]), _cell(pairs["accuracy_shorter"])
    rows = [
        ("rows read", f"{found['rows']:,}"),
        *((f"left out: {why}", f"{count:,}") for why, count in found["dropped"].items()),
        ("pairs (prompts)", f"{pairs['n']:,} ({pairs['prompts']:,})"),
        ("accuracy over pairs", f"{pairs['accuracy']:.3f}  (95 %: {between(pairs['interval'])})"),
        ("accuracy, chosen shown first / second", f"{first:.3f} / {second:.3f}"),
        ("consistency over both orders", f"{pairs['consistency']:.3f}"),
        ("position bias, P(first shown) - 0.5", f"{pairs['position_bias']:+.3f}"),
        ("accuracy, chosen is longer / shorter", f"{longer} / {shorter}"),
        ("accuracy if both were as frequent", _cell(length["controlled_accuracy"])),
        ("length slope, log-odds for twice the length", f"{length['slope']:+.3f}"),
        ("ties", f"{pairs['ties']:.3f}"),
        (
            "ECE / Brier / NLL",
            f"{pairs['ece']:.3f} / {pairs['brier']:.3f} / {calibration['nll']:.3f}",
        ),
    ]
    if fit := calibration["temperature"]:
        change = f"ECE {fit['ece_before']:.3f} -> {fit['ece_after']:.3f}"
        rows.append((f"temperature {fit['value']:.2f}, on the other half", change))
    if grades := found["grades"]:
        rows.append(("agreement with grades, Kendall's tau", _cell(grades["kendall"])))
    rows += [
        ("mean margin (log-odds)", f"{pairs['margin']:.3f}"),
        ("shortened", f"{pairs['shortened']:.3f}"),
    ]
    if pairs["skipped_ties"]:
        rows.append(("ties in the source, left out", f"{pairs['skipped_ties']:,}"))
    return rows


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
