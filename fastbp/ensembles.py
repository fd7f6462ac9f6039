"""Many estimators of `sklearn.py` at once: ensembles, and a search that trains its candidates on all folds together.

Each network is what its own `fit` would make of the same rows; here it is trained in a lane beside the others.
"""

# mypy: allow-subclassing-any, allow-untyped-decorators
# scikit-learn has no annotations.

from __future__ import annotations

import copy
import dataclasses
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray
from sklearn import get_config
from sklearn.base import clone, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, ParameterGrid, check_cv
from sklearn.utils import check_random_state, indexable
from sklearn.utils.validation import check_is_fitted

from fastbp import checks
from fastbp import settings as settings_of
from fastbp.groups import Outcome, Task, Workshop, counts, key_of, rows_of_task
from fastbp.many import _check_memory
from fastbp.network import Network
from fastbp.progress import Progress
from fastbp.sklearn import MLPClassifier, MLPRegressor, _pinball_score
from fastbp.threads import cores

Array = NDArray[Any]
Estimator = MLPClassifier | MLPRegressor

# What `fit` finds out about the data, which the estimators that are trained together share.
FOUND = ("n_features_in_", "feature_names_in_", "classes_", "_label_binarizer")


# --- training together ------------------------------------------------------------------------------------------------


class Job(NamedTuple):
    """What an estimator is to be fitted to: rows of data that many share."""

    estimator: Estimator  # which has the attributes FOUND
    X: Array
    targets: Array  # as `_rows` returns them
    weights: Array | None  # (n,) of all rows
    rows: NDArray[np.int64] | None  # all if None


class Trained(NamedTuple):
    """What became of a job."""

    network: Network
    outcome: Outcome
    losses: list[float]  # as `loss_curve_` has them
    rows: int  # that it was trained on


def train_together(jobs: Sequence[Job | None], threads: int | None, shown: bool) -> list[Trained | None]:
    """Train networks as `fit` would, on threads; None stands for what its own `fit` has to do.

    That is callbacks, and whatever is wrong with a job or diverges: its own `fit` says so.
    """
    trained: list[Trained | None] = [None] * len(jobs)
    tasks = []
    shared: dict[Any, Any] = {}
    for place, job in enumerate(jobs):
        try:
            task = None if job is None else _task(place, job, shared)
        except (TypeError, ValueError):
            continue
        if task is not None:
            tasks.append(task)
    if tasks:
        with Progress(len(tasks), shown, "network") as bar:
            workshop = Workshop(tasks, min(threads or cores(), len(tasks)), bar.show)
            _check_memory(workshop)
            workshop.run()
        for task in tasks:
            job, outcome, network = cast(Job, jobs[task.place]), _ended(workshop.outcomes[task.place]), task.network
            if outcome.stopped != "diverged":
                network.params[:] = outcome.params
                losses = job.estimator._losses(outcome.loss, network, job.X, job.targets, job.weights, job.rows)
                trained[task.place] = Trained(network, outcome, losses, counts(task)[0])
    return trained


def _ended(outcome: Outcome) -> Outcome:
    """Leave out the epochs that were not trained any more."""
    figures = {name: getattr(outcome, name) for name in ("loss", "validation_loss", "validation_score")}
    return outcome._replace(
        **{name: figure[: outcome.epochs] for name, figure in figures.items() if figure is not None}
    )


