"""OpenAI's chat completions, for tools without another protocol: the verdict on a prompt that the client rendered."""

import time
import uuid
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, Field

from gram_jax.errors import JudgeError
from gram_jax.judge.chat import dialogue_frames
from gram_jax.judge.encode import Encoded
from gram_jax.judge.messages import Prompt
from gram_jax.judge.tokens import text_encoder
from gram_jax.scoring.request_batcher import BatchedScorer
from gram_jax.serve.body import JsonRoute
from gram_jax.serve.errors import unusable
from gram_jax.serve.fields import Messages, Text
from gram_jax.serve.service import Client, TheService

router = APIRouter(route_class=JsonRoute)


class ChatRequest(BaseModel):
    """messages: the comparison in one order, as the client's template renders it.

    Definitions of tools and an answer that is begun are refused; other settings have no effect.
    """

    model: Text | None = None
    messages: Messages
    logprobs: bool | None = False
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = 0
    n: Literal[1] | None = 1
    stream: Literal[False] | None = False
    tools: Annotated[list[Any] | None, Field(max_length=0)] = None
    continue_final_message: Literal[False] | None = False
    add_generation_prompt: Literal[True] | None = True


class ChatMessage(BaseModel):
    """content: the verdict, one of the judge's two labels."""

    role: str = "assistant"
    content: str


class ChatChoice(BaseModel):
    """logprobs: of the verdict among the two labels, in OpenAI's form."""

    index: int = 0
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: str = "stop"


class ChatUsage(BaseModel):
    """Numbers of tokens."""

    prompt_tokens: int
    completion_tokens: int = 1
    total_tokens: int


class ChatResponse(BaseModel):
    """One choice."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: ChatUsage


@router.post("/v1/chat/completions")
def chat_completions(request: ChatRequest, service: TheService, client: Client) -> ChatResponse:
    """The more likely label as the assistant's message. One order is read, and no template of the judge is added."""
    tokens = _encode(service.read_chat(request.messages), client)
    text = Encoded(tokens, np.zeros(len(tokens), np.float32))
    (diff,) = service.rendered_diffs(client, [text])
    # log softmax over the two labels
    logprobs = {
        label: -float(np.logaddexp(0, -margin))
        for label, margin in zip(service.scorer.spec.labels, (diff, -diff), strict=True)
    }
    ordered = sorted(logprobs.items(), key=lambda one: -one[1])
    shown = [
        {"token": label, "logprob": value, "bytes": list(label.encode())}
        for label, value in ordered
    ]
    content = [{**shown[0], "top_logprobs": shown[: request.top_logprobs or 0]}]
    return ChatResponse(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=request.model or service.name,
        choices=[
            ChatChoice(
                message=ChatMessage(content=ordered[0][0].strip()),
                logprobs={"content": content} if request.logprobs else None,
            )
        ],
        usage=ChatUsage(prompt_tokens=len(tokens), total_tokens=len(tokens) + 1),
    )


def _encode(turns: Prompt, client: BatchedScorer) -> np.ndarray:
    spec, roles = client.spec, tuple(turn.role for turn in turns)
    try:
        frames = dialogue_frames(
            client.tokenizer, roles, system=spec.system, thinking=spec.thinking
        )
    except JudgeError:
        raise unusable(
            f"messages: the judge's chat template does not take the roles {', '.join(roles)}"
        ) from None
    encoder = text_encoder(client.tokenizer)
    tokens = encoder.dialogue(frames, [turn.content for turn in turns])
    if len(tokens) > spec.max_length:
        raise unusable(
            f"messages: expected at most {spec.max_length} tokens, found {len(tokens)}. /v1/score_pair "
            "truncates long responses"
        )
    return tokens
