"""`gram-jax`: every command parses, builds and calls. Imports wait for the command that needs them."""

import logging
import sys
import warnings

import typer

from gram_jax.cli import evaluation, judging, models, training
from gram_jax.console import Console, log_to
from gram_jax.errors import GramError, StoppedError

app = typer.Typer(
    name="gram-jax",
    help="Generative foundation reward models in JAX: train a judge, score pairs, rank responses, convert weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(no_args_is_help=True, help="Look at data as the model will see it.")
app.add_typer(data_app, name="data")

# In the order of the help.
for command in (
    training.train,
    training.recipe,
    judging.score,
    judging.rank,
    judging.bench,
    evaluation.evaluate,
    training.adapt,
    evaluation.attack,
    evaluation.report,
    training.rl,
    judging.bon,
    judging.serve,
    judging.spec,
    models.convert,
    evaluation.card,
    models.verify,
    training.plan,
    models.demo,
    models.version,
):
    app.command()(command)
data_app.command()(models.inspect)


def main() -> None:
    """The console script.

    Status 2: an error made for people, printed without a traceback. 130: stopped by Ctrl-C, with whatever was
    finished kept; 75 and 76 ask to be started again (errors.py). Everything else is a bug with its traceback.
    """
    warnings.showwarning = lambda message, *_: Console(stderr=True).warn(str(message))
    log_to(Console())
    # JAX and Orbax give the root logger a handler, which would print every record again.
    logging.getLogger("gram_jax").propagate = False
    try:
        app()
    except StoppedError as stopped:
        Console(stderr=True).warn(str(stopped))
        sys.exit(stopped.status)
    except GramError as error:
        Console(stderr=True).error(str(error))
        sys.exit(error.status)
    except SystemExit as ended:
        if ended.code == 130:  # typer turns KeyboardInterrupt into this, without a word
            Console(stderr=True).warn("stopped by Ctrl-C")
        raise
