"""`Trainer`: the bits of `train`, a step that fails was not made, files go on bit for bit, threads."""

import copy
import pickle
import threading

import numpy as np
import pytest
from helpers import loss_settings, output_of

import fastbp
from fastbp import checkpoint, trainer
from fastbp.checks import (
    CheckpointError,
    DataError,
    DivergenceError,
    ParameterError,
    ParameterTypeError,
    ResourceError,
)
from fastbp.choices import LOSSES, SGD, Adam, AdamW, IRprop, RMSprop
from fastbp.network import Network
from fastbp.trainer import Trainer

OPTIMIZERS = [SGD(0.01), SGD(0.01, momentum=0.9), SGD(0.01, momentum=0.9, nesterov=True), Adam(), AdamW(), RMSprop()]
# Outputs, where there is more than one.
TASKS = {"cross_entropy": 4, "binary_cross_entropy": 2, "squared_error": 3, "quantile": 3, "gaussian_nll": 4}
ROWS = 45


def task(loss, rng, n=ROWS, dtype="float64"):
    outputs = TASKS.get(loss, 1)
    X = rng.normal(size=(n, 3)).astype(dtype)
    if loss == "cross_entropy":
        return X, rng.integers(0, outputs, n), outputs
    return X, rng.integers(0, 2, (n, outputs // 2 if loss == "gaussian_nll" else outputs)).astype(dtype), outputs


def state_of(trainer):
    memory = trainer._memory
    arrays = (*(getattr(memory, name) for name in ("params", "first", "second", "totals", "position")), memory.gradient)
    return [trainer.steps, *(array.tobytes() for array in arrays)]


# --- the bits of train --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("settings", [{}, {"l2": 0.1, "clip_norm": 0.5, "reduction": "sum"}], ids=["plain", "extras"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
def test_steps_on_the_batches_of_an_epoch_are_an_epoch(optimizer, loss, settings, dtype, rng):
    X, y, outputs = task(loss, rng, dtype=dtype)
    for batch_size in (1, 4, 8, 16, 17, 32, 45):  # the last batch is short in most
        expected = Network((3, 9, outputs), activation="tanh", seed=1, dtype=dtype, **loss_settings(loss, outputs))
        actual = expected.copy()
        fastbp.train(
            X, y, network=expected, optimizer=optimizer, shuffle=False, batch_size=batch_size, epochs=1, **settings
        )
        trainer = Trainer(actual, optimizer=optimizer, **settings)
        for first in range(0, ROWS, batch_size):
            trainer.step(X[first : first + batch_size], y[first : first + batch_size])

        assert actual.params.tobytes() == expected.params.tobytes()
        assert trainer.steps == -(-ROWS // batch_size)


@pytest.mark.parametrize("rows", [1, 5, 30])
@pytest.mark.parametrize(("loss", "outputs"), [("squared_error", 3), ("quantile", 3), ("gaussian_nll", 6)])
def test_steps_with_weights_of_targets_are_epochs(loss, outputs, rows, rng):
    X, y, weights = rng.normal(size=(rows, 3)), rng.normal(size=(rows, 3)), rng.choice([0, 0.5, 2], (rows, 3))
    weights[0, 0] = 1
    y[weights == 0] = np.nan
    expected = Network((3, 9, outputs), activation="tanh", seed=1, **loss_settings(loss, outputs))
    actual = expected.copy()
    fastbp.train(X, y, network=expected, batch_size=None, epochs=3, sample_weight=weights)
    trainer = Trainer(actual)
    for _ in range(3):
        trainer.step(X, y, weights)

    assert actual.params.tobytes() == expected.params.tobytes()


def test_one_target_for_all_quantiles_may_have_any_form(rng):
    X, y = rng.normal(size=(3, 2)), rng.normal(size=3)  # as many rows as outputs
    networks = [Network((2, 5, 3), loss="quantile", seed=0) for _ in range(3)]
    for network, targets in zip(networks, (y, y[:, None], np.tile(y[:, None], 3)), strict=True):
        trainer = Trainer(network)
        for _ in range(3):
            trainer.step(X, targets)

    first, *others = (network.params.tobytes() for network in networks)
    assert others == [first, first]


@pytest.mark.parametrize("sizes", [(3, 4, 1), (3, 8, 8, 2), (3, 100, 1), (3, 1)])
@pytest.mark.parametrize("activation", ["relu", "gelu", "softplus"])
def test_steps_are_an_epoch_of_any_network_and_weighted_rows(sizes, activation, rng):
    X, y, weights = rng.normal(size=(208, 3)), rng.normal(size=(208, sizes[-1])), rng.uniform(0.5, 2, 208)
    for batch_size in (1, 8, 16, 104):
        expected = Network(sizes, activation=activation, seed=1)
        actual = expected.copy()
        fastbp.train(X, y, network=expected, shuffle=False, batch_size=batch_size, epochs=1, sample_weight=weights)
        trainer = Trainer(actual)
        for first in range(0, 208, batch_size):
            rows = slice(first, first + batch_size)
            trainer.step(X[rows], y[rows], sample_weight=weights[rows])

        assert actual.params.tobytes() == expected.params.tobytes()


@pytest.mark.parametrize("optimizer", ["adam", IRprop()], ids=str)
def test_losses_of_steps_are_those_of_epochs_of_one_batch(optimizer, rng):
    X, y, _ = task("squared_error", rng)
    network = Network((3, 5, 3), seed=0)
    trainer = Trainer(network.copy(), optimizer=optimizer, l2=0.01)
    expected = fastbp.train(X, y, network=network, optimizer=optimizer, l2=0.01, batch_size=None, epochs=40).loss

    losses = [trainer.step(X, y) for _ in range(40)]

    assert losses == expected.tolist()
    assert all(type(loss) is float for loss in losses)


@pytest.mark.parametrize(
    "form",
    [
        lambda a: a.tolist(),
        lambda a: a.astype(np.float32),
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=0)[::2],
        lambda a: a.astype(">f8"),
        lambda a: a[::-1].copy()[::-1],
    ],
    ids=["lists", "float32", "Fortran", "strided", "big-endian", "negative"],
)
def test_form_of_the_rows_does_not_matter(form, rng):
    X = rng.integers(-5, 5, (7, 3)) / 4  # in float32 too
    y = X[:, :1] * 2
    first, second = (Trainer(Network((3, 4, 1), seed=0)) for _ in range(2))

    for target in (y, y[:, 0]):
        assert second.step(form(X), form(target)) == first.step(X, target)

    assert state_of(second) == state_of(first)


def test_rows_are_not_written_to(rng):
    X, y = rng.normal(size=(2, 3)), rng.normal(size=(2, 1))
    X.flags.writeable = y.flags.writeable = False
    before = X.tobytes(), y.tobytes()
    trainer = Trainer(Network((3, 4, 1), seed=0))

    for _ in range(3):
        trainer.step(X, y)

    assert (X.tobytes(), y.tobytes()) == before


def test_dropout_is_drawn_anew_for_each_step_and_lap(monkeypatch):
    monkeypatch.setattr(trainer, "STEPS", 4)
    X, y = np.ones((1, 1)), np.zeros((1, 1))
    network = Network((1, 64, 1), activation="identity", bias=False, seed=0)
    one, same, other = (Trainer(network.copy(), learning_rate=1e-12, dropout=0.5, seed=seed) for seed in (1, 1, 2))

    losses = [[each.step(X, y) for _ in range(10)] for each in (one, same, other)]

    assert losses[0] == losses[1]
    assert len({round(loss, 6) for loss in losses[0] + losses[2]}) == 20


def test_laps_do_not_show_without_dropout(monkeypatch, rng):
    X, y, _ = task("squared_error", rng)
    expected = Trainer(Network((3, 5, 3), seed=0))
    losses = [expected.step(X, y) for _ in range(10)]
    monkeypatch.setattr(trainer, "STEPS", 4)
    actual = Trainer(Network((3, 5, 3), seed=0))

    assert [actual.step(X, y) for _ in range(10)] == losses
    assert actual.network.params.tobytes() == expected.network.params.tobytes()


def test_trainer_is_prepared_for_few_numbers_of_rows(rng):
    X, y, _ = task("squared_error", rng, n=300)
    one = Trainer(Network((3, 5, 3), seed=0))
    for n in (*range(1, 200), 1):
        one.step(X[:n], y[:n])

    assert len(one._batches) <= trainer.MOST_BATCHES
    assert one.steps == 200


def test_weights_written_between_steps_are_the_ones_that_go_on():
    one = Trainer(Network((1, 1), init="zeros"), optimizer="sgd", learning_rate=0.5)
    one.step([[1.0]], [2.0])
    one.network.params = np.zeros(2)

    assert one.step([[1.0]], [2.0]) == 2.0


def test_reference_makes_the_same_steps(rng):
    code = """
import warnings; warnings.simplefilter("ignore")
import numpy as np, fastbp
X = np.linspace(-1, 1, 12).reshape(4, 3)
trainer = fastbp.Trainer(fastbp.Network((3, 4, 1), activation="tanh", seed=0), l2=0.01)
print([trainer.step(X, X[:, 0]) for _ in range(5)])
try:
    trainer.step(X * np.nan, X[:, 0])
except fastbp.DataError:
    print(trainer.steps)
"""
    compiled, interpreted = (output_of("-c", code, **env).splitlines() for env in ({}, {"NUMBA_DISABLE_JIT": "1"}))

    np.testing.assert_allclose(eval(compiled[0]), eval(interpreted[0]), rtol=1e-12)
    assert compiled[1] == interpreted[1] == "5"


# --- a step that fails was not made -------------------------------------------------------------------------------

NAN, INFINITY = np.nan, np.inf
BAD_ROWS = {
    "NaN": ("squared_error", [[1.0, NAN]], [1.0], r"^'X' must be finite.* got 1 bad of 2, the first at \[0, 1\]$"),
    "NaN in a second row": ("squared_error", [[1.0, 2.0], [NAN, 1.0]], [1.0, 1.0], r"the first at \[1, 0\]$"),
    "infinity": ("squared_error", [[-INFINITY, 1.0]], [1.0], "^'X' must be finite"),
    "NaN in y": ("squared_error", [[1.0, 1.0]], [NAN], "^'y' must be finite"),
    "columns": ("squared_error", [[1.0]], [1.0], "^X has 1 column, the network has 2 inputs$"),
    "one-dimensional X": ("squared_error", [1.0, 1.0], [1.0], "^'X' must be 2-D"),
    "rows of y": ("squared_error", [[1.0, 1.0]], [1.0, 2.0], "^X has 1 row, y has 2$"),
    "columns of y": ("squared_error", [[1.0, 1.0]], [[1.0, 2.0]], "^y has 2 columns"),
    "no rows": ("squared_error", np.zeros((0, 2)), np.zeros(0), "at least 1 row"),
    "no binary": ("binary_cross_entropy", [[1.0, 1.0]], [0.5], "^'y' must be 0 or 1"),
    "negative count": ("poisson", [[1.0, 1.0]], [-1.0], "^'y' must be >= 0"),
    "class": ("cross_entropy", [[1.0, 1.0]], [2.0], r"^'y' must hold class numbers in 0\.\.1"),
    "sum": ("cross_entropy", [[1.0, 1.0]], [[0.5, 0.6]], "rows that sum to 1"),
    "negative probability": ("cross_entropy", [[1.0, 1.0]], [[-0.5, 1.5]], "^'y' must hold"),
}


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("as_arrays", [False, True])
@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_change_nothing(name, as_arrays, prepared):
    loss, X, y, message = BAD_ROWS[name]
    outputs = 2 if loss == "cross_entropy" else 1
    one = Trainer(Network((2, 3, outputs), activation="tanh", loss=loss, seed=0))
    good = np.ones((len(X), 2)) if np.ndim(X) == 2 and len(X) else np.ones((1, 2))
    if prepared:
        one.step(good, np.eye(outputs)[np.zeros(len(good), int)])
    if as_arrays:
        X, y = np.array(X), np.array(y)
    before = state_of(one)

    with pytest.raises(DataError, match=message):
        one.step(X, y)

    assert state_of(one) == before
    other = copy_of(one)
    targets = np.eye(outputs)[np.zeros(len(good), int)]
    assert one.step(good, targets) == other.step(good, targets)


def copy_of(one):
    """A trainer in the same state, made without files."""
    other = Trainer(one.network.copy())
    for name in trainer.STEPPED:
        getattr(other._memory, name)[:] = getattr(one._memory, name)
    return other


@pytest.mark.parametrize("bad", [NAN, INFINITY])
def test_weights_that_are_not_finite_are_refused(bad):
    one = Trainer(Network((2, 3, 1), seed=0))
    one.step([[1.0, 2.0]], [1.0])
    one.network.params[4] = bad
    before = state_of(one)

    with pytest.raises(DataError, match=r"^'network\.params' must be finite"):
        one.step([[1.0, 2.0]], [1.0])

    assert state_of(one) == before


@pytest.mark.parametrize("weights", [[-1.0], [NAN], [0.0], [1.0, 2.0]])
def test_bad_weights_of_rows_change_nothing(weights):
    one = Trainer(Network((2, 3, 1), seed=0))
    before = state_of(one)

    with pytest.raises(DataError, match="sample_weight"):
        one.step([[1.0, 2.0]], [1.0], sample_weight=weights)

    assert state_of(one) == before


@pytest.mark.parametrize("X", [None, "rows", {1: 2}, object()])
def test_what_is_no_array_is_refused(X):
    with pytest.raises(ParameterTypeError, match="'X'"):
        Trainer(Network((2, 1))).step(X, [1.0])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, IRprop()], ids=str)
