"""Ensembles and the search are what their estimators give one by one, and keep the rules of scikit-learn."""

import pickle
import re

import numpy as np
import pytest
from scipy import sparse
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, FitFailedWarning, NotFittedError
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, ShuffleSplit
from sklearn.neural_network import MLPClassifier as TheirMLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastbp
import fastbp.sklearn
from fastbp.checks import DivergenceError, ParameterError, ParameterTypeError
from fastbp.ensembles import draw
from fastbp.groups import Workshop
from fastbp.sklearn import (
    MLPClassifier,
    MLPEnsembleClassifier,
    MLPEnsembleRegressor,
    MLPGridSearchCV,
    MLPRegressor,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # most tests end early

N = 70
_random = np.random.default_rng(0)
X = _random.normal(size=(N, 4))
SCORE = X[:, 0] + 0.5 * X[:, 1] * X[:, 2]
CLASSES = np.array(["a", "b", "c"])[np.digitize(SCORE, [-0.5, 0.5])]
WEIGHTS = _random.random(N)
ENSEMBLES = {MLPEnsembleClassifier: MLPClassifier, MLPEnsembleRegressor: MLPRegressor}
TARGETS = {
    "classes": (MLPEnsembleClassifier, CLASSES),
    "two classes": (MLPEnsembleClassifier, SCORE > 0),
    "labels": (MLPEnsembleClassifier, np.column_stack([SCORE > 0, X[:, 3] > 0]).astype(int)),
    "numbers": (MLPEnsembleRegressor, SCORE),
    "outputs": (MLPEnsembleRegressor, np.column_stack([SCORE, X[:, 3]])),
}
SHORT = {"hidden_layer_sizes": (5,), "batch_size": 16, "max_iter": 12, "learning_rate_init": 0.02, "random_state": 3}


@pytest.fixture
def trained_together(monkeypatch):
    """How many networks each call trains together."""
    sizes = []
    run = Workshop.run
    monkeypatch.setattr(Workshop, "run", lambda self: run(self) or sizes.append(len(self.outcomes)))
    return sizes


# --- ensembles --------------------------------------------------------------------------------------------------------

MEMBERS = [
    {},
    {"early_stopping": True, "n_iter_no_change": 1, "max_iter": 40},
    {"solver": "sgd", "learning_rate": "adaptive", "tol": 0.05, "n_iter_no_change": 1, "max_iter": 60},
    {"solver": "lbfgs"},
    {"bootstrap": False},
    {"bootstrap": False, "validation": (X[:20], SCORE[:20], WEIGHTS[:20]), "dropout": 0.2},
]


@pytest.mark.parametrize("sample_weight", [None, WEIGHTS], ids=["", "weighted"])
@pytest.mark.parametrize("settings", MEMBERS, ids=lambda settings: " ".join(settings) or "default")
def test_member_is_what_its_estimator_makes_of_the_rows_drawn_for_it(settings, sample_weight, trained_together):
    told = SHORT | settings
    ensemble = MLPEnsembleRegressor(n_estimators=9, **told).fit(X, SCORE, sample_weight)
    seeds = np.random.RandomState(3)
    for member in ensemble.estimators_:
        seed, drawn = seeds.randint(2**31 - 1, size=2)
        weights = draw(drawn, N, sample_weight) if ensemble.bootstrap else sample_weight
        alone = MLPRegressor(**{k: v for k, v in told.items() if k != "bootstrap"} | {"random_state": seed})
        alone.fit(X, SCORE, weights)

        assert type(member) is MLPRegressor
        assert (member.n_iter_, member.t_) == (alone.n_iter_, alone.t_)
        np.testing.assert_allclose(member.network_.params, alone.network_.params, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(member.loss_curve_, alone.loss_curve_, rtol=1e-10)
        if alone.validation_scores_ is not None:
            np.testing.assert_allclose(member.validation_scores_, alone.validation_scores_, rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(member.validation_loss_curve_, alone.validation_loss_curve_, rtol=1e-9)
            assert member.best_validation_score_ == pytest.approx(alone.best_validation_score_, abs=1e-9)
    assert trained_together == [9]


@pytest.mark.parametrize("kind", TARGETS)
def test_ensemble_says_the_mean_of_its_members(kind):
    ensemble, y = TARGETS[kind]
    ensemble = ensemble(n_estimators=3, **SHORT).fit(X, y)
    name = "predict_proba" if isinstance(ensemble, MLPEnsembleClassifier) else "predict"
    expected = np.mean([getattr(member, name)(X) for member in ensemble.estimators_], axis=0)

    np.testing.assert_allclose(getattr(ensemble, name)(X), expected, rtol=1e-12)
    assert ensemble.networks_ == [member.network_ for member in ensemble.estimators_]
    if kind == "labels":
        np.testing.assert_array_equal(ensemble.predict(X), expected > 0.5)
    elif name == "predict_proba":
        np.testing.assert_array_equal(ensemble.predict(X), ensemble.classes_[expected.argmax(axis=1)])
        np.testing.assert_allclose(ensemble.predict_log_proba(X), np.log(expected))
    else:
        mean, std = ensemble.predict(X, return_std=True)
        np.testing.assert_array_equal(mean, ensemble.predict(X))
        np.testing.assert_allclose(std, np.std([member.predict(X) for member in ensemble.estimators_], axis=0))
        assert std.shape == y.shape


@pytest.mark.parametrize("kind", TARGETS)
def test_each_row_is_scored_by_the_members_that_have_not_drawn_it(kind):
    ensemble, y = TARGETS[kind]
    ensemble = ensemble(n_estimators=12, oob_score=True, **SHORT).fit(X, y)
    classifies = isinstance(ensemble, MLPEnsembleClassifier)
    seeds = np.random.RandomState(3)
    expected = []
    for member in ensemble.estimators_:
        out = draw(seeds.randint(2**31 - 1, size=2)[1], N, None) == 0
        said = member.predict_proba(X) if classifies else member.predict(X)
        expected.append(np.where(out if said.ndim == 1 else out[:, None], said, np.nan))
    expected = np.nanmean(expected, axis=0)
    if classifies:
        np.testing.assert_allclose(ensemble.oob_decision_function_, expected, rtol=1e-12)
        said = expected > 0.5 if kind == "labels" else ensemble.classes_[expected.argmax(axis=1)]
        assert ensemble.oob_score_ == pytest.approx(accuracy_score(y, said))
    else:
        np.testing.assert_allclose(ensemble.oob_prediction_, expected, rtol=1e-12)
        assert ensemble.oob_score_ == pytest.approx(r2_score(y, expected))


def test_rows_that_all_members_have_drawn_are_left_out_of_the_score():
    ensemble = MLPEnsembleRegressor(n_estimators=1, oob_score=True, **SHORT)
    drawn = draw(np.random.RandomState(3).randint(2**31 - 1, size=2)[1], N, None)
    with pytest.warns(UserWarning, match=f"{np.count_nonzero(drawn)} of {N} rows were drawn by all members"):
        ensemble.fit(X, SCORE)

    np.testing.assert_array_equal(np.isnan(ensemble.oob_prediction_), drawn > 0)
    assert ensemble.oob_score_ == pytest.approx(r2_score(SCORE[drawn == 0], ensemble.oob_prediction_[drawn == 0]))


def test_rows_are_drawn_in_proportion_to_their_weights():
    weights = np.array([0.0, 1.0, 3.0, 4.0])
    counts = np.sum([draw(seed, 4, weights) for seed in range(2000)], axis=0)

    assert counts.sum() == 8000
    np.testing.assert_allclose(counts / 1000, weights, atol=0.15)
    np.testing.assert_array_equal(draw(7, 4, None), draw(7, 4, np.ones(4)))


def parameters(ensemble):
    return [network.params.tobytes() for network in ensemble.networks_]


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_bits_depend_on_the_seed_alone(ensemble):
    y = CLASSES if ensemble is MLPEnsembleClassifier else SCORE
    first, *others = (
        ensemble(n_estimators=size, **SHORT, n_threads=threads).fit(X, y)
        for size, threads in [(11, 1), (11, 3), (3, "auto")]
    )

    for other in others:
        assert parameters(other) == parameters(first)[: other.n_estimators]
    assert len({*parameters(first)}) == 11
    assert parameters(clone(first).set_params(random_state=4).fit(X, y)) != parameters(first)


def test_ensemble_is_pickled_and_cloned():
    ensemble = MLPEnsembleClassifier(n_estimators=2, **SHORT).fit(X, CLASSES)
    travelled = pickle.loads(pickle.dumps(ensemble))

    np.testing.assert_array_equal(travelled.predict_proba(X), ensemble.predict_proba(X))
    assert clone(ensemble).get_params() == ensemble.get_params()
    assert not hasattr(clone(ensemble), "estimators_")
    assert ensemble.get_params().keys() - MLPClassifier().get_params().keys() == {
        "n_estimators",
        "bootstrap",
        "oob_score",
    }


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"n_estimators": 0}, ParameterError, "'n_estimators'"),
        ({"n_estimators": 2.5}, ParameterTypeError, "'n_estimators'"),
        ({"bootstrap": 1}, ParameterTypeError, "'bootstrap'"),
        ({"oob_score": "yes"}, ParameterTypeError, "'oob_score'"),
        ({"bootstrap": False, "oob_score": True}, ParameterError, "'oob_score' must be False without 'bootstrap'"),
        ({"warm_start": True}, ParameterError, "'warm_start' must be False"),
        ({"n_threads": 0}, ParameterError, "'n_threads'"),
        ({"alpha": -1.0}, ParameterError, "'alpha'"),
        ({"solver": "irprop", "batch_size": 5}, ParameterError, "'batch_size'"),
        (
            {"solver": "sgd", "learning_rate_init": 1e9, "activation": "identity"},
            DivergenceError,
            "'learning_rate_init'",
        ),
    ],
    ids=str,
)
def test_what_an_ensemble_cannot_do_is_refused(settings, error, message):
    ensemble = MLPEnsembleRegressor(**SHORT | {"n_estimators": 2} | settings)

    with pytest.raises(error, match=re.escape(message)):
        ensemble.fit(X, SCORE)
    assert not hasattr(ensemble, "estimators_")


