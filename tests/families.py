"""Small tokenizers that cut text and frame chats as the supported families do, built in code.

The ways of cutting and the chat formats are those of the families; the vocabularies are a few
hundred tokens.
"""

import json
from functools import lru_cache

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from gram_jax.judge.tokenizer import wrap_tokenizer

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"


def _cut(digits: str) -> str:
    return (
        _CONTRACTIONS
        + r"|[^\r\n\p{L}\p{N}]?\p{L}+|"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_CHATML = """\
{%- for message in messages %}
{%- if loop.first and message.role != 'system' %}DEFAULT{% endif %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}THINK{% endif %}"""


def _chatml(system: str = "", think: str = "") -> str:
    default = f"{{{{- '<|im_start|>system\\n{system}<|im_end|>\\n' }}}}" if system else ""
    return _CHATML.replace("DEFAULT", default).replace("THINK", think)


_LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}
{%- else %}{%- set date_string = '26 Jul 2024' %}{% endif %}
{%- endif %}
{%- if messages[0].role == 'system' %}
{%- set system = messages[0].content | trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\n' }}
{{- 'Today Date: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
{{- message.content | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

_THINK = (
    r"{% if enable_thinking is defined and not enable_thinking %}"
    r"{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)

_CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

FAMILIES = {
    "smollm2": dict(
        template=_chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        cut=None,
        special=_CHATML_TOKENS,
        bos="<|im_start|>",
        eos="<|im_end|>",
    ),
    "qwen2.5": dict(
        template=_chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        cut=_cut(r"\p{N}"),
        special=_CHATML_TOKENS,
        bos=None,
        eos="<|im_end|>",
    ),
    "qwen3": dict(
        template=_chatml(think=_THINK),
        cut=_cut(r"\p{N}"),
        special=_CHATML_TOKENS,
        added=("<think>", "</think>", "<tool_call>"),
        bos=None,
        eos="<|im_end|>",
    ),
    "llama3": dict(
        template=_LLAMA3,
        cut=_cut(r"\p{N}{1,3}"),
        special=("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
    ),
}

_INST = """\
{{- bos_token }}{% for message in messages %}
{%- if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}
{%- else %}{{ ' ' + message.content + eos_token }}{% endif %}{% endfor %}"""
_ZEPHYR = """\
{%- for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""
_TURNS = """\
{{- bos_token }}{% for message in messages %}
{{- '<start_of_turn>' + message.role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

# Tokenizers of SentencePiece: the model, where a blank is put before a text, and the chat template.
SENTENCEPIECE = {
    "llama2": ("BPE", "prepend", _INST),  # before every text between control tokens
    "zephyr": ("BPE", "prepend", _ZEPHYR),
    "metaspace": ("BPE", "first", _ZEPHYR),
    "gemma": ("BPE", None, _TURNS),
    "unigram": ("Unigram", "always", _INST),
}

_CORPUS = [
    "user\nassistant\nsystem\nuser\nassistant\nsystem\n",
    "The answer is here.\n\nThe response is there!\n\nIs it?\n\n[Request]\n[Response "
    "A]\n[Response B]\n[Question]\n",
    "def f(x):\n    return x\n\n\nfor i in range(3):\n    print(i)\n",
    "Answer A or B. Which response answers the request better? Compare two responses to a request.",
] * 20


@lru_cache
def family_tokenizer(name: str):
    """A tokenizer with the control tokens, cutting, chat template and BOS habit of a family."""
    if name in SENTENCEPIECE:
        return _sentencepiece_tokenizer(name)
    family = FAMILIES[name]
    backend = Tokenizer(models.BPE())
    if family["cut"] is None:
        steps = [pre_tokenizers.Digits(individual_digits=True)]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
    else:
        backend.normalizer = normalizers.NFC()
        steps = [pre_tokenizers.Split(Regex(family["cut"]), "isolated")]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        _CORPUS,
        trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False),
    )
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in family["special"]]
    )
    backend.add_tokens(
        [AddedToken(t, special=False, normalized=False) for t in family.get("added", ())]
    )
    if name == "llama3":
        # The tokenizer adds BOS by itself although the template writes it too: the double-BOS trap.
        bos = (family["bos"], backend.token_to_id(family["bos"]))
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos[0]} $A", special_tokens=[bos]
        )
    return wrap_tokenizer(
        backend,
        chat_template=family["template"],
        name_or_path=f"tiny-{name}",
        bos_token=family["bos"],
        eos_token=family["eos"],
    )


def _sentencepiece_tokenizer(name: str):
    kind, prepend, template = SENTENCEPIECE[name]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(
        [line for text in _CORPUS for line in text.split("\n")],
        trainers.BpeTrainer(vocab_size=200, show_progress=False),
    )
    learned = json.loads(trained.to_str())["model"]
    control = ["<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>"]
    line_breaks = ["\n", "\n\n"] if name == "gemma" else []
    pieces = [*control, *(f"<0x{byte:02X}>" for byte in range(256)), *line_breaks]
    pieces += [piece for piece in learned["vocab"] if piece not in pieces]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    if kind == "Unigram":
        scores = [0.0 if piece in control else -float(i) / 10 for i, piece in enumerate(pieces)]
        scored = list(zip(pieces, scores, strict=True))
        backend = Tokenizer(models.Unigram(scored, unk_id=0, byte_fallback=True))
    else:
        merges = [tuple(merge) for merge in learned["merges"]]
        merges += [("\n", "\n")] * bool(line_breaks)
        model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        backend = Tokenizer(model)
    blanks = normalizers.Replace(" ", "▁")
    if prepend == "prepend":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blanks])
    elif prepend is None:
        backend.normalizer = blanks
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = control if name == "gemma" else control[:3]
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    if line_breaks:
        backend.add_tokens([AddedToken("\n\n", special=False, normalized=False)])
    return wrap_tokenizer(
        backend,
        chat_template=template,
        name_or_path=f"tiny-{name}",
        bos_token="<s>",
        eos_token="</s>",
    )
