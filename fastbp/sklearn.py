"""`MLPClassifier` and `MLPRegressor`: scikit-learn's multilayer perceptrons, trained by fastbp.

A script imports them from here instead of from sklearn.neural_network; what differs then, the Notes of `MLPClassifier`
say. Ensembles of them, and a search that trains all its candidates at once, are in `ensembles.py`, and imported from
here too.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators
# scikit-learn has no annotations.

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

try:
    import scipy.sparse
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import d2_pinball_score
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import LabelBinarizer
    from sklearn.utils import check_random_state, column_or_1d
    from sklearn.utils.metaestimators import available_if
    from sklearn.utils.multiclass import check_classification_targets, type_of_target
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError('fastbp.sklearn needs scikit-learn >= 1.6: pip install "fastbp[sklearn]"') from error

from fastbp import checks, choices
from fastbp.choices import CLASSIFYING, INITIALISERS, LOSSES, OPTIMIZERS, QUANTILES, SCHEDULES, SGD, outputs_of
from fastbp.network import Network
from fastbp.train import TrainResult, resume, train
from fastbp.trainer import Trainer

Array = NDArray[Any]

FOREVER = 2**31 - 1  # more epochs than anyone trains
LOSS_TOLERANCE = 1e7 * 2.0**-52  # of "lbfgs", that of SciPy's L-BFGS-B
SMALL = 2**16  # numbers that are looked at here instead of by scikit-learn: of more it is not slower
WITHOUT_EFFECT = ("random_state", "validation")  # on a `partial_fit` that goes on; the latter holds arrays
UNCHANGING = {str, int, float, bool, type(None), tuple, *choices.OPTIMIZERS.values(), *choices.SCHEDULES.values()}

# What `train` calls the parameters that scikit-learn has another name for; objects name their own numbers.
_OBJECTS = {"optimizer": "solver", "schedule": "learning_rate"}
_NAMES = _OBJECTS | {
    "beta1": "beta_1",
    "beta2": "beta_2",
    "gradient_tolerance": "tol",
    "l2": "alpha",
    "learning_rate": "learning_rate_init",
    "max_evaluations": "max_fun",
    "min_delta": "tol",
    "patience": "n_iter_no_change",
    "power": "power_t",
    "threads": "n_threads",
}
_LIMITS = {"epochs": "max_iter", "evaluations": "max_fun"}  # and limits that end a training before it converges
_OUTPUTS = {"sigmoid": "logistic", "exponential": "exp"}  # and what it calls the activations of outputs


@contextlib.contextmanager
def _named(names: dict[str, str] = _NAMES) -> Iterator[None]:
    """Name parameters in the messages of errors as scikit-learn does."""
    try:
        yield
    except checks.FastbpError as error:
        named = names.get(error.name or "", error.name)
        message = str(error).replace(repr(error.name), repr(named), 1).replace("with the optimizer", "with the solver")
        if message != str(error):
            error.args, error.name = (message,), named
        raise


def _has_batches(estimator: _Perceptron) -> bool:
    if estimator._is_lbfgs:
        raise AttributeError("'partial_fit' needs another solver than 'lbfgs', which has no batches")
    return True


class _Views(list[Array]):
    """Views of the weights or biases of a network; what is assigned is checked, all of it, and copied into them."""

    def __init__(self, name: str, views: list[Array]) -> None:
        super().__init__(views)
        self.name = name

    def __setitem__(self, index: Any, values: Any) -> None:
        layers = range(len(self))[index]
        if isinstance(layers, int):
            layers, values = range(layers, layers + 1), [values]
        if not isinstance(values, (list, tuple, np.ndarray)):
            raise checks.ParameterTypeError(f"must be a list of arrays, got {type(values).__name__}", self.name)
        if len(values) != len(layers):
            raise checks.DataError(f"must be a list of {len(layers)} arrays, got {len(values)}", self.name)
        arrays = [self._checked(layer, value) for layer, value in zip(layers, values, strict=True)]
        for layer, array in zip(layers, arrays, strict=True):
            self[layer][...] = array

    def __reduce__(self) -> tuple[Any, ...]:
        return list, ([*self],)  # a copy has no network: it is a plain list, which can be loaded without fastbp

    def _checked(self, layer: int, value: Any) -> Array:
        name, view = f"{self.name}[{layer}]", self[layer]
        array = checks.layer(name, value, view.ndim)
        if array.shape != view.shape:
            raise checks.DataError(f"must have shape {view.shape}, got shape {array.shape}", name)
        with np.errstate(over="ignore"):
            copy = array.astype(view.dtype)
        if not np.isfinite(copy).all():
            raise checks.DataError(f"must not overflow {view.dtype}", name)
        return copy


class _Opened:
    """A training that is kept open from one `partial_fit` to the next, if all it takes is an update each.

    That is so while the rows are one batch, nothing is drawn at random and the rate does not change.
    """

    def __init__(self, result: TrainResult, told: tuple[Any, ...] | None) -> None:
        settings = result.state.settings
        self.result, self.told, self.trainer = result, told, cast(Trainer | None, None)
        constant = isinstance(settings.schedule, choices.Constant) and not settings.dropout
        constant = constant and settings.optimizer.code not in choices.SECOND_ORDER
        alike = constant and settings.class_weight is None and result.validation_loss is None
        self.most_rows = 0 if told is None or not alike else settings.batch_size or sys.maxsize
        self.losses: list[float] = []
        self.errors: list[float] = []

    def step(self, X: Array, y: Array, sample_weight: Any) -> float:
        """Make the epoch, and return its loss."""
        if self.trainer is None:
            self.trainer = Trainer._of(self.result.network, self.result.state.settings, self.result.state)
            self.trainer._open()
        loss = self.trainer.step(X, y, sample_weight)
        self.losses.append(loss)
        self.errors.append(self.trainer._error())
        return loss

    def close(self) -> TrainResult:
        """Return the result that `resume` would have returned after the last step."""
        result = self.result
        if self.trainer is None or not self.losses:
            return result
        loss, error = np.array([*result.loss, *self.losses]), np.array([*result.error, *self.errors])
        return result._replace(loss=loss, error=error, state=self.trainer._state_now(loss.copy(), error.copy()))


@dataclasses.dataclass(kw_only=True, eq=False, repr=False)
class _Perceptron(BaseEstimator):
    """What classifier and regressor share: scikit-learn's parameters, in its order, and ours."""

    _opened = cast(_Opened | None, None)  # no annotation, which would make a parameter of it

    loss: str = dataclasses.field(default="log_loss", init=False)  # a parameter of the regressor, its first one
    hidden_layer_sizes: Any = (100,)
    activation: Any = "relu"
    solver: Any = "adam"
    alpha: float = 0.0001
    batch_size: Any = "auto"
    learning_rate: Any = "constant"
    learning_rate_init: float = 0.001
    power_t: float = 0.5
    max_iter: int = 200
    shuffle: bool = True
    random_state: Any = None
    tol: float = 1e-4
    verbose: Any = False
    warm_start: bool = False
    momentum: float = 0.9
    nesterovs_momentum: bool = True
    early_stopping: bool = False
    validation_fraction: float = 0.1
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    n_iter_no_change: float = 10
    max_fun: int = 15000
    dropout: Any = 0.0
    clip_norm: float | None = None
    validation: Any = None
    callback: Any = None
    callback_every: int = 1
    dtype: Any = None
    init: str = "scikit-learn"
    n_threads: Any = 1
    class_weight: Any = dataclasses.field(default=None, init=False)  # a parameter of the classifier
    huber_delta: float = dataclasses.field(default=1.0, init=False)  # as the next two, of the regressor
    quantiles: Any = dataclasses.field(default=QUANTILES, init=False)
    crossing_penalty: float = dataclasses.field(default=0.0, init=False)

    @property
    def coefs_(self) -> list[Array]:
        """Weights (inputs, outputs) of each layer, views of the network's; what is assigned is copied into them."""
        return _Views("coefs_", self.network_.weights)

    @coefs_.setter
    def coefs_(self, values: Any) -> None:
        check_is_fitted(self)
        self.coefs_[:] = values

    @property
    def intercepts_(self) -> list[Array]:
        """Biases (outputs,) of each layer, views of the network's; what is assigned is copied into them."""
        return _Views("intercepts_", self.network_.biases)

    @intercepts_.setter
    def intercepts_(self, values: Any) -> None:
        check_is_fitted(self)
        self.intercepts_[:] = values

    @property
    def result_(self) -> TrainResult | None:
        """What `fastbp.resume` goes on from; None of a network that was trained together with others."""
        if self._opened is not None:
            self._result: TrainResult | None = self._opened.close()
            self._opened = None
        return self._result

    @property
    def n_layers_(self) -> int:
        """Number of layers, the inputs among them."""
        return len(self.network_.sizes)

    @property
    def n_outputs_(self) -> int:
        """Number of outputs."""
        return self.network_.sizes[-1]

    @property
    def out_activation_(self) -> str:
        """Activation of the outputs, as scikit-learn calls it."""
        name = self.network_.activations[-1]
        return _OUTPUTS.get(name, name)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train a new network, or with `warm_start` the one of the last fit.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n, features)
            One sample a row. A sparse matrix is made dense.
        y : array_like of shape (n,) or (n, outputs)
            Labels of classes or a 0 or 1 for each label; numbers for a regressor.
        sample_weight : array_like of shape (n,) or (n, outputs), optional
            Weights of the rows, at least 0, or of a regressor of each target, also of each level of "quantile"; a
            target that is missing has weight 0 and any number.

        Returns
        -------
        MLPClassifier or MLPRegressor
            The estimator itself.

        Raises
        ------
        ParameterError, ParameterTypeError, DataError, ResourceError, DivergenceError
            As `fastbp.train` does; the names in messages are those of the parameters here. Also if early stopping has
            fewer than 2 rows for its validation, or with `warm_start` if `y` lacks a class or a parameter describes
            another network.
        """
        self._check_parameters()
        fresh = not (self.warm_start and hasattr(self, "network_"))
        X, targets = self._rows(X, y, fresh, complete=not fresh)
        weights = self._weights(sample_weight, targets, X.dtype)
        random = check_random_state(self.random_state)
        network = self._new_network(X, targets, random) if fresh else self._known_network(targets)
        held: tuple[Array, ...] | None = None
        parts = self._split(network, targets, random)
        if self.validation is not None:
            held = self._validation_rows()
        elif parts is not None:
            kept, chosen = parts
            held = (X[chosen], targets[chosen], *([] if weights is None else [weights[chosen]]))
            X, targets, weights = X[kept], targets[kept], None if weights is None else weights[kept]
        settings = self._settings_of_fit(len(X), held is not None, random)
        told = {"sample_weight": weights, "validation": held, **self._attendance()}
        late = not fresh and self.t_ > 0 and self._scales_inversely(settings["optimizer"])
        message: str | None = None
        try:
            with _named():
                first = {"epochs": 1} if late else {}
                result = train(X, targets, network=network, **settings | first, **told)
                if late and result.stopped == "epochs" and self.max_iter > 1:
                    result = resume(self._slowed(result, len(X)), X, targets, epochs=self.max_iter - 1, **told)
        except checks.DivergenceError as error:
            result = error.result
            if result.best_epoch is None:
                raise
            message = f"{error}; 'network_' has the weights of epoch {result.best_epoch}, the best in the validation"
        else:
            message = self._unconverged(result.stopped)
        self._keep(
            result.network, result, self._losses(result.loss, result.network, X, targets, weights), len(X), fresh
        )
        if message:
            warnings.warn(message, ConvergenceWarning, stacklevel=2)
        return self

    def _split(self, network: Network, targets: Array, random: np.random.RandomState) -> list[Array] | None:
        """Return the numbers of the rows to train on and of those for validation, if early stopping splits them off."""
        if self.validation is not None or not self.early_stopping or self._is_lbfgs:
            return None
        parts = train_test_split(
            np.arange(len(targets)),
            random_state=random,
            test_size=checks.number("validation_fraction", self.validation_fraction, above=0, below=1),
            stratify=targets if network.loss == "binary_cross_entropy" and network.sizes[-1] == 1 else None,
        )
        if (rows := len(parts[1])) < 2:
            raise checks.ParameterError(
                f"must give at least 2 rows, the validation set is too small, got {rows}", "validation_fraction"
            )
        return cast(list[Array], parts)

    def _settings_of_fit(self, rows: int, validated: bool, random: np.random.RandomState) -> dict[str, Any]:
        """Return what `train` is told by a whole fit on so many rows, but for data and attendance."""
        settings = self._settings(rows)
        # A schedule that says itself when to stop; yet without patience the best weights would not be kept.
        endless = isinstance(settings["schedule"], choices.ReduceOnPlateau) and settings["schedule"].stop
        patience = None if self._is_lbfgs else FOREVER if endless else self._patience()
        return settings | {
            "epochs": self.max_iter,
            "seed": _seed(random),
            "patience": patience,
            "min_delta": self.tol,
            "watch": "score" if validated else "loss",
        }

    def _unconverged(self, stopped: str) -> str | None:
        """Return what to warn of, if that is why training ended."""
        if stopped not in _LIMITS:
            return None
        trained, limit = "training by 'lbfgs'" if self._is_lbfgs else "training", _LIMITS[stopped]
        return f"{trained} stopped at {limit!r} ({getattr(self, limit)}), before it converged"

    def _losses(
        self, loss: Array, network: Network, X: Array, targets: Array, weights: Array | None, rows: Any = None
    ) -> list[float]:
        """Return the loss of each epoch, with "lbfgs" after its step; of the data all rows count, or these."""
        losses = cast(list[float], loss.tolist())
        if self._is_lbfgs:
            if rows is not None:
                X, targets, weights = X[rows], targets[rows], None if weights is None else weights[rows]
            # What the last step has reached is the loss of an epoch that makes none.
            settings = self._settings(len(X))
            everywhere = float(np.finfo(X.dtype).max)
            settings["optimizer"] = dataclasses.replace(settings["optimizer"], gradient_tolerance=everywhere)
            last = train(
                X, targets, network=network.copy(), sample_weight=weights, epochs=1, threads=self.n_threads, **settings
            )
            losses = [*losses[1:], last.loss.item()]
        return losses

    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> Self:
        """Train one epoch further, without validation."""
        opened, told_now = self._opened, self._told()
        if opened and opened.told == told_now and opened.result.network is self.network_ and opened.most_rows:
            X, targets = self._rows(X, y, False, classes)
            if len(X) <= opened.most_rows:
                return self._step(opened, X, targets, sample_weight)
        self._check_parameters()
        fresh = not hasattr(self, "network_")
        X, targets = self._rows(X, y, fresh, classes)
        last: TrainResult | None = None if fresh else self.result_
        told = {"epochs": 1, "sample_weight": sample_weight, **self._attendance()}
        if last is not None and last.validation_loss is None and self._continues(last):
            last = self._as_now(last, self._known_network(targets))
            with _named():
                result = resume(last, X, targets, **told)
        else:
            random = check_random_state(self.random_state)
            network = self._new_network(X, targets, random) if fresh else self._known_network(targets)
            settings = self._settings(len(X))
            with _named():
                result = train(X, targets, network=network, seed=_seed(random), **told, **settings)
        self._keep(result.network, result, result.loss[-1:].tolist(), len(X), fresh)
        self._opened = _Opened(result, told_now)
        return self

    def _weights(self, sample_weight: Any, targets: Array, dtype: Any) -> Array | None:
        if sample_weight is None:
            return None
        loss = self._loss(targets)
        levels = len(checks.quantiles(self.quantiles, loss)) or None
        with _named():
            return checks.weighted_targets(targets, sample_weight, loss, len(targets), levels, dtype)[1]

    def _told(self) -> tuple[Any, ...] | None:
        """Return the parameters that count in `partial_fit`; None if some of them might change unnoticed, or speak."""
        values = tuple(getattr(self, name) for name in self.__dataclass_fields__ if name not in WITHOUT_EFFECT)
        kinds = tuple(map(type, values))
        silent = self.callback is None and self.verbose is False
        return (values, kinds) if silent and UNCHANGING.issuperset(kinds) else None

    def _step(self, opened: _Opened, X: Array, targets: Array, sample_weight: Any) -> Self:
        """Make an epoch of one batch as what it is: one update."""
        try:
            with _named():
                loss = opened.step(X, targets, sample_weight)
        except checks.DivergenceError as error:
            before = opened.close()
            raise checks.DivergenceError(len(before.loss) + 1, before) from error
        self.n_iter_, self.loss_ = 1, loss
        self.t_ += len(X)
        self.loss_curve_.append(loss)
        self.best_loss_: float | None = min(cast(float, self.best_loss_), loss)
        return self

    def _check_parameters(self) -> None:
        """Check the parameters that nothing behind here checks, whether or not they are used."""
        for name in ("shuffle", "warm_start", "nesterovs_momentum", "early_stopping"):
            checks.flag(name, getattr(self, name))
        if not isinstance(self.verbose, (bool, np.bool_)):
            checks.count("verbose", self.verbose, 0)
        checks.count("max_iter", self.max_iter)
        checks.threads(self.n_threads, "n_threads")
        checks.number("validation_fraction", self.validation_fraction, at_least=0, below=1)

    def _known_network(self, targets: Array) -> Network:
        """Return a copy of the network, which is to be trained further; refuse parameters that describe another."""
        network = self.network_
        units = checks.hidden(self.hidden_layer_sizes, "hidden_layer_sizes")
        loss = self._loss(targets)
        levels = checks.quantiles(self.quantiles, loss)
        penalty = checks.number("crossing_penalty", self.crossing_penalty, at_least=0) if levels else 0.0
        described = {
            "hidden_layer_sizes": (units, network.sizes[1:-1]),
            "activation": (checks.activations(self._activation(), len(units)), network.activations[:-1]),
            "loss": (loss, network.loss),
            "huber_delta": (checks.number("huber_delta", self.huber_delta, above=0), network.huber_delta),
            "quantiles": (levels, network.quantiles),
            "crossing_penalty": (penalty, network.crossing_penalty),
            "dtype": (checks.dtype(self.dtype, network.params), network.params.dtype),
        }
        for name, (now, before) in described.items():
            if now != before:
                raise checks.ParameterError(
                    f"must be what the network was made with, {before!s}, to train it further, got {now!s}", name
                )
        return network.copy()

    def _continues(self, last: TrainResult) -> bool:
        """Whether the solver is the one whose state is in the result; that of L-BFGS has room for its history."""
        now, before = self._optimizer(), last.state.settings.optimizer
        return type(now) is type(before) and getattr(now, "history", None) == getattr(before, "history", None)

    def _as_now(self, last: TrainResult, network: Network) -> TrainResult:
        """Return the result for `resume` to go on from: the weights and the parameters of now, the optimiser's state.

        Of "invscaling" the next epoch, the only one, is to see the rate for all rows before it, however many each of
        the epochs had: it is as if they all had had the mean number.
        """
        told = self._settings(self.t_ / last.loss.size)
        size, norm = told["batch_size"], told["clip_norm"]
        with _named():
            settings = dataclasses.replace(
                last.state.settings,
                optimizer=told["optimizer"],
                schedule=told["schedule"],
                batch_size=None if size is None else checks.count("batch_size", size),
                shuffle=told["shuffle"],
                l2=checks.number("l2", told["l2"], at_least=0),
                dropout=checks.dropout(told["dropout"], len(network.sizes) - 2),
                clip_norm=0.0 if norm is None else checks.number("clip_norm", norm, above=0),
                class_weight=checks.class_weight(told["class_weight"]),
                patience=None,
            )
            checks.representable(settings.optimizer, network.params.dtype)
        state = last.state._replace(settings=settings, params=network.params)
        return last._replace(network=network, state=state)

    def _slowed(self, first: TrainResult, rows: int) -> TrainResult:
        """Return the result of the first epoch of a warm start, to go on from with the rate that "invscaling" has then.

        As in scikit-learn: the first epoch has the whole rate again, those after it have seen all rows since the
        network was new.
        """
        seen, settings = 1 + self.t_, first.state.settings
        rate = settings.optimizer.learning_rate * seen**-self.power_t
        settings = dataclasses.replace(
            settings,
            optimizer=dataclasses.replace(settings.optimizer, learning_rate=rate),
            schedule=choices.InverseScaling(self.power_t, rows / seen),
        )
        return first._replace(state=first.state._replace(settings=settings))

    def _is_valid(self, X: Any) -> bool:
        """Whether a small X is certainly what scikit-learn would return, which takes it a hundred microseconds."""
        return (
            type(X) is np.ndarray
            and X.dtype.type in (np.float64, np.float32)
            and X.ndim == 2
            and len(X) > 0
            and X.size <= SMALL
            and X.shape[1] == self.n_features_in_
            and X.flags.c_contiguous
            and not hasattr(self, "feature_names_in_")
            and bool(np.isfinite(X).all())
        )

    def _validated(self, X: Any, y: Any, reset: bool, **how: Any) -> tuple[Array, Array]:
        """Check X and y as scikit-learn does; return X dense."""
        plain = not reset and self._is_valid(X) and type(y) is np.ndarray and y.shape == X.shape[:1]
        if plain and (y.dtype.kind in "biu" or (y.dtype.kind == "f" and np.isfinite(y).all())):
            return X, y
        kinds = [np.float64, np.float32] if self.dtype is None else checks.dtype(self.dtype)
        X, y = validate_data(
            self, X, y, reset=reset, accept_sparse="csr", dtype=kinds, order="C", multi_output=True, **how
        )
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        return X.toarray() if scipy.sparse.issparse(X) else X, y

    def _rows(self, X: Any, y: Any, reset: bool, classes: Any = None, complete: bool = False) -> tuple[Array, Array]:
        """Return rows and their targets for `train`: (n, outputs), but for more than two classes their numbers (n,).

        Of classes known before, all must be there if `complete`.
        """
        raise NotImplementedError

    def _loss(self, targets: Array) -> str:
        raise NotImplementedError

    def _has_all_classes(self, targets: Array) -> bool:
        """Whether a part of the targets makes the network that all of them make."""
        return True

    def _validation_rows(self) -> tuple[Array, ...]:
        if self._is_lbfgs:
            raise checks.ParameterError("must be left out with the solver 'lbfgs'", "validation")
        if not isinstance(self.validation, tuple) or len(self.validation) not in (2, 3):
            raise checks.ParameterTypeError(
                f"must be a tuple (X, y) or (X, y, sample_weight), got {type(self.validation).__name__}", "validation"
            )
        X, y, *weights = self.validation
        return *self._rows(X, y, False), *weights

    def _activation(self) -> Any:
        """Return `activation` with our name of the logistic function."""
        if isinstance(self.activation, (list, tuple)):
            return ["sigmoid" if isinstance(name, str) and name == "logistic" else name for name in self.activation]
        return "sigmoid" if isinstance(self.activation, str) and self.activation == "logistic" else self.activation

    def _new_network(self, X: Array, targets: Array, random: np.random.RandomState) -> Network:
        """Return a network with weights drawn by `init`."""
        units = checks.hidden(self.hidden_layer_sizes, "hidden_layer_sizes")
        names = checks.activations(self._activation(), len(units))
        theirs = checks.choice("init", self.init, ("scikit-learn", *INITIALISERS)) == "scikit-learn"
        loss, columns = self._loss(targets), targets.shape[1] if targets.ndim == 2 else len(self.classes_)
        outputs = outputs_of(loss, columns, len(checks.quantiles(self.quantiles, loss)))
        network = Network(
            (X.shape[1], *units, outputs),
            activation=names,
            loss=loss,
            huber_delta=self.huber_delta,
            quantiles=self.quantiles,
            crossing_penalty=self.crossing_penalty,
            init="zeros" if theirs else self.init,
            seed=None if theirs else _seed(random),
            dtype=X.dtype,
        )
        if theirs:
            # Glorot and Bengio's limit, or that over the square root of 3 for "logistic"; the output layer is drawn
            # like the layer below it.
            for layer, (weights, biases) in enumerate(zip(network.weights, network.biases, strict=True)):
                drawn_for = names[min(layer, len(names) - 1)] if names else self._activation()
                factor = 2 if drawn_for == "sigmoid" else 6
                limit = np.sqrt(factor / sum(weights.shape))
                weights[:] = random.uniform(-limit, limit, weights.shape)
                biases[:] = random.uniform(-limit, limit, biases.shape)
        return network

    @property
    def _is_lbfgs(self) -> bool:
        return isinstance(self.solver, str) and self.solver == "lbfgs"

    def _optimizer(self) -> choices.Optimizer:
        """Return the settings that `solver` names; an object brings its own numbers."""
        if not isinstance(self.solver, str):
            with _named(_OBJECTS):
                return checks.optimizer(self.solver)
        solver = checks.choice("solver", self.solver, OPTIMIZERS)
        # Not get_params(), which takes longer than a training of one row.
        kind, parameters = OPTIMIZERS[solver], self.__dataclass_fields__
        names = {field.name: _NAMES.get(field.name, field.name) for field in dataclasses.fields(kind)}
        told = {field: getattr(self, name) for field, name in names.items() if name in parameters}
        if kind in (choices.LBFGS, choices.LevenbergMarquardt):  # whose share of a step is no rate
            del told["learning_rate"]
        with _named():
            if kind is choices.LBFGS:
                checks.count("max_fun", self.max_fun)
                told |= {"c1": 1e-3, "loss_tolerance": LOSS_TOLERANCE}  # as in SciPy's
            elif kind is SGD:
                told["nesterov"] = self.nesterovs_momentum and checks.number("momentum", self.momentum) != 0
            elif kind is choices.Adam:
                told["epsilon_hat"] = True
            return kind(**told)

    def _patience(self) -> Any:
        patience = self.n_iter_no_change
        return FOREVER if isinstance(patience, (float, np.floating)) and patience == np.inf else patience

    def _scales_inversely(self, optimizer: choices.Optimizer) -> bool:
        """Whether the rate is that of "invscaling", which is for "sgd" alone."""
        named = isinstance(self.learning_rate, str) and self.learning_rate == "invscaling"
        return named and isinstance(optimizer, SGD) and checks.number("power_t", self.power_t, at_least=0) > 0

    def _schedule(self, pace: float, optimizer: choices.Optimizer) -> choices.Schedule:
        """Return the schedule that `learning_rate` names; "invscaling" and "adaptive" are for "sgd" alone."""
        schedule: Any = "constant" if self._is_lbfgs else self.learning_rate
        if isinstance(schedule, str):
            name = checks.choice("learning_rate", schedule, (*SCHEDULES, "invscaling", "adaptive"))
            with _named():
                if self._scales_inversely(optimizer):
                    return choices.InverseScaling(self.power_t, pace)
                if name == "adaptive" and isinstance(optimizer, SGD):
                    least = min(1.0, 1e-6 / optimizer.learning_rate)
                    return choices.ReduceOnPlateau(0.2, self._patience(), self.tol, least, stop=True)
            if name in ("invscaling", "adaptive"):
                return choices.Constant()
        with _named(_OBJECTS):
            return checks.schedule(schedule, self.max_iter)

    def _settings(self, pace: float) -> dict[str, Any]:
        """Return what `train` is told; the pace is that of "invscaling", rows an epoch."""
        optimizer = self._optimizer()
        batch_size = None if self._is_lbfgs else self.batch_size
        if isinstance(batch_size, str) and checks.choice("batch_size", batch_size, ("auto",), " or an integer >= 1"):
            whole = isinstance(optimizer, choices.IRprop | choices.LBFGS | choices.LevenbergMarquardt)
            batch_size = None if whole else 200
        return {
            "optimizer": optimizer,
            "schedule": self._schedule(pace, optimizer),
            "batch_size": batch_size,
            "shuffle": self.shuffle,
            "l2": self.alpha,
            "dropout": self.dropout,
            "clip_norm": self.clip_norm,
            "class_weight": self._class_weight(),
        }

    def _class_weight(self) -> Any:
        """Return `class_weight` with the numbers of classes in place of their labels."""
        if not isinstance(self.class_weight, dict):
            return self.class_weight
        weights = {
            label: checks.number(f"class_weight[{label!r:.40}]", weight, at_least=0)
            for label, weight in self.class_weight.items()
        }
        labels = self.classes_.tolist()
        others = weights.keys() - set(labels)
        if others and not weights.keys() >= set(labels):  # scikit-learn lets a part of the data lack a class
            other = next(label for label in weights if label in others)
            raise checks.ParameterError(
                f"must name labels of classes, or all of them, got {other!r:.40}", "class_weight"
            )
        return {number: weights.get(label, 1.0) for number, label in enumerate(labels)}

    def _attendance(self) -> dict[str, Any]:
        return {
            "callback": self.callback,
            "callback_every": self.callback_every,
            "progress": bool(self.verbose),
            "threads": self.n_threads,
        }

    def _keep(self, network: Network, result: Any, losses: list[float], rows: int, fresh: bool) -> None:
        """Keep what was trained, and the losses of the epochs, which saw so many rows each.

        The result is a TrainResult, or anything else that has the losses, scores and best epoch of a validation.
        """
        rows = 0 if self._is_lbfgs else rows
        self.network_, self.n_iter_, self._opened = network, len(losses), None
        self._result = result if isinstance(result, TrainResult) else None
        self.t_: int = rows * len(losses) + (0 if fresh else self.t_)
        self.loss_curve_: list[float] = losses if fresh else self.loss_curve_ + losses
        self.loss_ = losses[-1]
        self.best_loss_ = min(self.loss_curve_)
        self.validation_scores_: list[float] | None = None
        self.best_validation_score_: float | None = None
        self.validation_loss_curve_: list[float] | None = None
        if result.validation_loss is not None and result.validation_score is not None:
            self.validation_loss_curve_ = result.validation_loss.tolist()
            self.validation_scores_ = scores = result.validation_score.tolist()
            best = result.best_epoch  # None if no score is a number
            self.best_loss_, self.best_validation_score_ = None, scores[best - 1] if best else scores[-1]

    def _inputs(self, X: Any, network: Network) -> Array:
        """Check rows to predict for, of an estimator that has been fitted."""
        checks.threads(self.n_threads, "n_threads")
        if not self._is_valid(X):
            X = validate_data(self, X, reset=False, accept_sparse="csr", dtype=network.params.dtype, order="C")
            X = X.toarray() if scipy.sparse.issparse(X) else X
        return cast(Array, X)

    def _outputs(self, X: Any) -> Array:
        """Return the outputs (n, outputs) of the network."""
        check_is_fitted(self)
        return self.network_.predict(self._inputs(X, self.network_), threads=self.n_threads)

    def _take(self, network: Network, result: Any, losses: list[float], rows: int) -> None:
        """Be what `fit` would have made of so many rows, whose network was trained with others."""
        self._keep(network, result, losses, rows, True)

    def __getstate__(self) -> Any:
        if self._opened is not None:  # which cannot be pickled
            self._result, self._opened = self._opened.close(), None
        return super().__getstate__()

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "network_")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def _seed(random: np.random.RandomState) -> int:
    """Draw a seed for `train`."""
    return int(random.randint(2**31 - 1))


_ENSEMBLES = ("MLPEnsembleClassifier", "MLPEnsembleRegressor", "MLPGridSearchCV")  # in `ensembles`, which needs these


def __getattr__(name: str) -> Any:
    """Import what trains many of these estimators at once when it is first used."""
    if name in _ENSEMBLES:
        return getattr(importlib.import_module("fastbp.ensembles"), name)
    raise AttributeError(f"module 'fastbp.sklearn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ENSEMBLES})


@dataclasses.dataclass(eq=False, repr=False)
class MLPClassifier(ClassifierMixin, _Perceptron):
    """A multilayer perceptron that classifies, with the parameters and attributes of scikit-learn's.

    Two classes share one output with the loss "binary_cross_entropy", which several labels a row have too; more classes
    have an output each with "cross_entropy".

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int, default (100,)
        Units of the hidden layers; () is a linear model.
    activation : str or sequence of str, default "relu"
        "identity", "logistic" (or "sigmoid"), "tanh", "relu", "leaky_relu", "elu", "gelu", "silu", "softplus" or
        "exponential": one for all hidden layers, or one for each.
    solver : {"adam", "sgd", "lbfgs", "adamw", "rmsprop", "irprop", "levenberg_marquardt"} or settings, default "adam"
        A name, or settings such as ``fastbp.SGD(momentum=0.9)``, which bring all their numbers with them. "irprop",
        "levenberg_marquardt" and ``fastbp.LBFGS()`` have a full batch with "auto". "lbfgs" ends as in scikit-learn, by
        `tol` and `max_fun`, or by a step that lowers the loss by at most 2.2e-9, or this share of it if it is above 1;
        it always takes all rows at once, and goes without schedules, early stopping, `validation`, `dropout` and
        `clip_norm`. It and "levenberg_marquardt" are not concerned by `learning_rate_init`.
    alpha : float, default 0.0001
        Penalty: alpha / 2 times the sum of the squared weights, not biases, is added to the summed loss of each batch.
    batch_size : int, None or "auto", default "auto"
        Rows of a batch; "auto" is 200, and None, or more than there are rows, is the full batch.
    learning_rate : str or settings, default "constant"
        "constant", "invscaling" and "adaptive", which as in scikit-learn concern SGD alone, or another schedule of
        `fastbp.train` for any solver but "lbfgs", by its name or by settings such as ``fastbp.CosineDecay()``.
    learning_rate_init : float, default 0.001
        The learning rate, before the schedule.
    power_t : float, default 0.5
        "invscaling" divides the rate by ``(1 + t_) ** power_t``, with the `t_` of the epochs before, but never that of
        the first epoch of `fit`. At least 0.
    max_iter : int, default 200
        Epochs at most; with "lbfgs", iterations.
    shuffle : bool, default True
        Whether each epoch visits the rows in a new order.
    random_state : int, RandomState or None, default None
        Seeds the weights, the validation that early stopping splits off, the orders and dropout.
    tol : float, default 1e-4
        By more than this an epoch must improve the loss of the training, or with a validation its score; "lbfgs" ends
        where no component of the gradient is larger.
    verbose : bool or int, default False
        Whether to show a bar with loss and speed on stderr; any number above 0 does.
    warm_start : bool, default False
        Whether `fit` goes on with the weights of the last fit. The optimiser begins anew; `loss_curve_` and `t_` go on.
        `y` must have all classes of before, and what describes the network (`hidden_layer_sizes`, `activation`, `dtype`
        and of a regressor `loss` and `huber_delta`) must be what it was made with.
    momentum : float, default 0.9
        Of "sgd", in [0, 1).
    nesterovs_momentum : bool, default True
        Whether "sgd" looks ahead.
    early_stopping : bool, default False
        Whether to split a validation off, to stop when its score no longer improves, and to return to the weights of
        the epoch where it was best. Not for "lbfgs".
    validation_fraction : float, default 0.1
        Share of the rows that early stopping splits off, below 1 and at least 2 rows, of two classes with both in
        proportion.
    beta_1, beta_2 : float, default 0.9 and 0.999
        Of "adam" and "adamw", in [0, 1).
    epsilon : float, default 1e-8
        Of "adam", "adamw" and "rmsprop", above 0.
    n_iter_no_change : int or infinity, default 10
        Training stops after more than so many epochs in a row that did not improve by `tol`.
    max_fun : int, default 15000
        Evaluations of loss and gradient after which "lbfgs" ends, with its iteration.
    class_weight : dict, "balanced" or None, default None
        Weights of the classes by their labels, times `sample_weight`; a class that is not named has weight 1.
        "balanced" gives all classes the same sum of weights. Not for several labels a row.
    dropout : float or sequence of float, default 0.0
        Share of the units of the hidden layers that each row does without in training: one, or one for each layer.
    clip_norm : float or None, default None
        Gradients of a greater Euclidean norm are scaled down to this one.
    validation : tuple or None, default None
        Data ``(X, y)`` or ``(X, y, sample_weight)`` for early stopping, which then splits nothing off. Not for "lbfgs".
    callback : callable or None, default None
        Called as ``callback(state)`` with a `fastbp.EpochState`; if it returns True, training stops.
    callback_every : int, default 1
        Epochs from one call to the next.
    dtype : {"float32", "float64"} or None, default None
        Precision of the network; None is float32 if X is, else float64.
    init : str, default "scikit-learn"
        How weights are drawn: "scikit-learn" gives the very weights and biases that scikit-learn draws from
        `random_state`; the initialisers of `fastbp.train` are the others.
    n_threads : int or "auto", default 1
        Threads that train and predict together, for the same bits; "auto" takes as many as pay. "lbfgs" and
        "levenberg_marquardt" train by one, whatever is asked for. Several networks train side by side on joblib's
        threads, since kernels release Python's lock.

    Attributes
    ----------
    classes_ : ndarray of shape (classes,)
        Labels, sorted; the columns of `predict_proba`.
    coefs_, intercepts_ : list of ndarray
        Weights (inputs, outputs) and biases (outputs,) of each layer, views of those of `network_`. What is assigned,
        to one layer or to all, is copied into them, and training goes on from there.
    loss_ : float
        Loss of the last epoch, with the penalty.
    best_loss_ : float or None
        The lowest of `loss_curve_`; None with a validation.
    loss_curve_ : list of float
        Loss of each epoch, with the penalty, each batch before its update; with "lbfgs" after the step of each.
    validation_scores_, validation_loss_curve_ : list of float or None
        Accuracy, or R^2 of a regressor, and loss of the validation after each epoch of the last fit; None without one.
    best_validation_score_ : float or None
        The highest of `validation_scores_`.
    result_ : fastbp.TrainResult or None
        Of the last training: what `fastbp.resume` goes on from. None if it was trained together with others.
    n_iter_ : int
        Epochs of the last fit; 1 after `partial_fit`.
    t_ : int
        Rows trained on, each counted once an epoch; as in scikit-learn none by "lbfgs".
    n_layers_, n_outputs_, n_features_in_ : int
        Layers, the inputs among them; outputs; features.
    feature_names_in_ : ndarray of str
        Names of the features, if X had any.
    out_activation_ : {"logistic", "softmax", "identity", "exp"}
        Activation of the outputs.
    network_ : fastbp.Network
        The network, another after each training.

    Notes
    -----
    From the same `random_state` without shuffling, "sgd" and "adam" give scikit-learn's weights to rounding. What
    differs otherwise:

    * The orders of shuffled rows are fastbp's.
    * Losses are means over the weights of rows, and of a regressor sums over the outputs, as the gradient takes them;
      scikit-learn reports the mean of the batches' means, and the mean over the outputs.
    * An epoch that is better by `tol` exactly, or as good with ``tol=0``, has not improved; in scikit-learn it has. A
      warm start counts such epochs, and looks for the best one, anew; scikit-learn goes on from the fit before.
    * `momentum` must be below 1: at 1, which scikit-learn takes, nothing that was ever added to the velocity decays.
    * `partial_fit` heeds all parameters as they are now, but for `early_stopping`, which it ignores; in scikit-learn
      those of the optimiser are what they were first, and early stopping is an error. Nor does it need all classes in
      `y` with `warm_start`.
    * Parameters that describe another network than the one to be trained further are refused.

    Weights that cease to be finite raise `fastbp.DivergenceError`, a ValueError too, and `network_` stays what it was.
    With a validation and an epoch that ended well it is a ConvergenceWarning, and the weights of the best epoch remain;
    scikit-learn goes on to `max_iter` with what is not a number, and then returns to them.

    The same `random_state` gives the same bits on every CPU as `fastbp.train` does, but for `predict_log_proba`, whose
    logarithm is NumPy's.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = MLPClassifier((16,), learning_rate_init=0.02, batch_size=30, random_state=0).fit(X, y)
    >>> classifier.score(X, y) > 0.9
    True
    """

    hidden_layer_sizes: Any = (100,)
    activation: Any = "relu"
    _: dataclasses.KW_ONLY
    class_weight: Any = None

    @available_if(_has_batches)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Self:
        """Train one epoch further, on these rows, with the state that the optimiser has reached.

        The weights are those that `coefs_` and `intercepts_` hold, and the parameters what they are now; `random_state`
        counts where the optimiser begins anew: after a fit with a validation, or when `solver` is another than before.
        `early_stopping` and `validation` are for `fit`.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        classes : array_like of shape (classes,), optional
            All labels that there will be; needed on the first call.

        Returns
        -------
        MLPClassifier
            The estimator itself.

        Raises
        ------
        AttributeError
            With the solver "lbfgs".
        ParameterError, ParameterTypeError, DataError, ResourceError, DivergenceError
            As `fastbp.resume` does, if `classes` are missing, empty or others than before, if `class_weight` is
            "balanced", or if a parameter describes another network.
        """
        first = not hasattr(self, "network_")
        if first and classes is None:
            raise checks.ParameterError("must be passed on the first call of 'partial_fit'", "classes")
        shape = (1,) if classes is None else np.shape(classes)
        if len(shape) != 1 or shape == (0,):
            raise checks.ParameterError(f"must be a list of at least 1 label, got shape {shape}", "classes")
        if not first and classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise checks.ParameterError("must be the same as on the first call of 'partial_fit'", "classes")
        if isinstance(self.class_weight, str):
            raise checks.ParameterError("must be a dict or None for 'partial_fit', got a name", "class_weight")
        return self._partial_fit(X, y, sample_weight, classes)

    def predict(self, X: Any) -> Array:
        """Return the likeliest class of each row, or a 0 or 1 for each label.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n, features)
            One sample a row.

        Returns
        -------
        ndarray of shape (n,), or ndarray or sparse matrix of shape (n, labels)
            Labels of the kind that `fit` was given.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError
            If X has other features than those of `fit`, or values that are not finite.
        """
        outputs = self._outputs(X)
        if self._label_binarizer is not None:
            return self._label_binarizer.inverse_transform(outputs)
        likely = outputs.argmax(axis=1) if outputs.shape[1] > 1 else (outputs[:, 0] > 0.5).astype(int)
        return self.classes_[likely.clip(max=len(self.classes_) - 1)]

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class, or of each label, for each row.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n, features)
            One sample a row.

        Returns
        -------
        ndarray of shape (n, classes)
            Columns in the order of `classes_`.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError
            If X has other features than those of `fit`, or values that are not finite.
        """
        return self._probabilities(self._outputs(X))

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithms of `predict_proba`.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n, features)
            One sample a row.

        Returns
        -------
        ndarray of shape (n, classes)
            Minus infinity where a probability is 0.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError
            If X has other features than those of `fit`, or values that are not finite.
        """
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def _probabilities(self, outputs: Array) -> Array:
        return np.hstack([1 - outputs, outputs]) if outputs.shape[1] == 1 else outputs

    def _rows(self, X: Any, y: Any, reset: bool, classes: Any = None, complete: bool = False) -> tuple[Array, Array]:
        X, y = self._validated(X, y, reset)
        if y.ndim == 2 or y.dtype.kind not in "biu":  # 1-D integers always are classes
            check_classification_targets(y)
        if y.ndim == 2:
            return X, self._labels(y, reset, classes)
        if reset:
            self.classes_ = np.unique(y if classes is None else classes)
            self._label_binarizer: LabelBinarizer | None = None
        elif self._label_binarizer is not None:
            raise checks.DataError("must have a column for each label, as it had first, got shape (rows,)", "y")
        numbers = np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
        unknown = np.count_nonzero(self.classes_[numbers] != y)
        if unknown:
            raise checks.DataError(
                f"must hold the classes that were given first, got {unknown} others of {len(y)}", "y"
            )
        missing = len(self.classes_) - len(np.unique(numbers)) if complete else 0
        if missing:
            raise checks.DataError(
                f"must hold all {len(self.classes_)} classes that were given first for a 'warm_start', "
                f"got {len(self.classes_) - missing}",
                "y",
            )
        return X, numbers if len(self.classes_) > 2 else numbers[:, None]

    def _labels(self, y: Any, reset: bool, classes: Any) -> Array:
        """Return targets of several labels a row, and remember, if they are the first, whether they were sparse."""
        if type_of_target(y) != "multilabel-indicator":
            raise checks.DataError("must be 0 or 1 where a row has several labels, got more values than two", "y")
        if reset:
            columns = np.arange(y.shape[1])
            if classes is not None and not np.array_equal(np.unique(classes), columns):
                raise checks.ParameterError(f"must be 0..{y.shape[1] - 1}, a number for each column of 'y'", "classes")
            self.classes_, self._label_binarizer = columns, LabelBinarizer().fit(y)
        elif self._label_binarizer is None:
            raise checks.DataError(f"must hold a class for each row, as it did first, got shape {y.shape}", "y")
        return y.toarray() if scipy.sparse.issparse(y) else y

    def _loss(self, targets: Array) -> str:
        return "cross_entropy" if targets.ndim == 1 else "binary_cross_entropy"

    def _has_all_classes(self, targets: Array) -> bool:
        return self._label_binarizer is not None or len(np.unique(targets)) == len(self.classes_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


def _pinball_score(levels: tuple[float, ...], y: Array, predicted: Array, weights: Any = None) -> float:
    """Return D^2 of predicted quantiles (n, levels), the mean over the levels."""
    y = y.reshape(len(predicted), -1)
    y = np.broadcast_to(y, predicted.shape) if y.shape[1] == 1 else y
    return float(np.mean([
        d2_pinball_score(y[:, k], predicted[:, k], alpha=level, sample_weight=weights) for k, level in enumerate(levels)
    ]))  # fmt: skip


@dataclasses.dataclass(eq=False, repr=False)
class MLPRegressor(RegressorMixin, _Perceptron):
    """A multilayer perceptron that predicts numbers, one or several a row.

    Parameters
    ----------
    loss : {"squared_error", "poisson", "absolute_error", "huber", "quantile", "gaussian_nll"}, default "squared_error"
        What is minimised; "poisson" predicts rates above 0, for targets not below 0, "quantile" predicts quantiles of
        one target, or one each of as many, and "gaussian_nll" mean and standard deviation of each target.
    huber_delta : float, default 1.0
        Size of a residual above which "huber" is no longer quadratic; above 0.
    quantiles : sequence of float, default (0.1, 0.5, 0.9)
        The levels that "quantile" predicts, above 0, below 1, none below the one before.
    crossing_penalty : float, default 0.0
        Times how far a quantile is above the next one, it is added to the loss of a row; at least 0.
    hidden_layer_sizes, activation, solver, ...
        All others are those of `MLPClassifier`, but for `class_weight`.

    Attributes
    ----------
    network_, coefs_, loss_curve_, ...
        Those of `MLPClassifier`, but for `classes_`.

    Notes
    -----
    As for `MLPClassifier`. `score` is R^2, of "gaussian_nll" that of the means, and of "quantile" D^2, the mean over
    the levels of scikit-learn's `d2_pinball_score`. So is that of a validation, but for the best constant prediction,
    which there is the quantile of the validation that has the least loss, while scikit-learn interpolates.

    Examples
    --------
    >>> X = np.linspace(-1, 1, 100)[:, None]
    >>> regressor = MLPRegressor(hidden_layer_sizes=(16,), activation="tanh", solver="lbfgs", random_state=0)
    >>> regressor.fit(X, np.sin(3 * X[:, 0])).score(X, np.sin(3 * X[:, 0])) > 0.999
    True
    """

    loss: str = "squared_error"
    hidden_layer_sizes: Any = (100,)
    activation: Any = "relu"
    _: dataclasses.KW_ONLY
    huber_delta: float = 1.0
    quantiles: Any = QUANTILES
    crossing_penalty: float = 0.0

    @available_if(_has_batches)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train one epoch further, on these rows, with the state that the optimiser has reached.

        The weights are those that `coefs_` and `intercepts_` hold, and the parameters what they are now; `random_state`
        counts where the optimiser begins anew: after a fit with a validation, or when `solver` is another than before.
        `early_stopping` and `validation` are for `fit`.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.

        Returns
        -------
        MLPRegressor
            The estimator itself.

        Raises
        ------
        AttributeError
            With the solver "lbfgs".
        ParameterError, ParameterTypeError, DataError, ResourceError, DivergenceError
            As `fastbp.resume` does, or if a parameter describes another network.
        """
        return self._partial_fit(X, y, sample_weight)

    def predict(self, X: Any, return_std: bool = False) -> Array | tuple[Array, Array]:
        """Return the numbers predicted for each row.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n, features)
            One sample a row.
        return_std : bool, default False
            Whether to return standard deviations too; for "gaussian_nll".

        Returns
        -------
        ndarray of shape (n,) or (n, outputs), or two of them
            In the precision of the network; with "quantile" a column for each level, with "gaussian_nll" the mean of
            each target, and if so asked then the standard deviation.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ParameterError
            If `return_std` is asked for with another loss.
        ValueError
            If X has other features than those of `fit`, or values that are not finite.
        """
        outputs = self._outputs(X)
        loss = self._first_network.loss
        gaussian = loss == "gaussian_nll"
        if checks.flag("return_std", return_std) and not gaussian:
            raise checks.ParameterError(f"must be False with the loss {loss!r}, got True", "return_std")
        parts = np.split(outputs, 2, axis=1) if gaussian else [outputs]
        mean, *rest = (part.ravel() if part.shape[1] == 1 else part for part in parts)
        return (mean, np.exp(0.5 * rest[0])) if return_std else mean

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return R^2 of the predictions, or with "quantile" D^2, the mean over the levels; 1 is the best.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n, features)
            One sample a row.
        y : array_like of shape (n,) or (n, outputs)
            Targets, as for `fit`.
        sample_weight : array_like of shape (n,), optional
            Weights of the rows.

        Returns
        -------
        float
            What scikit-learn's `r2_score` or `d2_pinball_score` computes.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ValueError
            If X or y has another form than for `fit`, or values that are not finite.
        """
        check_is_fitted(self)
        levels = self._first_network.quantiles
        if not levels:
            return super().score(X, y, sample_weight)
        return _pinball_score(levels, np.asarray(y), self._outputs(X), sample_weight)

    @property
    def _first_network(self) -> Network:
        """The network, or the first of several, which are of one kind."""
        return self.network_

    def _rows(self, X: Any, y: Any, reset: bool, classes: Any = None, complete: bool = False) -> tuple[Array, Array]:
        X, y = self._validated(X, y, reset, y_numeric=True)
        return X, y.reshape(len(y), -1)

    def _loss(self, targets: Array) -> str:
        return checks.choice("loss", self.loss, [name for name in LOSSES if name not in CLASSIFYING])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = self.loss != "quantile"  # whose columns are levels
        return tags
