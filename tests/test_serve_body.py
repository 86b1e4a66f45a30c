"""Bodies: limits on values and depth, surrogates, what counts and what does not."""

import json

import pytest
from server import PAIR

from gram_jax.serve.body import MAX_DEPTH, MAX_VALUES, read_json
from gram_jax.serve.errors import RequestError

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        "[" * 1_000_000,
        "[" + "1," * MAX_VALUES + "1]",
        "{" + ",".join(f'"{i}":1' for i in range(MAX_VALUES + 1)) + "}",
        "[" + "{}," * MAX_VALUES + "{}]",
        '{"a": ' + "9" * 5000 + "}",
    ],
)
def test_values_and_levels_have_limits(client, body):
    with pytest.raises(RequestError):
        read_json(body.encode())
    found = client.post("/v1/score_pair", content=body, headers=JSON)
    assert found.status_code == 422 and found.json()["error"]["code"] == "invalid"


def test_signs_in_texts_do_not_count():
    text = '\\"[{,' * 60_000 + "\\"
    value = {"a": [[[text]]], text: "[" * 100}
    assert read_json(json.dumps(value).encode()) == (value, 0)
    levels: list = []
    for _ in range(MAX_DEPTH - 1):
        levels = [levels]
    assert read_json(json.dumps(levels).encode())[0] == levels


def test_surrogates_are_joined_or_replaced_in_all_texts():
    value, replaced = read_json(b'{"a": ["\\ud83d\\ude42", {"b": "x\\uD83Dy"}], "c": 1}')
    assert value == {"a": ["\U0001f642", {"b": "x\ufffdy"}], "c": 1} and replaced == 1


def test_a_body_of_unknown_keys_is_refused_at_once(client):
    body = PAIR | {f"k{i}": 1 for i in range(100_000)}
    found = client.post("/v1/score_pair", json=body)
    assert found.status_code == 422 and len(found.text) < 500
