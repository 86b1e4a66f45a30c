"""A judge behind HTTP gives the scores of the same judge in this process, whatever serves it."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from fake_judge import FakeJudge, parts
from remote_servers import TransformersServer, answering

from gram_jax.data.records import Comparison
from gram_jax.errors import JudgeError, NonFiniteError, RemoteError
from gram_jax.evals.evaluate import evaluate
from gram_jax.evals.pairwise import evaluate_pairs
from gram_jax.interop.hf_export import export_hf
from gram_jax.interop.models import load_model, load_tokenizer
from gram_jax.judge.messages import as_prompt
from gram_jax.judge.spec import make_spec
from gram_jax.model.execution import Execution
from gram_jax.rewards.forms import RewardForm, Rewards
from gram_jax.scoring import remote
from gram_jax.scoring.remote import RemoteScorer
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import make_placement

PROTOCOLS = ("vllm", "vllm_generative", "sglang", "sglang_generative")
TEXTS = ["Seven.", "Nine is a prime.", "I do not know.\n\nTwo?", "é 🙂 " * 30, ""]
PAIRS = [("Name a prime.", a, b) for a in TEXTS for b in TEXTS[:3] if a != b]


@pytest.fixture(scope="module")
def judge() -> Scorer:
    placement = make_placement({}, devices=jax.devices()[:1])
    cfg, params = load_model("tiny-random", placement, "float32")
    params = jax.tree.map(lambda w: w * 4, params)  # tells texts apart
    tokenizer = load_tokenizer("tiny-random")
    spec = make_spec(tokenizer, max_length=160)
    return Scorer(params, cfg, tokenizer, spec, Execution("float32", "blocked", "none", placement))


@pytest.fixture(scope="module")
def exported(judge: Scorer, tmp_path_factory) -> Path:
    return export_hf(
        tmp_path_factory.mktemp("export") / "judge",
        judge.cfg,
        judge.params,
        dtype="float32",
        tokenizer=judge.tokenizer,
        spec=judge.spec,
    )


@pytest.fixture(scope="module")
def served(judge: Scorer, exported: Path):
    """(URL, server)"""
    pytest.importorskip("torch")
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(exported).eval()
    server = TransformersServer(model, judge.spec.label_ids, 161)
    with answering(server) as url:
        yield url, server


@pytest.mark.torch
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scores_and_rankings_are_those_of_the_judge_in_this_process(
    judge, exported, served, protocol
):
    url, _ = served
    far = RemoteScorer.load(exported, url, protocol=protocol, concurrency=4, batch_size=4)
    here, there = judge.score_many(PAIRS), far.score_many(PAIRS)
    assert [x.first for x in there] == pytest.approx([x.first for x in here], abs=1e-5)
    assert [x.margin for x in there] == pytest.approx([x.margin for x in here], abs=1e-3)
    assert [x.shortened for x in there] == [x.shortened for x in here]
    assert any(x.shortened for x in here) and max(abs(x.margin) for x in here) > 0.1
    assert far.score(*PAIRS[0]) == far.score(PAIRS[0][0], *PAIRS[0][:0:-1]).swapped()
    mine, theirs = (x.rank("Name a prime.", TEXTS, method="round_robin") for x in (judge, far))
    assert theirs.order == mine.order
    assert theirs.margins == pytest.approx(mine.margins, abs=1e-3)


@pytest.mark.torch
def test_evaluation_and_rewards_take_a_served_judge(judge, exported, served, tmp_path):
    far = RemoteScorer.load(exported, served[0], protocol="vllm")
    records = [Comparison(as_prompt(p), a, b, 0, id=str(at)) for at, (p, a, b) in enumerate(PAIRS)]
    mine, theirs = evaluate_pairs(judge, records), evaluate_pairs(far, records)
    assert theirs.accuracy == mine.accuracy
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": p, "chosen": a or "x", "rejected": b} for p, a, b in PAIRS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = [evaluate(one, [str(file)], model="judge") for one in (judge, far)]
    assert results[0].fingerprint != results[1].fingerprint
    rewards = [Rewards(x, RewardForm()).of(["q"] * 3, TEXTS[:3]) for x in (judge, far)]
    assert rewards[1] == pytest.approx(rewards[0], abs=1e-5)


def test_our_own_server_is_asked_for_both_orders_as_token_ids(judge):
    from server import serving

    from gram_jax.serve.admission import Limits

    with serving(Limits(), judge, token="s3cret") as address:
        far = RemoteScorer(address.url, judge.spec, judge.tokenizer, token="s3cret", batch_size=6)
        here, there = judge.score_many(PAIRS), far.score_many(PAIRS)
        assert [x.margin for x in there] == pytest.approx([x.margin for x in here], abs=1e-4)
        other = make_spec(judge.tokenizer, max_length=150)
        with pytest.raises(RemoteError, match=other.hash[:12]):
            RemoteScorer(address.url, other, judge.tokenizer, token="s3cret")
        with pytest.raises(RemoteError, match="status 401"):
            RemoteScorer(address.url, judge.spec, judge.tokenizer, token="wrong").score(*PAIRS[0])


def test_a_server_of_a_judge_that_reads_each_response_alone_is_refused():
    from server import serving

    from gram_jax.serve.admission import Limits

    scalar = FakeJudge()
    scalar.reads_comparisons = False
    with serving(Limits(), scalar) as address, pytest.raises(RemoteError, match="reads responses"):
        RemoteScorer(address.url, scalar.spec, scalar.tokenizer)


def margins(body) -> dict:
    """Of each sequence: its number of tokens."""
    rows = [{"index": at, "probs": [len(x) / 2, -len(x) / 2]} for at, x in enumerate(body["input"])]
    return {"data": rows}


def scorer(url: str, **settings) -> RemoteScorer:
    tokenizer, spec = parts()
    return RemoteScorer(url, spec, tokenizer, protocol="vllm", model="m", **settings)


def test_a_busy_server_is_asked_again(monkeypatch):
    monkeypatch.setattr(remote, "RETRY_SECONDS", (0.01, 0.02))
    statuses = iter([503, 429, 504, *[200] * 100])

    def answer(path, body):
        status = next(statuses)
        return status, margins(body) if status == 200 else {}, {"retry-after": "0"}

    with answering(answer) as url:
        assert scorer(url).score("q", "a", "b").margin == 0.0
    with pytest.raises(RemoteError, match=r"no answer within 0\.1 s"):
        scorer(url, deadline=0.1).score("q", "a", "b")  # nobody listens any more


def test_a_deadline_ends_the_attempts(monkeypatch):
    monkeypatch.setattr(remote, "RETRY_SECONDS", (0.01, 0.02))
    with answering(lambda path, body: (503, {}, {"retry-after": "30"})) as url:
        started = time.monotonic()
        with pytest.raises(RemoteError, match="status 503"):
            scorer(url, deadline=0.3).score("q", "a", "b")
        assert time.monotonic() - started < 2


def test_after_ctrl_c_no_request_is_repeated(monkeypatch):
    monkeypatch.setattr(remote, "RETRY_SECONDS", (300.0, 300.0))
    busy = threading.Event()

    def answer(path, body):
        if len(body["input"]) == 2:
            busy.wait(60)
            return 200, margins(body)
        busy.set()
        return 503, {}

    def interrupt(count: int) -> None:
        raise KeyboardInterrupt

    with answering(answer) as url:
        far, started = scorer(url, batch_size=2, concurrency=2), time.monotonic()
        (text,) = far.encoder().encode([("q", "a", "b")])
        with pytest.raises(KeyboardInterrupt):
            far.label_logit_diffs([text] * 3, paired=False, progress=interrupt)
        far.close()  # waits for its threads, as the interpreter does
        assert time.monotonic() - started < 200


def test_closing_ends_the_calls_of_other_threads(monkeypatch):
    monkeypatch.setattr(remote, "RETRY_SECONDS", (300.0, 300.0))
    asked = threading.Event()

    def answer(path, body):
        asked.set()
        return 503, {}

    with answering(answer) as url, ThreadPoolExecutor(1) as pool:
        far = scorer(url)
        call = pool.submit(far.score, "q", "a", "b")
        assert asked.wait(60)
        far.close()
        with pytest.raises(RemoteError, match="stopped"):
            call.result(60)


@pytest.mark.parametrize(
    "url", ["localhost:8000", "node-1", "http://node:80a", "http://node:99999", "http://", "ftp://node", ""]
)  # fmt: skip
def test_a_url_that_cannot_be_asked_is_an_error_at_once(url):
    with pytest.raises(JudgeError, match="http://node-1:8000"):
        scorer(url)


@pytest.mark.parametrize("token", ["", "two words", "line\n", "\u00e9"])
def test_a_token_that_cannot_be_sent_is_an_error_without_it(token):
    with pytest.raises(JudgeError, match="the token cannot be sent") as error:
        scorer("http://node-1:8000", token=token)
    assert not token or token not in str(error.value)


@pytest.mark.parametrize("found", [{"data": []}, {"detail": "x"}, {"data": 1}, [1], None, "ok"])
def test_a_server_that_answers_something_else_at_the_start_is_an_error(found):
    tokenizer, spec = parts()
    with answering(lambda path, body: (200, found)) as url:
        for settings in ({}, {"model": "m"}, {"protocol": "vllm"}):
            with pytest.raises(RemoteError, match="not of the protocol"):
                RemoteScorer(url, spec, tokenizer, **settings)


@pytest.mark.parametrize("protocol", ["vllm", "vllm_generative"])
def test_progress_is_in_pairs_in_every_protocol(protocol):
    def answer(path, body):
        rows = body.get("items") or margins(body)["data"]
        scored = [{"index": at, "score": 0.5} for at in range(len(rows))]
        return 200, {"data": scored if path == "/generative_scoring" else rows}

    tokenizer, spec = parts()
    done = []
    with answering(answer) as url:
        far = RemoteScorer(url, spec, tokenizer, protocol=protocol, model="m")
        found = list(far.stream([("q", "a", "b"), ("r", "a", "b")], progress=done.append))
    assert sum(done) == len(found) == 2


@pytest.mark.parametrize(
    ("found", "error"),
    [
        ((400, {"error": "bad"}), RemoteError),
        ((200, b"<html>"), RemoteError),
        ((200, {"data": []}), RemoteError),
        ((200, {"data": [{"index": 0, "probs": [1.0, 2.0, 3.0]}] * 2}), RemoteError),
        ((200, {"data": [{"index": at, "label": "B", "probs": [2.0, 1.0]} for at in (0, 1)]}), RemoteError),
        ((200, b'{"data": [{"index": 0, "probs": [NaN, 1]}, {"index": 1, "probs": [0, 1]}]}'), NonFiniteError),
        ((200, {"other": 1}), RemoteError),
    ],
)  # fmt: skip
def test_an_answer_of_another_form_is_an_error(found, error):
    with answering(lambda path, body: found) as url, pytest.raises(error):
        scorer(url).score("q", "a", "b")


def test_probabilities_of_an_older_server_become_log_odds():
    rows = [{"index": 0, "probs": [0.9, 0.1]}, {"index": 1, "probs": [0.5, 0.5]}]
    with answering(lambda path, body: (200, {"data": rows})) as url:
        found = scorer(url).score("q", "a", "b")
    assert found.margin == pytest.approx(np.log(9) / 2, rel=1e-5)


def test_a_shorter_context_than_the_budget_and_unknown_protocols_are_refused(judge):
    models = {"data": [{"id": "served", "max_model_len": 100}]}
    with answering(lambda path, body: (200, models)) as url:
        for protocol in PROTOCOLS:
            with pytest.raises(RemoteError, match="161"):
                RemoteScorer(url, judge.spec, judge.tokenizer, protocol=protocol)
        with pytest.raises(JudgeError, match="protocol"):
            RemoteScorer(url, judge.spec, judge.tokenizer, protocol="tgi")  # type: ignore[arg-type]
    with pytest.raises(JudgeError, match=r"no judge\.json"):
        RemoteScorer.load("tiny-random", url)
