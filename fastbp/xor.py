"""The worked example: XOR as a teaching notebook has it, its data, its settings and the table it prints."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbp import checks, reference
from fastbp.network import Network, engine
from fastbp.train import TrainResult, train

X = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
y = np.array([[0.0], [1.0], [1.0], [0.0]])

# No biases and weights from [0, 1); the gradient is the sum over the four rows, all of them in every update.
NETWORK: dict[str, Any] = {"activation": "sigmoid", "output": "sigmoid", "bias": False, "init": "uniform"}
UPDATES: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.5, "reduction": "sum", "batch_size": None}

TIMED_RUNS = 5
TIMED_SECONDS = 0.04  # a call of `train` takes 0.4 ms beside its epochs: 1 % of this


def train_xor(backend: str = "numba", epochs: int = 10_000, seed: int = 42, hidden: Any = 2) -> TrainResult:
    """Train the notebook's network on XOR.

    Parameters
    ----------
    backend : {"numba", "numpy"}
        Compiled kernels or the NumPy reference.
    epochs : int, default 10,000
        Updates with all four rows, >= 0.
    seed : int, default 42
        Seed of the weights, 0 to 2^32 - 1.
    hidden : int or sequence of int, default 2
        Units of the hidden layers.

    Returns
    -------
    TrainResult
        `error` is what the notebook prints as loss: the mean of |y - prediction| in each epoch, before its update.

    Raises
    ------
    ParameterError
        If a setting is out of range.
    ParameterTypeError
        If a setting has the wrong type.

    Examples
    --------
    >>> result = train_xor("numpy", epochs=1000)
    >>> round(float(result.error[-1]), 10)
    0.3955703918
    """
    return train(X, y, hidden, **NETWORK, **UPDATES, epochs=epochs, seed=seed, backend=backend)


def predict(network: Network, backend: str = "numba") -> NDArray[np.float64]:
    """Predict the four rows.

    Parameters
    ----------
    network : Network
        As `train_xor` makes it.
    backend : {"numba", "numpy"}
        With "numpy", Numba is not even imported.

    Returns
    -------
    ndarray of shape (4, 1)
        The predictions.

    Examples
    --------
    >>> predict(train_xor("numpy").network, "numpy").round().ravel()
    array([0., 1., 1., 0.])
    """
    return network.predict(X, backend)


def train_and_predict(
    backend: str = "numba", epochs: int = 10_000, seed: int = 42, hidden: Any = 2
) -> tuple[TrainResult, NDArray[np.float64]]:
    """Train as `train_xor` does, and keep the predictions of the last epoch, which the notebook prints.

    Parameters
    ----------
    backend, epochs, seed, hidden
        As for `train_xor`, but at least one epoch.

    Returns
    -------
    result : TrainResult
        Bit for bit that of `train_xor`. Its `compile_seconds` include those of the prediction.
    predictions : ndarray of shape (4, 1)
        Made with the weights from before the last update.

    Raises
    ------
    ParameterError
        If a setting is out of range.
    ParameterTypeError
        If a setting has the wrong type.

    Examples
    --------
    >>> result, predictions = train_and_predict("numpy", epochs=100)
    >>> bool(np.isclose(np.abs(y - predictions).mean(), result.error[-1], rtol=1e-15))
    True
    """
    most = train_xor(backend, checks.count("epochs", epochs) - 1, seed, hidden)
    began = time.perf_counter()
    predictions = predict(most.network, backend)
    predict_seconds = time.perf_counter() - began
    # Plain gradient descent remembers nothing but the weights: training can stop here and go on.
    last = train(X, y, network=most.network, **UPDATES, epochs=1, seed=seed, backend=backend)
    result = most._replace(
        loss=np.concatenate([most.loss, last.loss]),
        error=np.concatenate([most.error, last.error]),
        seconds=most.seconds + last.seconds,
        compile_seconds=most.compile_seconds + predict_seconds,
    )
    return result, predictions


def seconds_per_epoch(backend: str = "numba", hidden: Any = 2) -> float:
    """Measure the time of one epoch: the best of five runs, each long enough for the clock.

    Parameters
    ----------
    backend : {"numba", "numpy"}
        Compiled kernels or the NumPy reference.
    hidden : int or sequence of int, default 2
        Units of the hidden layers.

    Returns
    -------
    float
        Seconds, with what an epoch shares of starting the run, and without compiling.

    Examples
    --------
    >>> 0 < seconds_per_epoch("numpy") < 1
    True
    """
    epochs = 100
    while train_xor(backend, epochs, hidden=hidden).seconds < TIMED_SECONDS:
        epochs *= 2
    return min(train_xor(backend, epochs, hidden=hidden).seconds for _ in range(TIMED_RUNS)) / epochs


def report(backend: str = "numba", epochs: int = 10_000, seed: int = 42, hidden: Any = 2) -> None:
    """Print what the notebook prints, then the time of an epoch.

    Parameters
    ----------
    backend, epochs, seed, hidden
        As for `train_xor`, but at least one epoch. About ten losses are printed, the last epoch's among them.

    Raises
    ------
    ParameterError
        If a setting is out of range.
    ParameterTypeError
        If a setting has the wrong type.

    Examples
    --------
    >>> report("numpy", epochs=2)  # doctest: +ELLIPSIS
    XOR, NumPy reference
    Epoch 1, Loss: 0.49942...
    Epoch 2, Loss: 0.49948...
    <BLANKLINE>
    Final hidden weights:
    [[...
    """
    compiled = engine(backend) is not reference  # as it is for "numba" too under NUMBA_DISABLE_JIT
    # The first line comes before training, because compiling takes some seconds.
    print("XOR, compiled kernels (compiled once, then loaded)" if compiled else "XOR, NumPy reference", flush=True)
    result, predictions = train_and_predict(backend, epochs, seed, hidden)
    interval = max(1, epochs // 10)
    for epoch in sorted({*range(interval, epochs + 1, interval), epochs}):
        print(f"Epoch {epoch}, Loss: {float(result.error[epoch - 1])!r}")
    *hidden_weights, output_weights = result.network.weights
    print("\nFinal hidden weights:", *hidden_weights, sep="\n")
    print("Final output weights:", output_weights, sep="\n")
    print("Predictions of the last epoch:", predictions, sep="\n")

    print(f"\nTime per epoch, the best of {TIMED_RUNS} runs:")
    reference_seconds = seconds_per_epoch("numpy", hidden)
    if compiled:
        kernel_seconds = seconds_per_epoch("numba", hidden)
        print(f"  compiled kernels  {_duration(kernel_seconds)}")
    print(f"  NumPy reference   {_duration(reference_seconds)}")
    if compiled:
        print(f"  ratio             {reference_seconds / kernel_seconds:.1f}")
        print(f"Compiling the kernels, or loading them from disk: {result.compile_seconds:.2f} s")


def _duration(seconds: float) -> str:
    """Write a time in the unit that suits it."""
    for factor, unit in ((1e9, "ns"), (1e6, "us")):
        if seconds * factor < 1000:
            return f"{seconds * factor:.1f} {unit}"
    return f"{seconds * 1e3:.1f} ms"
