"""The training examples of a recipe, encoded in memory or mapped from the token cache."""

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

from gram_jax.attacks.augment import with_attacks
from gram_jax.data.cache import Build, cache_key, default_folder, hash_files, load_cache
from gram_jax.data.examples import Examples, documents_per_unit, make_examples
from gram_jax.data.pool import available_cores
from gram_jax.data.reading import SourcesStream
from gram_jax.data.records import Comparison
from gram_jax.data.report import ReadReport
from gram_jax.data.sources import data_files, parse_source
from gram_jax.files import expand_user
from gram_jax.judge.spec import JudgeSpec
from gram_jax.judge.tokens import text_encoder
from gram_jax.progress import ProgressFactory, no_progress
from gram_jax.recipes.tables import Recipe
from gram_jax.training.stages import pair_kind, read_pairs, stage_examples

logger = logging.getLogger(__name__)

# Data of up to this size are encoded in memory at every start, which takes seconds, unless data.cache_dir is set.
SMALL_BYTES, SMALL_RECORDS = 4 << 20, 2048


def training_examples(
    recipe: Recipe, tokenizer: Any, spec: JudgeSpec, *, progress: ProgressFactory = no_progress
) -> Examples:
    """The examples of data.train, with the recipe's share of attacks."""
    folder = cache_folder(recipe, tokenizer, spec)
    if folder is None:
        return _encoded_in_memory(recipe, tokenizer, spec)
    examples = load_cache(folder, _build(recipe, tokenizer, spec), progress=progress)
    logger.info("token cache: %s", folder)
    return examples


def cache_folder(recipe: Recipe, tokenizer: Any, spec: JudgeSpec) -> Path | None:
    """The folder of the examples' cache; None if they are encoded in memory.

    Its name is a hash of everything that determines the examples.
    """
    data, own = recipe.data, recipe.data.cache_dir
    if own == "" or (own is None and data.limit is not None and data.limit <= SMALL_RECORDS):
        return None
    files = [data_files(source) for source in data.train]
    size = sum(path.stat().st_size for one in files if one for path in one.values())
    if not all(files) or (own is None and size <= SMALL_BYTES):
        return None
    by_seed = data.position_augmentation == "hash" or data.attack_share
    sources = map(parse_source, data.train)
    values = {
        "stage": recipe.stage,
        "judge": spec.hash,
        "tokenizer": text_encoder(tokenizer).digest,
        "files": [hash_files(one) for one in files if one],
        "sources": [[source.schema, source.split, source.limit, source.map] for source in sources],
        "reading": [pair_kind(recipe), data.schema, data.map, data.on_bad, data.limit],
        "encoding": [
            data.overlong,
            data.position_augmentation,
            data.attack_share,
            data.pretraining_layout,
        ],
        "seed": recipe.run.seed if by_seed else None,
    }
    return (default_folder() if own is None else expand_user(own)) / cache_key(values)


def _encoded_in_memory(recipe: Recipe, tokenizer: Any, spec: JudgeSpec) -> Examples:
    records, report = read_pairs(recipe, recipe.data.train, recipe.data.limit)
    if share := recipe.data.attack_share:
        records = list(with_attacks(records, spec, share=share, seed=recipe.run.seed))
    return stage_examples(recipe, records, report, tokenizer, spec)


def training_records(recipe: Recipe) -> SourcesStream:
    """The records of data.train."""
    data = recipe.data
    return SourcesStream(
        data.train,
        pair_kind(recipe),
        schema=data.schema,
        map=data.map,
        on_bad=data.on_bad,
        limit=data.limit,
    )


def _build(recipe: Recipe, tokenizer: Any, spec: JudgeSpec) -> Build:
    data, seed = recipe.data, recipe.run.seed
    stream = training_records(recipe)

    def read() -> ReadReport:
        stream.scan()
        return stream.read

    def records() -> Iterable[Comparison]:
        comparisons = cast(Iterable[Comparison], stream)  # by their kind
        if not data.attack_share:
            return comparisons
        return with_attacks(comparisons, spec, share=data.attack_share, seed=seed)

    encode = partial(
        make_examples,
        recipe.stage,
        tokenizer=text_encoder(tokenizer),
        spec=spec,
        position_augmentation=data.position_augmentation,
        seed=seed,
        overlong=data.overlong,
        read=ReadReport(0, 0),
        pretraining_layout=data.pretraining_layout,
        keep_unlabeled=recipe.loss.order_consistency > 0,
    )
    return Build(
        stage=recipe.stage,
        per_unit=documents_per_unit(recipe.stage, data.position_augmentation),
        read=read,
        records=records,
        encode=encode,
        workers=data.num_workers or available_cores(),
    )
