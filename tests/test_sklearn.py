"""The estimators do what scikit-learn's do, bit by bit or to rounding, and keep its rules."""

import copy
import importlib
import inspect
import pickle
import re
import sys
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
import sklearn.neural_network
from helpers import forged, output_of
from scipy import sparse
from scipy.stats import norm
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning, NotFittedError
from sklearn.metrics import accuracy_score, d2_pinball_score, r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import has_fit_parameter

import fastbp
from fastbp.checks import DataError, DivergenceError, ParameterError, ParameterTypeError
from fastbp.choices import ELEMENTWISE, INITIALISERS
from fastbp.sklearn import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # most tests end early

README = Path(__file__).resolve().parents[1] / "README.md"
ESTIMATORS = [MLPClassifier, MLPRegressor]
THEIRS = {
    MLPClassifier: sklearn.neural_network.MLPClassifier,
    MLPRegressor: sklearn.neural_network.MLPRegressor,
}
OLD_REGRESSOR = "loss" not in THEIRS[MLPRegressor]().get_params()  # before scikit-learn 1.7, as its weights of rows
OLD_WEIGHTS = not has_fit_parameter(THEIRS[MLPClassifier], "sample_weight")

ROWS = 105  # of five batches of 20 and a short one


def features(columns=6):
    return np.random.default_rng(0).normal(size=(ROWS, columns))


def targets(kind, X):
    """Estimators and targets by the kind of task."""
    score = X[:, 0] + 0.5 * X[:, 1]
    return {
        "binary": score > 0,
        "multiclass": np.digitize(score, [-0.5, 0.5]),
        "multilabel": np.column_stack([score > 0, X[:, 2] > 0.3, X[:, 3] > 0]).astype(int),
        "squared_error": np.sin(score),
        "poisson": np.round(np.exp(score)),
        "outputs": np.column_stack([score, X[:, 2] ** 2]),
    }[kind]


KINDS = {
    "binary": (MLPClassifier, {}),
    "multiclass": (MLPClassifier, {}),
    "multilabel": (MLPClassifier, {}),
    "squared_error": (MLPRegressor, {}),
    "poisson": (MLPRegressor, {"loss": "poisson"}),
}


def pair(kind, **settings):
    """Our estimator and theirs, with the same settings."""
    ours, own = KINDS[kind]
    if own and OLD_REGRESSOR:
        pytest.skip("scikit-learn < 1.7 has no such loss")
    return ours(**own, **settings), THEIRS[ours](**own, **settings)


def parameters(estimator):
    return np.concatenate([part.ravel() for part in (*estimator.coefs_, *estimator.intercepts_)])


