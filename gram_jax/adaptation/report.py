"""The result of an adaptation: metrics before and after on the same pairs, and warnings."""

from typing import Any

from scipy.special import expit

from gram_jax.evals.calibration import (
    expected_calibration_error,
    negative_log_likelihood,
    why_unusable,
)
from gram_jax.evals.intervals import BootstrapTable
from gram_jax.evals.paired import paired_gain
from gram_jax.evals.pairwise import PairVerdicts
from gram_jax.evals.results import TemperatureFit


def compare_verdicts(
    before: PairVerdicts, after: PairVerdicts, temperature: float
) -> dict[str, Any]:
    """Accuracy, loss and calibration before and after on the same pairs, and the accuracy gain, with intervals."""
    gain, interval = paired_gain(before.correct, after.correct, after.cluster)
    found = {
        name: {
            "accuracy": float(verdicts.correct.mean()),
            "interval": BootstrapTable.of(
                verdicts.correct, verdicts.cluster, verdicts.subset
            ).interval(),
            "nll": negative_log_likelihood(verdicts.margin),
            "ece": expected_calibration_error(expit(verdicts.margin)),
        }
        for name, verdicts in (("before", before), ("after", after))
    }
    found["after"]["ece_with_temperature"] = expected_calibration_error(
        expit(after.margin / temperature)
    )
    found["after"]["nll_with_temperature"] = negative_log_likelihood(after.margin, temperature)
    return found | {"gain": gain, "gain_interval": interval}


def fitted_temperature(result: dict[str, Any]) -> TemperatureFit:
    """The temperature fitted on the selection pairs, tested on the test pairs."""
    after = result["test"]["after"]
    return TemperatureFit(
        value=result["temperature"],
        fitted_on=result["pairs"]["choose"],
        tested_on=result["pairs"]["test"],
        ece_before=after["ece"],
        ece_after=after["ece_with_temperature"],
        nll_before=after["nll"],
        nll_after=after["nll_with_temperature"],
    )


def doubts(result: dict[str, Any]) -> list[str]:
    """Warnings about an exported judge that is not better."""
    test, found = result["test"], []
    if not result["better_where_chosen"]:
        found.append(
            f"the exported judge is no better than {result['model']} on the selection pairs: --accept exported it"
        )
    if test["gain"] < 0:
        low, high = test["gain_interval"]
        surely = "worse" if high < 0 else "perhaps worse"
        found.append(
            f"the exported judge is {surely} on the {result['pairs']['test']} test pairs: "
            f"{test['gain']:+.3f} of the accuracy ({low:+.3f} to {high:+.3f})"
        )
    elif test["after"]["nll"] > test["before"]["nll"]:
        found.append(
            f"the exported judge's loss is higher on the test pairs: {test['before']['nll']:.3f} before, "
            f"{test['after']['nll']:.3f} after"
        )
    return found


def result_rows(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, before, after) of every metric as text; with the temperature only if it helps on the test pairs."""
    before, after = result["test"]["before"], result["test"]["after"]
    low, high = result["test"]["gain_interval"]

    def accuracy(found: dict[str, Any]) -> str:
        return f"{found['accuracy']:.3f} ({found['interval'][0]:.3f} to {found['interval'][1]:.3f})"

    rows = [
        ("accuracy (95 %)", accuracy(before), accuracy(after)),
        ("gain (95 %, paired)", "", f"{result['test']['gain']:+.3f} ({low:+.3f} to {high:+.3f})"),
        ("NLL", f"{before['nll']:.3f}", f"{after['nll']:.3f}"),
        ("ECE", f"{before['ece']:.3f}", f"{after['ece']:.3f}"),
    ]
    if why_unusable(fitted_temperature(result)) is None:
        calibrated = f"{after['nll_with_temperature']:.3f} / {after['ece_with_temperature']:.3f}"
        rows.append((f"NLL / ECE with temperature {result['temperature']:.2f}", "", calibrated))
    return rows