def test_step_that_diverges_was_not_made(optimizer, dtype):
    one = Trainer(Network((2, 9, 1), activation="identity", seed=0, dtype=dtype), optimizer=optimizer)
    X, y, large = np.ones((3, 2), dtype), np.ones((3, 1), dtype), np.finfo(dtype).max / 4
    for _ in range(5):
        one.step(X, y)
    before = state_of(one)

    with pytest.raises(DivergenceError) as caught:
        one.step(X * large, -y * large)

    assert caught.value.epoch == 6
    assert state_of(one) == before
    assert np.isfinite(one.step(X, y))


def test_weights_that_overflow_are_those_of_the_step_before():
    one = Trainer(Network((1, 1), init="zeros"), optimizer="sgd", learning_rate=1e200)
    before = state_of(one)

    with pytest.raises(DivergenceError):
        one.step([[1e80]], [1e80])

    assert state_of(one) == before


def test_interrupted_step_was_not_made(monkeypatch, rng):
    monkeypatch.setattr(trainer, "CALL_WORK", 1)
    X, y = rng.normal(size=(1000, 3)), rng.normal(size=(1000, 1))
    one = Trainer(Network((3, 4, 1), seed=0))
    one.step(X, y)
    before, batch = state_of(one), one._batch(1000, 1, 0)
    assert len(batch.calls) > 1

    calls = []

    def interrupted(blocks):
        calls.append(blocks)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return batch.run(blocks)

    monkeypatch.setattr(one, "_batch", lambda n, columns, kind: batch._replace(run=interrupted))
    one._batches.clear()
    with pytest.raises(KeyboardInterrupt):
        one.step(X, y)
    monkeypatch.undo()

    assert state_of(one) == before


