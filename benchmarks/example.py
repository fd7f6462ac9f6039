"""Draw the picture of the README: `python -m benchmarks.example` trains a small network and writes training.svg."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import RESULTS, save
from fastbp.plots import decision_boundary, loss_curve
from fastbp.train import train

ROWS = 240
NOISE = 0.2


def moons(rows: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return points (rows, 2) on two half circles that reach into each other, with noise, and their classes 0 and 1."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % 2
    angle = random.uniform(0, np.pi, rows)
    upper = np.column_stack([np.cos(angle), np.sin(angle)])
    lower = np.column_stack([1 - np.cos(angle), 0.5 - np.sin(angle)])
    return np.where(labels[:, None], lower, upper) + random.normal(scale=NOISE, size=(rows, 2)), labels


def picture() -> Any:
    """Return a figure of the loss of a training and of the border that it found."""
    from matplotlib.figure import Figure

    X, y = moons(ROWS, seed=0)
    result = train(
        X, y, (16, 16), activation="tanh", loss="binary_cross_entropy", learning_rate=0.003, epochs=300,
        validation=moons(ROWS, seed=2), seed=0,
    )  # fmt: skip
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    loss_curve(result, ax=left)
    decision_boundary(result.network, X, y, ax=right)
    right.set_rasterization_zorder(2.5)  # what lies below the points as an image: as paths it is thousands of points
    return figure


def write(path: Path) -> None:
    """Write the picture."""
    save(picture(), path)


if __name__ == "__main__":
    write(RESULTS / "training.svg")
