"""L-BFGS, Levenberg and Marquardt: as their twins compute them, where they end, and what a training does around."""

import _thread
import dataclasses
import itertools
import platform
import signal
import threading
import time

import numpy as np
import pytest
import scipy.optimize
from helpers import EPSILON, output_of

import fastbp
from fastbp import (
    LBFGS,
    LevenbergMarquardt,
    Network,
    ParameterError,
    lbfgs,
    marquardt,
    reference,
    resume,
    second_order,
    threads,
    train,
)
from fastbp.choices import LOSSES
from fastbp.jit import entry
from fastbp.simd import at
from fastbp.workspace import STALE, make_memory, make_plan, panels_of, rows_of

KINDS = {"lbfgs": LBFGS, "levenberg_marquardt": LevenbergMarquardt}
ENGINES = {"lbfgs": lbfgs, "levenberg_marquardt": marquardt}
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


def prepare(row, optimizer, dtype=np.float64, epochs=5, count=ROWS, **options):
    sizes, activation, loss, output, bias, mean, weighted, l2, held, patience = row
    rng = np.random.default_rng(1)
    network = Network(
        sizes, activation=activation, output=output, loss=loss, bias=bias, huber_delta=0.7, seed=2, dtype=dtype
    )

    def rows(n, weights):
        X, y = rng.normal(size=(n, sizes[0])).astype(dtype), targets(loss, (n, sizes[-1]), rng).astype(dtype)
        return rows_of(X, y, weights)

    data = rows(count, rng.choice([0, 0.5, 2], count).astype(dtype) if weighted else None)
    plan = make_plan(
        network, count, options.pop("batch_size", count), optimizer, mean=mean, weighted=weighted, l2=l2,
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
    for engine in (reference, lbfgs):
        plan, memory, data, validation = prepare(row, optimizer, dtype)
        memories.append((memory, run(engine, plan, memory, data, validation)))
    (expected, expected_status), (actual, actual_status) = memories

    assert actual_status == expected_status != reference.DIVERGED
    assert_same(actual, expected, 1e4 * EPSILON[dtype] if dtype == np.float32 else 1e-9)


def test_lbfgs_searches_as_its_twin_where_the_first_trials_are_bad():
    for optimizer in (
        LBFGS(learning_rate=30.0), LBFGS(learning_rate=1e-3), LBFGS(c2=1e-3), LBFGS(evaluations=2),
        LBFGS(evaluations=1, learning_rate=1.5),
    ):  # fmt: skip
        memories = []
        for engine in (reference, lbfgs):
            plan, memory, data, validation = prepare(CASES[4], optimizer)
            run(engine, plan, memory, data, validation)
            memories.append(memory)

        assert_same(*memories[::-1], 1e-8)


ENDS = {
    "tolerance": [LBFGS(gradient_tolerance=0.01), LBFGS(loss_tolerance=1e-3), LBFGS(gradient_tolerance=1e6)],
    "evaluations": [LBFGS(max_evaluations=7)],
}
by_end = pytest.mark.parametrize(
    ("stopped", "optimizer"), [(stopped, each) for stopped, ends in ENDS.items() for each in ends], ids=str
)


@by_end
@pytest.mark.parametrize("row", [(*CASES[2][:-1], -1), CASES[6]], ids=lambda row: "-".join(map(str, row)))
def test_lbfgs_ends_as_its_twin(row, stopped, optimizer):
    memories = []
    for engine in (reference, lbfgs):
        plan, memory, data, validation = prepare(row, optimizer, epochs=100)
        memories.append(memory)

        assert run(engine, plan, memory, data, validation) == {
            "tolerance": reference.CONVERGED, "evaluations": reference.EXHAUSTED
        }[stopped]  # fmt: skip
    assert memories[0].position[0] < 100
    assert_same(*memories[::-1], 1e-6)
    assert memories[0].second == memories[1].second


@by_optimiser
def test_calls_that_walk_few_blocks_give_the_bits_of_one(optimizer, monkeypatch):
    memories = []
    for work in (second_order.CALL_WORK, 1):
        monkeypatch.setattr(second_order, "CALL_WORK", work)
        plan, memory, data, validation = prepare(CASES[2], KINDS[optimizer]())
        run(ENGINES[optimizer], plan, memory, data, validation)
        memories.append(memory)

    for name in ("params", "first", "second", "best", "position", "totals", *HISTORY):
        assert getattr(memories[0], name).tobytes() == getattr(memories[1], name).tobytes()


MARQUARDT_CASES = [(row, None, False) for row in CASES] + [
    (CASES[2], 40, True),
    (CASES[3], 64, False),
    (CASES[4], 70, True),
]


@pytest.mark.parametrize(
    "dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.slow)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("case", MARQUARDT_CASES, ids=lambda case: "-".join(map(str, case)))
def test_levenberg_marquardt_equals_its_twin(case, dtype):
    row, batch_size, shuffled = case
    optimizer, memories = LevenbergMarquardt(damping=0.1, smallest=1e-3), []
    options = {"batch_size": batch_size or ROWS, "shuffled": shuffled, "seed": 5}
    for engine in (reference, marquardt):
        plan, memory, data, validation = prepare(row, optimizer, dtype, epochs=3, **options)
        memories.append((memory, run(engine, plan, memory, data, validation)))
    (expected, expected_status), (actual, actual_status) = memories

    assert actual_status == expected_status != reference.DIVERGED
    assert_same(actual, expected, 1e4 * EPSILON[dtype] if dtype == np.float32 else 1e-10)
    np.testing.assert_allclose(actual.second, expected.second, rtol=1e-2 if dtype == np.float32 else 1e-6)


def test_levenberg_marquardt_refuses_steps_as_its_twin():
    for optimizer in (
        LevenbergMarquardt(damping=1e-9, attempts=3), LevenbergMarquardt(damping=1e-6, increase=9.0, learning_rate=0.5),
        LevenbergMarquardt(damping=1e9), LevenbergMarquardt(largest=1e-2, smallest=1e-2),
    ):  # fmt: skip
        memories = []
        for engine in (reference, marquardt):
            plan, memory, data, validation = prepare(CASES[4], optimizer)
            plan = plan._replace(l2=3.0)
            memory.params[:] *= 4
            run(engine, plan, memory, data, validation)
            memories.append(memory)

        assert_same(*memories[::-1], 1e-6)
        np.testing.assert_allclose(*(memory.second for memory in memories), rtol=1e-6)


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "cross_entropy"])
def test_rows_that_are_surely_wrong_have_a_slope(loss):
    """Their probability is 0 or 1 but for rounding, and so is its curvature."""
    binary = loss == "binary_cross_entropy"
    network = Network((1, 1 if binary else 2), loss=loss, output="sigmoid" if binary else "softmax", init="zeros")
    network.params[0] = 800.0
    y = [[0.0], [1.0]] if binary else [[0.0, 1.0], [1.0, 0.0]]
    result = train(
        [[1.0], [0.0]], y, network=network, epochs=1, optimizer=LevenbergMarquardt(damping=1.0, smallest=1.0), **WHOLE
    )

    assert result.network.params[0] < 799.9


