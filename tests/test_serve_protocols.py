"""The server's protocols: its own, and those of OpenRLHF, LLaMA-Factory, group judges and vLLM."""

import json
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest
from fake_judge import parts
from scipy.special import expit
from server import CHAT, HISTORY, PAIR, client_for

from gram_jax.errors import DataError, NonFiniteError
from gram_jax.judge.encode import encode_items
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
    assert client.post("/v1/score_pair", json={"pairs": []}).json() == {
        "verdicts": [],
        "errors": [],
    }


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
    logs = {"gram_judge": []}
    assert empty.json() == {"rewards": [], "scores": [], "extra_logs": logs, "errors": []}


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


def test_the_sample_of_slime_is_answered_with_its_reward(client):
    sample = {"prompt": "q", "response": "aaa<|im_end|>", "label": "a"}
    assert client.post("/get_reward", json=sample).json() == pytest.approx(expit(1))
    turns = sample | {"prompt": [{"role": "user", "content": "q"}], "label": {"ground_truth": "aa"}}
    assert client.post("/get_reward", json=turns).json() == pytest.approx(expit(0.5))
    wrong = client.post("/get_reward", json=sample | {"label": {"unknown": "secret"}})
    assert wrong.status_code == 422 and "secret" not in wrong.text


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (4, expit(1)),
        (0, expit(1)),
        (2.5, 0.5),
        ({"answer": "4", "style": "rule"}, expit(1)),
        ({"style": "rule", "ground_truth": {"target": "aa"}}, expit(0.5)),
        (["a", "aaa"], (expit(1) + 0.5) / 2),
    ],
)
def test_labels_are_numbers_objects_and_lists_too(client, label, expected):
    asked = {"query": ["p aaa"], "prompts": ["p "], "labels": [label]}
    assert client.post("/get_reward", json=asked).json()["rewards"] == pytest.approx([expected])


def test_large_batches_are_split_inside(client, judge):
    queries = [CHAT + "a" * (1 + at % 3) for at in range(3000)]
    asked = {"query": queries, "prompts": [CHAT] * 3000, "labels": ["aa"] * 3000}
    found = client.post("/get_reward", json=asked).json()
    assert found["rewards"] == pytest.approx([expit(-0.5), 0.5, expit(0.5)] * 1000)
    group = client.post("/get_reward", json={"query": queries[:100], "prompts": [CHAT] * 100})
    assert group.status_code == 422  # each with all others: 64


def test_a_wrong_item_fails_alone(client):
    query = [CHAT + "aaa", 5, "no conversation", CHAT + "a"]
    found = client.post("/get_reward", json={"query": query, "labels": ["a", "a", "a", "a"]}).json()
    rewards = [pytest.approx(expit(1)), None, None, 0.5]
    assert found["rewards"] == found["scores"] == found["extra_logs"]["gram_judge"] == rewards
    assert [(one["index"], one["code"]) for one in found["errors"]] == [
        (1, "invalid"),
        (2, "unusable"),
    ]
    assert "no conversation" not in str(found["errors"])
    pair = {"prompt": "q", "first": "aaa", "second": "a"}
    pairs = client.post("/v1/score_pair", json={"pairs": [pair, {"prompt": "q"}, pair]}).json()
    assert pairs["verdicts"][1] is None and pairs["verdicts"][0] == pairs["verdicts"][2]
    assert pairs["errors"][0]["message"].startswith("body.pairs.1.first: ")
    classes = client.post("/classify", json={"input": [{"prompt": 3}, pair]}).json()
    assert [one["index"] for one in classes["data"]] == [1] and classes["errors"][0]["index"] == 0
    texts = client.post("/score", json={"text_1": "q", "text_2": ["aaa", None, "a"]}).json()
    assert [one["index"] for one in texts["data"]] == [0, 2]
    talk = [CHAT + "aaa", "x", CHAT + "a"]
    evaluated = client.post("/v1/score/evaluation", json={"messages": talk}).json()
    assert evaluated["scores"] == [pytest.approx(expit(1)), None, pytest.approx(expit(-1))]


def test_a_pair_without_a_finite_score_fails_alone(judge):
    read = judge.read

    def without_number(tokens):
        if "nan" in (texts := read(tokens)):
            raise NonFiniteError("secret")
        return texts

    judge.read = without_number
    pairs = [{"prompt": "q", "first": text, "second": "b"} for text in ("a", "nan", "ccc")]
    with client_for(judge) as client:
        found = client.post("/v1/score_pair", json={"pairs": pairs}).json()
        assert [x and x["margin"] for x in found["verdicts"]] == [0.0, None, 1.0]
        assert found["errors"][0]["code"] == "not_finite" and "secret" not in str(found)
        alone = client.post("/v1/score_pair", json=pairs[1])
        assert alone.status_code == 500 and alone.json()["error"]["code"] == "not_finite"
        group = {"prompt": "q", "responses": ["a", "nan", "ccc"]}
        assert client.post("/v1/rank", json=group).status_code == 500


