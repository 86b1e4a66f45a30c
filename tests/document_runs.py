"""Running the documents' blocks: in a folder with tiny files under all names, and with small forms of commands.

bash runs the shell blocks of a page in order, in one folder. `gram-jax`, `python` and `curl` are programs there that
send their words to this process, which imports and compiles once. Python blocks are run statement by statement; a value
in the comment after a statement states the form of its result.
"""

import ast
import contextlib
import faulthandler
import io
import json
import os
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import tokenize
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
from cli_runner import run_cli
from documents import HOW, ROOT, Block, BlockError, blocks_of
from launch_fakes import write_program
from test_judge import GRAM_LIKE, rows_of
from tiny_runs import write_pairs

from gram_jax.interop import resolve

# Changes to the commands that have all words of the left column: "a -> b" replaces a; anything else is added at the
# end, except an option that the command has already.
SMALL = (
    ("gram-jax train", "--set run.max_steps=2 --set batch.batch_size=4 --set batch.max_length=256"),
    ("gram-jax train", "--set batch.gradient_accumulation_steps=1 --set judge.max_length=256"),
    ("gram-jax adapt", "--num-train-epochs 1 --max-length 256 --accept"),
    ("gram-jax evaluate", "--limit 9"),
    ("gram-jax attack", "--pairs 2"),
    ("gram-jax attack", "--pairs 500 -> --pairs 3"),
    ("gram-jax attack", "--pairs 40 -> --pairs 2"),
    ("gram-jax bench", "--pairs 2 --rounds 1 --length 64"),
    ("gram-jax bench", "--best-of 16 -> --best-of 3"),
    ("gram-jax bon", "--limit 2 --max-new-tokens 4"),
    ("gram-jax bon", "--n 16 -> --n 2"),
    (
        "gram-jax rl",
        "--set run.max_steps=1 --set sampling.prompts_per_step=4 --set sampling.max_new_tokens=4",
    ),
    ("gram-jax train smollm2-135m-consistency", "--set batch.max_length=512"),
    ("gram-jax rl", "--set evaluate.limit=2 --set algorithm.gradient_accumulation_steps=1"),
    ("gram-jax plan", "--model-config qwen3-1.7b -> --model-config NAME_OR_FOLDER/config.json"),
    ("gram-jax plan", "--topology v5e:4x4 -> --topology local"),
    ("gram-jax plan", "--search -> --set batch.max_length=256 --set batch.batch_size=64"),
    ("python benchmarks/ranking.py", "2000 -> 10"),
    ("python benchmarks/serve.py", "--seconds 12 -> --seconds 1"),
    ("python benchmarks/weights.py", "--pairs 100 -> --pairs 4"),
    ("curl", "--fail"),
)
HANGS = 900  # seconds until a page is given up; the slowest takes 40 beside another process

# What a page needs besides `make_stand_ins`: a name, and the stand-in that is copied to it.
GRANTED = {
    "docs/attacks.md": {"runs/smollm2-135m-pretrain": "runs/judge"},
    "docs/curate.md": {"runs/judge-0": "runs/judge", "runs/judge-1": "runs/judge"},
    "docs/large-data.md": {"runs/smollm2-135m-pretrain": "runs/judge"},
    "docs/report.md": {"judge-hf": "runs/demo/judge", "first": "evaluated", "second": "evaluated"},
    "docs/rl.md": {"runs/smollm2-135m-finetune": "runs/judge"},
}
# Names in Python blocks that do not define them, besides `judge`.
NAMES = {
    "prompt": "Name a prime.",
    "responses": ["Nine.", "Seven.", "Eight."],
    "first": "Seven.",
    "second": "Nine.",
}

# Sends its words to the socket of a `Folder` and ends with the status that it answers.
PROGRAM = """#!{python} -SE
import json, os, socket, sys
server = socket.create_connection(("127.0.0.1", int(os.environ["DOCUMENTS_PORT"])))
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
server.sendall(json.dumps({{"words": words, "folder": os.getcwd()}}).encode())
server.shutdown(socket.SHUT_WR)
status, out, err = json.loads(b"".join(iter(lambda: server.recv(65536), b"")))
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(status)
"""


