"""The reference is what kernels are tested against, so it is tested on its own: by calculus, by hand, by libraries."""

import collections
import itertools
import math

import mpmath
import numpy as np
import pytest
import scipy.special
from helpers import EPSILON, TINY, loss_settings
from sklearn.metrics import accuracy_score, log_loss, mean_poisson_deviance, r2_score
from sklearn.neural_network import MLPClassifier, MLPRegressor

from fastbp import reference
from fastbp.choices import (
    ACTIVATIONS,
    ELEMENTWISE,
    LEARNING_RATE,
    LOSSES,
    SGD,
    Adam,
    AdamW,
    CosineDecay,
    ExponentialDecay,
    InverseScaling,
    IRprop,
    ReduceOnPlateau,
    RMSprop,
)
from fastbp.network import Network
from fastbp.workspace import (
    BEST,
    FACTOR,
    POWER1,
    POWER2,
    STALE,
    VALIDATION_LOSS,
    layers_of,
    make_memory,
    make_plan,
    rows_of,
)

DTYPES = ["float64", "float32"]
OPTIMIZERS = [
    SGD(0.1),
    SGD(0.1, momentum=0.9),
    SGD(0.1, momentum=0.9, nesterov=True),
    Adam(0.01),
    Adam(0.01, epsilon_hat=True),
    AdamW(0.01, weight_decay=0.3),
    RMSprop(0.01),
    IRprop(0.01),
]
PAIRS = [(loss, output) for loss in LOSSES for output in LOSSES[loss].outputs]
# Every activation with every loss, and every loss with every output.
NETWORKS = [
    *(
        (activation, loss, LOSSES[loss].outputs[0], depth, bias)
        for activation, loss, depth, bias in itertools.product(ELEMENTWISE, LOSSES, (1, 3), (True, False))
    ),
    *(
        ("tanh", loss, output, depth, bias)
        for (loss, output), depth, bias in itertools.product(PAIRS, (0, 2), (True, False))
    ),
]
# They are computed by |x|, or by a function that the C library has for real numbers alone: complex steps are lost.
REAL = {"gelu", "softplus", "absolute_error", "huber"}
EXTREMES = [-800.0, -100.0, -20.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 20.0, 100.0, 800.0]


def dtype_of(dtype):
    return np.dtype(dtype).type


def targets(loss, shape, rng):
    """Targets that the loss is meant for: any numbers, 0 and 1, rows of probabilities, or counts."""
    if loss == "binary_cross_entropy":
        return rng.integers(0, 2, shape).astype(float)
    if loss == "poisson":
        return rng.poisson(1, shape).astype(float)
    if loss == "cross_entropy":
        return rng.dirichlet(np.ones(shape[1]), shape[0])
    return rng.normal(size=shape)


def plan_of(loss, outputs=2, **extras):
    """A plan of one layer with this loss."""
    return make_plan(Network((1, outputs), **loss_settings(loss, outputs)), 1, 1, **extras)


def prepare(network, rows, batch_size, optimizer=None, epochs=1, mean=True, **options):
    """A plan, and a memory with a copy of the network's parameters."""
    plan = make_plan(network, rows, batch_size, optimizer, mean=mean, **options)
    return plan, make_memory(plan, network.params.copy(), epochs)


def run(plan, memory, rows, validation=None, blocks=None):
    """Run on the rows, by default to the end; returns the status."""
    held = rows[:0] if validation is None else validation
    blocks = len(memory.loss) * plan.blocks_per_epoch if blocks is None else blocks
    return reference.run(plan, memory, rows.ravel(), held.ravel(), blocks)


def trained(network, X, y, batch_size, optimizer, epochs=1, weight=1, validation=None, **options):
    """Memory after so many epochs."""
    plan, memory = prepare(network, len(X), batch_size, optimizer, epochs, **options)
    rows = rows_of(X, y, np.broadcast_to(weight, len(X)))
    assert run(plan, memory, rows, validation) == reference.FINISHED
    return memory


# --- gradients by calculus ----------------------------------------------------------------------------------------


def network_of(activation, loss, output, depth, bias, rng, dropout=0.0):
    """A plan, parameters, x and y of a network."""
    sizes = (2, *(3, 2, 3)[:depth], 2)
    network = Network(
        sizes, activation=activation, output=output, bias=bias, huber_delta=0.7, **loss_settings(loss, sizes[-1])
    )
    network.params[:] = rng.normal(size=network.params.size)
    if "exponential" in (activation, output):
        network.params[:] *= 0.3  # or it dwarfs what is compared
    plan = make_plan(network, 4, 4, seed=3, dropout=(dropout,) * depth)
    return plan, network.params, rng.normal(size=(4, 2)), targets(loss, (4, 2), rng)


by_network = pytest.mark.parametrize("row", NETWORKS, ids=lambda row: "-".join(map(str, row)))


def total_loss(plan, params, x, y):
    activations, _ = reference.forward(plan, params, plan.dropout, x, 1, 0)
    return reference.output(plan, activations[-1], y)[2].sum()


def gradient_of(plan, params, x, y):
    activations, kept = reference.forward(plan, params, plan.dropout, x, 1, 0)
    delta = reference.output(plan, activations[-1], y)[1]
    gradient = np.zeros_like(params)
    reference.backward(plan, params, activations, kept, delta, gradient, 1, 0)
    return gradient


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(
    "row", [row for row in NETWORKS if REAL.isdisjoint(row)], ids=lambda row: "-".join(map(str, row))
)
def test_gradient_is_the_complex_step(row, dropout, rng):
    plan, params, x, y = network_of(*row, rng, dropout)
    steps = 1e-30j * np.eye(params.size)

    expected = [total_loss(plan, params + step, x.astype(complex), y).imag / 1e-30 for step in steps]
    actual = gradient_of(plan, params, x, y)

    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


@by_network
def test_gradient_is_the_central_difference(row, rng):
    plan, params, x, y = network_of(*row, rng)

    def sides(params):
        """On which sides of their kinks activations and residuals are."""
        (*hidden, logits), _ = reference.forward(plan, params, plan.dropout, x, 0, 0)
        p = reference.output(plan, logits, y)[0]
        residual = p - y
        kinks = [*hidden, logits, residual, np.abs(residual) - plan.huber_delta, p[:, :-1] - p[:, 1:]]
        return np.concatenate([(a > 0).ravel() for a in kinks])

    steps = 1e-5 * np.eye(params.size)
    smooth = np.array([bool((sides(params + step) == sides(params - step)).all()) for step in steps])
    expected = np.array(
        [(total_loss(plan, params + step, x, y) - total_loss(plan, params - step, x, y)) / 2e-5 for step in steps]
    )
    actual = gradient_of(plan, params, x, y)

    assert smooth.mean() > 0.8
    np.testing.assert_allclose(actual[smooth], expected[smooth], rtol=0, atol=1e-7 * max(1, np.abs(expected).max()))