# Losses whose curvature by the logits is exact: Gauss and Newton's is Hessian of a network without hidden layers.
@pytest.mark.parametrize(
    ("loss", "output"),
    [
        ("squared_error", "identity"), ("binary_cross_entropy", "sigmoid"), ("cross_entropy", "softmax"),
        ("poisson", "exponential"),
    ],
)  # fmt: skip
def test_curvature_of_a_linear_model_is_its_hessian(loss, output, rng):
    network = Network((3, 2), loss=loss, output=output, seed=1)
    X, weight = rng.normal(size=(20, 3)), rng.uniform(0, 2, 20)
    rows = rows_of(X, targets(loss, (20, 2), rng), weight)
    y, w = rows[:, 3:5], rows[:, 5:]
    plan, point = make_plan(network, 20, 20, weighted=True), network.params.copy()

    def gradient(params):
        _, _, delta, (_, activations, kept), _ = reference.passed(plan, params, rows)
        total = np.zeros_like(params)
        reference.backward(plan, params, activations, kept, delta, total, 0, 0)
        return total

    expected = np.array(
        [(gradient(point + step) - gradient(point - step)) / 2e-5 for step in 1e-5 * np.eye(point.size)]
    )
    z, p, _, (_, activations, kept), _ = reference.passed(plan, point, rows)
    roots = reference.curvature(plan, z, p, y, w)
    rows_of_j = [reference.jacobian(plan, point, activations, kept, p, o, roots) for o in range(2)]
    actual = sum(rows.T @ rows for rows in rows_of_j)

    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("activation", ["tanh", "gelu", "elu", "sigmoid"])
