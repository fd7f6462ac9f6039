"""L-BFGS: as its twin computes it, where it ends, and what a training does around it."""

import dataclasses
import signal
import threading
import time

import numpy as np
import pytest
import scipy.optimize
from helpers import EPSILON

import fastbp
from fastbp import LBFGS, Network, ParameterError, reference, resume, second_order, train
from fastbp.choices import LOSSES
from fastbp.workspace import STALE, make_memory, make_plan, panels_of, rows_of

KINDS = {"lbfgs": LBFGS}
NAMES = list(KINDS)
by_optimiser = pytest.mark.parametrize("optimizer", NAMES)
WHOLE = {"batch_size": None, "seed": 3}


def targets(loss, shape, rng):
    if loss == "binary_cross_entropy":
        return rng.integers(0, 2, shape).astype(float)
    if loss == "cross_entropy":
        return rng.dirichlet(np.ones(shape[1]), shape[0])
    return rng.poisson(1, shape).astype(float) if loss == "poisson" else rng.normal(size=shape)


def wave(rows=60, seed=0):
    """A smooth function of two numbers."""
    X = np.random.default_rng(seed).uniform(-1, 1, (rows, 2))
    return X, np.sin(3 * X[:, 0]) + X[:, 0] * X[:, 1]


def objective(network, X, y, l2=0.0):
    """Loss and gradient by its parameters, for SciPy."""

    def at(params):
        network.params[:] = params
        return network.loss_and_gradient(X, y, l2=l2)

    return at


# --- the twin -----------------------------------------------------------------------------------------------------

CASES = [
    # sizes, hidden activation, loss, output, bias, mean, weighted, l2, rows for validation, patience
    ((1, 1), "tanh", "squared_error", "identity", True, True, False, 0.0, 0, -1),
    ((3, 1), "tanh", "squared_error", "tanh", False, False, True, 0.1, 17, 1),
    ((5, 7, 2), "sigmoid", "binary_cross_entropy", "sigmoid", True, True, True, 0.1, 5, 1),
    ((2, 8, 9, 3), "silu", "cross_entropy", "softmax", True, False, False, 0.0, 40, 0),
    ((4, 17, 1), "softplus", "huber", "gelu", True, True, False, 0.2, 1, -1),
    ((7, 33, 15, 10), "elu", "poisson", "exponential", False, True, True, 0.0, 0, 1),
    ((2, 2, 2), "gelu", "squared_error", "sigmoid", True, True, False, 0.0, 9, -1),
]
ROWS = 150  # more than a block has


def prepare(row, optimizer, dtype=np.float64, epochs=5, **options):
    sizes, activation, loss, output, bias, mean, weighted, l2, held, patience = row
    rng = np.random.default_rng(1)
    network = Network(
        sizes, activation=activation, output=output, loss=loss, bias=bias, huber_delta=0.7, seed=2, dtype=dtype
    )

    def rows(n, weights):
        X, y = rng.normal(size=(n, sizes[0])).astype(dtype), targets(loss, (n, sizes[-1]), rng).astype(dtype)
        return rows_of(X, y, weights)

    data = rows(ROWS, rng.choice([0, 0.5, 2], ROWS).astype(dtype) if weighted else None)
    plan = make_plan(
        network, ROWS, options.pop("batch_size", ROWS), optimizer, mean=mean, weighted=weighted, l2=l2,
        validation_rows=held, spread=(1.0,) * sizes[-1], patience=patience, keep_best=held > 0 and patience >= 0,
        watched=1 if held else 0, **options,
    )  # fmt: skip
    return plan, make_memory(plan, network.params.copy(), epochs), data, rows(held, None)


def run(engine, plan, memory, data, validation, blocks=None):
    """Run to the end, with the engine's own idea of how rows are laid out."""
    if engine is not reference:
        validation = panels_of(validation, plan._replace(batch_size=max(1, len(validation)), few=0))
        data = data.ravel() if plan.shuffled else panels_of(data, plan)
    bound = engine.bind(plan, memory, data.ravel(), validation.ravel())
    return bound(len(memory.loss) if blocks is None else blocks)


HISTORY = ("loss", "error", "validation_loss", "validation_error", "validation_misfit")


def assert_same(actual, expected, tolerance):
    assert actual.position.tolist() == expected.position.tolist()
    for name in ("params", "best", *HISTORY):
        actual_part, expected_part = getattr(actual, name), getattr(expected, name)
        scale = np.abs(expected_part).max(initial=1e-300)
        np.testing.assert_allclose(actual_part, expected_part, rtol=0, atol=tolerance * scale, err_msg=name)
    assert not actual.gradient.any()
    np.testing.assert_allclose(actual.totals, expected.totals, rtol=tolerance, atol=0)