def test_gradient_adds_to_what_is_there(rng):
    network = Network((3, 2, 1), activation="tanh", seed=0)
    plan = make_plan(network, 4, 4)
    forward = reference.forward(plan, network.params, plan.dropout, rng.normal(size=(4, 3)), 0, 0)
    delta = rng.normal(size=(4, 1))
    once, twice = np.zeros(11), np.zeros(11)
    reference.backward(plan, network.params, *forward, delta, once, 0, 0)
    for _ in range(2):
        reference.backward(plan, network.params, *forward, delta, twice, 0, 0)

    expected = 2 * once
    actual = twice

    np.testing.assert_array_equal(actual, expected)


# --- one step by hand ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_step_is_the_one_worked_by_hand(dtype):
    # x = (1, 2), y = 1; sigmoid everywhere, squared error, rate 2. sigmoid(0) = 1/2 and sigmoid(log 3) = 3/4.
    log3 = math.log(3)
    before = [
        1, log3, -0.5, 0, 0, 0,  # w11 w12 w21 w22 b1 b2
        3, -2, 0,  # v1 v2 c
    ]  # fmt: skip
    # z1 = 1 * 1 + 2 * -0.5 + 0 = 0           a1 = 0.5
    # z2 = 1 * log 3 + 2 * 0 + 0 = log 3      a2 = 0.75
    # z = 3 * 0.5 - 2 * 0.75 + 0 = 0          p = 0.5
    # loss = 1/2 (0.5 - 1)^2 = 0.125, error = |0.5 - 1| = 0.5
    # delta = (p - y) p (1 - p) = -0.5 * 0.25 = -0.125
    # delta1 = v1 delta a1 (1 - a1) = 3 * -0.125 * 0.25 = -0.09375
    # delta2 = v2 delta a2 (1 - a2) = -2 * -0.125 * 0.1875 = 0.046875
    # w - 2 x delta:
    after = [
        1 - 2 * 1 * -0.09375,  # w11 = 1.1875
        log3 - 2 * 1 * 0.046875,  # w12
        -0.5 - 2 * 2 * -0.09375,  # w21 = -0.125
        0 - 2 * 2 * 0.046875,  # w22 = -0.1875
        0 - 2 * -0.09375,  # b1 = 0.1875
        0 - 2 * 0.046875,  # b2 = -0.09375
        3 - 2 * 0.5 * -0.125,  # v1 = 3.125
        -2 - 2 * 0.75 * -0.125,  # v2 = -1.8125
        0 - 2 * -0.125,  # c = 0.25
    ]
    network = Network((2, 2, 1), activation="sigmoid", output="sigmoid", dtype=dtype)
    network.params[:] = before
    memory = trained(network, np.array([[1, 2]], dtype), np.array([[1]], dtype), 1, SGD(2.0))

    expected = [*after, 0.125, 0.5]
    actual = [*memory.params, *memory.loss, *memory.error]

    np.testing.assert_allclose(actual, expected, rtol=4 * EPSILON[dtype])


# --- layers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        (True, [[[0, 1], [2, 3], [4, 5]], [6, 7], [[8], [9]], [10]]),
        (False, [[[0, 1], [2, 3], [4, 5]], [], [[6], [7]], []]),
    ],
)
def test_layers_are_laid_out_as_the_networks(bias, expected):
    network = Network((3, 2, 1), bias=bias, seed=0)
    network.params = np.arange(network.params.size, dtype=float)
    plan = make_plan(network, 1, 1)

    of_network = list(zip(network.weights, network.biases, strict=True))

    for layers in (of_network, layers_of(network.params, plan.sizes, plan.starts)):
        assert [view.tolist() for layer in layers for view in layer] == expected
        assert all(np.shares_memory(view, network.params) for layer in layers for view in layer if view.size)


def test_product_sums_over_features():
    w, x = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), np.array([[10.0, 100.0]])

    expected = [[411.5, 521.0, 629.0]]
    actual = reference.product(w, x, np.array([1.5, 1.0, -1.0]))

    np.testing.assert_array_equal(actual, expected)


def test_gradients_sum_over_samples():
    a, delta = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[10.0], [100.0]])

    expected = [[310.0], [420.0]], [110.0]
    actual = reference.weight_gradient(a, delta), reference.bias_gradient(delta)

    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])


# --- activations --------------------------------------------------------------------------------------------------

