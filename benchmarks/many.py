"""Many networks at once: the cases, and what a library does with them, each with the same arithmetic.

A row of MANY_LIBRARIES makes a `Run`. Networks of a case differ by their first weights, which their seeds draw.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import DTYPES, XOR, Case, data
from benchmarks.peers import jax_layers, network, sklearn_model, sklearn_targets

Array = NDArray[Any]

NUMBERS = (1, 8, 16, 64, 1_000, 10_000)  # of XOR networks
WIDTHS = (2, 8, 32, 128)
ROUNDS = 5
LONG = 2.0  # seconds of a round of which three are enough
NEAR = 10  # times as slow as the best peer: those are measured once
CALL_SECONDS = 0.1  # of those whose time is that of their epochs alone
CHUNK = 256  # networks that JAX is handed at a time, beside all of them and all of a core
SOME = 8  # networks for each core are enough to time those that train one after the other


@dataclass(frozen=True, slots=True)
class Many:
    """So many networks of a case, each trained for so many epochs."""

    case: Case
    networks: int
    epochs: int

    @property
    def name(self) -> str:
        """Name it."""
        shape = "XOR" if self.case.name == XOR.name else "-".join(map(str, self.case.sizes))
        return f"{self.networks:,} x {shape} {self.case.dtype}"

    def seeded(self, place: int) -> Case:
        """Return the case of one network."""
        return replace(self.case, seed=self.case.seed + place)


XORS = [
    Many(replace(XOR, dtype=dtype), networks, 10_000) for dtype in reversed(DTYPES) for networks in NUMBERS
]  # fmt: skip
SHAPES = [
    Many(Case("", (16, *[width] * depth, 1), dtype=dtype), 16 if width == 128 else 64, 5 if width == 128 else 40)
    for dtype in DTYPES
    for depth in (1, 2)
    for width in WIDTHS
]
MANY = {many.name: many for many in [*XORS, *SHAPES]}
MANY_DEFAULT = [
    many.name
    for many in MANY.values()
    if many.networks == 1_000
    or (many.case.dtype == "float32" and many.case.sizes in ((16, 32, 1), (16, 8, 8, 1), (16, 128, 128, 1)))
]


class Run(NamedTuple):
    """What a library made of a case."""

    train: Callable[[int], Array]  # for so many epochs, from the same weights; returns the losses of the last epoch
    networks: int  # that it trains: fewer than the case has if it trains one after the other, and so has its speed
    linear: bool = False  # whether epochs are all that takes time, so that some of them tell the speed


# --- fastbp ---------------------------------------------------------------------------------------------------------


def settings_of(many: Many) -> dict[str, Any]:
    """Return what `fastbp.train` is told."""
    import fastbp

    case = many.case
    return {
        "hidden": case.sizes[1:-1], "activation": case.activation, "output": case.output, "bias": case.bias,
        "init": case.init, "dtype": case.dtype, "batch_size": case.batch_size, "shuffle": False,
        "reduction": case.reduction, "optimizer": fastbp.SGD(learning_rate=case.learning_rate),
    }  # fmt: skip


def in_lanes(threads: int | str, many: Many) -> Run:
    """Train by `train_many`, with all that it does once."""
    import fastbp

    X, y = data(many.case)
    told = settings_of(many)

    def train(epochs: int) -> Array:
        result = fastbp.train_many(X, y, many.networks, seed=many.case.seed, epochs=epochs, threads=threads, **told)
        return result.loss[-1]

    return Run(train, many.networks)


def cores() -> int:
    """Count the cores that may be used."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_by_one(threads: int, many: Many) -> Run:
    """Train by `fastbp.train`, in a loop or in a pool of threads, which it does not hold up: kernels leave the lock."""
    import fastbp

    X, y = data(many.case)
    told = settings_of(many)
    networks = min(many.networks, SOME * cores())
    seeds = range(many.case.seed, many.case.seed + networks)
    pool = ThreadPoolExecutor(threads)

    def one(epochs: int, seed: int) -> float:
        return float(fastbp.train(X, y, seed=seed, epochs=epochs, threads=1, **told).loss[-1])

    def train(epochs: int) -> Array:
        return np.array([*(map if threads == 1 else pool.map)(functools.partial(one, epochs), seeds)])

    return Run(train, networks)


# --- scikit-learn ---------------------------------------------------------------------------------------------------


def fit(model: Any, X: Array, y: Array, epochs: int) -> float:
    """Let a regressor go on from its weights, in a process or a thread of joblib."""
    from sklearn.exceptions import ConvergenceWarning

    warnings.simplefilter("ignore", ConvergenceWarning)
    model.loss_curve_, model.max_iter = [], epochs
    model.fit(X, y)
    return float(model.loss_)


