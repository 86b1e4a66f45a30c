"""Nothing is dropped in silence: every place of the package that skips, replaces or swallows something is listed here.

A place is a handler that continues without the value, a decoding with replacement, a name of a drop counter, or a set
of notes. A new one fails this test until it is added with the counter, warning or reason that makes it visible.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "gram_jax"
LOSSY = ("replace", "ignore", "backslashreplace", "xmlcharrefreplace")


def functions(tree: ast.AST, name: str = "") -> Iterator[tuple[str, ast.AST]]:
    """(name of the innermost function, node) of every node."""
    for node in ast.iter_child_nodes(tree):
        inner = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else name
        yield inner, node
        yield from functions(node, inner)


def is_swallowed(node: ast.AST) -> bool:
    """Whether a handler goes on without the value: pass, continue, break, or return of a constant or a name."""
    if not isinstance(node, ast.ExceptHandler) or len(node.body) != 1:
        return False
    (body,) = node.body
    if isinstance(body, ast.Return):
        value = body.value
        return value is None or isinstance(
            value, ast.Constant | ast.Name | ast.Tuple | ast.Dict | ast.List
        )
    return isinstance(body, ast.Pass | ast.Continue | ast.Break)


def is_lossy(node: ast.AST) -> bool:
    """Whether a call replaces or drops characters."""
    if isinstance(node, ast.Constant) and node.value == "\ufffd":
        return True
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
        return False
    called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
    if called == "suppress":
        return True
    values = [*node.args, *(word.value for word in node.keywords if word.arg == "errors")]
    coded = called in ("decode", "encode", "open", "read_text", "TextIOWrapper")
    return coded and any(isinstance(x, ast.Constant) and x.value in LOSSY for x in values)


def places() -> set[str]:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for name, node in functions(ast.parse(path.read_text(encoding="utf-8"))):
            if is_swallowed(node) or is_lossy(node):
                found.add(f"{module}:{name}")
    return found


# Where the value that is not used becomes visible, or why nothing of the user's is lost.
LISTED = {
    # texts and rows
    "data.csv_rows:_number": "a cell that is no number stays text, which the schema refuses with line and column",
    "data.fields:_is_encodable": "check_encodable refuses the row with the path of the text",
    "data.gram_rows:is_published": "the reading itself raises for the row",
    "data.sources:_count_lines": "a damaged file has no known number of rows; reading it raises",
    "data.splits:has_card": "looks for one word of a README.md that datasets reads itself",
    "judge.card:_strings": "a block of a card that is no Python has no template; none at all is an error",
    "judge.card:_with_usual_fields": "a text of a card that is no template; none at all is an error",
    "judge.messages:_written_call": "text that is no JSON of a call is shown as it is",
    "judge.tokens:replace_surrogates": "Encoded.replaced; a GramWarning of the Scorer; data files refuse such rows",
    "evals.results:read_results": "names in a results file, which are not judged",
    "evals.results:read_judge": "an earlier result that is missing or damaged is scored again",
    "generation.generator:_frames": "the conversation is shown as the text of one user",
    "run.metrics:accept_metrics": "lines that cannot be read; the command reports how many are kept",
    "serve.service:judges": "an overloaded judge is sound; other failures are logged",
    # files and caches, which are made again
    "checkpoint.manifest:find_damage": "becomes a line of the list of damaged files",
    "checkpoint.manifest:read_manifest": "raises CheckpointError below",
    "data.cache:_records_so_far": "progress of another process's build",
    "data.cache:_try_lock": "another process holds the lock and is waited for",
    "data.cache:_whole_shards": "incomplete shards of an interrupted build are encoded again",
    "data.pool:main": "the end of the input of a worker",
    "files:write_atomic": "the temporary file of a write that raises",
    "files:process_exists": "a process number that does not exist",
    "interop.adapters:_is_expression": "the pattern is refused with its name",
    "interop.gguf:_is_readable": "the type is refused with its name",
    "interop.hub:is_hub_name": "the name is refused with the valid forms",
    "interop.hub:push_folder": "looks for a mark in a card that is not ours",
    "interop.hub:read_front_matter": "a card without front matter gets one",
    "reports.card:_write_card": "looks for a mark in a card that is not ours",
    "reports.provenance:_place_of": "a start that no longer exists ends the list of runs, with its name",
    "reports.report:_check": "looks for a mark in a file that is not ours",
    # processes and machines
    "distributed.cluster:tpu_vm_variables": "not a TPU VM",
    "distributed.heartbeat:_leave": "a peer that has ended cannot be notified",
    "distributed.heartbeat:_meet": "a connection that is not of this job",
    "distributed.heartbeat:_send_all": "a peer that has ended; its loss is reported",
    "distributed.heartbeat:tell": "a peer that has ended cannot be notified",
    "distributed.watchdog:_write": "the report is also printed",
    "distributed.lock:_machine": "unknown machines are compared by their beats",
    "distributed.lock:_read": "a lock that is being written has no owner yet",
    "distributed.lock:_started": "the process has ended",
    "distributed.lock:_take": "the lock of another process is checked below",
    "distributed.lock:beat": "the next beat is tried again; a lost lock stops the run",
    "distributed.lock:hold_lock": "a lock file on a disk that is gone",
    "training.compiling:_available_memory": "unknown memory limits no number of threads",
    "version:installed_version": 'the version is "not installed"',
}  # fmt: skip


def test_every_place_that_skips_or_replaces_something_is_listed():
    assert places() == LISTED.keys()


def test_every_reason_to_drop_a_record_is_counted_under_a_name_of_its_own():
    """The names under which `ReadReport.dropped`, `ReadReport.notes` and `Rewards.notes` count."""
    from gram_jax.data import batches, examples, reading
    from gram_jax.judge import messages
    from gram_jax.rewards.messages import UNKNOWN_FORMAT

    reasons = [reading.BAD_ROW, reading.IDENTICAL, reading.UNPAIRED, reading.CONTEXT, examples.TIE, examples.TOO_LONG,
               examples.IDENTICAL_SHORTENED, batches.LONGER_THAN_A_ROW, *messages.NOTES, UNKNOWN_FORMAT]  # fmt: skip
    assert len(set(reasons)) == len(reasons)
    described = (Path(__file__).parents[1] / "docs" / "what-happens-to-my-data.md").read_text()
    assert [reason for reason in reasons if reason not in described] == []
