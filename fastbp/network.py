"""The network: its sizes, its activations and one flat vector of parameters."""

from __future__ import annotations

import functools
import math
import os
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastbp import checkpoint, checks
from fastbp.choices import BACKENDS, INITIALISERS, LOSSES, QUANTILES
from fastbp.threads import Team, best, best_to_predict, is_alone, shared
from fastbp.threads import bind as bind_team
from fastbp.threads import bind_predict as bind_together
from fastbp.workspace import (
    FINISHED,
    VECTOR_BYTES,
    address,
    forward_memory,
    layers_of,
    make_memory,
    make_plan,
    memory_sizes,
    panels_of,
    rows_of,
    starts_of,
)

Array = NDArray[Any]

PIECE = 2**16  # weights drawn in one go: what drawing takes beside the parameters, and Ctrl-C waits for
CALL_WORK = 2**26  # multiply-adds of one call of a kernel, 1 to 20 ms; Ctrl-C waits for it
UNIT_WORK = 32  # of them, what a unit costs beside its weights
MOST_PREPARED = 8  # shapes of X that a network is prepared to predict for
COMPILED = "numba"
BLOCK_ROWS = 128  # of a call, at least: fewer would not fill the blocks of the kernel


@functools.cache
def engine(backend: str) -> ModuleType:
    """Return the module that computes: the kernels, or the reference for "numpy" or without Numba's compiler."""
    if backend == "numba":
        from fastbp import jit

        if not jit.DISABLED:
            from fastbp import kernels

            return kernels
        warnings.warn(
            "NUMBA_DISABLE_JIT is set: fastbp computes with its NumPy reference", RuntimeWarning, stacklevel=3
        )
    from fastbp import reference

    return reference


# Wichura, "Algorithm AS 241: the percentage points of the normal distribution", Applied Statistics 37, 1988: PPND16.
# Numerator and denominator, highest power first: |p - 1/2| at most 0.425; beyond, r = sqrt(-log(tail)) to 5; above 5.
_CENTRE = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852854561, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
     5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
_SIDES = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
     3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
     0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),
)  # fmt: skip
_TAILS = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093,
     0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772),
    (2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4,
     0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1.0),
)  # fmt: skip


def normal(uniform: Array) -> Array:
    """Return normal numbers for uniform ones of [0, 1), multiples of 2^-53, by the inverse of their distribution.

    NumPy's own `standard_normal` calls the logarithm of the C library, whose last bit differs from machine to machine.
    Here are only operations that IEEE 754 rounds exactly: the same seed draws the same weights everywhere.
    """
    q = (uniform - 0.5) + 2.0**-54  # exact, and never 1/2 on either side, where infinity is
    fraction, exponent = np.frexp(0.5 - abs(q))
    low = fraction < np.sqrt(0.5)
    fraction, exponent = np.where(low, 2 * fraction, fraction), exponent - low
    s = (fraction - 1) / (fraction + 1)
    series = _polynomial([1 / k for k in range(21, 0, -2)], s * s)  # log(f) = 2 (s + s^3 / 3 + s^5 / 5 + ...)
    r = np.sqrt(-(exponent * 0.6931471805599453 + 2 * s * series))
    centre = q * _ratio(_CENTRE, 0.180625 - q * q)
    outside = np.copysign(np.where(r <= 5, _ratio(_SIDES, r - 1.6), _ratio(_TAILS, r - 5)), q)
    return np.where(abs(q) <= 0.425, centre, outside)


def _polynomial(coefficients: Sequence[float], x: Array) -> Array:
    result = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + coefficient
    return result


def _ratio(coefficients: tuple[Sequence[float], Sequence[float]], x: Array) -> Array:
    return _polynomial(coefficients[0], x) / _polynomial(coefficients[1], x)


_idle: list[np.random.RandomState] = []  # taken out while it draws: threads make networks side by side


