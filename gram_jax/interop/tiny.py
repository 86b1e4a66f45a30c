"""A small real tokenizer built in code: byte-level BPE with ChatML control tokens, for tests and
the fast demo.
"""

from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from gram_jax.judge.encode import wrap_tokenizer

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Frequent English pairs; "Ġ" is how byte-level BPE writes a blank. 29 of them make 288 tokens with
# bytes and controls.
MERGES = (
    ("Ġ", "t"), ("h", "e"), ("Ġ", "a"), ("i", "n"), ("r", "e"), ("o", "n"), ("Ġt", "he"), ("e",
    "r"), ("Ġ", "s"), ("a", "t"), ("o", "r"), ("e", "n"), ("Ġ", "w"), ("i", "s"), ("e", "s"), ("n",
    "d"), ("Ġ", "o"), ("in", "g"), ("o", "u"), ("l", "l"), ("Ġa", "nd"), ("s", "t"), ("s", "e"),
    ("Ġ", "r"), ("s", "p"), ("on", "se"), ("re", "sp"), ("Ġ", "b"), ("e", "d"),
)  # fmt: skip
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"""


def tiny_tokenizer(
    chat_template: str = CHAT_TEMPLATE, context: int = 1024
) -> "PreTrainedTokenizerFast":
    """288 tokens: three control tokens, the 256 bytes, 29 merges. "A" and "B" are single tokens;
    there is no BOS.
    """
    letters = [*CONTROL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocabulary = {token: i for i, token in enumerate([*letters, *(a + b for a, b in MERGES)])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in CONTROL_TOKENS]
    )
    return wrap_tokenizer(
        backend,
        chat_template=chat_template,
        name_or_path="tiny",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=context,
    )
