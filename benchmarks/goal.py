"""Seconds of training until the loss of six regression problems is at a goal, for optimisers of first and second order.

Each is trained from the same weights for three seeds, and the rates of SGD and Adam are the best of three for each
problem, by the loss that they reach. The epoch that reaches a goal is read off one run, and a second one of so many
epochs, the same bit by bit, is timed: nothing is measured but the training.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import fastbp

Array = NDArray[np.float64]
GOALS = (1e-2, 1e-4, 1e-6)
SEEDS = (0, 1, 2)
HIDDEN = 20
ROOM = 200_000  # epochs, more than there is time for


class Problem(NamedTuple):
    """What is to be learnt; targets have variance 1, so that a loss of 1/2 is that of their mean."""

    X: Array
    y: Array


def _scaled(X: Array, y: Array) -> Problem:
    y = y.reshape(len(X), -1)
    return Problem((X - X.mean(axis=0)) / X.std(axis=0), (y - y.mean(axis=0)) / y.std(axis=0))


def problems() -> dict[str, Problem]:
    """Six of them, without noise, so that nothing but the network bounds the loss from below."""
    rng = np.random.default_rng(0)
    line, square, cube = (rng.uniform(-1, 1, (rows, inputs)) for rows, inputs in ((2000, 1), (2000, 2), (2000, 5)))
    first, second = np.pi * square[:, 0] / 2, np.pi * square[:, 1]
    u = (cube + 1) / 2
    series = [1.2] * 18
    for t in range(17, 2100):  # x' = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x
        late = series[t - 17]
        series.append(series[t] + 0.2 * late / (1 + late**10) - 0.1 * series[t])
    lags = np.array([series[t - 18 : t + 1 : 6] for t in range(100, 2100)])
    return {
        "sinc(10 x)": _scaled(line, np.sinc(10 * line[:, 0])),
        "damped wave": _scaled(line, np.exp(-2 * (line[:, 0] + 1)) * np.sin(8 * line[:, 0])),
        "saddle and wave": _scaled(square, np.sin(3 * square[:, 0]) + square[:, 0] * square[:, 1]),
        "arm of two links": _scaled(
            square, np.c_[np.cos(first) + np.cos(first + second), np.sin(first) + np.sin(first + second)]
        ),
        "Friedman 1": _scaled(
            u, 10 * np.sin(np.pi * u[:, 0] * u[:, 1]) + 20 * (u[:, 2] - 0.5) ** 2 + 10 * u[:, 3] + 5 * u[:, 4]
        ),
        "Mackey-Glass": _scaled(lags[:-1], lags[1:, -1]),
    }


# The settings of each optimiser, of which the best are taken.
OPTIMIZERS: dict[str, list[dict[str, Any]]] = {
    "Levenberg-Marquardt": [{"optimizer": "levenberg_marquardt", "batch_size": None}],
    "L-BFGS": [{"optimizer": "lbfgs", "batch_size": None}],
    "Adam": [{"optimizer": "adam", "learning_rate": rate} for rate in (1e-3, 3e-3, 1e-2)],
    "iRprop-": [{"optimizer": "irprop", "batch_size": None}],
    "SGD": [{"optimizer": fastbp.SGD(rate, momentum=0.9)} for rate in (1e-2, 3e-2, 1e-1)],
}


def train(problem: Problem, settings: dict[str, Any], seed: int, **limits: Any) -> fastbp.TrainResult:
    """Train a network with one hidden layer."""
    return fastbp.train(problem.X, problem.y, HIDDEN, activation="tanh", seed=seed, **settings, **limits)


def least(problem: Problem, settings: dict[str, Any], seed: int, seconds: float) -> Array:
    """Losses of the epochs that there is time for; infinite, if it diverges."""
    try:
        return train(problem, settings, seed, epochs=ROOM, time_limit=seconds).loss
    except fastbp.DivergenceError:
        return np.array([math.inf])


def seconds_to(goal: float, losses: Array, problem: Problem, settings: dict[str, Any], seed: int) -> float:
    """Seconds that the training takes to the goal; infinite, if it does not reach it."""
    reached = np.flatnonzero(losses <= goal)
    if not reached.size:
        return math.inf
    return min(train(problem, settings, seed, epochs=int(reached[0])).seconds for _ in range(2))


def measure(limit: float) -> dict[str, dict[str, list[float]]]:
    """Median seconds to each goal, by problem and optimiser."""
    table: dict[str, dict[str, list[float]]] = {}
    for name, problem in problems().items():
        table[name] = {}
        for optimizer, choices in OPTIMIZERS.items():
            train(problem, choices[0], 0, epochs=1)  # compiles
            chosen = choices[0]
            if len(choices) > 1:
                chosen = min(choices, key=lambda each: least(problem, each, SEEDS[0], limit).min())
            runs = [(seed, least(problem, chosen, seed, limit)) for seed in SEEDS]
            table[name][optimizer] = [
                statistics.median(seconds_to(goal, losses, problem, chosen, seed) for seed, losses in runs)
                for goal in GOALS
            ]
            sys.stderr.write(f"{name}, {optimizer}: {table[name][optimizer]}\n")
    return table


def written(table: dict[str, dict[str, list[float]]], limit: float) -> str:
    """The table in Markdown."""
    lines = [
        f"| seconds to a loss of {', '.join(f'{goal:g}' for goal in GOALS)} | {' | '.join(OPTIMIZERS)} |",
        f"| --- | {' | '.join(['---:'] * len(OPTIMIZERS))} |",
    ]
    for name, row in table.items():
        cells = (", ".join(f"{s:.2g}" if s < math.inf else "-" for s in row[optimizer]) for optimizer in OPTIMIZERS)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{processor()}, one thread; - is more than {limit:g} s.", ""])


def processor() -> str:
    """Name of the processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option of `python -m benchmarks goal`."""
    parser.add_argument("--limit", type=float, default=5.0, help="seconds of a run (%(default)s)")


def main(arguments: argparse.Namespace) -> int:
    """Measure, and print the table."""
    sys.stdout.write(written(measure(arguments.limit), arguments.limit))
    return 0