# What other libraries, or plain Python, make of an activation.
PEERS = {
    "identity": lambda z: z,
    "sigmoid": scipy.special.expit,
    "tanh": lambda z: np.array([math.tanh(x) for x in z.ravel()], z.dtype).reshape(z.shape),
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.array([x if x > 0 else 0.01 * x for x in z.ravel()], z.dtype).reshape(z.shape),
    "softmax": lambda z: scipy.special.softmax(z, axis=1),
    "elu": lambda z: np.array([x if x > 0 else math.expm1(x) for x in z.ravel()], z.dtype).reshape(z.shape),
    "gelu": lambda z: z * scipy.special.ndtr(z),
    "silu": lambda z: z * scipy.special.expit(z),
    "softplus": lambda z: np.logaddexp(z, z.dtype.type(0)),
    "exponential": np.exp,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_that_of_another_library(name, dtype):
    z = np.array([EXTREMES, EXTREMES[::-1]], dtype)

    with np.errstate(over="ignore"):
        expected = PEERS[name](z)
        actual = reference.softmax(z) if name == "softmax" else reference.activation(ACTIVATIONS[name].code, z)

    assert actual.dtype == dtype
    absolute = TINY[dtype] if name != "gelu" else 8 * EPSILON[dtype]  # Phi(z) is the rest of a difference
    np.testing.assert_allclose(actual, expected, rtol=8 * EPSILON[dtype], atol=absolute)


FORMULAS = {
    "identity": lambda z: z,
    "sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
    "tanh": mpmath.tanh,
    "relu": lambda z: max(z, 0),
    "leaky_relu": lambda z: z if z > 0 else z * mpmath.mpf("0.01"),
    "elu": lambda z: z if z > 0 else mpmath.exp(z) - 1,
    "gelu": lambda z: z * mpmath.ncdf(z),
    "silu": lambda z: z / (1 + mpmath.exp(-z)),
    "softplus": lambda z: mpmath.log(1 + mpmath.exp(z)),
    "exponential": mpmath.exp,
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_slope_is_the_derivative(name):
    kind, delta = ACTIVATIONS[name].code, np.array([-3.0, 2.0, 0.5, 1.0, 1.0, 2.0])
    z = np.array([-5.0, -2.0, -0.3, 0.4, 3.0, 8.0])
    with mpmath.workdps(40):
        derivative = [float(mpmath.diff(FORMULAS[name], mpmath.mpf(x))) for x in z.tolist()]

    expected = delta * derivative
    actual = reference.times_slope(kind, delta, z if reference.of_logits(kind) else reference.activation(kind, z))

    # 1 - a^2 and 1 - s cancel.
    np.testing.assert_allclose(actual, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_passes_through(name, dtype):
    z = np.array([[np.nan, 1.0]], dtype)
    actual = reference.softmax(z) if name == "softmax" else reference.activation(ACTIVATIONS[name].code, z)

    assert np.isnan(actual[0, 0])


def test_slope_of_relu_lets_nothing_through_a_dead_unit_but_nan():
    expected = [0, np.nan, 5]
    actual = reference.times_slope(ACTIVATIONS["relu"].code, np.array([np.inf, 1, 5]), np.array([0, np.nan, 2]))

    np.testing.assert_array_equal(actual, expected)


# --- losses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_squared_error_is_half_the_sum_of_squares(dtype):
    z, y = np.array([[1, 2], [0.5, -3]], dtype), np.array([[0, 4], [0.5, 1]], dtype)

    expected = [[1, 2], [0.5, -3]], [[1, -2], [0, -4]], [2.5, 8], [3, 4]
    actual = reference.output(plan_of("squared_error"), z, y)

    for expected_part, actual_part in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(actual_part, expected_part)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("loss", "d", "losses", "slopes"),
    [
        ("squared_error", 1.0, [0, 2, 0.125, 0.125, 4.5], [0, -2, -0.5, 0.5, 3]),
        ("absolute_error", 1.0, [0, 2, 0.5, 0.5, 3], [0, -1, -1, 1, 1]),
        ("huber", 1.0, [0, 1.5, 0.125, 0.125, 2.5], [0, -1, -0.5, 0.5, 1]),
        ("huber", 0.5, [0, 0.875, 0.125, 0.125, 1.375], [0, -0.5, -0.5, 0.5, 0.5]),
        ("huber", 100.0, [0, 2, 0.125, 0.125, 4.5], [0, -2, -0.5, 0.5, 3]),
    ],
)
def test_loss_of_a_residual_and_its_slope_are_known(loss, d, losses, slopes, dtype):
    residuals, code, none = np.array([0, -2, -0.5, 0.5, 3], dtype), LOSSES[loss].code, np.zeros(5, dtype)

    expected = losses, slopes
    actual = reference.loss_of(code, none, none, residuals, d), reference.loss_slope(code, residuals, d)

    for expected_part, actual_part in zip(expected, actual, strict=True):
        assert actual_part.dtype == dtype
        np.testing.assert_array_equal(actual_part, expected_part)


@pytest.mark.parametrize("dtype", DTYPES)
def test_poisson_is_half_of_scikit_learns_deviance(dtype, rng):
    z, y = rng.normal(size=(20, 3)).astype(dtype), (rng.poisson(1, (20, 3)) * 0.5).astype(dtype)

    expected = [mean_poisson_deviance(row, p) / 2 * 3 for row, p in zip(y.astype(float), np.exp(z), strict=True)]
    p, delta, actual, _ = reference.output(plan_of("poisson", 3), z, y)

    assert (y == 0).any()
    assert {p.dtype, delta.dtype, actual.dtype} == {np.dtype(dtype)}
    np.testing.assert_array_equal(delta, p - y)
    np.testing.assert_allclose(actual, expected, rtol=64 * EPSILON[dtype], atol=64 * EPSILON[dtype])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("loss", "outputs"), [("cross_entropy", 4), ("binary_cross_entropy", 1)])
def test_misfit_is_what_scikit_learns_accuracy_lacks(loss, outputs, weighted, rng):
    p, labels = rng.random((200, outputs)), rng.integers(0, max(outputs, 2), 200)
    y = np.eye(outputs)[labels] if outputs > 1 else labels[:, None].astype(float)
    weight = rng.choice([0, 0.5, 2], 200) if weighted else np.ones(200)
    predicted = p.argmax(axis=1) if outputs > 1 else p[:, 0] > 0.5

    expected = 1 - accuracy_score(labels, predicted, sample_weight=weight)
    actual = reference.misfit(plan_of(loss, outputs), p, y, weight[:, None]).sum() / weight.sum()

    assert actual == pytest.approx(expected, rel=1e-14)


def test_misfit_of_several_binary_outputs_counts_rows_with_any_wrong(rng):
    p, y = rng.random((200, 3)), rng.integers(0, 2, (200, 3)).astype(float)

    expected = 1 - accuracy_score(y, p > 0.5)
    actual = reference.misfit(plan_of("binary_cross_entropy", 3), p, y, np.ones((200, 1))).mean()

    assert actual == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "huber", "poisson"])
def test_misfit_is_what_scikit_learns_r2_lacks(loss, outputs, weighted, rng):
    p, y = rng.normal(size=(50, outputs)), rng.normal(size=(50, outputs)) * 2 + 1
    weight = rng.choice([0, 0.5, 2], 50) if weighted else np.ones(50)
    share = weight[:, None] / weight.sum()
    spread = (outputs * (share * (y - (share * y).sum(axis=0)) ** 2).sum(axis=0)) ** -0.5

    expected = 1 - r2_score(y, p, sample_weight=weight)
    actual = reference.misfit(plan_of(loss, outputs, spread=tuple(spread)), p, y, share).sum()

    assert actual == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(
    ("p", "y", "wrong"),
    [
        ([0.5, 0.5, 0], [1, 0, 0], False),  # the first of the likeliest counts
        ([0.5, 0.5, 0], [0, 1, 0], True),
        ([0.2, 0.7, 0.1], [0.5, 0.5, 0], False),  # any of a sample's own likeliest is right
        ([0.7, 0.2, 0.1], [0.4, 0.6, 0], True),
    ],
)
def test_misfit_of_ties_is_known(p, y, wrong):
    expected = [wrong]
    actual = reference.misfit(plan_of("cross_entropy", 3), np.array([p]), np.array([y]), np.ones((1, 1))).tolist()

    assert actual == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("y", [0.0, 0.25, 1.0])
