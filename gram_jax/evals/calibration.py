"""Calibration of a judge: a calibrated judge is right on 80 % of the pairs with probability 0.8."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit

from gram_jax.evals.results import ConfidenceBin, CoveragePoint, TemperatureFit

BINS = 15
COVERAGES = tuple(tenth / 10 for tenth in range(1, 11))
TEMPERATURES = (0.01, 100.0)
USABLE = 50.0  # above it all probabilities are near 0.5, below its inverse they are near 0 or 1
LEAST_PROMPTS = 20  # minimum in each half, for a fit and for its test


def expected_calibration_error(p_chosen: np.ndarray) -> float:
    """Mean distance between confidence and accuracy over 15 equal bins of confidence in [0.5, 1].

    p_chosen: P(the chosen response), [n]. Confidence is the probability of the preferred response. A tie has
    confidence 0.5 and counts as half right.

    >>> expected_calibration_error(np.array([0.75, 0.75, 0.75, 0.25]))
    0.0
    """
    weight, sure, right = _bins(p_chosen)
    return float(np.abs(right - sure).sum() / weight.sum())


def reliability(p_chosen: np.ndarray) -> list[ConfidenceBin]:
    """The bins of `expected_calibration_error`; mean confidence and accuracy of an empty bin are None."""
    edges = np.linspace(0.5, 1, BINS + 1).tolist()
    return [
        ConfidenceBin(
            low=low,
            high=high,
            n=int(n),
            confidence=float(sure / n) if n else None,
            accuracy=float(right / n) if n else None,
        )
        for low, high, n, sure, right in zip(edges, edges[1:], *_bins(p_chosen), strict=False)
    ]


def selective_accuracy(p_chosen: np.ndarray, coverage: float) -> float:
    """Accuracy of the share `coverage` of the pairs with the highest confidence.

    p_chosen: P(the chosen response), [n]. A tie at 0.5 is wrong, as in the accuracy, which is that of coverage 1. Of
    pairs of equal confidence at the boundary the mean counts, so the result does not depend on the order of the pairs.

    >>> selective_accuracy(np.array([0.9, 0.2, 0.6, 0.45]), 0.5)
    0.5
    """
    confidence, right = np.maximum(p_chosen, 1 - p_chosen), p_chosen > 0.5
    wanted = coverage * len(p_chosen)
    least = np.sort(confidence)[::-1][max(0, int(np.ceil(wanted - 1e-9)) - 1)]
    above, equal = confidence > least, confidence == least
    return float((right[above].sum() + (wanted - above.sum()) * right[equal].mean()) / wanted)


def accuracy_over_coverage(p_chosen: np.ndarray) -> list[CoveragePoint]:
    """`selective_accuracy` for coverages of 0.1, 0.2, ... 1."""
    return [
        CoveragePoint(coverage=coverage, accuracy=selective_accuracy(p_chosen, coverage))
        for coverage in COVERAGES
    ]


def _bins(p_chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number of pairs, sum of confidences and number of correct pairs in each bin."""
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


def fit_temperature(margin: np.ndarray) -> float:
    """The temperature with the smallest negative log-likelihood (Guo et al. 2017), between 0.01 and 100.

    At chance accuracy the optimal temperature diverges; the search stops at its upper bound.
    """
    found = minimize_scalar(
        lambda log: negative_log_likelihood(margin, float(np.exp(log))),
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(np.exp(found.x))


def held_out_temperature(margin: np.ndarray, cluster: np.ndarray) -> TemperatureFit | None:
    """Fit a temperature on the pairs of half of the prompts and test it on the other half.

    margin: log-odds of the chosen response, [n]; cluster: i [n], the prompt of each pair. A fixed seed selects the
    halves. Returns None if a half has fewer than 20 prompts, or if every pair of the fitting half is right: the optimal
    temperature is then 0.
    """
    half = np.random.default_rng(0).permutation(int(cluster.max()) + 1) % 2 == 0
    fitting, testing = margin[half[cluster]], margin[~half[cluster]]
    if min(half.sum(), (~half).sum()) < LEAST_PROMPTS or (fitting > 0).all():
        return None
    value = fit_temperature(fitting)
    return TemperatureFit(
        value=value,
        fitted_on=len(fitting),
        tested_on=len(testing),
        ece_before=expected_calibration_error(expit(testing)),
        ece_after=expected_calibration_error(expit(testing / value)),
        nll_before=negative_log_likelihood(testing),
        nll_after=negative_log_likelihood(testing, value),
    )


def why_unusable(fit: TemperatureFit) -> str | None:
    """The reason not to use a temperature; None if it improves calibration on held-out pairs."""
    if fit.value > USABLE:
        return "no temperature helps, since the judge is at chance accuracy on these pairs"
    if fit.value < 1 / USABLE:
        return "the optimal temperature is outside the usable range"
    if fit.nll_after >= fit.nll_before or fit.ece_after > fit.ece_before:
        return "the temperature does not improve NLL and ECE on held-out pairs"
    return None
