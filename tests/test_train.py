"""`train` does what its docstring says: the notebook, the same bits however it is run, Ctrl-C, bad arguments."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fastbp
from fastbp.checks import DataError, DivergenceError, ParameterError, ParameterTypeError, ResourceError
from fastbp.choices import BACKENDS, LOSSES, REDUCTIONS, SGD, Adam

train, Network = fastbp.train, fastbp.Network
MODULE = sys.modules["fastbp.train"]  # the name fastbp.train may stand for the function
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
NOTEBOOK_LOSSES = [
    0.39557039180027914,
    0.268978650120054,
    0.20877501367079165,
    0.17388635703099511,
    0.15095324126862225,
    0.13460178571028433,
    0.12227213430243797,
    0.11258998461667526,
    0.10475002443046719,
    0.09824792584007563,
]
NOTEBOOK_WEIGHTS = [0.90571962, 7.32475086, 0.90572643, 7.32731531, -27.46354604, 21.74964594]
NOTEBOOK_PREDICTIONS = [0.05432736, 0.89823995, 0.89824011, 0.13514441]


def task(loss, rows=37, inputs=3):
    """Random data that the loss takes."""
    rng = np.random.default_rng(5)
    X = rng.normal(size=(rows, inputs))
    if loss == "cross_entropy":
        return X, rng.integers(0, 3, rows)
    y = X[:, :2] * [1, -2] + 0.1 * rng.normal(size=(rows, 2))
    return X, (y > 0) if loss == "binary_cross_entropy" else y


def bits(result):
    """All that a run computes, as bytes."""
    return result.network.params.tobytes() + result.loss.tobytes() + result.error.tobytes()


def python(code, **environment):
    """Run code in a new process, where a warning is an error too, and return the JSON it prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=100)

    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- the notebook -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=BACKENDS)
def notebook(request):
    return train(XOR_X, XOR_Y, **NOTEBOOK, backend=request.param)


def test_notebook_losses_are_reproduced(notebook):
    expected = NOTEBOOK_LOSSES
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
    actual = python(
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
        monkeypatch.setattr(MODULE, "CHUNK_SECONDS", seconds)
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
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_error_are_measured_before_the_update(loss, backend):
    X, y = task(loss)
    network = Network((3, 5, 3 if loss == "cross_entropy" else 2), loss=loss, seed=4)
    p, rows = network.predict(X), np.eye(3)[y] if loss == "cross_entropy" else y.astype(float)

    expected = LOSS_FORMULAS[loss](p, rows), np.abs(p - rows).mean()
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
    result = train(XOR_X, XOR_Y, hidden=2, epochs=7, seed=5)

    assert result.seed == 5
    assert (result.loss.shape, result.loss.dtype) == ((7,), np.float64)
    assert (result.error.shape, result.error.dtype) == ((7,), np.float64)
    assert 0 < result.seconds < 10
    assert 0 <= result.compile_seconds < 30
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
    actual = p.argmax(axis=1) if loss == "cross_entropy" else p.ravel() > 0.5

    np.testing.assert_array_equal(actual, expected)


# --- network= -----------------------------------------------------------------------------------------------------


def test_given_network_is_trained_in_place():
    network = Network((3, 5, 2), seed=4)
    params, before = network.params, network.params.copy()
    result = train(*task("squared_error"), network=network, epochs=2)

    assert result.network is network
    assert network.params is params
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
# that is back in Python. The median of five, because the machine may be busy, and because a signal that happens to come
# at the end of too long a chunk is answered at once.
INTERRUPTED = """
import json, signal, threading, time
import numpy as np
import fastbp

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started this process with it ignored
rng = np.random.default_rng(0)
tiny = rng.normal(size=(4, 2)), rng.normal(size=4)
long = rng.normal(size=(60_000, 32)), rng.normal(size=60_000)
runs = {
    "many tiny epochs": (tiny, (2, 2, 1), dict(epochs=20_000_000, batch_size=None)),
    "many shuffled epochs": (tiny, (2, 2, 1), dict(epochs=20_000_000, batch_size=2)),
    "one long epoch": (long, (32, 512, 512, 1), dict(epochs=1)),
    "one long epoch in order": (long, (32, 512, 512, 1), dict(epochs=1, shuffle=False)),
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
for name, (data, sizes, settings) in runs.items():
    latencies, wrong = [], []
    for _ in range(5):
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


@pytest.fixture(scope="module")
def interrupted():
    return python(INTERRUPTED)


@pytest.mark.parametrize(
    "run", ["many tiny epochs", "many shuffled epochs", "one long epoch", "one long epoch in order"]
)
def test_ctrl_c_arrives_within_50_ms_and_keeps_the_weights(run, interrupted):
    assert interrupted[run]["wrong"] == []
    assert interrupted[run]["latency"] < 0.05


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
        monkeypatch.setattr(MODULE, "CHUNK_SECONDS", seconds)
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
    ({"init": "glorot"}, ParameterError, "did you mean 'glorot_uniform'"),
    ({"dtype": "float16"}, ParameterError, "'dtype'"),
    ({"dtype": int}, ParameterError, "'dtype'"),
    ({"dtype": 64}, ParameterTypeError, "'dtype'"),
    # the run
    ({"optimizer": "adm"}, ParameterError, "did you mean 'adam'"),
    ({"optimizer": Adam}, ParameterTypeError, "'optimizer'"),
    ({"optimizer": None}, ParameterTypeError, "'optimizer'"),
    ({"optimizer": SGD(momentum=1.0)}, ParameterError, "'momentum'"),
    ({"optimizer": SGD(momentum=np.nan)}, ParameterError, "'momentum'"),
    ({"optimizer": SGD(nesterov=True)}, ParameterError, "'nesterov'"),
    ({"optimizer": Adam(beta1=1.0)}, ParameterError, "'beta1'"),
    ({"optimizer": Adam(beta2=-0.1)}, ParameterError, "'beta2'"),
    ({"optimizer": Adam(epsilon=0.0)}, ParameterError, "'epsilon'"),
    ({"optimizer": Adam(learning_rate=np.inf)}, ParameterError, "'learning_rate'"),
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


def assert_refused(monkeypatch, arguments, error, fragment):
    def reached(backend):
        pytest.fail("the bad argument reached a kernel")

    monkeypatch.setattr(MODULE, "engine", reached)
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
    report = python(
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


@pytest.mark.parametrize(("case", "optimizer"), SATURATED, ids=lambda value: getattr(value, "__name__", str(value)))
def test_saturated_run_is_hardly_slower(case, optimizer, rng):
    """Numbers too small to be normal cost some processors a hundred times as much."""
    X, y = rng.normal(size=(32, 16)), np.ones(32)

    def seconds(saturated):
        return train(X, y, **case(saturated), optimizer=optimizer, batch_size=None).seconds

    ratio = np.inf
    for _ in range(3):  # the machine may have been busy
        healthy, saturated = np.min([(seconds(False), seconds(True)) for _ in range(6)], axis=0)
        ratio = min(ratio, saturated / healthy)
        if ratio < 1.2:
            break

    assert ratio < 1.2
