"""One comparison in every protocol of the server is shown to the judge as the same tokens, and has the same score."""

import os
import random
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
from fake_judge import FakeJudge
from scipy.special import expit
from server import client_for
from test_forms import Preference, messages, preference

from gram_jax.judge.encode import encode_items

REQUESTS = int(os.environ.get("REQUESTS", "2"))


class Format(NamedTuple):
    """A chat format: a turn, the beginning of the assistant's turn, its end, and other names of roles."""

    turn: str
    start: str
    end: str
    names: Mapping[str, str] = MappingProxyType({})
    others: Mapping[str, str] = MappingProxyType(
        {}
    )  # turns of roles that are written in another way

    def render(self, turns: Any) -> str:
        shown = (
            self.others.get(turn.role, self.turn).format(
                role=self.names.get(turn.role, turn.role), content=turn.content
            )
            for turn in turns
        )
        return "".join(shown) + self.start


FORMATS = {
    "chatml": Format("<|im_start|>{role}\n{content}<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>"),
    "llama3": Format(
        "<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>",
    ),
    "gemma": Format(
        "<start_of_turn>{role}\n{content}<end_of_turn>\n", "<start_of_turn>model\n", "<end_of_turn>",
        {"assistant": "model"},
    ),
    "zephyr": Format("<|{role}|>\n{content}</s>\n", "<|assistant|>\n", "</s>"),
    "phi": Format("<|{role}|>\n{content}<|end|>\n", "<|assistant|>\n", "<|end|>"),
    "gpt-oss": Format("<|start|>{role}<|message|>{content}<|end|>", "<|start|>assistant<|message|>", "<|return|>"),
    "command-r": Format(
        "<|START_OF_TURN_TOKEN|><|{role}_TOKEN|>{content}<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
        {"system": "SYSTEM", "user": "USER", "assistant": "CHATBOT"},
    ),
    "mistral": Format(
        "[INST] {content} [/INST]", "", "</s>",
        others={"assistant": " {content}</s>", "system": "[SYSTEM_PROMPT]{content}[/SYSTEM_PROMPT]"},
    ),
    "deepseek": Format(
        "<｜User｜>{content}", "<｜Assistant｜>", "<｜end▁of▁sentence｜>",
        others={"assistant": "<｜Assistant｜>{content}<｜end▁of▁sentence｜>", "system": "{content}"},
    ),
}  # fmt: skip


class Judge(FakeJudge):
    """seen: the tokens that it was shown."""

    def __init__(self):
        super().__init__()
        self.seen: set[bytes] = set()

    def label_logit_diffs(self, sequences, **options):
        self.seen |= {text.tokens.tobytes() for text in sequences}
        return super().label_logit_diffs(sequences, **options)

    def diff(self, first: str, second: str) -> float:
        return (len(first) - len(second)) / 40


def wanted(judge: Judge, pair: Preference) -> set[bytes]:
    both = ((pair.better, pair.worse), (pair.worse, pair.better))
    orders = [(pair.prompt, *texts) for texts in both]
    found = encode_items(judge.tokenizer, judge.spec.comparison, orders, judge.spec.max_length)
    return {text.tokens.tobytes() for text in found}


def requests(pair: Preference, draw: random.Random) -> Iterator[tuple[str, str, dict, Any]]:
    """(name, path, body, the probabilities of both responses in the answer) in every protocol."""
    both, turns = [pair.better, pair.worse], messages(pair.prompt)
    named = dict(zip(("first", "second"), both, strict=True))
    prompts: dict[str, Any] = {"messages": turns, "parts": messages(pair.prompt, parts=True)}
    if len(pair.prompt) == 1:
        prompts["text"] = pair.question
    for name, prompt in prompts.items():
        body = {"prompt": prompt} | named
        yield f"pair, {name}", "/v1/score_pair", body, lambda x: [x["first"], x["second"]]
        yield (
            f"pairs, {name}",
            "/v1/score_pair",
            {"pairs": [body]},
            lambda x: [x["verdicts"][0][k] for k in named],
        )
        yield f"classify, {name}", "/classify", {"input": body}, lambda x: x["data"][0]["probs"]
        sample = {"prompt": prompt, "response": both[0], "label": both[1]}
        yield f"slime, {name}", "/get_reward", sample, lambda x: [x, 1 - x]
    group = {"conversation_history": turns, "responses": both}
    yield "group", "/compare", group, lambda x: x["rewards"]
    for name, form in FORMATS.items():
        if name == "gemma" and pair.system:
            continue
        rendered = form.render(pair.prompt)
        queries = [rendered + text + form.end for text in both]
        padded = ["<pad><pad><s>" + query + "<pad>" for query in queries]
        cut = draw.randint(0, len(rendered) // 2)
        # as trainers send them: without the prompts, with them, padded, and with the beginning of the prompt cut off
        for kind, body in {
            "bare": {"query": queries},
            "with prompts": {"query": queries, "prompts": [rendered] * 2},
            "padded": {"query": padded, "prompts": [rendered] * 2},
            "cut": {"query": [query[cut:] for query in queries], "prompts": [rendered] * 2},
        }.items():
            yield f"{name}, {kind}", "/get_reward", body, lambda x: x["rewards"]
        yield (
            f"{name}, evaluation",
            "/v1/score/evaluation",
            {"messages": queries},
            lambda x: x["scores"],
        )
        asked = {"text_1": rendered, "text_2": both}
        yield f"{name}, score", "/score", asked, lambda x: [one["score"] for one in x["data"]]
        asked = {"query": rendered, "documents": [x + form.end for x in both]}
        yield (
            f"{name}, rerank", "/rerank", asked,
            lambda x: [one["relevance_score"] for one in sorted(x["results"], key=lambda one: one["index"])],
        )  # fmt: skip


def test_a_comparison_is_the_same_in_every_protocol():
    judge = Judge()
    refused = compared = 0
    with client_for(judge) as client:
        for seed in range(REQUESTS):
            pair = preference(seed)
            tokens, margin = wanted(judge, pair), judge.diff(pair.better, pair.worse)
            for name, path, body, read in requests(pair, random.Random(seed)):
                judge.seen.clear()
                answer = client.post(path, json=body)
                if answer.status_code == 422 and name.endswith("cut"):
                    refused += 1
                    assert not judge.seen
                    continue
                assert answer.status_code == 200, (name, seed, answer.text)
                assert judge.seen == tokens, (name, seed)
                assert read(answer.json()) == pytest.approx(
                    [expit(margin), expit(-margin)], abs=1e-6
                ), (name, seed)
                compared += 1
    assert compared > 10 * refused