@pytest.mark.parametrize(
    "dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.slow)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("row", CASES, ids=lambda row: "-".join(map(str, row)))
def test_lbfgs_equals_its_twin(row, dtype):
    optimizer = LBFGS(history=3)
    memories = []
    for engine in (reference, second_order):
        plan, memory, data, validation = prepare(row, optimizer, dtype)
        memories.append((memory, run(engine, plan, memory, data, validation)))
    (expected, expected_status), (actual, actual_status) = memories

    assert actual_status == expected_status != reference.DIVERGED
    assert_same(actual, expected, 1e4 * EPSILON[dtype] if dtype == np.float32 else 1e-9)


def test_lbfgs_searches_as_its_twin_where_the_first_trials_are_bad():
    for optimizer in (LBFGS(learning_rate=30.0), LBFGS(learning_rate=1e-3), LBFGS(c2=1e-3), LBFGS(evaluations=2)):
        memories = []
        for engine in (reference, second_order):
            plan, memory, data, validation = prepare(CASES[4], optimizer)
            run(engine, plan, memory, data, validation)
            memories.append(memory)

        assert_same(*memories[::-1], 1e-8)


@by_optimiser
def test_calls_that_walk_few_blocks_give_the_bits_of_one(optimizer, monkeypatch):
    memories = []
    for work in (second_order.CALL_WORK, 1):
        monkeypatch.setattr(second_order, "CALL_WORK", work)
        plan, memory, data, validation = prepare(CASES[2], KINDS[optimizer]())
        run(second_order, plan, memory, data, validation)
        memories.append(memory)

    for name in ("params", "first", "second", "best", "position", "totals", *HISTORY):
        assert getattr(memories[0], name).tobytes() == getattr(memories[1], name).tobytes()


# --- where it ends ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("l2", [0.2, 1.0])
def test_lbfgs_ends_where_that_of_scipy_does(l2):
    X, y = wave()
    network = Network((2, 6, 1), activation="tanh", seed=3)
    given = network.params.copy()
    expected = scipy.optimize.fmin_l_bfgs_b(
        objective(network, X, y, l2), given, factr=1.0, pgtol=1e-12, maxiter=5000, maxfun=20000
    )[1]
    network.params[:] = given
    actual = train(X, y, network=network, optimizer="lbfgs", l2=l2, epochs=500, batch_size=None).loss

    assert (np.diff(actual) <= 1e-15).all()
    np.testing.assert_allclose(actual[-1], expected, rtol=1e-6)


def test_lbfgs_finds_the_least_squares_of_a_linear_model(rng):
    X = rng.normal(size=(50, 4)) * [1, 10, 100, 1000]  # ill-conditioned
    y = X @ [1.0, 2.0, 3.0, 4.0] + 5 + 0.1 * rng.normal(size=50)
    expected = np.linalg.lstsq(np.c_[X, np.ones(50)], y, rcond=None)[0]
    actual = train(X, y, optimizer="lbfgs", epochs=200, **WHOLE).network.params

    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@by_optimiser
def test_a_minimum_is_not_left(optimizer):
    X = np.array([[0.0], [1.0], [2.0]])
    result = train(X, 2 * X[:, 0] + 1, optimizer=optimizer, epochs=100, **WHOLE)

    assert result.loss[-1] < 1e-25
    assert np.isfinite(result.network.params).all()


def test_lbfgs_of_no_slope_keeps_the_weights():
    network = Network((1, 1), init="zeros")
    result = train([[1.0], [-1.0]], [0.0, 0.0], network=network, optimizer="lbfgs", epochs=3, batch_size=None)

    assert result.loss.tolist() == [0, 0, 0]
    assert not network.params.any()


# --- what a training does around it -------------------------------------------------------------------------------


@by_optimiser
@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_five_epochs_and_five_give_the_bits_of_ten(optimizer, backend, tmp_path):
    X, y = wave()
    settings = {"hidden": 4, "activation": "tanh", "optimizer": optimizer, "backend": backend, "l2": 0.01, **WHOLE}
    expected = train(X, y, epochs=10, validation=0.25, patience=20, **settings)
    train(X, y, epochs=5, validation=0.25, patience=20, **settings).save(tmp_path / "five")
    actual = resume(tmp_path / "five", X, y, epochs=5)

    assert actual.network.params.tobytes() == expected.network.params.tobytes()
    assert actual.loss.tobytes() == expected.loss.tobytes()
    assert actual.validation_loss.tobytes() == expected.validation_loss.tobytes()


@by_optimiser
def test_other_rows_go_on_from_the_state(optimizer):
    X, y = wave()
    first = train(X, y, 4, optimizer=optimizer, epochs=5, **WHOLE)
    second = resume(first, *wave(seed=1), epochs=20)

    assert second.loss[-1] < second.loss[5]
    assert second.loss[5] == pytest.approx(first.network.loss_and_gradient(*wave(seed=1))[0], rel=1e-12)


@by_optimiser
def test_loss_of_an_epoch_is_that_before_its_step(optimizer):
    X, y = wave()
    seen = [Network((2, 4, 1), seed=3)]
    result = train(
        X, y, network=seen[0].copy(), optimizer=optimizer, epochs=4, callback=lambda s: seen.append(s.network),
        batch_size=None, l2=0.1,
    )  # fmt: skip
    expected = [network.loss_and_gradient(X, y, l2=0.1)[0] for network in seen[:-1]]

    np.testing.assert_allclose(result.loss, expected, rtol=1e-13)


@by_optimiser
@pytest.mark.parametrize("threads", [2, "auto"])
def test_threads_give_the_same_bits(optimizer, threads):
    X, y = wave(300)
    one, several = (train(X, y, 8, optimizer=optimizer, epochs=5, threads=t, **WHOLE) for t in (1, threads))

    assert one.network.params.tobytes() == several.network.params.tobytes()


@by_optimiser
def test_patience_ends_a_training_that_stands_still(optimizer):
    X = np.linspace(-1, 1, 20)[:, None]
    result = train(X, 3 * X[:, 0], optimizer=optimizer, epochs=1000, patience=3, min_delta=1e-12, **WHOLE)

    assert result.stopped == "patience"
    assert len(result.loss) < 100
    assert result.state.arrays["position"][STALE] == 4


@by_optimiser
@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_what_diverges_keeps_the_last_good_weights(optimizer, backend):
    network = Network((1, 1), init="zeros")
    network.params[:] = 1e200
    before = network.params.tobytes()
    with pytest.raises(fastbp.DivergenceError) as caught:
        train([[1e200], [1.0]], [0.0, 1.0], network=network, optimizer=optimizer, batch_size=None, backend=backend)

    assert caught.value.epoch == 1
    assert network.params.tobytes() == before


@pytest.mark.parametrize(
    ("optimizer", "setting", "message"),
    [
        ("lbfgs", {"batch_size": 7}, "'batch_size' must be None with the optimizer 'lbfgs', which searches along"),
        ("lbfgs", {"schedule": "cosine"}, "'schedule' must be 'constant' with the optimizer 'lbfgs', which searches"),
        ("lbfgs", {"dropout": 0.1, "hidden": 3}, "'dropout' must be left out with the optimizer 'lbfgs', which"),
        ("lbfgs", {"clip_norm": 1.0}, "'clip_norm' must be left out with the optimizer 'lbfgs', which searches"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(optimizer, setting, message):
    with pytest.raises(ParameterError, match=message):
        train(*wave(), optimizer=optimizer, **{"batch_size": None} | setting)


@by_optimiser
def test_trainer_makes_steps_of_gradients_alone(optimizer):
    with pytest.raises(ParameterError, match="'optimizer' must be one that makes a step of each gradient, got "):
        fastbp.Trainer(Network((1, 1)), optimizer=optimizer)


@by_optimiser
def test_state_of_another_memory_is_refused(optimizer):
    X, y = wave()
    result = train(X, y, 4, optimizer=optimizer, epochs=2, **WHOLE)
    arrays = {**result.state.arrays, "second": np.zeros(3)}

    with pytest.raises(
        fastbp.DataError, match=r"'result\.state' must be as a training left it, but 'second' has shape"
    ):
        resume(result._replace(state=result.state._replace(arrays=arrays)), X, y, epochs=1)


@by_optimiser
def test_ctrl_c_in_the_middle_of_an_epoch_leaves_a_point_where_one_began(optimizer, monkeypatch):
    monkeypatch.setattr(second_order, "CALL_WORK", 1)  # a call for each block
    X, y = wave(40_000)
    network, losses, began = Network((2, 20, 20, 1), activation="tanh", seed=0), [], []

    def callback(state):
        losses.append(state.network.params.copy())
        if len(losses) == 2:
            timer = threading.Timer(
                0.05, lambda: (began.append(time.perf_counter()), signal.raise_signal(signal.SIGINT))
            )
            timer.daemon = True
            timer.start()

    with pytest.raises(KeyboardInterrupt):
        train(X, y, network=network, optimizer=optimizer, epochs=10**6, callback=callback, batch_size=None)

    assert network.params.tobytes() == losses[-1].tobytes()


@pytest.mark.parametrize("loss", LOSSES)
def test_lbfgs_lowers_every_loss(loss):
    rng = np.random.default_rng(0)
    y = targets(loss, (30, 3), rng)
    result = train(rng.normal(size=(30, 2)), y, 5, loss=loss, optimizer="lbfgs", epochs=20, **WHOLE)

    assert result.loss[-1] < 0.95 * result.loss[0]
    assert (np.diff(result.loss) <= 0).all()


@by_optimiser
def test_settings_are_those_of_the_result(optimizer):
    settings = dataclasses.replace(KINDS[optimizer](), learning_rate=0.5)

    assert train(*wave(), optimizer=settings, epochs=1, **WHOLE).state.settings.optimizer == settings
    assert (
        train(*wave(), optimizer=optimizer, learning_rate=0.5, epochs=1, **WHOLE).state.settings.optimizer == settings
    )
