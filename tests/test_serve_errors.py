"""Errors of the server: JSON with a code, and nothing of what was sent."""

import random

import pytest

SECRET = "my-secret-text"
BROKEN = {"prompt": "q", "first": "broken", "second": "b"}
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": SECRET, "first": "a"},
        {"prompt": "q", "first": SECRET, "second": 3},
        {"prompt": "q", "first": "a", "second": "b", SECRET: 1},
        {"prompt": [{"role": SECRET, "content": "x"}], "first": "a", "second": "b"},
        b'{"prompt": "' + SECRET.encode(),
    ],
)
def test_an_invalid_request_is_not_repeated_in_its_error(client, body):
    sent = {"content": body, "headers": JSON} if isinstance(body, bytes) else {"json": body}
    found = client.post("/v1/score_pair", **sent)
    assert found.status_code == 422, found.text
    assert found.json()["error"]["code"] == "invalid" and SECRET not in found.text


def test_a_failure_is_logged_by_its_type_and_place_without_any_text(client, caplog):
    found = client.post("/v1/score_pair", json=BROKEN)
    assert found.status_code == 500 and found.json()["error"]["code"] == "internal"
    line = next(r.msg for r in caplog.records if "RuntimeError" in r.message)
    assert line["request"] == found.headers["x-request-id"] and line["path"] == "/v1/score_pair"
    assert any("label_logit_diffs" in place for place in line["at"])
    assert "secret text" not in found.text + caplog.text and "Traceback" not in caplog.text
    good = client.post("/v1/score_pair", json=BROKEN | {"first": "a"})
    assert good.status_code == 200  # the server is not broken with it


def test_unknown_paths_and_methods(client):
    nothing = client.get("/nothing")
    assert nothing.status_code == 404 and "/openapi.json" in nothing.json()["error"]["message"]
    assert client.get("/v1/rank").status_code == 405


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/score/evaluation", '{"model": LONE, "messages": []}'),
        ("/classify", '{"model": LONE, "input": []}'),
        ("/score", '{"model": LONE, "text_1": "q", "text_2": []}'),
        ("/compare", '{"conversation_history": [{"role": "user", "content": "q"}], "responses": [LONE]}'),
    ],
)  # fmt: skip
def test_a_lone_surrogate_in_any_text_is_replaced_and_counted(client, path, body):
    found = client.post(path, content=body.replace("LONE", '"\\ud800"'), headers=JSON)
    assert found.status_code == 200 and "\\ud800" not in found.text
    assert "gram_surrogates_total 1.0" in client.get("/metrics").text


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/score_pair", {"prompt": "q", "first": "a"}, "body.second: Field required"),
        ("/v1/score_pair", {"prompt": [], "first": "a", "second": "b"}, "body.prompt: "),
        ("/classify", {"input": [{"prompt": "q", "first": "a"}]}, "body.input.0.second: Field required"),
        ("/score", {"text_1": {"a": 1}, "text_2": "b"}, "body.text_1: "),
        ("/score", {"text_1": [], "text_2": ["b"]}, "text_1: "),
        ("/v1/score_pair", {"pairs": [{"prompt": "q", "first": "a"}]}, "body.pairs.0.second: Field required"),
    ],
)  # fmt: skip
def test_an_error_is_about_the_type_that_was_sent_alone(client, path, body, message):
    found = client.post(path, json=body).json()["error"]["message"]
    assert found.startswith(message) and ";" not in found


@pytest.mark.parametrize(
    ("path", "body", "place", "fields"),
    [
        ("/v1/score_pair", {"prompt": "q", "responses": ["a"]}, "body: 1 ", {"first", "second"}),
        ("/v1/score_pair", {"query": ["q"], "labels": []}, "body: 2 ", {"prompt", "first", "second"}),
        ("/v1/score_pair", {"pairs": [{"prompt": "q", "chosen": "a"}]}, "body.pairs.0: 1 ", {"first", "second"}),
        ("/v1/rank", {"prompt": "q", "first": "a", "second": "b"}, "body: 2 ", {"responses"}),
    ],
)  # fmt: skip
def test_fields_of_another_schema_are_answered_with_those_that_are_missing(
    client, path, body, place, fields
):
    found = client.post(path, json=body)
    message = found.json()["error"]["message"]
    assert found.status_code == 422 and message.startswith(place)
    assert set(message.partition("missing: ")[2].split(", ")) == fields


def test_a_form_is_not_json(client):
    form = {"content-type": "application/x-www-form-urlencoded"}
    found = client.post("/v1/score_pair", content=b'{"prompt": "q"}', headers=form)
    assert found.status_code == 422 and "content-type: application/json" in found.text


@pytest.mark.parametrize(
    "path",
    ["/v1/score_pair", "/v1/rank", "/get_reward", "/compare", "/classify", "/v1/score/evaluation"],
)
def test_no_bytes_are_an_unhandled_error(client, path):
    draw = random.Random(0)
    bodies = [b"", b"null", b"[]", b"{}", b'{"prompt": {}}', b"\xff\xfe", b'"' + b"a" * 1000]
    bodies.append(b"[" * 5000 + b"]" * 5000)
    bodies.append(b'{"prompt": "q", "first": "a", "second": "b", "x": ' + b"9" * 5000 + b"}")
    bodies.append(b'{"prompt": "\\ud800", "first": "a", "second": "b"}')
    bodies += [draw.randbytes(draw.randrange(200)) for _ in range(60)]
    for body in bodies:
        found = client.post(path, content=body, headers=JSON)
        assert found.status_code < 500, (body[:60], found.text)
