"""The endpoints."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import combinations
from typing import Annotated, Any

import anyio.to_thread
from fastapi import Depends, FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException

import gram_jax
from gram_jax.data.record_types import Prompt
from gram_jax.errors import GramError
from gram_jax.rl.rewards import RewardForm, Rewards
from gram_jax.rl.texts import completion_of, conversation_of, prompt_of
from gram_jax.scoring.contests import Contest
from gram_jax.scoring.scorer import PairScore, Scorer
from gram_jax.serve.batcher import Batcher, BusyError, Client, ClosedError, LateError
from gram_jax.serve.cohort import Cohorts
from gram_jax.serve.forms import (
    MOST_CHARACTERS,
    Asked,
    Classified,
    Classify,
    Compare,
    Compared,
    Failure,
    GetReward,
    GotReward,
    Pair,
    Pairs,
    Ranked,
    ScoredEvaluation,
    ScoreEvaluation,
    ToRank,
    Verdict,
    Verdicts,
)
from gram_jax.serve.guard import Guard, Limits, Metrics

STOPPING = "the server is about to stop"
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure} for status in (400, 401, 408, 413, 422, 429, 500, 503, 504)
}


@dataclass
class Service:
    """What the endpoints share. ready: programs are compiled; draining: the end has begun, nobody should come."""

    scorer: Scorer
    name: str
    form: RewardForm
    batcher: Batcher
    cohorts: Cohorts
    limits: Limits
    metrics: Metrics = field(default_factory=Metrics)
    ready: bool = False
    draining: bool = False


def make_app(
    scorer: Scorer,
    name: str,
    *,
    form: RewardForm | None = None,
    limits: Limits | None = None,
    token: str | None = None,
    queue: int = 8192,
    together: int = 512,
    cohort_wait: float = 2.0,
    warm_up: bool = True,
) -> Guard:
    """The ASGI application; its Service is `app.state.service` of what it wraps.

    form: of rewards, where the protocol leaves it open. queue, together: sequences that may wait, and that are scored
    in one call. cohort_wait: seconds that a response sent alone waits for the others of its group.
    """
    service = Service(
        scorer,
        name,
        form or RewardForm(),
        Batcher(scorer, most=queue, together=together),
        Cohorts(cohort_wait),
        limits or Limits(),
    )

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        # Every request that is let in has a thread to wait in: the queue's limits refuse, not the pool's.
        anyio.to_thread.current_default_thread_limiter().total_tokens = service.limits.requests + 8
        if warm_up:
            await anyio.to_thread.run_sync(lambda: scorer.warm_up(rankings=True))
        service.ready = True
        yield
        service.draining = True
        await anyio.to_thread.run_sync(service.batcher.close)

    app = FastAPI(
        title="gram_jax",
        version=gram_jax.__version__,
        description="A generative reward model: which of two responses is better, and what follows from it.",
        lifespan=life,
        docs_url=None,
        redoc_url=None,
        responses=ERRORS,
    )
    app.state.service = service
    _add_handlers(app)
    _add_endpoints(app, service)
    known = frozenset(route.path for route in app.routes if hasattr(route, "path"))
    return Guard(app, service.limits, token, service.metrics, known, service.batcher.full)


def _add_handlers(app: FastAPI) -> None:
    """Every error as JSON with a code and a message, and with nothing of what was sent."""

    def answer(
        status: int, code: str, text: str, headers: dict[str, str] | None = None
    ) -> JSONResponse:
        return JSONResponse({"error": {"code": code, "message": text}}, status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        problems = [
            _place(one["type"], one["loc"]) + one["msg"]
            for one in error.errors()[:8]
            if one["type"] not in ("json_invalid", "value_error")
        ]
        return answer(422, "invalid", "; ".join(problems) or "the body is not valid JSON")

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        return answer(error.status_code, "http", str(error.detail), dict(error.headers or {}))

    @app.exception_handler(GramError)
    async def refused(request: Request, error: GramError) -> Response:
        # The message may quote a text; its first words name the fault.
        return answer(422, "unusable", f"{type(error).__name__}: the texts cannot be judged so")

    @app.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> Response:
        wait = {"retry-after": f"{error.retry_after:.0f}"}
        return answer(429, "busy", "the queue is full", wait)

    @app.exception_handler(ClosedError)
    async def closed(request: Request, error: ClosedError) -> Response:
        return answer(503, "stopping", STOPPING, {"retry-after": "5"})

    @app.exception_handler(LateError)
    async def late(request: Request, error: LateError) -> Response:
        return answer(504, "late", "the deadline passed before the request was scored")


def _add_endpoints(app: FastAPI, service: Service) -> None:
    def client(x_deadline_ms: Annotated[int | None, Header(ge=1)] = None) -> Client:
        """The batcher as this request may use it: until its deadline, given in milliseconds from now."""
        most = service.limits.deadline
        seconds = most if x_deadline_ms is None else min(most, x_deadline_ms / 1000)
        return Client(service.batcher, time.monotonic() + seconds)

    asking = Annotated[Client, Depends(client)]

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        return _page()

    @app.get("/healthz")
    def healthz(response: Response) -> dict[str, str]:
        """Whether the process works."""
        alive = service.batcher.alive or service.draining
        response.status_code = 200 if alive else 500
        return {"status": "ok" if alive else "dead"}

    @app.get("/readyz")
    def readyz(response: Response) -> dict[str, str]:
        """Whether requests should be sent here."""
        ready = service.ready and not service.draining
        response.status_code = 200 if ready else 503
        return {
            "status": "ready" if ready else "stopping" if service.draining else "starting",
            "model": service.name,
            "judge": service.scorer.spec.hash,
        }

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        shown, batcher = service.metrics, service.batcher
        shown.waiting.set(batcher.waiting)
        shown.scored.set(batcher.scored)
        shown.batches.set(batcher.batches)
        shown.speed.set(batcher.speed)
        return Response(generate_latest(shown.registry), media_type="text/plain; version=0.0.4")

    @app.post("/v1/score_pair")
    def score_pair(asked: Pair | Pairs, client: asking) -> Verdict | Verdicts:
        """Which of two responses is better, both orders read: one pair, or several under `pairs`."""
        pairs = asked.pairs if isinstance(asked, Pairs) else [asked]
        verdicts = [Verdict(**score._asdict()) for score in _scores(pairs, client)]
        return Verdicts(verdicts=verdicts) if isinstance(asked, Pairs) else verdicts[0]

    @app.post("/v1/rank")
    def rank(asked: ToRank, client: asking) -> Ranked:
        """Responses to a prompt from best to worst."""
        contest = Contest(asked.method, asked.orders)
        (found,) = client.rank_many([(_prompt(asked.prompt), asked.responses)], contest)
        return Ranked(
            ranking=found.order,
            scores=found.strengths.tolist(),
            ties=found.ties,
            cycles=found.cycles,
            comparisons=found.comparisons,
            shortened=found.shortened,
        )

    @app.post("/get_reward")
    def get_reward(asked: GetReward, client: asking) -> GotReward:
        """OpenRLHF's remote reward. A label is a reference; without labels the form of the server holds."""
        queries, labels = asked.query, asked.labels or []
        prompts, responses = [], []
        for at, query in enumerate(queries):
            prompt = asked.prompts[at] if at < len(asked.prompts) else ""
            if prompt and query.startswith(prompt):
                prompts.append(prompt_of(prompt))
                responses.append(completion_of(query[len(prompt) :]))
            else:
                prompt_, response = conversation_of(query)
                prompts.append(prompt_)
                responses.append(response)
        references = [label or "" for label in labels]
        given = len(references) == len(queries) and all(references)
        found = _rewards(service.form, client, prompts, responses, references if given else None)
        return GotReward(rewards=found, scores=found, extra_logs={"gram_judge": found})

    @app.post("/v1/score/evaluation")
    def score_evaluation(asked: ScoreEvaluation, client: asking) -> ScoredEvaluation:
        """LLaMA-Factory's reward server: rendered conversations, each with its response at the end."""
        pairs = [conversation_of(text) for text in asked.messages]
        prompts, responses = [p for p, _ in pairs], [r for _, r in pairs]
        found = _rewards(service.form, client, prompts, responses, None)
        return ScoredEvaluation(
            id=f"scoreval-{uuid.uuid4().hex}", model=asked.model or service.name, scores=found
        )

    @app.post("/compare")
    def compare(asked: Compare, client: asking) -> Compared:
        """A group judge: all responses of a prompt, or one that waits for the others of its group."""
        prompt = prompt_of([turn.model_dump() for turn in asked.conversation_history])
        if len(asked.responses) > 1 or (asked.group_size or 1) == 1:
            rewards, results = _compared(client, prompt, asked.responses)
            return Compared(rewards=rewards, comparison_results=results)
        reward, among = service.cohorts.reward(
            prompt,
            asked.responses[0],
            asked.group_size,
            lambda texts: _compared(client, prompt, texts)[0],
        )
        return Compared(rewards=[reward], comparison_results=[{"group": among}])

    @app.post("/classify")
    def classify(asked: Classify, client: asking) -> Classified:
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
            for at, score in enumerate(_scores(pairs, client))
        ]
        return Classified(
            id=f"classify-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=asked.model or service.name,
            data=data,
        )


def _place(kind: str, where: Sequence[str | int]) -> str:
    """Where in the body; the name of a key that is not ours is the client's text."""
    known = where[:-1] if kind == "extra_forbidden" else where
    return ".".join(map(str, known)) + ": "


def _prompt(asked: Asked) -> Prompt:
    return prompt_of(asked if isinstance(asked, str) else [turn.model_dump() for turn in asked])


def _scores(pairs: Sequence[Pair], client: Client) -> list[PairScore]:
    return client.score_many([(_prompt(pair.prompt), pair.first, pair.second) for pair in pairs])


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


@cache
def _page() -> str:
    text = files("gram_jax.serve").joinpath("assets/page.html").read_text(encoding="utf-8")
    return text.replace("MOST_CHARACTERS", str(MOST_CHARACTERS))
