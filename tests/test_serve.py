"""The reward server: every protocol, limits, deadlines, overload, and an end that loses nothing."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from jobs import free_port
from scipy.special import expit

pytest.importorskip("fastapi", reason="the extra serve is not installed")
httpx = pytest.importorskip("httpx")
from starlette.testclient import TestClient  # noqa: E402

from gram_jax.cli.judging import serve  # noqa: E402
from gram_jax.errors import DataError  # noqa: E402
from gram_jax.ranking.jobs import RankingJob  # noqa: E402
from gram_jax.rewards.forms import RewardForm  # noqa: E402
from gram_jax.scoring.pair import combine_orders  # noqa: E402
from gram_jax.scoring.request_batcher import (  # noqa: E402
    BatcherClosedError,
    DeadlineExceededError,
    QueueFullError,
    RequestBatcher,
)
from gram_jax.scoring.scorer import Scorer  # noqa: E402
from gram_jax.serve.app import make_app  # noqa: E402
from gram_jax.serve.guard import Limits  # noqa: E402
from gram_jax.serve.run import check_address  # noqa: E402
from gram_jax.sharding import make_placement  # noqa: E402


class Judge:
    """Log-odds: half the difference of lengths. Each call takes `seconds`; "broken" breaks it."""

    class Spec:
        labels, hash = (" A", " B"), "abc"

    spec = Spec()

    def __init__(self, seconds: float = 0.0):
        self.seconds, self.sizes = seconds, []
        self.asked, self.go = threading.Event(), threading.Event()
        self.go.set()

    def warm_up(self, *, rankings: bool = False) -> None:
        pass

    def score_many(self, triples):
        self.asked.set()
        self.go.wait(10)
        time.sleep(self.seconds)
        self.sizes.append(len(triples))
        if any(first == "broken" for _, first, _ in triples):
            raise RuntimeError("secret text")
        logit_diffs = [(len(a) - len(b)) / 2 for _, a, b in triples]
        return [combine_orders(gap, -gap, False) for gap in logit_diffs]

    def rank_many(self, items, config=None):
        for prompt, responses in items:
            job = RankingJob(prompt, responses, config)
            while job.ranking is None:
                logit_diffs = [(len(a) - len(b)) / 2 for _, a, b in job.pending_comparisons()]
                job.update(np.array(logit_diffs), shortened=False)
            yield job.ranking


def until(true, seconds: float = 20.0) -> None:
    """Wait for something that another thread is about to do."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def judge() -> Judge:
    return Judge()


def client_of(judge, **settings) -> TestClient:
    return TestClient(make_app(judge, "test-judge", **settings), raise_server_exceptions=False)


@pytest.fixture
def client(judge):
    with client_of(judge, cohort_wait=0.3) as client:
        yield client


def test_a_pair_and_several(client):
    pair = {"prompt": "q", "first": "aaa", "second": "a"}
    found = client.post("/v1/score_pair", json=pair)
    assert found.status_code == 200
    assert found.json()["first"] == pytest.approx(expit(1))
    assert found.json()["first"] + found.json()["second"] == 1
    turns = [{"role": "user", "content": "q"}]
    several = client.post("/v1/score_pair", json={"pairs": [pair, pair | {"prompt": turns}]}).json()
    assert several["verdicts"] == [found.json()] * 2
    assert client.post("/v1/score_pair", json={"pairs": []}).json() == {"verdicts": []}


def test_a_ranking(client):
    asked = {"prompt": "q", "responses": ["a", "aaa", "aa"]}
    found = client.post("/v1/rank", json=asked).json()
    assert found["ranking"] == [1, 2, 0] and found["comparisons"] == 6
    one = client.post("/v1/rank", json=asked | {"method": "knockout", "order_mode": "one"}).json()
    assert one["ranking"][0] == 1


CHAT = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"


