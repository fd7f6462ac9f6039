"""`train` does what its docstring says: the notebook, the same bits however it is run, Ctrl-C, bad arguments."""

import dataclasses
import gc
import inspect
import itertools
import json
import os
import pickle
import re
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import (
    NOTEBOOK_LOSSES,
    NOTEBOOK_PREDICTIONS,
    NOTEBOOK_WEIGHTS,
    assert_once_at_most,
    forged,
    output_of,
    python,
    ratio_of_seconds,
)
from scipy.special import huber, xlogy
from scipy.stats import norm
from sklearn.linear_model import Ridge
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils.class_weight import compute_sample_weight

import fastbp
from fastbp import checks, data, trainer, workspace
from fastbp.checks import DataError, DivergenceError, ParameterError, ParameterTypeError, ResourceError
from fastbp.choices import (
    BACKENDS,
    CLASSIFYING,
    LBFGS,
    LOSSES,
    OPTIMIZERS,
    REDUCTIONS,
    SCHEDULES,
    SECOND_ORDER,
    SGD,
    Adam,
    AdamW,
    Constant,
    CosineDecay,
    ExponentialDecay,
    InverseScaling,
    IRprop,
    LevenbergMarquardt,
    ReduceOnPlateau,
    RMSprop,
)
from fastbp.workspace import FACTOR, STALE, STALE_RATE

train, resume, Network = fastbp.train, fastbp.resume, fastbp.Network
MULTI_BLOCK = 150  # rows of a batch that takes several blocks in either precision

XOR_X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], float)
XOR_Y = np.array([[0], [1], [1], [0]], float)

# The notebook's settings and what it prints.
NOTEBOOK = {
    "hidden": 2,
    "activation": "sigmoid",
    "output": "sigmoid",
    "bias": False,
    "init": "uniform",
    "optimizer": "sgd",
    "learning_rate": 0.5,
    "reduction": "sum",
    "batch_size": None,
    "epochs": 10_000,
    "seed": 42,
}


def task(loss, rows=37, inputs=3):
    """Random data that the loss takes."""
    rng = np.random.default_rng(5)
    X = rng.normal(size=(rows, inputs))
    if loss == "cross_entropy":
        return X, rng.integers(0, 3, rows)
    y = X[:, :2] * [1, -2] + 0.1 * rng.normal(size=(rows, 2))
    if loss == "poisson":
        return X, rng.poisson(np.exp(y / 2))
    if loss == "quantile":
        return X, y[:, :1]
    return X, (y > 0) if loss == "binary_cross_entropy" else y


OUTPUTS = {"cross_entropy": 3, "quantile": 3, "gaussian_nll": 4}  # for data of `task`, else 2
LEVELS = np.array([0.1, 0.5, 0.9])


def pinball(p, y):
    return np.maximum(LEVELS * (y - p), (LEVELS - 1) * (y - p))


def predictions(loss, p):
    """What is predicted of the targets, without the log variances."""
    return p[:, : p.shape[1] // 2] if loss == "gaussian_nll" else p


def bits(result):
    """All that a run computes, as bytes."""
    return result.network.params.tobytes() + result.loss.tobytes() + result.error.tobytes()


def printed(code, **variables):
    """The JSON that code prints in a new process."""
    return json.loads(output_of("-c", code, **variables))


# --- the notebook -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=BACKENDS)
def notebook(request):
    return train(XOR_X, XOR_Y, **NOTEBOOK, backend=request.param)


def test_notebook_losses_are_reproduced(notebook):
    expected = list(NOTEBOOK_LOSSES.values())
    actual = notebook.error[999::1000]

    np.testing.assert_allclose(actual, expected, rtol=1e-13)


def test_notebook_weights_are_reproduced_to_all_digits(notebook):
    expected = NOTEBOOK_WEIGHTS
    actual = notebook.network.params.round(8).tolist()

    assert actual == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_notebook_predictions_are_reproduced_to_all_digits(backend):
    # The notebook prints what it predicted before its last update.
    result = train(XOR_X, XOR_Y, **NOTEBOOK | {"epochs": 9_999}, backend=backend)

    expected = NOTEBOOK_PREDICTIONS
    actual = result.network.predict(XOR_X).ravel().round(8).tolist()

    assert actual == expected


def test_back_ends_agree_after_the_notebook():
    expected = train(XOR_X, XOR_Y, **NOTEBOOK, backend="numpy")
    actual = train(XOR_X, XOR_Y, **NOTEBOOK)

    np.testing.assert_allclose(actual.network.params, expected.network.params, rtol=1e-12)
    np.testing.assert_allclose(actual.loss, expected.loss, rtol=1e-12)
    np.testing.assert_allclose(actual.error, expected.error, rtol=1e-12)


# --- back ends agree ----------------------------------------------------------------------------------------------

AGREEING = [
    {"batch_size": 10},
    {"batch_size": 10, "shuffle": False},
    {"batch_size": None},
    {"batch_size": 36},
    {"batch_size": 1},
    {"batch_size": 10, "reduction": "sum", "learning_rate": 0.01},
    {"batch_size": 10, "optimizer": SGD(momentum=0.9), "learning_rate": 0.01},
    {"batch_size": 10, "optimizer": SGD(momentum=0.9, nesterov=True), "learning_rate": 0.01},
    {"batch_size": 10, "optimizer": "adam", "learning_rate": 0.01},
    {"batch_size": 10, "hidden": (), "bias": False},
    {"rows": 310, "batch_size": MULTI_BLOCK},
    {"rows": 310, "batch_size": MULTI_BLOCK, "shuffle": False},
    {"rows": 310, "batch_size": None},
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("settings", AGREEING, ids=str)
def test_back_ends_agree(settings, loss):
    settings = {"hidden": (9, 4), "activation": "tanh", "optimizer": "sgd", "learning_rate": 0.1} | settings
    X, y = task(loss, settings.pop("rows", 37))
    settings |= {"loss": loss, "epochs": 5, "seed": 3}

    expected = train(X, y, **settings, backend="numpy")
    actual = train(X, y, **settings)

    np.testing.assert_allclose(actual.loss, expected.loss, rtol=1e-12)
    np.testing.assert_allclose(actual.error, expected.error, rtol=1e-12)
    np.testing.assert_allclose(actual.network.params, expected.network.params, rtol=1e-9, atol=1e-12)


# --- the same bits ------------------------------------------------------------------------------------------------

REPEATED = {"hidden": 9, "epochs": 30, "batch_size": 5, "seed": 11}


def test_same_seed_gives_the_same_bits():
    expected = bits(train(*task("squared_error"), **REPEATED))
    actual = bits(train(*task("squared_error"), **REPEATED))

    assert actual == expected


@pytest.mark.parametrize("changed", [{"init": "zeros", "hidden": ()}, {"batch_size": None}], ids=["order", "weights"])
def test_seed_draws_the_order_and_the_weights(changed):
    first, second = (
        bits(train(*task("squared_error"), **REPEATED | changed | {"seed": seed}, dtype="float64")) for seed in (11, 12)
    )

    assert first != second


@pytest.mark.parametrize("optimizer", [name for name, kind in OPTIMIZERS.items() if kind.code not in SECOND_ORDER])
@pytest.mark.parametrize("weighted", [False, True])
def test_training_never_shows_that_another_one_was_prepared_alike(optimizer, weighted, rng):
    """Small ones leave what they prepared to the next: other rows, weights of rows, seed and network."""
    settings = {"hidden": 3, "optimizer": optimizer, "batch_size": None, "epochs": 4, "learning_rate": 0.01}
    tasks = [(rng.normal(size=(5, 2)), rng.normal(size=5), rng.uniform(0.5, 2, 5) if weighted else None) for _ in "abc"]
    expected = []
    for seed, (X, y, weights) in enumerate(tasks):
        trainer._idle.clear()
        expected.append(train(X, y, sample_weight=weights, seed=seed, **settings))
    assert len(trainer._idle) == 1
    actual = [train(X, y, sample_weight=w, seed=seed, **settings) for seed, (X, y, w) in enumerate(tasks)]
    assert len(trainer._idle) == 1

    for one, other in zip(actual, expected, strict=True):
        assert one.network.params.tobytes() == other.network.params.tobytes()
        assert one.loss.tobytes() == other.loss.tobytes()
        for name, array in other.state.arrays.items():
            assert one.state.arrays[name].tobytes() == array.tobytes(), name
        assert one.state.params.tobytes() == other.state.params.tobytes()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("hidden", "batch_size"), [(3, 4), (3, 1), (17, 1), ((17, 9), 3)])
def test_short_training_of_several_batches_is_not_that_of_other_rows(hidden, batch_size, weighted, rng):
    """Each batch has a panel of its own, or rows."""
    for _ in range(3):
        X, y, weights = rng.normal(size=(7, 5)), rng.normal(size=(7, 2)), rng.uniform(0.5, 2, 7) if weighted else None
        settings = {"hidden": hidden, "batch_size": batch_size, "shuffle": False, "epochs": 3, "seed": 0}
        expected = train(X, y, sample_weight=weights, backend="numpy", **settings)
        actual = train(X, y, sample_weight=weights, **settings)

        np.testing.assert_allclose(actual.network.params, expected.network.params, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"class_weight": {0: 2.0}},
        {"backend": "numpy"},
        {"callback": lambda state: None},
        {"validation": 0.5},
        {"epochs": 5000},
    ],
    ids="-".join,
)
def test_training_that_is_unlike_others_leaves_nothing(settings):
    trainer._idle.clear()
    X, y = XOR_X, XOR_Y
    train(X, y, hidden=2, loss="binary_cross_entropy", batch_size=None, **{"epochs": 2} | settings)

    assert not trainer._idle


def test_weights_of_classes_do_not_take_what_rows_with_weights_have_left():
    given = {"hidden": 2, "loss": "binary_cross_entropy", "batch_size": None, "epochs": 3, "seed": 0}
    trainer._idle.clear()
    expected = train(XOR_X, XOR_Y, class_weight={1: 3.0}, **given)
    train(XOR_X, XOR_Y, sample_weight=[1, 2, 3, 4], **given)
    assert trainer._idle
    actual = train(XOR_X, XOR_Y, class_weight={1: 3.0}, **given)

    assert actual.network.params.tobytes() == expected.network.params.tobytes()


