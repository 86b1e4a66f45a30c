"""The server's protocols: its own, and those of OpenRLHF, LLaMA-Factory, group judges and vLLM."""

import json
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest
from scipy.special import expit
from server import CHAT, HISTORY, client_for

from gram_jax.errors import DataError
from gram_jax.rewards.forms import RewardForm
from gram_jax.scoring.scorer import Scorer
from gram_jax.sharding import make_placement


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


def test_openrlhf_with_and_without_references_and_empty(client):
    asked = {"query": [CHAT + "aaa<|im_end|>", CHAT + "a<|im_end|>"], "prompts": [CHAT] * 2}
    plain = client.post("/get_reward", json=asked).json()
    assert plain["rewards"] == pytest.approx([expit(1), expit(-1)]) == plain["scores"]
    bare = client.post("/get_reward", json={"query": asked["query"]}).json()  # rendered prompts
    assert bare["rewards"] == plain["rewards"]
    given = client.post("/get_reward", json=asked | {"labels": ["a", "a"]}).json()
    assert given["rewards"] == pytest.approx([expit(1), 0.5])
    assert given["extra_logs"] == {"gram_judge": given["rewards"]}
    empty = client.post("/get_reward", json={"query": [], "prompts": [], "labels": []})
    assert empty.json() == {"rewards": [], "scores": [], "extra_logs": {"gram_judge": []}}


@pytest.mark.parametrize(
    ("wrong", "name"),
    [({"labels": ["a", ""]}, "labels"), ({"labels": ["a", None]}, "labels"), ({"labels": ["a"]}, "labels"),
     ({"prompts": ["p "]}, "prompts")],
)  # fmt: skip
def test_references_or_prompts_for_some_are_refused_and_never_ignored(client, wrong, name):
    asked = {"query": ["p aaa", "p a"], "prompts": ["p ", "p "]}
    found = client.post("/get_reward", json=asked | wrong)
    assert found.status_code == 422
    assert f"{name}: expected one for each of 2 responses, or none, found 1" in found.text
    none = client.post("/get_reward", json=asked | {"labels": ["", None]})
    assert none.json()["rewards"] == pytest.approx([expit(1), expit(-1)])


def test_scores_of_openrlhf_lie_between_0_and_1_whatever_the_rewards(judge):
    asked = {"query": ["p aaa"], "prompts": ["p "], "labels": ["a"]}
    with client_for(judge, form=RewardForm(scale="log_odds")) as client:
        found = client.post("/get_reward", json=asked).json()
    assert found["rewards"] == [1.0] and found["scores"] == pytest.approx([expit(1)])


def test_shared_references_give_a_single_response_a_reward(judge):
    form = RewardForm("reference", references=("a", "aaaaa"))
    with client_for(judge, form=form) as client:
        found = client.post("/get_reward", json={"query": ["p aaaaa"], "prompts": ["p "]}).json()
        assert found["rewards"] == pytest.approx([(expit(2) + 0.5) / 2])
        assert "gram_uncompared_total 0.0" in client.get("/metrics").text


def test_llama_factory(client):
    asked = {"model": "m", "messages": [CHAT + "aaa<|im_end|>", CHAT + "a"], "max_length": 100}
    found = client.post("/v1/score/evaluation", json=asked).json()
    assert found["object"] == "score.evaluation" and found["model"] == "m"
    assert found["scores"] == pytest.approx([expit(1), expit(-1)])
    wrong = client.post("/v1/score/evaluation", json={"messages": ["no conversation"]})
    assert wrong.status_code == 422 and "no conversation" not in wrong.text


def test_responses_without_a_label_are_compared_with_those_of_a_policy(judge):
    asked = []

    def write(prompts, wait):
        asked.append([prompt[-1].content.strip() for prompt in prompts])
        if asked[-1] == ["late"]:
            raise TimeoutError
        if asked[-1] == ["long"]:
            raise DataError("a prompt has 9 tokens")
        return ["a"] * len(prompts)

    form = RewardForm("reference")
    with client_for(judge, form=form, write=write, warm_up=True) as client:

        def rewards(labels: list[str] | None, *queries: str, prompt: str = CHAT):
            body = {"query": queries, "prompts": [prompt] * len(queries), "labels": labels}
            return client.post("/get_reward", json=body)

        talk = [CHAT + "aaa<|im_end|>", CHAT + "a"]
        found = client.post("/v1/score/evaluation", json={"messages": talk}).json()
        assert found["scores"] == pytest.approx([expit(1), 0.5])
        for labels, expected in (
            (None, [expit(1), 0.5]),
            (["aa", "a"], [expit(0.5), 0.5]),
            (["aa", ""], [expit(0.5), 0.5]),
        ):
            assert rewards(labels, *talk).json()["rewards"] == pytest.approx(expected)
        for text, status in (("late", 504), ("long", 422)):
            failed = rewards(None, f"{text} a", prompt=f"{text} ")
            assert failed.status_code == status and "9 tokens" not in failed.text
        assert "--max-new-tokens" in failed.json()["error"]["message"]
    # The first one when the server became ready.
    assert asked == [["Hello."], ["q"], ["q"], ["q"], ["late"], ["long"]]
    with pytest.raises(DataError, match="leave out one of the two"):
        client_for(judge, form=RewardForm("reference", references=("a",)), write=write)


def test_the_group_judge_at_once_and_one_by_one(client):
    texts = ["aaa", "aa", "aa"]
    whole = client.post("/compare", json=HISTORY | {"responses": texts}).json()
    assert whole["rewards"][1] == pytest.approx((expit(-0.5) + 0.5) / 2)
    assert len(whole["comparison_results"]) == 3

    def send(text: str) -> float:
        body = HISTORY | {"responses": [text], "group_size": 3}
        return client.post("/compare", json=body).json()["rewards"][0]

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(send, texts)) == pytest.approx(whole["rewards"])
    alone = client.post("/compare", json=HISTORY | {"responses": ["a"], "group_size": 2}).json()
    assert alone == {"rewards": [0.5], "comparison_results": [{"group": 1}]}


def test_classify(client):
    pair = {"prompt": "q", "first": "a", "second": "aaa"}
    found = client.post("/classify", json={"input": [pair]}).json()
    assert found["data"][0]["label"] == "B" and found["data"][0]["num_classes"] == 2
    assert found["data"][0]["probs"] == pytest.approx([expit(-1), expit(1)])


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


def test_a_response_compared_with_no_other_is_counted_and_logged_once(client, caplog):
    alone = {"query": ["p a"], "prompts": ["p "]}
    for _ in range(3):
        assert client.post("/get_reward", json=alone).json()["rewards"] == [0.5]
    client.post("/get_reward", json={"query": ["p a", "p aa"], "prompts": ["p ", "p "]})
    client.post("/compare", json=HISTORY | {"responses": ["a"]})
    assert "gram_uncompared_total 4.0" in client.get("/metrics").text
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


def test_the_server_returns_what_the_scorer_returns():
    placement = make_placement({}, devices=jax.devices()[:1])
    with pytest.warns(UserWarning, match=r"no judge.json"):
        judge = Scorer.load("tiny-random", placement=placement, max_length=256)
    with client_for(judge, form=RewardForm(), warm_up=False) as client:
        asked = {"prompt": "Name a tree.", "first": "oak", "second": "a bay by the sea"}
        found = client.post("/v1/score_pair", json=asked).json()
    score = judge.score(*asked.values())
    assert found == json.loads(json.dumps(score._asdict()))
