"""What surrounds the endpoints: operations, tokens, limits, deadlines, overload."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_judge import FakeJudge
from server import PAIR, client_for
from starlette.testclient import TestClient

from gram_jax.serve.admission import Limits
from gram_jax.serve.app import make_app, public_name

KNOWN = {"authorization": "bearer s3cret"}


def test_clients_see_the_name_of_a_local_model_without_its_folder(judge, tmp_path):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    for name, shown in (("runs/one@100", "one@100"), ("runs/one", "one"), ("/no/where/two", "two")):
        with TestClient(make_app(judge, str(tmp_path / name), warm_up=False)) as client:
            assert client.get("/readyz").json()["model"] == shown
            assert client.get("/v1/models").json()["data"][0]["id"] == shown
    assert public_name("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"


def test_the_endpoints_of_an_operator(client):
    client.post("/v1/score_pair", json=PAIR)
    assert client.get("/healthz").json() == client.get("/health").json() == {"status": "ok"}
    assert client.get("/readyz").json()["status"] == "ready"
    text = client.get("/metrics").text
    assert 'gram_requests_total{path="/v1/score_pair",status="200"} 1.0' in text
    assert "gram_sequences_scored 4.0" in text  # the pair, and that of the readiness probe
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/score_pair", "/v1/rank", "/get_reward", "/compare", "/classify"} <= set(paths)
    page = client.get("/").text
    assert page.startswith("<!doctype html>") and "http" not in page.replace("http-equiv", "")


def test_the_page_runs_its_own_script_alone_and_cannot_be_framed(client):
    headers = client.get("/").headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"].startswith("'sha256-") and "unsafe" not in str(policy)
    assert headers["x-frame-options"] == "DENY"


def test_the_openapi_document_has_tokens_and_the_errors_of_each_endpoint(client, judge):
    paths = client.get("/openapi.json").json()["paths"]
    assert "security" not in paths["/v1/rank"]["post"]
    with client_for(judge, token="s3cret") as guarded:
        document = guarded.get("/openapi.json", headers=KNOWN).json()
    rank, ready = (document["paths"][x][y] for x, y in (("/v1/rank", "post"), ("/readyz", "get")))
    assert rank["security"] == [{"HTTPBearer": []}] and "security" not in ready
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert "Retry-After" in rank["responses"]["429"]["headers"]
    schema = ready["responses"]["503"]["content"]["application/json"]["schema"]
    assert schema["$ref"].endswith("/ReadinessResponse") and "422" not in ready["responses"]


def test_a_token_is_required_and_compared_whole(judge):
    with client_for(judge, token="s3cret") as client:
        for given in (None, "Bearer s3cre", "Bearer s3cret2", "Basic s3cret", "s3cret", "Bearer"):
            headers = {} if given is None else {"authorization": given}
            found = client.post("/v1/score_pair", json=PAIR, headers=headers)
            assert found.status_code == 401 and found.headers["www-authenticate"] == "Bearer"
        assert client.post("/v1/score_pair", json=PAIR, headers=KNOWN).status_code == 200
        assert client.get("/metrics").status_code == 401
        assert client.get("/healthz").status_code == client.get("/").status_code == 200


def test_bodies_have_a_limit_whether_they_state_their_length_or_not(judge):
    with client_for(judge, limits=Limits(body=2000)) as client:
        large = PAIR | {"prompt": "q" * 3000}
        assert client.post("/v1/score_pair", json=large).status_code == 413
        pieces = (b"x" * 500 for _ in range(10))
        assert client.post("/v1/score_pair", content=pieces).status_code == 413


@pytest.mark.parametrize("count", [0, 65])
def test_fields_have_limits(client, count):
    many = {"prompt": "q", "responses": ["a"] * count}
    assert client.post("/v1/rank", json=many).status_code == 422


def test_a_deadline_that_passes_in_the_queue_is_an_error_and_nothing_is_scored(client, judge):
    judge.go.clear()
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(client.post, "/v1/score_pair", json=PAIR)
        assert judge.asked.wait(10)
        late = client.post("/v1/score_pair", json=PAIR, headers={"x-deadline-ms": "50"})
        judge.go.set()
        assert first.result().status_code == 200
    assert late.status_code == 504 and late.json()["error"]["code"] == "late"
    assert judge.sizes == [1]
    wrong = client.post("/v1/score_pair", json=PAIR, headers={"x-deadline-ms": "soon"})
    assert wrong.status_code == 422
    longest = client.post("/v1/score_pair", json=PAIR, headers={"x-deadline-ms": "9" * 400})
    assert longest.status_code == 200  # the deadline of the server


def test_ten_times_the_load_is_answered_or_refused_and_nothing_hangs():
    with client_for(FakeJudge(seconds=0.2, call_tokens=1000), max_queue=8000) as client:

        def flood(_: int) -> list[tuple[int, float]]:
            found = []
            for _ in range(15):
                started = time.monotonic()
                answer = client.post("/v1/score_pair", json=PAIR)
                found.append((answer.status_code, time.monotonic() - started))
                assert answer.status_code != 429 or int(answer.headers["retry-after"]) >= 1
            return found

        with ThreadPoolExecutor(40) as threads:
            codes = [one for found in threads.map(flood, range(40)) for one in found]
        assert {code for code, _ in codes} == {200, 429} and len(codes) == 600
        assert max(seconds for code, seconds in codes if code == 200) < 5
        assert client.post("/v1/score_pair", json=PAIR).status_code == 200