def test_unfitted_ensemble_has_no_results():
    for ensemble in ENSEMBLES:
        with pytest.raises(NotFittedError):
            ensemble().predict(X)
        assert not hasattr(ensemble(), "partial_fit")
        assert not hasattr(ensemble(), "coefs_")


def test_members_that_did_not_converge_are_one_warning():
    with pytest.warns(ConvergenceWarning) as caught:
        MLPEnsembleRegressor(n_estimators=3, **SHORT | {"max_iter": 2}).fit(X, SCORE)

    assert [str(warning.message) for warning in caught] == [
        "3 of 3 members stopped at 'max_iter' (2), before they converged"
    ]
    with pytest.warns(ConvergenceWarning) as caught:
        MLPEnsembleRegressor(n_estimators=3, **SHORT | {"solver": "lbfgs", "max_fun": 2}).fit(X, SCORE)

    assert [str(warning.message) for warning in caught] == [
        f"3 of 3 members stopped at 'max_iter' ({SHORT['max_iter']}) or 'max_fun' (2), before they converged"
    ]


def test_verbose_ensemble_counts_networks(capsys):
    MLPEnsembleRegressor(n_estimators=3, verbose=True, **SHORT).fit(X, SCORE)

    assert "3/3" in capsys.readouterr().err


# --- search -----------------------------------------------------------------------------------------------------------

