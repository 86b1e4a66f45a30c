"""Commands about weights, data and the installation. Each imports what it needs."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from gram_jax.cli.console import Console, log_to
from gram_jax.cli.options import (
    MODEL,
    AtLeastOne,
    ModelOption,
    Overrides,
    RecipeName,
    RowOptions,
    Seed,
    read_spec,
)
from gram_jax.errors import DataError, JudgeError
from gram_jax.formatting import format_seconds


def convert(
    model: Annotated[str, Parameter(help=f"{MODEL}.")],
    out: Path,
    /,
    *,
    as_: Annotated[
        Literal["model", "classifier", "margin", "cross-encoder", "adapter"],
        Parameter(name="--as"),
    ] = "model",
    dtype: Literal["stored", "float32", "bfloat16", "float16"] = "stored",
    overwrite: bool = False,
) -> None:
    """Write a model as a folder that transformers opens, with tokenizer, chat template and judge.json.

    Args:
        out: A new folder in Hugging Face's layout.
        as_: model: with its own head. classifier: a sequence classifier whose two labels are the verdicts. margin: one
            whose single label is the first verdict. cross-encoder: the model, which sentence-transformers loads as a
            CrossEncoder. adapter: the LoRA of a run, or the adapter that was loaded, for peft.
        dtype: Type of the written weights.
        overwrite: Replace the folder if it exists.
    """
    import jax

    from gram_jax.interop.classifier import as_classifier, classifier_card, cross_encoder_files
    from gram_jax.interop.hf_export import (
        export_adapter,
        export_copy,
        export_hf,
        reserve_export,
    )
    from gram_jax.interop.models import (
        adapter_place,
        load_lora,
        load_model,
        load_spec,
        load_tokenizer,
        stop_tokens,
    )
    from gram_jax.sharding import make_placement

    # Weights are only rearranged, and a model too large for one accelerator may fit in the memory of the host.
    jax.config.update("jax_platforms", "cpu")
    with reserve_export(out, overwrite=overwrite):
        spec, tokenizer = load_spec(model), load_tokenizer(model)
        one = make_placement({}, devices=jax.devices()[:1])
        if as_ == "adapter" and (found := adapter_place(model)) is not None:
            place, base = found
            given = {"base": base, "tokenizer": tokenizer, "spec": spec, "overwrite": overwrite}
            export_copy(out, place, **given)
            Console().say(f"{out}: an adapter of {base}")
            return
        if as_ == "adapter":
            cfg, params, lora, base = load_lora(model, one)
            export_adapter(
                out,
                cfg,
                lora,
                params,
                base=base,
                tokenizer=tokenizer,
                spec=spec,
                overwrite=overwrite,
            )
            Console().say(f"{out}: an adapter of {base}")
            return
        if as_ != "model" and spec is None:
            raise JudgeError(
                f"{model} has no judge.json, which states its verdict labels: `gram-jax spec` writes one"
            )
        cfg, params = load_model(model, one, None if dtype == "stored" else dtype)
        texts = {}
        if as_ == "cross-encoder" and spec is not None:
            texts = cross_encoder_files(spec, tokenizer)
        elif as_ != "model" and spec is not None:
            cfg, params = as_classifier(
                cfg, params, spec, "margin" if as_ == "margin" else "labels"
            )
            texts = {"README.md": classifier_card(cfg, spec, out.name)}
        export_hf(
            out,
            cfg,
            params,
            dtype=None,
            tokenizer=tokenizer,
            spec=spec,
            stops=stop_tokens(model),
            texts=texts,
            overwrite=overwrite,
        )
        Console().say(
            f"{out}: weights, config, tokenizer{'' if spec is None else ' and judge.json'}"
        )


def verify(folder: Path, /, *, accept: bool = False) -> None:
    """Check the hash of every file of a run's checkpoints or of an export; damage is listed, with exit status 2.

    Of a file of scores or rankings it checks every row, of a judge.json its hash.

    Args:
        folder: A run, an exported folder, a judge.json, or a file that `score`, `rank`, `evaluate`, `attack` or `bon`
            wrote.
        accept: Accept files of an export, metrics of a run, rows of a file, or a judge.json, that were changed on
            purpose.
    """
    from gram_jax.run.verify import accept_changes, accept_file, verify_file, verify_folder

    if folder.is_file():
        Console().say(accept_file(folder) if accept else verify_file(folder))
    elif accept:
        Console().say(accept_changes(folder))
    else:
        verify_folder(folder)


def inspect(
    source: str,
    /,
    *,
    model: ModelOption = "smollm2-135m",
    stage: Literal["pretrain", "finetune", "bradley_terry"] = "finetune",
    limit: Annotated[int, AtLeastOne] = 3,
    rows: RowOptions = RowOptions(),
    spec: Path | None = None,
    max_length: Annotated[int | None, AtLeastOne] = None,
) -> None:
    """Show examples as the model reads them; ⟦ ⟧ mark the targets of the loss.

    Args:
        source: A file, folder or dataset of any schema.
        stage: Stage 1, stage 2, or the baseline.
        limit: Number of records to show.
        spec: A judge.json to use instead of the one saved with the model.
        max_length: Maximum number of tokens of a pair, for a model without judge.json.
    """
    from gram_jax.data.inspect import inspect_source
    from gram_jax.interop.models import load_spec, load_tokenizer
    from gram_jax.judge.spec import make_spec

    tokenizer = load_tokenizer(model)
    own = read_spec(spec) or load_spec(model)
    console = Console()
    judge = own or make_spec(tokenizer, max_length=max_length)
    texts = inspect_source(
        source, tokenizer=tokenizer, spec=judge, stage=stage, limit=limit, **rows.arguments()
    )
    for text in texts:
        console.say(text)


def pairs(
    source: str,
    out: Path,
    /,
    *,
    method: Literal["continuations", "corruptions"],
    words: Annotated[int, AtLeastOne] = 40,
    seed: Seed = 0,
    rows: RowOptions = RowOptions(),
    overwrite: bool = False,
) -> None:
    """Make labeled pairs without annotators, for a first stage (docs/first-stages.md).

    Args:
        source: continuations: rows with a column text. corruptions: pairs or preferences of any schema.
        out: The pairs as JSON lines.
        method: continuations: the true continuation of a text against that of another text. corruptions: a response
            against the same cut off, shuffled, or exchanged for that of another prompt.
        words: With continuations: number of words of the beginning, and maximum number of words of a continuation.
        seed: Seed of the pairing, and of the corruptions.
        overwrite: Replace the output if it exists.
    """
    from gram_jax.data.reading import read_records
    from gram_jax.data.self_supervised import (
        continuation_pairs,
        corrupted_pairs,
        read_texts,
        write_preferences,
    )
    from gram_jax.distributed.lock import hold_new_file

    with hold_new_file(out, overwrite=overwrite, error=DataError):
        if method == "continuations":
            made = continuation_pairs(list(read_texts(source)), seed=seed, words=words)
        else:
            made = corrupted_pairs(read_records(source, "pair", **rows.arguments())[0], seed=seed)
        Console().say(f"{out}: {write_preferences(out, made):,} pairs")


def prepare(recipe: RecipeName, /, *, overrides: Overrides = None) -> None:
    """Encode the training data of a recipe into the token cache, and print figures of the data. Uses no accelerator.

    Training on this machine, or with the same data.cache_dir, then starts without encoding.
    """
    import jax

    from gram_jax.recipes.reading import read_recipe
    from gram_jax.training.setup import prepare_data

    jax.config.update("jax_platforms", "cpu")
    console = Console()
    log_to(console)
    plan = prepare_data(read_recipe(recipe, overrides or []), progress=console.progress)
    console.say(plan.report().to_text())


def demo(*, fast: bool = False, folder: Path | None = None) -> None:
    """Train a judge from SmolLM2-135M-Instruct in about 19 minutes on two cores.

    Args:
        fast: Use a tiny random model, which takes less than a minute.
        folder: Default runs/demo, or runs/demo-fast.
    """
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
    """Print the versions of gram_jax and JAX, and the devices that JAX finds."""
    import jax

    from gram_jax.version import installed_version

    names = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    print(
        f"gram-jax {installed_version()}, jax {jax.__version__}, {jax.device_count()} device(s): {names}"
    )