def _task(place: int, job: Job, shared: dict[Any, Any]) -> Task | None:
    """Draw for a network, in this order, what `fit` draws: weights, rows for validation, a seed."""
    estimator, X, targets, weights, rows = job
    if estimator.callback is not None:
        return None
    estimator._check_parameters()
    random = check_random_state(copy.deepcopy(estimator.random_state))
    network = estimator._new_network(X, targets, random)
    parts = estimator._split(network, targets if rows is None else targets[rows], random)
    held: Array | None = None
    if parts is not None:
        rows, held = parts if rows is None else (rows[part] for part in parts)
    validated = held is not None or estimator.validation is not None
    told = estimator._settings_of_fit(len(X) if rows is None else len(rows), validated, random)
    precision, loss, outputs = X.dtype, network.loss, network.sizes[-1]
    settings = settings_of.checked(len(network.sizes) - 2, precision, **told)

    def once(key: Any, make: Any) -> Any:
        if key not in shared:
            shared[key] = make()
        return shared[key]

    def other_rows() -> tuple[Array, Array, Array | None]:
        held_X, held_y, *given = estimator._validation_rows()
        y = checks.targets(held_y, loss, len(held_X), outputs, precision)
        return held_X, y, checks.row_weights(given[0], len(held_X), precision) if given else None

    y = once((id(targets), loss), lambda: checks.targets(targets, loss, len(X), outputs, precision))
    validation = None
    if estimator.validation is not None:
        validation = once((id(estimator.validation), loss, precision), other_rows)
    task = Task(place, network, settings, settings.seed, int(told["epochs"]), X, y, weights, rows, held, validation)
    key_of(task)  # which refuses batches that the optimiser has no use for
    for part in (rows, held):
        if weights is not None and part is not None:
            checks.row_weights(weights[part], len(part), precision)
    if validated or settings.class_weight is not None:
        rows_of_task(task)  # refuses targets and classes; too late once the threads run
    return task


# --- ensembles --------------------------------------------------------------------------------------------------------


