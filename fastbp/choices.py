"""What can be chosen by name: activations, losses, initialisers, optimisers.

Each row is a name, its integer code and its formula. Kernels compare codes outside their loops, so that one compiled
version serves every combination. Codes are append-only: compiled code on disk and saved networks hold them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

from fastbp.errors import ParameterError
from fastbp.scalars import count, flag, number

IDENTITY, SIGMOID, TANH, RELU, LEAKY_RELU, SOFTMAX, ELU, GELU, SILU, SOFTPLUS, EXPONENTIAL = range(11)
SQUARED_ERROR, BINARY_CROSS_ENTROPY, CROSS_ENTROPY, ABSOLUTE_ERROR, HUBER, POISSON, QUANTILE, GAUSSIAN_NLL = range(8)
KEEP_GRADIENT, PLAIN_SGD, MOMENTUM_SGD, ADAM, RMSPROP, IRPROP, ADAMW, LIMITED_BFGS, MARQUARDT = range(9)
CONSTANT, EXPONENTIAL_DECAY, INVERSE_SCALING, COSINE, REDUCE_ON_PLATEAU = range(5)

SECOND_ORDER = (LIMITED_BFGS, MARQUARDT)  # which `lbfgs.py` and `marquardt.py` run, an epoch a block

LEAK = 0.01  # slope of leaky_relu below zero


class Activation(NamedTuple):
    """An activation a = f(z). Its slope da/dz is written with a where that is possible, so that z need not be kept."""

    code: int
    formula: str
    slope: str
    source: str = ""


class Loss(NamedTuple):
    """A loss of one sample, summed over its outputs; z are the logits, p the prediction, y the target."""

    code: int
    formula: str
    outputs: tuple[str, ...]  # the output activations it goes with, its natural partner first
    source: str = ""


ACTIVATIONS = {
    "identity": Activation(IDENTITY, "z", "1"),
    "sigmoid": Activation(SIGMOID, "1 / (1 + exp(-z))", "a (1 - a)"),
    "tanh": Activation(TANH, "tanh(z)", "1 - a^2"),
    "relu": Activation(RELU, "max(z, 0)", "1 if a > 0 else 0", "Nair and Hinton, ICML 2010"),
    "leaky_relu": Activation(
        LEAKY_RELU, "z if z > 0 else 0.01 z", "1 if a > 0 else 0.01", "Maas, Hannun and Ng, ICML 2013"
    ),
    "softmax": Activation(SOFTMAX, "exp(z) / sum exp(z)", "only as the output of cross_entropy"),
    "elu": Activation(
        ELU, "z if z > 0 else exp(z) - 1", "1 if a > 0 else 1 + a", "Clevert, Unterthiner and Hochreiter, ICLR 2016"
    ),
    "gelu": Activation(
        GELU,
        "z Phi(z), Phi(z) = (1 + erf(z / sqrt(2))) / 2",
        "Phi(z) + z exp(-z^2 / 2) / sqrt(2 pi)",
        "Hendrycks and Gimpel, arXiv:1606.08415, section 2",
    ),
    "silu": Activation(
        SILU,
        "z s, s = 1 / (1 + exp(-z))",
        "s (1 + z (1 - s))",
        "Elfwing, Uchibe and Doya, Neural Networks 107, 2018, equations 5 and 7",
    ),
    "softplus": Activation(SOFTPLUS, "log(1 + exp(z))", "1 - exp(-a)", "Dugas et al., NIPS 2000, equation 3"),
    "exponential": Activation(EXPONENTIAL, "exp(z)", "a"),
}
ELEMENTWISE = tuple(name for name in ACTIVATIONS if name != "softmax")
OF_LOGITS = tuple(row.code for row in ACTIVATIONS.values() if "z" in row.slope)  # so their logits are kept

LOSSES = {
    "squared_error": Loss(SQUARED_ERROR, "1/2 sum (p - y)^2", ELEMENTWISE),
    "binary_cross_entropy": Loss(BINARY_CROSS_ENTROPY, "sum -y log p - (1 - y) log(1 - p)", ("sigmoid",)),
    "cross_entropy": Loss(CROSS_ENTROPY, "sum -y log p", ("softmax",)),
    "absolute_error": Loss(ABSOLUTE_ERROR, "sum |p - y|", ELEMENTWISE),
    "huber": Loss(
        HUBER,
        "sum 1/2 r^2 where r = |p - y| < d, elsewhere d (r - d / 2)",
        ELEMENTWISE,
        "Huber, Annals of Mathematical Statistics 35, 1964",
    ),
    "poisson": Loss(
        POISSON,
        "sum p - y + y log(y / p), half the deviance",
        ("exponential",),
        "McCullagh and Nelder, Generalized Linear Models, 1989, section 2.3",
    ),
    "quantile": Loss(
        QUANTILE,
        "sum max(q (y - p), (q - 1) (y - p)) + c sum max(p - p of the next output, 0)",
        ELEMENTWISE,
        "Koenker and Bassett, Econometrica 46, 1978",
    ),
    "gaussian_nll": Loss(
        GAUSSIAN_NLL,
        "sum 1/2 (s + (y - m)^2 exp(-s)), p the means m of all targets and then their log variances s",
        ("identity",),
        "Nix and Weigend, ICNN 1994",
    ),
}
QUANTILES = (0.1, 0.5, 0.9)  # the levels of "quantile" by default
CLASSIFYING = ("binary_cross_entropy", "cross_entropy")  # losses whose targets are classes


def outputs_of(loss: str, targets: int, levels: int) -> int:
    """Return how many outputs a network needs for so many columns of y.

    >>> outputs_of("squared_error", 2, 0), outputs_of("quantile", 1, 3), outputs_of("gaussian_nll", 2, 0)
    (2, 3, 4)
    """
    return levels if loss == "quantile" else 2 * targets if loss == "gaussian_nll" else targets


# Weights of a layer with I inputs and O outputs; biases start at zero.
INITIALISERS = {
    "glorot_uniform": "uniform on [-r, r), r = sqrt(6 / (I + O))",  # Glorot & Bengio 2010, equation 16
    "uniform": "uniform on [0, 1), as the notebook draws them",
    "zeros": "0",
    "glorot_normal": "normal with variance 2 / (I + O)",  # Glorot & Bengio 2010, equation 12
    "he_uniform": "uniform on [-r, r), r = sqrt(6 / I)",  # He, Zhang, Ren and Sun, ICCV 2015, equation 10
    "he_normal": "normal with variance 2 / I",
}

REDUCTIONS = ("mean", "sum")
BACKENDS = ("numba", "numpy")


# --- settings -------------------------------------------------------------------------------------------------------


def bounded(default: float, **bounds: float) -> Any:
    """Declare a field that holds a finite number inside the bounds, which are named as `scalars.number` names them."""
    return field(default=default, metadata={"check": lambda name, value: number(name, value, **bounds)})


def counted(default: int | None, minimum: int = 0) -> Any:
    """Declare a field that holds an integer of at least `minimum`, or None if that is the default."""

    def check(name: str, value: object) -> int | None:
        return None if value is None and default is None else count(name, value, minimum)

    return field(default=default, metadata={"check": check})


def switch(default: bool) -> Any:
    """Declare a field that holds True or False."""
    return field(default=default, metadata={"check": flag})


class Settings:
    """Settings of which each field is checked when they are made, and kept as a Python number."""

    __slots__ = ()

    def __post_init__(self) -> None:
        """Check each field by what was declared with it."""
        for name, check in _checks_of(type(self)):  # type: ignore[arg-type]  # hashable, as all classes are
            object.__setattr__(self, name, check(name, getattr(self, name)))


@functools.cache
def _checks_of(kind: Any) -> list[tuple[str, Callable[[str, object], Any]]]:
    """Name and check of each field: `fields` alone takes a microsecond."""
    return [(each.name, each.metadata["check"]) for each in fields(kind)]


def values_of(settings: Settings) -> dict[str, Any]:
    """Names and values of the fields in their order; `dataclasses.asdict` would copy each value, for 10 us.

    >>> values_of(SGD())
    {'learning_rate': 0.01, 'momentum': 0.0, 'nesterov': False}
    """
    kind: Any = type(settings)
    return {name: getattr(settings, name) for name, _ in _checks_of(kind)}


# --- optimisers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SGD(Settings):
    """Stochastic gradient descent, with momentum if it is not zero.

    With g the gradient of the batch: ``velocity = momentum * velocity + learning_rate * g`` and ``w -= velocity``; with
    Nesterov's look-ahead ``w -= learning_rate * g + momentum * velocity``.

    Parameters
    ----------
    learning_rate : float, default 0.01
        Above 0.
    momentum : float, default 0.0
        In [0, 1).
    nesterov : bool, default False
        Needs a momentum above 0.

    Raises
    ------
    ParameterError, ParameterTypeError
        If a parameter is out of its range or of the wrong type, or `nesterov` comes without a momentum.

    References
    ----------
    Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning",
    ICML 2013, equations 1 to 4.

    Examples
    --------
    >>> SGD(momentum=0.9)
    SGD(learning_rate=0.01, momentum=0.9, nesterov=False)
    """

    learning_rate: float = bounded(0.01, above=0)
    momentum: float = bounded(0.0, at_least=0, below=1)
    nesterov: bool = switch(False)

    def __post_init__(self) -> None:
        """Check what no field can say alone."""
        Settings.__post_init__(self)  # super() does not know the class that `slots` makes anew
        if self.nesterov and self.momentum == 0:
            raise ParameterError("must come with a 'momentum' > 0, got True with momentum 0", "nesterov")

    @property
    def code(self) -> int:
        """The integer by which kernels know it."""
        return MOMENTUM_SGD if self.momentum else PLAIN_SGD


@dataclass(frozen=True, slots=True)
class Adam(Settings):
    """Adam: each weight moves by the mean of its gradients over the root of their mean square.

    Parameters
    ----------
    learning_rate : float, default 0.001
        Above 0.
    beta1, beta2 : float, default 0.9 and 0.999
        Decay of the two running means, in [0, 1).
    epsilon : float, default 1e-8
        Added to the root, above 0.
    epsilon_hat : bool, default False
        Whether epsilon is added before the mean square is corrected for its beginning at zero, as scikit-learn does.

    Raises
    ------
    ParameterError, ParameterTypeError
        If a parameter is out of its range or of the wrong type.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1; with `epsilon_hat` the end of
    its section 2.

    Examples
    --------
    >>> Adam(learning_rate=0.01)
    Adam(learning_rate=0.01, beta1=0.9, beta2=0.999, epsilon=1e-08, epsilon_hat=False)
    """

    code: ClassVar[int] = ADAM  # by which kernels know it
    learning_rate: float = bounded(0.001, above=0)
    beta1: float = bounded(0.9, at_least=0, below=1)
    beta2: float = bounded(0.999, at_least=0, below=1)
    epsilon: float = bounded(1e-8, above=0)
    epsilon_hat: bool = switch(False)


@dataclass(frozen=True, slots=True)
class AdamW(Settings):
    """Adam with decoupled decay: before each step ``w -= learning_rate * weight_decay * w``, of weights, not of biases.

    Parameters
    ----------
    learning_rate : float, default 0.001
        Above 0.
    beta1, beta2 : float, default 0.9 and 0.999
        Decay of the two running means, in [0, 1).
    epsilon : float, default 1e-8
        Added to the root, above 0.
    weight_decay : float, default 0.01
        At least 0.

    Raises
    ------
    ParameterError, ParameterTypeError
        If a parameter is out of its range or of the wrong type.

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.

    Examples
    --------
    >>> AdamW(weight_decay=0.1)
    AdamW(learning_rate=0.001, beta1=0.9, beta2=0.999, epsilon=1e-08, weight_decay=0.1)
    """

    code: ClassVar[int] = ADAMW  # by which kernels know it
    learning_rate: float = bounded(0.001, above=0)
    beta1: float = bounded(0.9, at_least=0, below=1)
    beta2: float = bounded(0.999, at_least=0, below=1)
    epsilon: float = bounded(1e-8, above=0)
    weight_decay: float = bounded(0.01, at_least=0)


@dataclass(frozen=True, slots=True)
class RMSprop(Settings):
    """Each weight moves by its gradient over the root of the running mean of its square.

    Parameters
    ----------
    learning_rate : float, default 0.001
        Above 0.
    decay : float, default 0.9
        Of the running mean, in [0, 1).
    epsilon : float, default 1e-8
        Added to the root, above 0.

    Raises
    ------
    ParameterError, ParameterTypeError
        If a parameter is out of its range or of the wrong type.

    References
    ----------
    Tieleman and Hinton, "Lecture 6.5: rmsprop", Neural Networks for Machine Learning, 2012.

    Examples
    --------
    >>> RMSprop(decay=0.99)
    RMSprop(learning_rate=0.001, decay=0.99, epsilon=1e-08)
    """

    code: ClassVar[int] = RMSPROP  # by which kernels know it
    learning_rate: float = bounded(0.001, above=0)
    decay: float = bounded(0.9, at_least=0, below=1)
    epsilon: float = bounded(1e-8, above=0)


@dataclass(frozen=True, slots=True)
class IRprop(Settings):
    """iRprop-: each weight has a step of its own, which grows while the sign of its gradient stays and else shrinks.

    It reads signs alone, so it needs the gradient of all rows: ``batch_size=None``.

    Parameters
    ----------
    learning_rate : float, default 0.01
        The first step of every weight, above 0.
    increase, decrease : float, default 1.2 and 0.5
        Factors of a step: at least 1, and in (0, 1).
    smallest_step, largest_step : float, default 1e-6 and 50.0
        Bounds of a step, above 0.

    Raises
    ------
    ParameterError, ParameterTypeError
        If a parameter is out of its range or of the wrong type, or `smallest_step` is above `largest_step`.

    References
    ----------
    Igel and Huesken, "Empirical evaluation of the improved Rprop learning algorithms", Neurocomputing 50, 2003,
    section 2.2.

    Examples
    --------
    >>> IRprop(learning_rate=0.1)
    IRprop(learning_rate=0.1, increase=1.2, decrease=0.5, smallest_step=1e-06, largest_step=50.0)
    """

    code: ClassVar[int] = IRPROP  # by which kernels know it
    learning_rate: float = bounded(0.01, above=0)
    increase: float = bounded(1.2, at_least=1)
    decrease: float = bounded(0.5, above=0, below=1)
    smallest_step: float = bounded(1e-6, above=0)
    largest_step: float = bounded(50.0, above=0)

    def __post_init__(self) -> None:
        """Check what no field can say alone."""
        Settings.__post_init__(self)
        if self.smallest_step > self.largest_step:
            raise ParameterError(
                f"must be at most 'largest_step', got {self.smallest_step} and {self.largest_step}", "smallest_step"
            )


@dataclass(frozen=True, slots=True)
class LBFGS(Settings):
    """L-BFGS: each epoch is one search along a direction that the last steps and the changes of the gradient give.

    It takes all rows at once: ``batch_size=None``. Of each epoch the loss is that before its step; how many evaluations
    of loss and gradient the search takes, mostly one, shows in its time alone. Where no step lowers the loss, it begins
    again along the gradient; where none does there either, the weights stay. A training ends there if there is a
    `loss_tolerance`, or by `patience`.

    Parameters
    ----------
    learning_rate : float, default 1.0
        The step that each search tries first, times the direction; the first search of all one of this length. Above 0.
    history : int, default 10
        Steps that are remembered, at least 1.
    c1, c2 : float, default 1e-4 and 0.9
        Wolfe's conditions: a step lowers the loss by at least c1 times what the slope promised, and leaves at most c2
        of the slope, unless a tenth of the step is too long to find one that does. In (0, 1), and c1 at most c2.
    evaluations : int, default 20
        Of one search, at least 1; then it begins again along the gradient, where it takes the best step it has seen.
    gradient_tolerance : float, default 0.0
        Training ends where no component of the gradient is larger; 0 for never.
    loss_tolerance : float, default 0.0
        Training ends after a step that lowers the loss by at most this share of the larger of both losses and 1; 0 for
        never.
    max_evaluations : int, default 0
        Training ends after the epoch in which all searches together have made so many; 0 for never.

    Raises
    ------
    ParameterError, ParameterTypeError
        If a parameter is out of its range or of the wrong type, or `c1` is above `c2`.

    References
    ----------
    Liu and Nocedal, "On the limited memory BFGS method for large scale optimization", Mathematical Programming 45,
    1989. Nocedal and Wright, "Numerical Optimization", 2006, algorithms 7.4 and 7.5. More and Thuente, "Line search
    algorithms with guaranteed sufficient decrease", ACM Transactions on Mathematical Software 20, 1994. Zhu, Byrd, Lu
    and Nocedal, "Algorithm 778: L-BFGS-B", the same 23, 1997, for the first step and the tolerances.

    Examples
    --------
    >>> LBFGS(history=20).evaluations
    20
    """

    code: ClassVar[int] = LIMITED_BFGS  # by which kernels know it
    learning_rate: float = bounded(1.0, above=0)
    history: int = counted(10, minimum=1)
    c1: float = bounded(1e-4, above=0, below=1)
    c2: float = bounded(0.9, above=0, below=1)
    evaluations: int = counted(20, minimum=1)
    gradient_tolerance: float = bounded(0.0, at_least=0)
    loss_tolerance: float = bounded(0.0, at_least=0)
    max_evaluations: int = counted(0)

    def __post_init__(self) -> None:
        """Check what no field can say alone."""
        Settings.__post_init__(self)
        if self.c1 > self.c2:
            raise ParameterError(f"must be at most 'c2', got {self.c1} and {self.c2}", "c1")


@dataclass(frozen=True, slots=True)
class LevenbergMarquardt(Settings):
    """Levenberg-Marquardt: each batch makes a damped Gauss-Newton step, and keeps it only if its own loss is lower.

    With g the gradient of the batch and H the curvature that its Jacobian gives: ``w -= learning_rate * s`` where
    ``(H + damping I) s = g``. H is exact but for the curvature of the network itself: for squared error, the two
    cross-entropies and "poisson"; residuals beyond `huber_delta` are weighted down, as in least squares that are
    iteratively reweighted. It wants large batches, best ``batch_size=None``, and takes 16 bytes times the square of the
    number of parameters. For networks of up to some thousand parameters.

    Parameters
    ----------
    learning_rate : float, default 1.0
        Share of a step that is made, above 0 and at most 1.
    damping : float, default 1e-3
        The first one, above 0.
    increase, decrease : float, default 2.0 and 0.1
        Factors of the damping: after a step that was refused, above 1, and twice as much after each further one; and
        after one that was kept the least, in (0, 1). How much less, the quadratic model decides by what it promised.
    smallest, largest : float, default 1e-10 and 1e10
        Bounds of the damping, above 0.
    attempts : int, default 10
        Steps that a batch tries at most, at least 1; if all are refused, the weights stay.

    Raises
    ------
    ParameterError, ParameterTypeError
        If a parameter is out of its range or of the wrong type, or `smallest` is above `largest`.

    References
    ----------
    Marquardt, "An algorithm for least-squares estimation of nonlinear parameters", SIAM Journal on Applied Mathematics
    11, 1963. Hagan and Menhaj, "Training feedforward networks with the Marquardt algorithm", IEEE Transactions on
    Neural Networks 5, 1994. Nielsen, "Damping parameter in Marquardt's method", IMM-REP-1999-05, for the damping.

    Examples
    --------
    >>> LevenbergMarquardt(damping=0.1).decrease
    0.1
    """

    code: ClassVar[int] = MARQUARDT  # by which kernels know it
    learning_rate: float = bounded(1.0, above=0, at_most=1)
    damping: float = bounded(1e-3, above=0)
    increase: float = bounded(2.0, above=1)
    decrease: float = bounded(0.1, above=0, below=1)
    smallest: float = bounded(1e-10, above=0)
    largest: float = bounded(1e10, above=0)
    attempts: int = counted(10, minimum=1)

    def __post_init__(self) -> None:
        """Check what no field can say alone."""
        Settings.__post_init__(self)
        if self.smallest > self.largest:
            raise ParameterError(f"must be at most 'largest', got {self.smallest} and {self.largest}", "smallest")


Optimizer = SGD | Adam | AdamW | RMSprop | IRprop | LBFGS | LevenbergMarquardt
OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
    "irprop": IRprop,
    "lbfgs": LBFGS,
    "levenberg_marquardt": LevenbergMarquardt,
}


# --- learning-rate schedules ----------------------------------------------------------------------------------------
# Each gives the factor of the learning rate in epoch t, counted from 0; it is the same for all batches of an epoch.


@dataclass(frozen=True, slots=True)
class Constant(Settings):
    """The learning rate stays what it is.

    Examples
    --------
    >>> Constant()
    Constant()
    """

    code: ClassVar[int] = CONSTANT  # by which kernels know it


@dataclass(frozen=True, slots=True)
class ExponentialDecay(Settings):
    """The learning rate times ``decay ** t`` in epoch t, counted from 0.

    Parameters
    ----------
    decay : float, default 0.98
        In (0, 1].

    Raises
    ------
    ParameterError, ParameterTypeError
        If a parameter is out of its range or of the wrong type.

    Examples
    --------
    >>> ExponentialDecay(0.9)
    ExponentialDecay(decay=0.9)
    """

    code: ClassVar[int] = EXPONENTIAL_DECAY  # by which kernels know it
    decay: float = bounded(0.98, above=0, at_most=1)


@dataclass(frozen=True, slots=True)
class InverseScaling(Settings):
    """The learning rate over ``(1 + pace * t) ** power`` in epoch t, counted from 0.

    Parameters
    ----------
    power : float, default 0.5
        Above 0.
    pace : float, default 1.0
        Above 0. The number of rows gives scikit-learn's "invscaling".

    Raises
    ------
    ParameterError, ParameterTypeError
        If a parameter is out of its range or of the wrong type.

    References
    ----------
    Robbins and Monro, "A stochastic approximation method", Annals of Mathematical Statistics 22, 1951, for power 1.

    Examples
    --------
    >>> InverseScaling(power=1.0)
    InverseScaling(power=1.0, pace=1.0)
    """

    code: ClassVar[int] = INVERSE_SCALING  # by which kernels know it
    power: float = bounded(0.5, above=0)
    pace: float = bounded(1.0, above=0)


@dataclass(frozen=True, slots=True)
class CosineDecay(Settings):
    """The learning rate rises evenly for `warmup` epochs and then falls along half a cosine.

    The factor in epoch t, counted from 0, is ``(t + 1) / (warmup + 1)`` for t < warmup, and then
    ``minimum + (1 - minimum) * (1 + cos(pi * s)) / 2`` with ``s = (t - warmup) / (epochs - warmup)``, at most 1.

    Parameters
    ----------
    epochs : int, optional
        Epoch at which it arrives; by default the `epochs` of the training.
    warmup : int, default 0
        Epochs of the rise, fewer than `epochs`.
    minimum : float, default 0.0
        Factor at the end, in [0, 1].

    Raises
    ------
    ParameterError, ParameterTypeError
        If a parameter is out of its range or of the wrong type, or `warmup` is not less than `epochs`.

    References
    ----------
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017, equation 5.

    Examples
    --------
    >>> CosineDecay(epochs=100, warmup=5)
    CosineDecay(epochs=100, warmup=5, minimum=0.0)
    """

    code: ClassVar[int] = COSINE  # by which kernels know it
    epochs: int | None = counted(None, minimum=1)
    warmup: int = counted(0)
    minimum: float = bounded(0.0, at_least=0, at_most=1)

    def __post_init__(self) -> None:
        """Check what no field can say alone."""
        Settings.__post_init__(self)
        if self.epochs is not None and self.warmup >= self.epochs:
            raise ParameterError(
                f"must be less than the epochs of the schedule ({self.epochs}), got {self.warmup}", "warmup"
            )


@dataclass(frozen=True, slots=True)
class ReduceOnPlateau(Settings):
    """The learning rate times `factor` whenever the loss has not improved for more than `patience` epochs in a row.

    It watches the validation loss where there is one, else the loss of the training. An epoch improves if its loss is
    below the least so far by more than `min_delta`.

    Parameters
    ----------
    factor : float, default 0.1
        In (0, 1).
    patience : int, default 10
        At least 0.
    min_delta : float, default 1e-4
        At least 0.
    minimum : float, default 0.0
        At this share of the learning rate or below, at most 1, it is not reduced further.
    stop : bool, default False
        Whether training then stops instead.

    Raises
    ------
    ParameterError, ParameterTypeError
        If a parameter is out of its range or of the wrong type.

    Examples
    --------
    >>> ReduceOnPlateau(factor=0.5)
    ReduceOnPlateau(factor=0.5, patience=10, min_delta=0.0001, minimum=0.0, stop=False)
    """

    code: ClassVar[int] = REDUCE_ON_PLATEAU  # by which kernels know it
    factor: float = bounded(0.1, above=0, below=1)
    patience: int = counted(10)
    min_delta: float = bounded(1e-4, at_least=0)
    minimum: float = bounded(0.0, at_least=0, at_most=1)
    stop: bool = switch(False)


Schedule = Constant | ExponentialDecay | InverseScaling | CosineDecay | ReduceOnPlateau
SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "exponential": ExponentialDecay,
    "inverse_scaling": InverseScaling,
    "cosine": CosineDecay,
    "reduce_on_plateau": ReduceOnPlateau,
}


# --- slots ----------------------------------------------------------------------------------------------------------
# Where kernels find a setting in the array of an optimiser or a schedule: the fields of its class in their order.

LEARNING_RATE = 0  # of every optimiser
SGD_MOMENTUM, SGD_NESTEROV = 1, 2
ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON, ADAM_EPSILON_HAT = range(1, 5)
ADAMW_WEIGHT_DECAY = 4  # and before it those of Adam
RMSPROP_DECAY, RMSPROP_EPSILON = 1, 2
IRPROP_INCREASE, IRPROP_DECREASE, IRPROP_SMALLEST_STEP, IRPROP_LARGEST_STEP = range(1, 5)
LBFGS_HISTORY, LBFGS_C1, LBFGS_C2, LBFGS_EVALUATIONS = range(1, 5)
LBFGS_GRADIENT_TOLERANCE, LBFGS_LOSS_TOLERANCE, LBFGS_MAX_EVALUATIONS = range(5, 8)
LEVENBERG_MARQUARDT_DAMPING, LEVENBERG_MARQUARDT_INCREASE, LEVENBERG_MARQUARDT_DECREASE = range(1, 4)
LEVENBERG_MARQUARDT_SMALLEST, LEVENBERG_MARQUARDT_LARGEST, LEVENBERG_MARQUARDT_ATTEMPTS = range(4, 7)

EXPONENTIAL_DECAY_DECAY = 0
INVERSE_SCALING_POWER, INVERSE_SCALING_PACE = 0, 1
COSINE_EPOCHS, COSINE_WARMUP, COSINE_MINIMUM = range(3)
REDUCE_ON_PLATEAU_FACTOR, REDUCE_ON_PLATEAU_PATIENCE, REDUCE_ON_PLATEAU_MIN_DELTA = range(3)
REDUCE_ON_PLATEAU_MINIMUM, REDUCE_ON_PLATEAU_STOP = 3, 4

SLOTS = max(len(fields(kind)) for kind in (*OPTIMIZERS.values(), *SCHEDULES.values()))
