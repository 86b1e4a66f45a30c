"""The judge specification: everything that a score depends on besides the weights, as one frozen value.

It is saved with every checkpoint and export as judge.json and compared by hash: judges with equal hashes encode a
pair as the same tokens and have the same two labels.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from gram_jax.errors import JudgeError
from gram_jax.files import expand_user, write_atomic
from gram_jax.judge.chat import PINNED_DATE, answer_frame, chat_frame, frame_shows_date
from gram_jax.judge.guard import layout_guard
from gram_jax.judge.labels import check_labels, find_label_ids
from gram_jax.judge.rationale import (
    DEFAULT_NEW_TOKENS,
    THINK,
    RationaleFormat,
    make_rationale_format,
    tagged_template,
)
from gram_jax.judge.recover import recover_template
from gram_jax.judge.segments import TokenTable
from gram_jax.judge.template import (
    Layout,
    comparison_layout,
    default_template,
    gram_pretraining_layout,
    pretraining_layout,
    response_layout,
    split_template,
)
from gram_jax.judge.tokens import fingerprint, text_encoder, tokenizer_name

FILE_NAME = "judge.json"
FORMAT = 2
HASH = "hash"  # of the other entries of judge.json
# The length of the public GRAM recipes, used if the tokenizer has no shorter context.
DEFAULT_LENGTH = 2048


@dataclass(frozen=True)
class JudgeSpec:
    """Input format of a judge, and its two verdict labels.

    template: the user's message, a text with {prompt}, {first}, {second}.
    labels: verdicts for "first is better" and "second is better", each one token. label_ids: their token ids.
    chat_prefix, generation_prompt, end_of_turn: the chat frame as literal text (judge/chat.py); the verdict
      follows generation_prompt directly.
    max_length: maximum number of tokens of a comparison, without the verdict.
    thinking, system, date: settings with which the chat frame was rendered, for information.
    tokenizer: fingerprint of the tokenizer that the ids belong to.
    rationale: format of the text that a thinking judge writes before its verdict (judge/rationale.py); None for a judge
      that writes the label only.

    >>> from gram_jax.interop.models import load_tokenizer
    >>> spec = make_spec(load_tokenizer("tiny-random"), max_length=256)
    >>> spec.labels, spec.label_ids
    (('A', 'B'), (35, 36))
    >>> JudgeSpec.from_json(spec.to_json()) == spec
    True
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid", strict=True)

    template: str
    labels: tuple[str, str]
    label_ids: tuple[int, int]
    chat_prefix: str
    generation_prompt: str
    end_of_turn: str
    max_length: int
    thinking: bool
    system: str | None
    date: str
    tokenizer: str
    rationale: RationaleFormat | None = None

    @property
    def reads(self) -> Literal["label", "rationale_then_label"]:
        """What the judge writes: the verdict alone, or a rationale before it."""
        return "label" if self.rationale is None else "rationale_then_label"

    @cached_property
    def comparison(self) -> Layout:
        """The layout of a comparison, for stage 2 and scoring: prompt, first, second."""
        return comparison_layout(self.template, self.chat_prefix, self.generation_prompt)

    @cached_property
    def pretraining(self) -> Layout:
        """The layout of a stage-1 example, the tokens of a comparison: prompt, first, second."""
        return pretraining_layout(self.template, self.chat_prefix, self.generation_prompt)

    @cached_property
    def gram_pretraining(self) -> Layout:
        """GRAM's own layout of a stage-1 example, whatever the template: prompt, first, second."""
        return gram_pretraining_layout(self.chat_prefix, self.generation_prompt, self.end_of_turn)

    @cached_property
    def response(self) -> Layout:
        """The layout of one response for the discriminative baseline: prompt, response."""
        return response_layout(self.chat_prefix, self.generation_prompt, self.end_of_turn)

    @property
    def tail(self) -> str:
        """The literal text between the second response and the verdict."""
        return split_template(self.template)[3] + self.generation_prompt

    @cached_property
    def hash(self) -> str:
        """sha256 of the canonical JSON: the identity of the judge without its weights."""
        return hashlib.sha256(self.to_json(indent=None).encode()).hexdigest()

    def to_json(self, indent: int | None = 2) -> str:
        """The specification as JSON text, keys sorted."""
        entries = {"format": FORMAT, **asdict(self)}
        if self.rationale is None:
            del entries["rationale"]  # the file and hash of a judge that reads the label alone
        return json.dumps(entries, sort_keys=True, indent=indent)

    @staticmethod
    def from_json(text: str) -> "JudgeSpec":
        """The inverse of `to_json`, also with the hash that `save` adds.

        Raises JudgeError on unknown, missing or ill-typed entries, and if there is a hash of other entries.
        """
        found = _entries(text)
        stated = found.pop(HASH, None)
        try:
            spec = TypeAdapter(JudgeSpec).validate_json(json.dumps(found))
        except RecursionError:
            raise JudgeError(f"{FILE_NAME} is nested too deeply: the file is damaged.") from None
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, x['loc']))}: {x['msg']}" for x in error.errors()]
            raise JudgeError(
                f"{FILE_NAME}: {'; '.join(problems)}. The file is damaged or of another version."
            ) from None
        if stated not in (None, spec.hash):
            raise JudgeError(
                f"its {HASH!r} is not that of its entries: the file was damaged or edited. Restore it from a copy; if "
                "it was edited on purpose, `gram-jax verify FILE --accept` writes the hash again"
            )
        layout_guard(spec.comparison)
        return spec

    def save(self, place: str | Path) -> Path:
        """Write judge.json into an existing folder, or a file of another name; returns its path.

        Its last entry is the hash of the others, so that a damaged file is noticed.
        """
        content = json.loads(self.to_json()) | {HASH: self.hash}
        return write_atomic(
            judge_file(place), json.dumps(content, indent=2) + "\n", error=JudgeError
        )

    @staticmethod
    def load(place: str | Path) -> "JudgeSpec":
        """The specification in a file, or in judge.json of a folder. Raises JudgeError if missing or damaged."""
        path = judge_file(place)
        if not path.is_file():
            place = (
                "the file of a specification"
                if path == expand_user(place, error=JudgeError)
                else "a judge's folder"
            )
            raise JudgeError(
                f"there is no {path}: expected {place}. `gram-jax spec {path} --model MODEL` writes a specification"
            )
        try:
            return JudgeSpec.from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise JudgeError(f"{path} cannot be read: {error.strerror or error}") from error
        except (UnicodeDecodeError, JudgeError) as error:
            raise JudgeError(f"{path}: {error}") from error


