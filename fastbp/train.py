"""`train()`: check, allocate once, run the kernel in chunks, report."""

from __future__ import annotations

import sys
import time
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastbp import checks
from fastbp.choices import BACKENDS, LOSSES, REDUCTIONS, SGD, Adam
from fastbp.network import Network, engine
from fastbp.workspace import Memory, Plan, make_memory, make_plan, panels_of, rows_of

Array = NDArray[Any]

CHUNK_SECONDS = 0.02  # how long Ctrl-C may have to wait


class TrainResult(NamedTuple):
    """What `train` returns.

    Attributes
    ----------
    network : Network
        The trained network.
    loss : ndarray of shape (epochs,)
        Mean loss of a row in each epoch, each batch before its update; float64.
    error : ndarray of shape (epochs,)
        Mean absolute difference between target and prediction, measured likewise; float64.
    seed : int
        What seeded weights and orders; the same seed repeats the run bit by bit.
    seconds : float
        Time of the training itself.
    compile_seconds : float
        Time to import Numba and to compile the kernels or load them from disk; almost nothing after the first call of
        a process.
    """

    network: Network
    loss: NDArray[np.float64]
    error: NDArray[np.float64]
    seed: int
    seconds: float
    compile_seconds: float


def train(
    X: ArrayLike,
    y: ArrayLike,
    hidden: Any = (),
    *,
    network: Network | None = None,
    activation: Any = "relu",
    output: str | None = None,
    loss: str = "squared_error",
    bias: bool = True,
    init: str = "glorot_uniform",
    optimizer: str | SGD | Adam = "adam",
    learning_rate: float | None = None,
    epochs: int = 200,
    batch_size: int | None = 32,
    shuffle: bool = True,
    reduction: str = "mean",
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
        Targets: numbers for "squared_error", 0 and 1 for "binary_cross_entropy", for "cross_entropy" class numbers
        0, 1, ... of shape (n,) or a row of probabilities for each sample. Never written to.
    hidden : int or sequence of int, default ()
        Units of the hidden layers; () is a linear model.
    network : Network, optional
        Train this one, in place, instead of a new one; it brings all that describes a network with it.
    activation : str or sequence of str, default "relu"
        "identity", "sigmoid", "tanh", "relu" or "leaky_relu": one for all hidden layers, or one for each.
    output : str, optional
        Activation of the last layer; by default the natural partner of the loss: "identity", "sigmoid", "softmax".
    loss : {"squared_error", "binary_cross_entropy", "cross_entropy"}
        Squared error is 1/2 sum over outputs of (prediction - y)^2.
    bias : bool, default True
        Whether layers have biases.
    init : {"glorot_uniform", "uniform", "zeros"}
        How weights are drawn; biases begin at zero.
    optimizer : {"adam", "sgd"} or Adam or SGD, default "adam"
        A name, or settings such as ``SGD(momentum=0.9)``.
    learning_rate : float, optional
        In place of the optimiser's own; above 0.
    epochs : int, default 200
        Passes over the data, >= 0.
    batch_size : int or None, default 32
        Rows of a batch; None, or as many as there are rows or more, is the full batch. The last batch may be short.
    shuffle : bool, default True
        Whether each epoch visits the rows in a new order. A full batch keeps the order of the rows.
    reduction : {"mean", "sum"}
        Whether the gradient of a batch is divided by its rows.
    seed : int, optional
        Seed of the weights and of the orders, 0 to 2^32 - 1; by default a fresh one.
    dtype : {"float32", "float64"}, optional
        Precision of the arithmetic; by default float32 if X is float32 or float16, else float64.
    backend : {"numba", "numpy"}
        Compiled kernels, or the NumPy reference: the same result to rounding, slower.

    Returns
    -------
    TrainResult
        The network, the loss and the error of each epoch, the seed, and the seconds it took.

    Raises
    ------
    ParameterError
        If a setting is out of range, or describes a network that `network` already is.
    ParameterTypeError
        If an argument has the wrong type.
    DataError
        If X or y has the wrong shape, values that are not finite, or labels out of range.
    ResourceError
        If the network would not fit into memory.
    DivergenceError
        If loss or weights cease to be finite. The network keeps the weights of the last epoch that ended well, and
        `result` of the error holds it with the losses up to there.

    Notes
    -----
    The same arguments, seed and version give the same bits on every CPU with fused multiply-add. Ctrl-C raises
    KeyboardInterrupt within 50 ms, or after the order of an epoch is drawn: 90 ms for ten million shuffled rows. A
    `network` that was handed in then has the weights reached so far.

    References
    ----------
    Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", Nature 323, 1986.

    Examples
    --------
    >>> X, y = [[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0]
    >>> result = train(X, y, hidden=4, activation="tanh", batch_size=None, learning_rate=0.1, seed=0)
    >>> result.network.predict(X).round().ravel() + 0.0
    array([0., 1., 1., 0.])
    """
    began = time.perf_counter()
    backend = checks.choice("backend", backend, BACKENDS)
    loss = checks.choice("loss", loss, LOSSES)
    if network is not None:
        checks.instance("network", network, Network)
        checks.alone(
            hidden=(hidden, ()), activation=(activation, "relu"), output=(output, None), bias=(bias, True),
            loss=(loss, "squared_error"), init=(init, "glorot_uniform"), dtype=(dtype, None),
        )  # fmt: skip
        checks.parameters(network.params, network.sizes, network.bias)
        loss, dtype = network.loss, network.params.dtype
    settings = checks.optimizer(optimizer, learning_rate)
    epochs = checks.count("epochs", epochs, minimum=0)
    mean = checks.choice("reduction", reduction, REDUCTIONS) == "mean"
    shuffle = checks.flag("shuffle", shuffle)
    seed = checks.seed(seed)
    precision = checks.dtype(dtype, X)
    checks.representable(settings, precision)
    X = checks.features(X, precision, None if network is None else network.sizes[0])
    y = checks.targets(y, loss, len(X), None if network is None else network.sizes[-1], precision)
    n = len(X)
    batch_size = n if batch_size is None else min(checks.count("batch_size", batch_size), n)
    if network is None:
        sizes = (X.shape[1], *checks.hidden(hidden), y.shape[1])
        network = Network(
            sizes, activation=activation, output=output, loss=loss, bias=bias, init=init, seed=seed, dtype=precision
        )

    shuffled = shuffle and batch_size < n
    plan = make_plan(network, n, batch_size, settings, mean=mean, shuffled=shuffled, seed=seed)
    checks.memory(16 * epochs + 2 * n * (X.shape[1] + y.shape[1] + 1) * precision.itemsize, "epochs and data")
    rows = rows_of(X, y)
    compile_began = time.perf_counter()
    compute = engine(backend)
    if not compute.PANELS:
        plan = plan._replace(block=-(-batch_size // plan.width))  # whole batches: NumPy has no use for blocks
    data = panels_of(rows, plan) if compute.PANELS and not shuffled else rows.ravel()
    memory = make_memory(plan, network.params, epochs)
    compute.run(plan, memory, data, 0)
    compile_seconds = time.perf_counter() - compile_began

    def result(epochs: int) -> TrainResult:
        seconds = time.perf_counter() - began - compile_seconds
        return TrainResult(network, memory.loss[:epochs], memory.error[:epochs], seed, seconds, compile_seconds)

    diverged = run_in_chunks(compute, plan, memory, data, epochs)
    if diverged:
        raise checks.DivergenceError(diverged, result(diverged - 1))
    return result(epochs)


def run_in_chunks(compute: ModuleType, plan: Plan, memory: Memory, data: Array, epochs: int) -> int:
    """Run the kernel, some 20 ms at a time, so that Python can attend to Ctrl-C; how it is cut shows in no result.

    Returns 0, or the epoch, counted from 1, that did not end with finite numbers; memory then holds the epoch before.
    """
    per_epoch = plan.blocks_per_epoch
    blocks, left = 1, 0  # blocks of the next chunk; blocks left until a chunk may begin that can be taken back
    while memory.position[0] < epochs:
        if left == 0:
            left = min(max(1, blocks // per_epoch), epochs - int(memory.position[0])) * per_epoch
            start = [array.copy() for array in memory.state]
        chunk = min(blocks, left)
        began = time.perf_counter()
        status = compute.run(plan, memory, data, chunk)
        seconds = time.perf_counter() - began
        left -= chunk
        if status == compute.DIVERGED:
            diverged = int(memory.position[0])
            for array, saved in zip(memory.state, start, strict=True):
                array[:] = saved
            compute.run(plan, memory, data, (diverged - 1 - int(memory.position[0])) * per_epoch)
            return diverged
        # Eight times as many at most: of the shortest chunks the clock tells little.
        blocks = max(1, min(8 * chunk, int(chunk * CHUNK_SECONDS / max(seconds, 1e-9))))
    return 0


class _CallableModule(ModuleType):
    """Lets `fastbp.train(X, y)` work after `import fastbp.train`, which makes the name stand for this file."""

    __call__ = staticmethod(train)


sys.modules[__name__].__class__ = _CallableModule
