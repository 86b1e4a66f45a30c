"""Whether a probability means what it says: of the pairs at 0.8, four of five should be right."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

BINS = 15
TEMPERATURES = (0.01, 100.0)
LEAST_PROMPTS = 20  # below so many a fitted temperature says nothing


def expected_calibration_error(p_chosen: np.ndarray) -> float:
    """Mean distance between confidence and accuracy over 15 equal bins of confidence in [0.5, 1].

    p_chosen: P(the chosen response), [n]. Confidence is that of whichever response the judge prefers. A tie has
    confidence 0.5 and is right half of the time.

    >>> expected_calibration_error(np.array([0.75, 0.75, 0.75, 0.25]))
    0.0
    """
    weight, sure, right = _bins(p_chosen)
    return float(np.abs(right - sure).sum() / weight.sum())


def reliability(p_chosen: np.ndarray) -> list[dict[str, Any]]:
    """The bins of `expected_calibration_error`: bounds, pairs, mean confidence and accuracy (None where empty)."""
    edges = np.linspace(0.5, 1, BINS + 1).tolist()
    return [
        {
            "low": low,
            "high": high,
            "n": int(n),
            "confidence": float(sure / n) if n else None,
            "accuracy": float(right / n) if n else None,
        }
        for low, high, n, sure, right in zip(edges, edges[1:], *_bins(p_chosen), strict=False)
    ]


def _bins(p_chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs, sum of confidences and number of right ones of each bin."""
    confidence = np.maximum(p_chosen, 1 - p_chosen)
    right = np.where(p_chosen == 0.5, 0.5, (p_chosen > 0.5).astype(float))
    at = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    weight, sure, good = (
        np.bincount(at, x, minlength=BINS) for x in (np.ones(len(at)), confidence, right)
    )
    return weight, sure, good


def brier(p_chosen: np.ndarray) -> float:
    """Mean squared distance of P(the chosen response) from 1."""
    return float(((1 - p_chosen) ** 2).mean())


def negative_log_likelihood(margin: np.ndarray, temperature: float = 1.0) -> float:
    """Mean of -log sigmoid(margin / temperature), in nats; margin: log-odds of the chosen response, [n]."""
    return float(np.logaddexp(0, -margin / temperature).mean())


@dataclass(frozen=True)
class Temperature:
    """A temperature by which log-odds are divided, fitted on one part of the pairs and tested on the other."""

    value: float
    fitted_on: int
    tested_on: int
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float


def fit_temperature(margin: np.ndarray) -> float:
    """The temperature of the least negative log-likelihood (Guo et al. 2017), within 0.01 to 100.

    A judge that is wrong as often as right is best believed in nothing: the temperature reaches its bound.
    """
    found = minimize_scalar(
        lambda log: negative_log_likelihood(margin, float(np.exp(log))),
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(found.x))


def held_out_temperature(margin: np.ndarray, cluster: np.ndarray) -> dict[str, Any] | None:
    """Fit on the pairs of every other prompt and test on the rest; None for fewer than 20 prompts in either half.

    margin: log-odds of the chosen response, [n]; cluster: i [n], the prompt of each pair. Which prompts are for fitting
    is drawn with a fixed seed. None as well where the fitting half is all right: it speaks against no certainty.
    """
    half = np.random.default_rng(0).permutation(int(cluster.max()) + 1) % 2 == 0
    fitting, testing = margin[half[cluster]], margin[~half[cluster]]
    if min(half.sum(), (~half).sum()) < LEAST_PROMPTS or (fitting > 0).all():
        return None
    value = fit_temperature(fitting)
    return asdict(
        Temperature(
            value,
            len(fitting),
            len(testing),
            expected_calibration_error(expit(testing)),
            expected_calibration_error(expit(testing / value)),
            negative_log_likelihood(testing),
            negative_log_likelihood(testing, value),
        )
    )