def agree(actual, expected, tolerance=1e-6):
    """Relative to the largest: a weight near zero has no digits to compare."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


SHORT = {"hidden_layer_sizes": (7, 5), "max_iter": 10, "batch_size": 20, "learning_rate_init": 0.01, "random_state": 3}


# --- parameters ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_parameters_of_scikit_learn_have_the_same_places_and_defaults(estimator):
    expected = dict(inspect.signature(THEIRS[estimator]).parameters)
    actual = inspect.signature(estimator).parameters
    positions = [name for name, parameter in actual.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]

    assert {name: parameter.default for name, parameter in expected.items()} == {
        name: actual[name].default for name in expected
    }
    assert positions == ["loss"] * (estimator is MLPRegressor) + ["hidden_layer_sizes", "activation"]


def test_parameters_are_stored_as_given():
    sizes = [3, 4]
    classifier = MLPClassifier(sizes, solver="nonsense")

    assert classifier.hidden_layer_sizes is sizes
    assert "solver='nonsense'" in repr(classifier)


BAD_PARAMETERS = [
    ({"hidden_layer_sizes": (0,)}, ParameterError, "'hidden_layer_sizes[0]'"),
    ({"activation": "rectifier"}, ParameterError, "'activation'"),
    ({"activation": ("relu", "relu")}, ParameterError, "'activation'"),
    ({"solver": "newton"}, ParameterError, "'solver'"),
    ({"solver": 3}, ParameterTypeError, "'solver'"),
    ({"solver": forged(fastbp.Adam, beta1=2.0)}, ParameterError, "'beta1'"),
    ({"alpha": -1.0}, ParameterError, "'alpha'"),
    ({"alpha": -1.0, "solver": "lbfgs"}, ParameterError, "'alpha'"),
    ({"batch_size": 0}, ParameterError, "'batch_size'"),
    ({"batch_size": "all"}, ParameterError, "'batch_size'"),
    ({"learning_rate": "falling"}, ParameterError, "'learning_rate'"),
    ({"learning_rate": 0.1}, ParameterTypeError, "'learning_rate'"),
    ({"learning_rate": forged(fastbp.ExponentialDecay, decay=2.0)}, ParameterError, "'decay'"),
    ({"learning_rate_init": 0.0}, ParameterError, "'learning_rate_init'"),
    ({"solver": "sgd", "learning_rate": "invscaling", "power_t": -1.0}, ParameterError, "'power_t'"),
    ({"max_iter": 0}, ParameterError, "'max_iter'"),
    ({"shuffle": 3}, ParameterTypeError, "'shuffle'"),
    ({"tol": -1.0}, ParameterError, "'tol'"),
    ({"tol": -1.0, "solver": "lbfgs"}, ParameterError, "'tol'"),
    ({"solver": "sgd", "momentum": 1.5}, ParameterError, "'momentum'"),
    ({"beta_1": 1.0}, ParameterError, "'beta_1'"),
    ({"beta_2": -0.5}, ParameterError, "'beta_2'"),
    ({"epsilon": 0.0}, ParameterError, "'epsilon'"),
    ({"n_iter_no_change": -1}, ParameterError, "'n_iter_no_change'"),
    ({"solver": "lbfgs", "max_fun": 0}, ParameterError, "'max_fun'"),
    ({"class_weight": "even"}, ParameterError, "'class_weight'"),
    ({"class_weight": {True: -1.0, False: 1.0}}, ParameterError, "'class_weight"),
    ({"dropout": 1.0}, ParameterError, "'dropout'"),
    ({"clip_norm": 0.0}, ParameterError, "'clip_norm'"),
    ({"validation": 0.1}, ParameterTypeError, "'validation'"),
    ({"callback": 3}, ParameterTypeError, "'callback'"),
    ({"callback_every": 0}, ParameterError, "'callback_every'"),
    ({"dtype": "float16"}, ParameterError, "'dtype'"),
    ({"init": "orthogonal"}, ParameterError, "'init'"),
    ({"solver": "irprop", "batch_size": 20}, ParameterError, "'batch_size' must be None with the solver 'irprop'"),
    *[
        ({name: value}, ParameterTypeError, f"'{name}'")
        for name in ("shuffle", "warm_start", "nesterovs_momentum", "early_stopping")
        for value in ("no", 1, None, np.array([True, False]))
    ],
    *[({"verbose": value}, ParameterTypeError, "'verbose'") for value in ("x", None, np.array([True, False]))],
    ({"verbose": -1}, ParameterError, "'verbose'"),
    ({"n_threads": True}, ParameterTypeError, "'n_threads'"),
    ({"max_iter": "many"}, ParameterTypeError, "'max_iter'"),
    *[
        ({"early_stopping": early_stopping, "validation_fraction": value}, error, "'validation_fraction'")
        for early_stopping in (True, False)
        for value, error in (
            (5, ParameterError),
            (-0.1, ParameterError),
            (1.0, ParameterError),
            ("0.1", ParameterTypeError),
        )
    ],
    ({"early_stopping": True, "validation_fraction": 0.0}, ParameterError, "'validation_fraction'"),
    *[
        ({"solver": "sgd", **settings, name: np.array([0.1, 0.2])}, ParameterTypeError, f"'{name}'")
        for name, settings in {
            "learning_rate": {},
            "learning_rate_init": {},
            "n_iter_no_change": {},
            "momentum": {},
            "alpha": {},
            "tol": {"learning_rate": "adaptive"},
            "power_t": {"learning_rate": "invscaling"},
            "batch_size": {},
            "hidden_layer_sizes": {},
            "activation": {},
            "class_weight": {},
        }.items()
    ],
    ({"solver": "lbfgs", "dropout": np.array([0.1, 0.2])}, ParameterTypeError, "'dropout'"),
    ({"solver": "lbfgs", "clip_norm": np.array([0.1, 0.2])}, ParameterTypeError, "'clip_norm' must be a finite number"),
    ({"solver": "lbfgs", "validation": np.array([0.1, 0.2])}, ParameterError, "'validation' must be left out"),
    ({"solver": "lbfgs", "callback": np.array([0.1, 0.2])}, ParameterTypeError, "'callback' must be callable"),
    ({"solver": "sgd", "momentum": 1.0}, ParameterError, "'momentum' must be a finite number >= 0 and < 1, got 1.0"),
    *[
        ({"solver": "lbfgs", **setting}, ParameterError, "must be left out with the solver 'lbfgs'")
        for setting in ({"dropout": 0.5}, {"clip_norm": 1.0}, {"validation": (1, 2)})
    ],
]


@pytest.mark.parametrize(("settings", "error", "message"), BAD_PARAMETERS, ids=str)
def test_bad_parameter_is_named_as_the_estimator_names_it(settings, error, message):
    X = features()

    with pytest.raises(error, match=re.escape(message)):
        MLPClassifier(**settings).fit(X, targets("binary", X))


def test_bad_loss_and_huber_delta_are_named():
    X = features()

    with pytest.raises(ParameterError, match="'loss'"):
        MLPRegressor("cross_entropy").fit(X, X[:, 0])
    with pytest.raises(ParameterError, match="'huber_delta'"):
        MLPRegressor("huber", huber_delta=0.0).fit(X, X[:, 0])


def test_threads_are_checked():
    X = features()
    regressor = MLPRegressor(max_iter=1).fit(X, X[:, 0]).set_params(n_threads=0)

    for method in (regressor.fit, regressor.partial_fit, lambda X, y: regressor.predict(X)):
        with pytest.raises(ParameterError, match="'n_threads'"):
            method(X, X[:, 0])


@pytest.mark.parametrize("name", ["shuffle", "warm_start", "nesterovs_momentum", "early_stopping", "verbose"])
@pytest.mark.parametrize("value", [True, False])
def test_flags_of_numpy_are_flags(name, value, capsys):
    X = features()
    expected, actual = (
        MLPRegressor(**SHORT | {"solver": "sgd", name: flag}).fit(X, X[:, 0]) for flag in (value, np.bool_(value))
    )

    assert parameters(actual).tobytes() == parameters(expected).tobytes()


def test_verbosity_may_be_a_number(capsys):
    X = features()
    MLPRegressor(verbose=0, **SHORT).fit(X, X[:, 0])
    assert capsys.readouterr().err == ""
    MLPRegressor(verbose=10, **SHORT).fit(X, X[:, 0])
    assert "loss" in capsys.readouterr().err


def test_no_dropout_is_left_out_in_any_form():
    X = features()
    settings = {"solver": "lbfgs", "hidden_layer_sizes": (7, 5), "random_state": 0, "max_iter": 3}
    expected, *others = (MLPRegressor(dropout=rate, **settings).fit(X, X[:, 0]) for rate in (0.0, 0, (0.0, 0.0)))

    for actual in others:
        assert parameters(actual).tobytes() == parameters(expected).tobytes()


@pytest.mark.parametrize("class_weight", [{"0": 2}, {0: 2.0, "1": 1.0}, {0: 2.0, 7: 1.0}], ids=str)
def test_class_weight_of_no_class_is_refused_by_its_label(class_weight):
    X = features()
    (label,) = [key for key in class_weight if key != 0]

    with pytest.raises(ParameterError, match=f"'class_weight' must name labels of classes, .*, got {label!r}"):
        MLPClassifier(class_weight=class_weight).fit(X, np.arange(ROWS) % 2)


def test_class_weight_may_name_classes_that_this_part_of_the_data_lacks():
    X = features()
    y = np.array(["x", "y"])[np.arange(ROWS) % 2]
    expected, actual = (
        MLPClassifier(class_weight={"x": 3.0, "y": 0.5} | more, **SHORT).fit(X, y) for more in ({}, {"z": 2.0})
    )

    assert parameters(actual).tobytes() == parameters(expected).tobytes()


@pytest.mark.parametrize(("weight", "error"), [(-1.0, ParameterError), ("2", ParameterTypeError)])
def test_bad_class_weight_is_named_by_its_label(weight, error):
    X = features()

    with pytest.raises(error, match=re.escape("class_weight['y']")):
        MLPClassifier(class_weight={"y": weight}).fit(X, np.array(["x", "y"])[np.arange(ROWS) % 2])


def test_missing_scikit_learn_says_how_to_install_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "fastbp.sklearn")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)

    with pytest.raises(ImportError, match=re.escape('pip install "fastbp[sklearn]"')):
        importlib.import_module("fastbp.sklearn")


# --- scikit-learn's own checks ------------------------------------------------------------------------------------


def expected_failures(estimator):
    if estimator.batch_size != 16:
        return {}
    return {
        "check_sample_weight_equivalence_on_dense_data": "a row that comes twice falls into two batches",
        "check_sample_weight_equivalence_on_sparse_data": "the same, from a sparse matrix",
    }


RULES = parametrize_with_checks(
    [
        *[estimator(max_iter=100) for estimator in ESTIMATORS],  # at most 200 rows: full batches
        *[estimator(max_iter=60, batch_size=16) for estimator in ESTIMATORS],
        *[estimator(max_iter=50, solver="lbfgs") for estimator in ESTIMATORS],
    ],
    expected_failed_checks=expected_failures,
)
OTHER_LOSSES = [MLPRegressor("gaussian_nll", max_iter=100), MLPRegressor("quantile", quantiles=(0.5,), max_iter=100)]
RULES_OF_OTHER_LOSSES = parametrize_with_checks(OTHER_LOSSES)


# A list, because of the generator that older versions of scikit-learn hand over pytest warns.
@pytest.mark.parametrize(RULES.args[0], list(RULES.args[1]), **RULES.kwargs)
def test_estimator_keeps_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.parametrize(
    RULES_OF_OTHER_LOSSES.args[0], list(RULES_OF_OTHER_LOSSES.args[1]), **RULES_OF_OTHER_LOSSES.kwargs
)
def test_estimator_of_other_losses_keeps_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


# --- the same numbers as scikit-learn -----------------------------------------------------------------------------

ADAM = {"solver": "adam"}
SOLVERS = [
    ADAM,
    {"solver": "sgd", "momentum": 0},
    {"solver": "sgd", "momentum": 0.9, "nesterovs_momentum": False},
    {"solver": "sgd", "momentum": 0.9, "nesterovs_momentum": True},
    {"solver": "sgd", "learning_rate": "invscaling", "power_t": 0.1},
]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_losses_are_those_of_scikit_learn(kind, activation, solver):
    ours, theirs = pair(kind, activation=activation, shuffle=False, alpha=0.01, **solver, **SHORT)
    X = features()
    y = targets(kind, X)
    ours.fit(X, y)
    theirs.fit(X, y)

    agree(parameters(ours), parameters(theirs))
    agree(ours.loss_curve_, theirs.loss_curve_)
    assert [ours.loss_, ours.best_loss_] == [ours.loss_curve_[-1], min(ours.loss_curve_)]
    for name in ("n_iter_", "t_", "n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(ours, name) == getattr(theirs, name)


@pytest.mark.skipif(OLD_WEIGHTS, reason="scikit-learn < 1.7 has no weights of rows")
@pytest.mark.parametrize("batch_size", [20, ROWS])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_weighted_rows_count_as_in_scikit_learn(kind, solver, batch_size, rng):
    ours, theirs = pair(
        kind, activation="tanh", shuffle=False, alpha=0.01, **solver, **SHORT | {"batch_size": batch_size}
    )
    X, weights = features(), rng.uniform(0, 3, ROWS)
    y = targets(kind, X)
    ours.fit(X, y, weights)
    theirs.fit(X, y, weights)

    agree(parameters(ours), parameters(theirs))
    if batch_size == ROWS:  # a mean of the means of batches is another figure than ours
        agree(ours.loss_curve_, theirs.loss_curve_)


def test_several_outputs_are_trained_as_by_scikit_learn():
    ours, theirs = (estimator(shuffle=False, **ADAM, **SHORT) for estimator in (MLPRegressor, THEIRS[MLPRegressor]))
    X = features()
    y = targets("outputs", X)
    ours.fit(X, y)
    theirs.fit(X, y)

    agree(parameters(ours), parameters(theirs))
    agree(ours.predict(X), theirs.predict(X))
    assert ours.predict(X).shape == (ROWS, 2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ["relu", "logistic"])
@pytest.mark.parametrize("sizes", [(), (5,), 4, [7, 3], np.array([2, 3])], ids=str)
def test_first_weights_are_those_of_scikit_learn(sizes, activation, dtype):
    X = features().astype(dtype)
    settings = {
        "activation": activation,
        "random_state": 5,
        "max_iter": 1,
        "solver": "sgd",
        "learning_rate_init": 1e-30,
    }
    ours, theirs = (
        estimator(hidden_layer_sizes=sizes, **settings).fit(X, X[:, 0])
        for estimator in (MLPRegressor, THEIRS[MLPRegressor])
    )

    expected = parameters(theirs)
    actual = parameters(ours)

    assert actual.dtype == dtype
    assert actual.tobytes() == expected.tobytes()


STOPPING = [
    {"solver": "sgd", "tol": 1e-2, "n_iter_no_change": 3},
    {"solver": "sgd", "tol": 1e-2, "n_iter_no_change": 3, "learning_rate": "adaptive"},
    {**ADAM, "tol": 1e-2, "n_iter_no_change": 1},
    {**ADAM, "early_stopping": True, "n_iter_no_change": 4, "validation_fraction": 0.2},
    {"solver": "sgd", "early_stopping": True, "n_iter_no_change": 2, "max_iter": 60},
    {**ADAM, "early_stopping": True, "n_iter_no_change": np.inf, "max_iter": 30},
    {"solver": "sgd", "learning_rate": "adaptive", "early_stopping": True, "n_iter_no_change": 1},
]


@pytest.mark.parametrize("stopping", STOPPING, ids=str)
@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "squared_error"])
def test_training_stops_in_the_epoch_of_scikit_learn(kind, stopping):
    ours, theirs = pair(kind, shuffle=False, **SHORT | {"max_iter": 400, "learning_rate_init": 0.05} | stopping)
    X = features()
    y = targets(kind, X)
    ours.fit(X, y)
    theirs.fit(X, y)

    assert ours.n_iter_ == theirs.n_iter_
    agree(ours.loss_curve_, theirs.loss_curve_)
    agree(parameters(ours), parameters(theirs))
    if stopping.get("early_stopping"):
        agree(ours.validation_scores_, theirs.validation_scores_)
        assert ours.best_validation_score_ == max(ours.validation_scores_)
        assert ours.best_loss_ is None
        assert len(ours.validation_loss_curve_) == ours.n_iter_
    else:
        assert ours.validation_scores_ is ours.best_validation_score_ is ours.validation_loss_curve_ is None


@pytest.mark.parametrize(("rows", "held"), [(3, 1), (10, 1), (11, 2)])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_validation_of_one_row_is_too_small(estimator, rows, held):
    X, y = features()[:rows], np.arange(rows) % 3
    fitted = estimator(hidden_layer_sizes=(2,), early_stopping=True, max_iter=2, random_state=0)
    if held == 1:  # R^2 of one row would be constant; scikit-learn 1.7 refuses it for classes, too
        with pytest.raises(
            ParameterError, match=r"'validation_fraction' must give at least 2 rows, .* too small, got 1"
        ):
            fitted.fit(X, y)
    else:
        assert fitted.fit(X, y).t_ == 2 * (rows - held)


def test_equal_scores_are_no_progress_where_nothing_is_asked_of_it():
    X = features()
    y = targets("binary", X)
    settings = {"early_stopping": True, "tol": 0.0, "n_iter_no_change": 4, "max_iter": 50, "learning_rate_init": 1e-12}
    ours, theirs = (estimator(**SHORT | settings).fit(X, y) for estimator in (MLPClassifier, THEIRS[MLPClassifier]))

    assert ours.validation_scores_ == [ours.validation_scores_[0]] * 6
    assert len(set(theirs.validation_scores_)) == 1
    assert theirs.n_iter_ == 50


@pytest.mark.skipif(OLD_WEIGHTS, reason="scikit-learn < 1.7 has no weights of rows")
@pytest.mark.parametrize("kind", ["binary", "squared_error"])
def test_weighted_rows_stop_the_training_as_in_scikit_learn(kind, rng):
    settings = {"max_iter": 100, "learning_rate_init": 0.05, "batch_size": ROWS, "early_stopping": True}
    ours, theirs = pair(kind, shuffle=False, **SHORT | settings)
    X, weights = features(), rng.uniform(0, 3, ROWS)
    y = targets(kind, X)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # theirs: a batch of all rows, now fewer
        theirs.fit(X, y, weights)
    ours.fit(X, y, weights)

    agree(parameters(ours), parameters(theirs))
    agree(ours.loss_curve_, theirs.loss_curve_)
    agree(ours.validation_scores_, theirs.validation_scores_)


def test_batches_have_two_hundred_rows_unless_told_otherwise():
    X = np.tile(features(), (4, 1))
    settings = {"hidden_layer_sizes": (5,), "shuffle": False, "max_iter": 3, "random_state": 0}
    ours, theirs = (estimator(**settings).fit(X, X[:, 0]) for estimator in (MLPRegressor, THEIRS[MLPRegressor]))
    full = MLPRegressor(solver="irprop", **settings).fit(X, X[:, 0])

    agree(parameters(ours), parameters(theirs))
    assert full.result_.state.settings.batch_size is None


@pytest.mark.filterwarnings("ignore:scipy.optimize:DeprecationWarning")  # caused by scikit-learn 1.6
@pytest.mark.parametrize("weighted", [False, pytest.param(True, marks=pytest.mark.skipif(OLD_WEIGHTS, reason="none"))])
@pytest.mark.parametrize("kind", KINDS)
def test_lbfgs_reaches_the_minimum_of_scikit_learn(kind, weighted, rng):
    settings = {"solver": "lbfgs", "alpha": 1.0, "max_iter": 5000, "tol": 1e-6, "random_state": 0, "activation": "tanh"}
    ours, theirs = pair(kind, hidden_layer_sizes=(3,), **settings)
    X = features()
    y = targets(kind, X)
    weights = (rng.uniform(0, 2, ROWS),) if weighted else ()
    ours.fit(X, y, *weights)
    theirs.fit(X, y, *weights)

    assert ours.loss_ == pytest.approx(theirs.loss_, rel=1e-4)
    agree(ours.predict(X), theirs.predict(X), 0.05 if isinstance(ours, MLPRegressor) else 0)
    assert ours.loss_curve_[-1] == ours.loss_
    assert len(ours.loss_curve_) == ours.n_iter_
    assert ours.result_.stopped == "tolerance"
    assert ours.t_ == theirs.t_ == 0


def lbfgs(limits, y=None, **settings):
    X = features()
    told = {"solver": "lbfgs", "activation": "tanh", "alpha": 1.0, "random_state": 0, "hidden_layer_sizes": (3,)}
    regressor = MLPRegressor(**told | limits | settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        regressor.fit(X, X[:, 0] if y is None else y)
    return regressor, [str(warning.message) for warning in caught]


def test_lbfgs_ends_where_the_gradient_is_within_tol():
    for tol in (0.1, 0.01):
        regressor, warned = lbfgs({"tol": tol})
        X, network = features(), regressor.network_
        before, _ = lbfgs({"tol": tol, "max_iter": regressor.n_iter_ - 1})
        for each, within in ((network, True), (before.network_, False)):
            assert (np.abs(each.loss_and_gradient(X, X[:, 0], l2=1.0)[1]).max() <= tol) == within
        assert not warned


def test_lbfgs_ends_where_the_loss_stands_still():
    regressor, warned = lbfgs({"tol": 0.0, "max_iter": 5000, "max_fun": 100_000})
    *gains, last = -np.diff(regressor.loss_curve_)

    assert last <= 2.3e-9 < min(gains)
    assert not warned


def test_lbfgs_warns_of_what_ended_it_before_it_converged():
    expected = {"max_iter": 3, "max_fun": 6}
    for name, most in expected.items():
        regressor, warned = lbfgs({name: most, "tol": 0.0})

        assert warned == [f"training by 'lbfgs' stopped at '{name}' ({most}), before it converged"]
        assert regressor.n_iter_ == len(regressor.loss_curve_) <= most


def test_loss_curve_of_lbfgs_is_that_after_each_step():
    X, seen = features(), []
    weights = np.linspace(0, 2, ROWS)
    y = np.where(X[:, 0] > 0, "b", "a")
    settings = {"solver": "lbfgs", "hidden_layer_sizes": (3,), "alpha": 1.0, "max_iter": 6, "random_state": 0}
    classifier = MLPClassifier(
        **settings, class_weight={"a": 2.0}, callback=lambda state: seen.append(state.network)
    ).fit(X, y, weights)
    rows = X, 1.0 * (y == "b"), weights * np.where(y == "a", 2.0, 1.0)
    expected = [network.loss_and_gradient(*rows, l2=1.0)[0] for network in seen]

    np.testing.assert_allclose(classifier.loss_curve_, expected, rtol=1e-12)
    assert classifier.loss_ == classifier.loss_curve_[-1]
    assert seen[-1].params.tobytes() == classifier.network_.params.tobytes()


def test_lbfgs_ignores_what_it_has_no_use_for():
    expected, _ = lbfgs({"max_iter": 5})
    actual, _ = lbfgs(
        {"max_iter": 5}, batch_size=7, learning_rate="cosine", learning_rate_init=0.5, early_stopping=True,
        n_iter_no_change=0, shuffle=False,
    )  # fmt: skip

    assert parameters(actual).tobytes() == parameters(expected).tobytes()
    assert actual.validation_scores_ is None


def test_first_steps_of_lbfgs_are_those_of_scikit_learn():
    X = features()
    for kind, factor in (("squared_error", 1.0), ("squared_error", 1e-3), ("multiclass", 1.0)):
        settings = {"solver": "lbfgs", "max_iter": 15, "tol": 0.0, "random_state": 0, "activation": "tanh"}
        ours, theirs = pair(kind, hidden_layer_sizes=(5,), **settings)
        y = factor * targets(kind, X) if kind == "squared_error" else targets(kind, X)
        ours.fit(X, y)
        theirs.fit(X, y)

        agree(parameters(ours), parameters(theirs), 1e-5)


def test_interrupted_lbfgs_leaves_the_estimator_as_it_was():
    def interrupt(state):
        if state.epoch == 3:
            raise KeyboardInterrupt

    X = features()
    regressor, _ = lbfgs({"max_iter": 4}, warm_start=True)
    before = parameters(regressor).tobytes(), regressor.loss_curve_
    with pytest.raises(KeyboardInterrupt):
        regressor.set_params(callback=interrupt).fit(X, X[:, 0])

    assert (parameters(regressor).tobytes(), regressor.loss_curve_) == before


BITS_OF_LBFGS = """
import numpy as np, warnings
from fastbp.sklearn import MLPRegressor
X = np.random.default_rng(1).normal(size=(20, 6))
with warnings.catch_warnings(action="ignore"):
    regressor = MLPRegressor(hidden_layer_sizes=(50, 50), solver="lbfgs", alpha=1.0, random_state=0).fit(X, X[:, 0])
