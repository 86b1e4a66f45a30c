"""`gram-jax`: every command parses options, builds values and calls one function."""

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cyclopts import App, CycloptsError, Parameter

from gram_jax.cli import evaluation, judging, models, scoring, training
from gram_jax.cli.console import Console, log_to
from gram_jax.errors import DataError, GramError, GramWarning, StoppedError
from gram_jax.files import check_local, is_full_disk, is_read_only

logger = logging.getLogger(__name__)

app = App(
    name="gram-jax",
    help="Generative foundation reward models in JAX: train a judge, score pairs, rank responses, convert weights.",
    help_flags=["-h", "--help"],
    version_flags=[],
    default_parameter=Parameter(negative=()),
    result_action="return_value",
)
data_app = App(
    name="data",
    help="Show data as the model reads it; make pairs for a first stage; encode data.",
    sort_key=99,
)

# In the order of the help.
COMMANDS = (
    training.train,
    training.recipe,
    scoring.score,
    scoring.rank,
    scoring.merge,
    judging.bench,
    evaluation.evaluate,
    evaluation.think,
    evaluation.curate,
    training.adapt,
    evaluation.attack,
    evaluation.report,
    training.rl,
    judging.bon,
    judging.serve,
    judging.spec,
    scoring.rationales,
    models.convert,
    evaluation.card,
    models.verify,
    training.plan,
    models.demo,
    models.version,
)
for at, command in enumerate(COMMANDS):
    app.command(command, name=command.__name__, sort_key=at)
data_app.command(models.inspect, name="inspect")
data_app.command(models.pairs, name="pairs")
data_app.command(models.prepare, name="prepare")
app.command(data_app)


def run_command(words: Sequence[str]) -> int:
    """Run one command and return its exit status (errors.STATUSES). An exception that is a bug passes."""
    errors = Console(stderr=True)
    log_to(Console())
    with _own_warnings_logged():
        try:
            command, bound, _ = app.parse_args(list(words), exit_on_error=False, print_error=False)
            _refuse_addresses(bound.arguments)
            return command(*bound.args, **bound.kwargs) or 0
        except CycloptsError as error:
            errors.error(f"{error}\nTry: gram-jax {' '.join(words[:1])} --help".rstrip())
            return 2
        except StoppedError as stopped:
            errors.warn(str(stopped))
            return stopped.status
        except GramError as error:
            errors.error(str(error))
            return error.status
        except KeyboardInterrupt:
            errors.warn("stopped by Ctrl-C")
            return 130
        except OSError as error:
            if not (is_full_disk(error) or is_read_only(error)):
                raise
            errors.error(f"{error.filename or 'a file'} cannot be written: {error.strerror}")
            return 2
        finally:
            log_to(None)


def _refuse_addresses(arguments: Mapping[str, Any]) -> None:
    """Raises DataError if an argument that is a path is an address: before anything is loaded, in every command."""
    for name, value in arguments.items():
        for path in value if isinstance(value, list | tuple) else [value]:
            if isinstance(path, Path):
                check_local(path, name, DataError)


@contextmanager
def _own_warnings_logged() -> Iterator[None]:
    """Log the warnings of gram_jax; those of other packages are shown as usual."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def log_or_show(
            message: Warning | str, category: type[Warning], *place: Any, **named: Any
        ) -> None:
            if issubclass(category, GramWarning):
                logger.warning(str(message))
            else:
                show(message, category, *place, **named)

        warnings.showwarning = log_or_show
        yield


def main() -> None:
    """The console script."""
    # JAX and Orbax give the root logger a handler, which would print every record again.
    logging.getLogger("gram_jax").propagate = False
    sys.exit(run_command(sys.argv[1:]))
