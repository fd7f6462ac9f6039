"""Measure the cases of the gate once, in this fresh process, and print them as JSON.

    python -P gate_cases.py TREE [NAME ...]

`benchmarks.compare` runs this file with one tree of fastbp after the other on the path, by the public interface alone.
A case that a tree cannot run, for lack of a class or of a parameter, has the reason in place of its seconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import fastbp

Array = NDArray[Any]
Data = tuple[Array, Array]

ROUNDS = 20  # the best of them counts: interruptions only add time
# One thread in its steady state waits for nothing, so the processor's time is its time. With five programs on two cores
# that repeated within 5 %, the time on the wall within 50 %. Windows counts the former in steps of 16 ms.
clock = time.perf_counter if sys.platform == "win32" else time.process_time


# --- data: 1,024 rows of 16 features, or XOR ------------------------------------------------------------------------


def xor() -> Data:
    """Return the four rows of exclusive or."""
    X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    return X, X.sum(axis=1) % 2


def features(rows: int = 1024) -> Array:
    """Return rows of 16 standard normal numbers, the same in every process."""
    return np.random.RandomState(0).standard_normal((rows, 16))


def curve() -> Data:
    """Return features and a number between -1 and 1 for each row."""
    X = features()
    return X, np.tanh(X.mean(axis=1))


def classes() -> Data:
    """Return features and one of ten classes for each row."""
    X = features()
    return X, np.abs(X[:, :10]).argmax(axis=1)


# --- what is timed --------------------------------------------------------------------------------------------------


def training(epochs: int, dtype: str, data: Callable[[], Data], **settings: Any) -> Callable[[], object]:
    """Prepare a training that begins with the same weights each time."""
    X, y = data()
    X, y = X.astype(dtype), y if y.dtype.kind == "i" else y.astype(dtype)
    return lambda: fastbp.train(X, y, epochs=epochs, seed=0, **settings)


def steps() -> Callable[[], object]:
    """Prepare a step with each row, alone."""
    X, y = (array.astype("float32") for array in curve())
    network = fastbp.Network((16, 32, 32, 1), activation="sigmoid", dtype="float32", seed=0)
    trainer = fastbp.Trainer(network, optimizer="sgd", learning_rate=0.01)
    rows = [(X[row : row + 1], y[row : row + 1]) for row in range(len(X))]
    return lambda: [trainer.step(*row) for row in rows]


def prediction(calls: int, rows: int) -> Callable[[], object]:
    """Prepare so many predictions of so many rows."""
    X, y = curve()
    network = fastbp.train(X.astype("float32"), y, hidden=(32, 32), epochs=1, seed=0).network
    X = features(rows).astype("float32")
    return lambda: [network.predict(X) for _ in range(calls)]


def matrix_products() -> Callable[[], object]:
    """Prepare products of matrices in NumPy, whose time is the arithmetic of one core."""
    a = features(4096).reshape(256, 256)
    out = np.empty_like(a)
    return lambda: [np.matmul(a, a, out=out) for _ in range(8)]


def numpy_training() -> Callable[[], object]:
    """Prepare back-propagation in NumPy, 16-32-1 and batches of 32, whose time is mostly Python's."""
    X, y = curve()
    start = features(32).T / 4

    def train() -> None:
        w, v = start.copy(), np.zeros(32)
        for _ in range(10):
            for first in range(0, len(X), 32):
                x = X[first : first + 32]
                a = np.tanh(x @ w)
                delta = (a @ v - y[first : first + 32]) / 32
                hidden_delta = np.outer(delta, v) * (1 - a * a)
                v -= 0.1 * (delta @ a)
                w -= 0.1 * (x.T @ hidden_delta)

    return train


# --- the cases ------------------------------------------------------------------------------------------------------

SIGMOID_SGD: dict[str, Any] = {"activation": "sigmoid", "optimizer": "sgd", "learning_rate": 0.01}