def make_stand_ins(place: Path, tools: Path) -> None:
    """A folder with tiny files, runs and models under the names that the documents use."""
    for name in ("benchmarks", "configs", "gram_jax", "launch"):
        (place / name).symlink_to(ROOT / name)
    for name in ("data", "docs", "runs/demo"):
        (place / name).mkdir(parents=True)
    for name in ("pairs", "new_pairs", "my_held_out_pairs", "HELDOUT"):
        write_pairs(place / f"{name}.jsonl", 8)
    held_out = (
        place / "my_held_out_pairs.jsonl"
    ).read_text()  # other pairs than the training data's
    (place / "my_held_out_pairs.jsonl").write_text(
        held_out.replace('"prompt": "', '"prompt": "held out ')
    )
    rows = [json.loads(line) for line in write_pairs(place / "my_pairs.jsonl", 150).open()]
    shutil.copy(place / "my_pairs.jsonl", place / "clear.jsonl")
    for name in ("pairs", "my_pairs", "PREFERENCES", "data/preference_train"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[:16]), place / f"{name}.parquet")
    both = {"response_a": "chosen", "response_b": "rejected"}
    pairs = [
        {"prompt": r["prompt"]} | {to: r[name] for to, name in both.items()} for r in rows[:16]
    ]
    for name in ("my_unlabeled", "data/unlabeled_train"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(pairs), place / f"{name}.parquet")
    _write_lines(place / "prompts.jsonl", pairs)
    texts = [" ".join(f"{word}{at}" for word in "abcdefghijklmnopqrst") for at in range(8)]
    _write_lines(place / "my_texts.jsonl", [{"text": text} for text in texts])
    _write_lines(place / "rendered_rows.jsonl", rows_of(GRAM_LIKE))
    four = [(r, r["prompt"], r["chosen"], r["rejected"]) for r in rows[:4]]
    candidates = [{"prompt": p, "responses": [a, b, "fig"]} for _, p, a, b in four]
    _write_lines(place / "candidates.jsonl", candidates)
    reward_bench = [r | {"subset": "llmbar-natural"} for r, *_ in four]
    _write_lines(place / "reward_bench.jsonl", reward_bench)
    about = {"label": "A>B", "source": "livebench-math"}
    judgebench = [
        {"question": p, "response_A": a, "response_B": b, "pair_id": p} | about
        for _, p, a, b in four
    ]
    _write_lines(place / "judgebench.jsonl", judgebench)
    three = [
        {"id": p, "prompt": p, "domain": "chat"}
        | {name: [r[name] + end for end in ("", ".", "!")] for name in ("chosen", "rejected")}
        for r, p, *_ in four[:2]
    ]
    (place / "rm_bench.json").write_text(json.dumps(three))
    (place / "token.txt").write_text("a-token\n")
    recipe = (ROOT / "configs" / "smollm2-135m-pretrain.toml").read_text()
    (place / "RECIPE").write_text(recipe.replace("runs/smollm2-135m-pretrain", "runs/recipe"))
    page = Folder(place, tools=tools)
    page.do("""
gram-jax convert smollm2-135m NAME_OR_FOLDER
gram-jax train smollm2-135m-finetune --set run.output_dir=runs/demo/stage2 --set model.name_or_path=smollm2-135m
gram-jax convert runs/demo/stage2 runs/demo/judge
gram-jax evaluate runs/demo/judge pairs.jsonl --out evaluated
cp -r runs/demo/stage2 runs/judge
ln -s runs/judge a-better-judge
""")


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def small_form(words: list[str]) -> list[str]:
    """A command with the changes of `SMALL`.

    >>> small_form(["gram-jax", "bon", "a", "--n", "16"])
    ['gram-jax', 'bon', 'a', '--n', '2', '--limit', '2', '--max-new-tokens', '4']
    """
    added = []
    for begin, change in SMALL:
        if not set(begin.split()) <= set(words):
            continue
        old, arrow, new = change.partition(" -> ")
        if not arrow:
            option = change.split()[0]
            added += change.split() if option == "--set" or option not in words else []
            continue
        size = len(old.split())
        for at in range(len(words)):
            if words[at : at + size] == old.split():
                words = [*words[:at], *new.split(), *words[at + size :]]
    return words + added


