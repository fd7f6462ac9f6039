"""`train()` and `resume()`: check, allocate once, run the kernel in chunks, report."""

from __future__ import annotations

import dataclasses
import functools
import logging
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastbp import checkpoint, checks, choices
from fastbp.choices import BACKENDS, CLASSIFYING, LOSSES, REDUCTIONS, IRprop, Optimizer, Schedule
from fastbp.network import Network, engine
from fastbp.progress import Progress
from fastbp.reference import rate_factor
from fastbp.workspace import (
    BATCH_WEIGHT,
    BEST,
    EPOCH,
    ERROR,
    FACTOR,
    HISTORY,
    LOSS,
    MISFIT,
    PANEL,
    PIECE,
    POWER1,
    POWER2,
    ROW,
    STALE,
    TRAINING_LOSS,
    VALIDATION_LOSS,
    VALIDATION_MISFIT,
    WEIGHT,
    Memory,
    Plan,
    make_memory,
    make_plan,
    memory_sizes,
    panels_in,
    panels_of,
    pieces,
    rows_of,
)

Array = NDArray[Any]

CHUNK_SECONDS = 0.02  # how long Ctrl-C may have to wait
WATCHES = ("loss", "score")
STATE = ("first", "second", "best", "position", "totals")  # of a Memory, beside the parameters

