"""The Hugging Face hub: downloads, uploads, and the front matter of model cards."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gram_jax.errors import CheckpointError

CARD = "README.md"
# Files of an earlier upload that are deleted: readers would load them together with the new ones.
STALE = ["*.safetensors", "*.safetensors.index.json"]
HIDDEN = [".*", "**/.*", "*.partial"]


@dataclass(frozen=True)
class HubResult:
    """A figure for the hub's index of results. source: name of the data set."""

    source: str
    source_name: str
    metric: str
    value: float


def is_hub_name(name: str) -> bool:
    """Whether the hub accepts a name as OWNER/NAME.

    >>> is_hub_name("Qwen/Qwen3-0.6B"), is_hub_name("./x"), is_hub_name("smollm2-135m"), is_hub_name("a/b--c")
    (True, False, False, False)
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) is None:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def download(name: str, patterns: Sequence[str]) -> Path:
    """The folder with a model's files of these patterns, downloaded unless the local cache has it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{name!r} is not a local path and could not be downloaded from the Hugging Face hub: {why}\nCheck the "
            "name and the network; a gated model needs `hf auth login`. With HF_HUB_OFFLINE=1 "
            "only downloaded models work."
        ) from error


def front_matter(name: str, results: Sequence[HubResult], **entries: Any) -> str:
    """The YAML block of a model card, between lines "---", without entries that are None.

    name, results: the model and its figures in the hub's index of results.
    """
    from huggingface_hub import EvalResult, ModelCardData

    evaluated = [
        EvalResult(
            task_type="text-classification",
            task_name="preference between two responses",
            dataset_type=result.source,
            dataset_name=result.source_name,
            metric_type="accuracy",
            metric_name=result.metric,
            metric_value=round(result.value, 4),
        )
        for result in results
    ]
    data = ModelCardData(model_name=name, eval_results=evaluated or None, **entries)
    return f"---\n{data.to_yaml()}\n---\n"


def read_front_matter(card: Path) -> dict[str, Any]:
    """The entries of a model card's YAML block; {} if there is no readable card."""
    from huggingface_hub import metadata_load

    try:
        return metadata_load(card) or {}
    except Exception:  # a missing file, no YAML, no UTF-8
        return {}


def push_folder(
    folder: Path, repo: str, *, public: bool, message: str, replaceable: Callable[[str], bool]
) -> str:
    """Upload an exported folder as one commit, creating the repository if needed; returns its address.

    public: visibility of a new repository. replaceable: whether a card with this text may be replaced. Raises
    CheckpointError if there are no credentials, the card may not be replaced, or the hub rejects the upload.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    if not is_hub_name(repo):
        raise CheckpointError(f"--push {repo}: expected a hub name, OWNER/NAME")
    if get_token() is None:
        raise CheckpointError(
            f"--push {repo}: no credentials for the hub. Log in with `hf auth login`, or set HF_TOKEN to a token with "
            "write permission"
        )
    api = HfApi()
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        if api.file_exists(repo, CARD):
            there = Path(api.hf_hub_download(repo, CARD)).read_text("utf-8", "replace")
            if not replaceable(there):
                raise CheckpointError(
                    f"{repo} has a {CARD} that gram_jax did not write or that was edited: --overwrite replaces it"
                )
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            commit_message=message,
            ignore_patterns=HIDDEN,
            delete_patterns=STALE,
        )
    except (HTTPError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} could not be pushed to {repo}: {error}\nCheck the name, the network, and the token's write "
            "permission. The folder is unchanged"
        ) from error
    return f"https://huggingface.co/{repo}"
