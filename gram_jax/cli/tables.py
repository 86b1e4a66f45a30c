"""Tables of results on a terminal."""

from gram_jax.cli.console import Console
from gram_jax.evals.tables import Cell, Table
from gram_jax.reports.text import visible

MOST_ROWS = 40


def print_table(console: Console, table: Table) -> None:
    """Print a table without its column of explanations; of a long one the first 40 rows."""
    shown = [at for at in range(len(table.columns)) if at != table.explanation]
    rows = [[_text(row[at]) for at in shown] for row in table.rows[:MOST_ROWS]]
    if len(table.rows) > MOST_ROWS:
        more = f"and {len(table.rows) - MOST_ROWS} more in the results file"
        rows.append([more, *[""] * (len(shown) - 1)])
    console.table(visible(table.caption), [visible(table.columns[at]) for at in shown], rows)


def _text(value: str | Cell) -> str:
    return visible(value.text if isinstance(value, Cell) else value)
