"""What is measured: networks with their data and settings, the same for every library."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BATCH_SIZES = (1, 8, 32, 128, 1024)  # the last is the full batch
FEW_ROWS = (2, 4, 16)  # batches that fill no vector, or just one
WIDTHS = (2, 8, 32, 128, 512)
ODD_WIDTHS = (7, 33, 100, 300)  # no power of two, and no multiple of what a vector holds
DTYPES = ("float32", "float64")
CALL_SECONDS = 0.04  # of one timed call: a call of `fastbp.train` costs 0.4 ms beside its epochs, 1 % of this


@dataclass(frozen=True, slots=True)
class Case:
    """A training task. The loss is half the squared error; batches are taken in the order of the rows."""

    name: str
    sizes: tuple[int, ...]
    rows: int = 1024
    batch_size: int = 32
    dtype: str = "float32"
    activation: str = "sigmoid"
    output: str = "identity"
    optimizer: str = "sgd"  # a key of OPTIMIZERS
    learning_rate: float = 0.01
    bias: bool = True
    reduction: str = "mean"
    init: str = "glorot_uniform"
    seed: int = 0

    @property
    def flops_per_epoch(self) -> int:
        """Operations of the matrix products: forward, gradient and, but for the first layer, backward."""
        products = [2 * inputs * outputs * self.rows for inputs, outputs in pairwise(self.sizes)]
        return 3 * sum(products) - products[0]


# What `fastbp.SGD` and `fastbp.Adam` are given beside the learning rate.
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "adam": {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8},
}


def grid(dtype: str, batch_sizes: Iterable[int], widths: Iterable[int]) -> list[Case]:
    """Two hidden layers of the same width: between them lies the product of which wide networks consist."""
    return [
        Case(f"train {batch_size}x{width} {dtype}", (16, width, width, 1), batch_size=batch_size, dtype=dtype)
        for batch_size in batch_sizes
        for width in widths
    ]


GRID = [
    case
    for dtype in DTYPES
    for case in sorted(
        [*grid(dtype, BATCH_SIZES, WIDTHS), *grid(dtype, FEW_ROWS, (32, 128))],
        key=lambda case: (case.batch_size, case.sizes),
    )
]

# In float64 one batch size is enough to show whether the rest of a vector costs more there.
ODD_GRID = [*grid("float32", (1, 32, 1024), ODD_WIDTHS), *grid("float64", (32,), ODD_WIDTHS)]

# As wide inside as the widest of the grid, but between more inputs and outputs.
WIDE = [
    Case(f"64-512-512-10 batch {batch_size} {dtype}", (64, 512, 512, 10), batch_size=batch_size, dtype=dtype)
    for dtype, batch_sizes in (("float32", (1, 32, 1024)), ("float64", (32,)))
    for batch_size in batch_sizes
]

XOR = Case(
    "XOR notebook", (2, 2, 1), rows=4, batch_size=4, dtype="float64", output="sigmoid", learning_rate=0.5, bias=False,
    reduction="sum", init="uniform", seed=42,
)  # fmt: skip

# The published task of SimpleChains.jl: the network maps a 2 x 2 matrix to its exponential.
MATRIX_EXPONENTIAL = Case(
    "matrix exponential", (4, 32, 16, 4), rows=10_000, batch_size=10_000, activation="tanh", optimizer="adam",
    learning_rate=3e-4,
)  # fmt: skip

OPTIMIZER_CASES = [
    Case(f"optimizer {name}", (16, 32, 1), optimizer=name, learning_rate=0.001 if name == "adam" else 0.01)
    for name in OPTIMIZERS
]

# Whole calls of `predict`, Python's part included.
PREDICTIONS = {
    case.name: case
    for case in (
        Case("predict 1 row", (16, 32, 32, 1), rows=1),
        Case("predict 32 rows", (16, 32, 32, 1), rows=32),
        Case("predict 10,000 rows", (16, 32, 32, 1), rows=10_000),
    )
}

CASES = {case.name: case for case in [*GRID, *ODD_GRID, *WIDE, XOR, MATRIX_EXPONENTIAL, *OPTIMIZER_CASES]}

# What stands for the grids in a run of three minutes with all libraries.
CHOSEN = [
    *grid("float32", (1, 32, 1024), (2, 32, 512)),
    *grid("float64", (32,), (2, 32, 512)),
    *grid("float32", (4,), (32,)),
    *grid("float32", (32,), (33,)),
    WIDE[1],
]
DEFAULT = [case.name for case in CASES.values() if case in CHOSEN or case not in [*GRID, *ODD_GRID, *WIDE]]

# What PyTorch is compiled for, which takes some five seconds for each number of threads: small networks, where calls of
# its functions take longer than the arithmetic, and those in which PyTorch is among the fastest.
TORCH_COMPILED = (
    "train 32x32 float32",
    "train 32x128 float32",
    "train 1024x128 float32",
    "train 1024x512 float32",
)


def exponential(matrices: Array) -> Array:
    """Exponential of 2 x 2 matrices (n, 2, 2): e^m (cosh q + (A - m) sinh q / q), m = tr A / 2, q^2 = -det(A - m)."""
    m = np.trace(matrices, axis1=1, axis2=2)[:, None, None] / 2
    rest = matrices - m * np.eye(2)
    q = np.sqrt(-np.linalg.det(rest) + 0j)[:, None, None]
    return (np.exp(m) * (np.cosh(q) * np.eye(2) + np.sinh(q) / q * rest)).real


def data(case: Case) -> tuple[Array, Array]:
    """Return the rows X (n, inputs) and y (n, outputs) of a case, the same in every process."""
    random = np.random.RandomState(case.seed)
    if case.name == XOR.name:
        X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        y = X.sum(axis=1, keepdims=True) % 2
    else:
        X = random.standard_normal((case.rows, case.sizes[0]))
        if case.name == MATRIX_EXPONENTIAL.name:
            y = exponential(X.reshape(-1, 2, 2)).reshape(-1, 4)
        else:
            y = np.tanh(X @ random.standard_normal((case.sizes[0], case.sizes[-1])) / 2)
    return X.astype(case.dtype), y.astype(case.dtype)


def calibrate(repeat: Callable[[int], Any], seconds: float = CALL_SECONDS) -> int:
    """Return the number, of epochs or of predictions, that takes about so long.

    The first call, which may compile, does not count.
    """
    repeat(1)
    times = 1
    while True:
        began = time.perf_counter()
        repeat(times)
        elapsed = time.perf_counter() - began
        if elapsed > seconds / 4:
            return max(1, round(times * seconds / elapsed))
        # Of the shortest calls the clock tells little, hence in steps.
        times *= max(2, min(10, int(seconds / elapsed / 2)))