def test_rows_that_make_a_step_while_they_are_converted_do_not_wait_for_ever():
    one = Trainer(Network((1, 1), seed=0))

    class Rows:
        def __array__(self, dtype=None, copy=None):
            one.step([[1.0]], [1.0])
            return np.ones((1, 1))

    one.step(Rows(), [1.0])

    assert one.steps == 2


def test_rows_that_do_not_fit_are_refused(monkeypatch):
    one = Trainer(Network((1, 10_000), init="zeros"))
    X, y = np.zeros((30, 1)), np.zeros((30, 10_000))
    monkeypatch.setattr("fastbp.checks._physical_memory", lambda: 2**22)

    with pytest.raises(ResourceError, match=r"^a step of 30 rows"):
        one.step(X, y)


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"network": None}, ParameterTypeError),
        ({"optimizer": "adamm"}, ParameterError),
        ({"optimizer": 3}, ParameterTypeError),
        ({"learning_rate": 0}, ParameterError),
        ({"learning_rate": 1e-320}, ParameterError),
        ({"l2": -1}, ParameterError),
        ({"l2": 1e-310}, ParameterError),
        ({"dropout": 1}, ParameterError),
        ({"dropout": [0.1, 0.2]}, ParameterError),
        ({"clip_norm": 0}, ParameterError),
        ({"reduction": "none"}, ParameterError),
        ({"seed": -1}, ParameterError),
    ],
    ids=str,
)
def test_bad_settings_are_refused(settings, error):
    with pytest.raises(error):
        Trainer(**{"network": Network((2, 3, 1)), **settings})


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, IRprop()], ids=str)
def test_loaded_trainer_goes_on_bit_for_bit(optimizer, tmp_path, monkeypatch, rng):
    monkeypatch.setattr(trainer, "STEPS", 4)
    X, y, _ = task("squared_error", rng)
    one = Trainer(
        Network((3, 9, 3), seed=0), optimizer=optimizer, l2=0.01, dropout=0.2, clip_norm=1, reduction="sum", seed=5
    )
    for _ in range(6):
        one.step(X[:7], y[:7])
    one.save(tmp_path / "trainer")
    other = Trainer.load(tmp_path / "trainer")

    assert other.steps == 6
    assert [other.step(X, y) for _ in range(6)] == [one.step(X, y) for _ in range(6)]
    assert state_of(other) == state_of(one)


