"""The Hugging Face hub: downloads, uploads, and the front matter of model cards. The only door to `huggingface_hub`."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gram_jax.errors import CheckpointError

CARD = "README.md"
# Of an earlier upload: what the new one does not have would be loaded beside it.
STALE = ["*.safetensors", "*.safetensors.index.json"]
HIDDEN = [".*", "**/.*", "*.partial"]


@dataclass(frozen=True)
class HubResult:
    """A figure for the hub's index of results. source: a data set's name there, or any name."""

    source: str
    source_name: str
    metric: str
    value: float


def is_hub_name(name: str) -> bool:
    """Whether this could be the name of a model or data set on the hub.

    >>> is_hub_name("Qwen/Qwen3-0.6B"), is_hub_name("./x/y"), is_hub_name("smollm2-135m")
    (True, False, False)
    """
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not name.startswith(".")


def download(name: str, patterns: Sequence[str]) -> Path:
    """The folder with a model's files of these patterns, downloaded or found in the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{name!r} is no local path and could not be fetched from the Hugging Face hub: "
            f"{error}\nCheck the name and the network; for a gated model log in with `hf auth "
            "login`. With HF_HUB_OFFLINE=1 only models that were downloaded before can be used."
        ) from error


def front_matter(name: str, results: Sequence[HubResult], **entries: Any) -> str:
    """What stands between the lines "---" at the head of a model card; entries that are None are left out.

    name, results: of the model in the hub's index of results.
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
    """The entries at the head of a model card; none where there is no card, or none that can be read."""
    from huggingface_hub import metadata_load

    try:
        return metadata_load(card) or {}
    except Exception:  # a missing file, no YAML, no UTF-8: it is somebody's file, and of no use
        return {}


def push_folder(
    folder: Path, repo: str, *, public: bool, message: str, replaceable: Callable[[str], bool]
) -> str:
    """Upload an exported folder as one commit and return the address of the repository.

    A repository that is not there yet is made. public: for everyone to see, if it is new. replaceable: whether the
    card that is there may be replaced, by its text. Raises CheckpointError without credentials, for a card of
    somebody's, and for what the hub refuses.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    if not is_hub_name(repo):
        raise CheckpointError(f"--push {repo}: expected OWNER/NAME, as the hub calls a model")
    if get_token() is None:
        raise CheckpointError(
            f"--push {repo}: there are no credentials for the hub on this machine. Log in with `hf auth login`, or set "
            "HF_TOKEN to a token that may write"
        )
    api = HfApi()
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        if api.file_exists(repo, CARD):
            there = Path(api.hf_hub_download(repo, CARD)).read_text(encoding="utf-8")
            if not replaceable(there):
                raise CheckpointError(
                    f"{repo} has a {CARD} that gram_jax did not write, or that was changed since: --overwrite "
                    "replaces it"
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
            f"{folder} could not be pushed to {repo}: {error}\nCheck the name, the network, and that the token may "
            "write there. Nothing of the folder has changed"
        ) from error
    return f"https://huggingface.co/{repo}"