def test_openrlhf_with_and_without_references_and_empty(client):
    query = [CHAT + "aaa<|im_end|>", CHAT + "a<|im_end|>"]
    plain = client.post("/get_reward", json={"query": query, "prompts": [CHAT] * 2}).json()
    assert plain["rewards"] == pytest.approx([expit(1), expit(-1)]) == plain["scores"]
    labels = ["a", "a"]
    asked = {"query": query, "prompts": [CHAT] * 2, "labels": labels}
    given = client.post("/get_reward", json=asked).json()
    assert given["rewards"] == pytest.approx([expit(1), 0.5])
    assert given["extra_logs"] == {"gram_judge": given["rewards"]}
    bare = client.post("/get_reward", json={"query": query}).json()  # prompts found in the text
    assert bare["rewards"] == plain["rewards"]
    empty = client.post("/get_reward", json={"query": [], "prompts": [], "labels": []})
    assert empty.json() == {"rewards": [], "scores": [], "extra_logs": {"gram_judge": []}}


def test_llama_factory(client):
    asked = {"model": "m", "messages": [CHAT + "aaa<|im_end|>", CHAT + "a"], "max_length": 100}
    found = client.post("/v1/score/evaluation", json=asked).json()
    assert found["object"] == "score.evaluation" and found["model"] == "m"
    assert found["scores"] == pytest.approx([expit(1), expit(-1)])
    wrong = client.post("/v1/score/evaluation", json={"messages": ["no conversation"]})
    assert wrong.status_code == 422 and "no conversation" not in wrong.text


def test_a_policy_writes_what_responses_without_a_label_meet(judge):
    asked = []

    def write(prompts, wait):
        asked.append([prompt[-1].content.strip() for prompt in prompts])
        if asked[-1] == ["late"]:
            raise TimeoutError
        if asked[-1] == ["long"]:
            raise DataError("a prompt has 9 tokens")
        return ["a"] * len(prompts)

    with client_of(judge, form=RewardForm("reference"), write=write) as client:
        talk = [CHAT + "aaa<|im_end|>", CHAT + "a"]
        body = {"model": "m", "messages": talk, "max_length": 100}
        found = client.post("/v1/score/evaluation", json=body).json()
        assert found["scores"] == pytest.approx([expit(1), 0.5])
        bare = client.post("/get_reward", json={"query": talk[:1], "prompts": [CHAT]}).json()
        assert bare["rewards"] == pytest.approx([expit(1)])
        labeled = {"query": talk[:1], "prompts": [CHAT], "labels": ["aa"]}
        assert client.post("/get_reward", json=labeled).json()["rewards"] == [
            pytest.approx(expit(0.5))
        ]
        some = {"query": talk, "prompts": [CHAT] * 2, "labels": ["aa", ""]}
        found = client.post("/get_reward", json=some).json()["rewards"]
        assert found == pytest.approx([expit(0.5), 0.5])
        for text, status in (("late", 504), ("long", 422)):
            body = {"query": [f"{text} a"], "prompts": [f"{text} "]}
            failed = client.post("/get_reward", json=body)
            assert failed.status_code == status and "9 tokens" not in failed.text
        assert "no room for its response" in failed.json()["error"]["message"]
    # The first when the server became ready.
    assert asked == [["Hello."], ["q"], ["q"], ["q"], ["late"], ["long"]]
    with pytest.raises(DataError, match="leave out one of the two"):
        client_of(judge, form=RewardForm("reference", references=("a",)), write=write)


HISTORY = {"conversation_history": [{"role": "user", "content": "q"}]}


def test_the_group_judge_at_once_and_one_by_one(client):
    texts = ["aaa", "aa", "aa"]
    whole = client.post("/compare", json=HISTORY | {"responses": texts}).json()
    assert whole["rewards"][1] == pytest.approx((expit(-0.5) + 0.5) / 2)
    assert len(whole["comparison_results"]) == 3
    found: dict[int, dict] = {}

    def send(at: int) -> None:
        body = HISTORY | {"responses": [texts[at]], "group_size": 3}
        found[at] = client.post("/compare", json=body).json()

    threads = [threading.Thread(target=send, args=(at,)) for at in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[at]["rewards"][0] for at in range(3)] == pytest.approx(whole["rewards"])
    alone = client.post("/compare", json=HISTORY | {"responses": ["a"], "group_size": 2}).json()
    assert alone == {"rewards": [0.5], "comparison_results": [{"group": 1}]}


