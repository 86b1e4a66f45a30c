"""The process of a server: log, address, end."""

import errno
import json
import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, cast

import uvicorn
from fastapi import FastAPI
from pydantic import Field, TypeAdapter

from gram_jax.errors import DataError, GramError
from gram_jax.serve.connections import ConnectionLimits, ServerConfig
from gram_jax.serve.errors import describe_failure
from gram_jax.serve.middleware import LOG
from gram_jax.serve.service import Service

REFERENCES = TypeAdapter(Annotated[list[str], Field(min_length=1)])


class StartError(GramError):
    """The server could not start, for example because its judge does not fit the device."""


class JsonLines(logging.Formatter):
    """A line of JSON for each record, with the type and place of an exception but not its message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        message = record.getMessage()
        # uvicorn logs an error of the start with its traceback; that of a bug is kept.
        last = message.rstrip().rpartition("\n")[2]
        if message.startswith("Traceback ") and last.startswith(f"{GramError.__module__}."):
            message = last
        plain = {"level": record.levelname, "message": message}
        line = record.msg if isinstance(record.msg, dict) else plain
        if record.exc_info and record.exc_info[1] is not None:
            line = line | describe_failure(record.exc_info[1])
        return json.dumps({"time": self.formatTime(record), "line": line})


class _Server(uvicorn.Server):
    """On SIGTERM it reports not ready, answers the open requests, and ends."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.drain()
        super().handle_exit(sig, frame)


def server_config(
    app: FastAPI,
    host: str,
    port: int,
    connections: ConnectionLimits | None = None,
    *,
    proxies: Sequence[str] = (),
    **settings: Any,
) -> ServerConfig:
    """uvicorn's configuration. proxies: addresses whose X-Forwarded-For is believed."""
    return ServerConfig(
        app,
        (connections or ConnectionLimits()).within_descriptors(),
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        **settings,
    )


def serve(
    app: FastAPI,
    *,
    host: str,
    port: int,
    grace: float,
    connections: ConnectionLimits | None = None,
    proxies: Sequence[str] = (),
) -> None:
    """Answer requests until SIGTERM or Ctrl-C; accepted requests are then answered within `grace` seconds.

    Raises DataError if the address cannot be used, StartError if the judge could not be made ready.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for log, level in ((LOG, logging.INFO), (logging.getLogger("uvicorn"), logging.WARNING)):
        log.addHandler(handler)
        log.setLevel(level)
        log.propagate = False
    config = server_config(
        app, host, port, connections, timeout_graceful_shutdown=cast(int, grace), proxies=proxies
    )
    service, reason = app.state.service, None
    server = _Server(config, service)
    try:
        server.run()
    except (OSError, SystemExit) as error:
        reason = error
    if server.started and reason is None:
        return
    if not service.ready:
        raise StartError("the judge could not be loaded: the log has the reason") from reason
    raise _unusable(host, port) from reason


def check_address(host: str, port: int) -> None:
    """Raises DataError if a server cannot listen there: call it before the judge is loaded and compiled."""
    refused: list[OSError] = []
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise _unusable(host, port) from error
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            refused.append(error)
    # A name may resolve to a family of addresses that this machine does not have.
    absent = [error for error in refused if error.errno == errno.EADDRNOTAVAIL]
    if len(refused) > len(absent) or len(absent) == len(addresses):
        raise _unusable(host, port) from refused[-1]


def _unusable(host: str, port: int) -> DataError:
    return DataError(f"the server cannot listen at {host}:{port}: give another --host or --port")


def read_token(path: Path | None) -> str | None:
    """The token in a file. Raises DataError if it is missing, empty or has several words."""
    if path is None:
        return None
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a token: {error}") from error
    if not token or any(sign.isspace() for sign in token):
        raise DataError(f"{path}: expected one line with the token")
    return token


def read_references(path: Path | None) -> tuple[str, ...]:
    """Texts of a JSON list in a file. Raises DataError for anything else."""
    if path is None:
        return ()
    try:
        return tuple(REFERENCES.validate_json(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a JSON list of texts, not empty: {error}") from error