def with_joblib(many: Many) -> Run:
    """Train regressors by joblib, in processes or threads, whichever is faster."""
    import joblib

    networks = min(many.networks, 2 * cores())
    first = [sklearn_model(many.seeded(place)) for place in range(networks)]
    weights = [(model.coefs_, model.intercepts_) for model in first]
    X, y = data(many.case)
    y = sklearn_targets(y)

    def train(prefer: str, epochs: int) -> Array:
        for model, (coefs, intercepts) in zip(first, weights, strict=True):
            model.coefs_, model.intercepts_ = [w.copy() for w in coefs], [b.copy() for b in intercepts]
        jobs = (joblib.delayed(fit)(model, X, y, epochs) for model in first)
        with warnings.catch_warnings():  # of all threads; those of a process are its own
            return np.array(joblib.Parallel(n_jobs=cores(), prefer=prefer)(jobs))

    return Run(faster([functools.partial(train, prefer) for prefer in ("threads", "processes")]), networks, True)


# --- JAX ------------------------------------------------------------------------------------------------------------


def jax_vmap(many: Many) -> Run:
    """Train in one compiled call, networks its mapped axis: all in one, or chunks of them on as many threads as cores.

    The fastest is taken. Products written as sums, which the compiler joins with what follows, took 7 to 120 times as
    long but for chunks of 64 networks of XOR, where both took the same.
    """
    import jax
    import jax.numpy as jnp

    case = many.case
    _, forward = jax_layers(case)
    X, y = (jnp.asarray(a.reshape(-1, case.batch_size, a.shape[1])) for a in data(case))
    scale = 1 / case.batch_size if case.reduction == "mean" else 1.0
    members = [network(many.seeded(place)) for place in range(many.networks)]
    first = [
        tuple(np.stack(leaves) for leaves in zip(*layer, strict=True))
        for layer in zip(
            *(zip(*((each.weights, each.biases) if case.bias else (each.weights,)), strict=True) for each in members),
            strict=True,
        )
    ]

    def objective(parameters: Any, x: Any, target: Any) -> Any:
        return 0.5 * scale * jnp.sum((forward(parameters, x) - target) ** 2)

    def batch(parameters: Any, xy: Any) -> Any:
        loss, gradient = jax.value_and_grad(objective)(parameters, *xy)
        return jax.tree.map(lambda w, g: w - case.learning_rate * g, parameters, gradient), loss

    def run(parameters: Any, epochs: Any, X: Any, y: Any) -> Any:
        def epoch(_: Any, carry: Any) -> Any:
            parameters, losses = jax.lax.scan(batch, carry[0], (X, y))
            return parameters, losses.sum() / scale / case.rows

        return jax.lax.fori_loop(0, epochs, epoch, (parameters, jnp.zeros((), X.dtype)))

    mapped = jax.jit(jax.vmap(run, in_axes=(0, None, None, None)))
    pool = ThreadPoolExecutor(cores())

    def in_chunks(size: int) -> Callable[[int], Array]:
        parts = [
            jax.tree.map(lambda leaf: jnp.array(leaf[begin : begin + size]), first)  # noqa: B023
            for begin in range(0, many.networks, size)
        ]

        def train(epochs: int) -> Array:
            return np.concatenate([*pool.map(lambda part: np.asarray(mapped(part, epochs, X, y)[1]), parts)])

        return train

    sizes = {many.networks, -(-many.networks // cores()), min(many.networks, CHUNK)}
    return Run(faster([in_chunks(size) for size in sorted(sizes)]), many.networks, True)


# --- measuring ------------------------------------------------------------------------------------------------------


MANY_LIBRARIES: dict[str, Callable[[Many], Run]] = {
    "fastbp": functools.partial(in_lanes, "auto"),
    "fastbp, 1 thread": functools.partial(in_lanes, 1),
    "loop over train": functools.partial(one_by_one, 1),
    "thread pool over train": lambda many: one_by_one(cores(), many),
    "scikit-learn, joblib": with_joblib,
    "jax vmap": jax_vmap,
}


def seconds_of(train: Callable[[int], Any], epochs: int) -> float:
    """Time one call."""
    began = time.perf_counter()
    train(epochs)
    return time.perf_counter() - began


def affordable(train: Callable[[int], Any], most: int) -> int:
    """Return how many epochs take some CALL_SECONDS, at most so many."""
    train(1)  # may compile
    epochs = 1
    while epochs < most:
        seconds = seconds_of(train, epochs)
        if seconds > CALL_SECONDS / 4:
            return max(1, min(most, round(epochs * CALL_SECONDS / seconds)))
        epochs *= 4
    return most


def faster(trains: list[Callable[[int], Array]]) -> Callable[[int], Array]:
    """Return the fastest of some ways to do the same."""
    if len(trains) == 1:
        return trains[0]
    speeds = []
    for train in trains:
        epochs = affordable(train, 10_000)
        speeds.append(epochs / min(seconds_of(train, epochs) for _ in range(2)))
    return trains[int(np.argmax(speeds))]


class ManyMeasured(NamedTuple):
    """How fast libraries are."""

    speeds: dict[str, float]  # library: networks per second, each trained for all epochs of the case
    ratios: dict[str, list[float]]  # library: how many times as fast as it fastbp was, round by round


def many_in_turns(runs: Mapping[str, Run], epochs: int) -> ManyMeasured:
    """Time all libraries once, then in turns those that are not ten times as slow as the best peer.

    A speed is the median over the rounds, or that of the only time; of two calls that take no second the faster counts.
    """
    times = {library: affordable(run.train, epochs) if run.linear else epochs for library, run in runs.items()}

    def speed(library: str) -> float:
        run = runs[library]
        seconds = seconds_of(run.train, times[library])
        if seconds < 0.25:
            seconds = min(seconds, seconds_of(run.train, times[library]))
        return run.networks * times[library] / epochs / seconds

    for run in runs.values():
        if not run.linear:
            run.train(1)  # compiles
    speeds = {library: speed(library) for library in runs}
    best = max((figure for library, figure in speeds.items() if not library.startswith("fastbp")), default=0)
    near = [library for library, figure in speeds.items() if library.startswith("fastbp") or figure * NEAR >= best]
    rounds: dict[str, list[float]] = {library: [] for library in near}
    seconds = sum(runs[library].networks * times[library] / epochs / speeds[library] for library in near)
    for turn in range(ROUNDS if seconds < LONG else 3):
        for library in near[:: 1 if turn % 2 == 0 else -1]:  # ABBA: what drifts favours neither
            rounds[library].append(speed(library))
    speeds |= {library: statistics.median(values) for library, values in rounds.items()}
    ratios = {
        library: [fastbp / other for fastbp, other in zip(rounds["fastbp"], values, strict=True)]
        for library, values in rounds.items()
        if library != "fastbp"
    }
    return ManyMeasured(speeds, ratios)


# --- networks that leave their lanes at random times ----------------------------------------------------------------

LEAVING = Many(Case("", (16, 8, 8, 1)), 256, 20)


def leaving(many: Many, threads: int | str = "auto") -> Callable[[], float]:
    """Return a function that trains networks for random numbers of epochs, from 1 to twice those of the case.

    It returns how many times as long it took as the same number of epochs where all networks end together.
    """
    import fastbp

    X, y = data(many.case)
    told = settings_of(many) | {"threads": threads, "seed": many.case.seed}
    epochs = np.random.RandomState(many.case.seed).randint(1, 2 * many.epochs + 1, many.networks)
    own = [{"epochs": int(each)} for each in epochs]
    fastbp.train_many(X, y, many.networks, epochs=1, **told)  # compiles

    def once() -> float:
        began = time.perf_counter()
        fastbp.train_many(X, y, own, **told)
        middle = time.perf_counter()
        fastbp.train_many(X, y, many.networks, epochs=many.epochs, **told)
        together = (time.perf_counter() - middle) / (many.networks * many.epochs)
        return (middle - began) / int(epochs.sum()) / together

    return once


def stopping(many: Many, threads: int | str = "auto") -> Callable[[], float]:
    """Return a function that trains networks until their losses of noisy rows for validation improve no more.

    It returns how many times as long it took as the same number of epochs where all networks end together.
    """
    import fastbp

    X, y = data(many.case)
    y = y + np.random.RandomState(1).standard_normal(y.shape).astype(y.dtype)
    told = settings_of(many) | {"threads": threads, "seed": many.case.seed, "validation": 0.25}
    told["optimizer"] = fastbp.SGD(learning_rate=0.3)
    fastbp.train_many(X, y, many.networks, epochs=1, **told)  # compiles

    def once() -> float:
        began = time.perf_counter()
        epochs = fastbp.train_many(X, y, many.networks, patience=5, epochs=20 * many.epochs, **told).epochs
        middle = time.perf_counter()
        fastbp.train_many(X, y, many.networks, epochs=round(epochs.mean()), **told)
        together = (time.perf_counter() - middle) / (many.networks * round(epochs.mean()))
        return (middle - began) / int(epochs.sum()) / together

    return once


LEAVERS: dict[str, Callable[[], Callable[[], float]]] = {
    f"{LEAVING.name}, random epochs": functools.partial(leaving, LEAVING),
    f"{LEAVING.name}, random epochs, 1 thread": functools.partial(leaving, LEAVING, 1),
    f"{LEAVING.name}, patience": functools.partial(stopping, LEAVING),
}
