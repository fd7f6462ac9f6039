"""What can be chosen by name: activations, losses, initialisers, optimisers.

Each row is a name, its integer code and its formula. Kernels compare codes outside their loops, so that one compiled
version serves every combination. Codes are append-only: compiled code on disk and saved networks hold them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

IDENTITY, SIGMOID, TANH, RELU, LEAKY_RELU, SOFTMAX = range(6)
SQUARED_ERROR, BINARY_CROSS_ENTROPY, CROSS_ENTROPY = range(3)
KEEP_GRADIENT, PLAIN_SGD, MOMENTUM_SGD, ADAM = range(4)

LEAK = 0.01  # slope of leaky_relu below zero

# Deltas and momenta below this count as 0: products with them would be subnormal numbers, which some CPUs compute a
# hundred times slower.
TINY_FLOAT32, TINY_FLOAT64 = 2.0**-120, 2.0**-1000


class Activation(NamedTuple):
    """An activation a = f(z). Its slope da/dz is written with a, so z need not be kept."""

    code: int
    formula: str
    slope: str


class Loss(NamedTuple):
    """A loss of one sample, summed over its outputs; z are the logits, p the prediction, y the target."""

    code: int
    formula: str
    outputs: tuple[str, ...]  # the output activations it goes with, its natural partner first


ACTIVATIONS = {
    "identity": Activation(IDENTITY, "z", "1"),
    "sigmoid": Activation(SIGMOID, "1 / (1 + exp(-z))", "a (1 - a)"),
    "tanh": Activation(TANH, "tanh(z)", "1 - a^2"),
    "relu": Activation(RELU, "max(z, 0)", "1 if a > 0 else 0"),
    "leaky_relu": Activation(LEAKY_RELU, "z if z > 0 else 0.01 z", "1 if a > 0 else 0.01"),
    "softmax": Activation(SOFTMAX, "exp(z) / sum exp(z)", "only as the output of cross_entropy"),
}
ELEMENTWISE = tuple(name for name in ACTIVATIONS if name != "softmax")

LOSSES = {
    "squared_error": Loss(SQUARED_ERROR, "1/2 sum (p - y)^2", ELEMENTWISE),
    "binary_cross_entropy": Loss(BINARY_CROSS_ENTROPY, "sum -y log p - (1 - y) log(1 - p)", ("sigmoid",)),
    "cross_entropy": Loss(CROSS_ENTROPY, "sum -y log p", ("softmax",)),
}

# Weights of a layer with I inputs and O outputs; biases start at zero.
INITIALISERS = {
    "glorot_uniform": "uniform on [-r, r), r = sqrt(6 / (I + O))",  # Glorot & Bengio 2010, equation 16
    "uniform": "uniform on [0, 1), as the notebook draws them",
    "zeros": "0",
}

REDUCTIONS = ("mean", "sum")
BACKENDS = ("numba", "numpy")


@dataclass(frozen=True, slots=True)
class SGD:
    """Stochastic gradient descent, with momentum if it is not zero.

    With g the gradient of the batch: ``velocity = momentum * velocity + g`` and ``w -= learning_rate * velocity``;
    with Nesterov's look-ahead ``w -= learning_rate * (g + momentum * velocity)``.

    Parameters
    ----------
    learning_rate : float, default 0.01
        Above 0.
    momentum : float, default 0.0
        In [0, 1).
    nesterov : bool, default False
        Needs a momentum above 0.

    References
    ----------
    Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning",
    ICML 2013, equations 1 to 4, with the velocity measured in gradients.

    Examples
    --------
    >>> SGD(momentum=0.9)
    SGD(learning_rate=0.01, momentum=0.9, nesterov=False)
    """

    learning_rate: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False

    @property
    def code(self) -> int:
        """The integer by which kernels know it."""
        return MOMENTUM_SGD if self.momentum else PLAIN_SGD

    @property
    def settings(self) -> tuple[float, float, float]:
        """What the kernel reads beside the learning rate."""
        return self.momentum, float(self.nesterov), 0.0


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam: each weight moves by the mean of its gradients over the root of their mean square.

    Parameters
    ----------
    learning_rate : float, default 0.001
        Above 0.
    beta1, beta2 : float, default 0.9 and 0.999
        Decay of the two running means, in [0, 1).
    epsilon : float, default 1e-8
        Added to the root, above 0.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1.

    Examples
    --------
    >>> Adam(learning_rate=0.01)
    Adam(learning_rate=0.01, beta1=0.9, beta2=0.999, epsilon=1e-08)
    """

    learning_rate: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    @property
    def code(self) -> int:
        """The integer by which kernels know it."""
        return ADAM

    @property
    def settings(self) -> tuple[float, float, float]:
        """What the kernel reads beside the learning rate."""
        return self.beta1, self.beta2, self.epsilon


OPTIMIZERS: dict[str, type[SGD] | type[Adam]] = {"sgd": SGD, "adam": Adam}
