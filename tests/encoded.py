"""One text at a time through the encoder."""

from gram_jax.judge.encode import Encoded, encode_items


def encode_comparison(tokenizer, spec, prompt, first, second) -> Encoded:
    items = [(prompt, first, second)]
    return encode_items(tokenizer, spec.comparison, items, spec.max_length)[0]


def encode_pretraining(tokenizer, spec, prompt, first, second) -> Encoded:
    items = [(prompt, first, second)]
    return encode_items(tokenizer, spec.pretraining, items, spec.max_length)[0]


def encode_response(tokenizer, spec, prompt, response) -> Encoded:
    return encode_items(tokenizer, spec.response, [(prompt, response)], spec.max_length)[0]