@pytest.mark.parametrize("bias", [True, False])
def test_rows_of_the_jacobian_are_derivatives_of_the_outputs(activation, bias, rng):
    network = Network((2, 4, 3, 2), activation=activation, output="tanh", bias=bias, seed=1)
    X = rng.normal(size=(5, 2))
    plan, point = make_plan(network, 5, 5), network.params.copy()
    activations, kept = reference.forward(plan, point, plan.dropout, X, 0, 0)
    p = np.tanh(activations[-1])
    roots = reference.curvature(plan, activations[-1], p, p, np.ones((5, 1)))

    def outputs(params):
        return np.tanh(reference.forward(plan, params, plan.dropout, X, 0, 0)[0][-1])

    steps = 1e-5 * np.eye(point.size)
    expected = np.array([(outputs(point + step) - outputs(point - step)) / 2e-5 for step in steps])  # (P, n, O)
    for o in range(2):
        actual = reference.jacobian(plan, point, activations, kept, p, o, roots)

        np.testing.assert_allclose(actual, expected[:, :, o].T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("P", [1, 7, 8, 9, 16, 17, 61, 130])
def test_factor_and_solution_are_those_of_lapack(P, rng):
    A = rng.normal(size=(P, P + 3))
    slope = rng.normal(size=P)
    D = -(-P // 8) * 8
    normal = np.zeros((D, D))
    normal[:P, :P] = np.triu(A @ A.T)
    normal[np.tril_indices(D, -1)] = 7.0  # below the diagonal nothing counts
    right, solution = np.zeros(D), np.zeros(D)
    right[:P] = slope
    factor = np.zeros((D, D))

    assert factorised(normal.ravel(), D, 0.5, 0.25, factor.ravel(), right, solution)
    expected = np.linalg.cholesky(0.5 * A @ A.T + 0.25 * np.eye(P)).T
    np.testing.assert_allclose(np.triu(factor)[:P, :P], expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    expected = np.linalg.solve(0.5 * A @ A.T + 0.25 * np.eye(P), slope)
    np.testing.assert_allclose(solution[:P], expected, rtol=0, atol=1e-10 * np.abs(expected).max())


def test_factor_of_what_is_not_positive_is_refused():
    for value in (-1.0, -2.0, np.nan, np.inf):
        normal = np.diag([1.0] * 9 + [value] + [1.0] * 6)

        assert not factorised(normal.ravel(), 16, 1.0, 1.0, np.zeros(256), np.zeros(16), np.zeros(16))


@entry
def factorised(normal, D, scale, damping, factor, right, solution):
    for i in range(0, D, 8):
        marquardt.rest_rows(at(normal, 0), D, scale, i, i, D, at(factor, 0))
        if not marquardt.factor_rows(D, damping, i, at(factor, 0)):
            return False
    marquardt.solve(at(factor, 0), D, at(right, 0), at(solution, 0))
    return True


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


def losses_of_scipy(function, start, iterations):
    losses = []

    def add(intermediate_result):
        losses.append(intermediate_result.fun)

    options = {"maxiter": iterations, "ftol": 0}
    scipy.optimize.minimize(function, start, jac=True, method="L-BFGS-B", options=options, callback=add)
    return losses


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_lbfgs_makes_the_steps_of_that_of_scipy(backend):
    trials = 0  # so many that some were not the first of their search
    for seed, scale in itertools.product(range(3), (0.01, 1.0, 300.0)):
        X, y = wave(seed=seed)
        network = Network((2, 6, 1), activation="relu", seed=seed)
        given = network.params.copy()
        expected = losses_of_scipy(objective(network, X, scale * y, 0.1), given, 15)
        network.params[:] = given
        result = train(
            X, scale * y, network=network, optimizer=LBFGS(c1=1e-3), l2=0.1, epochs=16, batch_size=None, backend=backend
        )
        trials += int(result.state.arrays["second"][0])

        np.testing.assert_allclose(result.loss[1:], expected, rtol=1e-6)
    assert trials > 1.2 * 9 * 16


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


@pytest.mark.parametrize("loss", ["squared_error", "huber"])
def test_levenberg_marquardt_ends_where_that_of_scipy_goes_no_further(loss, rng):
    X, y = wave()
    y = y + 0.3 * rng.normal(size=y.size)
    network = Network((2, 3, 1), activation="tanh", seed=3, loss=loss, huber_delta=0.2)
    given = network.params.copy()

    def residuals(params):
        network.params[:] = params
        return network.predict(X)[:, 0] - y

    how = {"method": "lm"} if loss == "squared_error" else {"loss": "huber", "f_scale": 0.2}
    how |= {"xtol": 1e-12, "ftol": 1e-12, "gtol": 1e-12, "max_nfev": 2000}
    result = train(X, y, network=network, optimizer="levenberg_marquardt", epochs=1000, batch_size=None)
    further = scipy.optimize.least_squares(residuals, network.params.copy(), **how).cost / len(X)
    network.params[:] = given
    from_start = scipy.optimize.least_squares(residuals, given, **how).cost / len(X)

    assert result.loss[-1] <= further * (1 + 1e-5)  # there is nothing below
    assert result.loss[-1] <= 2 * from_start  # where SciPy's may have found another minimum
    assert (np.diff(result.loss) <= 0).all()


def test_levenberg_marquardt_needs_few_epochs_for_a_wave():
    X = np.linspace(-1, 1, 5000)[:, None]
    result = train(
        X, np.sinc(10 * X[:, 0]), 20, activation="tanh", optimizer="levenberg_marquardt", batch_size=500, epochs=50,
        seed=0,
    )  # fmt: skip

    assert result.loss[-1] < 1e-6


@pytest.mark.parametrize("loss", ["squared_error", "binary_cross_entropy", "cross_entropy", "huber", "poisson"])
def test_levenberg_marquardt_lowers_every_loss_that_is_curved(loss):
    rng = np.random.default_rng(0)
    y = targets(loss, (30, 3), rng)
    result = train(rng.normal(size=(30, 2)), y, 5, loss=loss, optimizer="levenberg_marquardt", epochs=20, **WHOLE)

    assert result.loss[-1] < 0.9 * result.loss[0]
    assert (np.diff(result.loss) <= 0).all()


def test_rows_of_no_weight_are_as_if_they_were_not_there(rng):
    X, y = wave(200)
    weight = rng.integers(0, 2, 200)
    for optimizer in NAMES:
        expected = train(X[weight > 0], y[weight > 0], 4, optimizer=optimizer, epochs=3, **WHOLE)
        actual = train(X, y, 4, optimizer=optimizer, epochs=3, sample_weight=weight, **WHOLE)

        np.testing.assert_allclose(actual.network.params, expected.network.params, rtol=0, atol=1e-9)


def test_batch_of_no_weight_is_as_if_it_were_not_there():
    X, y = wave(30)
    settings = {"optimizer": "levenberg_marquardt", "epochs": 3, "shuffle": False, "batch_size": 10, "seed": 3}
    weight = np.repeat([1.0, 0.0, 1.0], 10)
    expected = train(X[weight > 0], y[weight > 0], 4, sample_weight=np.ones(20), **settings)
    actual = train(X, y, 4, sample_weight=weight, **settings)

    assert actual.network.params.tobytes() == expected.network.params.tobytes()
    assert actual.loss.tobytes() == expected.loss.tobytes()


def test_normal_equations_that_do_not_fit_into_memory_are_refused_with_their_size():
    with pytest.raises(fastbp.ResourceError, match=r"most of it for the normal equations of 2002001 parameters"):
        train(np.zeros((2, 2_000)), [0.0, 1.0], 1_000, optimizer="levenberg_marquardt", dtype="float32")


def test_lbfgs_of_no_slope_keeps_the_weights():
    network = Network((1, 1), init="zeros")
    result = train([[1.0], [-1.0]], [0.0, 0.0], network=network, optimizer="lbfgs", epochs=3, batch_size=None)

    assert result.loss.tolist() == [0, 0, 0]
    assert not network.params.any()


@pytest.mark.parametrize("backend", ["numba", "numpy"])
@pytest.mark.parametrize("validation", [None, 0.25])
def test_lbfgs_ends_where_its_tolerances_or_evaluations_say(backend, validation):
    X, y = wave()
    seen = []
    settings = {"activation": "tanh", "backend": backend, "validation": validation, "l2": 0.5, "epochs": 200, **WHOLE}

    def ended(**told):
        seen.clear()
        result = train(
            X, y, 3, optimizer=LBFGS(**told), callback=lambda state: seen.append(state.network.params), **settings
        )
        return result, [reached(network_params) for network_params in seen]

    def reached(params):
        network.params[:] = params
        loss, gradient = network.loss_and_gradient(*rows, l2=0.5)
        return loss, np.abs(gradient).max()

    network, rows = Network((2, 3, 1), activation="tanh"), (X, y)
    if validation is not None:
        settings["validation"] = wave(10, 1)
    result, steps = ended(gradient_tolerance=1e-3)
    assert result.stopped == "tolerance"
    assert [slope <= 1e-3 for _, slope in steps] == [False] * (len(result.loss) - 1) + [True]

    result, steps = ended(loss_tolerance=1e-4)
    losses = [result.loss[0], *(loss for loss, _ in steps)]
    assert result.stopped == "tolerance"
    assert [b - a <= 1e-4 for b, a in itertools.pairwise(losses)] == [False] * (len(result.loss) - 1) + [True]

    result, _ = ended(max_evaluations=5)
    assert result.stopped == "evaluations"
    assert 1 < len(result.loss) <= 5 <= result.state.arrays["second"][0]


def test_no_step_is_made_where_the_gradient_is_within_its_tolerance():
    X, y = wave()
    first = train(X, y, 3, optimizer=LBFGS(gradient_tolerance=0.1), l2=0.5, epochs=200, **WHOLE)
    again = resume(first, X, y, epochs=5)

    assert (first.stopped, again.stopped) == ("tolerance", "tolerance")
    assert again.loss.size == first.loss.size + 1
    assert again.network.params.tobytes() == first.network.params.tobytes()


def test_evaluations_are_those_of_the_whole_training():
    X, y = wave()
    settings = {"hidden": 3, "optimizer": LBFGS(max_evaluations=12), **WHOLE}
    expected = train(X, y, epochs=50, **settings)
    actual = resume(train(X, y, epochs=4, **settings), X, y, epochs=50)

    assert (actual.stopped, actual.loss.tobytes()) == ("evaluations", expected.loss.tobytes())
    assert actual.network.params.tobytes() == expected.network.params.tobytes()


@pytest.mark.parametrize("backend", ["numba", "numpy"])
def test_weights_stay_only_where_no_step_along_the_gradient_is_lower(backend):
    settings = {"hidden": 5, "activation": "tanh", "epochs": 40, "backend": backend, **WHOLE}
    loss = train(*wave(), optimizer=LBFGS(evaluations=1, learning_rate=1.1), **settings).loss
    steps = np.diff(loss)

    assert (steps <= 0).all()
    assert (np.diff(1 * (steps < 0)) <= 0).all()  # where one has stayed, so do those after it


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
def test_many_networks_are_trained_as_each_alone(optimizer):
    X, y = wave()
    settings = {"optimizer": optimizer, "epochs": 4, "batch_size": None, "hidden": 3}
    many = fastbp.train_many(X, y, [{"seed": seed} for seed in range(3)], **settings)
    for seed, network in enumerate(many.networks):
        alone = train(X, y, seed=seed, **settings)

        assert network.params.tobytes() == alone.network.params.tobytes()
        assert many.loss[:, seed].tobytes() == alone.loss.tobytes()


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
        ("levenberg_marquardt", {"schedule": "cosine"}, "'schedule' must be 'constant' .*, which damps each step"),
        ("levenberg_marquardt", {"dropout": 0.1, "hidden": 3}, "'dropout' must be left out with the optimizer"),
        ("levenberg_marquardt", {"clip_norm": 1.0}, "'clip_norm' must be left out with the optimizer"),
        (
            "levenberg_marquardt",
            {"loss": "absolute_error"},
            "'optimizer' must be another with the loss 'absolute_error'",
        ),
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
def test_ctrl_c_in_the_middle_of_an_epoch_leaves_the_weights_of_its_beginning(optimizer, monkeypatch):
    monkeypatch.setattr(second_order, "CALL_WORK", 1)  # a call for each block
    name = {"lbfgs": "lbfgs_words", "levenberg_marquardt": "marquardt_words"}[optimizer]
    entry_point, left, seen = getattr(ENGINES[optimizer], name), [], []
    X, y = wave(1000)

    def interrupted(*words):
        left.pop()
        if not left:
            raise KeyboardInterrupt
        return entry_point(*words)

    monkeypatch.setattr(ENGINES[optimizer], name, interrupted)
    for last_call in range(100, 170, 9):
        left[:] = range(last_call)
        network = Network((2, 20, 1), activation="tanh", seed=0)
        with pytest.raises(KeyboardInterrupt):
            train(
                X, y, network=network, optimizer=optimizer, epochs=1000, batch_size=None,
                callback=lambda state: seen.append(state.network.params.tobytes()),
            )  # fmt: skip

        assert network.params.tobytes() == seen[-1]


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


# --- threads ------------------------------------------------------------------------------------------------------

WAVE = ((1, 20, 1), "tanh", "squared_error", "identity", True, True, False, 0.0, 0, -1)
THREADED = [
    # row, rows, of a batch, shuffled: with parts of a batch, and with so many parameters that there are bands instead
    (WAVE, 1000, 333, True),
    (WAVE, 1000, 1000, False),
    (CASES[2], 700, 700, False),
    (CASES[3], 600, 250, True),
    (CASES[4], 150, 70, True),
    (CASES[5], 300, 140, True),
    (CASES[6], 5, 5, False),
]


@pytest.fixture
def idle_machine(monkeypatch):
    """No strangers that teams would begin alone for."""
    monkeypatch.setattr(threads, "idle_cores", lambda: 64)


@pytest.fixture
def nobody_left():
    """No thread more than before."""
    before = _thread._count()
    yield
    deadline = time.monotonic() + 60
    while _thread._count() > before and time.monotonic() < deadline:
        time.sleep(0.01)

    assert _thread._count() <= before


def by_team(count, case, dtype=np.float64, epochs=4):
    row, rows, batch_size, shuffled = case
    options = {"batch_size": batch_size, "shuffled": shuffled, "seed": 5, "count": rows}
    plan, memory, data, validation = prepare(row, LevenbergMarquardt(), dtype, epochs, **options)
    plan = plan._replace(block=count * plan.block)
    validation = panels_of(validation, plan._replace(batch_size=max(1, len(validation)), few=0))
    data, memory = data if shuffled else panels_of(data, plan), make_memory(plan, memory.params, epochs)
    with threads.Team(count) as team:
        run = marquardt.bind(plan, memory, data.ravel(), validation, team)
        run(0)
        status = [run(1) for _ in range(2)] + [run(epochs - 2)]
    return status, memory


def assert_same_bits(actual, expected):
    assert actual[0] == expected[0]
    for name in ("params", "second", "best", "position", "totals", *HISTORY):
        assert getattr(actual[1], name).tobytes() == getattr(expected[1], name).tobytes(), name


@pytest.mark.parametrize(
    "dtype", [np.float64, pytest.param(np.float32, marks=pytest.mark.slow)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("case", THREADED, ids=lambda case: "-".join(map(str, case)))
@pytest.mark.usefixtures("idle_machine", "nobody_left")
def test_any_number_of_threads_gives_the_bits_of_one(case, dtype):
    expected = by_team(1, case, dtype)
    for count in (2, 3, 4, 7):
        assert_same_bits(by_team(count, case, dtype), expected)


@pytest.mark.usefixtures("idle_machine")
def test_helper_that_never_comes_keeps_nobody_waiting(monkeypatch):
    never, expected = threading.Event(), by_team(1, THREADED[0])
    monkeypatch.setattr(threads.Room, "help", lambda room, helper: never.wait())
    actual = by_team(2, THREADED[0])  # which would not return
    never.set()

    assert_same_bits(actual, expected)


@pytest.mark.usefixtures("idle_machine", "nobody_left")
def test_training_and_resuming_with_threads_have_the_bits_of_one():
    X, y = wave(2000)
    settings = {"hidden": 20, "optimizer": "levenberg_marquardt", "epochs": 3, "batch_size": 500, "seed": 1}
    expected = train(X, y, **settings)
    for count in (2, 3, "auto"):
        actual = train(X, y, **settings, threads=count)
        assert actual.network.params.tobytes() == expected.network.params.tobytes()
        assert (
            resume(actual, X, y, epochs=2, threads=count).loss.tobytes()
            == resume(expected, X, y, epochs=2).loss.tobytes()
        )


@pytest.mark.usefixtures("idle_machine", "nobody_left")
def test_ctrl_c_ends_the_threads_and_leaves_the_weights_of_an_epoch():
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    network, seen = Network((2, 20, 1), activation="tanh", seed=0), []
    timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            train(
                *wave(20_000), network=network, optimizer="levenberg_marquardt", epochs=10**6, threads=2,
                callback=lambda state: seen.append(state.network.params.copy()),
            )  # fmt: skip
    finally:
        timer.join()
        signal.signal(signal.SIGINT, handler)

    assert np.isfinite(network.params).all()
    assert len(seen) > 0


def test_threads_are_taken_for_what_is_large():
    def best(sizes, rows, most=2):
        plan = make_plan(Network(sizes), rows, rows, LevenbergMarquardt())
        return threads.best(plan, np.dtype(np.float64), 10**6, most)

    assert [best((1, 2, 1), 1000), best((1, 20, 1), 16), best((1, 20, 1), 100)] == [1] * 3
    assert [best((1, 20, 1), 1000), best((8, 64, 1), 200), best((4, 8, 5), 2000)] == [2] * 3
    assert best((8, 64, 1), 10_000, most=7) > 2


BITS = """
import hashlib, numpy as np, fastbp
rng = np.random.default_rng(0)
X = rng.normal(size=(150, 5))
for dtype in ("float64", "float32"):
    for optimizer, loss, batch_size in (("lbfgs", "huber", None), ("levenberg_marquardt", "cross_entropy", 70)):
        y = np.digitize(X[:, 0] * X[:, 1], [-0.3, 0.3]) if loss == "cross_entropy" else X[:, :2] ** 2
        result = fastbp.train(X, y, (9, 17), activation=("silu", "tanh"), loss=loss, optimizer=optimizer, dtype=dtype,
                              batch_size=batch_size, epochs=8, l2=0.1, validation=0.3, seed=1)
        print(hashlib.sha256(result.network.params.tobytes() + result.validation_loss.tobytes()).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the other CPU is one of x86")
def test_code_for_another_cpu_has_the_same_bits():
    expected = output_of("-c", BITS, FASTBP_CACHE="0")
    actual = output_of("-c", BITS, FASTBP_CACHE="0", NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES="")

    assert actual == expected
    assert len(set(expected.split())) == 4
