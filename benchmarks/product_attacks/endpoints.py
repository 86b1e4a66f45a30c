"""A server whose judge gives no finite number for texts with one character, and finite ones for all others."""

import json
import os
import random
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from safetensors.numpy import load_file, save_file

from product_attacks.processes import Child
from product_attacks.trials import Trials
from product_attacks.world import World

BAD = "#"  # a token of its own
CLIENTS = 4  # honest requests at the same time
Body = dict[str, Any]


def talk(text: str) -> str:
    """A rendered conversation."""
    return f"<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>\n"


def chat(text: str) -> str:
    """A rendered comparison."""
    return f"[Response A]\n{text}\n\n[Response B]\nb\n\n[Question]\nWhich response answers the request better?"


# By path, the body of a request about a text.
BODIES: dict[str, list[Callable[[str], Body]]] = {
    "/v1/score_pair": [
        lambda x: {"prompt": "q", "first": x, "second": "b"},
        lambda x: {"pairs": [{"prompt": p, "first": x, "second": "b"} for p in "qrs"]},
    ],
    "/v1/rank": [
        lambda x: {"prompt": "q", "responses": ["a", x, "c"]},
        lambda x: {"prompt": "q", "responses": ["a", x, "c"], "method": "knockout"},
    ],
    "/get_reward": [
        lambda x: {"query": [talk("a"), talk(x)]},
        lambda x: {"query": [talk(x), talk(x)], "labels": ["a", "b"]},
        lambda x: {"prompt": "q", "response": x, "label": "a"},
    ],
    "/v1/score/evaluation": [lambda x: {"messages": [talk(x), talk("a")]}],
    "/compare": [
        lambda x: {
            "conversation_history": [{"role": "user", "content": "q"}],
            "responses": ["a", x],
        },
    ],
    "/classify": [lambda x: {"input": [{"prompt": "q", "first": x, "second": "b"}]}],
    "/rerank": [lambda x: {"query": "q", "documents": [x, "b"]}],
    "/score": [lambda x: {"text_1": "q", "text_2": [x, "b"]}],
    "/v1/chat/completions": [lambda x: {"messages": [{"role": "user", "content": chat(x)}]}],
}
ALIASES = {"/v1/rerank": "/rerank", "/v2/rerank": "/rerank", "/v1/score": "/score"}


def endpoints(world: World, trials: Trials, draw: random.Random, numbers: range) -> None:
    """Requests with and without a finite score at once: an error for these, the answer as before for the others."""
    judge = world.base / f"overflow-judge-{os.getpid()}"
    overflow_for_one_token(world, judge)
    requests = [(path, make) for path, makes in BODIES.items() for make in makes]
    requests += [(path, make) for path, of in ALIASES.items() for make in BODIES[of]]
    with served(world, judge) as client, ThreadPoolExecutor(1 + CLIENTS) as threads:
        ready = client.get("/readyz").status_code
        before = {at: answer(client, path, make("ash")) for at, (path, make) in enumerate(requests)}
        trials.judge("honest answers", None, None if ready == 200 else f"readyz {ready}", "equal")
        for at, (path, make) in ((at, one) for _ in numbers for at, one in enumerate(requests)):
            text = "".join(draw.choices("ab yz", k=draw.randrange(8))) + BAD
            asked = draw.choices(range(len(requests)), k=CLIENTS)
            honest = [
                threads.submit(answer, client, requests[i][0], requests[i][1]("ash")) for i in asked
            ]
            found = threads.submit(client.post, path, json=make(text)).result()
            problem = problem_of(found)
            for i, one in zip(asked, honest, strict=True):
                if one.result() != before[i]:
                    problem = problem or f"{requests[i][0]}: {one.result()}, before {before[i]}"
            where = f"{path}, request {at}, beside {[requests[i][0] for i in asked]}"
            trials.judge(where, None, problem, "refused")
        if (ready := client.get("/readyz").status_code) != 200:
            trials.judge("at the end", None, f"readyz {ready}", "")


def problem_of(found: httpx.Response) -> str | None:
    """Why the answer to a request without a finite score fails; None for an error of the request or of the item."""
    content = json.loads(found.text)
    codes = [content["error"]["code"]] if "error" in content else []
    if found.status_code == 200:
        codes = (
            [one["code"] for one in content.get("errors", [])] if isinstance(content, dict) else []
        )
    return (
        None if codes and set(codes) == {"not_finite"} and "NaN" not in found.text else found.text
    )


def answer(client: httpx.Client, path: str, body: Body) -> Any:
    """The status and the answer to an honest request, without its number and time; "error" if it has one."""
    found = client.post(path, json=body)
    content = found.json()
    if found.status_code != 200 or (isinstance(content, dict) and content.get("errors")):
        return f"{found.status_code}: {found.text}"
    if isinstance(content, dict):
        content = {k: v for k, v in content.items() if k not in ("id", "created")}
    return content


def overflow_for_one_token(world: World, judge: Path) -> None:
    """Copy the judge, with finite weights whose product overflows in a dimension that only the token BAD has."""
    shutil.rmtree(judge, ignore_errors=True)
    shutil.copytree(world.inputs.judge, judge)
    weights = load_file(judge / "model.safetensors")
    token = json.loads((judge / "tokenizer.json").read_text())["model"]["vocab"][BAD]
    embedding, layer = weights["model.embed_tokens.weight"], "model.layers.0"
    embedding[:, 0] = 0
    embedding[token] = np.eye(1, embedding.shape[1], dtype=embedding.dtype)
    weights[f"{layer}.self_attn.o_proj.weight"][0] = 0
    for name in ("gate", "up"):
        weights[f"{layer}.mlp.{name}_proj.weight"][0, 0] = 1e25
    save_file(weights, judge / "model.safetensors", metadata={"format": "pt"})
    world.must(["verify", judge, "--accept"])


@contextmanager
def served(world: World, judge: Path) -> Iterator[httpx.Client]:
    """A client of a server of the judge. Raises RuntimeError if it does not start, or if it logs a traceback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child = Child(["serve", judge, "--port", port], world.log.with_suffix(".serve"))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for _ in range(600):
            with suppress(httpx.TransportError):
                if client.get("/readyz").status_code == 200:
                    break
            if end := child.wait(0.2):
                raise RuntimeError(f"serve ended: {end.status}: {end.text[-2000:]}")
        try:
            yield client
        finally:
            os.kill(child.pid, signal.SIGTERM)
            end = child.end()
    if end.is_bug:
        raise RuntimeError(f"serve ended with {end.status}: {end.text[-3000:]}")
