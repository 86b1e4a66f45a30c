"""What surrounds the endpoints: operations, tokens, limits, deadlines, overload."""

import threading
import time

import pytest
from server import FakeJudge, client_for

from gram_jax.serve.middleware import Limits


@pytest.fixture
def judge() -> FakeJudge:
    return FakeJudge()


@pytest.fixture
def client(judge):
    with client_for(judge, group_wait=0.3) as client:
        yield client


def test_what_an_operator_asks(client):
    client.post("/v1/score_pair", json={"prompt": "q", "first": "a", "second": "b"})
    assert client.get("/healthz").json() == client.get("/health").json() == {"status": "ok"}
    assert client.get("/readyz").json()["status"] == "ready"
    text = client.get("/metrics").text
    assert 'gram_requests_total{path="/v1/score_pair",status="200"} 1.0' in text
    assert "gram_sequences_scored 2.0" in text
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/score_pair", "/v1/rank", "/get_reward", "/compare", "/classify"} <= set(paths)
    page = client.get("/").text
    assert page.startswith("<!doctype html>") and "http" not in page.replace("http-equiv", "")


def test_the_document_says_where_a_token_is_asked_for_and_what_operators_get(judge):
    with client_for(judge, token="s3cret") as client:
        known = {"authorization": "bearer s3cret"}
        document = client.get("/openapi.json", headers=known).json()
    assert document["paths"]["/v1/rank"]["post"]["security"] == [{"HTTPBearer": []}]
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    ready = document["paths"]["/readyz"]["get"]
    assert "security" not in ready and "422" not in ready["responses"]
    schema = ready["responses"]["503"]["content"]["application/json"]["schema"]
    assert schema["$ref"].endswith("/ReadinessResponse")
    assert "Retry-After" in document["paths"]["/v1/rank"]["post"]["responses"]["429"]["headers"]
    with client_for(judge) as client:
        assert "security" not in client.get("/openapi.json").json()["paths"]["/v1/rank"]["post"]


def test_a_token_is_asked_for_and_compared_whole(judge):
    pair = {"prompt": "q", "first": "a", "second": "b"}
    with client_for(judge, token="s3cret") as client:
        for given in (None, "Bearer s3cre", "Bearer s3cret2", "Basic s3cret", "s3cret", "Bearer"):
            headers = {} if given is None else {"authorization": given}
            found = client.post("/v1/score_pair", json=pair, headers=headers)
            assert found.status_code == 401 and found.headers["www-authenticate"] == "Bearer"
        known = {"authorization": "bearer s3cret"}
        assert client.post("/v1/score_pair", json=pair, headers=known).status_code == 200
        assert client.get("/metrics").status_code == 401
        assert client.get("/healthz").status_code == client.get("/").status_code == 200


def test_bodies_and_fields_have_limits(judge):
    with client_for(judge, limits=Limits(body=2000)) as client:
        large = {"prompt": "q" * 3000, "first": "a", "second": "b"}
        assert client.post("/v1/score_pair", json=large).status_code == 413

        def pieces():
            for _ in range(10):
                yield b"x" * 500

        assert client.post("/v1/score_pair", content=pieces()).status_code == 413
    with client_for(judge) as client:
        many = {"prompt": "q", "responses": ["a"] * 65}
        assert client.post("/v1/rank", json=many).status_code == 422
        assert client.post("/v1/rank", json={"prompt": "q", "responses": []}).status_code == 422


def test_a_deadline_that_passes_in_the_queue_is_said_and_nothing_is_scored_for_it(judge):
    pair = {"prompt": "q", "first": "a", "second": "b"}
    with client_for(judge) as client:
        judge.go.clear()
        first = threading.Thread(target=lambda: client.post("/v1/score_pair", json=pair))
        first.start()
        assert judge.asked.wait(10)
        late = client.post("/v1/score_pair", json=pair, headers={"x-deadline-ms": "50"})
        judge.go.set()
        first.join()
        assert late.status_code == 504 and late.json()["error"]["code"] == "late"
        assert judge.sizes == [1]
        wrong = client.post("/v1/score_pair", json=pair, headers={"x-deadline-ms": "soon"})
        assert wrong.status_code == 422


def test_ten_times_the_load_is_answered_or_refused_and_nothing_hangs():
    judge = FakeJudge(seconds=0.02)
    pair = {"prompt": "q", "first": "aa", "second": "b"}
    with client_for(judge, max_queue=32, max_batch=8) as client:
        codes: list[tuple[int, float]] = []

        def flood() -> None:
            for _ in range(15):
                started = time.monotonic()
                found = client.post("/v1/score_pair", json=pair)
                codes.append((found.status_code, time.monotonic() - started))
                if found.status_code == 429:
                    assert int(found.headers["retry-after"]) >= 1

        threads = [threading.Thread(target=flood) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {code for code, _ in codes} == {200, 429} and len(codes) == 600
        assert max(seconds for code, seconds in codes if code == 200) < 5
        assert client.post("/v1/score_pair", json=pair).status_code == 200
