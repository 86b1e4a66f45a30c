"""Bodies: JSON within limits, read outside the event loop, lone surrogates replaced."""

import json
import re
from typing import Any

import anyio.to_thread
import numpy as np
from fastapi import Request, Response
from fastapi.routing import APIRoute

from gram_jax.judge.tokens import replace_surrogates
from gram_jax.serve.errors import RequestError

MAX_VALUES = 200_000  # of a body: entries of lists and objects
MAX_DEPTH = 64

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_LARGE = 16_384  # bytes from which on reading takes long enough for a thread


class JsonRequest(Request):
    """A request whose body is read by `read_json`."""

    async def json(self) -> Any:
        """The body. Raises RequestError, or ValueError if it is not JSON."""
        if not hasattr(self, "_value"):
            body = await self.body()
            if len(body) < _LARGE:
                self._value, replaced = read_json(body)
            else:
                self._value, replaced = await anyio.to_thread.run_sync(read_json, body)
            self.app.state.service.metrics.surrogates.inc(replaced)
        return self._value


class JsonRoute(APIRoute):
    """A route that makes JsonRequests of its requests."""

    def get_route_handler(self) -> Any:
        """The route handler of FastAPI, with JsonRequest as the request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(JsonRequest(request.scope, request.receive))

        return handle


def read_json(body: bytes) -> tuple[Any, int]:
    """A body, and the number of lone surrogates that became U+FFFD in its texts.

    Raises RequestError for more than MAX_VALUES values or MAX_DEPTH levels, json.JSONDecodeError for other text.

    >>> read_json(b'{"a": "\\\\ud800"}')
    ({'a': '\\ufffd'}, 1)
    """
    _check_size(body)
    try:
        value = json.loads(body)
    except json.JSONDecodeError:
        raise
    except ValueError:  # no UTF-8, or an integer of thousands of digits
        raise RequestError(422, "invalid", "the body is not valid JSON") from None
    return _without_surrogates(value) if _SURROGATE.search(body) else (value, 0)


def _check_size(body: bytes) -> None:
    opening, commas = body.count(b"[") + body.count(b"{"), body.count(b",")
    if opening <= MAX_DEPTH and opening + commas <= MAX_VALUES:
        return
    # Brackets and commas in texts do not count. numpy releases the GIL, a regular expression does not.
    signs = np.frombuffer(body.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    signs = signs[~np.logical_xor.accumulate(signs == ord('"'))]
    opens, closes = np.isin(signs, list(b"[{")), np.isin(signs, list(b"]}"))
    if opens.sum() + (signs == ord(",")).sum() > MAX_VALUES:
        raise RequestError(
            422,
            "invalid",
            f"expected at most {MAX_VALUES:,} values in the lists and objects of a body",
        )
    if (np.cumsum(opens, dtype=np.int64) - np.cumsum(closes)).max(initial=0) > MAX_DEPTH:
        raise RequestError(422, "invalid", f"expected at most {MAX_DEPTH} levels of nesting")


def _without_surrogates(value: Any) -> tuple[Any, int]:
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, list):
        found = [_without_surrogates(one) for one in value]
        return [one for one, _ in found], sum(count for _, count in found)
    if isinstance(value, dict):
        found = {key: _without_surrogates(one) for key, one in value.items()}
        return {key: one for key, (one, _) in found.items()}, sum(x for _, x in found.values())
    return value, 0
