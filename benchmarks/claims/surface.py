"""Rules that do not understand a response, as controls of a test bed: length, shared words, a classifier of n-grams."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

Texts = tuple[str, str, str]  # prompt, chosen, rejected


def controls(
    train: Sequence[Texts], tests: Mapping[str, Sequence[Texts]]
) -> dict[str, dict[str, float]]:
    """Accuracy by rule and file; a tie counts half."""
    index: dict[str, int] = {}
    weights = _fit(_differences(train, index, grow=True))
    return {
        "the longer response": {
            name: _share([len(c) - len(r) for _, c, r in rows]) for name, rows in tests.items()
        },
        "more words of the prompt": {
            name: _share([_known(p, c) - _known(p, r) for p, c, r in rows])
            for name, rows in tests.items()
        },
        "classifier of words and n-grams": {
            name: _share(np.round(_differences(rows, index, grow=False) @ weights, 6))
            for name, rows in tests.items()
        },
    }


def _share(lead: Sequence[float] | np.ndarray) -> float:
    """How often the lead of the chosen response is positive."""
    lead = np.asarray(lead)
    return float(np.mean((lead > 0) + 0.5 * (lead == 0)))


def _known(prompt: str, response: str) -> float:
    """Share of the words of the response that the prompt has."""
    ask, words = set(re.findall(r"\w+", prompt.lower())), re.findall(r"\w+", response.lower())
    return sum(word in ask for word in words) / max(1, len(words))


def ngrams(prompt: str, response: str) -> list[str]:
    """Words, pairs of words and three letters of a response; what it shares with the prompt."""
    words = re.findall(r"\w+|[^\w\s]", response)
    found = words + [" ".join(two) for two in itertools.pairwise(words)]
    found += [response[at : at + 3] for at in range(len(response) - 2)] + [f"^{response[:1]}"]
    return found + [f"shared {'new' if w.lower() not in prompt.lower() else 'old'}" for w in words]


def _differences(rows: Sequence[Texts], index: dict[str, int], grow: bool) -> csr_matrix:
    """Counts of n-grams, chosen minus rejected, one row for each pair."""
    data, columns, starts = [], [], [0]
    for prompt, chosen, rejected in rows:
        counts = Counter(ngrams(prompt, chosen))
        counts.subtract(ngrams(prompt, rejected))
        for gram, count in counts.items():
            at = index.setdefault(gram, len(index)) if grow else index.get(gram)
            if at is not None and count:
                columns.append(at)
                data.append(float(count))
        starts.append(len(columns))
    return csr_matrix((data, columns, starts), shape=(len(rows), len(index)))


def _fit(x: csr_matrix) -> np.ndarray:
    """Weights of a logistic regression with an L2 penalty."""

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = x @ w
        slope = -1 / (1 + np.exp(margin))
        return np.logaddexp(0, -margin).sum() + 0.05 * w @ w, x.T @ slope + 0.1 * w

    start = np.zeros(x.shape[1])
    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 60}).x
