"""One text at a time through the encoder, and the tokens of the same text through the tokenizer's own chat template."""

from gram_jax.judge.encode import Encoded, encode_items
from gram_jax.judge.template import split_template


def encode_comparison(tokenizer, spec, prompt, first, second) -> Encoded:
    items = [(prompt, first, second)]
    return encode_items(tokenizer, spec.comparison, items, spec.max_length)[0]


def encode_pretraining(tokenizer, spec, prompt, first, second) -> Encoded:
    items = [(prompt, first, second)]
    return encode_items(tokenizer, spec.pretraining, items, spec.max_length)[0]


def encode_gram_pretraining(tokenizer, spec, prompt, first, second) -> Encoded:
    items = [(prompt, first, second)]
    return encode_items(tokenizer, spec.gram_pretraining, items, spec.max_length)[0]


def encode_response(tokenizer, spec, prompt, response) -> Encoded:
    return encode_items(tokenizer, spec.response, [(prompt, response)], spec.max_length)[0]


def rendered_message(template: str, prompt: str, first: str, second: str) -> str:
    head, between, middle, tail = split_template(template)
    return f"{head}{prompt}{between}{first}{middle}{second}{tail}"


def chat_tokens(tokenizer, spec, prompt, first, second) -> list[int]:
    """The tokens of the whole chat text, tokenized at once."""
    message = rendered_message(spec.template, prompt, first, second)
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
        date_string="26 Jul 2024",
    )
    return tokenizer(whole, add_special_tokens=False)["input_ids"]