def test_binary_cross_entropy_is_stable_and_scipys(y, dtype):
    z = np.array(EXTREMES, dtype)[:, None]
    # -y log p - (1 - y) log(1 - p), in float64
    log_p, log_rest = scipy.special.log_expit(z.astype(float)), scipy.special.log_expit(-z.astype(float))

    expected = scipy.special.expit(z), scipy.special.expit(z) - dtype_of(dtype)(y), -y * log_p - (1 - y) * log_rest
    p, delta, loss, _ = reference.output(plan_of("binary_cross_entropy", 1), z, np.full_like(z, y))

    assert {p.dtype, delta.dtype, loss.dtype} == {np.dtype(dtype)}
    np.testing.assert_allclose(p, expected[0], rtol=8 * EPSILON[dtype], atol=TINY[dtype])
    np.testing.assert_allclose(delta, expected[1], rtol=0, atol=8 * EPSILON[dtype])
    # z - z y cancels where y is near 1
    np.testing.assert_allclose(loss, expected[2].sum(axis=1), rtol=8 * EPSILON[dtype], atol=TINY[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_is_stable_and_scipys(dtype, rng):
    z = np.array(list(itertools.product(EXTREMES[::2], repeat=3)), dtype)
    y = rng.dirichlet(np.ones(3), len(z)).astype(dtype)

    expected = -(y.astype(float) * scipy.special.log_softmax(z.astype(float), axis=1)).sum(axis=1)
    p, delta, actual, _ = reference.cross_entropy(z, y)

    assert {p.dtype, delta.dtype, actual.dtype} == {np.dtype(dtype)}
    np.testing.assert_allclose(p, scipy.special.softmax(z, axis=1), rtol=1e3 * EPSILON[dtype], atol=TINY[dtype])
    np.testing.assert_array_equal(delta, p - y)
    np.testing.assert_allclose(actual, expected, rtol=8 * EPSILON[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("logits", "y", "loss"),
    [
        ([800, -800], [1, 0], 0),  # sure and right
        ([800, -800], [0, 1], 1600),  # sure and wrong
        ([800, -800], [0.75, 0.25], 400),  # a soft target
        ([3, 3], [0.75, 0.25], math.log(2)),
        ([5], [1], 0),  # one output is always right
    ],
)
def test_cross_entropy_of_these_logits_is_known(logits, y, loss, dtype):
    expected = loss
    _, _, (actual,), _ = reference.cross_entropy(np.array([logits], dtype), np.array([y], dtype))

    assert actual == pytest.approx(expected, rel=4 * EPSILON[dtype])


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "cross_entropy"])
def test_loss_of_a_run_is_scikit_learns(loss, rng):
    outputs = 1 if loss == "binary_cross_entropy" else 3
    labels = np.arange(20) % (outputs + (outputs == 1))
    y = labels[:, None].astype(float) if outputs == 1 else np.eye(3)[labels]
    X, network = rng.normal(size=(20, 4)), Network((4, 5, outputs), activation="tanh", loss=loss, seed=0)
    plan, memory = prepare(network, 20, 20)
    predictions = np.empty((20, outputs))
    reference.predict(plan, memory.params, X, np.arange(20), predictions)

    expected = log_loss(labels, predictions)
    actual = trained(network, X, y, 20, SGD(0.1)).loss[0]

    assert actual == pytest.approx(expected, rel=1e-14)


# --- optimisers ---------------------------------------------------------------------------------------------------

GRADIENTS = [0.3, -1.7]  # of one weight, in two steps
WEIGHT = 0.8


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_steps_of_sgd_follow_the_formula(dtype):
    w = np.array([WEIGHT], dtype)
    for g in GRADIENTS:
        reference.plain_sgd(w, np.array([g], dtype), dtype_of(dtype)(0.1))

    expected = 0.8 - 0.1 * 0.3 + 0.1 * 1.7
    (actual,) = w

    assert actual == pytest.approx(expected, rel=4 * EPSILON[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nesterov", [False, True])
def test_two_steps_of_momentum_follow_the_formula(nesterov, dtype):
    # The rate halves: v1 = 0.1 * 0.3 = 0.03, v2 = 0.9 * 0.03 - 0.05 * 1.7 = -0.058; Nesterov moves by rate g + 0.9 v.
    first, second = (0.03 + 0.9 * 0.03, -0.085 + 0.9 * -0.058) if nesterov else (0.03, -0.058)
    w, velocity, cast = np.array([WEIGHT], dtype), np.zeros(1, dtype), dtype_of(dtype)
    for g, rate in zip(GRADIENTS, [0.1, 0.05], strict=True):
        reference.momentum_sgd(w, np.array([g], dtype), velocity, cast(rate), cast(0.9), nesterov)

    expected = [0.8 - first - second, -0.058]
    actual = [*w, *velocity]

    np.testing.assert_allclose(actual, expected, rtol=8 * EPSILON[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epsilon_hat", [False, True])
def test_two_steps_of_adam_are_kingma_and_bas(epsilon_hat, dtype):
    rate, beta1, beta2, epsilon = 0.1, 0.9, 0.99, 1e-3

    def change(m, v, t):
        """Algorithm 1, or with epsilon hat the end of section 2."""
        if epsilon_hat:
            return rate * math.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (math.sqrt(v) + epsilon)
        return rate * (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + epsilon)

    m1, v1 = (1 - beta1) * 0.3, (1 - beta2) * 0.3**2
    w1 = WEIGHT - change(m1, v1, 1)
    m2, v2 = beta1 * m1 + (1 - beta1) * -1.7, beta2 * v1 + (1 - beta2) * 1.7**2
    w2 = w1 - change(m2, v2, 2)

    # One weight, x = 1, identity: the gradient of a row is w - y. Two batches of one row, so the corrections are run's.
    network = Network((1, 1), bias=False, dtype=dtype)
    network.params[:] = WEIGHT
    y = [[WEIGHT - 0.3], [w1 + 1.7]]
    optimizer = Adam(rate, beta1=beta1, beta2=beta2, epsilon=epsilon, epsilon_hat=epsilon_hat)
    memory = trained(network, np.ones((2, 1), dtype), np.array(y, dtype), 1, optimizer)

    expected = [w2, m2, v2]
    actual = [*memory.params, *memory.first, *memory.second]

    np.testing.assert_allclose(actual, expected, rtol=32 * EPSILON[dtype])
    np.testing.assert_allclose(memory.totals[[POWER1, POWER2]], [beta1**2, beta2**2], rtol=32 * EPSILON[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_steps_of_rmsprop_follow_the_formula(dtype):
    w, second, cast = np.array([WEIGHT], dtype), np.zeros(1, dtype), dtype_of(dtype)
    for g in GRADIENTS:
        reference.rmsprop(w, np.array([g], dtype), second, cast(0.1), cast(0.9), cast(1e-3))
    v1 = 0.1 * 0.3**2
    v2 = 0.9 * v1 + 0.1 * 1.7**2

    expected = [0.8 - 0.1 * 0.3 / (math.sqrt(v1) + 1e-3) + 0.1 * 1.7 / (math.sqrt(v2) + 1e-3), v2]
    actual = [*w, *second]

    np.testing.assert_allclose(actual, expected, rtol=16 * EPSILON[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_of_irprop_grow_and_shrink_with_the_sign(dtype):
    w, last, steps, cast = np.zeros(1, dtype), np.zeros(1, dtype), np.array([0.5], dtype), dtype_of(dtype)
    rows = [  # gradient, step and weight after it
        (3, 0.5, -0.5),
        (0.1, 1, -1.5),  # the same sign: the step doubles
        (2, 1.5, -3),  # but for the largest
        (-1, 0.75, -3),  # another sign: half the step, and none is taken
        (-5, 0.75, -2.25),  # after which the gradient counts as new
        (0, 0.75, -2.25),
        (1, 0.75, -3),
        (-1, 0.6, -3),  # half a step would be below the smallest
    ]
    seen = []
    for g, *_ in rows:
        reference.irprop(w, np.array([g], dtype), last, steps, *map(cast, (2, 0.5, 0.6, 1.5)))
        seen.append((g, *steps.tolist(), *w.tolist()))

    expected = rows
    actual = seen

    np.testing.assert_allclose(actual, expected, rtol=4 * EPSILON[dtype])


def test_decay_of_adamw_is_decoupled_and_leaves_biases():
    network = Network((2, 1), seed=0)
    network.params[:] = [1, -2, 4]
    # Without a gradient the first step of Adam is none: what is left is w (1 - rate decay).
    plan, memory = prepare(network, 1, 1, AdamW(0.1, weight_decay=0.5))
    reference.step(plan, memory, 1.0, 0.1)

    expected = [0.95, -1.9, 4]
    actual = memory.params

    np.testing.assert_allclose(actual, expected, rtol=1e-15)


@pytest.mark.parametrize("mean", [True, False])
def test_penalty_is_half_l2_times_the_squares_of_the_weights(mean):
    # Two rows with x = 0: the gradient of w is that of the penalty alone, and b is not penalised.
    network = Network((1, 1))
    network.params[:] = [3, 2]
    options = {"mean": mean, "l2": 0.4}
    memory = trained(network, np.zeros((2, 1)), np.array([[2.0], [1.0]]), 2, SGD(0.5), **options)
    share = 2 if mean else 1

    expected = [3 - 0.5 * 0.4 * 3 / share, 2 - 0.5 * 1 / share, (0.5 + 0.4 / 2 * 3**2) / 2]
    actual = [*memory.params, *memory.loss]

    np.testing.assert_allclose(actual, expected, rtol=1e-15)


def test_gradient_beyond_the_norm_is_cut_to_it():
    # One row, x = (3, 4), identity: the gradient is (p - y) x.
    network = Network((2, 1), bias=False, init="zeros")
    moves = []
    for target, clip_norm, mean in [(1.0, 0.0, True), (1.0, 2.0, True), (1.0, 5.0, True), (1.0, 6.0, True)]:
        X, y = np.array([[3.0, 4.0]]), np.array([[target]])
        moves.append(trained(network, X, y, 1, SGD(1.0), clip_norm=clip_norm, mean=mean).params.tolist())
    # Two rows: the norm is that of their mean, 5, or of their sum, 10.
    for mean in (True, False):
        X, y = np.array([[3.0, 4.0]] * 2), np.ones((2, 1))
        moves.append(trained(network, X, y, 2, SGD(1.0), clip_norm=6.0, mean=mean).params.tolist())

    expected = [[3, 4], [1.2, 1.6], [3, 4], [3, 4], [3, 4], [3.6, 4.8]]
    actual = moves

    np.testing.assert_allclose(actual, expected, rtol=1e-15)


# Each with the name and the settings of its peer in torch.optim.
TORCHS = [
    (SGD(0.1), "SGD", {"lr": 0.1}),
    (SGD(0.1, momentum=0.9), "SGD", {"lr": 0.1, "momentum": 0.9}),
    (SGD(0.1, momentum=0.9, nesterov=True), "SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (Adam(0.1, beta1=0.8, beta2=0.9, epsilon=1e-3), "Adam", {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3}),
    (AdamW(0.1, epsilon=1e-3, weight_decay=0.3), "AdamW", {"lr": 0.1, "eps": 1e-3, "weight_decay": 0.3}),
    (RMSprop(0.1, decay=0.8, epsilon=1e-3), "RMSprop", {"lr": 0.1, "alpha": 0.8, "eps": 1e-3}),
    (IRprop(0.1, largest_step=0.3), "Rprop", {"lr": 0.1, "step_sizes": (1e-6, 0.3)}),
]


@pytest.mark.parametrize(("optimizer", "name", "settings"), TORCHS, ids=repr)
def test_steps_are_torchs(optimizer, name, settings, rng):
    torch = pytest.importorskip("torch")
    network = Network((5, 4), bias=False, seed=0)  # torch's AdamW lets biases decay too
    plan, memory = prepare(network, 1, 1, optimizer)
    parameter = torch.tensor(network.params, requires_grad=True)
    peer = getattr(torch.optim, name)([parameter], **settings)
    for _ in range(6):
        gradient = rng.normal(size=20)
        memory.gradient[:20] = gradient
        reference.step(plan, memory, 1.0, optimizer.learning_rate)
        parameter.grad = torch.tensor(gradient)
        peer.step()

    expected = parameter.detach().numpy()
    actual = memory.params

    np.testing.assert_allclose(actual, expected, rtol=1e-12)


# --- learning-rate schedules --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (None, {0: 1, 1: 1, 99: 1}),
        (ExponentialDecay(0.5), {0: 1, 1: 0.5, 2: 0.25, 10: 2**-10}),
        (InverseScaling(), {0: 1, 1: 2**-0.5, 3: 0.5, 99: 0.1}),
        (InverseScaling(1.0, pace=3.0), {0: 1, 1: 0.25, 3: 0.1}),
        (CosineDecay(8), {0: 1, 4: 0.5, 6: 0.5 - 8**-0.5, 8: 0, 9: 0, 99: 0}),
        (CosineDecay(15, 5, 0.2), {0: 1 / 6, 1: 2 / 6, 4: 5 / 6, 5: 1, 10: 0.6, 15: 0.2, 16: 0.2}),
    ],
)
def test_rate_factor_in_this_epoch_is_known(schedule, factors):
    plan = make_plan(Network((1, 1)), 1, 1, SGD(), schedule=schedule)

    expected = factors
    actual = {
        epoch: reference.rate_factor(plan.schedule, plan.schedule_settings, epoch, reached=0.125) for epoch in factors
    }

    assert actual == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("optimizer", [SGD(0.1), SGD(0.1, momentum=0.9), Adam(0.1), AdamW(0.1), RMSprop(0.1)], ids=repr)
def test_factor_multiplies_the_learning_rate_of_its_epoch(optimizer, problem):
    network, X, y = problem
    plan, memory = prepare(network, 11, 4, optimizer, 3, schedule=ExponentialDecay(0.5), shuffled=True)
    run(plan, memory, rows_of(X, y))
    by_hand, other = prepare(network, 11, 4, optimizer, 3, shuffled=True)
    for epoch in range(3):
        settings = by_hand.settings.copy()
        settings[LEARNING_RATE] *= 0.5**epoch
        run(by_hand._replace(settings=settings), other, rows_of(X, y), blocks=3)

    expected = other.params, other.loss
    actual = memory.params, memory.loss

    for expected_part, actual_part in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(actual_part, expected_part)


def judged(losses, patience=-1, min_delta=0.0, schedule=None):
    """What `judge` makes of these losses: for each epoch the status, the factor reached and the epochs without gain."""
    plan = make_plan(Network((1, 1)), 1, 1, SGD(), patience=patience, min_delta=min_delta, schedule=schedule)
    memory, seen = make_memory(plan, np.zeros(2), len(losses)), []
    memory.loss[:] = losses
    for epoch in range(len(losses)):
        status = reference.judge(plan, memory, epoch)
        seen.append((status, float(memory.totals[FACTOR]), int(memory.position[STALE])))
    return seen, memory


def test_training_stops_after_more_epochs_without_gain_than_patience():
    losses = [5, 4, 4, 4.5, 3.9, 3.95, 3.9, 3.9, 3.0]
    seen, memory = judged(losses, patience=2)

    expected = [0, 0, 1, 2, 0, 1, 2, 3, 0]
    actual = [stale for *_, stale in seen]

    assert actual == expected
    assert [status == reference.STOPPED for status, *_ in seen] == [stale > 2 for stale in expected]
    assert memory.totals[BEST] == 3.0


def test_gain_below_min_delta_counts_for_nothing_but_the_best():
    # 4.75 is the best of epoch 1, though no gain; that of epoch 2 is measured against it
    seen, memory = judged([5, 4.75, 4.25, 3.5, np.nan], min_delta=0.5)

    expected = [0, 1, 2, 0, 1]
    actual = [stale for *_, stale in seen]

    assert actual == expected
    assert memory.totals[BEST] == 3.5


@pytest.mark.parametrize(
    ("schedule", "factors", "stopped"),
    [
        (ReduceOnPlateau(0.5, 0, 0.0), [1, 1, 0.5, 0.25, 0.125, 0.125, 0.0625, 0.03125], None),
        (ReduceOnPlateau(0.5, 1, 0.0), [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25], None),
        (ReduceOnPlateau(0.5, 1, 0.5), [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125], None),
        (ReduceOnPlateau(0.5, 0, 0.0, minimum=0.25), [1, 1, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25], None),
        (ReduceOnPlateau(0.5, 0, 0.0, minimum=0.25, stop=True), [1, 1, 0.5, 0.25, 0.25], 4),
        (ReduceOnPlateau(0.5, 1, 0.0, stop=True), [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25], None),
    ],
    ids=repr,
)
def test_rate_is_reduced_on_a_plateau(schedule, factors, stopped):
    seen, _ = judged([5, 4, 4, 4.1, 4, 3.9, 4, 3.9], schedule=schedule)
    statuses = [status for status, *_ in seen]

    expected = factors
    actual = [factor for _, factor, _ in seen][: len(factors)]

    assert actual == expected
    assert (statuses.index(reference.STOPPED) if reference.STOPPED in statuses else None) == stopped


# --- against scikit-learn -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "peer"), [("identity", "identity"), ("sigmoid", "logistic"), ("tanh", "tanh"), ("relu", "relu")]
)
@pytest.mark.parametrize("alpha", [0, 0.5])
@pytest.mark.parametrize(("loss", "outputs"), [("squared_error", 1), ("binary_cross_entropy", 1), ("cross_entropy", 3)])
def test_one_step_is_scikit_learns(loss, outputs, alpha, activation, peer, rng):
    X, labels = rng.normal(size=(20, 4)), np.arange(20) % 3
    kind = MLPRegressor if loss == "squared_error" else MLPClassifier
    model = kind(
        hidden_layer_sizes=(5, 3), activation=peer, solver="sgd", alpha=alpha, batch_size=20, learning_rate_init=0.5,
        momentum=0, shuffle=False, random_state=0,
    )  # fmt: skip
    if loss == "squared_error":
        labels, y = X[:, 0], X[:, :1]
    elif loss == "binary_cross_entropy":
        labels = labels % 2
        y = labels[:, None].astype(float)
    else:
        y = np.eye(3)[labels]

    def flat():
        layers = zip(model.coefs_, model.intercepts_, strict=True)
        return np.concatenate([part.ravel() for layer in layers for part in layer])

    classes = {} if loss == "squared_error" else {"classes": np.unique(labels)}
    model.partial_fit(X, labels, **classes)  # draws the weights
    network = Network((4, 5, 3, outputs), activation=activation, loss=loss)
    network.params[:] = flat()
    model.partial_fit(X, labels, **classes)

    memory = trained(network, X, y, 20, SGD(0.5), l2=alpha)

    expected = flat()
    actual = memory.params

    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-14)
    assert memory.loss[0] == pytest.approx(model.loss_, rel=1e-13)


# --- the loop -----------------------------------------------------------------------------------------------------


@pytest.fixture
def problem(rng):
    """A network, X and y of 11 rows."""
    return Network((3, 4, 2), activation="tanh", seed=0), rng.normal(size=(11, 3)), rng.normal(size=(11, 2))


def test_last_batch_has_a_mean_of_its_own():
    # Five rows in batches of three and two, x = 1, identity, no bias: the gradient of a row is w - y.
    y = [1.0, 2.0, 6.0, 4.0, 12.0]
    w1 = 0 + 0.5 * (1 + 2 + 6) / 3  # 1.5
    w2 = w1 - 0.5 * ((w1 - 4) + (w1 - 12)) / 2  # 4.75
    losses = [1 / 2, 4 / 2, 36 / 2, (w1 - 4) ** 2 / 2, (w1 - 12) ** 2 / 2]
    network = Network((1, 1), bias=False, init="zeros")
    memory = trained(network, np.ones((5, 1)), np.array(y)[:, None], 3, SGD(0.5))

    expected = [w2, sum(losses) / 5, (1 + 2 + 6 + 2.5 + 10.5) / 5]
    actual = [*memory.params, *memory.loss, *memory.error]

    np.testing.assert_allclose(actual, expected, rtol=1e-15)


def test_sum_is_not_divided():
    network = Network((1, 1), bias=False, init="zeros")

    expected = [0.5 * (1 + 2 + 6)]
    actual = trained(network, np.ones((3, 1)), np.array([[1.0], [2.0], [6.0]]), 3, SGD(0.5), mean=False).params

    np.testing.assert_array_equal(actual, expected)


def test_error_is_the_mean_over_rows_and_outputs():
    network = Network((1, 2), bias=False, init="zeros")

    expected = [(1 + 2 + 3 + 6) / 4]
    actual = trained(network, np.ones((2, 1)), np.array([[1.0, -2.0], [3.0, -6.0]]), 2, SGD(0.5)).error

    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=repr)
@pytest.mark.parametrize("cuts", [(1, 2), (5, 6), (0, 12), (3, 9)])
def test_run_goes_on_where_it_stopped(cuts, optimizer, problem):
    network, X, y = problem
    whole = trained(network, X, y, 4, optimizer, 5, shuffled=True)  # 3 batches in an epoch, 15 in all
    plan, pieces = prepare(network, 11, 4, optimizer, 5, shuffled=True)
    for blocks in np.diff([0, *cuts, 15]):
        run(plan, pieces, rows_of(X, y), blocks=int(blocks))

    expected = whole
    actual = pieces

    for name in actual._fields:
        np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), err_msg=name)


def test_batch_may_be_walked_in_blocks(problem, rng):
    network, _, _ = problem
    X, y = rng.normal(size=(150, 3)), rng.normal(size=(150, 2))
    plan, memory = prepare(network, 150, 100, SGD(0.1), 2)  # blocks of 64 samples: 2 for each batch
    assert plan.blocks_per_epoch == 3

    whole = make_memory(plan, network.params.copy(), 2)
    run(plan._replace(block=150), whole, rows_of(X, y), blocks=4)
    expected = whole.params, whole.loss, whole.error
    run(plan, memory, rows_of(X, y), blocks=6)
    actual = memory.params, memory.loss, memory.error

    for expected_part, actual_part in zip(expected, actual, strict=True):
        np.testing.assert_allclose(actual_part, expected_part, rtol=1e-13)
    assert memory.position[:2].tolist() == [2, 0]


def test_shuffled_epochs_are_those_of_permuted_rows(problem):
    network, X, y = problem
    shuffled = trained(network, X, y, 4, SGD(0.1), 2, shuffled=True, seed=3)
    losses, errors = [], []
    for epoch in range(2):
        order = reference.shuffle(11, 3, epoch)
        memory = trained(network, X[order], y[order], 4, SGD(0.1))
        network.params[:] = memory.params
        losses += [*memory.loss]
        errors += [*memory.error]

    expected = network.params, losses, errors
    actual = shuffled.params, shuffled.loss, shuffled.error

    for expected_part, actual_part in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(actual_part, expected_part)


def test_random_bits_are_splitmix64():
    # What the published generator gives from seed 0: its k-th number is ours of counter k.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    actual = reference.random_bits(np.array([1, 2, 3], np.uint64)).tolist()

    assert actual == expected


@pytest.mark.parametrize("n", [1, 2, 3, 1000])
def test_shuffle_is_a_permutation(n):
    orders = [reference.shuffle(n, seed, epoch).tolist() for seed in (0, 1, 2**32 - 1) for epoch in range(3)]

    expected = [list(range(n))] * 9
    actual = [sorted(order) for order in orders]

    assert actual == expected


def test_each_seed_and_epoch_has_an_order_of_its_own():
    orders = {tuple(reference.shuffle(50, seed, epoch).tolist()) for seed in range(20) for epoch in range(20)}

    expected = 400
    actual = len(orders)

    assert actual == expected


def test_shuffle_draws_all_orders_alike():
    drawn = collections.Counter(tuple(reference.shuffle(4, 7, epoch).tolist()) for epoch in range(4800))

    expected = 200
    actual = np.array([drawn[order] for order in itertools.permutations(range(4))])

    # 23 degrees of freedom: 49.7 in one of a thousand tables
    assert ((actual - expected) ** 2 / expected).sum() < 49.7


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_weight_of_a_row_counts_it_so_often(loss, mean, problem, rng):
    network, X, _ = problem
    network = Network(network.sizes, activation="tanh", seed=0, **loss_settings(loss, 2))
    y, often = targets(loss, (11, 2), rng), np.arange(11) % 3
    repeated, spread = rows_of(X.repeat(often, axis=0), y.repeat(often, axis=0)), (1.0, 0.5)
    options = {"mean": mean, "l2": 0.1, "clip_norm": 0.5, "epochs": 2, "spread": spread}

    expected = trained(
        network, X.repeat(often, axis=0), y.repeat(often, axis=0), 11, SGD(0.1), validation=repeated,
        validation_rows=len(repeated), **options,
    )  # fmt: skip
    actual = trained(
        network, X, y, 11, SGD(0.1), weight=often, validation=rows_of(X, y, often), validation_rows=11, weighted=True,
        **options,
    )  # fmt: skip

    assert len(repeated) == 10
    for name in ("params", "loss", "error", "validation_loss", "validation_error", "validation_misfit"):
        np.testing.assert_allclose(getattr(actual, name), getattr(expected, name), rtol=1e-13, err_msg=name)


def test_batch_without_weight_moves_nothing(problem):
    network, X, y = problem
    weight = np.ones(11)
    weight[4:8] = 0  # the second of three batches

    expected = trained(network, np.delete(X, np.s_[4:8], axis=0), np.delete(y, np.s_[4:8], axis=0), 4, SGD(0.1))
    actual = trained(network, X, y, 4, SGD(0.1), weight=weight, weighted=True)

    for name in ("params", "loss", "error"):
        np.testing.assert_allclose(getattr(actual, name), getattr(expected, name), rtol=1e-14, err_msg=name)


def test_without_an_optimiser_the_gradient_is_summed_and_kept(problem):
    network, X, y = problem
    plan, memory = prepare(network, 11, 11)
    activations, kept = reference.forward(plan, network.params, plan.dropout, X, 0, 0)
    delta = reference.output(plan, activations[-1], y)[1]
    gradient = np.zeros_like(network.params)
    reference.backward(plan, network.params, activations, kept, delta, gradient, 0, 0)
    run(plan, memory, rows_of(X, y))

    expected = gradient, network.params
    actual = memory.gradient[: plan.parameters], memory.params

    for expected_part, actual_part in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(actual_part, expected_part)


@pytest.mark.parametrize("output", ["identity", "sigmoid", "softmax"])
def test_predictions_are_forward_and_activation(output, rng):
    loss = "cross_entropy" if output == "softmax" else "squared_error"
    network, X = Network((3, 4, 2), output=output, loss=loss, seed=0), rng.normal(size=(5, 3))
    plan, memory = prepare(network, 5, 5)
    predictions = np.empty((5, 2))
    status = reference.predict(plan, memory.params, X, np.arange(5), predictions)
    (w1, w2), (b1, b2) = network.weights, network.biases

    expected = PEERS[output](np.maximum(X @ w1 + b1, 0) @ w2 + b2)
    actual = predictions

    assert status == reference.FINISHED
    np.testing.assert_allclose(actual, expected, rtol=1e-14)


def test_finite_sees_every_number():
    w = np.arange(5.0)
    broken = [np.where(w == k, bad, w) for k in range(5) for bad in (np.nan, np.inf, -np.inf)]

    expected = [True, *[False] * 15]
    actual = [reference.finite(x) for x in [w, *broken]]

    assert actual == expected


# --- dropout ------------------------------------------------------------------------------------------------------


def masks(rate=0.3, seed=0, epoch=0, layer=1, n=500, units=8, dtype="float64"):
    """Which of the units of n samples are kept."""
    key = reference.random_stream(seed, epoch, layer)
    return reference.dropout(dtype_of(dtype)(rate), key, n, 0, np.ones((n, units), dtype)) != 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.5, 0.9])
def test_dropout_keeps_as_many_as_it_should_and_scales_them(rate, dtype):
    a = np.full((5000, 20), 3, dtype)
    dropped = reference.dropout(dtype_of(dtype)(rate), reference.random_stream(1, 2, 3), 5000, 0, a)
    kept = dropped != 0

    expected = 1 - rate
    actual = kept.mean()

    assert dropped.dtype == dtype
    np.testing.assert_allclose(dropped[kept], 3 / (1 - rate), rtol=2 * EPSILON[dtype])
    assert abs(actual - expected) < 4 * math.sqrt(rate * (1 - rate) / kept.size)
    # Each unit and each sample for itself too.
    for axis in (0, 1):
        deviation = 6 * math.sqrt(rate * (1 - rate) / kept.shape[axis])
        assert np.abs(kept.mean(axis=axis) - expected).max() < deviation


@pytest.mark.parametrize("dtype", DTYPES)
def test_uniform_numbers_are_even_and_below_one(dtype):
    numbers = reference.uniform(np.dtype(dtype), np.arange(100_000, dtype=np.uint64))
    counts, _ = np.histogram(numbers, bins=32, range=(0, 1))

    assert numbers.dtype == dtype
    assert 0 <= numbers.min() < numbers.max() < 1
    # 31 degrees of freedom: 61.1 in one of a thousand tables
    assert ((counts - 3125) ** 2 / 3125).sum() < 61.1


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}, {"layer": 2}], ids=lambda other: next(iter(other)))
def test_masks_of_other_seeds_epochs_and_layers_are_independent(other):
    expected = 0.3**2 + 0.7**2
    actual = (masks() == masks(**other)).mean()

    assert abs(actual - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)


