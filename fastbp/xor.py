"""The worked example: XOR as a teaching notebook has it, its data, its settings and the table it prints."""

from __future__ import annotations

import importlib.util
import os
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbp import checks, reference
from fastbp.many import ManyResult, train_many
from fastbp.network import Network, engine
from fastbp.progress import Progress
from fastbp.threads import cores
from fastbp.train import TrainResult, train

X = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
y = np.array([[0.0], [1.0], [1.0], [0.0]])

# No biases and weights from [0, 1); the gradient is the sum over the four rows, all of them in every update.
NETWORK: dict[str, Any] = {"activation": "sigmoid", "output": "sigmoid", "bias": False, "init": "uniform"}
UPDATES: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.5, "reduction": "sum", "batch_size": None}

# What many are trained with, from which a fourth of the seeds do not get to the end: with biases, and cross-entropy.
MANY: dict[str, Any] = {
    "activation": "sigmoid", "loss": "binary_cross_entropy", "optimizer": "sgd", "learning_rate": 1.0,
    "batch_size": None,
}  # fmt: skip
PEERS = 10  # networks that scikit-learn is given

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


def train_many_xor(
    networks: int = 1000, epochs: int = 2000, seed: int = 0, hidden: Any = 2, progress: bool = False
) -> ManyResult:
    """Train networks of one shape on XOR that differ by their seeds alone.

    Parameters
    ----------
    networks : int, default 1,000
        How many.
    epochs : int, default 2,000
        Updates with all four rows, >= 0.
    seed : int, default 0
        Seed of the first network; the next one has the next.
    hidden : int or sequence of int, default 2
        Units of the hidden layers.
    progress : bool, default False
        Whether to show a bar on stderr.

    Returns
    -------
    ManyResult
        As of `train_many`.

    Raises
    ------
    ParameterError
        If a setting is out of range.
    ParameterTypeError
        If a setting has the wrong type.
    ResourceError
        If so many do not fit into memory.

    Examples
    --------
    >>> result = train_many_xor(20, epochs=1000)
    >>> int(solved(result.predict(X)).sum())
    11
    """
    return train_many(X, y, networks, hidden=hidden, **MANY, epochs=epochs, seed=seed, progress=progress)


def solved(predictions: NDArray[Any]) -> NDArray[np.bool_]:
    """Say which networks solve XOR: those that predict all four rows on the right side of 1/2.

    Parameters
    ----------
    predictions : ndarray of shape (networks, 4, 1)
        What each network predicts.

    Returns
    -------
    ndarray of shape (networks,)
        Whether it solves XOR.

    Examples
    --------
    >>> solved(np.array([y, 1 - y, y * 0.6]))
    array([ True, False,  True])
    """
    return ((predictions > 0.5) == (y > 0.5)).all(axis=(1, 2))


def report_many(
    networks: int = 1000, epochs: int = 2000, seed: int = 0, hidden: Any = 2, plot: str | os.PathLike[str] | None = None
) -> None:
    """Train many networks, print how many solve XOR and how long it took, beside scikit-learn, and draw their losses.

    Parameters
    ----------
    networks, epochs, seed, hidden
        As for `train_many_xor`, but at least one epoch. A bar on stderr shows the networks that have ended.
    plot : path, optional
        File of a picture, in the format that its name ends with.

    Raises
    ------
    ParameterError
        If a setting is out of range; or for `plot` if matplotlib is not installed or does not write such files.
    ParameterTypeError
        If a setting has the wrong type.
    ResourceError
        If so many do not fit into memory.
    OSError
        If the picture cannot be written.

    Examples
    --------
    >>> report_many(20, epochs=0)
    Traceback (most recent call last):
        ...
    fastbp.errors.ParameterError: 'epochs' must be an integer >= 1, got 0
    """
    count, epochs = checks.count("networks", networks), checks.count("epochs", epochs)
    shape = "-".join(str(units) for units in (2, *checks.hidden(hidden), 1))
    if plot is not None:
        _check_plot(Path(plot))
    print(f"XOR, {count:,} networks {shape} from as many seeds, {epochs:,} epochs", flush=True)
    began = time.perf_counter()
    result = train_many_xor(count, epochs, seed, hidden, progress=True)
    seconds = time.perf_counter() - began - result.compile_seconds
    good = int(solved(result.predict(X)).sum())
    print(f"  solve it          {good:,} of {count:,}")
    print(f"  time              {seconds:.3g} s on {cores()} cores")
    print(f"  networks/s        {count / seconds:,.0f}", flush=True)

    if importlib.util.find_spec("sklearn") is None:
        print('scikit-learn is not installed: pip install "fastbp[sklearn]" compares with it')
    else:
        peers = min(PEERS, count)
        peer_good, peer_seconds = _peers(peers, epochs, seed, hidden)
        print(f"The same by scikit-learn's MLPClassifier, {peers} of them:")
        print(f"  solve it          {peer_good} of {peers}")
        print(f"  time              {peer_seconds:.3g} s")
        print(f"  networks/s        {peers / peer_seconds:.3g}")
        print(f"  ratio             {count / seconds * peer_seconds / peers:,.0f}")
    print(f"Compiling the kernels, or loading them from disk: {result.compile_seconds:.2f} s")
    if plot is not None:
        _draw(result, f"{good:,} of {count:,} networks {shape} solve XOR", Path(plot))
        print(f"Their losses: {plot}")


def _peers(networks: int, epochs: int, seed: int, hidden: Any) -> tuple[int, float]:
    """Return how many networks of scikit-learn solve XOR after the same updates, and in how many seconds."""
    predictions, seconds = [], 0.0
    with Progress(networks, True, "network") as bar:
        for place in range(networks):
            began = time.perf_counter()
            network = _peer(epochs, (seed + place) % 2**32, hidden)
            seconds += time.perf_counter() - began
            predictions.append(network.predict_proba(X)[:, 1:])
            bar.show(place + 1)
    return int(solved(np.stack(predictions)).sum()), seconds


def _peer(epochs: int, seed: int, hidden: Any) -> Any:
    """Train a network of scikit-learn by what `MANY` says, for all epochs."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier(
        checks.hidden(hidden), activation="logistic", solver="sgd", learning_rate_init=MANY["learning_rate"],
        momentum=0, alpha=0, batch_size=4, max_iter=epochs, tol=0, n_iter_no_change=epochs, random_state=seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return network.fit(X, y.ravel())


def _check_plot(path: Path) -> None:
    """Refuse a picture that could not be drawn, before anything is trained."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise checks.ParameterError('needs matplotlib: pip install "fastbp[plot]"', "plot") from error
    kinds = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix.lower()[1:] not in kinds:
        raise checks.ParameterError(f"must end with one of {', '.join(kinds)}, got {path.name!r}", "plot")


def _draw(result: ManyResult, title: str, path: Path) -> None:
    """Write the picture: of the same result the same bytes every time."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from fastbp.plots import loss_spread

    figure = Figure(figsize=(8, 4), layout="constrained")
    loss_spread(result, figure.subplots()).set_title(title)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "fastbp", "font.sans-serif": ["DejaVu Sans"]}):
        figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def _duration(seconds: float) -> str:
    """Write a time in the unit that suits it."""
    for factor, unit in ((1e9, "ns"), (1e6, "us")):
        if seconds * factor < 1000:
            return f"{seconds * factor:.1f} {unit}"
    return f"{seconds * 1e3:.1f} ms"
