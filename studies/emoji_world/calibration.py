"""Are a judge's probabilities true? One temperature, fitted on half the test objects; its error on the other half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 10


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The divisor of the logits with the smallest negative log-likelihood, searched on a fine grid."""
    candidates = torch.logspace(-1.3, 1.3, 400, base=10)
    losses = torch.stack([F.cross_entropy(logits / t, labels) for t in candidates])
    return float(candidates[losses.argmin()])


def curve(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> list[dict[str, float]]:
    """One row a bin of equal count, by the confidence of the top class: its mean confidence, accuracy and share."""
    confidence, guess = probabilities.max(1)
    right = (guess == labels).float()
    return [
        {
            "confidence": float(confidence[part].mean()),
            "accuracy": float(right[part].mean()),
            "share": len(part) / len(labels),
        }
        for part in confidence.argsort().chunk(bins)
    ]


def expected_error(rows: list[dict[str, float]]) -> float:
    """Expected calibration error: the mean gap between confidence and accuracy."""
    return sum(r["share"] * abs(r["confidence"] - r["accuracy"]) for r in rows)


def report(logits: Tensor, labels: Tensor, first: Tensor, path: Path, *, title: str) -> dict[str, Any]:
    """Fit on the pictures where ``first`` (bool [n]) is true, measure on the others, draw both curves to ``path``."""
    if not first.any() or first.all():
        return {}
    t = temperature(logits[first], labels[first])
    rest, answers = logits[~first], labels[~first]
    raw, tempered = curve(rest.softmax(1), answers), curve((rest / t).softmax(1), answers)
    _draw({"temperature 1": raw, f"temperature {t:.2f}": tempered}, path, title)
    return {
        "temperature": t,
        "calibration": "temperature fitted on every other test object, errors measured on the rest",
        "ece_raw": expected_error(raw),
        "ece": expected_error(tempered),
        "reliability": tempered,
    }


def _draw(curves: dict[str, list[dict[str, float]]], path: Path, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for name, rows in curves.items():
        axes.plot(
            [r["confidence"] for r in rows],
            [r["accuracy"] for r in rows],
            marker="o",
            label=f"{name}, ECE {expected_error(rows):.3f}",
        )
    axes.set(xlabel="confidence", ylabel="accuracy", title=title, xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend()
    figure.savefig(path, dpi=100)
