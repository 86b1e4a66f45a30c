"""RemoteScorer: a judge whose logits are computed by vLLM, SGLang or `gram-jax serve`; texts are encoded here."""

import hashlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np

from gram_jax.errors import JudgeError, RemoteError, check_choice
from gram_jax.finite import check_finite
from gram_jax.interop.models import has_scalar_head, load_spec, load_tokenizer
from gram_jax.judge.encode import Encoded
from gram_jax.judge.spec import JudgeSpec, check_tokenizer
from gram_jax.scoring.text_scorer import ScorerIdentity, TextScorer

RemoteProtocol = Literal["gram", "vllm", "vllm_generative", "sglang", "sglang_generative"]
Post = Callable[[str, Any], Any]  # (path, body) -> the JSON of the answer
RETRIED = (408, 425, 429, 500, 502, 503, 504)
RETRY_SECONDS = 0.25, 8.0  # first and longest wait; each wait is twice the previous one
# Above this probability float32 loses digits of the log-odds, so the other label is requested too.
SATURATED = 0.99


class RemoteScorer(TextScorer):
    """A judge on an HTTP server, with the methods of a Scorer. Thread-safe.

    protocol: "gram" for `gram-jax serve`; "vllm" or "sglang" for /classify of a judge exported as a classifier;
    "vllm_generative" or "sglang_generative" for /generative_scoring or /v1/score of a plain export. docs/scoring.md has
    the commands that start these servers.

    >>> RemoteScorer.load("tiny-random", "http://node-1:8000")
    Traceback (most recent call last):
    gram_jax.errors.JudgeError: tiny-random has no judge.json: requests need the specification of the served judge
    """

    def __init__(
        self,
        url: str,
        spec: JudgeSpec,
        tokenizer: Any,
        *,
        protocol: RemoteProtocol = "gram",
        model: str = "",
        token: str | None = None,
        concurrency: int = 16,
        batch_size: int = 64,
        timeout: float = 60.0,
        deadline: float = 600.0,
    ):
        """spec, tokenizer: those of the judge on the server.

        model: its name on the server; default the one that the server lists. token: sent as bearer token. concurrency:
        number of concurrent requests. batch_size: number of sequences of a request, two for each pair. timeout: seconds
        for one attempt of a request. deadline: seconds for all attempts of a request; while the server is busy, late or
        not reachable, it is repeated with increasing waits. Raises JudgeError for an invalid URL or token, RemoteError
        if the server does not answer or has another judge, or a scalar reward model.
        """
        check_choice("protocol", protocol, RemoteProtocol, JudgeError)
        check_tokenizer(spec, tokenizer)
        _check_address(url, token)
        super().__init__(tokenizer, spec)
        self.url, self.protocol, self.deadline = url.rstrip("/"), protocol, deadline
        self.batch_size = max(2, batch_size // 2 * 2)
        self.window = self.batch_size * concurrency // 2 * 2
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._client = httpx.Client(headers=headers, timeout=timeout, limits=limits)
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="remote judge")
        self._stops: set[threading.Event] = set()  # of the calls that are running
        with self._expecting_protocol():
            self.model = model or self._served_model()
            if protocol == "gram":
                self._check_judge()

    @classmethod
    def load(cls, name: str | Path, url: str, **settings: Any) -> "RemoteScorer":
        """A judge on the server at `url`, with specification and tokenizer of the model `name`; no weights are read.

        settings: the keyword arguments of the constructor. Raises JudgeError if the model has no judge.json or is a
        scalar reward model.
        """
        if (spec := settings.pop("spec", None) or load_spec(name)) is None:
            raise JudgeError(
                f"{name} has no judge.json: requests need the specification of the served judge"
            )
        if has_scalar_head(name):
            raise JudgeError(
                f"{name} is a scalar reward model, expected a judge that reads both responses: score with it in this "
                "process, or send pairs to /v1/score_pair of `gram-jax serve`"
            )
        return cls(url, spec, load_tokenizer(name), **settings)

    def __repr__(self) -> str:
        """Address, protocol and specification."""
        return f"RemoteScorer({self.url}, {self.protocol}, judge {self.spec.hash[:12]})"

    @property
    def identity(self) -> ScorerIdentity:
        """What the results depend on. The fingerprint is a hash of address and model name instead of the weights."""
        where = hashlib.sha256(f"{self.url} {self.model}".encode()).hexdigest()[:16]
        return ScorerIdentity(where, "remote", "remote", "remote", self.protocol)

    def warm_up(self, *, rankings: bool = False) -> None:
        """Score a pair, so that the server compiles its program."""
        self.score("Name a prime number.", "Seven.", "Nine.")

    def close(self) -> None:
        """Close the connections. Calls that are running in other threads raise RemoteError."""
        for stop in list(self._stops):
            stop.set()
        self._threads.shutdown(cancel_futures=True)
        self._client.close()

    def label_logit_diffs(
        self,
        sequences: Sequence[Encoded],
        *,
        paired: bool,
        progress: Callable[[int], None] = lambda count: None,
    ) -> np.ndarray:
        """Logit differences of encoded comparisons, in the precision of the server and its protocol.

        Raises RemoteError if an answer is missing or does not follow the protocol, NonFiniteError if a logit is not
        finite.
        """
        parts = list(self._parts(sequences))
        found, stop = [], threading.Event()
        ask = partial(self._checked, partial(self._send, stop, "POST"))
        self._stops.add(stop)
        try:
            for part, diffs in zip(parts, self._threads.map(ask, parts), strict=True):
                if len(diffs) != len(part):
                    raise RemoteError(f"{self.url}: {len(diffs)} results of {len(part)} sequences")
                found.append(np.asarray(diffs, np.float32))
                progress(len(part))
        finally:  # after an error or Ctrl-C the other requests are not repeated
            stop.set()
            self._stops.discard(stop)
        if not found:
            return np.zeros(0, np.float32)
        return check_finite(np.concatenate(found), "the logits", "comparisons")

    def _parts(self, sequences: Sequence[Encoded]) -> Iterator[Sequence[Encoded]]:
        """Sequences by request; in the generative protocols, those of a request share everything before the second
        response.
        """
        if not self.protocol.endswith("generative"):
            size = self.batch_size
            yield from (sequences[at : at + size] for at in range(0, len(sequences), size))
            return
        for _, group in groupby(sequences, key=lambda text: _beginning(text).tobytes()):
            yield list(group)

    @contextmanager
    def _expecting_protocol(self) -> Iterator[None]:
        """Raises RemoteError if the block reads an answer that has another form."""
        try:
            yield
        except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            raise RemoteError(
                f"{self.url}: the answer is not of the protocol {self.protocol!r}: {type(error).__name__} {error}. "
                "Check the address and the protocol"
            ) from error

    def _checked(self, post: Post, part: Sequence[Encoded]) -> np.ndarray:
        with self._expecting_protocol():
            return self._ask(post, part)

    def _ask(self, post: Post, part: Sequence[Encoded]) -> np.ndarray:
        """Label logit differences of one request's sequences."""
        ids = [text.tokens.tolist() for text in part]
        if self.protocol in ("gram", "vllm"):
            body = {"model": self.model, "input": ids, "use_activation": False}
            rows = sorted(post("/classify", body)["data"], key=lambda x: x["index"])
            return self._classified(rows)
        if self.protocol == "sglang":
            found = post("/classify", {"model": self.model, "input_ids": ids})
            rows = found if isinstance(found, list) else [found]
            return _difference(np.array([row["embedding"] for row in rows], np.float64))
        start = len(_beginning(part[0]))
        body = {
            "model": self.model,
            "query": part[0].tokens[:start].tolist(),
            "items": [text.tokens[start:].tolist() for text in part],
            "label_token_ids": list(self.spec.label_ids),
            "apply_softmax": True,
            "item_first": False,
        }
        if self.protocol == "sglang_generative":
            return _log_odds(np.array(post("/v1/score", body)["scores"], np.float64))
        body["add_special_tokens"] = False
        first = _generative(post, body)
        if first.max() <= SATURATED:
            return _log_odds(np.stack([first, 1 - first], axis=1))
        swapped = _generative(post, {**body, "label_token_ids": list(self.spec.label_ids[::-1])})
        return _log_odds(np.stack([first, swapped], axis=1))

    def _classified(self, rows: Sequence[dict[str, Any]]) -> np.ndarray:
        """Logit differences from the classes' logits, or from probabilities if an old server always applies the
        softmax.
        """
        values = np.array([row["probs"] for row in rows], np.float64)
        if values.shape[1:] == (1,):  # an export as margin
            return values[:, 0]
        if values.shape[1:] != (2,):
            raise RemoteError(
                f"{self.url}: classes of shape {values.shape[1:]}, expected two: export the judge with "
                "`gram-jax convert JUDGE OUT --as classifier`"
            )
        names = [label.strip() for label in self.spec.labels]
        shown = [row.get("label") for row in rows]
        largest = [names[at] for at in values.argmax(axis=1)]
        if any(x in names and x != y for x, y in zip(shown, largest, strict=True)):
            raise RemoteError(
                f"{self.url}: its classes are not the labels {', '.join(names)} in this order"
            )
        probabilities = (values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-4)
        return _log_odds(values) if probabilities else _difference(values)

    def _served_model(self) -> str:
        """The model that the server lists. Raises RemoteError if its context is shorter than the judge's budget."""
        found = self._send(threading.Event(), "GET", "/v1/models")["data"][0]
        context = found.get("max_model_len")
        # One token is for the verdict: vLLM cuts longer prompts of /generative_scoring without an error.
        if context is not None and context < self.spec.max_length + 1:
            raise RemoteError(
                f"{self.url}: max_model_len {context}, expected at least {self.spec.max_length + 1}, one more than the "
                "token budget of the judge"
            )
        return found["id"]

    def _check_judge(self) -> None:
        found = self._send(threading.Event(), "GET", "/readyz")
        if (judge := found["judge"]) != self.spec.hash:
            raise RemoteError(
                f"{self.url} has the judge {str(judge)[:12]}, expected {self.spec.hash[:12]}: pass the judge.json and "
                "the tokenizer of the model that is served"
            )
        if (reads := found["reads"]) != "comparisons":
            raise RemoteError(
                f"{self.url} has a judge that reads {reads}, expected one that reads comparisons: send the texts of "
                "pairs to /v1/score_pair, or score in this process"
            )

    def _send(self, stop: threading.Event, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer; retried until the deadline or `stop`. Raises RemoteError."""
        end, wait = time.monotonic() + self.deadline, RETRY_SECONDS[0]
        while not stop.is_set():
            try:
                answer = self._client.request(method, f"{self.url}{path}", json=body)
                if answer.status_code == 200:
                    return answer.json()
                problem = f"status {answer.status_code}: {answer.text[:500]}"
                if answer.status_code not in RETRIED:
                    raise RemoteError(f"{self.url}{path}: {problem}")
                asked = answer.headers.get("retry-after", "")
                wait = max(wait, float(asked) if asked.isdigit() else 0.0)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}"
            except ValueError as error:
                raise RemoteError(f"{self.url}{path}: the answer is not JSON ({error})") from error
            wait *= random.uniform(0.75, 1.25)  # so that clients do not return together
            if time.monotonic() + wait > end:
                raise RemoteError(
                    f"{self.url}{path}: no answer within {self.deadline:g} s ({problem})"
                )
            stop.wait(wait)
            wait = min(2 * wait, RETRY_SECONDS[1])
        raise RemoteError(f"{self.url}{path}: the request was stopped")


def _check_address(url: str, token: str | None) -> None:
    """Raises JudgeError if requests cannot be made of these."""
    try:
        parsed = httpx.URL(url)
        valid = parsed.scheme in ("http", "https") and parsed.host and (parsed.port or 1) < 1 << 16
    except httpx.InvalidURL:
        valid = False
    if not valid:
        raise JudgeError(
            f"the server's URL is {url!r}: expected http or https, a host and perhaps a port, such as "
            "http://node-1:8000"
        )
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise JudgeError(
            "the token cannot be sent: expected printable ASCII characters without blanks"
        )


def _generative(post: Post, body: dict[str, Any]) -> np.ndarray:
    rows = sorted(post("/generative_scoring", body)["data"], key=lambda x: x["index"])
    return np.array([row["score"] for row in rows], np.float64)


def _beginning(text: Encoded) -> np.ndarray:
    """The tokens before the second response."""
    return text.tokens[: text.field_starts[1]]


def _difference(logits: np.ndarray) -> np.ndarray:
    if logits.ndim != 2 or logits.shape[1] != 2:
        raise RemoteError(f"two logits of each sequence were expected, found {logits.shape}")
    return logits[:, 0] - logits[:, 1]


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return _difference(np.log(probabilities))
