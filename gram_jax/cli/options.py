"""Options that several commands have, and what they are read into."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from gram_jax.scoring.scorer import Scorer

MODEL_HELP = "a run (or RUN@STEP), an exported folder, a hub name, a .gguf file, or smollm2-135m"
RECIPE_HELP = "a TOML file, or a name that `gram-jax recipe` lists"
ModelOption = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)]
Compute = Annotated[
    Literal["auto", "float32", "bfloat16"],
    typer.Option(help="auto: bfloat16 on accelerators, float32 on a CPU"),
]
Weights = Annotated[
    Literal["auto", "float32", "bfloat16", "int8"],
    typer.Option(help="how they are held; auto: as they are computed with"),
]
# As ranking/tournament.py has them, which is not imported before it is needed.
Method = Literal["groups", "round_robin", "bradley_terry", "knockout", "linear", "reference"]
Schema = Annotated[str, typer.Option(help="schema of the rows; auto looks at their fields")]
OnBad = Annotated[Literal["error", "skip"], typer.Option(help="what to do with a bad row")]
JudgeOption = Annotated[
    Path | None,
    typer.Option(help="a judge.json to ask with, in place of the one saved with the model"),
]
MaxLength = Annotated[
    int | None, typer.Option(min=1, help="token budget of a pair, for a model without judge.json")
]
TokensPerCall = Annotated[
    int | None,
    typer.Option(min=1, help="tokens that a device takes at a time; less needs less memory"),
]


def seconds(least: float) -> Any:
    """Checks an option of so many seconds at least; "nan" is less than nothing and would pass typer's min."""

    def check(value: float) -> float:
        if not least <= value < math.inf:
            raise typer.BadParameter(f"{value:g} s: expected a number of seconds from {least:g} on")
        return value

    return check


JOB = "Several processes (found by itself inside Slurm and on TPU pods)"


def load_scorer(
    model: str,
    compute: Compute,
    weights: Weights,
    judge: Path | None,
    max_length: int | None,
    tokens_per_call: int | None,
) -> "Scorer":
    """The judge that the shared options name."""
    from gram_jax.judge.spec import JudgeSpec
    from gram_jax.scoring.scorer import Scorer

    return Scorer.load(
        model,
        compute=compute,
        weights=weights,
        max_length=max_length,
        tokens_per_call=tokens_per_call,
        spec=None if judge is None else JudgeSpec.load(judge),
    )