def _entries(text: str) -> dict[str, Any]:
    """The entries of judge.json without its format."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise JudgeError(f"{FILE_NAME} is not JSON: {error}") from error
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise JudgeError(
            f"{FILE_NAME}: expected an object with format {FORMAT}; this file is of another version or damaged."
        )
    return found


def accept_spec(path: Path) -> JudgeSpec:
    """Accept a specification that was edited on purpose: write its hash again. Raises JudgeError if it is none."""
    try:
        found = _entries(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise JudgeError(f"{path} cannot be read: {error}") from error
    found.pop(HASH, None)
    spec = JudgeSpec.from_json(json.dumps({"format": FORMAT, **found}))
    spec.save(path)
    return spec


def judge_file(place: str | Path) -> Path:
    """`place` if it is the name of a .json file, else judge.json in that folder."""
    path = expand_user(place, error=JudgeError)
    return path if path.suffix == ".json" and not path.is_dir() else path / FILE_NAME


def make_spec(
    tokenizer: Any,
    *,
    template: str | Path = "default",
    labels: tuple[str, str] | None = None,
    max_length: int | None = None,
    thinking: bool = False,
    system: str | None = None,
    rows: Sequence[Mapping[str, Any]] | None = None,
    rationale: str | None = None,
    stop: Sequence[str] = (),
    max_rationale: int = DEFAULT_NEW_TOKENS,
) -> JudgeSpec:
    """Make the specification of a judge for a tokenizer.

    template: "default"; a text with {prompt}, {first}, {second}, or the path of a file with one; or "from-dataset",
      which recovers template and labels from `rows` (rendered GRAM rows with instruction, input, output).
    labels: the two verdicts; default "A" and "B" (from-dataset: those of the rows).
    max_length: maximum number of tokens; default 2048, or the tokenizer's context if that is shorter.
    system: None keeps the system turn of the chat template, "" removes it, a text replaces it. "from-dataset" removes a
      system turn with a date, because the reference training on Llama had none.
    rationale: format of the text that a thinking judge writes before its verdict: "think" for the tags of GRAM-R^2,
      "from-template" for the tags that the template asks for, or a text with {rationale}; None for the verdict only.
      stop, max_rationale: as for `make_rationale_format`.

    Raises JudgeError if a label is not one token directly after the tail, or if the template does not separate its
    fields.

    >>> from gram_jax.interop.models import load_tokenizer
    >>> tokenizer = load_tokenizer("tiny-random")
    >>> make_spec(tokenizer, labels=("1", "2"), max_length=256).labels
    ('1', '2')
    >>> make_spec(tokenizer, labels=("first", "second"))
    Traceback (most recent call last):
    gram_jax.errors.JudgeError: ...
    """
    if template == "from-dataset":
        if not rows:
            raise JudgeError(
                'template = "from-dataset": expected rendered rows (instruction, input, output); found none.'
            )
        text, found_labels = recover_template(rows)
        labels = check_labels(labels or found_labels)
        if system is None and frame_shows_date(tokenizer, thinking=thinking):
            system = ""
    else:
        labels = check_labels(labels or ("A", "B"))
        if template == "default":
            text = default_template(labels)
        else:
            text = str(template) if "{prompt}" in str(template) else read_template(template)
    frame = chat_frame(tokenizer, system=system, thinking=thinking)
    written = None
    if rationale is not None:
        written = make_rationale_format(
            tokenizer,
            frame.generation_prompt,
            labels,
            template=rationale_template(rationale, text),
            stop=stop,
            max_new_tokens=max_rationale,
        )
    spec = JudgeSpec(
        template=text,
        labels=labels,
        label_ids=find_label_ids(tokenizer, frame.generation_prompt, labels),
        chat_prefix=frame.prefix,
        generation_prompt=frame.generation_prompt,
        end_of_turn=frame.end_of_turn,
        max_length=default_length(tokenizer) if max_length is None else max_length,
        thinking=thinking,
        system=system,
        date=PINNED_DATE.isoformat(),
        tokenizer=fingerprint(tokenizer),
        rationale=written,
    )
    for layout in (spec.comparison, spec.gram_pretraining, spec.response):
        layout_guard(layout)
    return with_length(spec, tokenizer, spec.max_length)


def rationale_template(rationale: str, template: str) -> str:
    """The rationale template that `make_spec` was given, by name or as text. template: of the judge."""
    if rationale == "think":
        return THINK
    if rationale != "from-template":
        return rationale
    if (found := tagged_template(template)) is None:
        raise JudgeError(
            'rationale "from-template": the judge template has no <think>...</think> <answer>...; pass a text with '
            "{rationale}"
        )
    return found


def make_reward_spec(
    tokenizer: Any, *, pad_id: int | None, max_length: int | None = None
) -> JudgeSpec:
    """The specification of a scalar reward model that carries none: a conversation as its chat template renders it.

    pad_id: the padding token of its config. transformers reads the reward at the last other token.
    """
    spec = make_spec(tokenizer, max_length=max_length)
    prefix, between, end = answer_frame(tokenizer)
    for part in reversed(text_encoder(tokenizer).sections(end)):
        if part != pad_id:
            break
        end = end[: end.rindex(tokenizer.convert_ids_to_tokens(part))]
    return replace(spec, chat_prefix=prefix, generation_prompt=between, end_of_turn=end)


def with_length(spec: JudgeSpec, tokenizer: Any, max_length: int) -> JudgeSpec:
    """The same judge with another maximum length. Raises JudgeError if it is too small for the template."""
    check_tokenizer(spec, tokenizer)
    TokenTable(text_encoder(tokenizer), spec.comparison).check_room(max_length)
    return replace(spec, max_length=max_length)


def default_length(tokenizer: Any) -> int:
    """The default maximum length."""
    context = getattr(tokenizer, "model_max_length", None)
    if not isinstance(context, int) or context <= 0:
        return DEFAULT_LENGTH
    return min(DEFAULT_LENGTH, context)


def read_template(path: str | Path) -> str:
    """The template text of a file, without a line break at its end."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JudgeError(
            f"template {str(path)!r} cannot be read as a UTF-8 text file ({error}). "
            'Expected "default", "from-dataset" or the path of a file with {prompt}, {first}, {second}.'
        ) from error
    text = text.removesuffix("\n")
    split_template(text)
    return text