def initialise(params: Array, sizes: tuple[int, ...], bias: bool, init: str, seed: int) -> None:
    """Draw the zeros of a new network: for each layer W (inputs, outputs) in C order, then b (outputs,)."""
    # Its streams are frozen: the same network in every version of NumPy. To make one takes 60 us, to seed it 1.
    try:
        random = _idle.pop()
    except IndexError:
        random = np.random.RandomState()
    random.seed(seed)
    for weights, _ in layers_of(params, sizes, starts_of(sizes, bias)):
        inputs, outputs = weights.shape
        units = inputs + outputs if init.startswith("glorot") else inputs
        limit = math.sqrt(6 / units)
        for first in range(0, weights.size, PIECE):
            piece = weights.reshape(-1)[first : first + PIECE]
            if init == "uniform":
                piece[:] = random.random_sample(piece.size)
            elif init.endswith("uniform"):
                piece[:] = random.uniform(-limit, limit, size=piece.size)
            elif init.endswith("normal"):
                piece[:] = math.sqrt(2 / units) * normal(random.random_sample(piece.size))
    if not _idle:
        _idle.append(random)


def _parameters(size: int, dtype: np.dtype[Any]) -> Array:
    """Return zeros, aligned, that nobody can free, nor reach from a view of them.

    An array that owns its memory has `resize`, which with ``refcheck=False`` would free it under what kernels write to;
    a bytearray cannot be resized while an array looks at it.
    """
    whole = np.frombuffer(bytearray(size * dtype.itemsize + VECTOR_BYTES), dtype)
    start = -address(whole) % VECTOR_BYTES // dtype.itemsize
    return whole[start : start + size]


class _Prepared(NamedTuple):
    """What `predict` needs for one shape of X."""

    owner: Array  # of the parameters: if the network has others by now, all this is void
    run: Callable[[Array, Array], int]
    x: Array | None  # (n, inputs), where few rows are copied to; many are read where they lie


class _Description(NamedTuple):
    """What a network is beside its parameters: what kernels rely on, whatever a subclass makes of the properties."""

    sizes: tuple[int, ...]
    activations: tuple[str, ...]
    loss: str
    huber_delta: float
    bias: bool
    quantiles: tuple[float, ...] = ()
    crossing_penalty: float = 0.0