# Batch size, width of the two hidden layers, type of the numbers, and the epochs of one timed call: some 5 ms, of
# which 0.4 ms are the call itself. The epochs are the same on every machine, so that both trees do the same work.
GRID = [
    (1, 8, "float32", 8),
    (1, 32, "float64", 2),
    (1, 128, "float32", 1),
    (8, 32, "float32", 16),
    (32, 2, "float64", 240),
    (32, 32, "float32", 40),
    (32, 128, "float64", 2),
    (128, 128, "float32", 4),
    (1024, 8, "float64", 100),
    (1024, 512, "float32", 1),
]

CASES: dict[str, Callable[[], Callable[[], object]]] = {
    "XOR": partial(
        training, 50_000, "float64", xor, hidden=2, activation="sigmoid", output="sigmoid", bias=False, init="uniform",
        optimizer="sgd", learning_rate=0.5, reduction="sum", batch_size=None,
    )
} | {
    f"batch {batch_size}, width {width}, {dtype}": partial(
        training, epochs, dtype, curve, hidden=(width, width), batch_size=batch_size, shuffle=False, **SIGMOID_SGD
    )
    for batch_size, width, dtype, epochs in GRID
} | {
    "softmax, Adam, shuffled": partial(
        training, 30, "float32", classes, hidden=32, loss="cross_entropy", optimizer="adam", batch_size=32
    ),
    "tanh, SGD with momentum": lambda: training(
        20, "float64", curve, hidden=(32, 32), activation="tanh", optimizer=fastbp.SGD(momentum=0.9), batch_size=64
    ),
    "step, 1 row": steps,
    "predict 1 row": partial(prediction, calls=300, rows=1),
    "predict 10,000 rows": partial(prediction, calls=10, rows=10_000),
}  # fmt: skip

# Their time is that on the wall: that of the processors would be the same if one thread did all the work.
THREADED = {
    "two threads, batch 1024, width 512, float32": partial(
        training, 1, "float32", curve, hidden=(512, 512), batch_size=1024, shuffle=False, threads=2, **SIGMOID_SGD
    )
}

# Nothing of fastbp: what moves these moves the machine.
CONTROLS = {"control: products in NumPy": matrix_products, "control: training in NumPy": numpy_training}

FIRST_CALL = "first call"  # of `train` in a process, with the import of Numba


def first_call() -> float:
    """Time the first call of `train`."""
    X, y = xor()
    began = time.perf_counter()
    fastbp.train(X, y, hidden=2, epochs=1, seed=0)
    return time.perf_counter() - began


def measure(names: list[str]) -> dict[str, float | str]:
    """Return the seconds of each case, or why it could not be run."""
    seconds: dict[str, float | str] = {}
    runs = {}
    for name in names:
        try:
            runs[name] = (CASES | THREADED | CONTROLS)[name]()
            runs[name]()  # compiles, or loads what has been compiled
        except Exception as error:  # whatever an older tree makes of a case that it does not know
            seconds[name] = f"{type(error).__name__}: {error}"
            runs.pop(name, None)
    best = dict.fromkeys(runs, math.inf)
    gc.disable()
    for _ in range(ROUNDS):  # all cases in turn: an interruption meets one round of several cases
        for name, run in runs.items():
            now = time.perf_counter if name in THREADED else clock
            began = now()
            run()
            best[name] = min(best[name], now() - began)
    return seconds | best


def main() -> None:
    """Check which tree this is, and measure it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tree", type=Path)
    parser.add_argument("names", nargs="+", choices=[*CASES, *THREADED, *CONTROLS, FIRST_CALL])
    arguments = parser.parse_args()
    imported = Path(fastbp.__file__).resolve()
    if not imported.is_relative_to(arguments.tree.resolve()):
        sys.exit(f"fastbp was imported from {imported.parent}, which is not in {arguments.tree}")
    if arguments.names == [FIRST_CALL]:
        result: dict[str, float | str] = {FIRST_CALL: first_call()}
    else:
        result = measure(arguments.names)
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
