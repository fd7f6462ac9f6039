"""`train()` and `resume()`: check what is given, train, report."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastbp import checkpoint, checks
from fastbp import data as data_of
from fastbp import settings as settings_of
from fastbp.choices import BACKENDS, LOSSES, QUANTILES, Optimizer, Schedule
from fastbp.data import Data
from fastbp.network import Network
from fastbp.progress import Progress
from fastbp.results import EpochState as EpochState
from fastbp.results import TrainResult as TrainResult
from fastbp.results import load, own_state, result_of, seen
from fastbp.trainer import Trainer
from fastbp.workspace import BEST, EPOCH, STALE

_log = logging.getLogger("fastbp")
_log.addHandler(logging.NullHandler())


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
    quantiles: Any = QUANTILES,
    crossing_penalty: float = 0.0,
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
    threads: int | str = 1,
) -> TrainResult:
    """Train a multilayer perceptron by back-propagation.

    Parameters
    ----------
    X : array_like of shape (n, inputs)
        One sample a row; finite numbers. Never written to.
    y : array_like of shape (n,) or (n, outputs)
        Targets: numbers, for "poisson" none below 0, for "binary_cross_entropy" 0 and 1, for "cross_entropy" class
        numbers 0, 1, ... of shape (n,) or a row of probabilities for each sample. For "quantile" one column for all
        levels, or one for each. Never written to. NaN is a missing target, where `sample_weight` says 0.
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
    loss : str, default "squared_error"
        "squared_error", "binary_cross_entropy", "cross_entropy", "absolute_error", "huber", "poisson", "quantile" or
        "gaussian_nll". Of a row, summed over the outputs. Squared error is 1/2 (prediction - y)^2; "poisson" is half
        the deviance, and the logit the logarithm of the rate. "quantile" predicts a quantile of the targets by each
        output. "gaussian_nll" has two outputs for each target: first come the means of all, then the logarithms of the
        variances. `choices.LOSSES` has all formulas.
    huber_delta : float, default 1.0
        Size of a residual above which "huber" is no longer quadratic; above 0.
    quantiles : sequence of float, default (0.1, 0.5, 0.9)
        What the outputs predict with "quantile", one level each: above 0, below 1, none below the one before.
    crossing_penalty : float, default 0.0
        Times how far outputs of "quantile" are above the next one, it is added to the loss of a row; at least 0. From 1
        on, it never pays that they cross.
    bias : bool, default True
        Whether layers have biases.
    init : {"glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "uniform", "zeros"}
        How weights are drawn; biases begin at zero.
    optimizer : {"adam", "sgd", "adamw", "rmsprop", "irprop", "lbfgs", "levenberg_marquardt"} or settings
        A name, or settings such as ``SGD(momentum=0.9)``; by default "adam". "irprop" and "lbfgs" need
        ``batch_size=None``, and "levenberg_marquardt" wants it, or large batches. The latter two compare losses, and go
        without schedules, `dropout` and `clip_norm`; "levenberg_marquardt" goes with all losses but "absolute_error".
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
    sample_weight : array_like of shape (n,) or (n, targets), optional
        Weights of the rows, at least 0, or of each target in them, also of each level of "quantile"; a missing target
        has weight 0. The mean loss is the weighted one, the weight of a row the mean of those of its targets. Classes
        of "cross_entropy" have one weight a row.
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
    threads : int or "auto", default 1
        Threads that train together; "auto" takes as many as pay, one for most small networks. The bits are the same for
        any number, and so is the time of batches of few rows.

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
            loss=(loss, "squared_error"), huber_delta=(huber_delta, 1.0), quantiles=(quantiles, QUANTILES),
            crossing_penalty=(crossing_penalty, 0.0), init=(init, "glorot_uniform"), dtype=(dtype, None),
        )  # fmt: skip
        checks.parameters(network.params, network.sizes, network.bias, writeable=True)
        loss, dtype, units, levels = network.loss, network.params.dtype, network.sizes[1:-1], network.quantiles
    else:
        units, levels = checks.hidden(hidden), checks.quantiles(quantiles, loss)
    epochs = checks.count("epochs", epochs, minimum=0)
    precision = checks.dtype(dtype, X)
    settings = settings_of.checked(
        len(units), precision, optimizer=optimizer, learning_rate=learning_rate, schedule=schedule, epochs=epochs,
        batch_size=batch_size, shuffle=shuffle, reduction=reduction, l2=l2, dropout=dropout, clip_norm=clip_norm,
        class_weight=class_weight, validation=validation, patience=patience, min_delta=min_delta, watch=watch,
        seed=seed, backend=backend,
    )  # fmt: skip
    attendance, wanted = _attendance(callback, callback_every, progress, time_limit), checks.threads(threads)
    inputs, outputs = (None, None) if network is None else (network.sizes[0], network.sizes[-1])
    data = data_of.checked(settings, precision, loss, X, y, sample_weight, validation, inputs, outputs, len(levels))
    if network is None:
        network = Network(
            (data.X.shape[1], *units, data.outputs), activation=activation, output=output, loss=loss,
            huber_delta=huber_delta, quantiles=quantiles, crossing_penalty=crossing_penalty, bias=bias, init=init,
            seed=settings.seed, dtype=precision,
        )  # fmt: skip
    return _run(Trainer._of(network, settings, None, wanted), data, epochs, attendance)


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
    threads: int | str = 1,
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
    sample_weight, time_limit, callback, callback_every, progress, threads
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
        state = own_state(result)
        network = result.network.copy()
        checks.parameters(network.params, network.sizes, network.bias)
    else:
        network, state = load(result)
    settings, precision = state.settings, network.params.dtype
    epochs = checks.count("epochs", epochs, minimum=0)
    attendance, wanted = _attendance(callback, callback_every, progress, time_limit), checks.threads(threads)
    share = checks.validation(validation)
    if share is not None or (settings.validation is not None and validation is not None):
        raise checks.ParameterError("must be data or left out: a share of the rows is remembered", "validation")
    sizes = network.sizes
    data = data_of.checked(settings, precision, network.loss, X, y, sample_weight, validation, sizes[0], sizes[-1], 0)
    if bool(data.held) != ("validation_loss" in state.arrays):
        raise checks.ParameterError("must be given if the training had data for it, and only then", "validation")
    kept = state.arrays["best"] if state.arrays["totals"][BEST] < np.inf and state.arrays["best"].size else state.params
    if np.array_equal(network.params, kept):  # as the training left them: the best, or the last
        network.params[:] = state.params
    position = state.arrays["position"]
    if epochs and settings.patience is not None and position[STALE] > settings.patience:
        position[STALE] = 0
    return _run(Trainer._of(network, settings, state, wanted), data, epochs, attendance)