class Folder:
    """A folder in which the blocks of a page are run, in order."""

    def __init__(self, place: Path, tools: Path):
        self.place, self.tools = place, tools
        self.names: dict[str, Any] = dict(NAMES)
        self.servers: list[tuple[Any, threading.Thread]] = []
        # the last ones fail: nothing is installed or started on this machine
        for name in ("gram-jax", "python", "curl", "pip", "make", "sbatch", "docker", "kubectl"):
            write_program(tools / name, PROGRAM.format(python=sys.executable))

    def run(self, block: Block) -> None:
        """Raises BlockError with the place and the output if something fails."""
        try:
            if block.kind == "shell":
                self.do(block.commands)
            else:
                self.do_python(block.commands)
        except BlockError as error:
            raise BlockError(f"{block.place}: {error}\nIf it cannot be fixed, {HOW}") from error

    def do(self, commands: str) -> None:
        """Run by bash, which ends at the first command that fails."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(0.05)
            kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "GRAM_JAX"))}
            path = f"{self.tools}{os.pathsep}{os.environ['PATH']}"
            with (self.tools / "output").open("w+") as output:
                shell = subprocess.Popen(
                    ["bash", "-euo", "pipefail", "-c", commands],
                    cwd=self.place,
                    env=kept | {"PATH": path, "DOCUMENTS_PORT": str(server.getsockname()[1])},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                try:
                    while shell.poll() is None:
                        with contextlib.suppress(TimeoutError):
                            self._answer(server.accept()[0])
                finally:
                    shell.kill()
                    shell.wait()
                output.seek(0)
                if shell.returncode:
                    raise BlockError(
                        f"ended with status {shell.returncode}\n{commands}\n{output.read()[-5000:]}"
                    )

    def _answer(self, caller: socket.socket) -> None:
        with caller:
            caller.settimeout(60)
            asked = json.loads(b"".join(iter(lambda: caller.recv(65536), b"")))
            words = small_form(asked["words"])
            print("$", shlex.join(words), flush=True)
            began = time.perf_counter()
            with contextlib.chdir(asked["folder"]):
                status, out, err = self._do(words)
            print(f"{out}{err}[{time.perf_counter() - began:.1f} s]")
            caller.sendall(json.dumps([status, out, err]).encode())

    @contextlib.contextmanager
    def _at_the_terminal(self) -> Iterator[None]:
        """One device, not the suite's eight; and smollm2-135m is the tiny random model."""
        devices = jax.devices()[:1]
        with (
            mock.patch.object(resolve, "TINY", "smollm2-135m"),
            mock.patch.object(jax, "devices", lambda *_: devices),
            mock.patch.object(jax, "device_count", lambda *_: 1),
        ):
            yield

    def _do(self, words: list[str]) -> tuple[int, str, str]:
        """(status, standard output, standard error) of a command, done in this process."""
        if words[0] == "gram-jax":
            with self._at_the_terminal(), mock.patch("gram_jax.serve.run.serve", self._serve):
                try:
                    return run_cli(*words[1:])
                except Exception:
                    return 1, "", traceback.format_exc()
        if words[0] == "python" and words[1].endswith(".py"):
            return _run_script(words[1:])
        if words[0] == "curl" and self.servers:
            port = self.servers[-1][0].config.port
            real = shutil.which("curl", path=os.environ["PATH"])
            words = [word.replace("localhost:8000", f"127.0.0.1:{port}") for word in words[1:]]
            done = subprocess.run([real, *words], capture_output=True, text=True, timeout=120)
            return done.returncode, done.stdout, done.stderr
        return 127, "", f"tests/document_runs.py cannot run {shlex.join(words)}\n"

    def _serve(self, app: Any, *, host: str, port: int, **_: Any) -> None:
        """Serve in a thread at a free port, until the page ends."""
        import uvicorn

        bound = socket.create_server((host, 0))
        port = bound.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, host=host, port=port, log_config=None))
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        self.servers.append((server, thread))
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.02)

    def close(self) -> None:
        for server, thread in self.servers:
            server.should_exit = True
            thread.join(60)

    def do_python(self, code: str) -> None:
        """Statement by statement, with the names of earlier blocks."""
        with contextlib.chdir(self.place), self._at_the_terminal():
            if "judge" not in self.names:
                from gram_jax import Scorer

                self.names["judge"] = Scorer.load("runs/judge")
            for statement, comment in statements_of(code):
                try:
                    value = _run_statement(statement, self.names)
                except Exception as error:
                    raise BlockError(
                        f"{ast.unparse(statement)}\n{traceback.format_exc()}"
                    ) from error
                if comment and (stated := form_of_comment(comment)) is not None:
                    found = form_of(value, stated)
                    if found != stated:
                        raise BlockError(
                            f"{ast.unparse(statement)}\ngives {value!r}, the page states: {comment}"
                        )