def test_file_of_weights_that_are_not_finite_is_not_written(tmp_path):
    one = Trainer(Network((1, 1)))
    one.network.params[0] = NAN

    with pytest.raises(DataError):
        one.save(tmp_path / "trainer")

    assert list(tmp_path.iterdir()) == []


CHANGES = {
    "kind": lambda metadata, arrays: metadata.update(kind="training"),
    "a key more": lambda metadata, arrays: metadata.update(more=1),
    "no steps": lambda metadata, arrays: metadata.pop("steps"),
    "steps below 0": lambda metadata, arrays: metadata.update(steps=-1),
    "steps of text": lambda metadata, arrays: metadata.update(steps="1"),
    "optimizer": lambda metadata, arrays: metadata["settings"].update(optimizer={"class": "Network"}),
    "rate": lambda metadata, arrays: metadata["settings"]["optimizer"].update(learning_rate=-1.0),
    "l2": lambda metadata, arrays: metadata["settings"].update(l2=-1.0),
    "dropout": lambda metadata, arrays: metadata["settings"].update(dropout=[2.0]),
    "a setting more": lambda metadata, arrays: metadata["settings"].update(more=1),
    "a setting less": lambda metadata, arrays: metadata["settings"].pop("l2"),
    "no second": lambda metadata, arrays: arrays.pop("second"),
    "an array more": lambda metadata, arrays: arrays.update(more=arrays["second"]),
    "shape": lambda metadata, arrays: arrays.update(first=arrays["first"][1:]),
    "dtype": lambda metadata, arrays: arrays.update(first=arrays["first"].astype(np.float32)),
    "NaN": lambda metadata, arrays: arrays["first"].fill(NAN),
    "second below 0": lambda metadata, arrays: arrays["second"].fill(-1),
    "powers": lambda metadata, arrays: arrays["powers"].fill(2),
    "params": lambda metadata, arrays: arrays["params"].fill(INFINITY),
}