class Network:
    """A multilayer perceptron: layers of weights, an activation after each.

    Parameters
    ----------
    sizes : sequence of int
        Units of each layer, inputs first, at least two, each >= 1.
    activation : str or sequence of str, default "relu"
        Activation of the hidden layers, one name or one for each.
    output : str, optional
        Activation of the last layer; by default the natural partner of the loss.
    loss : str, default "squared_error"
        "squared_error", "binary_cross_entropy", "cross_entropy", "absolute_error", "huber", "poisson", "quantile" or
        "gaussian_nll": what training minimises. The last has two outputs for each target: first the means of all, then
        the logarithms of their variances.
    huber_delta : float, default 1.0
        Size of a residual above which the loss "huber" is no longer quadratic; above 0.
    quantiles : sequence of float, default (0.1, 0.5, 0.9)
        What the outputs predict with the loss "quantile", one level each: above 0, below 1, none below the one before.
    crossing_penalty : float, default 0.0
        Times how far outputs of "quantile" are above the next one, it is added to the loss; at least 0.
    bias : bool, default True
        Whether layers have biases.
    init : {"glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "uniform", "zeros"}
        How weights are drawn. Biases begin at zero.
    seed : int, optional
        Seed of the weights, 0 to 2^32 - 1; by default a fresh one.
    dtype : {"float64", "float32"}
        Precision of parameters and arithmetic.

    Attributes
    ----------
    sizes, activations : tuple
        Units of each layer; names of the activations, the output's last. Read-only, as the next five.
    loss : str
    huber_delta : float
    quantiles : tuple of float
        Empty unless the loss is "quantile".
    crossing_penalty : float
    bias : bool
    params : ndarray of shape (P,)
        All parameters: for each layer W (inputs, outputs) in C order, then b (outputs,). Training writes here, and so
        may you. An assigned array is copied into this one, or DataError raised unless shape and dtype are the same.

    Raises
    ------
    ParameterError
        If a value is out of range or a name unknown.
    ParameterTypeError
        If a value has the wrong type.
    ResourceError
        If the parameters would not fit into memory.

    References
    ----------
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010,
    equations 12 and 16. He, Zhang, Ren and Sun, "Delving deep into rectifiers", ICCV 2015, equation 10.

    Examples
    --------
    >>> network = Network((2, 3, 1), activation="tanh", seed=0)
    >>> network.params.shape
    (13,)
    >>> network.weights[0].shape
    (2, 3)
    """

    def __init__(
        self,
        sizes: Any,
        *,
        activation: Any = "relu",
        output: str | None = None,
        loss: str = "squared_error",
        huber_delta: float = 1.0,
        quantiles: Any = QUANTILES,
        crossing_penalty: float = 0.0,
        bias: bool = True,
        init: str = "glorot_uniform",
        seed: int | None = None,
        dtype: Any = "float64",
    ) -> None:
        if hasattr(self, "_params"):  # views and trainings of it rely on its sizes
            raise AttributeError("a network is made once; make another one for other settings")
        units = checks.sizes(sizes)
        loss = checks.choice("loss", loss, LOSSES)
        huber_delta = checks.number("huber_delta", huber_delta, above=0)
        activations = (*checks.activations(activation, len(units) - 2), checks.output(output, loss))
        levels = checks.quantiles(quantiles, loss)
        crossing_penalty = checks.number("crossing_penalty", crossing_penalty, at_least=0) if levels else 0.0
        checks.outputs(units, loss, levels)
        self._description = _Description(
            units, activations, loss, huber_delta, checks.flag("bias", bias), levels, crossing_penalty
        )
        kind, init, seed = checks.dtype(dtype), checks.choice("init", init, INITIALISERS), checks.seed(seed)
        P = starts_of(units, self._description.bias)[-1]
        checks.memory(kind.itemsize * P, f"the vector of {P} parameters")
        self._params = _parameters(P, kind)
        initialise(self._params, units, self._description.bias, init, seed)
        self._prepared: dict[tuple[tuple[int, ...], Any, int | str], _Prepared] = {}

    def _another(self, init: str, seed: int) -> Network:
        """Return a network of the same description, drawn anew by what was checked before."""
        network = object.__new__(type(self))
        params = _parameters(self._params.size, self._params.dtype)
        initialise(params, self._description.sizes, self._description.bias, init, seed)
        network.__dict__.update(_description=self._description, _params=params, _prepared={})
        return network

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without what is prepared, which is at addresses of this process."""
        return {name: value for name, value in self.__dict__.items() if name != "_prepared"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a description, and a copy of the parameters: for `copy` and for pickle."""
        given = state["_params"]
        params = _parameters(given.size, given.dtype)
        params[:] = given
        self.__dict__.update(state, _params=params, _prepared={})

    def __repr__(self) -> str:
        """Sizes, activations, loss and precision."""
        sizes, activations, loss, *_ = self._description
        return f"Network({sizes}, {activations}, {loss!r}, {self._params.dtype})"

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units of each layer, inputs first."""
        return self._description.sizes

    @property
    def activations(self) -> tuple[str, ...]:
        """Names of the activations, the output's last."""
        return self._description.activations

    @property
    def loss(self) -> str:
        """What training minimises."""
        return self._description.loss

    @property
    def huber_delta(self) -> float:
        """Size of a residual above which the loss "huber" is no longer quadratic."""
        return self._description.huber_delta

    @property
    def quantiles(self) -> tuple[float, ...]:
        """What the outputs predict with the loss "quantile", one level each; empty with others."""
        return self._description.quantiles

    @property
    def crossing_penalty(self) -> float:
        """What is added to the loss "quantile" times how far outputs are above the next one."""
        return self._description.crossing_penalty

    @property
    def bias(self) -> bool:
        """Whether layers have biases."""
        return self._description.bias

    @property
    def params(self) -> Array:
        """All parameters, a view: what is done to its shape, dtype or flags concerns this view alone."""
        return self._params.view()

    @params.setter
    def params(self, value: Array) -> None:
        """Copy an array of the same shape and dtype over them."""
        self._params[:] = checks.replacement(value, self._params)

    def _layers(self) -> list[tuple[Array, Array]]:
        sizes, bias = self._description.sizes, self._description.bias
        return layers_of(self._params, sizes, starts_of(sizes, bias))

    @property
    def weights(self) -> list[Array]:
        """Weights of each layer (inputs, outputs), views of `params`."""
        return [weights for weights, _ in self._layers()]

    @property
    def biases(self) -> list[Array]:
        """Biases of each layer (outputs,), views of `params`; empty arrays without biases."""
        return [biases for _, biases in self._layers()]

    def copy(self) -> Network:
        """Return a network with parameters of its own.

        Returns
        -------
        Network
            Equal to this one; training it leaves this one alone.

        Examples
        --------
        >>> network = Network((2, 1), seed=0)
        >>> twin = network.copy()
        >>> twin.params[:] = 0
        >>> bool(network.params.any())
        True
        """
        twin = object.__new__(type(self))
        twin.__setstate__(self.__dict__)
        return twin

    def _checked(self) -> Array:
        """Return the parameters as kernels take them, once they are finite: the last check, after X is converted.

        A read-only array has a type of its own, for which Numba would compile once more.
        """
        params = self._params
        checks.finite("network.params", params, params.dtype)
        return params if params.flags.writeable else params.copy()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the network to a file that `Network.load` reads.

        The file is NumPy's `.npz`, with the parameters in the array "params". It is written beside the old one, flushed
        to the disk and renamed, so that a crash at any moment leaves the old network or the new one.

        Parameters
        ----------
        path : str or os.PathLike
            Exactly the name of the file; no ending is added. A link is followed, the file it points to replaced.

        Raises
        ------
        DataError
            If a parameter is not finite.
        OSError
            If the file cannot be written; the old one is untouched then. If the disk fails to confirm the new name,
            which comes last, the new file is there already.
        ParameterError
            If `path` contains the character NUL.
        ParameterTypeError
            If `path` is not a str or os.PathLike.

        Examples
        --------
        >>> network = Network((2, 3, 1), seed=0)
        >>> network.save("network.npz")
        >>> np.load("network.npz")["params"].shape
        (13,)
        """
        self._checked()
        checkpoint.write(path, *self._to_file())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Network:
        """Return the network of a file written by `save`.

        The file is checked before it is believed: it can neither run code nor claim more memory than a few times its
        own size, so that a file from a stranger is safe to load. Whether its weights are any good is another matter.

        Parameters
        ----------
        path : str or os.PathLike
            Exactly the name of the file.

        Returns
        -------
        Network
            Predicts the same bits as the one that was saved.

        Raises
        ------
        CheckpointError
            If the file is damaged, holds no network or one with impossible values, or is from a later version.
        OSError
            If the file cannot be read: FileNotFoundError, PermissionError and the like.
        ParameterError
            If `path` contains the character NUL.
        ParameterTypeError
            If `path` is not a str or os.PathLike.
        ResourceError
            If the file does not fit into memory.

        Examples
        --------
        >>> network = Network((2, 3, 1), activation="tanh", seed=0)
        >>> network.save("network.npz")
        >>> Network.load("network.npz")
        Network((2, 3, 1), ('tanh', 'identity'), 'squared_error', float64)
        """
        metadata, arrays = checkpoint.read(path)
        with checkpoint.blaming(path):
            return cls._from_file(metadata, arrays)

    def _to_file(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return the metadata, as JSON knows it, and the arrays of a file."""
        sizes, activations, loss, huber_delta, bias, quantiles, crossing_penalty = self._description
        metadata = {
            "kind": "network",
            "sizes": list(sizes),
            "activations": list(activations),
            "loss": loss,
            "huber_delta": huber_delta,
            "bias": bias,
            "dtype": str(self._params.dtype),
        }
        if quantiles:  # so that earlier versions read the files of all other losses
            metadata |= {"quantiles": list(quantiles), "crossing_penalty": crossing_penalty}
        return metadata, {"params": self._params}

    @classmethod
    def _from_file(cls, metadata: dict[str, Any], arrays: dict[str, Array]) -> Network:
        """Return the network that `_to_file` described, or raise nearly anything: for use inside `blaming`."""
        if metadata.get("kind") != "network" or arrays.keys() != {"params"}:
            raise ValueError("it does not hold a network, and nothing else")
        params = arrays["params"]
        sizes, bias = checks.sizes(metadata["sizes"]), checks.flag("bias", metadata["bias"])
        checks.parameters(params, sizes, bias)  # first, so that nothing is built to sizes the file only claims
        *hidden, output = metadata["activations"]
        network = cls(
            sizes,
            activation=hidden,
            output=output,
            loss=metadata["loss"],
            huber_delta=metadata["huber_delta"],
            quantiles=metadata.get("quantiles", QUANTILES),
            crossing_penalty=metadata.get("crossing_penalty", 0.0),
            bias=bias,
            init="zeros",
            seed=0,
            dtype=str(params.dtype),
        )
        network.params = params
        if network._to_file()[0] != metadata:  # a key too many, another dtype, null where a default would step in
            raise ValueError("its metadata does not describe its network")
        return network

    def predict(self, X: ArrayLike, backend: str = "numba", threads: int | str = 1) -> Array:
        """Return the outputs of the network.

        Parameters
        ----------
        X : array_like of shape (n, inputs)
            Converted to the network's precision; n may be 0.
        backend : {"numba", "numpy"}
            Compiled kernels, or the NumPy reference.
        threads : int or "auto", default 1
            Threads that share the rows; "auto" takes as many as pay.

        Returns
        -------
        ndarray of shape (n, outputs)
            The same bits for a row whatever rows surround it, with the compiled kernels.

        Raises
        ------
        DataError
            If X has another number of columns than the network inputs, or X or a parameter is not finite.
        ParameterError
            If `backend` is none of these.
        ParameterTypeError
            If X is not an array of numbers, or `backend` no str.
        ResourceError
            If the predictions would not fit into memory.

        Examples
        --------
        >>> Network((2, 1), init="zeros").predict([[1.0, 2.0]])
        array([[0.]])
        """
        # Not ==, which a stranger's class may answer.
        known = type(X) is np.ndarray and type(threads) in (int, str) and backend is COMPILED
        if known and (again := self._predict_again(X, threads)) is not None:  # type: ignore[arg-type]
            return again
        dtype, sizes = self._params.dtype, self._description.sizes
        backend, wanted = checks.choice("backend", backend, BACKENDS), checks.threads(threads)
        compute = engine(backend)
        X = checks.features_to_predict(X, dtype, sizes[0])
        n, owner = len(X), self._params
        # A view, whose flags nobody else can reach: for read-only arrays Numba would compile once more.
        params = owner.view() if owner.flags.writeable else owner.copy()
        # In calls of some milliseconds, between which Python attends to Ctrl-C.
        rows = n if n <= BLOCK_ROWS else min(n, max(BLOCK_ROWS, CALL_WORK // self._work()))
        plan = make_plan(self, rows or 1, rows or 1)
        values = plan.block * plan.width * (int(plan.tops[-1]) + sizes[0] + 2 * sizes[-1] + 1)
        if n * sizes[-1] + values > PIECE:  # asking for the memory of the machine takes a microsecond
            size = dtype.itemsize * (n * sizes[-1] + values)
            checks.memory(size, f"the array of {n} predictions, with what computes them,")
        predictions, count = np.empty((n, sizes[-1]), dtype), 1
        if wanted != 1 and compute.PANELS and n:
            count = wanted or best_to_predict(plan._replace(rows=n), dtype)
        rows, run, status = min(n, rows * count), None, FINISHED
        memory = forward_memory(plan, dtype) if count == 1 else ()
        for first in range(0, n, rows or 1):
            part = slice(first, min(first + rows, n))
            if run is None or part.stop - first < rows:
                plan = plan._replace(rows=part.stop - first)
                if count > 1:
                    run = bind_together(plan, params, count, auto=not wanted)
                else:
                    run = compute.bind_predict(plan, params, *memory)
            status = status or run(X[part], predictions[part])
        if status != FINISHED or n == 0:
            checks.finite("X", X, dtype)
            self._checked()
        if known and run is not None and rows == n and values <= PIECE and owner.flags.writeable:
            if len(self._prepared) >= MOST_PREPARED:
                self._prepared.clear()
            own = np.empty_like(X) if n <= plan.block * plan.width else None
            self._prepared[X.shape, X.dtype, threads] = _Prepared(owner, run, own)
        return predictions

    def _predict_again(self, X: Array, threads: int | str) -> Array | None:
        """Predict as it was done before for such rows; None if it was not, or if a number is not finite."""
        key = X.shape, X.dtype, threads
        prepared = self._prepared.pop(key, None)  # taken out while it is in use: two threads may predict at once
        if prepared is None or prepared.owner is not self._params or (prepared.x is None and not X.flags.carray):
            return None
        x, predictions = X, np.empty((len(X), self._description.sizes[-1]), X.dtype)
        if prepared.x is not None:
            x = prepared.x
            x[...] = X
        if prepared.run(x, predictions) != FINISHED:
            return None
        self._prepared[key] = prepared
        return predictions

    def _work(self) -> int:
        """Multiply-adds that a row takes in a forward pass, about."""
        return self._params.size + UNIT_WORK * sum(self._description.sizes)

    def loss_and_gradient(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        l2: float = 0.0,
        threads: int | str = 1,
    ) -> tuple[float, Array]:
        """Return the mean loss over the rows and its gradient, ready for an optimiser such as SciPy's.

        Parameters
        ----------
        X : array_like of shape (n, inputs)
            Converted to the network's precision.
        y : array_like of shape (n,) or (n, outputs)
            Targets, as `fastbp.train` takes them.
        sample_weight : array_like of shape (n,) or (n, targets), optional
            Weights of the rows, or of their targets, as `fastbp.train` takes them; the mean is then the weighted one.
        l2 : float, default 0.0
            Penalty: l2 / 2 times the sum of the squared weights, not biases, is added to the summed loss, as
            `fastbp.train` does with a batch; at least 0.
        threads : int or "auto", default 1
            Threads that share the rows; "auto" takes as many as pay. The bits are the same for any number.

        Returns
        -------
        loss : float
            Mean loss of a row, with the penalty.
        gradient : ndarray of shape (P,)
            Its derivative by each of `params`.

        Raises
        ------
        DataError
            If shapes do not fit the network, values are not finite or labels out of range, or no weight is above 0.
        ParameterError
            If `l2` is below 0, or subnormal in the precision of the network.
        ParameterTypeError
            If X, y or sample_weight is not an array of numbers, or `l2` no number.
        ResourceError
            If what it computes with would not fit into memory.

        Examples
        --------
        >>> loss, gradient = Network((1, 1), init="zeros").loss_and_gradient([[1.0], [3.0]], [2.0, 0.0])
        >>> loss
        1.0
        >>> gradient
        array([-1., -1.])
        """
        dtype, sizes = self._params.dtype, self._description.sizes
        l2 = checks.number("l2", l2, at_least=0)
        checks.normal(dtype, l2=l2)
        X = checks.features(X, dtype, sizes[0])
        y, weights = checks.weighted_targets(y, sample_weight, self._description.loss, len(X), sizes[-1], dtype)
        params, wanted = self._checked(), checks.threads(threads)
        apart = weights is not None and weights.ndim == 2
        plan = make_plan(self, len(X), len(X), weighted=weights is not None, output_weights=apart, l2=l2)
        share, count = None, 1
        if wanted != 1 and not is_alone(plan, dtype):
            count = wanted or best(plan, dtype)
        if count > 1:
            plan, share = shared(plan, dtype, count)
        laid_out = 2 * len(X) * plan.features  # rows and panels
        numbers = laid_out + sum(memory_sizes(plan, dtype, 1).values())
        checks.memory(dtype.itemsize * numbers, f"the gradient of {len(X)} rows, with what computes it,")
        memory = make_memory(plan, params, 1)
        compute, rows = engine("numba"), rows_of(X, y, weights, None, sizes[-1], apart)
        data = panels_of(rows, plan) if compute.PANELS else rows.ravel()
        with Team(count) as team:  # of one, it has no threads
            if share is None or not compute.PANELS:
                run = compute.bind(plan, memory, data, data[:0])
            else:
                run = bind_team(plan, memory, share, data, data[:0], team)
            left = plan.blocks_per_epoch
            blocks = max(1, CALL_WORK // (3 * plan.block * plan.width * self._work()))  # of one call, as in `predict`
            for _ in range(0, left, blocks):
                run(min(blocks, left))
                left -= blocks
        weight = len(X) if weights is None else float(weights.sum(dtype=np.float64)) / (weights.size // len(X))
        return float(memory.loss[0]), memory.gradient[: params.size] / weight