GRID = [
    {"learning_rate_init": [0.02, 0.001], "alpha": [1e-4, 0.1], "dropout": [0.0, 0.2], "random_state": [0, 1]},
    {"hidden_layer_sizes": [(), (4, 3)], "early_stopping": [True, False], "validation_fraction": [0.2]},
]
ONE_BY_ONE = [{"alpha": [0.1, 1.0]}, {"callback": [abs], "callback_every": [100]}]
OF_LBFGS = {"solver": ["lbfgs"], "alpha": [0.1, 1.0], "max_iter": [3, 30]}


def search_both(estimator, grid, y, told, **params):
    return [search(estimator, grid, **told).fit(X, y, **params) for search in (MLPGridSearchCV, GridSearchCV)]


def assert_same(actual, expected):
    assert actual.cv_results_.keys() == expected.cv_results_.keys()
    for name, figures in expected.cv_results_.items():
        if name.startswith(("split", "mean_t", "std_t", "rank")):
            np.testing.assert_allclose(actual.cv_results_[name], figures, rtol=1e-9, atol=1e-12, err_msg=name)
    assert actual.cv_results_["params"] == expected.cv_results_["params"]
    for name in ("best_index_", "best_params_", "n_splits_", "multimetric_"):
        assert getattr(actual, name, None) == getattr(expected, name, None)
    if hasattr(expected, "best_score_"):
        assert actual.best_score_ == pytest.approx(expected.best_score_, rel=1e-9)
    if hasattr(expected, "best_estimator_"):
        assert type(actual.best_estimator_) is type(expected.best_estimator_)
        assert actual.best_estimator_.get_params() == expected.best_estimator_.get_params()
        assert actual.best_estimator_.network_.params.tobytes() == expected.best_estimator_.network_.params.tobytes()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("classes", {}),
        ("classes", {"scoring": ["accuracy", "neg_log_loss"], "refit": "neg_log_loss", "return_train_score": True}),
        ("two classes", {"scoring": "roc_auc", "cv": KFold(3, shuffle=True, random_state=0)}),
        ("labels", {"cv": 3, "refit": False}),
        ("numbers", {"cv": KFold(3)}),
        ("outputs", {"scoring": "neg_mean_absolute_error", "cv": 2, "refit": lambda results: 3}),
    ],
)
def test_search_finds_what_the_search_of_scikit_learn_finds(kind, told, trained_together):
    ensemble, y = TARGETS[kind]
    settings = SHORT | {"max_iter": 8, "dtype": "float64"}
    actual, expected = search_both(ENSEMBLES[ensemble](**settings), GRID, y, told)

    assert_same(actual, expected)
    assert trained_together == [20 * actual.n_splits_]
    if "best_estimator_" in vars(actual):
        np.testing.assert_array_equal(actual.predict(X), expected.predict(X))
        assert actual.score(X, y) == expected.score(X, y)