def test_masks_of_units_are_independent():
    kept = masks()
    agreements = [(kept[:, i] == kept[:, j]).mean() for i, j in itertools.combinations(range(8), 2)]

    np.testing.assert_allclose(agreements, 0.58, rtol=0, atol=4.5 * math.sqrt(0.58 * 0.42 / 500))


def test_mask_of_a_sample_depends_on_its_place_in_the_epoch_alone():
    key, a = reference.random_stream(0, 0, 1), np.ones((20, 3))
    parts = [reference.dropout(0.5, key, 20, first, a[first:last]) for first, last in itertools.pairwise([0, 3, 4, 20])]

    expected = reference.dropout(0.5, key, 20, 0, a)
    actual = np.concatenate(parts)

    np.testing.assert_array_equal(actual, expected)


def test_forward_drops_units_of_hidden_layers_alone():
    network = Network((3, 50, 50, 2), activation="sigmoid", seed=0)
    plan = make_plan(network, 30, 30, dropout=(0.5, 0.2), seed=4)
    (x, first, second, logits), _ = reference.forward(plan, network.params, plan.dropout, np.ones((30, 3)), 7, 0)

    expected = [masks(rate, 4, 7, layer, 30, 50) for layer, rate in ((1, 0.5), (2, 0.2))]
    actual = [first != 0, second != 0]

    np.testing.assert_array_equal(actual, expected)
    assert x.all()
    assert logits.all()


