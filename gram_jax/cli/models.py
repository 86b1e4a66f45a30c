"""Commands about weights, data and the installation. Imports wait for the command that needs them."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from gram_jax.cli.options import MODEL_HELP, JudgeOption, MaxLength, ModelOption, OnBad, Schema
from gram_jax.console import Console
from gram_jax.formatting import format_seconds


def convert(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    out: Annotated[Path, typer.Argument(help="a new folder in Hugging Face's layout")],
    dtype: Annotated[
        Literal["stored", "float32", "bfloat16", "float16"], typer.Option(help="of the weights")
    ] = "stored",
    overwrite: Annotated[bool, typer.Option(help="replace the folder where it exists")] = False,
) -> None:
    """Write a model as a folder that transformers opens, with tokenizer, chat template and judge.json."""
    import jax

    from gram_jax.interop.hf_export import export_hf
    from gram_jax.interop.models import load_model, load_spec, load_tokenizer, stop_tokens
    from gram_jax.sharding import make_placement

    # Weights are only rearranged, and a model that no accelerator holds alone may fit the machine's memory.
    jax.config.update("jax_platforms", "cpu")
    spec, tokenizer = load_spec(model), load_tokenizer(model)
    cfg, params = load_model(
        model, make_placement({}, devices=jax.devices()[:1]), None if dtype == "stored" else dtype
    )
    export_hf(
        out,
        cfg,
        params,
        dtype=None,
        tokenizer=tokenizer,
        spec=spec,
        stops=stop_tokens(model),
        overwrite=overwrite,
    )
    Console().say(f"{out}: weights, config, tokenizer{'' if spec is None else ' and judge.json'}")


def verify(
    folder: Annotated[Path, typer.Argument(help="a run, or an exported folder")],
    accept: Annotated[
        bool, typer.Option(help="files were changed on purpose: write a new manifest")
    ] = False,
) -> None:
    """Hash every file of a run's checkpoints or of an export; damage ends with status 2 and names."""
    from gram_jax.checkpoint.manifest import MANIFEST
    from gram_jax.run.verify import accept_changes, verify_folder

    if accept:
        files = accept_changes(folder).files
        Console().say(f"{folder / MANIFEST}: {len(files)} files as they are now")
    else:
        verify_folder(folder)


def inspect(
    source: Annotated[str, typer.Argument(help="a file, folder or dataset of any schema")],
    model: ModelOption = "smollm2-135m",
    stage: Annotated[
        Literal["pretrain", "finetune", "bradley_terry"],
        typer.Option(help="stage 1, stage 2, or the baseline"),
    ] = "finetune",
    limit: Annotated[int, typer.Option(min=1, help="records to show")] = 3,
    schema: Schema = "auto",
    on_bad: OnBad = "error",
    judge: JudgeOption = None,
    max_length: MaxLength = None,
) -> None:
    """Show rendered examples as the model reads them; ⟦ ⟧ mark what the loss counts."""
    from gram_jax.data.inspect import inspect_source
    from gram_jax.interop.models import load_spec, load_tokenizer
    from gram_jax.judge.spec import JudgeSpec, make_spec

    tokenizer = load_tokenizer(model)
    spec = load_spec(model) if judge is None else JudgeSpec.load(judge)
    spec = spec or make_spec(tokenizer, max_length=max_length)
    console = Console()
    for text in inspect_source(
        source,
        tokenizer=tokenizer,
        spec=spec,
        stage=stage,
        limit=limit,
        schema=schema,
        on_bad=on_bad,
    ):
        console.say(text)


def demo(
    fast: Annotated[
        bool,
        typer.Option(help="Use a tiny random model: under a minute, and its figures mean nothing"),
    ] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Output folder; default runs/demo, or runs/demo-fast")
    ] = None,
) -> None:
    """Turn SmolLM2-135M-Instruct into a judge: ten minutes on two cores."""
    from gram_jax.demo.demo import HELDOUT, PREFERENCES, result_rows, run_demo

    console = Console()
    logging.getLogger("gram_jax").setLevel(logging.WARNING)  # not every step of training
    logging.getLogger("gram_jax.demo").setLevel(logging.INFO)
    folder = folder or Path("runs/demo-fast" if fast else "runs/demo")
    result = run_demo(folder, fast=fast, progress=console.progress)
    title = f"{result.after.n} held-out pairs"
    console.table(title, ("", "before", "after"), result_rows(result))
    console.say(f"picture: {result.plot}")
    console.say(f"time: {format_seconds(result.seconds)}")
    console.say()
    console.heading("Try next")
    beside = Path(sys.executable).with_name("gram-jax")
    command = _from_here(beside) if beside.exists() else "gram-jax"
    heldout, preferences, judge = map(_from_here, (HELDOUT, PREFERENCES, result.judge))
    console.say(f"  {command} evaluate {judge} {heldout}")
    console.say(f"  {command} data inspect {preferences} --model {judge}")
    console.say(f"  {command} score {heldout} scores.jsonl --model {judge}")


def _from_here(path: Path) -> Path:
    """The path from the working directory, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def version() -> None:
    """Versions of gram_jax, JAX and the devices it sees."""
    import jax

    from gram_jax.version import installed_version

    names = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    print(
        f"gram-jax {installed_version()}, jax {jax.__version__}, {jax.device_count()} device(s): {names}"
    )