def test_messages_are_read_as_everywhere(client):
    parts = [{"type": "text", "text": "q"}]
    call = {"function": {"name": "weather", "arguments": "{}"}}
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "12 C"},
    ]
    pair = {"prompt": turns, "first": "aaa", "second": "a"}
    assert client.post("/v1/score_pair", json=pair).json()["first"] == pytest.approx(expit(1))
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": "secret"}]}]
    refused = client.post("/v1/score_pair", json=pair | {"prompt": image})
    assert refused.status_code == 422 and "image" in refused.text and "secret" not in refused.text


def test_chat_completions_give_the_verdict_on_a_rendered_comparison(judge):
    shown = "[Response A]\naaa\n\n[Response B]\na\n\n[Question]\nWhich?"
    asked = {"model": "m", "messages": [{"role": "user", "content": shown}], "max_tokens": 1}
    with client_for(judge) as client:
        found = client.post("/v1/chat/completions", json=asked).json()
        assert found["choices"][0]["message"] == {"role": "assistant", "content": "A"}
        assert found["choices"][0]["logprobs"] is None and found["model"] == "m"
        more = {"logprobs": True, "top_logprobs": 5, "temperature": 0.0}
        found = client.post("/v1/chat/completions", json=asked | more).json()
        (token,) = found["choices"][0]["logprobs"]["content"]
        logprobs = {one["token"]: one["logprob"] for one in token["top_logprobs"]}
        assert logprobs == pytest.approx({"A": np.log(expit(1)), "B": np.log(expit(-1))})
        unset = dict.fromkeys(("top_logprobs", "n", "stream", "tools", "logprobs"))
        assert client.post("/v1/chat/completions", json=asked | unset).status_code == 200
        refused = {"stream": True, "tools": [{"type": "function"}], "continue_final_message": True}
        for name, value in refused.items():
            wrong = client.post("/v1/chat/completions", json=asked | {name: value})
            assert wrong.status_code == 422 and name in wrong.text


def test_null_is_the_same_as_an_option_that_is_left_out(client):
    for path, body, unset in (
        ("/rerank", {"query": "q", "documents": ["a", "aaa"]}, ("model", "top_n")),
        ("/score", {"text_1": "q", "text_2": ["a", "aaa"]}, ("model",)),
        ("/classify", {"input": [{"prompt": "q", "first": "a", "second": "b"}]}, ("use_activation",)),
        ("/get_reward", {"query": [CHAT + "a", CHAT + "aaa"]}, ("prompts", "labels")),
    ):  # fmt: skip
        found = [
            client.post(path, json=json_body).json()
            for json_body in (body, body | dict.fromkeys(unset))
        ]
        for one in found:
            one.pop("id", None), one.pop("created", None)
        assert found[0] == found[1]


def test_rerank(client):
    asked = {"model": "m", "query": "q", "documents": ["a", {"text": "aaa"}, 3, "aa"], "top_n": 2}
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        found = client.post(path, json=asked).json()
        assert [one["index"] for one in found["results"]] == [1, 3]
        assert found["results"][0]["document"] == {"text": "aaa"}
        assert found["errors"][0]["index"] == 2


@pytest.mark.parametrize(
    "names", [("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]
)
def test_the_other_names_of_vllm_scores(client, names):
    one = client.post("/score", json={"text_1": "q", "text_2": ["aaa", "a"]}).json()["data"]
    asked = dict(zip(names, ("q", ["aaa", "a"]), strict=True))
    assert client.post("/v1/score", json=asked).json()["data"] == one


def test_token_ids_are_classified_in_the_order_given(judge):
    texts = encode_items(
        judge.tokenizer, judge.spec.comparison, [("q", "aaa", "a"), ("q", "a", "aaa")], 1000
    )
    ids = [text.tokens.tolist() for text in texts]
    with client_for(judge) as client:
        found = client.post("/classify", json={"input": ids}).json()
        assert [one["label"] for one in found["data"]] == ["A", "B"]
        assert found["data"][0]["probs"] == pytest.approx([expit(1), expit(-1)])
        raw = client.post("/classify", json={"input": ids[0], "use_activation": False}).json()
        assert raw["data"][0]["probs"] == [0.5, -0.5]
        wrong = client.post("/classify", json={"input": [ids[0], [10**7], []]}).json()
        assert [one["index"] for one in wrong["data"]] == [0]
        assert [one["index"] for one in wrong["errors"]] == [1, 2]


def test_rendered_comparisons_are_refused_if_the_judge_reads_each_response_alone(judge):
    judge.reads_comparisons = False
    ids = parts()[0]("Which response is better?").input_ids
    turns = [{"role": "user", "content": "Which response is better?"}]
    with client_for(judge) as client:
        for path, body in (
            ("/classify", {"input": ids}),
            ("/classify", {"input": [ids, ids]}),
            ("/v1/chat/completions", {"messages": turns}),
        ):
            wrong = client.post(path, json=body)
            assert wrong.status_code == 422 and wrong.json()["error"]["code"] == "unusable"
            assert "/v1/score_pair" in wrong.text and judge.calls == 0
        assert client.post("/classify", json={"input": PAIR}).status_code == 200
        assert client.get("/readyz").json()["reads"] == "responses"
    judge.reads_comparisons = True
    with client_for(judge) as client:
        assert client.get("/readyz").json()["reads"] == "comparisons"


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