_log = logging.getLogger("fastbp")
_log.addHandler(logging.NullHandler())


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What `train` was told about the training, checked, without the data."""

    optimizer: Optimizer
    schedule: Schedule
    batch_size: int | None
    shuffle: bool
    mean: bool
    l2: float
    dropout: tuple[float, ...]
    clip_norm: float
    class_weight: str | dict[int, float] | None
    validation: float | None
    patience: int | None
    min_delta: float
    watch: str
    seed: int
    backend: str


class State(NamedTuple):
    """What `resume` goes on from: the settings, and copies of the memory at the end of the last epoch."""

    settings: Settings
    params: Array
    arrays: dict[str, Array]  # by the names of STATE and HISTORY


class TrainResult(NamedTuple):
    """What `train` and `resume` return.

    Attributes
    ----------
    network : Network
        The trained network.
    loss : ndarray of shape (epochs,)
        Mean loss of a row in each epoch, each batch before its update, and with the penalty of `l2`; float64.
    error : ndarray of shape (epochs,)
        Mean absolute difference between target and prediction, measured likewise; float64.
    validation_loss, validation_error : ndarray of shape (epochs,) or None
        The same of the rows for validation after each epoch, without penalty.
    validation_score : ndarray of shape (epochs,) or None
        Their share that is predicted right, all outputs of a row; for numbers R^2, the mean over the outputs, of which
        one whose targets are all the same counts as 0. NaN if all are such, as they are in a single row.
    best_epoch : int or None
        Epoch, counted from 1, in which the validation was best; with `patience` the network has its weights.
    stopped : {"epochs", "patience", "plateau", "time", "callback"}
        Why training ended: all epochs were done, `patience` was over, the schedule was at its minimum, the time limit
        was reached, or the callback returned True.
    seed : int
        What seeded weights, orders and dropout; the same seed repeats the run bit by bit.
    seconds : float
        Time of the training itself.
    compile_seconds : float
        Time to import Numba and to compile the kernels or load them from disk; almost nothing after the first call of
        a process.
    state : State
        What `resume` goes on from.
    """

    network: Network
    loss: NDArray[np.float64]
    error: NDArray[np.float64]
    validation_loss: NDArray[np.float64] | None
    validation_error: NDArray[np.float64] | None
    validation_score: NDArray[np.float64] | None
    best_epoch: int | None
    stopped: str
    seed: int
    seconds: float
    compile_seconds: float
    state: State

    def save(self, path: checkpoint.Path) -> None:
        """Save network, settings and the state of the optimiser to a file from which `resume` goes on.

        Parameters
        ----------
        path : str or os.PathLike
            Exactly the name of the file; written as `Network.save` writes.

        Raises
        ------
        DataError
            If a parameter of the network is not finite, or `state` is not what a training ends with, so that `resume`
            would refuse the file.
        OSError
            If the file cannot be written; the old one is untouched then.
        ParameterError
            If `path` contains the character NUL.
        ParameterTypeError
            If `path` is not a str or os.PathLike.

        Examples
        --------
        >>> X, y = [[0.0], [1.0]], [1.0, 0.0]
        >>> train(X, y, epochs=5, seed=0).save("training.npz")
        >>> bool((resume("training.npz", X, y, epochs=5).loss == train(X, y, epochs=10, seed=0).loss).all())
        True
        """
        checks.parameters(self.network.params, self.network.sizes, self.network.bias)
        state = _own_state(self)
        network, arrays = self.network._to_file()
        settings = dataclasses.asdict(state.settings)
        for name in ("optimizer", "schedule"):
            settings[name] = {"class": type(getattr(state.settings, name)).__name__, **settings[name]}
        if isinstance(settings["class_weight"], dict):
            settings["class_weight"] = list(settings["class_weight"].items())  # JSON would make its keys strings
        metadata = {"kind": "training", "network": network, "settings": settings}
        checkpoint.write(path, metadata, {**arrays, "last": state.params, **state.arrays})


class EpochState(NamedTuple):
    """What a callback is shown. Nothing of it can be written to.

    Attributes
    ----------
    epoch : int
        Epochs done.
    network : Network
        The network as it is now.
    loss, error : ndarray of shape (epoch,)
        As in `TrainResult`.
    validation_loss, validation_error : ndarray of shape (epoch,) or None
        As in `TrainResult`.
    """

    epoch: int
    network: Network
    loss: NDArray[np.float64]
    error: NDArray[np.float64]
    validation_loss: NDArray[np.float64] | None
    validation_error: NDArray[np.float64] | None


class Attendance(NamedTuple):
    """What Python does between the chunks of a run."""

    callback: Callable[[EpochState], object] | None
    callback_every: int
    progress: bool
    time_limit: float | None


def train(
    X: ArrayLike,
    y: ArrayLike,
    hidden: Any = (),
    *,
    network: Network | None = None,
    activation: Any = "relu",
    output: str | None = None,
    loss: str = "squared_error",
    huber_delta: float = 1.0,
    bias: bool = True,
    init: str = "glorot_uniform",
    optimizer: str | Optimizer = "adam",
    learning_rate: float | None = None,
    schedule: str | Schedule = "constant",
    epochs: int = 200,
    batch_size: int | None = 32,
    shuffle: bool = True,
    reduction: str = "mean",
    l2: float = 0.0,
    dropout: Any = 0.0,
    clip_norm: float | None = None,
    sample_weight: ArrayLike | None = None,
    class_weight: str | dict[int, float] | None = None,
    validation: Any = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    watch: str = "loss",
    time_limit: float | None = None,
    callback: Callable[[EpochState], object] | None = None,
    callback_every: int = 1,
    progress: bool = False,
    seed: int | None = None,
    dtype: Any = None,
    backend: str = "numba",
) -> TrainResult:
    """Train a multilayer perceptron by back-propagation.

    Parameters
    ----------
    X : array_like of shape (n, inputs)
        One sample a row; finite numbers. Never written to.
    y : array_like of shape (n,) or (n, outputs)
        Targets: numbers, for "poisson" none below 0, for "binary_cross_entropy" 0 and 1, for "cross_entropy" class
        numbers 0, 1, ... of shape (n,) or a row of probabilities for each sample. Never written to.
    hidden : int or sequence of int, default ()
        Units of the hidden layers; () is a linear model.
    network : Network, optional
        Train this one, in place, instead of a new one; it brings all that describes a network with it.
    activation : str or sequence of str, default "relu"
        "identity", "sigmoid", "tanh", "relu", "leaky_relu", "elu", "gelu", "silu", "softplus" or "exponential": one
        for all hidden layers, or one for each.
    output : str, optional
        Activation of the last layer; by default the natural partner of the loss: "sigmoid" of "binary_cross_entropy",
        "softmax" of "cross_entropy", "exponential" of "poisson", else "identity".
    loss : {"squared_error", "binary_cross_entropy", "cross_entropy", "absolute_error", "huber", "poisson"}
        Of a row, summed over the outputs. Squared error is 1/2 (prediction - y)^2; "poisson" is half the deviance, and
        the logit the logarithm of the rate. `choices.LOSSES` has all formulas.
    huber_delta : float, default 1.0
        Size of a residual above which "huber" is no longer quadratic; above 0.
    bias : bool, default True
        Whether layers have biases.
    init : {"glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "uniform", "zeros"}
        How weights are drawn; biases begin at zero.
    optimizer : {"adam", "sgd", "adamw", "rmsprop", "irprop"} or settings, default "adam"
        A name, or settings such as ``SGD(momentum=0.9)``. "irprop" needs ``batch_size=None``.
    learning_rate : float, optional
        In place of the optimiser's own; above 0.
    schedule : {"constant", "exponential", "inverse_scaling", "cosine", "reduce_on_plateau"} or settings
        How the learning rate goes on, by a name or by settings such as ``CosineDecay(warmup=5)``. The length of
        "cosine" is `epochs`; one that shall be resumed is given its own, such as ``CosineDecay(epochs=100)``.
    epochs : int, default 200
        Passes over the data, >= 0.
    batch_size : int or None, default 32
        Rows of a batch; None, or as many as there are rows or more, is the full batch. The last batch may be short.
    shuffle : bool, default True
        Whether each epoch visits the rows in a new order. A full batch keeps the order of the rows.
    reduction : {"mean", "sum"}
        Whether the gradient of a batch, penalty and all, is divided by the sum of the weights of its rows, which is
        their number where rows have no weights.
    l2 : float, default 0.0
        Penalty: l2 / 2 times the sum of the squared weights, not biases, is added to the summed loss of each batch, as
        scikit-learn's `alpha` is. PyTorch's `weight_decay` is ``l2 / batch_size``. At least 0.
    dropout : float or sequence of float, default 0.0
        Share of the units of the hidden layers that each row does without, in [0, 1): one for all layers, or one for
        each.
    clip_norm : float, optional
        Gradients of a greater Euclidean norm are scaled down to this one; above 0.
    sample_weight : array_like of shape (n,), optional
        Weights of the rows, at least 0. The mean loss is the weighted one.
    class_weight : {"balanced"} or dict of int to float, optional
        Weights of the classes, times `sample_weight`; "balanced" gives all classes the same sum of weights, and a
        class that a dict does not name has weight 1. For losses of classes, one of which each row has.
    validation : float or tuple, optional
        Share of the rows, in (0, 1), drawn by `seed` and left out of the training, or data ``(X, y)`` or
        ``(X, y, sample_weight)``: loss, error and score of these rows are measured after each epoch.
    patience : int, optional
        Training stops after more than so many epochs in a row that were not better than the best before. Where there
        is a validation, the network then has the weights of the best epoch, however training ended.
    min_delta : float, default 0.0
        By how much an epoch must be better; at least 0.
    watch : {"loss", "score"}
        What `patience` and "reduce_on_plateau" watch: the loss of the validation, or its score, which for numbers needs
        rows whose targets differ. Without validation it is the loss of the training.
    time_limit : float, optional
        Seconds after which training stops, at the end of an epoch; above 0. Compiling does not count.
    callback : callable, optional
        Called as ``callback(state)`` with an `EpochState`; if it returns True, training stops.
    callback_every : int, default 1
        Epochs from one call to the next.
    progress : bool, default False
        Whether to show a bar on stderr: tqdm's where tqdm is installed, else a plain line.
    seed : int, optional
        Seed of the weights, the orders, the validation and dropout, 0 to 2^32 - 1; by default a fresh one.
    dtype : {"float32", "float64"}, optional
        Precision of the arithmetic; by default float32 if X is float32 or float16, else float64.
    backend : {"numba", "numpy"}
        Compiled kernels, or the NumPy reference, slower: the same result to rounding, unless an exponential comes near
        the largest number, since that of the kernels ends at e^709, or e^88 in float32, and NumPy's overflows.

    Returns
    -------
    TrainResult
        The network, the losses of each epoch, why it stopped, the seed, and the seconds it took.

    Raises
    ------
    ParameterError
        If a setting is out of range, is subnormal in the precision of the training, does not go with another, or
        describes a network that `network` already is.
    ParameterTypeError
        If an argument has the wrong type.
    DataError
        If X or y has the wrong shape, values that are not finite, or labels out of range; if weights are subnormal; if
        a score is watched that does not exist, since all targets for validation are the same.
    ResourceError
        If the training, with all that it allocates, would not fit into memory.
    DivergenceError
        If loss or weights cease to be finite. The network keeps the weights of the last epoch that ended well, and
        `result` of the error holds it with the losses up to there.

    Notes
    -----
    The same arguments, seed and version give the same bits on every CPU with fused multiply-add; with
    ``backend="numpy"`` only on the same machine, since NumPy's products and functions differ between CPUs.

    Once an epoch has begun, Ctrl-C raises KeyboardInterrupt within 50 ms, or after its order is drawn: 90 ms for ten
    million shuffled rows. The NumPy reference ends its batch first, and drawing the rows of a `validation` share is one
    call of NumPy. A `network` that was handed in then has the weights reached so far.

    Numbers of X and y that are subnormal, below 1e-38 in float32 and 2e-308 in float64, count as 0.

    References
    ----------
    Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", Nature 323, 1986.
    Srivastava et al., "Dropout", JMLR 15, 2014. Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent
    neural networks", ICML 2013, for `clip_norm`. Prechelt, "Early stopping - but when?", 1998, for `patience`.

    Examples
    --------
    >>> X, y = [[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0]
    >>> result = train(X, y, hidden=4, activation="tanh", batch_size=None, learning_rate=0.1, seed=0)
    >>> result.network.predict(X).round().ravel() + 0.0
    array([0., 1., 1., 0.])
    """
    backend = checks.choice("backend", backend, BACKENDS)
    loss = checks.choice("loss", loss, LOSSES)
    if network is not None:
        checks.instance("network", network, Network)
        checks.alone(
            hidden=(hidden, ()), activation=(activation, "relu"), output=(output, None), bias=(bias, True),
            loss=(loss, "squared_error"), huber_delta=(huber_delta, 1.0), init=(init, "glorot_uniform"),
            dtype=(dtype, None),
        )  # fmt: skip
        checks.parameters(network.params, network.sizes, network.bias, writeable=True)
        loss, dtype, units = network.loss, network.params.dtype, network.sizes[1:-1]
    else:
        units = checks.hidden(hidden)
    epochs = checks.count("epochs", epochs, minimum=0)
    precision = checks.dtype(dtype, X)
    settings = _settings(
        len(units), precision,
        optimizer=optimizer, learning_rate=learning_rate,
        schedule=schedule, epochs=epochs,
        batch_size=batch_size, shuffle=shuffle,
        mean=checks.choice("reduction", reduction, REDUCTIONS) == "mean",
        l2=l2,
        dropout=dropout,
        clip_norm=0.0 if clip_norm is None else checks.number("clip_norm", clip_norm, above=0),
        class_weight=class_weight,
        validation=checks.validation(validation),
        patience=patience, min_delta=min_delta, watch=watch,
        seed=checks.seed(seed),
        backend=backend,
    )  # fmt: skip
    attendance = _attendance(callback, callback_every, progress, time_limit)
    X = checks.features(X, precision, None if network is None else network.sizes[0])
    y = checks.targets(y, loss, len(X), None if network is None else network.sizes[-1], precision)
    weights = None if sample_weight is None else checks.row_weights(sample_weight, len(X), precision)
    data = _data(settings, loss, X, y, weights, validation)
    if network is None:
        network = Network(
            (X.shape[1], *units, y.shape[1]), activation=activation, output=output, loss=loss, huber_delta=huber_delta,
            bias=bias, init=init, seed=settings.seed, dtype=precision,
        )  # fmt: skip
    return _run(network, settings, data, epochs, attendance, None)


def resume(
    result: TrainResult | checkpoint.Path,
    X: ArrayLike,
    y: ArrayLike,
    *,
    epochs: int,
    sample_weight: ArrayLike | None = None,
    validation: Any = None,
    time_limit: float | None = None,
    callback: Callable[[EpochState], object] | None = None,
    callback_every: int = 1,
    progress: bool = False,
) -> TrainResult:
    """Go on with a training where it ended, as if it had not.

    Five epochs, saved, and five more in another process give the bits of ten: settings, state of the optimiser, epoch
    and random numbers are those of the result, and so are the weights of its last epoch. But if ``result.network`` was
    written to since, it goes on from there, with the state of the optimiser as it was.

    Parameters
    ----------
    result : TrainResult or str or os.PathLike
        What `train` or `resume` returned, or the file to which `TrainResult.save` wrote it. It stays as it is.
    X, y : array_like
        As for `train`: the same data, or other rows of the same kind.
    epochs : int
        Further epochs, >= 0.
    sample_weight, time_limit, callback, callback_every, progress
        As for `train`.
    validation : tuple, optional
        Data as for `train`, if `train` was handed some; a share of the rows is remembered.

    Returns
    -------
    TrainResult
        With a network of its own, and the losses of all epochs from the first on.

    Raises
    ------
    CheckpointError
        If the file is damaged, from a later version, or not one of `TrainResult.save`.
    DataError
        As `train` does, and if ``result.state`` is not what a training ends with.
    OSError
        If the file cannot be read.
    ParameterError
        As `train` does, if `validation` is missing or there was none before, and if there are `epochs` although the
        schedule has brought the learning rate to 0, so that no weight would move.
    ParameterTypeError, ResourceError, DivergenceError
        As `train` does.

    Notes
    -----
    The `epochs` of the first call are the length of "cosine", which is at its end then: ``CosineDecay(epochs=10)`` lets
    five and five be ten. A training that was out of `patience` has all of it anew; the best epoch remains the best of
    all.

    Examples
    --------
    >>> X, y = [[0.0], [1.0]], [1.0, 0.0]
    >>> five = train(X, y, epochs=5, seed=0)
    >>> ten = resume(five, X, y, epochs=5)
    >>> ten.loss.shape
    (10,)
    """
    if isinstance(result, TrainResult):
        state = _own_state(result)
        network = result.network.copy()
        checks.parameters(network.params, network.sizes, network.bias)
    else:
        network, state = _load(result)
    settings, precision = state.settings, network.params.dtype
    epochs = checks.count("epochs", epochs, minimum=0)
    attendance = _attendance(callback, callback_every, progress, time_limit)
    share = checks.validation(validation)
    if share is not None or (settings.validation is not None and validation is not None):
        raise checks.ParameterError("must be data or left out: a share of the rows is remembered", "validation")
    X = checks.features(X, precision, network.sizes[0])
    y = checks.targets(y, network.loss, len(X), network.sizes[-1], precision)
    weights = None if sample_weight is None else checks.row_weights(sample_weight, len(X), precision)
    data = _data(settings, network.loss, X, y, weights, validation)
    if bool(data.held) != ("validation_loss" in state.arrays):
        raise checks.ParameterError("must be given if the training had data for it, and only then", "validation")
    kept = state.arrays["best"] if state.arrays["totals"][BEST] < np.inf and state.arrays["best"].size else state.params
    if np.array_equal(network.params, kept):  # as the training left them: the best, or the last
        network.params[:] = state.params
    position = state.arrays["position"]
    if epochs and settings.patience is not None and position[STALE] > settings.patience:
        position[STALE] = 0
    return _run(network, settings, data, epochs, attendance, state)


class _Data(NamedTuple):
    """What is trained on, checked, and not yet laid out."""

    X: Array
    y: Array
    weights: Array | None
    validation: tuple[Array, Array, Array | None] | None  # likewise, if it was handed in
    held: int  # rows for validation, handed in or drawn from the others

    @property
    def rows(self) -> int:
        """Rows that are trained on."""
        return len(self.X) - (self.held if self.validation is None else 0)


def _attendance(callback: Any, callback_every: Any, progress: Any, time_limit: Any) -> Attendance:
    if callback is not None and not callable(callback):
        raise checks.ParameterTypeError(f"must be callable, got {type(callback).__name__}", "callback")
    limit = None if time_limit is None else checks.number("time_limit", time_limit, above=0)
    every = checks.count("callback_every", callback_every)
    return Attendance(callback, every, checks.flag("progress", progress), limit)


def _data(settings: Settings, loss: str, X: Array, y: Array, weights: Array | None, validation: Any) -> _Data:
    """Check the data for validation, and how many rows there are of either kind."""
    if isinstance(validation, tuple):
        held_X = checks.features(validation[0], X.dtype, X.shape[1], name="validation[0]")
        held_y = checks.targets(validation[1], loss, len(held_X), y.shape[1], X.dtype, name="validation[1]")
        given = validation[2] if len(validation) == 3 else None
        held_weights = None
        if given is not None:
            held_weights = checks.row_weights(given, len(held_X), X.dtype, "validation[2]")
        return _Data(X, y, weights, (held_X, held_y, held_weights), len(held_X))
    if settings.validation is None:
        if settings.watch == "score":
            raise checks.ParameterError("must be 'loss' where there is no 'validation', got 'score'", "watch")
        return _Data(X, y, weights, None, 0)
    size = max(1, round(settings.validation * len(X)))
    if size >= len(X):
        raise checks.ParameterError(f"must leave rows to train on, got {settings.validation} of {len(X)}", "validation")
    return _Data(X, y, weights, None, size)


def _rows(settings: Settings, loss: str, data: _Data) -> tuple[Array, Array | None, tuple[float, ...]]:
    """Draw the rows for validation and weigh the classes; return the rows of either kind and the spread of a plan."""
    X, y, weights, inputs = data.X, data.y, data.weights, data.X.shape[1]
    held: Array | None = None
    if data.validation is not None:
        rows, held = rows_of(X, y, weights), rows_of(*data.validation)
    elif data.held:
        order = np.random.RandomState(settings.seed).permutation(len(X))  # a frozen stream
        chosen = np.zeros(len(X), bool)
        chosen[order[: data.held]] = True
        del order
        held, rows = (rows_of(X, y, weights, np.flatnonzero(part)) for part in (chosen, ~chosen))
        if not (held[:, -1].any() and rows[:, -1].any()):
            raise checks.DataError(
                "must have a value above 0 among both parts of a 'validation' split", "sample_weight"
            )
    else:
        rows = rows_of(X, y, weights)
    if settings.class_weight is not None:
        given = None if weights is None else rows[:, -1]
        rows[:, -1] = checks.class_weights(settings.class_weight, loss, rows[:, inputs:-1], given)
    if held is None or loss in CLASSIFYING:
        return rows, held, ()
    spread = _spread(held, inputs)
    if settings.watch == "score" and not any(spread):
        raise checks.DataError(
            f"must hold rows of different targets where 'watch' is 'score', which is R^2: got targets "
            f"that are all the same in {len(held)} row{'s' * (len(held) != 1)}",
            "validation",
        )
    return rows, held, spread


def _spread(rows: Array, inputs: int) -> tuple[float, ...]:
    """1 / sqrt(outputs * variance) of each column of targets, weighted, so that R^2 is 1 - the mean misfit.

    It is 0 where all targets are the same. They are divided by the largest difference among them, since squares of
    those above 1e154 overflow, and below 1e-154 vanish; halves, since a difference may overflow too.
    """
    y, weights = rows[:, inputs:-1], rows[:, -1]
    first, heaviest = y[np.argmax(weights > 0)].astype(np.float64) / 2, float(weights.max())
    limits = np.finfo(rows.dtype)

    def differences(piece: slice) -> tuple[Array, Array]:
        w = weights[piece, None].astype(np.float64) / heaviest
        return np.where(w > 0, y[piece].astype(np.float64) / 2 - first, 0), w

    def total(term: Callable[[Array, Array], Array]) -> Array:
        parts = (term(*differences(piece)) for piece in pieces(len(rows), rows.shape[1]))
        return np.add.reduce([part.sum(axis=0) for part in parts])

    with np.errstate(all="ignore"):
        largest = np.zeros(y.shape[1])
        for piece in pieces(len(rows), rows.shape[1]):
            largest = np.maximum(largest, np.abs(differences(piece)[0]).max(axis=0))
        differ = 2 * largest >= limits.tiny  # kernels take less for 0
        scale = np.where(differ, largest, 1)
        weight = total(lambda d, w: w)
        mean = total(lambda d, w: w * (d / scale)) / weight
        squares = total(lambda d, w: w * (d / scale - mean) ** 2)
        differ &= squares > 0
        root = np.sqrt(weight / (np.where(differ, squares, 1) * y.shape[1])) / scale / 2
        return tuple(np.where(differ, root.clip(limits.tiny, limits.max), 0).tolist())


def _needed(plan: Plan, settings: Settings, data: _Data, dtype: Any, epochs: int, resumed: bool) -> dict[str, int]:
    """Bytes that a training takes while it takes most, by what they are for; the data handed in are among them."""
    X, y, item = data.X, data.y, dtype.itemsize
    n, held, features, P = plan.rows, data.held, X.shape[1] + y.shape[1] + 1, plan.parameters
    panels = settings.backend == "numba"
    sizes = memory_sizes(plan, dtype, epochs)
    given = [X, y, data.weights, *(data.validation or ())]
    rows, laid = item * (n + held) * features, 0
    if panels:
        in_order = 0 if plan.shuffled else panels_in(n, plan)
        laid = item * features * plan.width * (in_order + panels_in(held, plan._replace(batch_size=max(held, 1))))
    piece, drawn = min(max(n, held), PIECE // features + 1), settings.validation is not None
    stages = (
        rows + (10 * len(X) + item * features * piece) * drawn,  # who is chosen, twice, and their numbers
        rows + 48 * n * (settings.class_weight is not None),
        rows + laid + 8 * sizes["order"] + 88 * piece * (laid > 0) + len(X) * drawn,
    )
    copies = P + sum(sizes[name] for name in ("gradient", "first", "second", "best"))
    block = sum(sizes[name] for name in ("all_zero", "data", "activations", "kept", "deltas", "scratch"))
    history = sum(sizes[name] for name in HISTORY)
    padded = f", batches of {plan.batch_size} padded to {plan.width}" if laid > 2 * rows else ""
    return {
        f"{len(X) + (held if data.validation else 0)} rows{padded}": sum(a.nbytes for a in given if a is not None)
        + max(stages),
        f"{P} parameters": item * ((2 + resumed) * copies + P),  # with those of a chunk's begin
        f"the activations of {plan.block * plan.width} rows": item * block * (1 if panels else 3),
        f"the losses of {epochs} 'epochs'": 8 * ((3 + resumed) * history + 3 * sizes["validation_loss"]),
    }


def _plans(
    network: Network, settings: Settings, data: _Data, dtype: Any, epochs: int, state: State | None
) -> tuple[Plan, Plan]:
    """Plan the training, once in blocks and once in whole batches, and refuse what cannot be or does not fit."""
    n, held = data.rows, data.held
    batch_size = n if settings.batch_size is None else min(settings.batch_size, n)
    if isinstance(settings.optimizer, IRprop):
        if batch_size < n:
            raise checks.ParameterError(
                f"must be None with the optimizer 'irprop', which reads signs of whole gradients, got {batch_size}",
                "batch_size",
            )
        if not isinstance(settings.schedule, choices.Constant):
            raise checks.ParameterError(
                f"must be 'constant' with the optimizer 'irprop', which needs no rate, "
                f"got {type(settings.schedule).__name__}",
                "schedule",
            )
    watched = TRAINING_LOSS if not held else VALIDATION_LOSS if settings.watch == "loss" else VALIDATION_MISFIT
    plan = make_plan(
        network, n, batch_size, settings.optimizer, mean=settings.mean,
        weighted=data.weights is not None or settings.class_weight is not None,
        shuffled=settings.shuffle and batch_size < n, seed=settings.seed, l2=settings.l2, clip_norm=settings.clip_norm,
        dropout=settings.dropout, schedule=settings.schedule, validation_rows=held, watched=watched,
        patience=-1 if settings.patience is None else settings.patience, min_delta=settings.min_delta,
        keep_best=bool(held) and settings.patience is not None,
    )  # fmt: skip
    whole = plan._replace(block=-(-batch_size // plan.width))  # whole batches: NumPy has no use for blocks
    done = 0 if state is None else int(state.arrays["position"][EPOCH])
    if state is not None and epochs:
        with np.errstate(under="ignore"):
            factor = rate_factor(plan.schedule, plan.schedule_settings, done, float(state.arrays["totals"][FACTOR]))
        if factor * settings.optimizer.learning_rate < np.finfo(dtype).tiny:
            raise checks.ParameterError(
                f"must be 0, got {epochs}: after {done} epochs {settings.schedule} has brought the learning "
                "rate to 0, and no weight would move",
                "epochs",
            )
    shown = plan if settings.backend == "numba" else whole
    needed = _needed(shown, settings, data, dtype, done + epochs, state is not None)
    checks.memory(sum(needed.values()), f"this training, most of it for {max(needed, key=needed.__getitem__)},")
    return plan, whole


def _run(
    network: Network, settings: Settings, data: _Data, epochs: int, attendance: Attendance, state: State | None
) -> TrainResult:
    """Train this network, in place, for so many epochs from the state on."""
    # Now, and no sooner: converting X and y runs code of the caller's, which may write to the network.
    params = network.params
    checks.parameters(params, network.sizes, network.bias, writeable=True)
    if params.dtype != data.X.dtype:
        raise checks.DataError(f"must stay {data.X.dtype}, got {params.dtype}", "network.params")
    checks.normal(params.dtype, huber_delta=network.huber_delta)
    plan, whole = _plans(network, settings, data, params.dtype, epochs, state)
    done = 0 if state is None else int(state.arrays["position"][EPOCH])
    rows, held_rows, spread = _rows(settings, network.loss, data)
    compile_began = time.perf_counter()
    compute = engine(settings.backend)
    compile_seconds = time.perf_counter() - compile_began
    plan = (plan if compute.PANELS else whole)._replace(spread=np.array(spread))
    panels = panels_of(rows, plan) if compute.PANELS and not plan.shuffled else rows.ravel()
    validation = panels[:0]
    if held_rows is not None:
        once = plan._replace(batch_size=len(held_rows))
        validation = panels_of(held_rows, once) if compute.PANELS else held_rows.ravel()
    del rows, held_rows
    memory = make_memory(plan, params, done + epochs)
    if state is not None:
        for name in STATE:
            getattr(memory, name)[:] = state.arrays[name]
        for name in HISTORY:
            getattr(memory, name)[:done] = state.arrays.get(name, ())
    compile_began = time.perf_counter()
    run = compute.bind(plan, memory, panels, validation)
    run(0)
    compile_seconds += time.perf_counter() - compile_began
    _log.info("kernels ready after %.2f s", compile_seconds)

    def result(stopped: str) -> TrainResult:
        seconds = time.perf_counter() - training_began
        return _result(network, settings, plan, memory, stopped, seconds, compile_seconds)

    def attend(epoch: int) -> str | None:
        bar.show(epoch - done, memory.loss[epoch - 1])
        callback, every = attendance.callback, attendance.callback_every
        if callback and (epoch - done) % every == 0:
            answer = callback(_seen(network, plan, memory))
            if isinstance(answer, (bool, np.bool_)) and answer:  # a comparison with a loss gives NumPy's
                return "callback"
        late = attendance.time_limit and time.perf_counter() - training_began >= attendance.time_limit
        return "time" if late and epoch < done + epochs else None

    every = attendance.callback_every if attendance.callback else None
    training_began = time.perf_counter()
    with Progress(epochs, attendance.progress) as bar:
        diverged, stopped = run_in_chunks(compute, run, plan, memory, done + epochs, attend, every)
    if diverged:
        raise checks.DivergenceError(diverged, result("epochs"))
    final = result(stopped)
    _log.info("trained to epoch %d in %.3f s, stopped by %s", memory.position[EPOCH], final.seconds, stopped)
    return final


def _history(plan: Plan, memory: Memory) -> dict[str, Array]:
    """Losses of the epochs done, views; those of the validation only if there is one."""
    names = HISTORY if plan.validation_rows else HISTORY[:2]
    return {name: getattr(memory, name)[: memory.position[EPOCH]] for name in names}


def _result(
    network: Network,
    settings: Settings,
    plan: Plan,
    memory: Memory,
    stopped: str,
    seconds: float,
    compile_seconds: float,
) -> TrainResult:
    """Copy what is to be kept, and restore the weights of the best epoch."""
    history = {name: array.copy() for name, array in _history(plan, memory).items()}
    # Copies of their own: what is done to the losses of a result must not show when it is resumed.
    arrays = {name: array.copy() for name, array in history.items()}
    arrays |= {name: getattr(memory, name).copy() for name in STATE}
    state = State(settings, memory.params.copy(), arrays)
    best_epoch, score = None, None
    if plan.validation_rows:
        misfit, outputs = history["validation_misfit"], plan.spread.size
        constant = outputs - np.count_nonzero(plan.spread)  # their R^2 counts as 0, and alone it does not exist
        score = 1 - misfit - (0 if not constant else constant / outputs if constant < outputs else np.nan)
        watched = misfit if plan.watched == VALIDATION_MISFIT else history["validation_loss"]
        finite = np.isfinite(watched)  # predictions for other rows may overflow where those of the training do not
        if finite.any():
            best_epoch = 1 + int(np.argmin(np.where(finite, watched, np.inf)))
            if plan.keep_best:
                memory.params[:] = memory.best
    return TrainResult(
        network, history["loss"], history["error"], history.get("validation_loss"), history.get("validation_error"),
        score, best_epoch, stopped, settings.seed, seconds, compile_seconds, state,
    )  # fmt: skip


def _load(path: checkpoint.Path) -> tuple[Network, State]:
    """Return what `TrainResult.save` wrote, everything in it checked as `train` checks it."""
    metadata, arrays = checkpoint.read(path)
    with checkpoint.blaming(path):
        if metadata.get("kind") != "training" or metadata.keys() != {"kind", "network", "settings"}:
            raise ValueError("it does not hold a training")
        network = Network._from_file(metadata["network"], {"params": arrays.pop("params")})
        return network, _state(network, _settings_from_file(metadata["settings"]), arrays.pop("last"), arrays)


def _own_state(result: TrainResult) -> State:
    """Return a copy of the state of a result, checked like that of a file: its arrays may have been written to."""
    try:
        settings, params, arrays = result.state
        raw = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Settings)}
        copies = {name: np.array(array) for name, array in arrays.items()}
        return _state(result.network, raw, np.array(params), copies)
    except Exception as error:  # it may hold anything
        raise checks.DataError(f"must be as a training left it, but {error}", "result.state") from error


def _state(network: Network, settings: dict[str, Any], last: Array, arrays: dict[str, Array]) -> State:
    """Return the state of a training at the end of an epoch, or raise nearly anything."""
    dtype = network.params.dtype
    checked = _settings(len(network.sizes) - 2, dtype, **{**settings, "dropout": settings["dropout"] or 0.0})
    checks.parameters(last, network.sizes, network.bias)
    validated = "validation_loss" in arrays
    names = {*STATE, *(HISTORY if validated else HISTORY[:2])}
    if arrays.keys() != names or last.dtype != dtype:
        raise ValueError("arrays are missing, or there are others")
    P = last.size
    kept = P if validated and checked.patience is not None else 0
    done = arrays["position"][EPOCH] if arrays["position"].size else -1
    shapes = {"first": P, "second": P, "best": kept, "position": 5, "totals": 10}
    for name, array in arrays.items():
        if array.shape != (shapes.get(name, done),):
            raise ValueError(f"{name!r} has shape {array.shape}")
        expected = np.int64 if name == "position" else dtype if name in ("first", "second", "best") else np.float64
        if array.dtype != expected or (name in ("first", "second", "best") and not np.isfinite(array).all()):
            raise ValueError(f"{name!r} has dtype {array.dtype} or values that are not finite")
    position, totals = arrays["position"], arrays["totals"]
    if (position < 0).any() or (position > done).any() or position[[ROW, PANEL]].any():
        raise ValueError("'position' is not the end of an epoch")
    shares = totals[[POWER1, POWER2, FACTOR]]
    sums = totals[[LOSS, ERROR, MISFIT, BATCH_WEIGHT, WEIGHT]]
    if sums.any() or not ((shares >= 0) & (shares <= 1)).all() or np.isnan(totals).any():
        raise ValueError("'totals' are not those of the end of an epoch")
    if (arrays["second"] < 0).any():
        raise ValueError("'second' has values below 0")
    return State(checked, last, arrays)


def _settings_from_file(saved: dict[str, Any]) -> dict[str, Any]:
    """Return what `_settings` takes from what `TrainResult.save` described, or raise nearly anything."""
    if saved.keys() != {field.name for field in dataclasses.fields(Settings)}:
        raise ValueError("settings are missing, or there are others")
    classes = {kind.__name__: kind for kind in (*choices.OPTIMIZERS.values(), *choices.SCHEDULES.values())}
    read = dict(saved)
    for name in ("optimizer", "schedule"):
        fields = {key: value for key, value in saved[name].items() if key != "class"}
        read[name] = classes[saved[name]["class"]](**fields)
    if isinstance(saved["class_weight"], list):
        read["class_weight"] = dict(saved["class_weight"])
    return read


def _settings(
    hidden_layers: int, precision: Any, *, optimizer: Any, schedule: Any, batch_size: Any, shuffle: Any, mean: Any,
    l2: Any, dropout: Any, clip_norm: Any, class_weight: Any, validation: Any, patience: Any, min_delta: Any,
    watch: Any, seed: Any, backend: Any, learning_rate: Any = None, epochs: int = 1,
) -> Settings:  # fmt: skip
    """Return settings with everything checked that kernels rely on."""
    settings = Settings(
        optimizer=checks.optimizer(optimizer, learning_rate),
        schedule=checks.schedule(schedule, epochs),
        batch_size=None if batch_size is None else checks.count("batch_size", batch_size),
        shuffle=checks.flag("shuffle", shuffle),
        mean=checks.flag("mean", mean),
        l2=checks.number("l2", l2, at_least=0),
        dropout=checks.dropout(dropout, hidden_layers),
        clip_norm=checks.number("clip_norm", clip_norm, at_least=0),
        class_weight=checks.class_weight(class_weight),
        validation=checks.validation(validation),
        patience=None if patience is None else checks.count("patience", patience, 0),
        min_delta=checks.number("min_delta", min_delta, at_least=0),
        watch=checks.choice("watch", watch, WATCHES),
        seed=checks.count("seed", seed, 0, 2**32 - 1),
        backend=checks.choice("backend", backend, BACKENDS),
    )
    _check_precision(
        precision, settings.optimizer, settings.schedule, settings.l2, settings.dropout, settings.clip_norm,
        settings.min_delta,
    )  # fmt: skip
    return settings


@functools.lru_cache(maxsize=256)  # it takes some 25 us, most of them for NumPy's way of not warning
def _check_precision(
    precision: Any, optimizer: Optimizer, schedule: Schedule, l2: float, dropout: tuple[float, ...], clip_norm: float,
    min_delta: float,
) -> None:  # fmt: skip
    """Refuse settings that overflow or vanish in the precision of the arithmetic."""
    rates = {f"dropout[{layer}]": rate for layer, rate in enumerate(dropout)}
    checks.representable(optimizer, precision)
    checks.representable(schedule, np.dtype(np.float64))
    checks.normal(precision, l2=l2, **rates)
    checks.normal(np.dtype(np.float64), clip_norm=clip_norm, min_delta=min_delta)


def run_in_chunks(
    compute: ModuleType,
    run: Callable[[int], int],
    plan: Plan,
    memory: Memory,
    epochs: int,
    attend: Callable[[int], str | None],
    every: int | None = None,
) -> tuple[int, str]:
    """Run what was bound, some 20 ms at a time, so that Python can attend to Ctrl-C; how it is cut shows in no result.

    In between, and after each `every` epochs, `attend(epoch)` is called with the epochs done; what it returns ends the
    run. Returns 0, or the epoch, counted from 1, that did not end with finite numbers (memory then holds the epoch
    before), and why the run ended.
    """
    per_epoch, first = plan.blocks_per_epoch, int(memory.position[EPOCH])
    blocks, left = 1, 0  # blocks of the next chunk; blocks left until a chunk may begin that can be taken back
    epoch, start = first, [array.copy() for array in memory.state]
    while epoch < epochs:
        if left == 0:
            whole = min(max(1, blocks // per_epoch), epochs - epoch)
            left = per_epoch * (min(whole, every - (epoch - first) % every) if every else whole)
            for array, saved in zip(memory.state, start, strict=True):
                saved[:] = array
        chunk = min(blocks, left)
        began = time.perf_counter()
        status = run(chunk)
        seconds = time.perf_counter() - began
        left -= chunk
        epoch = int(memory.position[EPOCH])
        if status == compute.DIVERGED:
            for array, saved in zip(memory.state, start, strict=True):
                array[:] = saved
            run((epoch - 1 - int(memory.position[EPOCH])) * per_epoch)
            return epoch, "epochs"
        # Eight times as many at most: of the shortest chunks the clock tells little.
        blocks = max(1, min(8 * chunk, int(chunk * CHUNK_SECONDS / max(seconds, 1e-9))))
        if left == 0 or status == compute.STOPPED:
            ended = attend(epoch)
            if status == compute.STOPPED:
                return 0, "patience" if memory.position[STALE] > plan.patience >= 0 else "plateau"
            if ended:
                return 0, ended
    return 0, "epochs"


def _seen(network: Network, plan: Plan, memory: Memory) -> EpochState:
    """Show the present state, read-only."""
    shown, history = network.copy(), _history(plan, memory)
    for array in (shown._params, *history.values()):
        array.flags.writeable = False
    losses = [history.get(name) for name in HISTORY[:4]]
    return EpochState(int(memory.position[EPOCH]), shown, *losses)  # type: ignore[arg-type]


class _CallableModule(ModuleType):
    """Lets `fastbp.train(X, y)` work after `import fastbp.train`, which makes the name stand for this file.

    It would not if the package imported the function at once: then `import fastbp` would need NumPy.
    """

    __call__ = staticmethod(train)


sys.modules[__name__].__class__ = _CallableModule