@pytest.mark.parametrize("change", CHANGES)
def test_bad_file_is_refused(change, tmp_path):
    one = Trainer(Network((2, 3, 1), seed=0), dropout=0.1)
    one.step([[1.0, 2.0]], [1.0])
    one.save(tmp_path / "trainer")
    metadata, arrays = checkpoint.read(tmp_path / "trainer")
    arrays = {name: array.copy() for name, array in arrays.items()}
    CHANGES[change](metadata, arrays)
    checkpoint.write(tmp_path / "trainer", metadata, arrays)

    with pytest.raises(CheckpointError):
        Trainer.load(tmp_path / "trainer")


def test_file_of_a_network_or_training_is_no_trainer(tmp_path):
    Network((1, 1)).save(tmp_path / "network")
    fastbp.train([[0.0]], [0.0], epochs=1).save(tmp_path / "training")

    for name in ("network", "training"):
        with pytest.raises(CheckpointError, match="it does not hold a trainer"):
            Trainer.load(tmp_path / name)


# --- threads ------------------------------------------------------------------------------------------------------


def in_threads(*functions):
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_trainers_in_two_threads_do_not_disturb_each_other(rng):
    X, y, _ = task("squared_error", rng)

    def steps(one):
        for n in range(1, 200):
            one.step(X[: n % 40 + 1], y[: n % 40 + 1])

    expected = Trainer(Network((3, 20, 3), seed=0))
    steps(expected)
    actual = [Trainer(Network((3, 20, 3), seed=0)) for _ in range(2)]
    in_threads(*(lambda one=one: steps(one) for one in actual))

    assert [state_of(one) for one in actual] == [state_of(expected)] * 2


def test_trainer_shared_by_threads_makes_every_step(rng):
    X, y = np.ones((1, 3)), np.ones((1, 1))
    expected, actual = (Trainer(Network((3, 20, 1), seed=0)) for _ in range(2))
    for _ in range(1000):
        expected.step(X, y)
    in_threads(*[lambda: [actual.step(X, y) for _ in range(250)]] * 4)

    assert state_of(actual) == state_of(expected)


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_trainer_is_not_copied(twin):
    """Its memory is known to kernels by address."""
    with pytest.raises(TypeError):
        twin(Trainer(Network((1, 1))))