def test_classify(client):
    pair = {"prompt": "q", "first": "a", "second": "aaa"}
    found = client.post("/classify", json={"input": [pair]}).json()
    assert found["data"][0]["label"] == "B" and found["data"][0]["num_classes"] == 2
    assert found["data"][0]["probs"] == pytest.approx([expit(-1), expit(1)])


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


def test_references_for_some_are_refused_and_never_ignored(client):
    query, prompts = ["p aaa", "p a"], ["p ", "p "]
    for extra in ({"labels": ["a", ""]}, {"labels": ["a", None]}, {"labels": ["a"]}):
        asked = {"query": query, "prompts": prompts} | extra
        found = client.post("/get_reward", json=asked)
        assert found.status_code == 422
        assert "labels: expected one for each of 2 responses, or none, found 1" in found.text
    short = client.post("/get_reward", json={"query": query, "prompts": prompts[:1]})
    assert short.status_code == 422 and "prompts: expected one for each" in short.text
    none = client.post(
        "/get_reward", json={"query": query, "prompts": prompts, "labels": ["", None]}
    )
    assert none.json()["rewards"] == pytest.approx([expit(1), expit(-1)])


def test_scores_of_openrlhf_lie_between_0_and_1_whatever_the_rewards(judge):
    asked = {"query": ["p aaa"], "prompts": ["p "], "labels": ["a"]}
    with client_of(judge, form=RewardForm(as_="log_odds")) as client:
        found = client.post("/get_reward", json=asked).json()
    assert found["rewards"] == [1.0] and found["scores"] == pytest.approx([expit(1)])


def test_the_form_of_vllm_scores(client):
    asked = {"model": "m", "text_1": "q", "text_2": ["aaa", "a"]}
    found = client.post("/score", json=asked).json()
    assert [one["score"] for one in found["data"]] == pytest.approx([expit(1), expit(-1)])
    assert found["model"] == "m" and found["object"] == "list"
    assert found["data"][1]["index"] == 1 and found["data"][1]["object"] == "score"
    again = client.post("/v1/score", json=asked).json()
    assert again["data"] == found["data"]
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list" and listed["data"][0]["id"] == "test-judge"
    paired = client.post("/score", json=asked | {"text_1": ["q", "r"]}).json()
    assert [one["score"] for one in paired["data"]] == [0.5, 0.5]  # two prompts, no group
    wrong = client.post("/score", json=asked | {"text_1": ["q", "r", "s"]})
    assert wrong.status_code == 422 and "text_1: expected one for each of 2" in wrong.text


def test_shared_references_give_a_single_response_a_reward(judge):
    form = RewardForm("reference", references=("a", "aaaaa"))
    with client_of(judge, form=form) as client:
        found = client.post("/get_reward", json={"query": ["p aaaaa"], "prompts": ["p "]}).json()
        assert found["rewards"] == pytest.approx([(expit(2) + 0.5) / 2])
        assert "gram_uncompared_total 0.0" in client.get("/metrics").text


def test_a_response_that_met_no_other_is_counted_and_said_once(client, caplog):
    alone = {"query": ["p a"], "prompts": ["p "]}
    for _ in range(3):
        assert client.post("/get_reward", json=alone).json()["rewards"] == [0.5]
    client.post("/get_reward", json={"query": ["p a", "p aa"], "prompts": ["p ", "p "]})
    client.post("/compare", json=HISTORY | {"responses": ["a"]})
    assert "gram_uncompared_total 4.0" in client.get("/metrics").text
    assert caplog.text.count("its reward is 0.5 whatever it says") == 1


