"""The architecture: every import of every module is checked against the tables below."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "gram_jax"

# A package may import from itself and from those above it in this list; cycles are not allowed.
LAYERS = [
    "errors",
    "limits",
    "version",
    "tree",
    "batch",
    "finite",
    "hashing",
    "compile_cache",
    "files",
    "remote",
    "formatting",
    "progress",
    "extras",
    "plots",
    "sharding",
    "compiler",
    "distributed",
    "checkpoint",
    "judge",
    "data",
    "model",
    "recipes",
    "losses",
    "interop",
    "ranking",
    "scoring",
    "generation",
    "rewards",
    "evals",
    "attacks",
    "run",
    "training",
    "reports",
    "adaptation",
    "rl",
    "serve",
    "plan",
    "demo",
    "cli",
    "__main__",
]

SERVER = {
    "serve.admission",
    "serve.app",
    "serve.body",
    "serve.errors",
    "serve.middleware",
    "serve.native",
    "serve.openai",
    "serve.operations",
    "serve.run",
    "serve.service",
    "serve.trainers",
    "serve.vllm",
}

# The modules that may import a third party; one that is not in the table may be imported anywhere.
THIRD_PARTIES = {
    "transformers": {"judge.tokenizer"},
    "tokenizers": {"judge.tokens", "judge.tokenizer", "interop.tiny", "interop.gguf_tokenizer"},
    "datasets": {"data.sources", "data.splits"},
    "tensorflow_datasets": {"data.sources"},
    "pyarrow": {"data.sources"},
    "orbax": {"checkpoint.orbax"},
    "safetensors": {"interop.hf_files", "interop.hf_export", "interop.adapters"},
    "gguf": {"interop.gguf"},
    "fsspec": {"remote"},
    "httpx": {"scoring.remote"},
    "huggingface_hub": {"interop.hub", "interop.hf_export"},
    "pydantic": {
        "judge.rationale",
        "serve.errors",
        "serve.fields",
        "serve.items",
        "serve.openai",
        "serve.native",
        "serve.trainers",
        "serve.vllm",
        "serve.operations",
        "serve.run",
        "recipes.rl",
        "recipes.strict",
        "recipes.tables",
        "evals.results",
        "judge.spec",
    },
    "tomli_w": {"recipes.reading"},
    "cyclopts": {
        "cli",
        "cli.options",
        "cli.training",
        "cli.judging",
        "cli.scoring",
        "cli.evaluation",
        "cli.models",
    },
    "rich": {"cli.console"},
    "jinja2": {"reports.report", "judge.chat_template"},
    "matplotlib": {"plots"},
    "tensorboardX": {"run.metrics"},
    "wandb": {"run.metrics"},
    "torch": {"rewards.openrlhf"},
    "flax": {"interop.nnx"},
    "fastapi": SERVER,
    "starlette": SERVER,
    "uvicorn": {"serve.connections", "serve.run"},
    "prometheus_client": {"serve.metrics"},
}

# Packages that use no device, except for one module.
NUMPY_ONLY = {"judge", "data"}
BRIDGE = "data.feed"


def modules() -> dict[str, Path]:
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(p for p in parts if p != "__init__")] = path
    return names


def imported(path: Path) -> set[str]:
    """Every module that a file imports when it runs, at its top or inside a function."""
    found = set()
    tree = ast.parse(path.read_text())
    for_types_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in set(ast.walk(tree)) - for_types_only:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def edges() -> Iterator[tuple[str, str]]:
    """(module, module of this package that it imports). The root has lazy names only."""
    known = modules()
    for module, path in known.items():
        for name in imported(path):
            target = name.removeprefix("gram_jax").removeprefix(".")
            inside = name.startswith("gram_jax") and target in known and target and module
            if inside and target != module and not module.startswith(f"{target}."):
                yield module, target


def test_imports_flow_one_way():
    rank = {name: at for at, name in enumerate(LAYERS)}
    unknown = {module.split(".")[0] for module in modules() if module} - rank.keys()
    assert not unknown, f"not in LAYERS: {unknown}"
    upward = [
        f"{module} imports {target}"
        for module, target in edges()
        if rank[target.split(".")[0]] > rank[module.split(".")[0]]
    ]
    assert not upward, "imports against the order of LAYERS:\n" + "\n".join(sorted(upward))


def test_there_are_no_cycles():
    graph: dict[str, set[str]] = {}
    for module, target in edges():
        graph.setdefault(module, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a cycle of imports: {' -> '.join(error.args[1])}") from None


def test_third_parties_are_imported_where_the_table_says():
    offences = [
        f"{module} imports {name}"
        for module, path in modules().items()
        for name in imported(path)
        if module not in THIRD_PARTIES.get(name.split(".")[0], {module})
    ]
    assert not offences, "\n".join(sorted(offences))


def test_judge_and_data_use_no_device():
    offences = [
        f"{module} imports {name}"
        for module, path in modules().items()
        if module.split(".")[0] in NUMPY_ONLY and module != BRIDGE
        for name in imported(path)
        if name.split(".")[0] in {"jax", "jaxlib", "flax", "optax"}
    ]
    assert not offences, "\n".join(sorted(offences))