def test_dropout_is_for_training_alone(problem):
    network, X, y = problem
    options = {"validation": rows_of(X, y), "validation_rows": 11, "spread": (1.0, 1.0), "mean": False}

    expected = trained(network, X, y, 11, None, **options)
    actual = trained(network, X, y, 11, None, dropout=(0.5,), **options)

    assert actual.validation_loss[0] == expected.validation_loss[0] == pytest.approx(expected.loss[0], rel=1e-14)
    assert actual.loss[0] != expected.loss[0]


# --- validation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_rows_of_the_training_are_validated_as_the_next_epoch_sees_them(loss, problem, rng):
    network, X, _ = problem
    network, y = (
        Network(network.sizes, activation="tanh", seed=0, **loss_settings(loss, 2)),
        targets(loss, (11, 2), rng),
    )
    plan, memory = prepare(network, 11, 11, SGD(0.1), 4, validation_rows=11, spread=(1.0, 1.0))
    run(plan._replace(block=1, width=4), memory, rows_of(X, y), rows_of(X, y), blocks=24)

    expected = memory.loss[1:], memory.error[1:]
    actual = memory.validation_loss[:-1], memory.validation_error[:-1]

    for expected_part, actual_part in zip(expected, actual, strict=True):
        np.testing.assert_allclose(actual_part, expected_part, rtol=1e-13)


def test_weights_of_the_best_epoch_are_kept(problem, rng):
    network, X, y = problem
    # Other rows with the same targets: their loss soon rises.
    options = {"validation_rows": 11, "spread": (1.0, 1.0), "watched": VALIDATION_LOSS}
    options["validation"] = rows_of(rng.normal(size=(11, 3)), y)
    memory = trained(network, X, y, 3, SGD(0.1), 12, patience=99, keep_best=True, **options)
    best = int(np.argmin(memory.validation_loss))

    expected = trained(network, X, y, 3, SGD(0.1), best + 1, **options).params
    actual = memory.best

    assert 0 < best < 11
    np.testing.assert_array_equal(actual, expected)


def test_run_stops_at_the_end_of_the_epoch_that_exhausts_patience(problem):
    network, X, y = problem
    plan, memory = prepare(network, 11, 4, SGD(1e-9), 10, patience=3, min_delta=0.1)
    status = run(plan, memory, rows_of(X, y))

    assert status == reference.STOPPED
    assert memory.position[:3].tolist() == [5, 0, 0]  # the first is a gain
    assert not memory.loss[5:].any()