def test_a_failure_is_logged_by_its_type_and_place_without_any_text(client, caplog):
    broken = {"prompt": "q", "first": "broken", "second": "b"}
    found = client.post("/v1/score_pair", json=broken)
    assert found.status_code == 500
    line = json.loads(next(r.getMessage() for r in caplog.records if "RuntimeError" in r.message))
    assert line["request"] == found.headers["x-request-id"] and line["path"] == "/v1/score_pair"
    assert any("score_many" in place for place in line["at"])
    assert "secret text" not in caplog.text and "Traceback" not in caplog.text


def test_the_document_says_where_a_token_is_asked_for_and_what_operators_get(judge):
    with client_of(judge, token="s3cret") as client:
        known = {"authorization": "bearer s3cret"}
        document = client.get("/openapi.json", headers=known).json()
    assert document["paths"]["/v1/rank"]["post"]["security"] == [{"HTTPBearer": []}]
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    ready = document["paths"]["/readyz"]["get"]
    assert "security" not in ready and "422" not in ready["responses"]
    schema = ready["responses"]["503"]["content"]["application/json"]["schema"]
    assert schema["$ref"].endswith("/Readiness")
    assert "Retry-After" in document["paths"]["/v1/rank"]["post"]["responses"]["429"]["headers"]
    with client_of(judge) as client:
        assert "security" not in client.get("/openapi.json").json()["paths"]["/v1/rank"]["post"]


def test_a_token_is_asked_for_and_compared_whole(judge):
    pair = {"prompt": "q", "first": "a", "second": "b"}
    with client_of(judge, token="s3cret") as client:
        for given in (None, "Bearer s3cre", "Bearer s3cret2", "Basic s3cret", "s3cret", "Bearer"):
            headers = {} if given is None else {"authorization": given}
            found = client.post("/v1/score_pair", json=pair, headers=headers)
            assert found.status_code == 401 and found.headers["www-authenticate"] == "Bearer"
        known = {"authorization": "bearer s3cret"}
        assert client.post("/v1/score_pair", json=pair, headers=known).status_code == 200
        assert client.get("/metrics").status_code == 401
        assert client.get("/healthz").status_code == client.get("/").status_code == 200


def test_bodies_and_fields_have_limits(judge):
    with client_of(judge, limits=Limits(body=2000)) as client:
        large = {"prompt": "q" * 3000, "first": "a", "second": "b"}
        assert client.post("/v1/score_pair", json=large).status_code == 413

        def pieces():
            for _ in range(10):
                yield b"x" * 500

        assert client.post("/v1/score_pair", content=pieces()).status_code == 413
    with client_of(judge) as client:
        many = {"prompt": "q", "responses": ["a"] * 65}
        assert client.post("/v1/rank", json=many).status_code == 422
        assert client.post("/v1/rank", json={"prompt": "q", "responses": []}).status_code == 422


def test_a_deadline_that_passes_in_the_queue_is_said_and_nothing_is_scored_for_it(judge):
    pair = {"prompt": "q", "first": "a", "second": "b"}
    with client_of(judge) as client:
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