def _attendance(callback: Any, callback_every: Any, progress: Any, time_limit: Any) -> Attendance:
    if callback is not None and not callable(callback):
        raise checks.ParameterTypeError(f"must be callable, got {type(callback).__name__}", "callback")
    limit = None if time_limit is None else checks.number("time_limit", time_limit, above=0)
    every = checks.count("callback_every", callback_every)
    return Attendance(callback, every, checks.flag("progress", progress), limit)


def _run(trainer: Trainer, data: Data, epochs: int, attendance: Attendance) -> TrainResult:
    """Train for so many epochs, and report."""
    course = trainer._course(data, epochs)
    _log.info("kernels ready after %.2f s", course.compile_seconds)
    network, plan, memory, done = trainer.network, course.plan, course.memory, course.epochs - epochs

    def result(stopped: str) -> TrainResult:
        seconds = time.perf_counter() - began
        return result_of(network, trainer._settings, plan, memory, stopped, seconds, course.compile_seconds)

    def attend(epoch: int) -> str | None:
        bar.show(epoch - done, memory.loss[epoch - 1])
        callback, every = attendance.callback, attendance.callback_every
        if callback and (epoch - done) % every == 0:
            answer = callback(seen(network, plan, memory))
            if isinstance(answer, (bool, np.bool_)) and answer:  # a comparison with a loss gives NumPy's
                return "callback"
        late = attendance.time_limit and time.perf_counter() - began >= attendance.time_limit
        return "time" if late and epoch < course.epochs else None

    every = attendance.callback_every if attendance.callback else None
    began = time.perf_counter()
    with Progress(epochs, attendance.progress) as bar, course.team or contextlib.nullcontext():
        diverged, stopped = trainer._train(course, attend, every)
    if diverged:
        raise checks.DivergenceError(diverged, result("epochs"))
    final = result(stopped)
    if attendance.callback is None:
        trainer._leave(course)
    _log.info("trained to epoch %d in %.3f s, stopped by %s", memory.position[EPOCH], final.seconds, stopped)
    return final


class _CallableModule(ModuleType):
    """Lets `fastbp.train(X, y)` work after `import fastbp.train`, which makes the name stand for this file.

    It would not if the package imported the function at once: then `import fastbp` would need NumPy.
    """

    __call__ = staticmethod(train)

    @property
    def __signature__(self) -> Any:  # `inspect` would take the first parameter of a call for the module
        import inspect

        return inspect.signature(train)


sys.modules[__name__].__class__ = _CallableModule