class _Ensemble:
    """What the ensembles add to an estimator: its members, and the mean of what they say."""

    # The estimator that it is mixed into is not typed: `self` is Any.

    def fit(self: Any, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train all members anew, side by side.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n, features)
            One sample a row. A sparse matrix is made dense.
        y : array_like of shape (n,) or (n, outputs)
            Labels of classes or a 0 or 1 for each label; numbers for a regressor.
        sample_weight : array_like of shape (n,), optional
            Weights of the rows, at least 0. With `bootstrap` rows are drawn in proportion to them.

        Returns
        -------
        MLPEnsembleClassifier or MLPEnsembleRegressor
            The ensemble itself.

        Raises
        ------
        ParameterError, ParameterTypeError, DataError, ResourceError, DivergenceError
            As `MLPClassifier.fit` does, also if a single member diverges; if there is an `oob_score` without
            `bootstrap`, or `warm_start`.
        """
        self._check_parameters()
        size = checks.count("n_estimators", self.n_estimators)
        bootstrap, judged = (checks.flag(name, getattr(self, name)) for name in ("bootstrap", "oob_score"))
        if judged and not bootstrap:
            raise checks.ParameterError("must be False without 'bootstrap': each member has seen all rows", "oob_score")
        if self.warm_start:
            raise checks.ParameterError("must be False: the members of an ensemble begin anew", "warm_start")
        rows, targets = self._rows(X, y, True)
        n = len(rows)
        weights = None if sample_weight is None else checks.row_weights(sample_weight, n, rows.dtype)
        random = check_random_state(self.random_state)
        # Two for each member, one after the other: a larger ensemble begins with the members of a smaller one.
        seeds = [random.randint(2**31 - 1, size=2).tolist() for _ in range(size)]
        own_weights = [draw(seed, n, weights) if bootstrap else weights for _, seed in seeds]
        own_weights = [None if own is None else own.astype(rows.dtype) for own in own_weights]
        members = [self._member(seed) for seed, _ in seeds]
        jobs = [Job(member, rows, targets, own, None) for member, own in zip(members, own_weights, strict=True)]
        trained = train_together(jobs, checks.threads(self.n_threads, "n_threads"), bool(self.verbose))
        short = 0
        for member, own, ready in zip(members, own_weights, trained, strict=True):
            if ready is None:
                member.fit(X, y, own)
            else:
                member._take(*ready)
                short += member._unconverged(ready.outcome.stopped) is not None
        self.estimators_, self.n_iter_ = members, max(member.n_iter_ for member in members)
        if judged:
            self._judge(rows, targets, own_weights)
        if short:
            limits = f"'max_iter' ({self.max_iter})" + f" or 'max_fun' ({self.max_fun})" * self._is_lbfgs
            message = f"{short} of {size} members stopped at {limits}, before they converged"
            warnings.warn(message, ConvergenceWarning, stacklevel=2)
        return self

    @property
    def networks_(self: Any) -> list[Network]:
        """The networks of the members."""
        return [member.network_ for member in self.estimators_]

    @property
    def _first_network(self: Any) -> Network:
        return self.estimators_[0].network_

    @property
    def partial_fit(self) -> Any:
        """What an ensemble has not."""
        raise AttributeError(f"{type(self).__name__!r} has no 'partial_fit'")

    def _member(self: Any, seed: int) -> Estimator:
        """Return an estimator with these parameters and a seed of its own."""
        kind = MLPClassifier if isinstance(self, MLPClassifier) else MLPRegressor
        told = {field.name: getattr(self, field.name) for field in dataclasses.fields(kind) if field.init}
        member = kind(**told | {"random_state": seed, "verbose": False})
        member.__dict__.update({name: value for name, value in vars(self).items() if name in FOUND})
        return member

    def _predictions(self: Any, X: Any) -> list[Array]:
        """Return the outputs (n, outputs) of each member."""
        check_is_fitted(self)
        networks = self.networks_
        X = self._inputs(X, networks[0])
        return [network.predict(X, threads=self.n_threads) for network in networks]

    def _outputs(self: Any, X: Any) -> Array:
        return mean_of(self._predictions(X))

    def _judge(self: Any, X: Array, targets: Array, weights: Sequence[Array]) -> None:
        """Predict each row by the members that have not drawn it, and score that."""
        total, times = np.zeros((len(X), self.estimators_[0].n_outputs_)), np.zeros((len(X), 1))
        for network, own in zip(self.networks_, weights, strict=True):
            out = np.flatnonzero(own == 0)
            if out.size:
                total[out] += network.predict(X[out], threads=self.n_threads)
                times[out] += 1
        judged = times[:, 0] > 0
        if not judged.all():
            message = (
                f"{np.count_nonzero(~judged)} of {len(X)} rows were drawn by all members: more 'n_estimators' help"
            )
            warnings.warn(f"{message} the out-of-bag score", stacklevel=3)
        with np.errstate(invalid="ignore"):
            self._keep_judgement(total / times, targets, judged)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "estimators_")


def draw(seed: int, n: int, weights: Array | None) -> NDArray[np.int64]:
    """Return how often each of n rows is among n that are drawn with replacement, in proportion to their weights."""
    shares = np.full(n, 1 / n) if weights is None else weights / weights.sum(dtype=np.float64)
    return np.bincount(np.random.RandomState(seed).choice(n, n, p=shares), minlength=n)  # a frozen stream


def mean_of(predictions: Sequence[Array]) -> Array:
    """Return the mean of arrays, added in their order, in float64."""
    total = np.zeros(predictions[0].shape)
    for one in predictions:
        total += one
    return (total / len(predictions)).astype(predictions[0].dtype)


@dataclasses.dataclass(eq=False, repr=False)
class MLPEnsembleClassifier(_Ensemble, MLPClassifier):
    """Classifiers with different seeds, each trained on rows drawn for it: their mean probabilities decide.

    Parameters
    ----------
    hidden_layer_sizes, activation, solver, ...
        All parameters of `MLPClassifier`, for each member, but for `warm_start`, which must be False.
    n_estimators : int, default 10
        Members.
    bootstrap : bool, default True
        Whether each member has as many rows as there are, drawn with replacement; else it has all, and members differ
        by their seeds alone.
    oob_score : bool, default False
        Whether to score the ensemble on the rows that its members have not drawn.
    random_state : int, RandomState or None, default None
        Seeds the members and draws their rows.
    n_threads : int or "auto", default "auto"
        Threads that share the members out, for the same bits; "auto" takes all cores.

    Attributes
    ----------
    estimators_ : list of MLPClassifier
        The members, each fitted with a `random_state` of its own; `result_` is None if it was trained with others.
    networks_ : list of fastbp.Network
        Their networks.
    n_iter_ : int
        Epochs of the member that was trained longest.
    classes_, n_features_in_, feature_names_in_
        Those of `MLPClassifier`.
    oob_score_ : float
        Accuracy on the rows that at least one member has not drawn, predicted by those members.
    oob_decision_function_ : ndarray of shape (n, classes)
        Those predictions; NaN where all members have drawn a row.

    Notes
    -----
    How often a row was drawn is its weight: a member is what ``fit(X, y, sample_weight)`` of an `MLPClassifier` with
    its `random_state` makes of these weights, to rounding. So copies of a row always share a batch, early stopping
    never validates on rows that it trains on, and no member lacks a class. Members are trained as by
    `fastbp.train_many`, in lanes if they are small; with a callback one after the other by `fit`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> ensemble = MLPEnsembleClassifier((8,), n_estimators=20, oob_score=True, learning_rate_init=0.02,
    ...                                  batch_size=30, max_iter=100, tol=1e-3, random_state=0)
    >>> with warnings.catch_warnings(action="ignore"):
    ...     ensemble.fit(X, y).oob_score_ > 0.9
    True
    """

    hidden_layer_sizes: Any = (100,)
    activation: Any = "relu"
    _: dataclasses.KW_ONLY
    n_estimators: int = 10
    bootstrap: bool = True
    oob_score: bool = False
    n_threads: Any = "auto"

    def _keep_judgement(self, outputs: Array, targets: Array, judged: Array) -> None:
        self.oob_decision_function_ = self._probabilities(outputs)
        outputs, targets = outputs[judged], targets[judged]
        right = outputs.argmax(axis=1) == targets if targets.ndim == 1 else ((outputs > 0.5) == targets).all(axis=1)
        self.oob_score_ = float(right.mean()) if right.size else np.nan


@dataclasses.dataclass(eq=False, repr=False)
class MLPEnsembleRegressor(_Ensemble, MLPRegressor):
    """Regressors with different seeds, each trained on rows drawn for it: their mean is what they predict.

    Parameters
    ----------
    loss, hidden_layer_sizes, activation, solver, ...
        All parameters of `MLPRegressor`, for each member, but for `warm_start`, which must be False.
    n_estimators, bootstrap, oob_score, random_state, n_threads
        As for `MLPEnsembleClassifier`.

    Attributes
    ----------
    estimators_ : list of MLPRegressor
        The members, each fitted with a `random_state` of its own; `result_` is None if it was trained with others.
    networks_ : list of fastbp.Network
        Their networks.
    n_iter_ : int
        Epochs of the member that was trained longest.
    n_features_in_, feature_names_in_
        Those of `MLPRegressor`.
    oob_score_ : float
        R^2, or D^2 with the loss "quantile", on the rows that at least one member has not drawn, predicted by those
        members.
    oob_prediction_ : ndarray of shape (n,) or (n, outputs)
        Those predictions; NaN where all members have drawn a row.

    Notes
    -----
    As for `MLPEnsembleClassifier`.

    Examples
    --------
    >>> X = np.linspace(-1, 1, 50)[:, None]
    >>> ensemble = MLPEnsembleRegressor(hidden_layer_sizes=(16,), activation="tanh", n_estimators=20, max_iter=50,
    ...                                 batch_size=10, learning_rate_init=0.01, random_state=0)
    >>> with warnings.catch_warnings(action="ignore"):
    ...     mean, std = ensemble.fit(X, np.sin(3 * X[:, 0])).predict([[0.0], [5.0]], return_std=True)
    >>> bool(std[1] > std[0])
    True
    """

    loss: str = "squared_error"
    hidden_layer_sizes: Any = (100,)
    activation: Any = "relu"
    _: dataclasses.KW_ONLY
    n_estimators: int = 10
    bootstrap: bool = True
    oob_score: bool = False
    n_threads: Any = "auto"

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Return the mean of the numbers that the members predict for each row.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n, features)
            One sample a row.
        return_std : bool, default False
            Whether to return also the standard deviation of what they predict, with the divisor `n_estimators`; with
            the loss "gaussian_nll" that of the mixture of their normal distributions.

        Returns
        -------
        ndarray of shape (n,) or (n, outputs), or two of them
            In the precision of the networks.

        Raises
        ------
        NotFittedError
            Before `fit`.
        ParameterTypeError
            If `return_std` is not a bool.
        ValueError
            If X has other features than those of `fit`, or values that are not finite.
        """
        if not checks.flag("return_std", return_std):
            return super().predict(X)
        predictions = [one.astype(np.float64) for one in self._predictions(X)]
        squares: list[Array] = []
        if self._first_network.loss == "gaussian_nll":  # each member has a variance of its own
            halves = [np.split(one, 2, axis=1) for one in predictions]
            predictions, squares = [first for first, _ in halves], [np.exp(second) for _, second in halves]
        mean = mean_of(predictions)
        variance = mean_of([(one - mean) ** 2 for one in predictions])
        std = np.sqrt(variance + (mean_of(squares) if squares else 0))
        mean, std = (array.astype(self._first_network.params.dtype) for array in (mean, std))
        return (mean.ravel(), std.ravel()) if mean.shape[1] == 1 else (mean, std)

    def _keep_judgement(self, outputs: Array, targets: Array, judged: Array) -> None:
        levels = self._first_network.quantiles
        if self._first_network.loss == "gaussian_nll":
            outputs = np.split(outputs, 2, axis=1)[0]
        self.oob_prediction_ = outputs.ravel() if outputs.shape[1] == 1 else outputs
        self.oob_score_ = np.nan
        if judged.sum() > 1:
            known, said = targets[judged], outputs[judged]
            self.oob_score_ = _pinball_score(levels, known, said) if levels else float(r2_score(known, said))


