"""The network: its sizes, its activations and one flat vector of parameters."""

from __future__ import annotations

import functools
import itertools
import operator
import os
import warnings
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastbp import checkpoint, checks
from fastbp.choices import INITIALISERS, LOSSES
from fastbp.workspace import forward_memory, make_memory, make_plan, panels_of, rows_of

Array = NDArray[Any]


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


def initialise(sizes: tuple[int, ...], bias: bool, init: str, seed: int, dtype: Any) -> Array:
    """Draw the flat vector of a new network: for each layer W (inputs, outputs) in C order, then b (outputs,)."""
    random = np.random.RandomState(seed)  # its streams are frozen: the same network in every version of NumPy
    parts = []
    for inputs, outputs in itertools.pairwise(sizes):
        shape = (inputs, outputs)
        units = inputs + outputs if init.startswith("glorot") else inputs
        if init == "uniform":
            weights = random.uniform(size=shape)
        elif init == "zeros":
            weights = np.zeros(shape)
        elif init.endswith("normal"):
            weights = np.sqrt(2 / units) * random.standard_normal(size=shape)
        else:
            limit = np.sqrt(6 / units)
            weights = random.uniform(-limit, limit, size=shape)
        parts += [weights.ravel(), np.zeros(outputs * bias)]
    return np.concatenate(parts).astype(dtype)


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
    loss : {"squared_error", "binary_cross_entropy", "cross_entropy", "absolute_error", "huber", "poisson"}
        What training minimises.
    huber_delta : float, default 1.0
        Size of a residual above which the loss "huber" is no longer quadratic; above 0.
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
        Units of each layer; names of the activations, the output's last.
    loss : str
    huber_delta : float
    bias : bool
    params : ndarray of shape (P,)
        All parameters: for each layer W (inputs, outputs) in C order, then b (outputs,). Training writes here.

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
        bias: bool = True,
        init: str = "glorot_uniform",
        seed: int | None = None,
        dtype: Any = "float64",
    ) -> None:
        self.sizes = checks.sizes(sizes)
        self.loss = checks.choice("loss", loss, LOSSES)
        self.huber_delta = checks.number("huber_delta", huber_delta, above=0)
        hidden = checks.activations(activation, len(self.sizes) - 2)
        self.activations = (*hidden, checks.output(output, self.loss))
        self.bias = checks.flag("bias", bias)
        kind = checks.dtype(dtype)
        checks.memory(4 * kind.itemsize * sum(map(operator.mul, self.sizes, self.sizes[1:])), "the parameters")
        init = checks.choice("init", init, INITIALISERS)
        self.params = initialise(self.sizes, self.bias, init, checks.seed(seed), kind)

    def __repr__(self) -> str:
        """Sizes, activations, loss and precision."""
        return f"Network({self.sizes}, {self.activations}, {self.loss!r}, {self.params.dtype})"

    def _views(self) -> list[tuple[Array, Array]]:
        views, start = [], 0
        for inputs, outputs in itertools.pairwise(self.sizes):
            end = start + inputs * outputs
            biases = self.params[end : end + outputs * self.bias]
            views.append((self.params[start:end].reshape(inputs, outputs), biases))
            start = end + biases.size
        return views

    @property
    def weights(self) -> list[Array]:
        """Weights of each layer (inputs, outputs), views of `params`."""
        return [weights for weights, _ in self._views()]

    @property
    def biases(self) -> list[Array]:
        """Biases of each layer (outputs,), views of `params`; empty arrays without biases."""
        return [biases for _, biases in self._views()]

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
        twin = object.__new__(Network)
        twin.__dict__.update(self.__dict__, params=self.params.copy())
        return twin

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
            If a parameter is not finite, or `params` has the wrong shape or dtype.
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
        checks.parameters(self.params, self.sizes, self.bias)
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
        metadata = {
            "kind": "network",
            "sizes": list(self.sizes),
            "activations": list(self.activations),
            "loss": self.loss,
            "huber_delta": self.huber_delta,
            "bias": self.bias,
            "dtype": str(self.params.dtype),
        }
        return metadata, {"params": self.params}

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
            bias=bias,
            init="zeros",
            seed=0,
            dtype=str(params.dtype),
        )
        network.params = params
        if network._to_file()[0] != metadata:  # a key too many, another dtype, null where a default would step in
            raise ValueError("its metadata does not describe its network")
        return network

    def predict(self, X: ArrayLike) -> Array:
        """Return the outputs of the network.

        Parameters
        ----------
        X : array_like of shape (n, inputs)
            Converted to the network's precision; n may be 0.

        Returns
        -------
        ndarray of shape (n, outputs)
            The same bits for a row whatever rows surround it.

        Raises
        ------
        DataError
            If X has another number of columns than the network inputs, or values that are not finite.
        ParameterTypeError
            If X is not an array of numbers.

        Examples
        --------
        >>> Network((2, 1), init="zeros").predict([[1.0, 2.0]])
        array([[0.]])
        """
        checks.parameters(self.params, self.sizes, self.bias)
        X = checks.features(X, self.params.dtype, self.sizes[0], minimum_rows=0)
        # A read-only array has a type of its own, for which Numba would compile once more.
        params = self.params if self.params.flags.writeable else self.params.copy()
        predictions = np.empty((len(X), self.sizes[-1]), params.dtype)
        if len(X):
            plan = make_plan(self, len(X), len(X))
            gathered, activations, none = forward_memory(plan, params.dtype)
            order = np.arange(len(X))
            engine("numba").predict(plan, params, X, order, none, gathered, activations, predictions)
        return predictions

    def loss_and_gradient(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> tuple[float, Array]:
        """Return the mean loss over the rows and its gradient, ready for an optimiser such as SciPy's.

        Parameters
        ----------
        X : array_like of shape (n, inputs)
            Converted to the network's precision.
        y : array_like of shape (n,) or (n, outputs)
            Targets, as `fastbp.train` takes them.
        sample_weight : array_like of shape (n,), optional
            Weights of the rows, at least 0; the mean is then the weighted one.

        Returns
        -------
        loss : float
            Mean loss of a row.
        gradient : ndarray of shape (P,)
            Its derivative by each of `params`.

        Raises
        ------
        DataError
            If shapes do not fit the network, values are not finite or labels out of range, or no weight is above 0.
        ParameterTypeError
            If X, y or sample_weight is not an array of numbers.

        Examples
        --------
        >>> loss, gradient = Network((1, 1), init="zeros").loss_and_gradient([[1.0], [3.0]], [2.0, 0.0])
        >>> loss
        1.0
        >>> gradient
        array([-1., -1.])
        """
        checks.parameters(self.params, self.sizes, self.bias)
        X = checks.features(X, self.params.dtype, self.sizes[0])
        y = checks.targets(y, self.loss, len(X), self.sizes[-1], self.params.dtype)
        weights = None if sample_weight is None else checks.row_weights(sample_weight, len(X), self.params.dtype)
        plan = make_plan(self, len(X), len(X), weighted=weights is not None)
        memory = make_memory(plan, self.params if self.params.flags.writeable else self.params.copy(), 1)
        compute, rows = engine("numba"), rows_of(X, y, weights)
        data = panels_of(rows, plan) if compute.PANELS else rows.ravel()
        compute.run(plan, memory, data, data[:0], plan.blocks_per_epoch)
        weight = len(X) if weights is None else float(weights.sum(dtype=np.float64))
        return float(memory.loss[0]), memory.gradient[: self.params.size] / weight
