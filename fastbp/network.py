"""The network: its sizes, its activations and one flat vector of parameters."""

from __future__ import annotations

import functools
import itertools
import operator
import warnings
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastbp import checks
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
        if init == "uniform":
            weights = random.uniform(size=shape)
        elif init == "glorot_uniform":
            limit = np.sqrt(6 / (inputs + outputs))
            weights = random.uniform(-limit, limit, size=shape)
        else:
            weights = np.zeros(shape)
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
    loss : {"squared_error", "binary_cross_entropy", "cross_entropy"}
        What training minimises.
    bias : bool, default True
        Whether layers have biases.
    init : {"glorot_uniform", "uniform", "zeros"}
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
    equation 16.

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
        bias: bool = True,
        init: str = "glorot_uniform",
        seed: int | None = None,
        dtype: Any = "float64",
    ) -> None:
        self.sizes = checks.sizes(sizes)
        self.loss = checks.choice("loss", loss, LOSSES)
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
        predictions = np.empty((len(X), self.sizes[-1]), self.params.dtype)
        if len(X):
            plan = make_plan(self, len(X), len(X))
            gathered, activations, none = forward_memory(plan, self.params.dtype)
            order = np.arange(len(X))
            engine("numba").predict(plan, self.params, X, order, none, gathered, activations, predictions)
        return predictions

    def loss_and_gradient(self, X: ArrayLike, y: ArrayLike) -> tuple[float, Array]:
        """Return the mean loss over the rows and its gradient, ready for an optimiser such as SciPy's.

        Parameters
        ----------
        X : array_like of shape (n, inputs)
            Converted to the network's precision.
        y : array_like of shape (n,) or (n, outputs)
            Targets, as `fastbp.train` takes them.

        Returns
        -------
        loss : float
            Mean loss of a row.
        gradient : ndarray of shape (P,)
            Its derivative by each of `params`.

        Raises
        ------
        DataError
            If shapes do not fit the network, values are not finite or labels out of range.
        ParameterTypeError
            If X or y is not an array of numbers.

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
        plan = make_plan(self, len(X), len(X))
        memory = make_memory(plan, self.params, 1)
        compute, rows = engine("numba"), rows_of(X, y)
        data = panels_of(rows, plan) if compute.PANELS else rows.ravel()
        compute.run(plan, memory, data, plan.blocks_per_epoch)
        return float(memory.loss[0]), memory.gradient[: self.params.size] / len(X)