# --- search -----------------------------------------------------------------------------------------------------------


class _Ready:
    """An estimator whose `fit` takes the next of the networks that were trained together for it and its copies."""

    _ready: Iterator[Trained | None] = iter(())

    def __sklearn_clone__(self) -> Any:
        estimator: Any = super().__sklearn_clone__()  # type: ignore[misc]
        estimator._ready = self._ready
        return estimator

    def fit(self: Any, X: Any, y: Any, sample_weight: Any = None) -> Any:
        ready = next(self._ready, None)
        if ready is None:
            return super().fit(X, y, sample_weight)  # type: ignore[misc]
        self._rows(X, y, True)
        self._take(*ready)
        if message := self._unconverged(ready.outcome.stopped):
            warnings.warn(message, ConvergenceWarning, stacklevel=2)
        return self


# Of the same names, which errors name.
_READY: dict[type, Any] = {kind: type(kind.__name__, (_Ready, kind), {}) for kind in (MLPClassifier, MLPRegressor)}


class MLPGridSearchCV(GridSearchCV):
    """scikit-learn's GridSearchCV, which trains all candidates on all folds together.

    Parameters
    ----------
    estimator : MLPClassifier or MLPRegressor
        Of `fastbp.sklearn`. Scaling goes into a pipeline around the search.
    param_grid : dict or list of dict
        Lists of values by the names of parameters, as for GridSearchCV: of any parameters, hidden layers among them.
    scoring, refit, cv, verbose, error_score, return_train_score
        As for GridSearchCV; `verbose` also shows a bar that counts networks.
    n_threads : int or "auto", default "auto"
        Threads that share the networks out, for the same bits; "auto" takes all cores.

    Attributes
    ----------
    cv_results_, best_estimator_, best_params_, best_score_, best_index_, scorer_, n_splits_, refit_time_, ...
        As of GridSearchCV. `mean_fit_time` has an equal share of the time that all networks took together.

    Notes
    -----
    Each network is what ``fit`` of its estimator makes of its fold, to rounding, so that the results are those of
    GridSearchCV. Candidates of one shape, and what else cannot differ among lanes (solver, batch size, schedule), train
    in lanes as by `fastbp.train_many`; `alpha`, `learning_rate_init`, `dropout`, `random_state` and `max_iter` may
    differ within. Fitted one by one are candidates with a callback, on a fold that lacks a class, those that diverge,
    and all of them where scikit-learn's metadata routing is enabled.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> grid = {"learning_rate_init": [0.02, 0.0001], "alpha": [1e-4, 1e-2]}
    >>> classifier = MLPClassifier((8,), batch_size=30, max_iter=50, random_state=0)
    >>> with warnings.catch_warnings(action="ignore"):
    ...     search = MLPGridSearchCV(classifier, grid).fit(X, y)
    >>> search.best_params_["learning_rate_init"]
    0.02
    """

    def __init__(
        self, estimator: Any, param_grid: Any, *, scoring: Any = None, refit: Any = True, cv: Any = None,
        verbose: Any = 0, error_score: Any = np.nan, return_train_score: bool = False, n_threads: Any = "auto",
    ) -> None:  # fmt: skip
        self.estimator = estimator
        self.param_grid = param_grid
        self.scoring = scoring
        self.refit = refit
        self.cv = cv
        self.verbose = verbose
        self.error_score = error_score
        self.return_train_score = return_train_score
        self.n_threads = n_threads

    def fit(self, X: Any, y: Any = None, **params: Any) -> Self:
        """Train and score all candidates on all folds, and the best of them on all rows.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n, features)
            One sample a row.
        y : array_like of shape (n,) or (n, outputs)
            Targets.
        **params
            `sample_weight` for the estimator, `groups` for the splitter.

        Returns
        -------
        MLPGridSearchCV
            The search itself.

        Raises
        ------
        ParameterTypeError
            If the estimator is another, such as a pipeline.
        ParameterError, ResourceError
            If `n_threads` is not a number of threads; if the networks do not fit into memory.
        ValueError, TypeError
            As GridSearchCV does.
        """
        kind = type(self.estimator)
        if kind not in _READY:
            raise checks.ParameterTypeError(
                f"must be an MLPClassifier or MLPRegressor of fastbp.sklearn, got {kind.__name__}; a pipeline goes "
                "around the search",
                "estimator",
            )
        threads = checks.threads(self.n_threads, "n_threads")
        base = _READY[kind](**clone(self.estimator).get_params(deep=False))
        cv, trained, seconds = self.cv, cast(list[Trained | None], []), 0.0
        if get_config()["enable_metadata_routing"]:
            base._metadata_request = self.estimator.get_metadata_routing()
        else:
            X, y = indexable(X, y)
            splitter = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
            cv = list(splitter.split(X, y, params.get("groups")))
            began = time.perf_counter()
            jobs = self._jobs(X, y, cv, params.get("sample_weight"))
            trained = train_together(jobs, threads, bool(self.verbose))
            seconds = time.perf_counter() - began
        # One after the other, in the order of `jobs`, whatever joblib is told around; and at last the best one, anew.
        base._ready = iter(trained)
        search = GridSearchCV(
            base, self.param_grid, scoring=self.scoring, n_jobs=1, refit=self.refit, cv=cv, verbose=self.verbose,
            error_score=self.error_score, return_train_score=self.return_train_score,
        ).fit(X, y, **params)  # fmt: skip
        together = [ready is not None for ready in trained]
        if any(together):
            shares = np.reshape(together, (-1, search.n_splits_)).mean(axis=1)
            search.cv_results_["mean_fit_time"] += shares * seconds / sum(together)
        found = {name: value for name, value in vars(search).items() if name.endswith("_")}
        for estimator in (base, *([search.best_estimator_] if self.refit else [])):
            estimator.__class__ = kind  # the scorer has the former
            del estimator._ready
        self.__dict__.update(found)
        return self

    def _jobs(self, X: Any, y: Any, splits: Sequence[tuple[Any, Any]], sample_weight: Any) -> list[Job | None]:
        """Return what is to be trained: candidates times folds."""
        jobs: list[Job | None] = []
        given = self.estimator.get_params(deep=False)
        seen: dict[str, Any] = {}  # the data by the precision of the network
        for candidate in ParameterGrid(self.param_grid):
            try:
                estimator = type(self.estimator)(**given | candidate)
                key = repr(estimator.dtype)
                if key not in seen:
                    scout = type(self.estimator)(dtype=estimator.dtype)
                    rows, targets = scout._rows(X, y, True)
                    weights = sample_weight
                    if weights is not None:
                        weights = checks.row_weights(sample_weight, len(rows), rows.dtype)
                    folds = [np.arange(len(rows))[train] for train, _ in splits]
                    found = {name: value for name, value in vars(scout).items() if name in FOUND}
                    whole = [scout._has_all_classes(targets[fold]) for fold in folds]
                    seen[key] = rows, targets, weights, folds, found, whole
            except (TypeError, ValueError):  # which GridSearchCV raises once more
                jobs += [None] * len(splits)
                continue
            rows, targets, weights, folds, found, whole = seen[key]
            estimator.__dict__.update(found)
            jobs += [
                Job(estimator, rows, targets, weights, fold) if complete else None
                for fold, complete in zip(folds, whole, strict=True)
            ]
        return jobs