def test_weights_and_groups_are_split_as_in_scikit_learn():
    told = {"cv": GroupKFold(3)}
    settings = SHORT | {"class_weight": "balanced"}
    params = {"sample_weight": WEIGHTS, "groups": np.arange(N) // 5}

    assert_same(*search_both(MLPClassifier(**settings), {"alpha": [0.0, 1.0]}, CLASSES, told, **params))


def test_candidates_that_are_not_for_lanes_are_fitted_one_by_one(trained_together):
    assert_same(*search_both(MLPRegressor(**SHORT), ONE_BY_ONE, SCORE, {"cv": 2}))
    assert trained_together == [4]


def test_candidates_with_lbfgs_are_trained_together(trained_together):
    assert_same(*search_both(MLPClassifier(**SHORT), OF_LBFGS, CLASSES, {"cv": 2}, sample_weight=WEIGHTS))
    assert trained_together == [8]


def test_fold_that_lacks_a_class_is_fitted_by_itself(trained_together):
    order = np.argsort(CLASSES)
    folds = [(order[: 2 * N // 3], order[2 * N // 3 :]), (order[::2], order[1::2])]
    assert len({*CLASSES[folds[0][0]]}) == 2
    assert_same(*search_both(MLPClassifier(**SHORT), {"alpha": [0.0, 1.0]}, CLASSES, {"cv": folds}))
    assert trained_together == [2]


def test_candidate_that_fails_is_scored_as_in_scikit_learn():
    grid = {"learning_rate_init": [0.01, 1e9, -1.0]}
    estimator = MLPRegressor(solver="sgd", activation="identity", **SHORT | {"learning_rate_init": 0.1})
    results = []
    for search in (MLPGridSearchCV, GridSearchCV):
        with pytest.warns(FitFailedWarning, match="4 fits failed out of a total of 6"):
            results.append(search(estimator, grid, cv=2, error_score=-7.0).fit(X, SCORE))
        with pytest.raises(DivergenceError):
            search(estimator, {"learning_rate_init": [1e9]}, cv=2, error_score="raise").fit(X, SCORE)
    assert_same(*results)
    assert results[0].cv_results_["mean_test_score"][1:].tolist() == [-7.0, -7.0]


def test_random_splits_are_the_same_for_all_candidates(trained_together):
    search = MLPGridSearchCV(MLPRegressor(**SHORT), {"alpha": [0.0, 0.0]}, cv=ShuffleSplit(3)).fit(X, SCORE)

    assert search.cv_results_["mean_test_score"][0] == search.cv_results_["mean_test_score"][1]
    assert trained_together == [6]


def test_data_may_be_sparse_or_lists_or_have_names():
    pandas = pytest.importorskip("pandas")
    search = MLPGridSearchCV(MLPClassifier(**SHORT), {"alpha": [0.0, 1.0]}, cv=2)
    expected = search.fit(X, CLASSES).cv_results_["mean_test_score"]
    frame = pandas.DataFrame(X, columns=[*"abcd"])
    for data in (sparse.csr_matrix(X), X.tolist(), frame):
        np.testing.assert_array_equal(clone(search).fit(data, list(CLASSES)).cv_results_["mean_test_score"], expected)
    assert [*clone(search).fit(frame, CLASSES).feature_names_in_] == [*"abcd"]


def test_search_takes_metadata_as_it_is_routed():
    with config_context(enable_metadata_routing=True):
        estimator = MLPRegressor(**SHORT).set_fit_request(sample_weight=True).set_score_request(sample_weight=False)
        assert_same(*search_both(estimator, {"alpha": [0.0, 1.0]}, SCORE, {"cv": 2}, sample_weight=WEIGHTS))


def test_search_is_pickled_and_changes_nothing_of_its_own():
    estimator = MLPRegressor(**SHORT)
    search = MLPGridSearchCV(estimator, {"alpha": [0.0, 1.0]}, cv=2).fit(X, SCORE)
    travelled = pickle.loads(pickle.dumps(search))

    np.testing.assert_array_equal(travelled.predict(X), search.predict(X))
    assert search.estimator is estimator
    assert not hasattr(estimator, "network_")
    assert (search.cv_results_["mean_fit_time"] > 0).all()
    assert search.best_estimator_.result_.stopped


@pytest.mark.parametrize(
    "estimator", [TheirMLPClassifier(), make_pipeline(StandardScaler(), MLPClassifier()), MLPEnsembleClassifier(), None]
)
def test_search_over_another_estimator_is_refused(estimator):
    with pytest.raises(ParameterTypeError, match="'estimator' must be an MLPClassifier or MLPRegressor"):
        MLPGridSearchCV(estimator, {}).fit(X, CLASSES)


def test_bad_search_is_refused():
    with pytest.raises(ParameterError, match="'n_threads'"):
        MLPGridSearchCV(MLPClassifier(), {}, n_threads=0).fit(X, CLASSES)
    with pytest.raises(ValueError, match="Invalid parameter 'alhpa'"):
        MLPGridSearchCV(MLPClassifier(), {"alhpa": [1.0]}).fit(X, CLASSES)
    with pytest.raises(ValueError, match="scoring"):
        MLPGridSearchCV(MLPClassifier(), {}, scoring="speed").fit(X, CLASSES)


def test_names_are_in_the_room_of_the_estimators():
    assert {"MLPEnsembleClassifier", "MLPEnsembleRegressor", "MLPGridSearchCV"} <= {*dir(fastbp.sklearn)}
    with pytest.raises(AttributeError, match="'MLPEnsemble'"):
        fastbp.sklearn.MLPEnsemble  # noqa: B018


# --- scikit-learn's own checks ----------------------------------------------------------------------------------------


def expected_failures(estimator):
    if not getattr(estimator, "bootstrap", False):
        return {}
    return dict.fromkeys(
        ("check_sample_weight_equivalence_on_dense_data", "check_sample_weight_equivalence_on_sparse_data"),
        "rows are drawn at random: equal in distribution alone",
    )


FEW = {"max_iter": 60, "n_estimators": 3, "dtype": "float64"}  # float32 would be compiled for these alone
RULES = parametrize_with_checks(
    [
        *[ensemble(**FEW) for ensemble in ENSEMBLES],
        *[ensemble(bootstrap=False, **FEW) for ensemble in ENSEMBLES],
        MLPGridSearchCV(MLPClassifier(max_iter=60, random_state=0, dtype="float64"), {"alpha": [1e-4, 1.0]}, cv=2),
        MLPGridSearchCV(MLPRegressor(max_iter=60, random_state=0, dtype="float64"), {"alpha": [1e-4, 1.0]}, cv=2),
    ],
    expected_failed_checks=expected_failures,
)


# A search warns of fits and scores that fail, where the checks want them to, and of each `y` that is a column.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning", "ignore:One or more of the test scores")
@pytest.mark.filterwarnings("ignore:Scoring failed", "ignore:invalid value encountered in cast")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
# A list, because of the generator that older versions of scikit-learn hand over pytest warns.
@pytest.mark.parametrize(RULES.args[0], list(RULES.args[1]), **RULES.kwargs)
def test_estimator_keeps_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


@pytest.mark.parametrize("loss", ["quantile", "gaussian_nll"])
def test_ensemble_of_losses_with_outputs_of_their_own_says_what_its_members_say(loss, rng):
    X, y = rng.normal(size=(60, 2)), rng.normal(size=60)
    given = {"hidden_layer_sizes": (4,), "n_estimators": 12, "max_iter": 5, "oob_score": True, "random_state": 0}
    ensemble = MLPEnsembleRegressor(loss, **given).fit(X, y)
    members = np.stack([network.predict(X) for network in ensemble.networks_])

    assert ensemble.oob_score_ < 1
    assert ensemble.score(X, y) < 1
    if loss == "quantile":
        np.testing.assert_allclose(ensemble.predict(X), members.mean(axis=0))
    else:
        mean, std = ensemble.predict(X, return_std=True)
        expected = np.exp(members[..., 1]).mean(axis=0) + members[..., 0].var(axis=0)
        np.testing.assert_allclose(mean, members[..., 0].mean(axis=0))
        np.testing.assert_allclose(std**2, expected)