def _run_script(words: list[str]) -> tuple[int, str, str]:
    """A Python program of the repository, in this process."""
    out, status = io.StringIO(), 0
    script = Path(words[0]).resolve()
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.object(sys, "path", [str(script.parent), *sys.path]),
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(out),
    ):
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as ended:
            status = int(ended.code or 0)
        except Exception:
            return 1, out.getvalue(), traceback.format_exc()
    return status, out.getvalue(), ""


def statements_of(code: str) -> list[tuple[ast.stmt, str]]:
    """Every statement with the comment after it, or "".

    >>> [(ast.unparse(s), c) for s, c in statements_of("a = 1  # one\\nb = 2")]
    [('a = 1', 'one'), ('b = 2', '')]
    """
    comments = {
        token.start[0]: token.string.strip("# ")
        for token in tokenize.generate_tokens(io.StringIO(code).readline)
        if token.type == tokenize.COMMENT
    }
    return [(s, comments.get(s.end_lineno or 0, "")) for s in ast.parse(code).body]


def _run_statement(statement: ast.stmt, names: dict[str, Any]) -> Any:
    """The value of an expression; of `print`, the printed text."""
    if not isinstance(statement, ast.Expr):
        exec(compile(ast.Module([statement], []), "<document>", "exec"), names)
        return None
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        value = eval(compile(ast.Expression(statement.value), "<document>", "eval"), names)
    return out.getvalue().strip() if value is None else value


def form_of_comment(comment: str) -> Any:
    """The form that a comment states; None if it does not begin with a value.

    >>> form_of_comment("0.58 0.42: probabilities"), form_of_comment("[1, 0, 2], best first")
    ((<class 'float'>, <class 'float'>), [<class 'int'>, <class 'int'>, <class 'int'>])
    >>> form_of_comment("[n, n] log-odds"), form_of_comment("log-odds, and more")
    (2, None)
    """
    if names := re.match(r"\[([a-z](?:, [a-z])*)\]", comment):
        return len(names[1].split(", "))  # dimensions of an array
    return _form_of_text(comment)


def _form_of_text(text: str) -> Any:
    if text.startswith("["):
        for at in range(len(text)):
            with contextlib.suppress(SyntaxError, ValueError):
                return _form(ast.literal_eval(text[: at + 1]))
        return None
    numbers = []
    for word in text.partition(":")[0].split():
        try:
            numbers.append(type(ast.literal_eval(word)))
        except (SyntaxError, ValueError):
            return None
    return tuple(numbers) or None


def form_of(value: Any, stated: Any) -> Any:
    """The form of a value; of an array, as many dimensions if `stated` is a number."""
    if isinstance(stated, int):
        return np.ndim(value)
    if isinstance(value, str):
        return _form_of_text(value)
    return _form(value.tolist() if isinstance(value, np.ndarray | np.generic) else value)


def _form(value: Any) -> Any:
    return [_form(one) for one in value] if isinstance(value, list | tuple) else type(value)


def run_page(page: str, place: Path, tools: Path) -> None:
    """All blocks of a page that are run, in a folder with the stand-ins."""
    folder = Folder(place, tools=tools)
    try:
        for block in blocks_of(page):
            if block.is_run:
                folder.run(block)
    finally:
        folder.close()


def answer() -> None:
    """Run pages for another process: a line of standard input is JSON of [function, its words], a line out the failure.

    Commands replace the standard streams and devices, so this is not pytest's own process.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    known = {"make_stand_ins": make_stand_ins, "run_page": run_page}
    for line in sys.stdin:
        name, words = json.loads(line)
        faulthandler.dump_traceback_later(HANGS, exit=True)
        try:
            known[name](*words[:-2], *map(Path, words[-2:]))
            failed = ""
        except Exception:
            failed = traceback.format_exc()
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps(failed), file=answers, flush=True)


if __name__ == "__main__":
    answer()