def test_threads_never_share_what_was_prepared(rng):
    X, y = rng.normal(size=(6, 2)), rng.normal(size=6)
    given = {"hidden": 4, "batch_size": None, "epochs": 300}
    expected = [train(X, y, seed=seed, **given).network.params.tobytes() for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        results = [*pool.map(lambda seed: train(X, y, seed=seed, **given), [*range(16)] * 4)]

    assert [result.network.params.tobytes() for result in results] == expected * 4


def test_fresh_seed_is_reported_and_repeats_the_run():
    settings = REPEATED | {"seed": None}
    first, second = (train(*task("squared_error"), **settings) for _ in range(2))

    expected = bits(first)
    actual = bits(train(*task("squared_error"), **settings | {"seed": first.seed}))

    assert first.seed != second.seed
    assert actual == expected


def test_another_process_gives_the_same_bits():
    X, y = task("squared_error")

    expected = train(X, y, **REPEATED).network.params.tobytes().hex()
    actual = printed(
        f"import fastbp, json, numpy; X, y = numpy.array({X.tolist()}), numpy.array({y.tolist()});"
        f"print(json.dumps(fastbp.train(X, y, **{REPEATED}).network.params.tobytes().hex()))"
    )

    assert actual == expected


def test_another_thread_gives_the_same_bits():
    results = []
    thread = threading.Thread(target=lambda: results.append(train(*task("squared_error"), **REPEATED)))
    thread.start()
    thread.join()

    expected = bits(train(*task("squared_error"), **REPEATED))

    assert [bits(result) for result in results] == [expected]


def test_threads_side_by_side_give_the_same_bits():
    X, y = task("squared_error")
    seeds = [0, 1, 2, 3, 0, 1, 2, 3]

    def run(seed):
        return bits(train(X, y, **REPEATED | {"seed": seed, "epochs": 3000}))

    expected = [run(seed) for seed in seeds]
    with ThreadPoolExecutor(4) as pool:
        actual = list(pool.map(run, seeds))

    assert actual == expected


CHUNKED = [
    {"batch_size": 5},
    {"batch_size": 5, "optimizer": SGD(momentum=0.9), "learning_rate": 0.001},
    {"batch_size": 5, "dtype": "float32"},
    {"batch_size": 5, "shuffle": False},
    {"batch_size": None},
    {"batch_size": 36, "hidden": 2},
    {"rows": 310, "batch_size": MULTI_BLOCK},
    {"rows": 310, "batch_size": MULTI_BLOCK, "dtype": "float32"},
    {"rows": 310, "batch_size": MULTI_BLOCK, "shuffle": False},
    {"rows": 310, "batch_size": None},
    {"batch_size": 5, "backend": "numpy", "epochs": 40},
    {"rows": 310, "batch_size": MULTI_BLOCK, "backend": "numpy", "epochs": 40},
]


@pytest.mark.parametrize("settings", CHUNKED, ids=str)
def test_chunking_never_shows(settings, monkeypatch):
    settings = {"hidden": 9, "epochs": 200, "seed": 1} | settings
    X, y = task("squared_error", settings.pop("rows", 37))
    runs = []
    for seconds in (0, 1e-4, 0.5):  # 0: one block a chunk
        monkeypatch.setattr(trainer, "CHUNK_SECONDS", seconds)
        runs.append(bits(train(X, y, **settings)))

    assert runs == [runs[0]] * 3


@pytest.mark.parametrize("batch_size", [None, 38, 10**6])
def test_full_batch_has_many_names(batch_size):
    settings = REPEATED | {"batch_size": 37}

    expected = bits(train(*task("squared_error"), **settings))
    actual = bits(train(*task("squared_error"), **settings | {"batch_size": batch_size}))

    assert actual == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_full_batch_keeps_the_order_of_the_rows(backend):
    settings = REPEATED | {"batch_size": None, "backend": backend}

    expected = bits(train(*task("squared_error"), **settings, shuffle=False))
    actual = bits(train(*task("squared_error"), **settings))

    assert actual == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_epoch_visits_each_row_once(backend):
    """The weight stays near 0, so the error is the mean of the targets seen; no other seven of them have this mean."""
    rows = np.array([1.0, 2, 4, 8, 16, 32, 64])
    settings = {"bias": False, "init": "zeros", "optimizer": "sgd", "batch_size": 2, "seed": 0, "learning_rate": 1e-9}

    expected = np.full(300, rows.mean())
    actual = train(np.ones((7, 1)), rows, **settings, epochs=300, backend=backend).error

    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_shuffled_epochs_differ_in_order():
    """With one row a batch and a rate near 1, the weight after an epoch is the row seen last."""
    rows = np.arange(7.0)
    settings = {"bias": False, "init": "zeros", "optimizer": "sgd", "batch_size": 1, "learning_rate": 1.0}
    last = set()
    for seed in range(40):
        last.add(float(train(np.ones((7, 1)), rows, **settings, epochs=1 + seed % 3, seed=seed).network.params[0]))

    assert last == set(rows)


# --- how X and y may be given -------------------------------------------------------------------------------------


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def strided(array):
    wide = np.full((2 * len(array), 3 * array.shape[1]), np.nan)
    view = wide[::2, ::3]
    view[...] = array
    return view


FORMS = {
    "list": lambda array: array.tolist(),
    "tuple of tuples": lambda array: tuple(map(tuple, array.tolist())),
    "Fortran order": np.asfortranarray,
    "read-only": read_only,
    "strided": strided,
    "negative strides": lambda array: array[::-1, ::-1].copy()[::-1, ::-1],
    "big-endian": lambda array: array.astype(">f8"),
    "float16": lambda array: array.astype(np.float16),
    "float32": lambda array: array.astype(np.float32),
    "longdouble": lambda array: array.astype(np.longdouble),
    "int8": lambda array: array.astype(np.int8),
    "uint64": lambda array: array.astype(np.uint64),
    "bool": lambda array: array.astype(bool),
}


def contents(value):
    """All that could have been written to: of a view the array behind it."""
    if not isinstance(value, np.ndarray):
        return repr(value)
    return value.tobytes(), value.flags.writeable, None if value.base is None else value.base.tobytes()


@pytest.mark.parametrize("batch_size", [5, None])
@pytest.mark.parametrize("form", FORMS)
def test_any_form_of_data_gives_the_same_bits_and_is_left_alone(form, batch_size, rng):
    settings = {"hidden": 4, "dtype": "float64", "epochs": 3, "batch_size": batch_size, "seed": 0}
    plain_X, plain_y = rng.integers(0, 2, (24, 3)).astype(float), rng.integers(0, 2, (24, 2)).astype(float)
    X, y = FORMS[form](plain_X), FORMS[form](plain_y)
    before = contents(X), contents(y)

    expected = bits(train(plain_X, plain_y, **settings))
    actual = bits(train(X, y, **settings))

    assert actual == expected
    assert (contents(X), contents(y)) == before


def test_plain_arrays_are_left_alone(rng):
    X, y = rng.normal(size=(24, 3)), rng.normal(size=(24, 1))
    before = X.tobytes(), y.tobytes()
    train(X, y, hidden=4, epochs=3)

    assert (X.tobytes(), y.tobytes()) == before


@pytest.mark.parametrize(
    ("given", "expected"), [("float16", "float32"), ("float32", "float32"), ("float64", "float64"), ("int8", "float64")]
)
def test_precision_follows_x(given, expected):
    actual = train(XOR_X.astype(given), XOR_Y, epochs=1, seed=0)
    explicit = train(XOR_X, XOR_Y, epochs=1, seed=0, dtype=expected)

    assert actual.network.params.dtype == expected
    assert bits(actual) == bits(explicit)


def test_column_of_targets_may_be_flat():
    expected = bits(train(XOR_X, XOR_Y, hidden=2, epochs=5, seed=0))
    actual = bits(train(XOR_X, XOR_Y.ravel(), hidden=2, epochs=5, seed=0))

    assert actual == expected


def test_labels_and_their_one_hot_rows_give_the_same_bits():
    X, labels = task("cross_entropy")
    settings = {"hidden": 4, "loss": "cross_entropy", "epochs": 5, "seed": 0}
    forms = [labels, labels[:, None], labels.astype(np.uint8), labels.astype(float), labels.tolist(), np.eye(3)[labels]]

    expected = [bits(train(X, labels, **settings))] * len(forms)
    actual = [bits(train(X, y, **settings)) for y in forms]

    assert actual == expected


def test_soft_labels_are_learned(rng):
    y = rng.dirichlet([1, 2, 3], 20)
    settings = {"loss": "cross_entropy", "optimizer": "sgd", "learning_rate": 1.0, "batch_size": None, "epochs": 500}
    result = train(np.ones((20, 1)), y, **settings, seed=0)

    expected = y.mean(axis=0)
    actual = result.network.predict([[1]])[0]

    np.testing.assert_allclose(actual, expected, rtol=1e-9)


@pytest.mark.parametrize("dtype", [bool, int, float, np.uint8, np.float32])
def test_binary_targets_of_any_type_give_the_same_bits(dtype):
    X, y = task("binary_cross_entropy")
    settings = {"hidden": 4, "loss": "binary_cross_entropy", "epochs": 5, "seed": 0}

    expected = bits(train(X, y, **settings))
    actual = bits(train(X, y.astype(dtype), **settings))

    assert actual == expected


def test_each_of_several_binary_targets_is_learned_by_itself():
    X, y = task("binary_cross_entropy")
    settings = {"loss": "binary_cross_entropy", "optimizer": "sgd", "learning_rate": 0.5, "epochs": 20, "seed": 0}
    alone = [train(X, y[:, o], **settings, init="zeros") for o in range(2)]
    together = train(X, y, **settings, init="zeros")

    expected = np.hstack([result.network.predict(X) for result in alone])
    actual = together.network.predict(X)

    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    np.testing.assert_allclose(together.loss, sum(result.loss for result in alone), rtol=1e-12)
    np.testing.assert_allclose(together.error, sum(result.error for result in alone) / 2, rtol=1e-12)


# --- what is measured ---------------------------------------------------------------------------------------------

# Mean loss of a row, from predictions p (n, O) and targets y (n, O).
LOSS_FORMULAS = {
    "squared_error": lambda p, y: (0.5 * (p - y) ** 2).sum(axis=1).mean(),
    "binary_cross_entropy": lambda p, y: (-y * np.log(p) - (1 - y) * np.log(1 - p)).sum(axis=1).mean(),
    "cross_entropy": lambda p, y: -(y * np.log(p)).sum(axis=1).mean(),
    "absolute_error": lambda p, y: np.abs(p - y).sum(axis=1).mean(),
    "huber": lambda p, y: huber(1.0, p - y).sum(axis=1).mean(),
    "poisson": lambda p, y: (p - y + xlogy(y, y / p)).sum(axis=1).mean(),
    "quantile": lambda p, y: pinball(p, y).sum(axis=1).mean(),
    "gaussian_nll": lambda p, y: (
        -norm.logpdf(y, p[:, :2], np.exp(p[:, 2:] / 2)) - np.log(2 * np.pi) / 2
    ).sum(axis=1).mean(),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_error_are_measured_before_the_update(loss, backend):
    X, y = task(loss)
    network = Network((3, 5, OUTPUTS.get(loss, 2)), loss=loss, seed=4)
    p, rows = network.predict(X), np.eye(3)[y] if loss == "cross_entropy" else y.astype(float)

    expected = LOSS_FORMULAS[loss](p, rows), np.abs(predictions(loss, p) - rows).mean()
    result = train(X, y, network=network, epochs=1, batch_size=None, backend=backend)
    actual = result.loss[0], result.error[0]

    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_a_short_last_batch_count_as_others_do(backend):
    network = Network((3, 5, 2), seed=4)
    settings = {"epochs": 1, "optimizer": "sgd", "learning_rate": 1e-300, "backend": backend}

    expected = train(*task("squared_error"), network=network.copy(), batch_size=None, **settings)
    actual = train(*task("squared_error"), network=network.copy(), batch_size=10, **settings)

    np.testing.assert_allclose(actual.loss, expected.loss, rtol=1e-12)
    np.testing.assert_allclose(actual.error, expected.error, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_last_batch_may_be_short(reduction, backend):
    """Worked by hand: two batches of y = w x with x = 1, w = 0, of two rows and of one."""
    steps = {
        # mean: w = 0.1 (2 + 4) / 2 = 0.3, then w += 0.1 (8 - 0.3); sum: w = 0.1 (2 + 4) = 0.6, then w += 0.1 (8 - 0.6)
        "mean": 0.3 + 0.77,
        "sum": 0.6 + 0.74,
    }
    settings = {"bias": False, "init": "zeros", "optimizer": "sgd", "learning_rate": 0.1, "shuffle": False}
    result = train(np.ones((3, 1)), [2, 4, 8], **settings, batch_size=2, epochs=1, reduction=reduction, backend=backend)

    expected = steps[reduction]
    actual = result.network.params[0]

    np.testing.assert_allclose(actual, expected, rtol=1e-14)


def test_result_says_what_was_done():
    began = time.perf_counter()
    result = train(XOR_X, XOR_Y, hidden=2, epochs=7, seed=5)
    elapsed = time.perf_counter() - began

    assert result.seed == 5
    assert (result.loss.shape, result.loss.dtype) == ((7,), np.float64)
    assert (result.error.shape, result.error.dtype) == ((7,), np.float64)
    assert result.seconds > 0
    assert result.compile_seconds >= 0
    assert result.seconds + result.compile_seconds <= elapsed
    assert result.network.sizes == (2, 2, 1)


# --- learning -----------------------------------------------------------------------------------------------------


def test_model_without_hidden_layers_becomes_least_squares(rng):
    X, y = rng.normal(size=(50, 3)), rng.normal(size=(50, 2))
    network = train(X, y, optimizer="sgd", learning_rate=0.3, batch_size=None, epochs=500).network

    expected = np.linalg.lstsq(np.hstack([X, np.ones((50, 1))]), y)[0]
    actual = np.vstack([network.weights[0], network.biases[0]])

    np.testing.assert_allclose(actual, expected, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_learns_xor(loss, backend):
    labels = np.array([0, 1, 1, 0])
    settings = {"hidden": 8, "activation": "tanh", "learning_rate": 0.05, "batch_size": None, "epochs": 300, "seed": 0}
    p = train(XOR_X, labels, **settings, loss=loss, backend=backend).network.predict(XOR_X)

    expected = labels
    actual = p.argmax(axis=1) if loss == "cross_entropy" else p[:, 1 if loss == "quantile" else 0] > 0.5

    np.testing.assert_array_equal(actual, expected)


# --- quantiles, variances and missing targets -----------------------------------------------------------------------


def spreading(rows=4000):
    """Numbers whose spread grows: x, targets and their standard deviation."""
    rng = np.random.default_rng(3)
    x = rng.uniform(-1, 1, rows)
    sigma = 0.3 + 0.2 * x
    return x[:, None], np.sin(2 * x) + sigma * rng.normal(size=rows), sigma


SPREADING = {
    "hidden": 16,
    "activation": "tanh",
    "learning_rate": 0.01,
    "batch_size": 100,
    "seed": 0,
    "schedule": "cosine",
}


def test_quantiles_of_a_sample_whose_spread_grows_are_found():
    X, y, sigma = spreading()
    network = train(X, y, **SPREADING, epochs=60, loss="quantile", quantiles=LEVELS).network

    expected = np.sin(2 * X) + sigma[:, None] * norm.ppf(LEVELS)
    actual = network.predict(X)

    assert network.quantiles == tuple(LEVELS)
    assert np.abs(actual - expected).mean() < 0.03
    np.testing.assert_allclose((y[:, None] < actual).mean(axis=0), LEVELS, atol=0.02)


def test_mean_and_deviation_of_a_sample_whose_spread_grows_are_found():
    X, y, sigma = spreading()
    mean, log_variance = train(X, y, **SPREADING, epochs=60, loss="gaussian_nll").network.predict(X).T

    assert np.abs(mean - np.sin(2 * X[:, 0])).mean() < 0.03
    assert np.abs(np.exp(log_variance / 2) / sigma - 1).mean() < 0.08


def test_penalty_keeps_quantiles_from_crossing():
    X, y, _ = spreading(40)
    settings = {"hidden": 32, "activation": "relu", "learning_rate": 0.01, "batch_size": None, "epochs": 1000}
    settings |= {"seed": 0, "loss": "quantile", "quantiles": np.linspace(0.05, 0.95, 10)}

    def crossings(penalty):
        predicted = train(X, y, **settings, crossing_penalty=penalty).network.predict(np.linspace(-1, 1, 200)[:, None])
        return (np.diff(predicted) < -1e-3).sum()

    assert crossings(2.0) < crossings(0.0) / 10


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_target_is_that_of_all_quantiles(backend):
    X, y = task("quantile")
    settings = {"hidden": 4, "loss": "quantile", "epochs": 3, "seed": 0, "backend": backend}

    expected = bits(train(X, np.tile(y, 3), **settings))

    assert bits(train(X, y, **settings)) == expected
    assert bits(train(X, y[:, 0], **settings)) == expected


APART = {  # targets of one output each, and what a network of one of them has
    "squared_error": {},
    "absolute_error": {},
    "huber": {},
    "poisson": {},
    "binary_cross_entropy": {},
    "gaussian_nll": {},
    "quantile": {"quantiles": (0.2, 0.6)},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch_size", [None, 20, 4])
@pytest.mark.parametrize("loss", APART)
def test_missing_targets_are_as_if_they_were_not_there(loss, batch_size, backend):
    """Of each batch every other row has the first target, and the others the second. No output has what others have."""
    X, y = task("gaussian_nll" if loss == "quantile" else loss, rows=40)
    y, present = y.astype(float), np.arange(40) % 2 == 0
    weights = np.column_stack([present, ~present]).astype(float)
    settings = {"loss": loss, "init": "zeros", "optimizer": "sgd", "learning_rate": 0.1, "epochs": 5, "shuffle": False}
    settings |= {"backend": backend}
    levels = [{"quantiles": (q,)} for q in APART[loss].get("quantiles", ())] or [{}, {}]

    def alone(target):
        rows = weights[:, target] > 0
        size = batch_size and batch_size // 2
        return train(X[rows], y[rows, target], **settings, batch_size=size, **levels[target])

    first, second = alone(0), alone(1)
    together = train(
        X, np.where(weights > 0, y, np.nan), **settings, batch_size=batch_size, sample_weight=weights, **APART[loss]
    )
    parts = [np.atleast_2d(result.network.predict(X)) for result in (first, second)]

    expected = np.stack(parts, axis=2).reshape(40, -1)  # of gaussian_nll both means, then both variances
    actual = together.network.predict(X)

    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(together.loss, first.loss + second.loss, rtol=1e-12)
    np.testing.assert_allclose(together.error, (first.error + second.error) / 2, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("loss", APART)
def test_weights_of_one_for_each_target_are_none(loss, dtype, backend):
    X, y = task("gaussian_nll" if loss == "quantile" else loss)
    settings = {"hidden": 9, "loss": loss, "epochs": 3, "batch_size": 17, "seed": 0, "dtype": dtype}
    settings |= {"backend": backend, "activation": "elu", **APART[loss]}

    expected = bits(train(X, y, **settings))

    assert bits(train(X, y, **settings, sample_weight=np.ones((37, 2)))) == expected


def test_score_of_a_validation_with_weights_of_targets_is_the_mean_of_those_of_the_targets():
    X, y = task("squared_error")
    weights = (np.arange(74).reshape(37, 2) % 4).astype(float)
    result = train(
        X, y, hidden=4, epochs=1, seed=0, validation=(X, np.where(weights > 0, y, np.nan), weights), watch="score"
    )
    p = result.network.predict(X)

    expected = np.mean([r2_score(y[:, o], p[:, o], sample_weight=weights[:, o]) for o in range(2)])
    actual = result.validation_score[0]

    assert actual == pytest.approx(expected, rel=1e-12)
    loss = (weights * 0.5 * (p - y) ** 2).sum() / weights.sum() * 2
    assert result.validation_loss[0] == pytest.approx(loss, rel=1e-12)
    assert result.validation_error[0] == pytest.approx((weights * np.abs(p - y)).sum() / weights.sum(), rel=1e-12)


NAN = np.array([[1.0, np.nan], [2.0, 3.0]])
MISSING = [
    ({}, "'y' must be finite, without NaN or infinity, got 1 bad of 4, the first at [0, 1]"),
    ({"sample_weight": [1, 1]}, "'y' must not be NaN where the weight is above 0, got 1 bad of 4, the first at [0, 1]"),
    ({"sample_weight": [[0, 1], [0, 1]]}, "'y' must not be NaN where the weight is above 0, got 1 bad of 4"),
    ({"sample_weight": [[1, 0, 1], [1, 1, 1]]}, "'sample_weight' must have shape (2,) or (2, 2), for each row or"),
    ({"sample_weight": [[1, 0]]}, "'sample_weight' must have shape (2,) or (2, 2)"),
    ({"sample_weight": [[0, 0], [0, 0]]}, "'sample_weight' must have a value above 0, got 4 zeros"),
    ({"sample_weight": [[1, -1], [0, 0]]}, "'sample_weight' must be >= 0, got 1 bad of 4, the first at [0, 1]"),
    (
        {"validation": (np.eye(2), NAN), "sample_weight": [0, 1]},
        "'validation[1]' must be finite, without NaN or infinity",
    ),
    (
        {"validation": (np.eye(2), NAN, [[1, 1], [1, 1]]), "sample_weight": [0, 1]},
        "'validation[1]' must not be NaN where the weight is above 0",
    ),
    (
        {"loss": "cross_entropy", "sample_weight": [[1, 0], [1, 1]]},
        "'sample_weight' must have shape (2,), a number for",
    ),
    ({"loss": "cross_entropy", "sample_weight": [0, 1]}, "'y' must be finite"),
    ({"loss": "quantile"}, "y has 2 columns, the network has 3 outputs, which take 1 column, or 1 each"),
]


@pytest.mark.parametrize(("settings", "message"), MISSING, ids=str)
def test_missing_targets_are_refused_where_they_count(settings, message):
    with pytest.raises(DataError, match=re.escape(message)):
        train(np.eye(2), NAN, **settings)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weights", [[0, 1], [[1, 0], [1, 1]], [[0.0, 0.0], [0.0, 1.0]]], ids=str)
def test_missing_targets_without_weight_are_taken(weights, backend):
    y = NAN.copy()
    result = train(np.eye(2), y, epochs=3, seed=0, sample_weight=weights, backend=backend)

    assert np.isfinite(result.loss).all()
    np.testing.assert_array_equal(y, NAN)


def test_network_for_other_outputs_than_the_loss_has_is_refused():
    for settings, message in [
        ({"loss": "quantile"}, "'sizes' must end with 3 outputs, one for each of the 'quantiles', got 1"),
        ({"loss": "gaussian_nll"}, "'sizes' must end with a mean and a log variance for each target"),
    ]:
        with pytest.raises(ParameterError, match=re.escape(message)):
            Network((2, 1), **settings)
    with pytest.raises(DataError, match="y has 2 columns, the network has 2 outputs, which take half as many columns"):
        train(np.eye(2), np.eye(2), network=Network((2, 2), loss="gaussian_nll"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("log_variance", [-800.0, -2000.0])
def test_variance_that_vanishes_is_divergence(log_variance, backend):
    network = Network((1, 2), loss="gaussian_nll", init="zeros")
    network.biases[0][1] = log_variance

    with pytest.raises(DivergenceError, match="epoch 1"):
        train([[1.0], [2.0]], [1.0, 2.0], network=network, optimizer="sgd", epochs=3, backend=backend)
    assert network.biases[0].tolist() == [0, log_variance]


# --- network= -----------------------------------------------------------------------------------------------------


def test_given_network_is_trained_in_place():
    network = Network((3, 5, 2), seed=4)
    params, before = network.params, network.params.copy()
    result = train(*task("squared_error"), network=network, epochs=2)

    assert result.network is network
    assert np.shares_memory(network.params, params)
    assert (params != before).all()


def test_given_network_trains_like_a_new_one():
    X, y = task("cross_entropy")
    settings = {"activation": "tanh", "loss": "cross_entropy", "bias": False, "dtype": "float64", "seed": 4}

    expected = bits(train(X, y, 5, **settings, epochs=3))
    actual = bits(train(X, y, network=Network((3, 5, 3), **settings), seed=4, epochs=3))

    assert actual == expected


@pytest.mark.parametrize(("given", "network"), [("float64", "float32"), ("float32", "float64")])
def test_given_network_keeps_its_precision(given, network):
    X, y = (array.astype("float32").astype(given) for array in task("squared_error"))
    network = Network((3, 5, 2), seed=4, dtype=network)
    twin = network.copy()

    expected = train(X.astype(twin.params.dtype), y.astype(twin.params.dtype), network=twin, epochs=2, seed=0)
    actual = train(X, y, network=network, epochs=2, seed=0)

    assert network.params.dtype != given
    assert bits(actual) == bits(expected)


@pytest.mark.parametrize("batch_size", [5, 20, None])
def test_training_goes_on_where_it_stopped(batch_size):
    X, y = task("squared_error")
    settings = {"optimizer": "sgd", "batch_size": batch_size, "shuffle": False}
    whole, parts = Network((3, 5, 2), seed=4), Network((3, 5, 2), seed=4)

    expected = train(X, y, network=whole, epochs=7, **settings).loss.tolist()
    actual = [loss for epochs in (3, 4) for loss in train(X, y, network=parts, epochs=epochs, **settings).loss]

    assert actual == expected
    assert parts.params.tobytes() == whole.params.tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_epochs_return_the_initial_network(backend):
    result = train(XOR_X, XOR_Y, hidden=3, epochs=0, seed=9, backend=backend)

    expected = Network((2, 3, 1), seed=9).params
    actual = result.network.params

    assert actual.tobytes() == expected.tobytes()
    assert result.loss.shape == result.error.shape == (0,)


# --- Ctrl-C -------------------------------------------------------------------------------------------------------

# Interrupts each run a moment after its weights first move, as Ctrl-C does: the handler runs in the main thread when
# that is back in Python. The latency is the median of those of all interrupts, because a signal that happens to come at
# the end of too long a chunk is answered at once.
INTERRUPTED = """
import json, signal, sys, threading, time
import numpy as np
import fastbp

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started this process with it ignored
rng = np.random.default_rng(0)
tiny = rng.normal(size=(4, 2)), rng.normal(size=4)
long = rng.normal(size=(60_000, 32)), rng.normal(size=60_000)
runs = {
    "many tiny epochs": (tiny, (2, 2, 1), dict(epochs=20_000_000, batch_size=None)),
    "many shuffled epochs": (tiny, (2, 2, 1), dict(epochs=20_000_000, batch_size=2)),
    "one long epoch": (long, (32, 512, 512, 1), dict(epochs=100)),
    "one long epoch in order": (long, (32, 512, 512, 1), dict(epochs=100, shuffle=False)),
    "one long validation": ((long[0][:4], long[1][:4]), (32, 512, 512, 1), dict(epochs=100, validation=long)),
}

def small():
    return fastbp.train(*tiny, hidden=3, epochs=50, seed=0).network.params.tobytes().hex()

def interrupt(network, before, sent):
    while (network.params == before).all():
        time.sleep(0.001)
    time.sleep(0.1)
    sent.append(time.monotonic())
    signal.raise_signal(signal.SIGINT)

report = {"small": small()}
for name in NAMES:
    (data, sizes, settings), latencies, wrong = runs[name], [], []
    for _ in range(INTERRUPTS):
        network = fastbp.Network(sizes, seed=0)
        before, sent = network.params.copy(), []
        thread = threading.Thread(target=interrupt, args=(network, before, sent))
        thread.start()
        try:
            fastbp.train(*data, network=network, optimizer="sgd", seed=0, **settings)
            wrong.append("finished")
        except KeyboardInterrupt:
            latencies.append(time.monotonic() - sent[0])
        thread.join()
        if not np.isfinite(network.params).all():
            wrong.append("not finite")
        if (network.params == before).all():
            wrong.append("not moved")
        if small() != report["small"]:
            wrong.append("cannot train again")
    report[name] = {"latency": sorted([*latencies, 9])[len(latencies) // 2], "wrong": wrong}
print(json.dumps(report))
"""
INTERRUPTIBLE = [
    "many tiny epochs",
    "many shuffled epochs",
    "one long epoch",
    "one long epoch in order",
    "one long validation",
]


def interrupt(names, interrupts):
    """Interrupt each of these runs so many times, in a process of its own."""
    return printed(f"NAMES, INTERRUPTS = {names}, {interrupts}\n{INTERRUPTED}")


@pytest.fixture(scope="module")
def interrupted():
    return interrupt(INTERRUPTIBLE, 2)


@pytest.mark.parametrize("run", INTERRUPTIBLE)
def test_ctrl_c_arrives_and_keeps_the_weights(run, interrupted):
    assert interrupted[run]["wrong"] == []


@pytest.mark.timed
@pytest.mark.parametrize("run", INTERRUPTIBLE)
def test_ctrl_c_arrives_within_50_ms(run):
    assert_once_at_most(0.05, lambda: interrupt([run], 5)[run]["latency"])


def test_process_trains_on_after_ctrl_c(interrupted):
    rng = np.random.default_rng(0)
    tiny = rng.normal(size=(4, 2)), rng.normal(size=4)

    expected = train(*tiny, hidden=3, epochs=50, seed=0).network.params.tobytes().hex()
    actual = interrupted["small"]

    assert actual == expected


# --- divergence ---------------------------------------------------------------------------------------------------

DIVERGING = [
    {"optimizer": "sgd", "learning_rate": 5.0, "hidden": (), "batch_size": None},
    {"optimizer": "sgd", "learning_rate": 5.0, "hidden": ()},
    {"optimizer": "sgd", "learning_rate": 5.0, "hidden": (), "shuffle": False},
    {"optimizer": "sgd", "learning_rate": 10.0, "hidden": 9},
    {"optimizer": "sgd", "learning_rate": 10.0, "hidden": 9, "dtype": "float32"},
    {"optimizer": SGD(momentum=0.9), "learning_rate": 2.0, "hidden": ()},
    {"optimizer": SGD(momentum=0.9, nesterov=True), "learning_rate": 2.0, "hidden": ()},
    {"optimizer": "sgd", "learning_rate": 1.0, "hidden": (), "rows": 310, "reduction": "sum", "batch_size": 150},
    {"optimizer": "adam", "learning_rate": 1e153, "hidden": ()},
    {"optimizer": "sgd", "learning_rate": 1e308, "hidden": (), "loss": "binary_cross_entropy", "reduction": "sum"},
    {"optimizer": "sgd", "learning_rate": 1e307, "hidden": (), "loss": "cross_entropy"},
    {"optimizer": "adam", "learning_rate": 1e307, "hidden": (), "loss": "cross_entropy"},
    {"optimizer": "sgd", "learning_rate": 1e308, "hidden": (), "loss": "cross_entropy", "batch_size": None},
]


def diverge(settings, **changed):
    settings = {"batch_size": 10, "loss": "squared_error", "epochs": 2000, "seed": 2} | settings | changed
    X, y = task(settings["loss"], settings.pop("rows", 37))
    with pytest.raises(DivergenceError) as caught:
        train(X, y, **settings)
    finite = train(X, y, **settings | {"epochs": caught.value.epoch - 1})
    return caught.value, finite


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings", DIVERGING, ids=str)
def test_diverged_run_keeps_the_last_finite_epoch(settings, backend):
    error, expected = diverge(settings, backend=backend)
    actual = error.result

    assert np.isfinite(actual.loss).all()
    assert len(actual.loss) == error.epoch - 1
    assert np.isfinite(actual.network.params).all()
    assert bits(actual) == bits(expected)


@pytest.mark.parametrize("settings", DIVERGING, ids=str)
def test_chunking_never_shows_in_a_diverged_run(settings, monkeypatch):
    runs = []
    for seconds in (0, 1e-4, 0.5):
        monkeypatch.setattr(trainer, "CHUNK_SECONDS", seconds)
        error, _ = diverge(settings)
        runs.append((error.epoch, bits(error.result)))

    assert runs == [runs[0]] * 3


@pytest.mark.parametrize("settings", DIVERGING[:3], ids=str)
def test_back_ends_diverge_in_the_same_epoch(settings):
    expected = diverge(settings, backend="numpy")[0].epoch
    actual = diverge(settings)[0].epoch

    assert actual == expected
    assert actual > 10


def test_given_network_keeps_the_last_finite_weights():
    X, y = task("squared_error")
    settings = {"optimizer": "sgd", "learning_rate": 5.0, "batch_size": None}
    network, twin = Network((3, 2), seed=0), Network((3, 2), seed=0)
    with pytest.raises(DivergenceError, match="epoch") as caught:
        train(X, y, network=network, epochs=1000, **settings)
    train(X, y, network=twin, epochs=caught.value.epoch - 1, **settings)

    assert caught.value.result.network is network
    assert network.params.tobytes() == twin.params.tobytes()


# --- every extra --------------------------------------------------------------------------------------------------

WEIGHTS = np.arange(37) % 4 / 2  # of the rows of `task`; some are 0
HELD = np.arange(37) % 3 == 0  # rows for validation, where they are handed in


def held_out(loss="squared_error", weighted=False):
    """Data for validation."""
    X, y = task(loss)
    return (X[HELD], y[HELD], WEIGHTS[HELD]) if weighted else (X[HELD], y[HELD])


# What `train` can do beyond batches, activations and losses. Each row is run by both back ends, in chunks of any size,
# with a callback, by `resume`, and from data that must not be written to.
EXTRAS = {
    "huber_delta": {"loss": "huber", "huber_delta": 0.3},
    "quantiles": {"loss": "quantile", "quantiles": (0.2, 0.7), "crossing_penalty": 2.0, "validation": 0.3},
    "gaussian_nll": {"loss": "gaussian_nll", "validation": held_out(weighted=True)},
    "weights of targets": {"sample_weight": np.arange(74).reshape(37, 2) % 3, "validation": 0.3},
    "l2": {"l2": 0.5},
    "l2 summed": {"l2": 0.5, "reduction": "sum", "learning_rate": 0.005},
    "dropout": {"dropout": 0.3},
    "dropout of one layer": {"dropout": (0.0, 0.4)},
    "clip_norm": {"clip_norm": 0.1},
    "sample_weight": {"sample_weight": WEIGHTS},
    "class_weight": {"loss": "cross_entropy", "class_weight": {0: 0.5, 2: 3.0}},
    "balanced": {"loss": "cross_entropy", "class_weight": "balanced", "sample_weight": WEIGHTS},
    "share": {"validation": 0.3},
    "share with weights": {"validation": 0.3, "sample_weight": WEIGHTS},
    "data": {"validation": held_out()},
    "data with weights": {"validation": held_out(weighted=True), "loss": "absolute_error"},
    "data of classes": {"validation": held_out("cross_entropy"), "loss": "cross_entropy"},
    "data of counts": {"validation": held_out("poisson"), "loss": "poisson", "watch": "score", "patience": 20},
    "patience": {"validation": 0.3, "patience": 4, "min_delta": 0.2},
    "best is not the last": {"validation": 0.3, "patience": 50, "learning_rate": 0.3},
    "patience without validation": {"patience": 1, "min_delta": 0.03},
    "score": {"loss": "cross_entropy", "validation": held_out("cross_entropy"), "patience": 2, "watch": "score"},
    "gelu and silu": {"activation": ("gelu", "silu"), "output": "gelu"},
    "plain SGD": {"optimizer": "sgd", "learning_rate": 0.05},
    "momentum": {"optimizer": SGD(momentum=0.9), "learning_rate": 0.01},
    "nesterov": {"optimizer": SGD(momentum=0.9, nesterov=True), "learning_rate": 0.01},
    "epsilon_hat": {"optimizer": Adam(epsilon=0.1, epsilon_hat=True)},
    "adamw": {"optimizer": AdamW(weight_decay=0.1), "learning_rate": 0.01},
    "rmsprop": {"optimizer": "rmsprop"},
    "irprop": {"optimizer": "irprop", "batch_size": None},
    "exponential": {"schedule": ExponentialDecay(0.8)},
    "inverse scaling": {"schedule": InverseScaling(pace=0.5)},
    "cosine": {"schedule": CosineDecay(epochs=9, warmup=3, minimum=0.1)},
    "plateau": {"schedule": ReduceOnPlateau(0.5, patience=2, min_delta=0.1, minimum=0.2)},
    "plateau of the validation": {"schedule": ReduceOnPlateau(0.5, patience=1, min_delta=0.1), "validation": 0.3},
    "plateau that stops": {"schedule": ReduceOnPlateau(0.5, patience=2, min_delta=1e9, minimum=0.6, stop=True)},
    "all at once": {
        "l2": 0.1, "dropout": (0.2, 0.1), "clip_norm": 1.0, "sample_weight": WEIGHTS, "validation": 0.3, "patience": 4,
        "schedule": "exponential", "optimizer": SGD(momentum=0.9), "learning_rate": 0.01,
    },
}  # fmt: skip
TINY = {"hidden": (5, 4), "batch_size": 4}  # which has a path of its own where there are no extras
EXTRAS |= {
    "tiny l2": TINY | {"l2": 0.5},
    "tiny dropout": TINY | {"dropout": 0.3},
    "tiny clip_norm": TINY | {"clip_norm": 0.1},
    "tiny sample_weight": TINY | {"sample_weight": WEIGHTS},
    "tiny share": TINY | {"validation": 0.3},
    "tiny gelu": TINY | {"activation": "gelu", "output": "silu"},
}
RUNS = [
    (name, size)
    for name, row in EXTRAS.items()
    for size in ([row["batch_size"]] if "batch_size" in row else [10, None])
]


def arguments(name, **changed):
    """X, y and settings of a row of EXTRAS."""
    settings = {"hidden": (9, 4), "activation": "tanh", "learning_rate": 0.02, "batch_size": 10, "seed": 3}
    settings |= EXTRAS[name]
    X, y = task(settings.get("loss", "squared_error"))
    return {"X": X, "y": y} | settings | changed


def outcome(result):
    """All that a run tells, but times."""
    arrays = {name: getattr(result, name) for name in ("loss", "error", *VALIDATED)}
    told = {name: None if array is None else array.tolist() for name, array in arrays.items()}
    last = {name: array.tobytes() for name, array in result.state.arrays.items()} | {
        "last": result.state.params.tobytes()
    }
    return told | last | {
        "params": result.network.params.tobytes(), "best_epoch": result.best_epoch, "stopped": result.stopped,
    }  # fmt: skip


VALIDATED = ("validation_loss", "validation_error", "validation_score")


def test_every_optimizer_and_schedule_is_an_extra():
    """Adam and a constant rate are what the other rows have; those of second order have a table of their own."""
    used = [settings.get(name) for settings in EXTRAS.values() for name in ("optimizer", "schedule")]
    kinds = {Adam, Constant, LBFGS, LevenbergMarquardt} | {type(value) for value in used}
    names = {value for value in used if isinstance(value, str)}

    for name, kind in (OPTIMIZERS | SCHEDULES).items():
        assert kind in kinds or name in names


@pytest.mark.parametrize(("name", "batch_size"), RUNS)
def test_back_ends_agree_with_extras(name, batch_size):
    settings = arguments(name, batch_size=batch_size, epochs=12)

    expected = train(**settings, backend="numpy")
    actual = train(**settings)

    assert (actual.stopped, actual.best_epoch) == (expected.stopped, expected.best_epoch)
    np.testing.assert_allclose(actual.network.params, expected.network.params, rtol=1e-9, atol=1e-12)
    for figure in ("loss", "error", *VALIDATED):
        if getattr(expected, figure) is None:
            assert getattr(actual, figure) is None
        else:
            np.testing.assert_allclose(getattr(actual, figure), getattr(expected, figure), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", EXTRAS)
def test_float32_agrees_with_float64(name):
    expected = train(**arguments(name, epochs=1, batch_size=None))
    actual = train(**arguments(name, epochs=1, batch_size=None, dtype="float32"))

    assert actual.network.params.dtype == np.float32
    assert actual.loss.dtype == np.float64
    np.testing.assert_allclose(actual.loss, expected.loss, rtol=1e-5)
    if expected.validation_loss is not None and not EXTRAS[name].get("dropout"):  # float32 has fewer random bits
        np.testing.assert_allclose(actual.validation_loss, expected.validation_loss, rtol=1e-3)


@pytest.mark.parametrize("name", EXTRAS)
def test_chunking_never_shows_with_extras(name, monkeypatch):
    runs = []
    for seconds in (0, 0.5):  # 0: one block a chunk
        monkeypatch.setattr(trainer, "CHUNK_SECONDS", seconds)
        runs.append(outcome(train(**arguments(name, epochs=40))))

    assert runs[1] == runs[0]


@pytest.mark.parametrize("every", [1, 3, 1000])
@pytest.mark.parametrize("name", EXTRAS)
def test_callback_never_shows(name, every):
    expected = outcome(train(**arguments(name, epochs=20)))
    actual = outcome(train(**arguments(name, epochs=20), callback=lambda state: None, callback_every=every))

    assert actual == expected


def frozen(value):
    """The same with arrays that cannot be written to."""
    if isinstance(value, tuple):
        return tuple(map(frozen, value))
    return read_only(value) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("name", EXTRAS)
def test_no_argument_is_written_to(name):
    settings = arguments(name, epochs=3)
    given = [*settings.values(), *(settings["validation"] if isinstance(settings.get("validation"), tuple) else ())]
    before = [contents(value) for value in given]

    expected = outcome(train(**settings))
    actual = outcome(train(**{name: frozen(value) for name, value in settings.items()}))

    assert actual == expected
    assert [contents(value) for value in given] == before


# --- weights ------------------------------------------------------------------------------------------------------

WEIGHTED = [
    {"optimizer": "sgd", "learning_rate": 0.1},
    {"optimizer": "adam", "learning_rate": 0.01},
    {"optimizer": "sgd", "learning_rate": 0.1, "l2": 0.7},
    {"optimizer": "sgd", "learning_rate": 0.005, "reduction": "sum"},
    {"optimizer": "irprop"},
]


def assert_close(actual, expected):
    np.testing.assert_allclose(actual.network.params, expected.network.params, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(actual.loss, expected.loss, rtol=1e-12)
    np.testing.assert_allclose(actual.error, expected.error, rtol=1e-12)


@pytest.mark.parametrize("settings", WEIGHTED, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_whole_weight_is_a_number_of_copies_of_the_row(loss, settings):
    X, y = task(loss)
    times = np.arange(37) % 4  # 0: no row at all
    settings = {"hidden": 5, "activation": "tanh", "batch_size": None, "epochs": 5, "seed": 0, "loss": loss} | settings

    expected = train(np.repeat(X, times, axis=0), np.repeat(y, times, axis=0), **settings)
    actual = train(X, y, **settings, sample_weight=times)

    assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_rows_are_those_of_the_batch_they_are_in(backend):
    """Worked by hand: two batches of y = w x with x = 1, w = 0, whose means are weighted."""
    settings = {"bias": False, "init": "zeros", "optimizer": "sgd", "learning_rate": 0.1, "shuffle": False}
    weights = [3, 1, 0.5]
    result = train(
        np.ones((3, 1)), [2, 4, 8], **settings, batch_size=2, epochs=1, sample_weight=weights, backend=backend
    )

    # w = 0.1 (3 * 2 + 4) / 4 = 0.25, then w += 0.1 (8 - 0.25)
    expected = [0.25 + 0.775, (3 * 2 + 8 + 0.25 * 7.75**2) / 4.5, (3 * 2 + 4 + 0.5 * 7.75) / 4.5]
    actual = [result.network.params[0], result.loss[0], result.error[0]]

    np.testing.assert_allclose(actual, expected, rtol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_without_weight_changes_nothing(backend):
    X, y = task("squared_error")
    settings = {"hidden": 4, "optimizer": "sgd", "shuffle": False, "batch_size": 10, "epochs": 4, "seed": 0}
    weights = np.where(np.arange(37) // 10 == 1, 0, 1.0)

    expected = train(X[weights > 0], y[weights > 0], **settings, backend=backend)
    actual = train(X, y, **settings, sample_weight=weights, backend=backend)

    assert_close(actual, expected)


def test_common_factor_of_all_weights_does_not_matter():
    expected = train(**arguments("sample_weight", epochs=5))
    actual = train(**arguments("sample_weight", epochs=5, sample_weight=WEIGHTS * 64))  # which rounds nothing

    np.testing.assert_array_equal(actual.loss, expected.loss)
    np.testing.assert_allclose(actual.network.params, expected.network.params, rtol=1e-12)


CLASS_WEIGHTS = {
    "dict": {0: 0.5, 2: 3.0},
    "dict of some": {1: 0.0},
    "empty dict": {},
    "balanced": "balanced",
}


@pytest.mark.parametrize("given", CLASS_WEIGHTS)
@pytest.mark.parametrize("loss", CLASSIFYING)
def test_class_weight_is_a_weight_of_each_row(loss, given):
    X, y = task(loss)
    y = y if loss == "cross_entropy" else y[:, 0]
    value = CLASS_WEIGHTS[given]
    value = {key: weight for key, weight in value.items() if key <= y.max()} if isinstance(value, dict) else value
    settings = {"hidden": 4, "loss": loss, "epochs": 5, "seed": 0}
    classes = value if value == "balanced" else {c: value.get(c, 1.0) for c in np.unique(y).tolist()}

    expected = train(X, y, **settings, sample_weight=compute_sample_weight(classes, y))
    actual = train(X, y, **settings, class_weight=value)

    np.testing.assert_allclose(actual.loss, expected.loss, rtol=1e-13)
    np.testing.assert_allclose(actual.network.params, expected.network.params, rtol=1e-12, atol=1e-15)


def test_weights_of_classes_and_rows_are_multiplied():
    X, y = task("cross_entropy")
    settings = {"hidden": 4, "loss": "cross_entropy", "epochs": 5, "seed": 0}
    factors = np.array([0.5, 1.0, 4.0])

    expected = bits(train(X, y, **settings, sample_weight=WEIGHTS * factors[y]))
    actual = bits(train(X, y, **settings, sample_weight=WEIGHTS, class_weight={0: 0.5, 2: 4.0}))

    assert actual == expected


def test_classes_are_balanced_among_the_rows_trained_on():
    X, y = task("cross_entropy")
    settings = {"hidden": 4, "loss": "cross_entropy", "epochs": 5, "seed": 0}
    rest = ~held_rows(0, 0.3)

    expected = train(X[rest], y[rest], **settings, class_weight="balanced", batch_size=None)
    actual = train(X, y, **settings, class_weight="balanced", batch_size=None, validation=0.3)

    np.testing.assert_allclose(actual.network.params, expected.network.params, rtol=1e-12)


# --- regularisation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("reduction", "rows"), [("mean", 1), ("mean", 2), ("sum", 2)])
def test_l2_shrinks_weights_and_not_biases(reduction, rows, backend):
    """All residuals are 0, so that nothing but the penalty moves a weight."""
    network = Network((1, 2, 1), activation="identity")
    network.params[:] = [4, 5, 6, 7, 0, 0, 3]  # W, b, W, b of the two layers
    settings = {"network": network, "optimizer": "sgd", "learning_rate": 0.25, "epochs": 1, "batch_size": None}
    divisor = rows if reduction == "mean" else 1
    result = train([[0.0]] * rows, [3.0] * rows, **settings, l2=0.5, reduction=reduction, backend=backend)

    expected = [*(np.array([4, 5]) * (1 - 0.25 * 0.5 / divisor)), 6, 7, 0, 0, 3]
    actual = network.params.tolist()

    assert actual == expected
    assert result.loss.tolist() == [0.5 / 2 * (4**2 + 5**2) / rows]
    assert result.error.tolist() == [0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_huber_delta_is_where_the_loss_ceases_to_be_quadratic(backend):
    """Worked by hand: y = w x with w = 0 and x = 1, 1, of which one residual is beyond delta."""
    settings = {"bias": False, "init": "zeros", "optimizer": "sgd", "learning_rate": 1.0, "batch_size": None}
    result = train(
        [[1.0], [1.0]], [5, 0.25], **settings, epochs=1, loss="huber", huber_delta=0.5, reduction="sum", backend=backend
    )

    expected = [0.5 + 0.25, (0.5 * (5 - 0.25) + 0.25**2 / 2) / 2]
    actual = [result.network.params[0], result.loss[0]]

    np.testing.assert_allclose(actual, expected, rtol=1e-14)
    assert result.network.huber_delta == 0.5


@pytest.mark.parametrize("weighted", [False, True])
def test_model_without_hidden_layers_becomes_ridge_regression(weighted, rng):
    X, y = rng.normal(size=(50, 3)), rng.normal(size=(50, 2))
    weights = rng.uniform(0.1, 2, 50) if weighted else None
    settings = {"optimizer": "sgd", "learning_rate": 0.3, "batch_size": None, "epochs": 800, "sample_weight": weights}
    network = train(X, y, **settings, l2=20.0).network
    ridge = Ridge(alpha=20.0).fit(X, y, sample_weight=weights)

    expected = np.vstack([ridge.coef_.T, ridge.intercept_])
    actual = np.vstack([network.weights[0], network.biases[0]])

    np.testing.assert_allclose(actual, expected, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_long_gradient_is_clipped_to_its_norm(backend):
    X, y = task("squared_error")
    network = Network((3, 4, 2), seed=0)
    before, (_, gradient) = network.params.copy(), network.loss_and_gradient(X, y)
    norm = np.sqrt((gradient**2).sum())
    settings = {"optimizer": "sgd", "learning_rate": 0.5, "batch_size": None, "epochs": 1, "backend": backend}

    for share in (0.1, 0.9, 1.1):
        twin = network.copy()
        train(X, y, network=twin, **settings, clip_norm=share * norm)

        expected = before - 0.5 * min(share, 1) * gradient
        actual = twin.params

        np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-15)


def test_dropout_of_nothing_is_no_dropout():
    expected = outcome(train(**arguments("l2", epochs=5)))
    actual = [outcome(train(**arguments("l2", epochs=5, dropout=rate))) for rate in (0, (0.0, 0), [0, 0])]

    assert actual == [expected] * 3


def test_dropout_is_drawn_by_the_seed():
    settings = {
        "init": "zeros",
        "hidden": 9,
        "batch_size": None,
        "epochs": 5,
        "dropout": 0.5,
        "activation": "exponential",
    }
    first, again, other = (outcome(train(*task("squared_error"), **settings, seed=seed)) for seed in (1, 1, 2))

    assert again == first
    assert other != first


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_keeps_the_mean_and_drops_its_share(backend):
    """A thousand hidden units that are 1, of which the output is the sum: a thousand samples of the binomial."""
    network = Network((1, 1000, 1), activation="identity", bias=False)
    network.params[:] = 1
    settings = {"network": network, "optimizer": "sgd", "learning_rate": 1e-300, "batch_size": None, "epochs": 2}
    result = train(np.ones((1000, 1)), np.full(1000, 1000.0), **settings, dropout=0.2, seed=0, backend=backend)

    expected = [0.5 * 1000 * 0.2 / 0.8] * 2  # half the variance of the sum of units that are 0 or 1.25
    actual = result.loss

    np.testing.assert_allclose(actual, expected, rtol=0.1)
    assert actual[0] != actual[1]


# --- optimisers and schedules -------------------------------------------------------------------------------------


def test_irprop_takes_steps_of_its_own():
    """Worked by hand for y = w x with x = 1, y = 1, w = 0: the step grows by 1.2, and halves where the sign turns."""
    settings = {"bias": False, "init": "zeros", "batch_size": None, "epochs": 1}
    result, path = None, []
    for _ in range(6):
        result = train([[1.0]], [1.0], **settings, optimizer=IRprop(learning_rate=0.5)) if result is None else resume(
            result, [[1.0]], [1.0], epochs=1
        )  # fmt: skip
        path.append(result.network.params[0])

    # 0.5, then 0.6 more; the gradient turns: no step, which is 0.3 from now on; 0.3 back; it turns again, and so on
    expected = [0.5, 1.1, 1.1, 0.8, 0.8, 0.95]
    actual = path

    np.testing.assert_allclose(actual, expected, rtol=1e-14)


def plateau(t, patience, factor, minimum):
    """Factor in epoch t where no epoch but the first is better."""
    reached = 1.0
    for _ in range(max(t - 1, 0) // (patience + 1)):
        reached *= factor if reached > minimum else 1
    return reached


# Schedules, and their factor in epoch t, counted from 0, of 12.
FACTORS = [
    (Constant(), lambda t: 1),
    (ExponentialDecay(0.9), lambda t: 0.9**t),
    (ExponentialDecay(1.0), lambda t: 1),
    (InverseScaling(), lambda t: (1 + t) ** -0.5),
    (InverseScaling(power=1.5, pace=3), lambda t: (1 + 3 * t) ** -1.5),
    (CosineDecay(), lambda t: (1 + np.cos(np.pi * t / 12)) / 2),
    (CosineDecay(epochs=5, minimum=0.25), lambda t: 0.25 + 0.75 * (1 + np.cos(np.pi * min(t / 5, 1))) / 2),
    (CosineDecay(warmup=3), lambda t: (t + 1) / 4 if t < 3 else (1 + np.cos(np.pi * (t - 3) / 9)) / 2),
    (ReduceOnPlateau(0.5, patience=2, min_delta=1e9), lambda t: plateau(t, 2, 0.5, 0)),
    (ReduceOnPlateau(0.5, patience=0, min_delta=1e9, minimum=0.3), lambda t: plateau(t, 0, 0.5, 0.3)),
    (ReduceOnPlateau(patience=0, min_delta=0.0), lambda t: 1),  # each epoch is better
]


def test_every_schedule_has_its_formula():
    assert {type(schedule) for schedule, _ in FACTORS} == {*SCHEDULES.values()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("schedule", "factor"), FACTORS, ids=[str(schedule) for schedule, _ in FACTORS])
def test_learning_rate_follows_the_schedule(schedule, factor, backend):
    """The gradient of |w - y| is -1 while w is below y, so that each epoch adds its rate to w."""
    weights = [0.0]
    settings = {"bias": False, "init": "zeros", "optimizer": "sgd", "learning_rate": 0.5, "batch_size": None}
    train(
        [[1.0]], [1e6], **settings, loss="absolute_error", epochs=12, schedule=schedule, backend=backend,
        callback=lambda state: weights.append(float(state.network.params[0])),
    )  # fmt: skip

    expected = [0.5 * factor(t) for t in range(12)]
    actual = np.diff(weights)

    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


# --- validation ---------------------------------------------------------------------------------------------------


def held_rows(seed, share, loss="squared_error", rows=37, **settings):
    """Rows of `task` whose values change nothing but the validation."""
    X, y = task(loss, rows)
    settings = {
        "init": "zeros",
        "batch_size": None,
        "epochs": 2,
        "loss": loss,
        "seed": seed,
        "validation": share,
    } | settings
    before, held = train(X, y, **settings), []
    for row in range(rows):
        changed = X.copy()
        changed[row] += 1
        after = train(changed, y, **settings)
        held.append(after.state.params.tobytes() == before.state.params.tobytes())
        assert held[-1] == (after.loss.tobytes() == before.loss.tobytes())
        assert not held[-1] or after.validation_loss[0] != before.validation_loss[0]
    return np.array(held)


@pytest.mark.parametrize(("share", "expected"), [(0.3, 11), (0.01, 1), (0.5, 18), (0.97, 36)])
def test_share_of_the_rows_is_left_out_of_the_training(share, expected):
    actual = np.count_nonzero(held_rows(5, share))

    assert actual == expected


def test_rows_for_validation_are_drawn_by_the_seed():
    first, again, other = (held_rows(seed, 0.3).tolist() for seed in (5, 5, 6))

    assert again == first
    assert other != first


@pytest.mark.parametrize("changed", [{"backend": "numpy"}, {"dtype": "float32"}, {"patience": 0}], ids=str)
def test_rows_for_validation_do_not_depend_on_anything_else(changed):
    expected = held_rows(5, 0.3).tolist()
    actual = held_rows(5, 0.3, **changed).tolist()

    assert actual == expected


@pytest.mark.parametrize("batch_size", [5, None])
@pytest.mark.parametrize("loss", LOSSES)
def test_share_is_trained_and_measured_like_two_sets(loss, batch_size):
    X, y = task(loss)
    held = held_rows(5, 0.3)
    settings = {"hidden": 4, "loss": loss, "epochs": 6, "batch_size": batch_size, "seed": 5}
    weights, rest = WEIGHTS + 0.5, ~held

    parts = {"sample_weight": weights[rest], "validation": (X[held], y[held], weights[held])}
    expected = outcome(train(X[rest], y[rest], **settings, **parts))
    actual = outcome(train(X, y, **settings, sample_weight=weights, validation=0.3))

    assert actual == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_validation_changes_no_weight(loss, backend):
    settings = {"hidden": 4, "loss": loss, "epochs": 6, "batch_size": 5, "seed": 0, "backend": backend}

    expected = bits(train(*task(loss), **settings))
    actual = bits(train(*task(loss), **settings, validation=held_out(loss)))

    assert actual == expected


def score_of(loss, y, p, weights):
    """The score as scikit-learn has it."""
    if loss == "cross_entropy":
        return accuracy_score(y, p.argmax(axis=1), sample_weight=weights)
    if loss == "binary_cross_entropy":
        return accuracy_score(y.astype(int), (p > 0.5).astype(int), sample_weight=weights)
    if loss == "quantile":  # scikit-learn's own interpolates the best constant
        order = np.argsort(y[:, 0])
        below = np.cumsum(np.ones(len(y)) if weights is None else weights[order])
        constants = y[order[np.searchsorted(below, LEVELS * below[-1])], 0]
        ours, best = (np.average(pinball(each, y), axis=0, weights=weights) for each in (p, constants))
        return np.mean(1 - ours / best)
    return r2_score(y, predictions(loss, p), sample_weight=weights)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("extras", [{}, {"l2": 0.5, "dropout": 0.5}], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_validation_is_that_of_predict_after_each_epoch(loss, extras, weighted, backend):
    X, y, weights = held_out(loss, True)
    weights = weights if weighted else None
    rows = np.eye(3)[y] if loss == "cross_entropy" else y.astype(float)
    expected = {name: [] for name in VALIDATED}

    def measure(state):
        p = state.network.predict(X)
        each = [LOSS_FORMULAS[loss](p[i : i + 1], rows[i : i + 1]) for i in range(len(p))]
        expected["validation_loss"].append(np.average(each, weights=weights))
        expected["validation_error"].append(
            np.average(np.abs(predictions(loss, p) - rows).mean(axis=1), weights=weights)
        )
        expected["validation_score"].append(score_of(loss, y, p, weights))

    settings = {"hidden": 4, "loss": loss, "epochs": 6, "batch_size": 5, "seed": 0, "backend": backend} | extras
    result = train(*task(loss), **settings, validation=held_out(loss, weighted), callback=measure)

    for name in VALIDATED:
        np.testing.assert_allclose(getattr(result, name), expected[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_constant_target_counts_as_a_score_of_0(backend):
    X, y = task("squared_error")
    y = np.column_stack([y[:, 0], np.full(37, 0.1)])
    settings = {"hidden": 4, "epochs": 3, "seed": 0, "backend": backend}
    result = train(X, y, **settings, validation=(X[:3], y[:3]))  # 0.1 three times has a mean above 0.1

    expected = 0.5 * r2_score(y[:3, 0], result.network.predict(X[:3])[:, 0])
    actual = result.validation_score[-1]

    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_validation_without_epochs_is_empty(backend):
    result = train(*task("squared_error"), epochs=0, validation=0.3, patience=3, seed=0, backend=backend)

    assert [getattr(result, name).shape for name in VALIDATED] == [(0,)] * 3
    assert (result.best_epoch, result.stopped) == (None, "epochs")
    assert result.network.params.tobytes() == Network((3, 2), seed=0).params.tobytes()


def test_without_validation_there_are_no_figures_of_it():
    result = train(*task("squared_error"), epochs=3)

    assert [getattr(result, name) for name in VALIDATED] == [None] * 3
    assert result.best_epoch is None


# --- stopping -----------------------------------------------------------------------------------------------------

NOISY = {"hidden": 9, "learning_rate": 0.1, "batch_size": 5, "seed": 4}  # losses go up and down


def stop_epoch(figures, patience, min_delta):
    """Epochs done when more than `patience` in a row were not better than the best before."""
    best, stale = np.inf, 0
    for epoch, figure in enumerate(figures, 1):
        stale = 0 if figure < best - min_delta else stale + 1
        best = min(best, figure)
        if stale > patience:
            return epoch
    return len(figures)


STOPPING = [
    ("squared_error", {"validation": 0.3}, "validation_loss", 1),
    ("squared_error", {"validation": held_out()}, "validation_loss", 1),
    ("squared_error", {"validation": 0.3, "watch": "score"}, "validation_score", -1),
    ("cross_entropy", {"validation": 0.3, "watch": "score"}, "validation_score", -1),
    ("cross_entropy", {"validation": 0.3}, "validation_loss", 1),
    ("squared_error", {}, "loss", 1),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("patience", "min_delta"), [(0, 0.0), (1, 0.0), (3, 0.0), (2, 0.05), (5, 0.2), (1000, 0.0)])
@pytest.mark.parametrize(("loss", "settings", "figure", "sign"), STOPPING)
def test_patience_counts_epochs_that_are_not_better(loss, settings, figure, sign, patience, min_delta, backend):
    X, y = task(loss)
    settings = NOISY | settings | {"loss": loss, "epochs": 30, "backend": backend}
    whole = train(X, y, **settings)

    expected = stop_epoch(sign * getattr(whole, figure), patience, min_delta)
    result = train(X, y, **settings, patience=patience, min_delta=min_delta)
    actual = len(result.loss)

    assert actual == expected
    assert result.stopped == ("epochs" if patience == 1000 else "patience")
    np.testing.assert_array_equal(result.loss, whole.loss[:actual])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("changed", [{}, {"epochs": 5}, {"time_limit": 1e-9}, {"callback": lambda s: s.epoch == 9}])
@pytest.mark.parametrize(("loss", "settings", "figure", "sign"), STOPPING[:-1])
def test_weights_of_the_best_epoch_are_restored(loss, settings, figure, sign, changed, backend):
    X, y = task(loss)
    settings = NOISY | settings | {"loss": loss, "backend": backend}
    result = train(X, y, **settings | {"epochs": 30, "patience": 6} | changed)
    figures = sign * getattr(result, figure)

    expected = train(X, y, **settings | {"epochs": result.best_epoch}).network.params
    actual = result.network.params

    assert result.best_epoch == 1 + figures.argmin()
    assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("patience", [None, 1000])
@pytest.mark.parametrize(("target", "best"), [(10.0, None), (0.1, 200)])
def test_validation_that_overflows_is_never_the_best(target, best, patience, backend):
    """The weight of p = exp(w x) goes from 0.1 to the logarithm of the target, while x = 10,000 is validated."""
    network = Network((1, 1), output="exponential", bias=False)
    network.params[:] = 0.1
    settings = {"network": network, "batch_size": None, "epochs": 200, "learning_rate": 0.01, "backend": backend}
    result = train([[1.0]], [target], **settings, validation=([[1e4]], [-1.0]), patience=patience)

    expected = best
    actual = result.best_epoch

    assert np.isinf(result.validation_loss[0])
    assert actual == expected or result.validation_loss[actual - 1] == result.validation_loss[best - 1] < np.inf
    assert patience is None or best or network.params.tobytes() == result.state.params.tobytes()


def test_some_best_epoch_is_not_the_last():
    """Otherwise the tests above would say nothing."""
    result = train(*task("squared_error"), **NOISY, epochs=30, validation=0.3, patience=6)

    assert 1 < result.best_epoch < len(result.loss)


@pytest.mark.parametrize("settings", [{"validation": 0.3}, {"patience": 2}], ids=str)
def test_last_weights_are_kept_without_validation_or_patience(settings):
    X, y = task("squared_error")
    result = train(X, y, **NOISY, epochs=30, **settings)

    expected = result.state.params
    actual = result.network.params

    assert actual.tobytes() == expected.tobytes()
    assert not np.shares_memory(actual, expected)


ENDS = {
    "epochs": {"epochs": 7},
    "patience": {"patience": 0, "min_delta": 1e9},
    "plateau": {"schedule": ReduceOnPlateau(0.5, patience=0, min_delta=1e9, minimum=0.3, stop=True)},
    "time": {"time_limit": 1e-9},
    "callback": {"callback": lambda state: state.epoch == 4},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("end", ENDS)
def test_result_says_why_training_ended(end, backend):
    X, y = task("squared_error")
    done = {"epochs": 7, "patience": 2, "plateau": 4, "callback": 4}
    result = train(X, y, **{"epochs": 10_000, "seed": 0, "backend": backend} | ENDS[end])

    assert result.stopped == end
    assert len(result.loss) == done.get(end, len(result.loss))
    assert 1 <= len(result.loss) < 10_000


@pytest.fixture
def clock(monkeypatch):
    """A clock that each look puts forward by as much as a chunk should take, so that chunks stay as short as can be."""
    looks = itertools.count()
    monkeypatch.setattr(trainer.time, "perf_counter", lambda: next(looks) * trainer.CHUNK_SECONDS)
    return looks


@pytest.mark.parametrize("backend", BACKENDS)
def test_time_limit_ends_after_a_whole_epoch(backend, clock):
    X, y = task("squared_error")
    settings = {"batch_size": 5, "seed": 0, "backend": backend}
    epoch = (2 * 8 + 1) * trainer.CHUNK_SECONDS  # before and after each of 8 batches, and at the end
    result = train(X, y, **settings, epochs=1000, time_limit=2.5 * epoch)

    expected = train(X, y, **settings, epochs=3)
    actual = result

    assert actual.stopped == "time"
    assert 2.5 * epoch <= actual.seconds < 3.5 * epoch
    assert bits(actual) == bits(expected)


@pytest.mark.timed
@pytest.mark.parametrize("backend", BACKENDS)
def test_time_limit_is_kept_to_within_two_chunks(backend):
    settings = {"batch_size": 5, "seed": 0, "backend": backend, "epochs": 3_000_000}
    train(*task("squared_error"), **settings | {"epochs": 1})
    assert_once_at_most(
        0.05 + 2 * trainer.CHUNK_SECONDS, lambda: train(*task("squared_error"), **settings, time_limit=0.05).seconds
    )


def test_time_limit_does_not_count_the_compiling(clock, monkeypatch):
    quick = trainer.engine

    def engine(backend):
        for _ in range(1000):
            next(clock)
        return quick(backend)

    monkeypatch.setattr(trainer, "engine", engine)
    result = train(*task("squared_error"), epochs=20, time_limit=900 * trainer.CHUNK_SECONDS)

    assert result.stopped == "epochs"
    assert result.compile_seconds > 1000 * trainer.CHUNK_SECONDS
    assert result.seconds < 900 * trainer.CHUNK_SECONDS


def test_time_limit_after_the_last_epoch_is_none():
    result = train(*task("squared_error"), epochs=1, time_limit=1e-9)

    assert result.stopped == "epochs"


# --- callback -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("every", [1, 3, 10, 11])
def test_callback_is_called_every_so_many_epochs(every, backend):
    epochs = []
    train(
        *task("squared_error"), epochs=10, callback=lambda state: epochs.append(state.epoch), callback_every=every,
        backend=backend,
    )  # fmt: skip

    expected = list(range(every, 11, every))
    actual = epochs

    assert actual == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("validation", [None, 0.3])
def test_callback_is_shown_the_present_state(validation, backend):
    X, y = task("squared_error")
    settings = {"hidden": 4, "batch_size": 5, "seed": 0, "validation": validation, "backend": backend}
    states = []
    train(X, y, **settings, epochs=9, callback=states.append, callback_every=4)
    names = ("loss", "error", "validation_loss", "validation_error")

    for state, epoch in zip(states, (4, 8), strict=True):
        expected = train(X, y, **settings, epochs=epoch)

        assert state.epoch == epoch
        assert state.network.params.tobytes() == expected.network.params.tobytes()
        assert repr(state.network) == repr(expected.network)
        assert state.network.predict(X).tobytes() == expected.network.predict(X).tobytes()
        for name in names:
            np.testing.assert_array_equal(getattr(state, name), getattr(expected, name))


def test_state_is_read_only():
    network = Network((3, 2), seed=0)

    def write(state):
        arrays = [state.network.params, state.network.weights[0], state.network.biases[0], *state[2:]]
        assert len(arrays) == 7
        for array in arrays:
            with pytest.raises(ValueError, match="read-only"):
                array[:] = 0
        assert state.network is not network
        with pytest.raises(ValueError, match="read-only"):
            state.network.params = np.full(8, np.nan)

    expected = outcome(train(*task("squared_error"), network=network.copy(), epochs=3, seed=0, validation=0.3))
    actual = outcome(train(*task("squared_error"), network=network, epochs=3, seed=0, validation=0.3, callback=write))

    assert actual == expected


ANSWERS = [(True, 1), (np.True_, 1), (None, 5), (False, 5), (np.False_, 5), (1, 5), ("stop", 5), ([0], 5)]


@pytest.mark.parametrize(("answer", "expected"), ANSWERS, ids=repr)
def test_callback_stops_with_true_alone(answer, expected):
    result = train(*task("squared_error"), epochs=5, callback=lambda state: answer)
    actual = len(result.loss)

    assert actual == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_error_of_a_callback_passes_and_leaves_the_weights_so_far(backend):
    class MineError(Exception):
        pass

    def fail(state):
        if state.epoch == 6:
            raise MineError("as intended")

    X, y = task("squared_error")
    network, twin = Network((3, 4, 2), seed=0), Network((3, 4, 2), seed=0)
    settings = {"seed": 0, "validation": 0.3, "patience": 100, "backend": backend}
    with pytest.raises(MineError, match="as intended"):
        train(X, y, network=network, epochs=20, callback=fail, callback_every=3, **settings)

    train(X, y, network=twin, epochs=6, seed=0, validation=0.3, backend=backend)

    assert network.params.tobytes() == twin.params.tobytes()


def test_callback_may_train_another_network():
    X, y = task("squared_error")
    inner = []

    expected = outcome(train(X, y, hidden=4, epochs=3, seed=0))
    actual = outcome(
        train(X, y, hidden=4, epochs=3, seed=0, callback=lambda s: inner.append(train(X, y, 4, epochs=s.epoch, seed=0)))
    )

    assert actual == expected
    assert outcome(inner[-1]) == expected


# --- logging ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ENDS)
def test_run_is_logged(end, caplog):
    caplog.set_level("INFO", "fastbp")
    result = train(*task("squared_error"), **{"epochs": 10_000, "seed": 0} | ENDS[end])

    ready, ended = [record for record in caplog.records if record.name != "fastbp.jit"]  # which compiles at most once

    assert [(record.name, record.levelname) for record in (ready, ended)] == [("fastbp", "INFO")] * 2
    assert re.fullmatch(r"kernels ready after \d+\.\d\d s", ready.message)
    assert re.fullmatch(rf"trained to epoch {len(result.loss)} in \d+\.\d{{3}} s, stopped by {end}", ended.message)


def test_nothing_is_printed_unless_logging_is_set_up():
    code = """
import json
import fastbp

fastbp.train([[0.0], [1.0]], [1.0, 0.0], epochs=3)
print(json.dumps(None))
"""
    done = python("-c", code)

    assert (done.returncode, done.stdout, done.stderr) == (0, "null\n", "")


# --- resume -------------------------------------------------------------------------------------------------------

KINDS = {"": {}, "numpy": {"backend": "numpy"}, "float32": {"dtype": "float32"}, "full batch": {"batch_size": None}}
RESUMED = [(name, kind) for name in EXTRAS for kind in KINDS]


def whole(name, kind, epochs):
    """A training without interruption."""
    return train(**arguments(name, epochs=epochs, **KINDS[kind]))


def data_of(name):
    """What `resume` is handed beside the result: data are in no file."""
    settings = arguments(name)
    handed = {"X", "y", "sample_weight"} | ({"validation"} if isinstance(settings.get("validation"), tuple) else set())
    return {name: value for name, value in settings.items() if name in handed}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """What a new process makes of the files of five epochs and five more."""
    directory = tmp_path_factory.mktemp("trainings")
    for i, row in enumerate(RESUMED):
        whole(*row, epochs=5).save(directory / str(i))
    (directory / "data").write_bytes(pickle.dumps([data_of(name) for name, _ in RESUMED]))
    printed(f"""
import json, os, pickle
import fastbp

os.chdir({str(directory)!r})
with open("data", "rb") as file:
    data = pickle.load(file)
results = [fastbp.resume(str(i), **given, epochs=5) for i, given in enumerate(data)]
with open("results", "wb") as file:
    pickle.dump(results, file)
print(json.dumps(len(results)))
""")
    return dict(zip(RESUMED, pickle.loads((directory / "results").read_bytes()), strict=True))


@pytest.mark.parametrize(("name", "kind"), RESUMED)
def test_five_epochs_and_five_more_in_a_new_process_give_the_bits_of_ten(name, kind, resumed):
    expected = outcome(whole(name, kind, epochs=10))
    actual = outcome(resumed[name, kind])

    assert actual == expected


def test_five_epochs_are_in_the_middle_of_what_is_counted():
    """Otherwise the test above would be about less than it seems."""
    counting = {name: whole(name, "", epochs=5).state.arrays for name in EXTRAS}

    assert all(len(arrays["loss"]) == 5 for arrays in counting.values())
    assert counting["plateau"]["position"][STALE_RATE] > 0
    assert counting["patience"]["position"][STALE] > 0
    assert 1 > counting["plateau of the validation"]["totals"][FACTOR] > 0
    assert whole("patience", "", epochs=10).stopped == "patience"
    assert whole("plateau that stops", "", epochs=10).stopped == "plateau"
    assert [whole("best is not the last", "", epochs=epochs).best_epoch for epochs in (5, 10)] == [3, 6]


def test_resumed_result_stays_as_it_is():
    result = whole("all at once", "", epochs=5)
    before = outcome(result)
    on = resume(result, **data_of("all at once"), epochs=5)

    assert outcome(result) == before
    assert on.network is not result.network
    for name, array in result.state.arrays.items():
        assert not np.shares_memory(array, on.state.arrays[name])
    assert not np.shares_memory(result.network.params, on.network.params)


@pytest.mark.parametrize("name", EXTRAS)
def test_training_may_be_resumed_any_number_of_times(name):
    result = whole(name, "", epochs=0)
    for epochs in (2, 0, 1, 3):
        result = resume(result, **data_of(name), epochs=epochs)

    expected = outcome(whole(name, "", epochs=6))
    actual = outcome(result)

    assert actual == expected


def test_result_survives_pickling():
    result = pickle.loads(pickle.dumps(whole("all at once", "", epochs=5)))

    expected = outcome(whole("all at once", "", epochs=10))
    actual = outcome(resume(result, **data_of("all at once"), epochs=5))

    assert actual == expected


def test_resumed_training_keeps_the_seed(tmp_path):
    X, y = task("squared_error")
    result = train(X, y, epochs=2)
    result.save(tmp_path / "file")

    assert resume(result, X, y, epochs=1).seed == result.seed
    assert resume(str(tmp_path / "file"), X, y, epochs=1).seed == result.seed


@pytest.mark.parametrize("end", ["time", "callback"])
def test_stopped_training_goes_on_as_if_it_had_not_been(end):
    X, y = task("squared_error")
    settings = {"hidden": 4, "batch_size": 5, "seed": 0, "validation": 0.3, "patience": 1000}
    result = train(X, y, **settings, epochs=100_000, **ENDS[end])
    done = len(result.loss)

    expected = outcome(train(X, y, **settings, epochs=done + 6))
    actual = outcome(resume(result, X, y, epochs=6))

    assert result.stopped == end
    assert actual == expected


def test_callback_of_a_resumed_training_counts_from_there():
    X, y = task("squared_error")
    states = []
    result = train(X, y, epochs=5, seed=0, validation=0.3)
    on = resume(result, X, y, epochs=5, callback=states.append, callback_every=2)

    assert [state.epoch for state in states] == [7, 9]
    assert states[-1].loss.tolist() == on.loss[:9].tolist()
    assert states[-1].validation_loss.tolist() == on.validation_loss[:9].tolist()


def test_time_limit_of_a_resumed_training_is_its_own():
    X, y = task("squared_error")
    on = resume(train(X, y, epochs=5, seed=0), X, y, epochs=1_000_000, time_limit=0.01)

    assert on.stopped == "time"
    assert 5 < len(on.loss) < 1_000_000


@pytest.mark.parametrize("batch_size", [5, None])
def test_training_may_go_on_with_other_rows(batch_size):
    """Plain SGD remembers nothing of the rows it has seen."""
    X, y = task("squared_error", 60)
    settings = {"optimizer": "sgd", "learning_rate": 0.05, "batch_size": batch_size, "shuffle": False, "seed": 0}
    network = train(X[:37], y[:37], hidden=4, **settings, epochs=3).network

    result = train(X[:37], y[:37], hidden=4, **settings, epochs=3)
    expected = train(X[37:], y[37:], network=network, **settings, epochs=4)
    actual = resume(result, X[37:], y[37:], epochs=4)

    assert actual.network.params.tobytes() == expected.network.params.tobytes()
    assert actual.loss.tolist() == [*result.loss, *expected.loss]


def test_resumed_training_may_diverge():
    X, y = task("squared_error")
    settings = {"optimizer": SGD(momentum=0.9), "learning_rate": 2.0, "batch_size": 10, "seed": 2}
    epoch = diverge(settings)[0].epoch
    result = train(X, y, **settings, epochs=epoch - 3)
    with pytest.raises(DivergenceError) as caught:
        resume(result, X, y, epochs=1000)

    expected = outcome(train(X, y, **settings, epochs=epoch - 1))
    actual = outcome(caught.value.result)

    assert caught.value.epoch == epoch
    assert actual == expected


RESUME_BAD = [
    ("data", {"validation": None}, ParameterError, "'validation' must be given if the training had data for it"),
    ("l2", {"validation": held_out()}, ParameterError, "'validation' must be given if the training had data for it"),
    ("l2", {"validation": 0.3}, ParameterError, "'validation' must be data or left out"),
    ("share", {"validation": 0.3}, ParameterError, "'validation' must be data or left out: a share of the rows is rem"),
    ("share", {"validation": held_out()}, ParameterError, "'validation' must be data or left out: a share of the rows"),
    ("data", {"validation": [1, 2]}, ParameterTypeError, "'validation' must be a share of the rows or a tuple"),
    ("data", {"validation": (np.ones((4, 2)), np.ones((4, 2)))}, DataError, r"validation\[0\] has 2 columns"),
    ("l2", {"X": np.ones((37, 2))}, DataError, "X has 2 columns, the network has 3 inputs"),
    ("l2", {"y": np.ones(37)}, DataError, "y has 1 column, the network has 2 outputs"),
    ("l2", {"X": np.full((37, 3), np.nan)}, DataError, "'X' must be finite"),
    ("balanced", {"y": np.full(37, 3)}, DataError, r"'y' must hold class numbers in 0\.\.2"),
    ("l2", {"sample_weight": np.ones(36)}, DataError, r"'sample_weight' must have shape \(37,\)"),
    ("l2", {"epochs": -1}, ParameterError, "'epochs' must be an integer >= 0"),
    ("l2", {"epochs": 1.0}, ParameterTypeError, "'epochs'"),
    ("l2", {"time_limit": 0}, ParameterError, "'time_limit'"),
    ("l2", {"callback": 1}, ParameterTypeError, "'callback' must be callable"),
    ("l2", {"callback_every": 0}, ParameterError, "'callback_every'"),
    ("l2", {"progress": 1}, ParameterTypeError, "'progress'"),
    ("l2", {"threads": 0}, ParameterError, "'threads' must be 'auto' or an integer >= 1, got 0"),
    ("l2", {"result": None}, ParameterTypeError, "'path' must be a str or os.PathLike"),
    ("l2", {"result": Network((3, 2))}, ParameterTypeError, "'path' must be a str or os.PathLike"),
]


def test_every_parameter_of_resume_has_bad_values():
    expected = {*inspect.signature(resume).parameters}
    actual = {name for _, changed, _, _ in RESUME_BAD for name in changed}

    assert actual == expected


@pytest.mark.parametrize(("name", "changed", "error", "fragment"), RESUME_BAD, ids=range(len(RESUME_BAD)))
def test_bad_argument_of_resume_is_refused(name, changed, error, fragment, monkeypatch):
    result = whole(name, "", epochs=1)
    before = outcome(result)
    monkeypatch.setattr(trainer, "engine", lambda backend: pytest.fail("the bad argument reached a kernel"))
    with pytest.raises(error, match=fragment):
        resume(**{"result": result, "epochs": 1} | data_of(name) | changed)

    assert outcome(result) == before


# --- bad arguments ------------------------------------------------------------------------------------------------

with_nan = np.where(XOR_X == 1, np.nan, XOR_X)
with_infinity = np.where(XOR_X == 1, np.inf, XOR_X)

BAD = [
    # X
    ({"X": None}, ParameterTypeError, "'X'"),
    ({"X": 3.0}, ParameterTypeError, "'X'"),
    ({"X": "0 1"}, ParameterTypeError, "'X'"),
    ({"X": {0: 1}}, ParameterTypeError, "'X'"),
    ({"X": [0, 1, 2, 3]}, DataError, "'X' must be 2-D"),
    ({"X": np.zeros((4, 2, 1))}, DataError, "'X' must be 2-D"),
    ({"X": np.zeros((0, 2)), "y": []}, DataError, "'X' must have at least 1 row"),
    ({"X": np.zeros((4, 0))}, DataError, "'X' must have at least 1 column"),
    ({"X": [[0, 1], [2]]}, DataError, "rows of equal length"),
    ({"X": with_nan}, DataError, "'X' must be finite"),
    ({"X": with_infinity}, DataError, "'X' must be finite"),
    ({"X": XOR_X * 1e300, "dtype": "float32"}, DataError, "'X' must not overflow float32"),
    ({"X": XOR_X.astype(str)}, DataError, "'X' must hold real numbers"),
    ({"X": XOR_X.astype(object)}, DataError, "'X' must hold real numbers"),
    ({"X": XOR_X.astype(complex)}, DataError, "'X' must hold real numbers"),
    ({"X": np.ma.masked_equal(XOR_X, 1)}, DataError, "'X' must have no masked values"),
    # y
    ({"y": None}, ParameterTypeError, "'y'"),
    ({"y": 1.0}, ParameterTypeError, "'y'"),
    ({"y": [0, 1, 1]}, DataError, "X has 4 rows, y has 3"),
    ({"y": [0, 1, 1, 0, 1]}, DataError, "X has 4 rows, y has 5"),
    ({"y": XOR_Y.T}, DataError, "X has 4 rows, y has 1"),
    ({"y": np.zeros((4, 0))}, DataError, "'y' must have shape"),
    ({"y": np.zeros((4, 1, 1))}, DataError, "'y' must have shape"),
    ({"y": [0, 1, np.nan, 0]}, DataError, "'y' must be finite"),
    ({"y": [0, 1, -np.inf, 0]}, DataError, "'y' must be finite"),
    ({"y": [0, 1, 1e39, 0], "dtype": "float32"}, DataError, "'y' must not overflow float32"),
    ({"y": ["a", "b", "b", "a"], "loss": "cross_entropy"}, DataError, "number class names"),
    ({"y": [0, 1, 2, 0], "loss": "binary_cross_entropy"}, DataError, "'y' must be 0 or 1"),
    ({"y": [0, 1, -1, 0], "loss": "binary_cross_entropy"}, DataError, "'y' must be 0 or 1"),
    ({"y": [0, 1, 0.5, 0], "loss": "binary_cross_entropy"}, DataError, "'y' must be 0 or 1"),
    ({"y": [0, 1, np.nan, 0], "loss": "binary_cross_entropy"}, DataError, "'y'"),
    ({"y": [0, 1, -1, 0], "loss": "cross_entropy"}, DataError, "class numbers"),
    ({"y": [0, 1, 1.5, 0], "loss": "cross_entropy"}, DataError, "whole class numbers"),
    ({"y": [0, 1, np.nan, 0], "loss": "cross_entropy"}, DataError, "'y' must be finite"),
    ({"y": [0, 1, 2**40, 0], "loss": "cross_entropy"}, DataError, "class numbers"),
    ({"y": [0, 0, 0, 0], "loss": "cross_entropy"}, DataError, "at least 2 classes"),
    ({"y": np.full((4, 2), 0.6), "loss": "cross_entropy"}, DataError, "rows that sum to 1"),
    ({"y": [[2, -1]] * 4, "loss": "cross_entropy"}, DataError, "probabilities >= 0"),
    # the network
    ({"hidden": 0}, ParameterError, "'hidden' must be an integer >= 1"),
    ({"hidden": (3, 0)}, ParameterError, r"'hidden\[1\]'"),
    ({"hidden": -2}, ParameterError, "'hidden'"),
    ({"hidden": 2.0}, ParameterTypeError, "'hidden'"),
    ({"hidden": True}, ParameterTypeError, "'hidden'"),
    ({"hidden": None}, ParameterTypeError, "'hidden'"),
    ({"hidden": "64"}, ParameterTypeError, "'hidden'"),
    ({"hidden": ((3,),)}, ParameterTypeError, r"'hidden\[0\]'"),
    ({"hidden": (1,) * 1001}, ParameterError, "at most 1000 layers"),
    ({"hidden": (10**9, 10**9)}, ResourceError, "memory"),
    ({"quantiles": (0.5, 0.1)}, ParameterError, "'quantiles' must be one number or more, none below the one before"),
    ({"quantiles": ()}, ParameterError, "'quantiles' must be one number or more"),
    ({"quantiles": (0.0, 0.5)}, ParameterError, r"'quantiles\[0\]' must be a finite number > 0 and < 1, got 0.0"),
    ({"quantiles": 0.5}, ParameterTypeError, "'quantiles' must be a sequence of numbers"),
    ({"quantiles": "0.5"}, ParameterTypeError, "'quantiles' must be a sequence of numbers"),
    ({"crossing_penalty": -1.0, "loss": "quantile"}, ParameterError, "'crossing_penalty' must be a finite number >= 0"),
    ({"huber_delta": 0, "loss": "huber"}, ParameterError, "'huber_delta' must be a finite number > 0"),
    ({"huber_delta": np.inf, "loss": "huber"}, ParameterError, "'huber_delta'"),
    ({"huber_delta": "1"}, ParameterTypeError, "'huber_delta'"),
    ({"activation": "sigmiod"}, ParameterError, "did you mean 'sigmoid'"),
    ({"activation": "softmax", "hidden": 2}, ParameterError, "'activation'"),
    ({"activation": None}, ParameterTypeError, "'activation'"),
    ({"activation": ("relu", "tanh"), "hidden": 2}, ParameterError, r"one per hidden layer \(1\)"),
    ({"output": "softmax"}, ParameterError, "'output'"),
    ({"output": "tanh", "loss": "binary_cross_entropy"}, ParameterError, "with the loss 'binary_cross_entropy'"),
    ({"output": 1}, ParameterTypeError, "'output'"),
    ({"loss": "square_error"}, ParameterError, "did you mean 'squared_error'"),
    ({"loss": None}, ParameterTypeError, "'loss'"),
    ({"bias": 1}, ParameterTypeError, "'bias' must be True or False"),
    ({"init": "glorot_unifrom"}, ParameterError, "did you mean 'glorot_uniform'"),
    ({"dtype": "float16"}, ParameterError, "'dtype'"),
    ({"dtype": int}, ParameterError, "'dtype'"),
    ({"dtype": 64}, ParameterTypeError, "'dtype'"),
    # the run
    ({"optimizer": "adm"}, ParameterError, "did you mean 'adam'"),
    ({"optimizer": Adam}, ParameterTypeError, "'optimizer'"),
    ({"optimizer": None}, ParameterTypeError, "'optimizer'"),
    ({"optimizer": forged(SGD, momentum=1.0)}, ParameterError, "'momentum'"),
    ({"optimizer": forged(SGD, momentum=np.nan)}, ParameterError, "'momentum'"),
    ({"optimizer": forged(SGD, nesterov=True)}, ParameterError, "'nesterov'"),
    ({"optimizer": forged(Adam, beta1=1.0)}, ParameterError, "'beta1'"),
    ({"optimizer": forged(Adam, beta2=-0.1)}, ParameterError, "'beta2'"),
    ({"optimizer": forged(Adam, epsilon=0.0)}, ParameterError, "'epsilon'"),
    ({"optimizer": forged(Adam, learning_rate=np.inf)}, ParameterError, "'learning_rate'"),
    ({"learning_rate": 0}, ParameterError, "'learning_rate' must be a finite number > 0"),
    ({"learning_rate": -0.1}, ParameterError, "'learning_rate'"),
    ({"learning_rate": np.nan}, ParameterError, "'learning_rate'"),
    ({"learning_rate": np.inf}, ParameterError, "'learning_rate'"),
    ({"learning_rate": True}, ParameterTypeError, "'learning_rate'"),
    ({"learning_rate": "0.1"}, ParameterTypeError, "'learning_rate'"),
    ({"learning_rate": np.ones(3)}, ParameterTypeError, "'learning_rate'"),
    # what is finite and inside its bounds, but not when rounded to the working precision
    ({"learning_rate": 1e39, "dtype": "float32"}, ParameterError, "'learning_rate'"),
    ({"learning_rate": 1e-50, "dtype": "float32"}, ParameterError, "'learning_rate'"),
    ({"optimizer": SGD(momentum=1 - 1e-12), "dtype": "float32"}, ParameterError, "'momentum'"),
    ({"optimizer": Adam(beta1=1 - 1e-12), "dtype": "float32"}, ParameterError, "'beta1'"),
    ({"optimizer": Adam(beta2=1 - 1e-12), "dtype": "float32"}, ParameterError, "'beta2'"),
    ({"optimizer": Adam(epsilon=1e39), "dtype": "float32"}, ParameterError, "'epsilon'"),
    ({"optimizer": Adam(epsilon=1e-50), "dtype": "float32"}, ParameterError, "'epsilon'"),
    ({"epochs": -1}, ParameterError, "'epochs' must be an integer >= 0"),
    ({"epochs": 2**63}, ParameterError, "'epochs'"),
    ({"epochs": 2.0}, ParameterTypeError, "'epochs'"),
    ({"epochs": True}, ParameterTypeError, "'epochs'"),
    ({"epochs": None}, ParameterTypeError, "'epochs'"),
    ({"batch_size": 0}, ParameterError, "'batch_size' must be an integer >= 1"),
    ({"batch_size": -32}, ParameterError, "'batch_size'"),
    ({"batch_size": 2.5}, ParameterTypeError, "'batch_size'"),
    ({"batch_size": True}, ParameterTypeError, "'batch_size'"),
    ({"batch_size": "32"}, ParameterTypeError, "'batch_size'"),
    ({"shuffle": 0}, ParameterTypeError, "'shuffle'"),
    ({"shuffle": None}, ParameterTypeError, "'shuffle'"),
    ({"reduction": "average"}, ParameterError, "'reduction' must be one of 'mean', 'sum'"),
    ({"seed": -1}, ParameterError, "'seed'"),
    ({"seed": 2**32}, ParameterError, "'seed'"),
    ({"seed": 1.5}, ParameterTypeError, "'seed'"),
    ({"seed": True}, ParameterTypeError, "'seed'"),
    ({"y": [0, 1, -1, 0], "loss": "poisson"}, DataError, "'y' must be >= 0 with the loss 'poisson'"),
    ({"optimizer": "irprop", "batch_size": 2}, ParameterError, "'batch_size' must be None with the optimizer 'irprop'"),
    (
        {"optimizer": forged(IRprop, smallest_step=2, largest_step=1), "batch_size": None},
        ParameterError,
        "'smallest_step'",
    ),
    (
        {"optimizer": "irprop", "batch_size": None, "schedule": "cosine"},
        ParameterError,
        "'schedule' must be 'constant'",
    ),
    ({"optimizer": forged(AdamW, weight_decay=-1)}, ParameterError, "'weight_decay'"),
    ({"optimizer": forged(RMSprop, decay=1.0)}, ParameterError, "'decay'"),
    ({"schedule": "cosinus"}, ParameterError, "did you mean 'cosine'"),
    ({"schedule": None}, ParameterTypeError, "'schedule'"),
    ({"schedule": Adam()}, ParameterTypeError, "'schedule'"),
    ({"schedule": CosineDecay(warmup=7), "epochs": 7}, ParameterError, r"less than the epochs of the schedule \(7\)"),
    ({"schedule": forged(ExponentialDecay, decay=0.0)}, ParameterError, "'decay'"),
    ({"l2": -1e-9}, ParameterError, "'l2' must be a finite number >= 0"),
    ({"l2": np.inf}, ParameterError, "'l2'"),
    ({"l2": None}, ParameterTypeError, "'l2'"),
    ({"dropout": 1.0, "hidden": 2}, ParameterError, "'dropout'"),
    ({"dropout": 0.5}, ParameterError, r"one per hidden layer \(0\)"),
    ({"dropout": (0.5,), "hidden": (2, 2)}, ParameterError, r"one per hidden layer \(2\), got 1"),
    ({"dropout": "0.5", "hidden": 2}, ParameterTypeError, "'dropout'"),
    ({"clip_norm": 0}, ParameterError, "'clip_norm' must be a finite number > 0"),
    ({"clip_norm": np.inf}, ParameterError, "'clip_norm'"),
    ({"clip_norm": "1"}, ParameterTypeError, "'clip_norm'"),
    ({"sample_weight": [1, 1, 1]}, DataError, r"'sample_weight' must have shape \(4,\)"),
    ({"sample_weight": [[1], [1], [1], [1]]}, DataError, r"'sample_weight' must have shape \(4,\)"),
    ({"sample_weight": [1, 1, -1, 1]}, DataError, "'sample_weight' must be >= 0"),
    ({"sample_weight": [1, 1, np.nan, 1]}, DataError, "'sample_weight' must be finite"),
    ({"sample_weight": [0, 0, 0, 0]}, DataError, "'sample_weight' must have a value above 0"),
    ({"sample_weight": "balanced"}, ParameterTypeError, "'sample_weight'"),
    ({"class_weight": "balanced"}, ParameterError, "'class_weight' must be left out"),
    ({"class_weight": "balance", "loss": "cross_entropy"}, ParameterError, "did you mean 'balanced'"),
    ({"class_weight": {2: 1}, "loss": "cross_entropy"}, ParameterError, r"'class_weight' must name classes in 0\.\.1"),
    ({"class_weight": {0: -1}, "loss": "cross_entropy"}, ParameterError, r"'class_weight\[0\]'"),
    ({"class_weight": {0: 0, 1: 0}, "loss": "cross_entropy"}, DataError, "'class_weight' must have a value above 0"),
    ({"class_weight": [1, 1], "loss": "cross_entropy"}, ParameterTypeError, "'class_weight'"),
    ({"validation": 0}, ParameterError, "'validation' must be a finite number > 0 and < 1"),
    ({"validation": 1}, ParameterError, "'validation' must be a finite number > 0 and < 1"),
    ({"validation": True}, ParameterTypeError, "'validation'"),
    ({"validation": 0.9}, ParameterError, "'validation' must leave rows to train on, got 0.9 of 4"),
    (
        {"X": [[1.0]], "y": [1.0], "validation": 0.1},
        ParameterError,
        "'validation' must leave rows to train on, got 0.1",
    ),
    ({"validation": [XOR_X, XOR_Y]}, ParameterTypeError, "'validation' must be a share of the rows or a tuple"),
    ({"validation": (XOR_X,)}, ParameterTypeError, "'validation' must be a share of the rows or a tuple"),
    ({"validation": (XOR_X, XOR_Y, None, None)}, ParameterTypeError, "'validation' must be a share of the rows or a"),
    ({"validation": (XOR_X[:, :1], XOR_Y)}, DataError, r"validation\[0\] has 1 column, the network has 2 inputs"),
    ({"validation": (XOR_X, XOR_Y[:3])}, DataError, r"validation\[0\] has 4 rows, validation\[1\] has 3"),
    ({"validation": (XOR_X[:0], XOR_Y[:0])}, DataError, r"'validation\[0\]' must have at least 1 row"),
    ({"validation": (XOR_X, [0, 1, np.nan, 0])}, DataError, r"'validation\[1\]' must be finite"),
    (
        {"validation": (XOR_X, [0, 1, 2, 0]), "loss": "cross_entropy"},
        DataError,
        r"'validation\[1\]' must hold class num",
    ),
    ({"validation": (XOR_X, XOR_Y, [1, 2])}, DataError, r"'validation\[2\]' must have shape \(4,\)"),
    ({"validation": (XOR_X, XOR_Y, [0, 0, 0, 0])}, DataError, r"'validation\[2\]' must have a value above 0"),
    # with seed 0 the rows 2 and 3 are for validation
    ({"validation": 0.5, "seed": 0, "sample_weight": [0, 0, 1, 1]}, DataError, "among both parts of a 'validation'"),
    ({"validation": 0.5, "seed": 0, "sample_weight": [1, 1, 0, 0]}, DataError, "among both parts of a 'validation'"),
    ({"patience": -1}, ParameterError, "'patience' must be an integer >= 0"),
    ({"patience": 1.5}, ParameterTypeError, "'patience'"),
    ({"min_delta": -1e-9}, ParameterError, "'min_delta' must be a finite number >= 0"),
    ({"min_delta": np.inf}, ParameterError, "'min_delta'"),
    ({"min_delta": None}, ParameterTypeError, "'min_delta'"),
    ({"watch": "accuracy"}, ParameterError, "'watch' must be one of 'loss', 'score'"),
    ({"watch": None}, ParameterTypeError, "'watch'"),
    ({"watch": "score"}, ParameterError, "'watch' must be 'loss' where there is no 'validation'"),
    ({"time_limit": 0}, ParameterError, "'time_limit' must be a finite number > 0"),
    ({"time_limit": np.nan}, ParameterError, "'time_limit'"),
    ({"time_limit": "1"}, ParameterTypeError, "'time_limit'"),
    ({"callback": 1}, ParameterTypeError, "'callback' must be callable, got int"),
    ({"callback": "print"}, ParameterTypeError, "'callback' must be callable, got str"),
    ({"callback_every": 0}, ParameterError, "'callback_every' must be an integer >= 1"),
    ({"callback_every": 0.5}, ParameterTypeError, "'callback_every'"),
    ({"progress": 1}, ParameterTypeError, "'progress' must be True or False"),
    ({"threads": 0}, ParameterError, "'threads' must be 'auto' or an integer >= 1, got 0"),
    ({"epochs": 2**31 - 1}, ResourceError, "the losses of 2147483647 'epochs', needs"),
    ({"backend": "numa"}, ParameterError, "did you mean 'numba'"),
    ({"backend": None}, ParameterTypeError, "'backend'"),
    # the network given
    ({"network": "network"}, ParameterTypeError, "'network' must be a Network"),
    ({"network": 0}, ParameterTypeError, "'network' must be a Network"),
    ({"network": ()}, ParameterTypeError, "'network' must be a Network"),
    ({"network": Network}, ParameterTypeError, "'network' must be a Network"),
    ({"network": object()}, ParameterTypeError, "'network' must be a Network"),
]

# The same with network=Network((2, 3, 1)).
BAD_WITH_NETWORK = [
    ({"hidden": 3}, ParameterError, "'hidden' must be left out"),
    ({"hidden": (3,)}, ParameterError, "'hidden' must be left out"),
    ({"hidden": np.array([3])}, ParameterError, "'hidden' must be left out"),
    ({"hidden": np.array([3, 4])}, ParameterError, "'hidden' must be left out"),
    ({"activation": "tanh"}, ParameterError, "'activation' must be left out"),
    ({"activation": np.array(["tanh", "tanh"])}, ParameterError, "'activation' must be left out"),
    ({"output": "identity"}, ParameterError, "'output' must be left out"),
    ({"bias": False}, ParameterError, "'bias' must be left out"),
    ({"loss": "binary_cross_entropy"}, ParameterError, "'loss' must be left out"),
    ({"huber_delta": 2.0}, ParameterError, "'huber_delta' must be left out"),
    ({"quantiles": (0.5,)}, ParameterError, "'quantiles' must be left out"),
    ({"crossing_penalty": 1.0}, ParameterError, "'crossing_penalty' must be left out"),
    ({"dropout": (0.1, 0.1)}, ParameterError, r"one per hidden layer \(1\), got 2"),
    ({"validation": (XOR_X, [0, 1])}, DataError, r"validation\[0\] has 4 rows, validation\[1\] has 2"),
    ({"init": "zeros"}, ParameterError, "'init' must be left out"),
    ({"dtype": "float64"}, ParameterError, "'dtype' must be left out"),
    ({"X": np.zeros((4, 3))}, DataError, "X has 3 columns, the network has 2 inputs"),
    ({"X": np.zeros((4, 1))}, DataError, "X has 1 column, the network has 2 inputs"),
    ({"y": np.zeros((4, 2))}, DataError, "y has 2 columns, the network has 1 output"),
    ({"X": with_nan}, DataError, "'X' must be finite"),
    ({"y": [0, 1, np.inf, 0]}, DataError, "'y' must be finite"),
    ({"learning_rate": np.nan}, ParameterError, "'learning_rate'"),
    ({"epochs": -1}, ParameterError, "'epochs'"),
    ({"batch_size": 0}, ParameterError, "'batch_size'"),
    ({"seed": -1}, ParameterError, "'seed'"),
]


def numbered(table):
    return [f"{i} {' '.join(row[0])}" for i, row in enumerate(table)]


def test_every_parameter_has_bad_values():
    expected = {*inspect.signature(train).parameters}
    actual = {name for settings, _, _ in [*BAD, *BAD_WITH_NETWORK] for name in settings}

    assert actual == expected


def assert_refused(monkeypatch, arguments, error, fragment):
    def reached(backend):
        pytest.fail("the bad argument reached a kernel")

    monkeypatch.setattr(trainer, "engine", reached)
    arguments = {"X": XOR_X, "y": XOR_Y} | arguments
    before = contents(arguments["X"]), contents(arguments["y"])
    with pytest.raises(error, match=fragment):
        train(**arguments)

    assert (contents(arguments["X"]), contents(arguments["y"])) == before


@pytest.mark.parametrize(("arguments", "error", "fragment"), BAD, ids=numbered(BAD))
def test_bad_argument_is_refused(arguments, error, fragment, monkeypatch):
    assert_refused(monkeypatch, arguments, error, fragment)


@pytest.mark.parametrize(("arguments", "error", "fragment"), BAD_WITH_NETWORK, ids=numbered(BAD_WITH_NETWORK))
def test_bad_argument_leaves_the_network_alone(arguments, error, fragment, monkeypatch):
    network = Network((2, 3, 1), seed=0)
    before = network.params.tobytes()
    assert_refused(monkeypatch, arguments | {"network": network}, error, fragment)

    assert network.params.tobytes() == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_settings_of_numpy_for_errors_do_not_matter(backend):
    X, y = task("binary_cross_entropy")
    settings = {"hidden": 9, "activation": "sigmoid", "loss": "binary_cross_entropy", "epochs": 5, "seed": 0}

    expected = bits(train(1e3 * X, y, **settings, backend=backend))
    with np.errstate(all="raise"):
        actual = bits(train(1e3 * X, y, **settings, backend=backend))

    assert actual == expected


# --- without the compiler -----------------------------------------------------------------------------------------


def test_reference_runs_without_the_compiler_and_says_so_once():
    X, y = task("squared_error", 310)
    settings = {"hidden": 9, "batch_size": MULTI_BLOCK, "epochs": 5, "seed": 0}
    report = printed(
        f"""
import json, warnings
import numpy as np
import fastbp

X, y = np.array({X.tolist()}), np.array({y.tolist()})
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        result = fastbp.train(X, y, **{settings})
    predictions = result.network.predict(X)
    gradient = result.network.loss_and_gradient(X, y)[1]
print(json.dumps(dict(
    params=result.network.params.tolist(), predictions=predictions.tolist(), gradient=gradient.tolist(),
    loss=result.loss.tolist(), warnings=[(one.category.__name__, str(one.message)) for one in caught],
)))
""",
        NUMBA_DISABLE_JIT="1",
    )
    result = train(X, y, **settings)

    expected = np.concatenate(
        [result.network.predict(X).ravel(), result.network.params, result.network.loss_and_gradient(X, y)[1]]
    )
    actual = np.concatenate([np.ravel(report["predictions"]), report["params"], report["gradient"]])

    [(category, message)] = report["warnings"]
    assert (category, "NUMBA_DISABLE_JIT" in message) == ("RuntimeWarning", True)
    np.testing.assert_allclose(report["loss"], result.loss, rtol=1e-12)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


# --- saturation ---------------------------------------------------------------------------------------------------


def dying_deltas(saturated):
    """Sigmoids whose inputs are so large that deltas shrink from layer to layer."""
    network = Network((16, 64, 64, 1), activation="sigmoid", output="sigmoid", seed=0, dtype="float32")
    network.params *= 40 if saturated else 0.001
    return {"network": network, "epochs": 250}


def dying_velocity(saturated):
    """A first step so long that the output is 1 in the working precision, its delta 0, and velocities only decay."""
    network = Network((16, 128, 1), output="sigmoid", seed=0, dtype="float32")
    return {"network": network, "epochs": 3000, "learning_rate": 100.0 if saturated else 1e-4}


SATURATED = [
    (dying_deltas, "sgd"),
    (dying_deltas, SGD(momentum=0.9)),
    (dying_deltas, "adam"),
    (dying_velocity, SGD(momentum=0.9)),
    (dying_velocity, "adam"),
]


@pytest.mark.timed
@pytest.mark.parametrize(("case", "optimizer"), SATURATED, ids=lambda value: getattr(value, "__name__", str(value)))
def test_saturated_run_is_hardly_slower(case, optimizer, rng):
    """Numbers too small to be normal cost some processors a hundred times as much."""
    X, y = rng.normal(size=(32, 16)), np.ones(32)

    def seconds(saturated):
        return train(X, y, **case(saturated), optimizer=optimizer, batch_size=None).seconds

    assert_once_at_most(1.2, lambda: ratio_of_seconds(lambda: seconds(True), lambda: seconds(False)))


# --- going on from what the network holds -------------------------------------------------------------------------


@pytest.mark.parametrize("from_file", [False, True])
@pytest.mark.parametrize("name", ["plain SGD", "momentum", "patience"])
def test_resumed_training_goes_on_from_weights_that_were_written(name, from_file, tmp_path):
    """With the state of the optimiser, so that only plain SGD trains like a new training with these weights."""
    result = whole(name, "", epochs=5)
    untouched = resume(result, **data_of(name), epochs=5)
    result.network.params[:] = np.linspace(-1, 1, result.network.params.size)
    written = result.network.params.copy()
    if from_file:
        result.save(tmp_path / "training")
    on = resume(tmp_path / "training" if from_file else result, **data_of(name), epochs=0)
    further = resume(tmp_path / "training" if from_file else result, **data_of(name), epochs=5)

    assert on.state.params.tobytes() == written.tobytes()
    assert further.state.params.tobytes() != untouched.state.params.tobytes()
    assert further.state.arrays["first"].tobytes() != untouched.state.arrays["first"].tobytes() or name == "plain SGD"
    assert result.network.params.tobytes() == written.tobytes()


def test_resumed_training_without_memory_is_a_new_one_with_the_weights_that_were_written():
    X, y = task("squared_error")
    settings = {"optimizer": "sgd", "learning_rate": 0.05, "batch_size": 10, "shuffle": False}
    result = train(X, y, hidden=4, **settings, epochs=3, seed=0)
    result.network.params[:] = np.linspace(-1, 1, result.network.params.size)

    expected = train(X, y, network=result.network.copy(), **settings, epochs=4)
    actual = resume(result, X, y, epochs=4)

    assert actual.network.params.tobytes() == expected.network.params.tobytes()
    assert actual.loss[3:].tolist() == expected.loss.tolist()


def test_resumed_training_goes_on_from_the_last_weights_though_the_network_has_the_best():
    result = whole("best is not the last", "", epochs=5)

    expected = result.state.params
    actual = resume(result, **data_of("best is not the last"), epochs=0).state.params

    assert result.network.params.tobytes() != expected.tobytes()
    assert actual.tobytes() == expected.tobytes()


def test_training_out_of_patience_has_all_of_it_anew():
    X, y = task("squared_error")
    settings = NOISY | {"validation": 0.3, "patience": 2, "min_delta": 1e9}
    result = train(X, y, **settings, epochs=100)
    on = resume(result, X, y, epochs=50)

    assert (result.stopped, len(result.loss)) == ("patience", 4)
    assert (on.stopped, len(on.loss)) == ("patience", 7)


@pytest.mark.parametrize("schedule", ["cosine", CosineDecay(epochs=3), ExponentialDecay(1e-200)])
def test_training_whose_rate_is_at_its_end_is_not_resumed_in_silence(schedule):
    X, y = task("squared_error")
    result = train(X, y, schedule=schedule, epochs=4, seed=0)

    with pytest.raises(ParameterError, match=r"'epochs' must be 0, got 5: after 4 epochs .* brought the learning rate"):
        resume(result, X, y, epochs=5)
    assert outcome(resume(result, X, y, epochs=0)) == outcome(result)


def test_length_of_the_cosine_can_be_given_so_that_five_and_five_are_ten():
    X, y = task("squared_error")
    settings = {"hidden": 4, "seed": 0, "schedule": CosineDecay(epochs=10)}

    expected = outcome(train(X, y, **settings, epochs=10))
    actual = outcome(resume(train(X, y, **settings, epochs=5), X, y, epochs=5))

    assert actual == expected


# --- what a result holds ------------------------------------------------------------------------------------------


def with_array(name, change):
    """Damage to an array of the state of a result."""

    def damage(state):
        arrays = {key: array.copy() for key, array in state.arrays.items()}
        arrays[name] = change(arrays[name])
        return state._replace(arrays=arrays)

    return damage


def with_setting(**changed):
    """Damage to a setting, past all checks."""

    def damage(state):
        return state._replace(settings=dataclasses.replace(state.settings, **changed))

    return damage


def cell(place, value):
    def change(array):
        array[place] = value
        return array

    return change


BAD_STATES = {
    "row": (with_array("position", cell(2, 10**9)), "'position' is not the end of an epoch"),
    "epoch": (with_array("position", cell(0, 2**40)), "has shape"),
    "negative epoch": (with_array("position", cell(0, -3)), "has shape"),
    "totals": (with_array("totals", cell(0, 0.5)), "'totals' are not those"),
    "short momenta": (with_array("first", lambda array: array[:-1]), "'first' has shape"),
    "infinite momenta": (with_array("second", cell(0, np.inf)), "'second' has dtype float64 or values that are not"),
    "history": (with_array("loss", lambda array: array[:1]), "'loss' has shape"),
    "no array": (with_array("loss", lambda array: "loss"), "'loss' has shape"),
    "no arrays": (lambda state: state._replace(arrays=None), "has no attribute"),
    "another precision": (lambda state: state._replace(params=state.params.astype("float32")), "arrays are missing"),
    "no weights": (lambda state: state._replace(params=state.params * np.nan), "must be finite"),
    "batch_size 0": (with_setting(batch_size=0), "'batch_size' must be"),
    "seed": (with_setting(seed=-1), "'seed' must be"),
    "dropout": (with_setting(dropout=(0.5, 2.0)), r"'dropout\[1\]' must be"),
    "optimizer": (with_setting(optimizer=forged(Adam, epsilon=0.0)), "'epsilon' must be"),
    "subnormal": (with_setting(l2=1e-320), "'l2' must be representable"),
    "no settings": (lambda state: state._replace(settings=None), "has no attribute"),
    "no state": (lambda state: None, "unpack"),
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_bad_state_of_a_result_is_neither_resumed_nor_saved(name, tmp_path):
    damage, reason = BAD_STATES[name]
    good = whole("momentum", "", epochs=5)
    bad = good._replace(state=damage(good.state))
    good.save(tmp_path / "training")
    before = (tmp_path / "training").read_bytes()

    with pytest.raises(DataError, match=f"'result.state' must be as a training left it, but .*{reason}"):
        resume(bad, **data_of("momentum"), epochs=1)
    with pytest.raises(DataError, match=f"'result.state' must be as a training left it, but .*{reason}"):
        bad.save(tmp_path / "training")
    assert (tmp_path / "training").read_bytes() == before
    assert os.listdir(tmp_path) == ["training"]


def test_losses_of_a_result_may_be_written_to():
    """They are what a user plots, not what the training goes on from."""
    result = whole("patience", "", epochs=5)
    for losses in (result.loss, result.error, result.validation_loss, result.validation_error, result.validation_score):
        losses[:] = 0

    expected = outcome(whole("patience", "", epochs=10))
    actual = outcome(resume(result, **data_of("patience"), epochs=5))

    assert actual == expected


# --- a network that changes meanwhile -----------------------------------------------------------------------------


class Meddling:
    """Data that does something while it is converted."""

    def __init__(self, array, act):
        self.array, self.act = array, act

    def __array__(self, dtype=None, copy=None):
        self.act()
        return self.array


def swap(network):
    network.params = np.zeros(1)


def spoil(network):
    network.params[:] = np.nan


@pytest.mark.parametrize("where", ["X", "y", "sample_weight", "validation"])
@pytest.mark.parametrize("meddle", [swap, spoil])
def test_network_that_data_write_to_is_checked_after_them(meddle, where):
    X, y = task("squared_error")
    network = Network((3, 4, 2), seed=0)
    given = {"X": X, "y": y, "sample_weight": np.ones(37), "validation": X}
    given[where] = Meddling(given[where], lambda: meddle(network))
    given["validation"] = (given["validation"], y)

    with pytest.raises(DataError):
        train(**given, network=network, epochs=3)


def test_network_made_read_only_by_a_callback_is_trained_on_without_compiling_anew():
    from fastbp import kernels

    X, y = task("squared_error")
    network = Network((3, 4, 2), seed=0)

    def close(state):
        network.params.flags.writeable = False

    expected = bits(train(X, y, network=network.copy(), seed=0, epochs=9))
    before = len(kernels.run_words.signatures)
    actual = bits(train(X, y, network=network, seed=0, epochs=9, callback=close))

    assert len(kernels.run_words.signatures) == before
    assert actual == expected


# --- scores that do not exist -------------------------------------------------------------------------------------

SAME = np.full((37, 2), 0.1)


@pytest.mark.parametrize("patience", [None, 2])
@pytest.mark.parametrize("validation", [0.01, (XOR_X[:1], [[1.0, 2.0]]), (XOR_X, SAME[:4]), "weights"])
def test_score_that_does_not_exist_is_not_watched(validation, patience):
    X, y = np.ones((37, 2)), task("squared_error")[1]
    if validation == "weights":  # which leave one row
        validation = XOR_X, y[:4], [0, 1, 0, 0]
    settings = {"validation": validation, "watch": "score", "patience": patience, "seed": 0, "epochs": 3}

    with pytest.raises(DataError, match="'validation' must hold rows of different targets where 'watch' is 'score'"):
        train(X, y, **settings)


def test_resumed_training_does_not_watch_a_score_that_does_not_exist():
    X, y = task("squared_error")
    result = train(X, y, validation=held_out(), watch="score", patience=3, epochs=2)

    with pytest.raises(DataError, match="'validation' must hold rows of different targets"):
        resume(result, X, y, validation=(X[:1], y[:1]), epochs=2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_score_that_does_not_exist_is_nan(backend):
    X, y = task("squared_error")
    result = train(X, y, validation=(X[:1], y[:1]), patience=3, epochs=5, backend=backend)

    assert np.isnan(result.validation_score).all()
    assert np.isfinite(result.validation_loss).all()
    assert result.best_epoch == 1 + result.validation_loss.argmin()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("exponent", "dtype"),
    [(-300, "float64"), (-160, "float64"), (-25, "float32"), (25, "float32"), (160, "float64"), (300, "float64")],
)
def test_score_does_not_depend_on_the_scale_of_targets(exponent, dtype, backend):
    """Losses do: absolute errors are sums of what would overflow or vanish as squares."""
    X, y = task("squared_error")

    def score(factor):
        network = Network((3, 2), loss="absolute_error", seed=0, dtype=dtype)
        network.params[:] *= factor
        settings = {"optimizer": "sgd", "learning_rate": 1e-3 * factor, "batch_size": None, "epochs": 2}
        data = X[HELD], y[HELD] * factor, WEIGHTS[HELD]
        with np.errstate(all="raise"):
            return train(X, y * factor, network=network, validation=data, backend=backend, **settings).validation_score

    expected = score(1.0)
    actual = score(10.0**exponent)

    np.testing.assert_allclose(actual, expected, rtol=1e-9 if dtype == "float64" else 1e-4)


# --- numbers too small to be normal -------------------------------------------------------------------------------

TOO_SMALL = [
    ({"optimizer": Adam(epsilon=1e-44), "dtype": "float32"}, ParameterError, "'epsilon' must be repr"),
    ({"optimizer": Adam(epsilon=1e-320)}, ParameterError, "'epsilon' must be representable in float64, 0 or at least"),
    ({"learning_rate": 1e-44, "dtype": "float32"}, ParameterError, "'learning_rate'"),
    ({"optimizer": AdamW(weight_decay=1e-310)}, ParameterError, "'weight_decay'"),
    ({"optimizer": SGD(momentum=1e-42), "dtype": "float32"}, ParameterError, "'momentum'"),
    ({"optimizer": IRprop(smallest_step=1e-320), "batch_size": None}, ParameterError, "'smallest_step'"),
    ({"schedule": ExponentialDecay(1e-320)}, ParameterError, "'decay' must be representable in float64"),
    ({"schedule": InverseScaling(pace=1e-310)}, ParameterError, "'pace'"),
    ({"schedule": CosineDecay(minimum=1e-310)}, ParameterError, "'minimum'"),
    ({"schedule": ReduceOnPlateau(min_delta=1e-310)}, ParameterError, "'min_delta'"),
    ({"l2": 1e-320}, ParameterError, "'l2'"),
    ({"l2": 1e-40, "dtype": "float32"}, ParameterError, "'l2'"),
    ({"l2": 1e39, "dtype": "float32"}, ParameterError, "'l2'"),
    ({"dropout": 1e-40, "hidden": 2, "dtype": "float32"}, ParameterError, r"'dropout\[0\]'"),
    ({"dropout": 1 - 1e-12, "hidden": 2, "dtype": "float32"}, ParameterError, r"'dropout\[0\]'"),
    ({"clip_norm": 1e-320}, ParameterError, "'clip_norm'"),
    ({"min_delta": 1e-320}, ParameterError, "'min_delta'"),
    ({"loss": "huber", "huber_delta": 1e-46, "dtype": "float32"}, ParameterError, "'huber_delta'"),
    ({"loss": "huber", "huber_delta": 1e-320}, ParameterError, "'huber_delta'"),
    ({"loss": "quantile", "crossing_penalty": 1e-320}, ParameterError, "'crossing_penalty'"),
    ({"loss": "quantile", "quantiles": (0.5, 1 - 1e-12), "dtype": "float32"}, ParameterError, r"'quantiles\[1\]'"),
    ({"network": Network((2, 1), loss="huber", huber_delta=1e-40, dtype="float32")}, ParameterError, "'huber_delta'"),
    ({"sample_weight": [1, 1, 1e-320, 1]}, DataError, "'sample_weight' must be 0 or at least 2.23e-308 in float64"),
    ({"sample_weight": [1e-40] * 4, "dtype": "float32"}, DataError, "'sample_weight' must be 0 or at least 1.18e-38"),
    ({"validation": (XOR_X, XOR_Y, [1e-320] * 4)}, DataError, r"'validation\[2\]' must be 0 or at least"),
    ({"class_weight": {0: 1e-320}, "loss": "cross_entropy"}, DataError, "'class_weight' must be 0 or at least"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "error", "fragment"), TOO_SMALL, ids=range(len(TOO_SMALL)))
def test_number_that_kernels_would_take_for_0_is_refused(settings, error, fragment):
    with pytest.raises(error, match=fragment):
        train(**{"X": XOR_X, "y": XOR_Y.ravel() if settings.get("loss") == "cross_entropy" else XOR_Y} | settings)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_smallest_normal_numbers_are_taken(dtype):
    smallest = float(np.finfo(dtype).tiny)
    settings = {"optimizer": SGD(smallest, momentum=smallest), "l2": smallest, "dropout": smallest, "hidden": 2}
    settings |= {"clip_norm": smallest, "min_delta": smallest, "sample_weight": [smallest] * 4, "epochs": 2}
    result = train(XOR_X, XOR_Y, **settings, huber_delta=smallest, schedule=ExponentialDecay(1e-307), dtype=dtype)

    assert len(result.loss) == 2


# --- memory -------------------------------------------------------------------------------------------------------


def data_for(rows, inputs, dtype="float64", classes=False):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, inputs)).astype(dtype), rng.integers(0, 3, rows) if classes else rng.normal(size=rows)


MEMORIES = {
    "padded": (data_for, (20_000, 20), {"batch_size": 1, "shuffle": False}),
    "half padded": (data_for, (50_000, 3), {"batch_size": 9, "shuffle": False, "dtype": "float32"}),
    "shuffled": (data_for, (200_000, 3), {"batch_size": 1000}),
    "shuffled float32": (data_for, (200_000, 1, "float32"), {"batch_size": 1000}),
    "full batch": (data_for, (100_000, 10), {"batch_size": None}),
    "share": (data_for, (200_000, 2, "float32"), {"batch_size": 1000, "validation": 0.4}),
    "share in order": (data_for, (100_000, 8), {"batch_size": None, "validation": 0.4}),
    "data": (data_for, (20_000, 8), {"batch_size": None, "validation": data_for(80_000, 8)}),
    "weights": (data_for, (100_000, 4), {"batch_size": 100, "sample_weight": np.ones(100_000)}),
    "classes": (data_for, (200_000, 1, "float32", True), {"loss": "cross_entropy", "class_weight": "balanced"}),
    "parameters": (data_for, (10, 100), {"hidden": (3000, 300), "epochs": 1}),
    "best parameters": (data_for, (10, 100), {"hidden": 10_000, "epochs": 2, "validation": 0.5, "patience": 3}),
    "callback": (data_for, (10, 100), {"hidden": 10_000, "callback": lambda state: None}),
    "epochs": (data_for, (4, 1), {"batch_size": None, "epochs": 500_000}),
    "epochs of validation": (data_for, (4, 1), {"batch_size": None, "epochs": 300_000, "validation": 0.5}),
    "wide block": (data_for, (64, 5), {"hidden": (2000, 10, 2000), "batch_size": None}),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_memory_is_estimated_before_it_is_taken(name, monkeypatch):
    make, shape, settings = MEMORIES[name]
    settings = {"epochs": 1, "seed": 0} | settings
    train(*make(40, *shape[1:]), **settings | {"sample_weight": None})  # imports, and compiles
    estimates = []
    monkeypatch.setattr(checks, "memory", lambda needed, what: estimates.append((what, needed)))
    X, y = make(*shape)
    gc.collect()
    tracemalloc.start()
    try:
        peak = train(X, y, **settings) and tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    [estimate] = [needed for what, needed in estimates if what.startswith("this training")]
    held = settings.get("validation")
    given = [X, y, settings.get("sample_weight"), *(held if isinstance(held, tuple) else ())]
    precision = settings.get("dtype", X.dtype)
    peak += sum(array.nbytes for array in given if array is not None and array.dtype == precision)  # used as they are

    assert peak > 2e6
    assert peak <= estimate + 10**5  # objects of Python
    assert estimate <= 1.5 * peak


TOO_BIG = [
    ({"epochs": 10**9, "time_limit": 1.0}, "this training, most of it for the losses of 1000000000 'epochs', needs"),
    ({"batch_size": 1, "shuffle": False, "epochs": 1}, "most of it for 4 rows, batches of 1 padded to 8, needs"),
    ({"hidden": (100, 100)}, "most of it for 10501 parameters, needs"),
]


@pytest.mark.parametrize(("settings", "message"), TOO_BIG)
def test_training_that_does_not_fit_says_what_is_too_big(settings, message, monkeypatch):
    monkeypatch.setattr(checks, "_physical_memory", lambda: 400_000 if "hidden" in settings else 1000)
    monkeypatch.setattr(trainer, "engine", lambda backend: pytest.fail("something was allocated"))
    with pytest.raises(ResourceError, match=message):
        train(XOR_X, XOR_Y, **settings)


def test_damaged_position_never_reaches_memory_that_is_estimated():
    """A resumed training counts the epochs that were done."""
    result = whole("momentum", "", epochs=3)
    with pytest.raises(ResourceError, match="the losses of 2147483650 'epochs'"):
        resume(result, **data_of("momentum"), epochs=2**31 - 1)


# --- laying out in pieces -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["share with weights", "balanced", "data with weights", "all at once"])
@pytest.mark.parametrize("changed", [{}, {"shuffle": False, "batch_size": 7}, {"backend": "numpy"}], ids=str)
def test_pieces_in_which_data_are_laid_out_never_show(name, changed, monkeypatch):
    expected = outcome(train(**arguments(name, epochs=3, **changed)))
    monkeypatch.setattr(workspace, "PIECE", 20)  # three rows
    actual = outcome(train(**arguments(name, epochs=3, **changed)))

    for figure in ("validation_score", "validation_misfit"):  # sums of three rows round otherwise
        expected.pop(figure, None)
        actual.pop(figure, None)

    assert len(list(workspace.pieces(37, 6))) == 13
    assert actual == expected


@pytest.mark.parametrize("after", [1, 5, 14, 20])
def test_interrupt_between_two_pieces_loses_nothing(after, monkeypatch):
    X, y = task("squared_error")
    network = Network((3, 4, 2), seed=0)
    before, plain, done = network.params.tobytes(), workspace.pieces, []

    def interrupted(n, numbers):
        for piece in plain(n, numbers):
            done.append(piece)
            if len(done) > after:
                raise KeyboardInterrupt
            yield piece

    settings = {"batch_size": 5, "shuffle": False, "validation": 0.3, "seed": 0, "epochs": 3}
    expected = outcome(train(X, y, network=network.copy(), **settings))
    with monkeypatch.context() as patch:
        patch.setattr(workspace, "PIECE", 20)
        patch.setattr(workspace, "pieces", interrupted)
        patch.setattr(data, "pieces", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(X, y, network=network, **settings)
    after_it = network.params.tobytes()
    actual = outcome(train(X, y, network=network, **settings))

    assert after_it == before
    assert actual == expected


def test_pieces_are_short_whatever_the_shape():
    for n, numbers in [(10**7, 6), (1, 10**9), (3, 10**9), (10**5, 1)]:
        parts = list(workspace.pieces(n, numbers))

        assert parts[0].start == 0
        assert parts[-1].stop == n
        assert all(a.stop == b.start for a, b in itertools.pairwise(parts))
        assert max(part.stop - part.start for part in parts) <= max(1, 2**17 // numbers)


# --- fork ---------------------------------------------------------------------------------------------------------

# Forks while another thread holds the lock of the compiler, and says how the child ended.
FORKED = """
import json, os, sys, threading, time, warnings
import numpy as np
import fastbp
import fastbp.kernels  # a fork beside an import hangs, whatever is imported
from numba.core.compiler_lock import global_compiler_lock as lock

warnings.simplefilter("ignore", DeprecationWarning)  # what Python says to a fork beside other threads

def compiling():
    {compiling}

def child():
    {child}

thread = threading.Thread(target=compiling)
thread.start()
while lock._lock.acquire(blocking=False):
    lock._lock.release()
    time.sleep(0.001)
process = os.fork()
if process == 0:
    os._exit(0 if child() else 1)
began, status = time.monotonic(), None
while status is None and time.monotonic() - began < 500:
    done, code = os.waitpid(process, os.WNOHANG)
    status = code if done else time.sleep(0.01)
if status is None:
    os.kill(process, 9)
    os.waitpid(process, 0)
thread.join()
print(json.dumps(status))
"""
FORKS = [
    pytest.param("with lock: time.sleep(0.5)", "return lock._lock.acquire(timeout=5)", id="lock"),
    pytest.param(
        "fastbp.train([[0.0], [1.0]], [0.0, 1.0], epochs=1)",
        "return fastbp.Network((2, 1), init='zeros').predict([[1.0, 2.0]]).tolist() == [[0.0]]",
        id="predict",
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize(("compiling", "child"), FORKS)
def test_child_of_a_fork_computes_though_another_thread_was_compiling(compiling, child):
    expected = 0
    actual = printed(FORKED.format(compiling=compiling, child=child), FASTBP_CACHE="0")

    assert actual == expected