def check_tokenizer(spec: JudgeSpec, tokenizer: Any) -> None:
    """Raises JudgeError unless this is the tokenizer that the specification was made with."""
    found = fingerprint(tokenizer)
    if found != spec.tokenizer:
        raise JudgeError(
            f"the judge was made with a tokenizer of fingerprint {spec.tokenizer}; {tokenizer_name(tokenizer)} has "
            f"{found}. Load the tokenizer that was saved with {FILE_NAME}."
        )


def check_verdicts(spec: JudgeSpec, tokenizer: Any) -> None:
    """Raises JudgeError if the labels have other tokens than the specification says, or another tokenizer."""
    check_tokenizer(spec, tokenizer)
    ids = find_label_ids(tokenizer, spec.generation_prompt, spec.labels)
    if ids != spec.label_ids:
        raise JudgeError(
            f"{FILE_NAME} says that the labels {spec.labels} are the tokens {spec.label_ids}, but after "
            f"{spec.generation_prompt[-40:]!r} they are {ids}: the file was edited. `gram-jax spec` writes a new one"
        )
    if (found := spec.rationale) is not None:
        made = make_rationale_format(
            tokenizer,
            spec.generation_prompt,
            spec.labels,
            template=found.template,
            stop=found.stop,
            max_new_tokens=found.max_new_tokens,
        )
        if made != found:
            raise JudgeError(
                f"{FILE_NAME} says that the labels are the tokens {found.label_ids} after a rationale, but they are "
                f"{made.label_ids}: the file was edited. `gram-jax spec` writes a new one"
            )