def test_what_waits_together_is_scored_together(judge):
    batcher = RequestBatcher(judge)
    judge.go.clear()
    answers: list = []
    end = time.monotonic() + 30
    threads = [
        threading.Thread(
            target=lambda at=at: answers.append((at, batcher.pairs([("q", "a" * at, "")], end)))
        )
        for at in range(20)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    judge.go.set()
    for thread in threads:
        thread.join()
    assert len(judge.sizes) <= 3 and sum(judge.sizes) == 20
    for at, (score,) in answers:
        assert score.margin == at / 2
    batcher.close()
    with pytest.raises(BatcherClosedError):
        batcher.pairs([("q", "a", "b")], end)


def test_one_bad_request_in_a_batch_leaves_the_others_their_answers(judge):
    batcher, found = RequestBatcher(judge), {}
    judge.go.clear()

    def ask(text: str) -> None:
        try:
            found[text] = batcher.pairs([("q", text, "b")], time.monotonic() + 30)
        except RuntimeError as error:
            found[text] = error

    threads = [threading.Thread(target=ask, args=(text,)) for text in ("a", "broken", "ccc")]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    judge.go.set()
    for thread in threads:
        thread.join()
    assert isinstance(found["broken"], RuntimeError)
    assert found["ccc"][0].margin == 1.0 and found["a"][0].margin == 0.0
    batcher.close()


def test_a_full_queue_refuses_quickly_and_says_when_to_come_again(judge):
    batcher = RequestBatcher(judge, max_queue=10)
    judge.go.clear()
    end = time.monotonic() + 30
    waiting = [
        threading.Thread(target=lambda: batcher.pairs([("q", "a", "b")] * 2, end)) for _ in range(2)
    ]
    for thread in waiting:
        thread.start()
    time.sleep(0.2)
    started = time.monotonic()
    with pytest.raises(QueueFullError) as refused:
        batcher.pairs([("q", "a", "b")] * 2, end)
    assert time.monotonic() - started < 0.1 and refused.value.retry_after >= 1
    judge.go.set()
    for thread in waiting:
        thread.join()
    assert len(batcher.pairs([("q", "a", "b")] * 20, end)) == 20  # larger than the queue, alone
    with pytest.raises(DeadlineExceededError):
        batcher.pairs([("q", "a", "b")], time.monotonic() - 1)
    batcher.close()


def test_a_deadline_that_passes_in_the_queue_is_said_at_once_and_gives_its_room_back(judge):
    batcher = RequestBatcher(judge, max_queue=4)
    judge.go.clear()
    end = time.monotonic() + 30
    first = threading.Thread(target=lambda: batcher.pairs([("q", "a", "b")], end))
    first.start()
    until(lambda: batcher.waiting == 2 and not batcher.num_queued)  # it is being scored
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        batcher.pairs([("q", "a", "b")], started + 0.1)
    assert (
        time.monotonic() - started < 1 and batcher.waiting == 2
    )  # the first is being scored still
    judge.go.set()
    first.join()
    batcher.close()
    assert judge.sizes == [1]


def test_retry_after_is_whole_seconds_rounded_up_and_never_absurd(judge):
    batcher = RequestBatcher(judge)
    batcher.waiting, batcher.speed = 25, 10.0
    assert batcher.retry_after() == 2
    batcher.speed = 1e-3
    assert batcher.retry_after() == 60
    batcher.close()


def test_a_batcher_that_is_stopped_finishes_its_call_and_refuses_what_waits(judge):
    batcher, found = RequestBatcher(judge, max_batch=2), []
    judge.go.clear()

    def ask() -> None:
        try:
            found.append(len(batcher.pairs([("q", "a", "b")], time.monotonic() + 30)))
        except BatcherClosedError:
            found.append("closed")

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
        until(lambda: batcher.waiting and batcher.num_queued == batcher.waiting / 2 - 1)
    stopping = threading.Thread(target=batcher.stop)
    stopping.start()
    until(lambda: not batcher.num_queued)
    judge.go.set()
    for thread in [*threads, stopping]:
        thread.join(10)
    assert sorted(map(str, found)) == ["1", "closed", "closed"] and batcher.waiting == 0


def test_ten_times_the_load_is_answered_or_refused_and_nothing_hangs():
    judge = Judge(seconds=0.02)
    pair = {"prompt": "q", "first": "aa", "second": "b"}
    with client_of(judge, queue=32, together=8) as client:
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


def test_a_real_judge_behind_the_server_says_what_it_says_alone():
    placement = make_placement({}, devices=jax.devices()[:1])
    with pytest.warns(UserWarning, match=r"no judge.json"):
        judge = Scorer.load("tiny-random", placement=placement, max_length=256)
    with client_of(judge, form=RewardForm(), warm_up=False) as client:
        asked = {"prompt": "Name a tree.", "first": "oak", "second": "a bay by the sea"}
        found = client.post("/v1/score_pair", json=asked).json()
    score = judge.score(*asked.values())
    assert found == json.loads(json.dumps(score._asdict()))


SERVER = """
import sys, time
sys.path.insert(0, {tests!r})
from test_serve import Judge
from gram_jax.serve.app import make_app
from gram_jax.serve.run import serve
serve(make_app(Judge(seconds=2.0), "slow"), host="127.0.0.1", port={port}, grace=20)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_sigterm_answers_what_was_accepted_and_refuses_the_rest():
    unused_port = free_port()
    code = SERVER.format(tests=os.path.dirname(__file__), port=unused_port)
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{unused_port}"
    try:
        for _ in range(300):
            try:
                if httpx.get(f"{url}/readyz").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        answers: list[int] = []
        body = {"prompt": "q", "first": "aa", "second": "b"}

        def ask() -> None:
            answers.append(httpx.post(f"{url}/v1/score_pair", json=body, timeout=30).status_code)

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        waiting, until = 0.0, time.monotonic() + 30
        while waiting < 24 and time.monotonic() < until:  # all twelve have been let in
            text = httpx.get(f"{url}/metrics").text
            waiting = float(text.partition("\ngram_sequences_waiting ")[2].split()[0])
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert answers == [200] * 12
        assert process.wait(timeout=20) in (0, -signal.SIGTERM)  # uvicorn ends by the signal itself
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/healthz")
        lines = [json.loads(x) for x in process.stderr.read().splitlines() if x.startswith("{")]
        assert len(lines) == 12 and all(x["line"]["status"] == 200 for x in lines)
    finally:
        process.kill()


def test_a_judge_that_cannot_be_made_ready_ends_the_server_with_an_error():
    code = """
import sys
sys.path.insert(0, {tests!r})
from test_serve import Judge
from gram_jax.serve.app import make_app
from gram_jax.serve.run import StartError, serve
class Broken(Judge):
    def warm_up(self, **_):
        raise MemoryError
try:
    serve(make_app(Broken(), "broken"), host="127.0.0.1", port={port}, grace=1)
except StartError:
    sys.exit(7)
"""
    code = code.format(tests=os.path.dirname(__file__), port=free_port())
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 7
    lines = [json.loads(line) for line in ended.stderr.splitlines() if line.startswith("{")]
    assert any("MemoryError" in line["line"]["message"] for line in lines)


def test_an_address_in_use_is_an_error_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(DataError, match=f"cannot listen at {host}:{port}"):
                serve("no-such-judge", host=host, port=port)
    check_address("localhost", port)
    for host in ("203.0.113.1", "no-such-host.invalid"):  # of no interface, and of no machine
        with pytest.raises(DataError, match="give another --host or --port"):
            check_address(host, port)


def test_options_that_say_what_a_response_meets_exclude_each_other():
    for options in (
        {"against": "group", "policy": "p"},
        {"new": 8},
        {"against": "circle", "new": 8},
    ):
        with pytest.raises(DataError, match="leave out one"):
            serve("no-such-judge", **options)


def test_an_end_longer_than_its_grace_is_cut_short():
    """Ten calls of a second wait when the signal comes: the one that runs is finished, and then the process ends."""
    port = free_port()
    code = SERVER.format(tests=os.path.dirname(__file__), port=port)
    code = code.replace("seconds=2.0", "seconds=1.0").replace('"slow"', '"slow", together=2')
    code = code.replace("grace=20", "grace=1")
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    url, body = f"http://127.0.0.1:{port}", {"prompt": "q", "first": "aa", "second": "b"}
    try:
        for _ in range(300):
            try:
                httpx.get(f"{url}/readyz").raise_for_status()
                break
            except httpx.TransportError:
                time.sleep(0.1)

        def ask() -> None:
            with contextlib.suppress(httpx.TransportError):
                httpx.post(f"{url}/v1/score_pair", json=body, timeout=30)

        threads = [threading.Thread(target=ask) for _ in range(10)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
        assert time.monotonic() - started < 5
        for thread in threads:
            thread.join()
    finally:
        process.kill()