print(regressor.n_iter_, regressor.loss_.hex(), regressor.network_.params.tobytes().hex())
"""


def test_lbfgs_has_the_same_bits_whatever_blas():
    expected, actual = (output_of("-c", BITS_OF_LBFGS, OPENBLAS_CORETYPE=cpu) for cpu in ("Nehalem", "Haswell"))

    assert actual == expected != ""


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_scikit_learn_with_the_same_weights(kind, activation):
    ours, theirs = pair(kind, activation=activation, **SHORT)
    X = features()
    y = targets(kind, X)
    theirs.fit(X, y)
    ours.fit(X, y)
    theirs.coefs_, theirs.intercepts_ = ours.coefs_, ours.intercepts_

    for name in ("predict", "predict_proba", "predict_log_proba"):
        if hasattr(theirs, name):
            expected = getattr(theirs, name)(X)
            actual = getattr(ours, name)(X)

            assert actual.shape == expected.shape
            assert actual.dtype == expected.dtype
            np.testing.assert_allclose(
                actual, expected, rtol=1e-11, atol=1e-7 if name == "predict_log_proba" else 1e-12
            )
    assert ours.score(X, y) == pytest.approx(theirs.score(X, y), rel=1e-12)


# --- what scikit-learn has --------------------------------------------------------------------------------------------


def test_views_of_the_weights_are_those_of_the_network():
    X = features()
    regressor = MLPRegressor(**SHORT).fit(X, X[:, 0])
    before = regressor.predict(X)
    regressor.intercepts_[-1][:] += 1

    assert [np.shares_memory(part, regressor.network_.params) for part in regressor.coefs_] == [True] * 3
    np.testing.assert_allclose(regressor.predict(X), before + 1)


def replacing(estimator, name, arrays):
    setattr(estimator, name, arrays)


def replacing_one_by_one(estimator, name, arrays):
    for layer, array in enumerate(arrays):
        getattr(estimator, name)[layer - len(arrays) * (layer % 2)] = array


def replacing_a_slice(estimator, name, arrays):
    getattr(estimator, name)[:2] = arrays[:2]
    getattr(estimator, name)[2:] = arrays[2:]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("replace", [replacing, replacing_one_by_one, replacing_a_slice])
def test_weights_can_be_replaced_as_in_scikit_learn(replace, dtype, rng):
    X = features().astype(dtype)
    ours, theirs = (e(**SHORT).fit(X, X[:, 0]) for e in (MLPRegressor, THEIRS[MLPRegressor]))
    for name in ("coefs_", "intercepts_"):
        arrays = [rng.normal(size=array.shape).astype(dtype) for array in getattr(ours, name)]
        replace(ours, name, [array.tolist() for array in arrays])
        replace(theirs, name, arrays)
        for actual, expected in zip(getattr(ours, name), arrays, strict=True):
            assert actual.tobytes() == expected.tobytes()
            assert actual.dtype == dtype

    agree(ours.predict(X), theirs.predict(X), 1e-5)


def test_weights_can_be_changed_in_place_as_in_scikit_learn():
    X = features()
    ours, theirs = (e(shuffle=False, **SHORT).fit(X, X[:, 0]) for e in (MLPRegressor, THEIRS[MLPRegressor]))
    for estimator in (ours, theirs):
        estimator.coefs_[1] *= 2
        estimator.coefs_[0] += estimator.coefs_[0]
        estimator.intercepts_ = [2 * biases for biases in estimator.intercepts_]

    agree(parameters(ours), parameters(theirs))


@pytest.mark.parametrize(
    ("name", "index", "value", "error", "message"),
    [
        ("coefs_", 0, np.ones((7, 6)), DataError, "'coefs_[0]' must have shape (6, 7), got shape (7, 6)"),
        ("coefs_", -1, np.ones(5), DataError, "'coefs_[2]' must be 2-D"),
        ("coefs_", 1, np.full((7, 5), np.nan), DataError, "'coefs_[1]' must be finite"),
        ("coefs_", 1, np.full((7, 5), 1e300), DataError, "'coefs_[1]' must not overflow float32"),
        ("coefs_", 1, [["a"] * 5] * 7, DataError, "'coefs_[1]' must hold real numbers"),
        ("coefs_", 1, 0.0, ParameterTypeError, "'coefs_[1]' must be an array"),
        ("intercepts_", 0, np.ones((7, 1)), DataError, "'intercepts_[0]' must be 1-D"),
        ("intercepts_", slice(0, 2), [np.ones(7)], DataError, "'intercepts_' must be a list of 2 arrays, got 1"),
        ("intercepts_", slice(0, 2), 1.0, ParameterTypeError, "'intercepts_' must be a list of arrays, got float"),
        ("intercepts_", slice(0, 2), [np.ones(7), np.ones(7)], DataError, "'intercepts_[1]' must have shape (5,)"),
    ],
    ids=str,
)
def test_bad_weights_are_refused_and_change_nothing(name, index, value, error, message):
    X = features().astype(np.float32)
    regressor = MLPRegressor(**SHORT).fit(X, X[:, 0])
    before = regressor.network_.params.tobytes()

    with pytest.raises(error, match=re.escape(message)):
        getattr(regressor, name)[index] = value
    assert regressor.network_.params.tobytes() == before
    with pytest.raises(IndexError):
        regressor.coefs_[3] = np.ones((5, 1))


@pytest.mark.parametrize("name", ["coefs_", "intercepts_"])
def test_weights_are_given_to_a_fitted_estimator(name):
    with pytest.raises(NotFittedError):
        setattr(MLPRegressor(), name, [])
    with pytest.raises(DataError, match=f"'{name}' must be a list of 3 arrays, got 1"):
        setattr(MLPRegressor(**SHORT).fit(features(), features()[:, 0]), name, [np.ones((6, 1))])


def test_weights_travel_as_plain_lists():
    X = features()
    coefs = MLPRegressor(**SHORT).fit(X, X[:, 0]).coefs_
    for travelled in (pickle.loads(pickle.dumps(coefs)), copy.deepcopy(coefs), copy.copy(coefs)):
        assert type(travelled) is list
        assert [array.tobytes() for array in travelled] == [array.tobytes() for array in coefs]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_unfitted_estimator_has_no_results(estimator):
    with pytest.raises(NotFittedError):
        estimator().predict(features())
    assert not hasattr(estimator(), "coefs_")
    assert not hasattr(estimator(), "loss_curve_")


def test_number_of_epochs_that_did_not_suffice_is_a_warning():
    X = features()

    with pytest.warns(ConvergenceWarning, match="'max_iter' \\(2\\)"):
        MLPRegressor(max_iter=2).fit(X, X[:, 0])
    with pytest.warns(ConvergenceWarning, match="lbfgs"):
        MLPRegressor(max_iter=2, solver="lbfgs").fit(X, X[:, 0])


def test_trained_estimator_does_not_warn():
    X = features()

    with warnings.catch_warnings(action="error"):
        assert MLPRegressor(tol=1e9, n_iter_no_change=1).fit(X, X[:, 0]).n_iter_ == 3
        assert MLPRegressor(solver="lbfgs", tol=10.0).fit(X, X[:, 0]).n_iter_ == 1


@pytest.mark.parametrize(
    "labels", [["no", "yes", "maybe"], ["b", "a"], [7, -3, 12], [0.0, 1.0], [True, False]], ids=str
)
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_labels_come_back(labels, solver):
    X = features()
    labels = np.array(labels)
    y = labels[np.digitize(X[:, 0], np.linspace(-0.5, 0.5, len(labels) - 1))]
    classifier = MLPClassifier(solver=solver, max_iter=100, learning_rate_init=0.02).fit(X, y)

    assert classifier.classes_.tolist() == sorted(labels.tolist())
    assert classifier.predict(X).dtype == labels.dtype
    assert classifier.score(X, y) > 0.95
    assert classifier.score(X, y) == accuracy_score(y, classifier.predict(X))


def test_one_class_is_predicted():
    X = features()
    classifier = MLPClassifier(max_iter=2).fit(X, np.full(ROWS, "only"))

    assert set(classifier.predict(X)) == {"only"}


def test_unknown_classes_are_refused():
    X = features()
    classifier = MLPClassifier(warm_start=True, max_iter=2).fit(X, np.arange(ROWS) % 3)

    with pytest.raises(DataError, match="got 35 others of 105"):
        classifier.fit(X, np.arange(ROWS) % 3 + 1)


@pytest.mark.parametrize(("classes", "present"), [(3, 2), (3, 1), (2, 1)])
def test_missing_classes_are_refused_by_a_warm_start_as_in_scikit_learn(classes, present):
    X = features()
    for estimator, error in ((MLPClassifier, DataError), (THEIRS[MLPClassifier], ValueError)):
        classifier = estimator(warm_start=True, max_iter=2).fit(X, np.arange(ROWS) % classes)
        before = parameters(classifier).tobytes()

        with pytest.raises(error, match="classes") as raised:
            classifier.fit(X, np.arange(ROWS) % present)
        assert parameters(classifier).tobytes() == before
        if error is DataError:
            assert f"got {present}" in str(raised.value)
    MLPClassifier(warm_start=True, max_iter=2).fit(X, np.arange(ROWS) % 3).partial_fit(X, np.arange(ROWS) % 2)


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("kinds", [("multiclass", "multilabel"), ("multilabel", "multiclass")])
def test_labels_stay_of_their_kind(kinds, method):
    X = features()
    first, second = (targets(kind, X) for kind in kinds)
    second = np.eye(3, dtype=int)[second] if second.ndim == 1 and kinds[0] == "multiclass" else second
    classifier = MLPClassifier(warm_start=True, max_iter=2).fit(X, first)

    with pytest.raises(DataError, match="'y' must"):
        getattr(classifier, method)(X, np.eye(3, dtype=int)[first] if first.ndim == 1 else first.argmax(axis=1))


def test_several_values_a_row_are_no_labels():
    X = features()

    with pytest.raises(DataError, match="'y' must be 0 or 1"):
        MLPClassifier().fit(X, np.column_stack([np.arange(ROWS) % 3, np.arange(ROWS) % 2]))


def test_column_of_targets_is_taken_with_a_warning():
    X = features()

    with pytest.warns(DataConversionWarning):
        actual = MLPRegressor(**SHORT).fit(X, X[:, :1]).predict(X)

    assert actual.shape == (ROWS,)


def test_names_of_features_are_kept_and_compared():
    pandas = pytest.importorskip("pandas")
    X = pandas.DataFrame(features(2), columns=["length", "width"])
    y = pandas.Series(np.where(X["length"] > 0, "long", "short"))
    classifier = MLPClassifier(max_iter=3).fit(X, y, pandas.Series(np.ones(ROWS)))

    assert classifier.feature_names_in_.tolist() == ["length", "width"]
    assert classifier.predict(X).shape == (ROWS,)
    with pytest.raises(ValueError, match="feature names"):
        classifier.predict(X[["width", "length"]])


@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_sparse_matrices_are_as_good_as_dense_ones(kind):
    X = features() * (features() > 0)
    y = targets(kind, X)
    expected = MLPClassifier(**SHORT).fit(X, y).predict_proba(X)
    also = sparse.csr_array(y) if kind == "multilabel" else y
    actual = MLPClassifier(**SHORT).fit(sparse.csc_array(X), also).predict_proba(sparse.csr_array(X))

    assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize("kind", [sparse.csr_array, sparse.csc_array, sparse.csr_matrix, np.asarray])
def test_labels_are_predicted_as_sparse_as_they_came(kind, method):
    X = features()
    y = kind(targets("multilabel", X))
    classes = {"classes": [0, 1, 2]} if method == "partial_fit" else {}
    ours, theirs = (
        getattr(estimator(max_iter=2, random_state=0), method)(X, y, **classes)
        for estimator in (MLPClassifier, THEIRS[MLPClassifier])
    )

    expected = theirs.predict(X)
    actual = ours.predict(X)

    assert type(actual) is type(expected)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    assert 0 <= ours.score(X, y) <= 1
    assert type(ours.partial_fit(X, targets("multilabel", X)).predict(X)) is type(expected)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_float32_stays_float32(estimator):
    X = features().astype(np.float32)
    y = targets("binary", X)
    fitted = estimator(**SHORT).fit(X, y)
    predictions = fitted.predict(X) if estimator is MLPRegressor else fitted.predict_proba(X)

    assert {part.dtype for part in (*fitted.coefs_, *fitted.intercepts_, predictions)} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("given", "dtype"), [("float64", "float32"), ("float32", "float64"), ("int64", "float32")])
def test_precision_can_be_chosen(given, dtype):
    X = (10 * features()).astype(given)
    regressor = MLPRegressor(dtype=dtype, **SHORT).fit(X, X[:, 0])

    assert regressor.network_.params.dtype == dtype
    assert regressor.predict(X).dtype == dtype


@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_same_random_state_gives_the_same_bits(solver):
    X = features()
    first, second, other = (
        MLPRegressor(solver=solver, **SHORT | {"random_state": seed}).fit(X, X[:, 0]) for seed in (1, 1, 2)
    )

    assert parameters(first).tobytes() == parameters(second).tobytes()
    assert parameters(first).tobytes() != parameters(other).tobytes()


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_warm_start_keeps_the_weights(solver):
    X = features()
    y = targets("multiclass", X)
    classifier = MLPClassifier(solver=solver, warm_start=True, **SHORT).fit(X, y)
    network, losses = classifier.network_, classifier.loss_curve_
    before = network.params.tobytes()
    classifier.set_params(max_iter=4).fit(X, y)

    assert classifier.loss_curve_[:10] == losses
    assert len(classifier.loss_curve_) == 14
    assert classifier.n_iter_ == 4
    assert classifier.t_ == (14 * ROWS if solver == "adam" else 0)
    assert classifier.loss_curve_[-1] < losses[-1]
    assert network.params.tobytes() == before  # whoever holds it


def test_warm_start_begins_with_a_new_optimiser():
    X = features()
    settings = {"shuffle": False, "warm_start": True, **ADAM, **SHORT}
    ours, theirs = (e(**settings).fit(X, X[:, 0]).fit(X, X[:, 0]) for e in (MLPRegressor, THEIRS[MLPRegressor]))

    agree(parameters(ours), parameters(theirs))
    agree(ours.loss_curve_, theirs.loss_curve_)
    assert [ours.n_iter_, ours.t_] == [theirs.n_iter_, theirs.t_]


def test_fit_without_warm_start_begins_anew():
    X = features()
    regressor = MLPRegressor(**SHORT).fit(X, X[:, 0])
    expected = parameters(regressor).copy()
    actual = parameters(regressor.fit(X, X[:, 0]))

    assert actual.tobytes() == expected.tobytes()
    assert len(regressor.loss_curve_) == 10


@pytest.mark.parametrize("solver", [ADAM, {"solver": "sgd"}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_partial_fit_goes_on_as_in_scikit_learn(kind, solver):
    ours, theirs = pair(kind, shuffle=False, activation="tanh", **solver, **SHORT)
    X = features()
    y = targets(kind, X)
    classes = {} if isinstance(ours, MLPRegressor) else {"classes": np.arange(3) if y.ndim == 2 else np.unique(y)}
    for start in (0, 30, 60, 0):
        rows = slice(start, start + 45)
        ours.partial_fit(X[rows], y[rows], **classes)
        theirs.partial_fit(X[rows], y[rows], **classes)

    agree(parameters(ours), parameters(theirs))
    agree(ours.loss_curve_, theirs.loss_curve_)
    assert [ours.n_iter_, ours.t_] == [theirs.n_iter_, theirs.t_]


@pytest.mark.parametrize("solver", [ADAM, {"solver": "sgd"}, {"solver": "sgd", "momentum": 0}], ids=str)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_training_goes_on_from_weights_that_were_written(method, solver, rng):
    X = features()
    settings = {"shuffle": False, "activation": "tanh", "warm_start": True, "n_iter_no_change": np.inf}
    ours, theirs = (
        estimator(**settings, **solver, **SHORT).partial_fit(X, X[:, 0])
        for estimator in (MLPRegressor, THEIRS[MLPRegressor])
    )
    for _ in range(2):
        weights = [rng.normal(size=array.shape) for array in ours.coefs_]
        for estimator in (ours, theirs):
            for layer, array in enumerate(estimator.coefs_):
                array[:] = weights[layer]
            estimator.intercepts_[0][:] = 0
            getattr(estimator, method)(X, X[:, 0])

    agree(parameters(ours), parameters(theirs))
    agree(ours.loss_curve_, theirs.loss_curve_)


def test_averaged_estimators_go_on_together():
    X = features()
    ours, theirs = ([e(shuffle=False, **ADAM, **SHORT) for _ in range(3)] for e in (MLPRegressor, THEIRS[MLPRegressor]))
    for estimators in (ours, theirs):
        for _ in range(4):
            for part, estimator in enumerate(estimators):
                estimator.partial_fit(X[part::3], X[part::3, 0])
            for name in ("coefs_", "intercepts_"):
                layers = zip(*(getattr(estimator, name) for estimator in estimators), strict=True)
                means = [np.mean(layer, axis=0) for layer in layers]
                for estimator in estimators:
                    setattr(estimator, name, [mean.copy() for mean in means])

    agree(parameters(ours[0]), parameters(theirs[0]))
    assert parameters(ours[0]).tobytes() == parameters(ours[2]).tobytes()


STEPS = [("partial_fit", rows) for rows in (100, *[1] * 20, 37, 105, 2)]
SEQUENCES = {
    "partial fits": STEPS,
    "a fit and partial fits": [("fit", 105), *STEPS],
    "warm starts": [("fit", 105), ("fit", 40), ("fit", 105)],
    "all": [("partial_fit", 30), ("fit", 105), *STEPS, ("fit", 60), ("partial_fit", 20), ("partial_fit", 105)],
}


@pytest.mark.filterwarnings("ignore:Got `batch_size`:UserWarning")  # theirs: a batch of more rows than there are
@pytest.mark.parametrize("max_iter", [1, 5])
@pytest.mark.parametrize("power_t", [0.5, 1.5])
@pytest.mark.parametrize("sequence", SEQUENCES.values(), ids=SEQUENCES)
def test_rate_falls_with_the_rows_seen_as_in_scikit_learn(sequence, power_t, max_iter):
    X = features()
    ours, theirs = (
        estimator(
            **SHORT | {"max_iter": max_iter, "learning_rate_init": 0.1, "activation": "tanh", "shuffle": False},
            solver="sgd", learning_rate="invscaling", power_t=power_t, warm_start=True, n_iter_no_change=np.inf,
        )
        for estimator in (MLPRegressor, THEIRS[MLPRegressor])
    )  # fmt: skip
    for method, rows in sequence:
        for estimator in (ours, theirs):
            getattr(estimator, method)(X[:rows], X[:rows, 0])
        agree(parameters(ours), parameters(theirs))
        assert ours.t_ == theirs.t_

    agree(ours.loss_curve_, theirs.loss_curve_)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_rate_falls_in_a_warm_start_with_a_validation_as_in_scikit_learn(estimator):
    X = features()
    y = targets("binary", X).astype(int)
    settings = {"solver": "sgd", "learning_rate": "invscaling", "power_t": 0.25, "warm_start": True, "shuffle": False}
    stopping = {"early_stopping": True, "n_iter_no_change": np.inf, "learning_rate_init": 0.05}
    ours, theirs = (kind(**settings, **SHORT | stopping).fit(X, y) for kind in (estimator, THEIRS[estimator]))
    theirs.coefs_, theirs.intercepts_ = list(ours.coefs_), list(ours.intercepts_)
    ours.fit(X, y)
    theirs.fit(X, y)

    assert ours.t_ == theirs.t_
    assert len(ours.validation_scores_) == 10
    agree(ours.loss_curve_, theirs.loss_curve_)
    agree(ours.validation_scores_, theirs.validation_scores_[10:])


def test_callback_is_called_through_a_warm_start():
    X, epochs = features(), []
    settings = {"solver": "sgd", "learning_rate": "invscaling", "warm_start": True}
    regressor = MLPRegressor(**settings, **SHORT).fit(X, X[:, 0])
    regressor.set_params(callback=lambda state: epochs.append(state.epoch) or state.epoch == 4).fit(X, X[:, 0])

    assert epochs == [1, 2, 3, 4]
    assert regressor.n_iter_ == 4


OTHER_NETWORKS = [
    (MLPRegressor, {"activation": "tanh"}),
    (MLPRegressor, {"activation": ("relu", "tanh")}),
    (MLPRegressor, {"hidden_layer_sizes": (7,)}),
    (MLPRegressor, {"hidden_layer_sizes": (7, 6)}),
    (MLPRegressor, {"loss": "huber"}),
    (MLPRegressor, {"huber_delta": 2.0}),
    (MLPRegressor, {"dtype": "float32"}),
    (MLPClassifier, {"activation": "logistic"}),
    (MLPClassifier, {"hidden_layer_sizes": 7}),
]


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
@pytest.mark.parametrize(("estimator", "parameter"), OTHER_NETWORKS, ids=str)
def test_network_to_be_trained_further_stays_what_it_is(estimator, parameter, method):
    X = features()
    y = targets("binary", X)
    fitted = estimator(warm_start=True, **SHORT).fit(X, y)
    before = fitted.network_.params.tobytes()
    (name,) = parameter

    with pytest.raises(ParameterError, match=f"'{name}' must be what the network was made with"):
        getattr(fitted.set_params(**parameter), method)(X, y)
    assert fitted.network_.params.tobytes() == before
    fitted.set_params(warm_start=False).fit(X, y)  # a new network may be another


@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_network_may_be_described_in_other_words(method):
    X = features()
    words = {"activation": ["sigmoid", "logistic"], "hidden_layer_sizes": [7, np.int64(5)], "dtype": np.float64}
    first, second = (MLPRegressor(warm_start=True, **SHORT | {"activation": "logistic"}) for _ in range(2))
    expected = getattr(first.fit(X, X[:, 0]), method)(X, X[:, 0])
    actual = getattr(second.fit(X, X[:, 0]).set_params(**words), method)(X, X[:, 0])

    assert parameters(actual).tobytes() == parameters(expected).tobytes()


@pytest.mark.parametrize(
    "parameter", [{"alpha": 10.0}, {"batch_size": 7}, {"batch_size": ROWS}, {"alpha": 0.0}], ids=str
)
@pytest.mark.parametrize("solver", [ADAM, {"solver": "sgd"}], ids=str)
def test_changed_parameters_count_in_partial_fit_as_in_scikit_learn(solver, parameter):
    X = features()
    ours, theirs = (e(shuffle=False, **solver, **SHORT) for e in (MLPRegressor, THEIRS[MLPRegressor]))
    for estimator in (ours, theirs):
        for changed in ({}, parameter, {}):
            estimator.set_params(**changed).partial_fit(X, X[:, 0])

    agree(parameters(ours), parameters(theirs))


@pytest.mark.parametrize(
    "parameter",
    [
        {"learning_rate_init": 0.5},
        {"momentum": 0.1},
        {"learning_rate": "exponential"},
        {"shuffle": False},
        {"dropout": 0.5},
        {"clip_norm": 1e-3},
        {"solver": "adam"},
    ],
    ids=str,
)
def test_no_changed_parameter_is_ignored_by_partial_fit(parameter):
    X = features()
    expected, actual = (MLPRegressor(solver="sgd", **SHORT).partial_fit(X, X[:, 0]) for _ in range(2))
    expected.partial_fit(X, X[:, 0])
    actual.set_params(**parameter).partial_fit(X, X[:, 0])

    assert parameters(actual).tobytes() != parameters(expected).tobytes()


def counts_in_partial_fit(settings):
    stopping = settings.keys() & {"n_iter_no_change", "tol", "validation"} and "learning_rate" not in settings
    started = "init" in settings or settings.get("validation_fraction") == 0
    return not (stopping or started or settings.get("solver") == "lbfgs")


@pytest.mark.parametrize(
    ("settings", "error", "message"), [row for row in BAD_PARAMETERS if counts_in_partial_fit(row[0])], ids=str
)
def test_bad_parameter_is_named_by_partial_fit_too(settings, error, message):
    X = features()
    y = targets("binary", X)
    classifier = MLPClassifier((7,), batch_size="auto", max_iter=2, random_state=0).fit(X, y)
    before = classifier.network_.params.tobytes()

    with pytest.raises(error, match=re.escape(message)):
        classifier.set_params(**settings).partial_fit(X, y)
    assert classifier.network_.params.tobytes() == before


def test_another_solver_begins_anew_in_partial_fit():
    X = features()
    regressor = MLPRegressor(**ADAM, **SHORT | {"batch_size": ROWS, "alpha": 0.0}).fit(X, X[:, 0])
    network = regressor.network_.copy()
    regressor.set_params(solver="sgd", momentum=0).partial_fit(X, X[:, 0])

    expected = network.params - 0.01 * network.loss_and_gradient(X, X[:, 0])[1]
    actual = regressor.network_.params

    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


def test_partial_fits_are_one_fit():
    X = features()
    expected = MLPRegressor(**SHORT, learning_rate=fastbp.CosineDecay()).fit(X, X[:, 0])
    actual = MLPRegressor(**SHORT, learning_rate=fastbp.CosineDecay())
    for _ in range(10):
        actual.partial_fit(X, X[:, 0])

    assert parameters(actual).tobytes() == parameters(expected).tobytes()
    assert actual.loss_curve_ == expected.loss_curve_


def test_partial_fit_goes_on_after_fit():
    X = features()
    expected = MLPRegressor(**SHORT | {"max_iter": 11}).fit(X, X[:, 0])
    actual = MLPRegressor(**SHORT).fit(X, X[:, 0]).partial_fit(X, X[:, 0])

    assert parameters(actual).tobytes() == parameters(expected).tobytes()


@pytest.mark.parametrize("before", [{"early_stopping": True}, {"solver": "lbfgs"}], ids=str)
def test_partial_fit_begins_with_a_new_optimiser_where_there_is_none_to_keep(before):
    X = features()
    regressor = MLPRegressor(**SHORT | before).fit(X, X[:, 0])
    network = regressor.network_.copy()
    regressor.set_params(solver="sgd", momentum=0, batch_size=ROWS, alpha=0).partial_fit(X, X[:, 0])

    expected = network.params - 0.01 * network.loss_and_gradient(X, X[:, 0])[1]
    actual = regressor.network_.params

    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)
    assert regressor.validation_scores_ is None


def test_partial_fit_ignores_early_stopping():
    X = features()
    regressor = MLPRegressor(early_stopping=True, validation=(X, X[:, 0]), **SHORT).partial_fit(X, X[:, 0])

    assert regressor.validation_scores_ is None
    assert regressor.t_ == ROWS


def test_partial_fit_needs_all_classes_at_first():
    X = features()
    classifier = MLPClassifier()

    with pytest.raises(ParameterError, match="'classes'"):
        classifier.partial_fit(X, np.arange(ROWS) % 2)
    classifier.partial_fit(X, np.arange(ROWS) % 2, classes=[0, 1, 2])
    assert classifier.predict_proba(X).shape == (ROWS, 3)
    with pytest.raises(ParameterError, match="'classes'"):
        classifier.partial_fit(X, np.arange(ROWS) % 2, classes=[0, 1])
    with pytest.raises(DataError, match="'y'"):
        classifier.partial_fit(X, np.arange(ROWS) % 5)
    with pytest.raises(DataError, match="'y'"):
        MLPClassifier().partial_fit(X, np.arange(ROWS) % 5, classes=[0, 1, 2])


@pytest.mark.parametrize("classes", [[], np.array([]), (), 5, [[0, 1]]], ids=str)
def test_classes_that_are_none_are_refused(classes):
    X = features()
    y = np.arange(ROWS) % 2

    with pytest.raises(ParameterError, match="'classes' must be a list of at least 1 label"):
        MLPClassifier().partial_fit(X, y, classes=classes)
    with pytest.raises(ParameterError, match="'classes' must be a list of at least 1 label"):
        MLPClassifier(**SHORT).fit(X, y).partial_fit(X, y, classes=classes)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_labels_are_learnt_part_by_part(solver):
    X = features()
    y = targets("multilabel", X)
    classifier = MLPClassifier((20,), solver=solver, learning_rate_init=0.05, batch_size=7, random_state=0)
    with pytest.raises(ParameterError, match=re.escape("'classes' must be 0..2, a number for each column of 'y'")):
        classifier.partial_fit(X[:35], y[:35], classes=[0, 1])
    for epoch in range(60):
        part = slice(35 * (epoch % 3), 35 * (epoch % 3 + 1))
        classifier.partial_fit(X[part], y[part], classes=[0, 1, 2])
    first_only = y.copy()
    first_only[:, 1:] = 0
    classifier.partial_fit(X[:1], first_only[:1])  # rows without one of the labels

    assert classifier.classes_.tolist() == [0, 1, 2]
    assert classifier.predict(X).shape == classifier.predict_proba(X).shape == (ROWS, 3)
    assert (classifier.predict(X) == y).mean() > 0.9


def test_partial_fit_knows_no_balance_of_classes_to_come():
    with pytest.raises(ParameterError, match="'class_weight'"):
        MLPClassifier(class_weight="balanced").partial_fit(features(), np.arange(ROWS) % 2, classes=[0, 1])


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_lbfgs_has_no_partial_fit(estimator):
    assert hasattr(estimator(), "partial_fit")
    assert hasattr(estimator(solver=fastbp.SGD()), "partial_fit")
    assert not hasattr(estimator(solver="lbfgs"), "partial_fit")


# --- what scikit-learn has not ------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [*ELEMENTWISE, ("logistic", "gelu"), ["tanh", "relu"]], ids=str)
def test_every_activation_can_be_chosen(activation):
    X = features()
    regressor = MLPRegressor(activation=activation, **SHORT | {"max_iter": 1}).fit(X, X[:, 0])
    names = [activation] * 2 if isinstance(activation, str) else activation

    expected = (*("sigmoid" if name == "logistic" else name for name in names), "identity")
    actual = regressor.network_.activations

    assert actual == expected


def test_each_layer_is_drawn_for_its_activation():
    X = features()
    regressor = MLPRegressor(activation=("logistic", "tanh"), **SHORT | {"max_iter": 1, "learning_rate_init": 1e-30})
    random = np.random.RandomState(3)

    for layer, factor in enumerate([2, 6, 6]):
        weights = regressor.fit(X, X[:, 0]).coefs_[layer]
        limit = np.sqrt(factor / sum(weights.shape))
        expected = random.uniform(-limit, limit, weights.shape)
        random.uniform(size=weights.shape[1])

        np.testing.assert_allclose(weights, expected, rtol=1e-12)


@pytest.mark.parametrize("init", INITIALISERS)
def test_every_initialiser_can_be_chosen(init):
    X = features()
    regressor = MLPRegressor(init=init, **SHORT | {"max_iter": 1, "learning_rate_init": 1e-30}).fit(X, X[:, 0])
    seed = np.random.RandomState(3).randint(2**31 - 1)

    expected = fastbp.Network((6, 7, 5, 1), init=init, seed=seed).params
    actual = regressor.network_.params

    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-20)


OPTIMIZERS = [
    ("adamw", fastbp.AdamW(0.01)),
    ("rmsprop", fastbp.RMSprop(0.01)),
    ("irprop", fastbp.IRprop(0.01)),
    (fastbp.SGD(0.02, momentum=0.5), fastbp.SGD(0.02, momentum=0.5)),
    (fastbp.Adam(0.02, beta1=0.5), fastbp.Adam(0.02, beta1=0.5)),
    (fastbp.LBFGS(history=5), fastbp.LBFGS(history=5)),
    ("levenberg_marquardt", fastbp.LevenbergMarquardt()),
]


@pytest.mark.parametrize(("solver", "optimizer"), OPTIMIZERS, ids=str)
def test_every_optimiser_can_be_chosen(solver, optimizer):
    X = features()
    whole = solver in ("irprop", "levenberg_marquardt") or isinstance(solver, fastbp.LBFGS)
    batch_size = "auto" if whole else 20
    regressor = MLPRegressor(solver=solver, **SHORT | {"batch_size": batch_size}).fit(X, X[:, 0])

    assert regressor.result_.state.settings.optimizer == optimizer
    assert regressor.loss_ < regressor.loss_curve_[0]


def test_partial_fit_goes_on_with_built_in_lbfgs_while_it_remembers_as_many_steps():
    X = features()
    settings = SHORT | {"batch_size": "auto"}
    regressor = MLPRegressor(solver=fastbp.LBFGS(history=4), **settings)
    for _ in range(6):
        regressor.partial_fit(X, X[:, 0])
    whole = MLPRegressor(solver=fastbp.LBFGS(history=4), **settings | {"max_iter": 6, "tol": 0.0}).fit(X, X[:, 0])

    assert parameters(regressor).tobytes() == parameters(whole).tobytes()
    regressor.set_params(solver=fastbp.LBFGS(history=5)).partial_fit(X, X[:, 0])
    assert regressor.result_.loss.size == 1  # the optimiser began anew


@pytest.mark.parametrize(
    ("learning_rate", "solver", "schedule"),
    [
        ("cosine", "adam", fastbp.CosineDecay(epochs=10)),
        (fastbp.ExponentialDecay(0.5), "adam", fastbp.ExponentialDecay(0.5)),
        ("invscaling", "sgd", fastbp.InverseScaling(0.5, ROWS)),
        ("adaptive", "sgd", fastbp.ReduceOnPlateau(0.2, 10, 1e-4, 1e-6 / 0.01, stop=True)),
        ("adaptive", fastbp.SGD(1e-7), fastbp.ReduceOnPlateau(0.2, 10, 1e-4, 1.0, stop=True)),
        ("invscaling", "adam", fastbp.Constant()),
        ("adaptive", "adam", fastbp.Constant()),
    ],
    ids=str,
)
def test_every_schedule_can_be_chosen(learning_rate, solver, schedule):
    X = features()
    regressor = MLPRegressor(learning_rate=learning_rate, solver=solver, **SHORT).fit(X, X[:, 0])

    assert regressor.result_.state.settings.schedule == schedule


def test_power_of_zero_is_a_constant_rate():
    X = features()
    regressor = MLPRegressor(learning_rate="invscaling", solver="sgd", power_t=0, **SHORT).fit(X, X[:, 0])

    assert regressor.result_.state.settings.schedule == fastbp.Constant()


@pytest.mark.parametrize("loss", ["absolute_error", "huber"])
def test_losses_that_outliers_do_not_move(loss):
    X = features(1)
    y = 2 * X[:, 0]
    y[::10] = 50
    settings = {"solver": "lbfgs", "max_iter": 2000, "alpha": 0.0, "random_state": 0}
    robust = MLPRegressor(loss, (), huber_delta=0.1, **settings).fit(X, y)
    plain = MLPRegressor("squared_error", (), **settings).fit(X, y)

    assert abs(robust.predict([[1.0]])[0] - 2) < 0.2 < 2 < abs(plain.predict([[1.0]])[0] - 2)
    assert robust.network_.huber_delta == 0.1
    assert robust.out_activation_ == "identity"


def spreading(rows=1000):
    """One feature, and a target of known mean and deviation."""
    rng = np.random.default_rng(4)
    x = rng.uniform(-1, 1, rows)
    return x[:, None], 2 * x + (0.5 + 0.3 * x) * rng.normal(size=rows), 2 * x, 0.5 + 0.3 * x


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_quantiles_are_columns_and_scored_by_scikit_learn(solver):
    X, y, mean, sigma = spreading()
    settings = {"solver": solver, "hidden_layer_sizes": (), "learning_rate_init": 0.02, "random_state": 0}
    regressor = MLPRegressor("quantile", quantiles=[0.2, 0.5, 0.8], **settings).fit(X, y)
    predicted = regressor.predict(X)

    expected = mean[:, None] + sigma[:, None] * norm.ppf([0.2, 0.5, 0.8])
    assert predicted.shape == (1000, 3)
    assert np.abs(predicted - expected).mean() < 0.06
    scores = [d2_pinball_score(y, predicted[:, k], alpha=q) for k, q in enumerate((0.2, 0.5, 0.8))]
    assert regressor.score(X, y) == pytest.approx(np.mean(scores), rel=1e-14)
    assert regressor.network_.quantiles == (0.2, 0.5, 0.8)
    assert clone(regressor).get_params()["quantiles"] == [0.2, 0.5, 0.8]
    assert MLPRegressor("quantile", quantiles=(0.5,), max_iter=2).fit(X, y).predict(X).shape == (1000,)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("columns", [1, 2])
def test_gaussian_nll_predicts_means_and_deviations(columns, solver):
    X, y, mean, sigma = spreading()
    settings = {"solver": solver, "hidden_layer_sizes": (8,), "activation": "tanh", "random_state": 0}
    regressor = MLPRegressor("gaussian_nll", learning_rate_init=0.02, **settings)
    regressor.fit(X, y if columns == 1 else np.column_stack([y, 3 * y]))
    means, deviations = regressor.predict(X, return_std=True)
    if columns == 2:
        np.testing.assert_allclose(means[:, 1], 3 * mean, atol=0.5)
        means, deviations = means[:, 0], deviations[:, 0]

    assert np.abs(means - mean).mean() < 0.06
    assert np.abs(deviations / sigma - 1).mean() < 0.1
    if columns == 1:
        np.testing.assert_array_equal(regressor.predict(X), means)
        assert regressor.score(X, y) == r2_score(y, means)


def test_deviations_are_for_gaussian_nll_alone():
    X = features()
    regressor = MLPRegressor(**SHORT).fit(X, X[:, 0])

    with pytest.raises(ParameterError, match="'return_std' must be False with the loss 'squared_error', got True"):
        regressor.predict(X, return_std=True)


@pytest.mark.parametrize("loss", ["squared_error", "gaussian_nll", "quantile"])
@pytest.mark.parametrize("solver", ["sgd", "lbfgs"])
def test_missing_targets_have_no_weight(solver, loss):
    X = features()
    y, weights = X[:, :3] + 0.5, np.arange(3 * ROWS).reshape(ROWS, 3) % 2
    settings = {"solver": solver, "shuffle": False, **SHORT}

    expected = MLPRegressor(loss, **settings).fit(X, y, weights)
    actual = MLPRegressor(loss, **settings).fit(X, np.where(weights > 0, y, 1e6), weights)

    agree(parameters(actual), parameters(expected), 1e-12)
    if solver == "sgd":
        y_held = np.where(weights > 0, y, 1e6)
        actual = MLPRegressor(loss, **settings, validation=(X, y_held, weights)).partial_fit(X, y, weights)
        agree(parameters(actual), parameters(MLPRegressor(loss, **settings).partial_fit(X, y, weights)), 0)


def test_early_stopping_watches_the_quantiles():
    X, y, _, _ = spreading(300)
    regressor = MLPRegressor("quantile", early_stopping=True, random_state=0, learning_rate_init=0.01).fit(X, y)

    assert regressor.best_validation_score_ == max(regressor.validation_scores_) > 0.2


def test_other_quantiles_are_another_network():
    X, y, _, _ = spreading(50)
    regressor = MLPRegressor("quantile", warm_start=True, **SHORT).fit(X, y)
    for changed in ({"quantiles": (0.1, 0.4, 0.9)}, {"crossing_penalty": 1.0}):
        with pytest.raises(ParameterError, match=f"'{next(iter(changed))}' must be what the network was made with"):
            clone(regressor).fit(X, y).set_params(**changed).fit(X, y)
    clone(regressor).set_params(loss="huber").fit(X, y).set_params(quantiles=(0.3,)).fit(X, y)  # of no effect


def test_bad_quantiles_are_named():
    X = features()
    with pytest.raises(ParameterError, match="'quantiles'"):
        MLPRegressor("quantile", quantiles=(0.9, 0.1)).fit(X, X[:, 0])
    with pytest.raises(DataError, match="y has 2 columns, the network has 3 outputs"):
        MLPRegressor("quantile").fit(X, X[:, :2])


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("kind", ["binary", "multiclass"])
@pytest.mark.parametrize("balanced", [True, False])
def test_class_weights_are_weights_of_rows(kind, solver, balanced):
    X = features()
    y = np.array(["x", "y", "z"])[targets(kind, X).astype(int)]
    class_weight = "balanced" if balanced else dict(zip(np.unique(y).tolist(), [3.0, 0.5, 2.0], strict=False))
    settings = {"solver": solver, **SHORT}

    expected = MLPClassifier(**settings).fit(X, y, compute_sample_weight(class_weight, y))
    actual = MLPClassifier(class_weight=class_weight, **settings).fit(X, y)

    agree(parameters(actual), parameters(expected), 1e-5 if solver == "lbfgs" else 1e-10)


def test_class_weights_multiply_weights_of_rows(rng):
    X, weights = features(), rng.uniform(0, 2, ROWS)
    y = targets("binary", X)
    class_weight = {False: 2.0, True: 0.5}

    expected = MLPClassifier(**SHORT).fit(X, y, weights * np.where(y, 0.5, 2.0))
    actual = MLPClassifier(class_weight=class_weight, **SHORT).fit(X, y, weights)

    assert parameters(actual).tobytes() == parameters(expected).tobytes()


def test_class_weights_are_for_rows_of_one_class():
    X = features()

    with pytest.raises(ParameterError, match="'class_weight'"):
        MLPClassifier(class_weight="balanced").fit(X, targets("multilabel", X))


def test_dropout_and_clipping_change_the_training():
    X = features()
    runs = [
        MLPRegressor(**setting, **SHORT).fit(X, X[:, 0])
        for setting in ({}, {"dropout": 0.2}, {"dropout": (0.0, 0.5)}, {"clip_norm": 0.01})
    ]

    assert len({parameters(run).tobytes() for run in runs}) == 4
    assert runs[2].result_.state.settings.dropout == (0.0, 0.5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["multiclass", "squared_error"])
def test_validation_of_the_user_stops_the_training(kind, weighted, rng):
    X, held = features(), rng.normal(size=(40, 6))
    weights = rng.uniform(0, 2, 40)
    validation = (held, targets(kind, held), *([weights] if weighted else []))
    settings = SHORT | {"max_iter": 300, "learning_rate_init": 0.05, "n_iter_no_change": 5}
    estimator = KINDS[kind][0](validation=validation, **settings).fit(X, targets(kind, X))
    score = accuracy_score if kind == "multiclass" else r2_score

    expected = score(validation[1], estimator.predict(held), sample_weight=weights if weighted else None)
    actual = estimator.best_validation_score_

    assert estimator.n_iter_ < 300
    assert actual == pytest.approx(expected, rel=1e-9)
    assert actual == max(estimator.validation_scores_)
    assert len(estimator.validation_loss_curve_) == estimator.n_iter_
    assert estimator.t_ == estimator.n_iter_ * ROWS  # nothing was split off


def test_validation_may_have_names_for_classes():
    X = features()
    y = np.where(X[:, 0] > 0, "high", "low")
    classifier = MLPClassifier(validation=(X[:20].tolist(), y[:20].tolist()), **SHORT).fit(X, y)

    assert classifier.best_validation_score_ > 0.5


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_callback_sees_the_network_and_can_stop(estimator):
    X, seen = features(), []

    def callback(state):
        seen.append((state.epoch, state.loss[-1], state.network.predict(X).shape))
        return state.epoch == 6

    fitted = estimator(callback=callback, callback_every=2, **SHORT).fit(X, targets("binary", X))

    assert seen == [(epoch, fitted.loss_curve_[epoch - 1], (ROWS, 1)) for epoch in (2, 4, 6)]
    assert fitted.n_iter_ == 6


@pytest.mark.parametrize("n_threads", [2, 3, 8])
@pytest.mark.parametrize("rows", [1, 2, 7, 1000])
def test_threads_predict_the_same_bits(n_threads, rows, rng):
    X = features()
    classifier = MLPClassifier(**SHORT).fit(X, targets("multiclass", X))
    new = rng.normal(size=(rows, 6))

    expected = classifier.predict_proba(new)
    actual = classifier.set_params(n_threads=n_threads).predict_proba(new)

    assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("n_threads", [2, "auto"])
def test_threads_are_those_of_training_and_prediction(n_threads, solver, monkeypatch):
    X, asked = features(), []
    for name in ("train", "resume"):
        there = getattr(fastbp.sklearn, name)

        def told(*given, there=there, threads, **settings):
            asked.append(threads)
            return there(*given, threads=threads, **settings)

        monkeypatch.setattr(f"fastbp.sklearn.{name}", told)
    for name in ("predict", "loss_and_gradient"):
        method = getattr(fastbp.Network, name)

        def called(self, *given, method=method, threads):
            asked.append(threads)
            return method(self, *given, threads=threads)

        monkeypatch.setattr(fastbp.Network, name, called)
    settings = SHORT | {"solver": solver}
    actual = MLPRegressor(n_threads=n_threads, **settings).fit(X, X[:, 0])
    assert asked
    assert set(asked) == {n_threads}
    predictions = actual.predict(X)
    assert set(asked) == {n_threads}
    monkeypatch.undo()

    expected = MLPRegressor(**settings).fit(X, X[:, 0])
    assert parameters(actual).tobytes() == parameters(expected).tobytes()
    assert predictions.tobytes() == expected.predict(X).tobytes()


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("tqdm", [True, False])
def test_verbose_shows_epochs_and_loss(solver, tqdm, capsys, monkeypatch):
    if tqdm:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    X = features()
    MLPRegressor(verbose=True, solver=solver, **SHORT | {"max_iter": 4}).fit(X, X[:, 0])
    out, err = capsys.readouterr()

    assert out == ""
    assert "loss" in err
    assert re.search(r"4/4|4 of 4", err)


def test_quiet_estimator_prints_nothing(capfd):
    X = features()
    MLPRegressor(**SHORT).fit(X, X[:, 0])

    assert capfd.readouterr() == ("", "")


DIVERGING = {"solver": "sgd", "activation": "identity", "learning_rate_init": 1e200}


@pytest.mark.parametrize("error", [DivergenceError, ValueError])
def test_divergence_leaves_the_network_of_before(error):
    X = features()
    regressor = MLPRegressor(**SHORT | {"activation": "identity"}).fit(X, X[:, 0])
    before = regressor.network_.params.tobytes()
    regressor.set_params(warm_start=True, **DIVERGING)

    for method in (regressor.fit, regressor.partial_fit):
        with pytest.raises(error, match="'learning_rate_init'"):
            method(X, X[:, 0])
    assert regressor.network_.params.tobytes() == before
    assert regressor.n_iter_ == 10


@pytest.mark.parametrize("given", [False, True])
def test_divergence_with_a_validation_leaves_the_best_weights_as_in_scikit_learn(given):
    X = features()
    y = X[:, 0] + np.sin(5 * X[:, 1])
    rate = 0.44 if given else 0.45  # at which an epoch or two end well
    settings = DIVERGING | {"learning_rate_init": rate, "momentum": 0.0, "max_iter": 1000, "n_iter_no_change": 1000}
    ours, theirs = (
        e(**SHORT | settings, early_stopping=True, shuffle=False) for e in (MLPRegressor, THEIRS[MLPRegressor])
    )
    if given:
        ours.set_params(early_stopping=False, validation=(X[:20], y[:20]))
    with pytest.warns(ConvergenceWarning, match=r"ceased to be finite .*'learning_rate_init'.*epoch \d+, the best"):
        ours.fit(X, y)
    with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
        theirs.fit(X, y)

    assert ours.n_iter_ < 1000
    assert np.isfinite(ours.loss_curve_).all()
    assert ours.best_validation_score_ == max(ours.validation_scores_)
    assert np.isfinite(parameters(ours)).all()
    if not given:
        agree(parameters(ours), parameters(theirs))
        assert ours.best_validation_score_ == pytest.approx(theirs.best_validation_score_, rel=1e-6)


def test_divergence_before_any_epoch_ended_well_raises_with_a_validation():
    X = features()

    with pytest.raises(DivergenceError, match="epoch 1"):
        MLPRegressor(**SHORT | DIVERGING, early_stopping=True).fit(X, X[:, 0])


# --- a training kept open from one partial_fit to the next ------------------------------------------------------------

PIECES = [slice(0, 1), slice(1, 2), slice(2, 9), slice(9, 29), slice(29, 30), slice(30, 105), slice(0, 3), slice(3, 4)]


def in_pieces(kind, steps, monkeypatch, weighted=False, **settings):
    """An estimator that learns piece by piece, each of at most a batch in one step or not, but for the first."""
    with monkeypatch.context() as patch:
        if not steps:
            patch.setattr("fastbp.sklearn.UNCHANGING", set())
        X = features()
        y, weights = targets(kind, X), np.linspace(0.5, 2, ROWS)
        estimator = KINDS[kind][0](**KINDS[kind][1], **SHORT | settings)
        classes = {"classes": np.unique(y)} if kind in ("binary", "multiclass") else {}
        classes = {"classes": range(3)} if kind == "multilabel" else classes
        for piece in PIECES:
            given = {"sample_weight": weights[piece]} if weighted else {}
            estimator.partial_fit(X[piece], y[piece], **given, **classes)
        assert (estimator._opened.trainer is not None) == steps
    return estimator


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "settings", [{}, {"solver": "sgd", "clip_norm": 0.5}, {"solver": "rmsprop", "dtype": "float32"}]
)
@pytest.mark.parametrize("kind", KINDS)
def test_step_of_partial_fit_is_an_epoch(kind, settings, weighted, monkeypatch):
    expected, actual = (in_pieces(kind, steps, monkeypatch, weighted, **settings) for steps in (False, True))

    for name in ("loss_curve_", "loss_", "best_loss_", "t_", "n_iter_"):
        assert getattr(actual, name) == getattr(expected, name), name
    state, other = actual.result_.state, expected.result_.state
    assert state.settings == other.settings
    for name, array in {"params": other.params, **other.arrays}.items():
        assert {"params": state.params, **state.arrays}[name].tobytes() == array.tobytes(), name
    assert parameters(actual).tobytes() == parameters(expected).tobytes()
    assert actual.result_.loss.tolist() == actual.loss_curve_
    assert actual.result_.error.tobytes() == expected.result_.error.tobytes()


@pytest.mark.parametrize("look", [pickle.dumps, copy.deepcopy, lambda estimator: estimator.result_])
def test_looking_at_an_estimator_between_steps_changes_nothing(look):
    X = features()
    expected, actual = MLPRegressor(**SHORT), MLPRegressor(**SHORT)
    for row in range(12):
        expected.partial_fit(X[row : row + 1], X[row : row + 1, 0])
        actual.partial_fit(X[row : row + 1], X[row : row + 1, 0])
        if row % 5 == 3:
            look(actual)

    assert parameters(actual).tobytes() == parameters(expected).tobytes()
    assert actual.result_.loss.tobytes() == expected.result_.loss.tobytes()


def test_result_between_steps_stays_as_it_is():
    X = features()
    regressor = MLPRegressor(**SHORT)
    for row in range(4):
        regressor.partial_fit(X[row : row + 1], X[row : row + 1, 0])
    result = regressor.result_
    before = result.network.params.copy()
    for row in range(4):
        regressor.partial_fit(X[row : row + 1], X[row : row + 1, 0])

    assert result.network.params.tobytes() == before.tobytes()
    assert len(result.loss) == 4


def opened(**settings):
    """An estimator whose next `partial_fit` is a step."""
    X = features()
    regressor = MLPRegressor(**SHORT | settings)
    for _ in range(3):
        regressor.partial_fit(X[:2], X[:2, 0])
    assert regressor._opened.trainer is not None
    return regressor, X[:2].copy(), X[:2, 0].copy()


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"shuffle": 1}, ParameterTypeError),
        ({"warm_start": 0}, ParameterTypeError),
        ({"alpha": -1}, ParameterError),
        ({"hidden_layer_sizes": (7, 6)}, ParameterError),
        ({"max_iter": True}, ParameterTypeError),
    ],
    ids=str,
)
def test_changed_parameter_is_checked_between_steps(changed, error):
    regressor, X, y = opened(max_iter=1)

    with pytest.raises(error):
        regressor.set_params(**changed).partial_fit(X, y)


def test_other_rows_for_validation_between_steps_change_nothing():
    expected, X, y = opened(validation=(features(), features()[:, 0]))
    actual, _, _ = opened(validation=(features(), features()[:, 0]))
    expected.partial_fit(X, y)
    actual.set_params(validation=(2 * features(), features()[:, 1])).partial_fit(X, y)

    assert parameters(actual).tobytes() == parameters(expected).tobytes()


def test_list_that_is_written_to_between_steps_is_noticed():
    regressor = MLPRegressor(**SHORT | {"hidden_layer_sizes": (units := [7, 5])})
    X = features()[:2]
    for _ in range(3):
        regressor.partial_fit(X, X[:, 0])
    units[0] = 8

    with pytest.raises(ParameterError, match="hidden_layer_sizes"):
        regressor.partial_fit(X, X[:, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["X", "y"])
def test_bad_row_of_a_step_changes_nothing(where, bad):
    regressor, X, y = opened()
    before, curve = parameters(regressor), [*regressor.loss_curve_]
    {"X": X, "y": y[:, None]}[where][1, 0] = bad

    with pytest.raises(ValueError, match=r"NaN|infinity"):
        regressor.partial_fit(X, y)
    assert parameters(regressor).tobytes() == before.tobytes()
    assert regressor.loss_curve_ == curve == regressor.result_.loss.tolist()


def test_step_that_diverges_says_in_which_epoch():
    regressor, X, y = opened(solver="sgd", learning_rate_init=0.1, momentum=0)
    before = parameters(regressor)

    with pytest.raises(DivergenceError, match="epoch 4") as caught:
        regressor.partial_fit(X * 1e200, y)
    assert caught.value.epoch == 4
    assert len(caught.value.result.loss) == 3
    assert parameters(regressor).tobytes() == before.tobytes()


def test_weights_written_between_steps_count():
    expected, X, y = opened()
    actual, _, _ = opened()
    for estimator in (expected, actual):
        estimator.coefs_ = [0.5 * weights for weights in estimator.coefs_]
    assert expected.result_ is not None  # from here on it goes on by `resume`
    expected.partial_fit(X, y)
    actual.partial_fit(X, y)

    assert parameters(actual).tobytes() == parameters(expected).tobytes()


# --- in the company of scikit-learn and joblib ------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("kind", KINDS)
def test_pickled_estimator_predicts_and_goes_on(kind, solver):
    X = features()
    y = targets(kind, X)
    estimator = KINDS[kind][0](solver=solver, **KINDS[kind][1], **SHORT).fit(X, y)
    twin = pickle.loads(pickle.dumps(estimator))

    assert twin.predict(X).tobytes() == estimator.predict(X).tobytes()
    assert np.shares_memory(twin.coefs_[0], twin.network_.params)
    if solver == "adam":
        expected = parameters(estimator.partial_fit(X, y))
        actual = parameters(twin.partial_fit(X, y))

        assert actual.tobytes() == expected.tobytes()


def test_clone_is_unfitted_and_equal():
    X = features()
    regressor = MLPRegressor(solver=fastbp.SGD(0.1), activation=("tanh", "relu"), **SHORT).fit(X, X[:, 0])
    twin = clone(regressor)

    assert not hasattr(twin, "network_")
    assert repr(twin) == repr(regressor)


def search():
    pipeline = make_pipeline(StandardScaler(), MLPClassifier(max_iter=15, batch_size=30, random_state=0))
    grid = {"mlpclassifier__alpha": [1e-4, 10.0], "mlpclassifier__hidden_layer_sizes": [(4,), (8, 4)]}
    return GridSearchCV(pipeline, grid, cv=2)


def found(result):
    return result.cv_results_["mean_test_score"].tolist(), parameters(result.best_estimator_[-1]).tobytes()


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_search_finds_the_same_in_parallel(backend):
    X, y = load_iris(return_X_y=True)
    expected = found(search().fit(X, y))
    try:
        with joblib.parallel_config(backend, n_jobs=2):
            actual = found(search().fit(X, y))
            scores = cross_val_score(MLPClassifier(max_iter=5, random_state=0), X, y, cv=3)
    finally:
        joblib.externals.loky.get_reusable_executor().shutdown(wait=True)

    assert actual == expected
    assert scores.tolist() == cross_val_score(MLPClassifier(max_iter=5, random_state=0), X, y, cv=3).tolist()


def test_search_of_the_readme_finds_the_same_on_a_dask_cluster(monkeypatch):
    distributed = pytest.importorskip("dask.distributed")
    X, y = load_iris(return_X_y=True)
    expected = found(search().fit(X, y))
    blocks = re.findall(r"^```py\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (lines,) = [block for block in blocks if "joblib" in block]
    names = {"dask": importlib.import_module("dask"), "joblib": joblib, "search": search(), "X": X, "y": y}
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        monkeypatch.setattr(distributed, "Client", lambda: client)
        exec(lines, names)
    actual = found(names["search"])

    assert actual == expected
