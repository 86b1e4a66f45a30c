"""The process of a server: its log, its end."""

import logging
from pathlib import Path
from types import FrameType
from typing import Any, cast

import uvicorn

from gram_jax.errors import DataError
from gram_jax.serve.guard import LOG, Guard


class _Server(uvicorn.Server):
    """On SIGTERM readiness goes first, then the open requests are answered, then the process ends."""

    def __init__(self, config: uvicorn.Config, service: Any):
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.draining = True
        super().handle_exit(sig, frame)


def serve(app: Guard, *, host: str, port: int, grace: float) -> None:
    """Answer until SIGTERM or Ctrl-C; what has been accepted by then is answered, within `grace` seconds.

    Raises DataError where the address cannot be used.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter('{"time": "%(asctime)s", "line": %(message)s}'))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=cast(int, grace),  # given to asyncio, which takes fractions
        timeout_keep_alive=30,
        server_header=False,
    )
    try:
        _Server(config, app.app.state.service).run()
    except (OSError, SystemExit) as error:
        raise DataError(
            f"the server cannot listen at {host}:{port}: give another --host or --port"
        ) from error


def read_token(path: Path | None) -> str | None:
    """The token in a file. Raises DataError for one that is missing, empty or in two lines."""
    if path is None:
        return None
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a token: {error}") from error
    if not token or any(sign.isspace() for sign in token):
        raise DataError(f"{path}: expected one line with the token")
    return token
