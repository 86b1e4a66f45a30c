"""Parsing of texts that trainers render in the chat format of a policy."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from gram_jax.judge.messages import ROLE_NAMES, Message, Prompt

# Tokens at the end of a response, of the families in use. The special tokens of the judge and the policy are added.
ENDS = (
    "<|im_end|>",  # ChatML: Qwen, SmolLM, Yi
    "<|endoftext|>",
    "<|eot_id|>",  # Llama 3
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|eot|>",  # Llama 4
    "<end_of_turn>",  # Gemma
    "<eos>",
    "</s>",  # Llama 2, Mistral, Zephyr
    "<|end|>",  # Phi, gpt-oss
    "<|return|>",
    "<|call|>",
    "<｜end▁of▁sentence｜>",  # DeepSeek
    "<|END_OF_TURN_TOKEN|>",  # Command R
    "<|END_RESPONSE|>",
    "<|end_of_role|>",
    "[EOS]",
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<|finetune_right_pad_id|>",
    "<｜▁pad▁｜>",
)
# Tokens before a prompt, among them the padding of batches.
STARTS = (
    "<s>",
    "<bos>",
    "<|begin_of_text|>",
    "<|startoftext|>",
    "<|begin_of_sentence|>",
    "<｜begin▁of▁sentence｜>",
    "<BOS_TOKEN>",
    "[gMASK]",
    "<sop>",
    *ENDS,
)
_STARTS = re.compile(rf"(?:\s|{'|'.join(map(re.escape, STARTS))})*")


@dataclass(frozen=True)
class _Format:
    """start: of a turn, its first group the role; end: of a turn, or the start of the next one.

    trimmed: blanks around a turn are part of the format. before: the role of text before the first turn, if it is one.
    """

    start: str
    end: str
    trimmed: bool = False
    before: str = ""

    def turns(self, text: str) -> Prompt | None:
        text = without_starts(text)
        starts = list(re.finditer(self.start, text))
        before = text[: starts[0].start()].strip() if starts else ""
        if not starts or (before and not self.before):
            return None  # a text about the format, or the end of a longer conversation
        turns = [Message(self.before, before)] if before else []
        for found, following in zip(starts, [*starts[1:], None], strict=True):
            said = text[found.end() : following.start() if following else len(text)]
            said = re.split(self.end, said, maxsplit=1)[0]
            role = _ROLES.get(found[1].lower())
            if role is None:
                return None
            turns.append(Message(role, said.strip() if self.trimmed else said))
        return tuple(turns)


_ROLES = ROLE_NAMES | {"[inst]": "user", "[/inst]": "assistant", "[system_prompt]": "system"}
_FORMATS = (
    _Format(r"<\|im_start\|>(\w+)\n", r"<\|im_end\|>"),
    _Format(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n", r"<\|eot_id\|>|<\|eom_id\|>"),
    _Format(r"<\|header_start\|>(\w+)<\|header_end\|>\n\n", r"<\|eot\|>"),
    _Format(r"<start_of_turn>(\w+)\n", r"<end_of_turn>"),
    _Format(r"<｜(User|Assistant)｜>", r"<｜end▁of▁sentence｜>", before="system"),
    _Format(
        r"<\|START_OF_TURN_TOKEN\|><\|(USER|CHATBOT|SYSTEM)_TOKEN\|>", r"<\|END_OF_TURN_TOKEN\|>"
    ),
    _Format(
        r"<\|start\|>(\w+)(?:<\|channel\|>\w+)?<\|message\|>", r"<\|end\|>|<\|return\|>|<\|call\|>"
    ),
    _Format(
        r"<\|(system|user|assistant|tool|observation)\|>\n?", r"<\|end\|>|</s>|<\|endoftext\|>",
        trimmed=True,
    ),
    _Format(
        r"(\[/?INST\]|\[SYSTEM_PROMPT\])", r"</s>|\[/SYSTEM_PROMPT\]", trimmed=True
    ),
)  # fmt: skip
KNOWN_FORMATS = "ChatML, Llama, Gemma, Mistral, DeepSeek, Phi, Zephyr, GLM, Command R, gpt-oss"


def chat_turns(text: str) -> Prompt | None:
    """The turns of a rendered conversation; None if it is in no known format.

    >>> [turn.role for turn in chat_turns("<s>[INST] Hi? [/INST] Hello.</s>")]
    ['user', 'assistant']
    """
    return next(filter(None, (kind.turns(text) for kind in _FORMATS)), None)


def without_starts(text: str) -> str:
    """The text without blanks, padding and beginning-of-text tokens at its start."""
    return text[_STARTS.match(text).end() :]  # type: ignore[union-attr]


def without_ends(text: str, ends: Iterable[str] = ENDS) -> str:
    """The text without end and padding tokens around it, and without the blanks next to them.

    A line break or one blank before a response is of the chat format, or of a SentencePiece decoder; the indentation of
    code stays.

    >>> without_ends(" Yes.</s> <|im_end|>\\n")
    'Yes.'
    """
    ends = tuple(ends)
    while True:
        shorter = text.rstrip()
        for end in ends:
            shorter = shorter.removesuffix(end)
        for start in (*STARTS, *ends):
            shorter = shorter.removeprefix(start)
        if shorter == text:
            return re.sub(r"\A (?=\S)", "", re.sub(r"\A(?:[^\S\n]*\n)+", "", text))
        text = shorter
