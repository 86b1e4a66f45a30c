"""Endpoints in the protocols of others: OpenRLHF, LLaMA-Factory, vLLM, and group judges."""

import time
import uuid
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from fastapi import Depends, FastAPI
from starlette.exceptions import HTTPException

from gram_jax.data.record_types import Prompt
from gram_jax.errors import GramError
from gram_jax.rl.rewards import RewardForm, Rewards
from gram_jax.rl.texts import completion_of, conversation_of, prompt_of
from gram_jax.serve.batcher import Client
from gram_jax.serve.forms import (
    Classified,
    Classify,
    Compare,
    Compared,
    GetReward,
    GotReward,
    ScoredEvaluation,
    ScoreEvaluation,
)
from gram_jax.serve.service import Service, client_of, scores_of

CONVERSATION = "expected a conversation in the form of ChatML, Llama 3 or Gemma that ends with a response to a user"


def add_rewards(app: FastAPI, service: Service) -> None:
    """/get_reward and /v1/score/evaluation."""
    asking = Depends(client_of(service))

    @app.post("/get_reward")
    def get_reward(asked: GetReward, client: Client = asking) -> GotReward:
        """OpenRLHF's remote reward. A label is a reference; without labels the form of the server holds."""
        queries, labels = asked.query, asked.labels or []
        prompts, responses = [], []
        for at, query in enumerate(queries):
            prompt = asked.prompts[at] if at < len(asked.prompts) else ""
            if prompt and query.startswith(prompt):
                prompts.append(prompt_of(prompt))
                responses.append(completion_of(query[len(prompt) :]))
            else:
                prompt_, response = _conversation(query, f"query.{at}")
                prompts.append(prompt_)
                responses.append(response)
        references = [label or "" for label in labels]
        given = len(references) == len(queries) and all(references)
        found = _rewards(service.form, client, prompts, responses, references if given else None)
        return GotReward(rewards=found, scores=found, extra_logs={"gram_judge": found})

    @app.post("/v1/score/evaluation")
    def score_evaluation(asked: ScoreEvaluation, client: Client = asking) -> ScoredEvaluation:
        """LLaMA-Factory's reward server: rendered conversations, each with its response at the end."""
        pairs = [_conversation(text, f"messages.{at}") for at, text in enumerate(asked.messages)]
        prompts, responses = [p for p, _ in pairs], [r for _, r in pairs]
        found = _rewards(service.form, client, prompts, responses, None)
        return ScoredEvaluation(
            id=f"scoreval-{uuid.uuid4().hex}", model=asked.model or service.name, scores=found
        )


def add_verdicts(app: FastAPI, service: Service) -> None:
    """/compare and /classify."""
    asking = Depends(client_of(service))

    @app.post("/compare")
    def compare(asked: Compare, client: Client = asking) -> Compared:
        """A group judge: all responses of a prompt, or one that waits for the others of its group."""
        prompt = prompt_of([turn.model_dump() for turn in asked.conversation_history])
        size = asked.group_size or 1
        if len(asked.responses) > 1 or size == 1:
            rewards, results = _compared(client, prompt, asked.responses)
            return Compared(rewards=rewards, comparison_results=results)
        reward, among = service.cohorts.reward(
            prompt,
            asked.responses[0],
            size,
            lambda texts: _compared(client, prompt, texts)[0],
        )
        return Compared(rewards=[reward], comparison_results=[{"group": among}])

    @app.post("/classify")
    def classify(asked: Classify, client: Client = asking) -> Classified:
        """vLLM's form: the verdict on each pair as a class with its probabilities."""
        pairs = asked.input if isinstance(asked.input, list) else [asked.input]
        labels = [label.strip() for label in service.scorer.spec.labels]
        data = [
            {
                "index": at,
                "label": labels[0] if score.first >= score.second else labels[1],
                "probs": [score.first, score.second],
                "num_classes": 2,
            }
            for at, score in enumerate(scores_of(pairs, client))
        ]
        return Classified(
            id=f"classify-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=asked.model or service.name,
            data=data,
        )


def _conversation(text: str, where: str) -> tuple[Prompt, str]:
    """The prompt and the response of a rendered conversation; `where` it stood is all that an error repeats."""
    try:
        return conversation_of(text)
    except GramError as error:
        raise HTTPException(422, f"{where}: {CONVERSATION}") from error


def _rewards(
    form: RewardForm,
    client: Client,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    references: Sequence[str] | None,
) -> list[float]:
    if references is not None:
        form = RewardForm("reference", form.as_, (), form.length_penalty)
    rewards = Rewards(client, form, warn=False)
    return rewards.of(prompts, responses, references)


def _compared(
    client: Client, prompt: Prompt, responses: Sequence[str]
) -> tuple[list[float], list[dict[str, Any]]]:
    """Win rates, and P(i better than j) of every pair."""
    pairs = list(combinations(range(len(responses)), 2))
    different = [(i, j) for i, j in pairs if responses[i] != responses[j]]
    scores = client.score_many([(prompt, responses[i], responses[j]) for i, j in different])
    won = {pair: score.first for pair, score in zip(different, scores, strict=True)}
    totals = [0.0] * len(responses)
    results = []
    for i, j in pairs:
        first = won.get((i, j), 0.5)
        totals[i] += first
        totals[j] += 1 - first
        results.append({"first": i, "second": j, "probability": first})
    others = max(1, len(responses) - 1)
    rewards = [total / others for total in totals] if len(responses) > 1 else [0.5]
    return rewards, results
