"""Imports flow one way. The table is the architecture; the test reads the imports of every module against it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gram_jax"

# A module may import from its own layer and from those above it in this list. The longest matching name counts.
LAYERS = [
    {"errors", "tree", "batch", "console", "plots"},
    {"judge", "data"},
    {"sharding", "cluster", "programs"},
    {"data.feed"},
    {"model"},
    {"recipes"},
    {"losses"},
    {"objectives"},
    {"checkpoint"},
    {"scoring"},
    {"evals"},
    {"reports"},
    {"train"},
    {"rl"},
    {"serve"},
    {"plan"},
    {"bench", "adapt"},
    {"demo_data", "demo"},
    {"cli"},
    {"", "__main__"},
]

# Third parties have one door each; anything else may be used anywhere.
DOORS = {
    "transformers": {"data.encode"},
    "tokenizers": {"data.tokens", "data.encode", "data.tiny", "checkpoint.gguf"},
    "datasets": {"data.sources"},
    "tensorflow_datasets": {"data.sources"},
    "pyarrow": {"data.sources"},
    "orbax": {"checkpoint.orbax"},
    "safetensors": {"checkpoint.hf_files", "checkpoint.hf_export"},
    "gguf": {"checkpoint.gguf"},
    "huggingface_hub": {"checkpoint.hub"},
    "pydantic": {
        "serve.forms",
        "rl.recipe",
        "recipes.strict",
        "recipes.tables",
        "reports.schema",
    },
    "tomli_w": {"recipes.reading", "rl.recipe"},
    "typer": {"cli", "cli.options", "cli.training", "cli.judging", "cli.evidence", "cli.models"},
    "rich": {"console"},
    "jinja2": {"reports.render"},
    "matplotlib": {"plots"},
    "tensorboardX": {"train.metrics"},
    "wandb": {"train.metrics"},
    "torch": {"rl.openrlhf"},
    "flax": {"model.nnx"},
    "fastapi": {"serve.app", "serve.service", "serve.endpoints", "serve.protocols"},
    "starlette": {"serve.app", "serve.protocols"},
    "uvicorn": {"serve.run"},
    "prometheus_client": {"serve.endpoints", "serve.guard"},
}

# Parts of the data room that must stay free of jax, so that they run anywhere and never touch a device.
NUMPY_ONLY = {"judge", "data"}
BRIDGES = {"data.feed"}


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
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def layer_of(module: str) -> int:
    parts = module.split(".")
    for length in range(len(parts), -1, -1):
        name = ".".join(parts[:length])
        for index, layer in enumerate(LAYERS):
            if name in layer:
                return index
    raise AssertionError(module)


@pytest.mark.parametrize("module", modules())
def test_imports_flow_one_way(module: str):
    known = modules()
    for name in imported(known[module]):
        target = name.removeprefix("gram_jax").removeprefix(".")
        if not name.startswith("gram_jax") or target not in known:
            continue
        if target == "" and module != "":
            continue  # `from gram_jax import x` names the module x, which is checked by itself
        assert layer_of(target) <= layer_of(module), f"{module} imports {target} from above it"


@pytest.mark.parametrize("module", modules())
def test_third_parties_come_in_by_their_own_door(module: str):
    for name in imported(modules()[module]):
        top = name.split(".")[0]
        assert module in DOORS.get(top, {module}), f"{module} imports {top}: use {DOORS[top]}"


@pytest.mark.parametrize("module", modules())
def test_data_code_never_touches_a_device(module: str):
    if module.split(".")[0] in NUMPY_ONLY and module not in BRIDGES:
        tops = {name.split(".")[0] for name in imported(modules()[module])}
        assert not tops & {"jax", "jaxlib", "flax", "optax"}, f"{module} imports jax"
