"""Errors of the server: JSON with a code, and nothing of what was sent."""

import random

import pytest
from server import FakeJudge, client_for


@pytest.fixture
def judge() -> FakeJudge:
    return FakeJudge()


@pytest.fixture
def client(judge):
    with client_for(judge, group_wait=0.3) as client:
        yield client


def test_errors_are_json_and_repeat_nothing_of_what_was_sent(client, judge):
    secret = "my-secret-text"
    for body in (
        {"prompt": secret, "first": "a"},
        {"prompt": "q", "first": secret, "second": 3},
        {"prompt": "q", "first": "a", "second": "b", secret: 1},
        {"prompt": [{"role": secret, "content": "x"}], "first": "a", "second": "b"},
    ):
        found = client.post("/v1/score_pair", json=body)
        assert found.status_code == 422, found.text
        assert found.json()["error"]["code"] == "invalid" and secret not in found.text
    bad = client.post("/v1/score_pair", content=b'{"prompt": "' + secret.encode())
    assert bad.status_code == 422 and secret not in bad.text
    broken = {"prompt": "q", "first": "broken", "second": "b"}
    found = client.post("/v1/score_pair", json=broken)
    assert found.status_code == 500 and "secret text" not in found.text
    assert found.json()["error"]["code"] == "internal"
    good = client.post("/v1/score_pair", json=broken | {"first": "a"})
    assert good.status_code == 200  # the server is not broken with it
    nothing = client.get("/nothing")
    assert nothing.status_code == 404 and "/openapi.json" in nothing.json()["error"]["message"]
    assert client.get("/v1/rank").status_code == 405


def test_a_surrogate_in_any_text_is_refused(client):
    lone = b'"\\ud800"'
    bodies = {
        "/v1/score/evaluation": b'{"model": ' + lone + b', "messages": []}',
        "/classify": b'{"model": ' + lone + b', "input": []}',
        "/score": b'{"model": ' + lone + b', "text_1": "q", "text_2": []}',
        "/get_reward": b'{"query": [' + lone + b"]}",
        "/compare": b'{"conversation_history": [{"role": "user", "content": "q"}], "responses": ['
        + lone
        + b"]}",
    }
    for path, body in bodies.items():
        found = client.post(path, content=body, headers={"content-type": "application/json"})
        assert found.status_code == 422, (path, found.text)


def test_an_error_speaks_of_the_kind_that_was_sent_and_of_nothing_else(client):
    found = client.post("/v1/score_pair", json={"prompt": "q", "first": "a"})
    assert found.json()["error"]["message"] == "body.pair.second: Field required"
    found = client.post("/v1/score_pair", json={"prompt": [], "first": "a", "second": "b"})
    assert found.json()["error"]["message"].startswith(
        "body.pair.prompt.messages: List should have"
    )
    found = client.post("/classify", json={"input": [{"prompt": "q", "first": "a"}]})
    assert found.json()["error"]["message"] == "body.input.list.0.second: Field required"
    form = {"content-type": "application/x-www-form-urlencoded"}
    found = client.post("/v1/score_pair", content=b'{"prompt": "q"}', headers=form)
    assert found.status_code == 422 and "content-type: application/json" in found.text


def test_a_failure_is_logged_by_its_type_and_place_without_any_text(client, caplog):
    broken = {"prompt": "q", "first": "broken", "second": "b"}
    found = client.post("/v1/score_pair", json=broken)
    assert found.status_code == 500
    line = next(r.msg for r in caplog.records if "RuntimeError" in r.message)
    assert line["request"] == found.headers["x-request-id"] and line["path"] == "/v1/score_pair"
    assert any("score_many" in place for place in line["at"])
    assert "secret text" not in caplog.text and "Traceback" not in caplog.text


def test_bytes_of_all_kinds_are_never_an_unhandled_error(client):
    draw = random.Random(0)
    shapes = [b"", b"null", b"[]", b"{}", b'{"prompt": {}}', b"\xff\xfe", b'"' + b"a" * 1000]
    deep = b"[" * 5000 + b"]" * 5000
    huge = b'{"prompt": "q", "first": "a", "second": "b", "x": ' + b"9" * 5000 + b"}"
    bodies = [*shapes, deep, huge, b'{"prompt": "\\ud800", "first": "a", "second": "b"}']
    bodies += [draw.randbytes(draw.randrange(200)) for _ in range(60)]
    for path in (
        "/v1/score_pair",
        "/v1/rank",
        "/get_reward",
        "/compare",
        "/classify",
        "/v1/score/evaluation",
    ):
        for body in bodies:
            found = client.post(path, content=body, headers={"content-type": "application/json"})
            assert found.status_code < 500, (path, body[:60], found.text)
