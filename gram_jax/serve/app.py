"""The ASGI application: endpoints, limits, start and end."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer

from gram_jax.errors import JudgeError
from gram_jax.files import expand_user
from gram_jax.rewards.forms import RewardForm
from gram_jax.rewards.group_buffer import GroupBuffer
from gram_jax.rewards.messages import prompt_of
from gram_jax.scoring.request_batcher import MAX_QUEUE, RequestBatcher
from gram_jax.scoring.text_scorer import TextScorer
from gram_jax.serve import native, openai, operations, trainers, vllm
from gram_jax.serve.admission import Admission, Limits
from gram_jax.serve.errors import HANDLERS, RESPONSES
from gram_jax.serve.metrics import ServerMetrics
from gram_jax.serve.middleware import LIGHT_PATHS, RequestLog
from gram_jax.serve.service import Service, TimedReferenceWriter
from gram_jax.version import installed_version


def make_app(
    scorer: TextScorer,
    name: str,
    *,
    form: RewardForm | None = None,
    write: TimedReferenceWriter | None = None,
    limits: Limits | None = None,
    token: str | None = None,
    max_queue: int = MAX_QUEUE,
    group_wait: float = 2.0,
    warm_up: bool = True,
) -> FastAPI:
    """The ASGI application; `app.state.service` is its Service.

    name: of the model; clients do not see its folder. form: of rewards, if the protocol leaves it open. write: writes
    references, for a form without its own. max_queue: tokens that may wait. group_wait: seconds that a response sent
    alone waits for the others of its group.
    """
    form, limits = form or RewardForm(), limits or Limits()
    if write is not None:
        form.check_writer()
    batcher = RequestBatcher(scorer, max_queue=max_queue, client_share=limits.client_share)
    groups, metrics = GroupBuffer(group_wait), ServerMetrics(batcher)
    service = Service(
        scorer, public_name(name), form, batcher, groups, limits, metrics, write=write
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # A thread for every admitted request: the limits of the queue refuse, not the thread pool.
        anyio.to_thread.current_default_thread_limiter().total_tokens = service.limits.requests + 8
        if warm_up:
            await anyio.to_thread.run_sync(lambda: scorer.warm_up(rankings=True))
            if not await anyio.to_thread.run_sync(service.judges):
                raise JudgeError("the judge gave no score for a probe pair: the log has the reason")
            if write is not None:
                await anyio.to_thread.run_sync(write, [prompt_of("Hello.")], -1)
        service.ready = True
        yield
        # Every accepted request is answered by now, or its time is over.
        service.drain()
        await anyio.to_thread.run_sync(lambda: batcher.close(finish_queued=False))

    app = FastAPI(
        title="gram_jax",
        version=installed_version(),
        description="A generative reward model: which of two responses is better, and what follows from it.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the request's Host
        exception_handlers=HANDLERS,
    )
    app.state.service = service
    app.include_router(operations.router)
    # For the OpenAPI document: the middleware compares the token.
    bearer = [] if token is None else [Security(HTTPBearer(auto_error=False))]
    paths = set(LIGHT_PATHS)
    for protocol in (native, trainers, vllm, openai):
        app.include_router(protocol.router, responses=RESPONSES, dependencies=bearer)
        paths |= {getattr(route, "path", "") for route in protocol.router.routes}
    app.add_middleware(Admission, limits=service.limits, token=token, queue_full=batcher.full)
    app.add_middleware(RequestLog, metrics=metrics, paths=paths)
    return app


def public_name(name: str) -> str:
    """The name of a model for clients: the last component of a path on this machine, any other name unchanged.

    >>> public_name("/home/me/runs/judge@100"), public_name("Qwen/Qwen3-0.6B")
    ('judge@100', 'Qwen/Qwen3-0.6B')
    """
    path = expand_user(name)
    local = path.is_absolute() or Path(re.sub(r"@\d+$", "", str(path))).exists()
    return path.name if local else name
