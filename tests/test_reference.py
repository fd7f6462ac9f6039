"""The reference is what kernels are tested against, so it is tested on its own: by calculus, by hand, by libraries."""

import collections
import itertools
import math

import numpy as np
import pytest
import scipy.special
from sklearn.metrics import log_loss
from sklearn.neural_network import MLPClassifier, MLPRegressor

from fastbp import reference
from fastbp.choices import ACTIVATIONS, ELEMENTWISE, LOSSES, SGD, TINY_FLOAT32, TINY_FLOAT64, Adam
from fastbp.network import Network
from fastbp.workspace import make_memory, make_plan, rows_of

DTYPES = ["float64", "float32"]
EPSILON = {name: float(np.finfo(name).eps) for name in DTYPES}
TINY = {"float64": TINY_FLOAT64, "float32": TINY_FLOAT32}
OPTIMIZERS = [SGD(0.1), SGD(0.1, momentum=0.9), SGD(0.1, momentum=0.9, nesterov=True), Adam(0.01)]
PAIRS = [(loss, output) for loss in LOSSES for output in LOSSES[loss].outputs]
# Without a hidden layer there is no hidden activation to vary.
NETWORKS = [
    (activation, loss, output, depth, bias)
    for activation, (loss, output), depth, bias in itertools.product(ELEMENTWISE, PAIRS, range(4), (True, False))
    if depth > 0 or activation == ELEMENTWISE[0]
]
EXTREMES = [-800.0, -100.0, -20.0, -1.0, -1e-6, 0.0, 1e-6, 1.0, 20.0, 100.0, 800.0]


def dtype_of(dtype):
    return np.dtype(dtype).type


def targets(loss, shape, rng):
    """Targets that the loss is meant for: any numbers, 0 and 1, or rows of probabilities."""
    if loss == "binary_cross_entropy":
        return rng.integers(0, 2, shape).astype(float)
    if loss == "cross_entropy":
        return rng.dirichlet(np.ones(shape[1]), shape[0])
    return rng.normal(size=shape)


def prepare(network, rows, batch_size, optimizer=None, epochs=1, mean=True, **options):
    """A plan, and a memory with a copy of the network's parameters."""
    plan = make_plan(network, rows, batch_size, optimizer, mean=mean, **options)
    return plan, make_memory(plan, network.params.copy(), epochs)


def trained(network, X, y, batch_size, optimizer, epochs=1, weight=1, **options):
    """Memory after so many epochs."""
    plan, memory = prepare(network, len(X), batch_size, optimizer, epochs, **options)
    rows = rows_of(X, y)
    rows[:, -1] = weight
    status = reference.run(plan, memory, rows.ravel(), epochs * plan.blocks_per_epoch)
    assert status == reference.FINISHED
    return memory


# --- gradients by calculus ----------------------------------------------------------------------------------------


@pytest.fixture(params=NETWORKS, ids=lambda row: "-".join(map(str, row)))
def case(request, rng):
    """A plan, parameters, x and y of a network."""
    activation, loss, output, depth, bias = request.param
    sizes = (2, *(3, 2, 3)[:depth], 2)
    network = Network(sizes, activation=activation, output=output, loss=loss, bias=bias)
    network.params[:] = rng.normal(size=network.params.size)
    return make_plan(network, 4, 4), network.params, rng.normal(size=(4, 2)), targets(loss, (4, 2), rng)


def total_loss(plan, params, x, y):
    logits = reference.forward(plan, params, x)[-1]
    return reference.output(plan.loss, plan.kinds[-1], logits, y)[2].sum()


def gradient_of(plan, params, x, y):
    activations = reference.forward(plan, params, x)
    delta = reference.output(plan.loss, plan.kinds[-1], activations[-1], y)[1]
    gradient = np.zeros_like(params)
    reference.backward(plan, params, activations, delta, gradient)
    return gradient


def test_gradient_is_the_complex_step(case):
    plan, params, x, y = case
    steps = 1e-30j * np.eye(params.size)

    expected = [total_loss(plan, params + step, x.astype(complex), y).imag / 1e-30 for step in steps]
    actual = gradient_of(plan, params, x, y)

    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13 * np.abs(expected).max())


def test_gradient_is_the_central_difference(case):
    plan, params, x, y = case

    def positive(params):
        """Which activations are above zero: where that changes there may be a kink."""
        *hidden, logits = reference.forward(plan, params, x)
        return np.concatenate([(a > 0).ravel() for a in [*hidden, logits]])

    steps = 1e-5 * np.eye(params.size)
    smooth = np.array([bool((positive(params + step) == positive(params - step)).all()) for step in steps])
    expected = np.array(
        [(total_loss(plan, params + step, x, y) - total_loss(plan, params - step, x, y)) / 2e-5 for step in steps]
    )
    actual = gradient_of(plan, params, x, y)

    assert smooth.mean() > 0.8
    np.testing.assert_allclose(actual[smooth], expected[smooth], rtol=0, atol=1e-7 * max(1, np.abs(expected).max()))


def test_gradient_adds_to_what_is_there(rng):
    network = Network((3, 2, 1), activation="tanh", seed=0)
    plan = make_plan(network, 4, 4)
    activations, delta = reference.forward(plan, network.params, rng.normal(size=(4, 3))), rng.normal(size=(4, 1))
    once, twice = np.zeros(11), np.zeros(11)
    reference.backward(plan, network.params, activations, delta, once)
    for _ in range(2):
        reference.backward(plan, network.params, activations, delta, twice)

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


@pytest.mark.parametrize("bias", [True, False])
def test_layers_are_laid_out_as_the_networks(bias):
    network = Network((3, 4, 2), bias=bias, seed=0)
    plan = make_plan(network, 1, 1)

    expected = list(zip(network.weights, network.biases, strict=True))
    actual = reference.layers_of(plan, network.params)

    for (expected_w, expected_b), (actual_w, actual_b) in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(actual_w, expected_w)
        np.testing.assert_array_equal(actual_b, expected_b)
        assert np.shares_memory(actual_w, network.params)


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
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_that_of_another_library(name, dtype):
    z = np.array([EXTREMES, EXTREMES[::-1]], dtype)

    expected = PEERS[name](z)
    actual = reference.softmax(z) if name == "softmax" else reference.activation(ACTIVATIONS[name].code, z)

    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, expected, rtol=8 * EPSILON[dtype], atol=TINY[dtype])


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_slope_is_the_derivative(name):
    kind, delta = ACTIVATIONS[name].code, np.array([-3.0, 2.0, 0.5, 1.0])
    z = np.array([-2.0, -0.3, 0.4, 3.0])

    expected = delta * reference.activation(kind, z + 1e-30j).imag / 1e-30
    actual = reference.times_slope(kind, delta, reference.activation(kind, z))

    np.testing.assert_allclose(actual, expected, rtol=1e-14)


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


@pytest.mark.parametrize("dtype", DTYPES)
def test_flush_makes_small_numbers_zero_and_leaves_others(dtype):
    tiny = np.array(TINY[dtype], dtype)
    below = np.nextafter(tiny, tiny * 0)
    x = np.array([below, -below, tiny, -tiny, 1, 0, np.inf, np.nan], dtype)

    expected = np.array([0, 0, tiny, -tiny, 1, 0, np.inf, np.nan], dtype)
    actual = reference.flush(x)

    assert actual.dtype == dtype
    np.testing.assert_array_equal(actual, expected)


# --- losses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_squared_error_is_half_the_sum_of_squares(dtype):
    z, y = np.array([[1, 2], [0.5, -3]], dtype), np.array([[0, 4], [0.5, 1]], dtype)

    expected = [[1, 2], [0.5, -3]], [[1, -2], [0, -4]], [2.5, 8]
    actual = reference.squared_error(ACTIVATIONS["identity"].code, z, y)

    for expected_part, actual_part in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(actual_part, expected_part)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("y", [0.0, 0.25, 1.0])
def test_binary_cross_entropy_is_stable_and_scipys(y, dtype):
    z = np.array(EXTREMES, dtype)[:, None]
    # -y log p - (1 - y) log(1 - p), in float64
    log_p, log_rest = scipy.special.log_expit(z.astype(float)), scipy.special.log_expit(-z.astype(float))

    expected = scipy.special.expit(z), scipy.special.expit(z) - dtype_of(dtype)(y), -y * log_p - (1 - y) * log_rest
    p, delta, loss = reference.binary_cross_entropy(z, np.full_like(z, y))

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
    p, delta, actual = reference.cross_entropy(z, y)

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
    _, _, (actual,) = reference.cross_entropy(np.array([logits], dtype), np.array([y], dtype))

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
    # v1 = 0.3, v2 = 0.9 * 0.3 - 1.7 = -1.43; Nesterov moves by g + 0.9 v
    first, second = (0.3 + 0.9 * 0.3, -1.7 + 0.9 * -1.43) if nesterov else (0.3, -1.43)
    w, velocity, cast = np.array([WEIGHT], dtype), np.zeros(1, dtype), dtype_of(dtype)
    for g in GRADIENTS:
        reference.momentum_sgd(w, np.array([g], dtype), velocity, cast(0.1), cast(0.9), nesterov)

    expected = [0.8 - 0.1 * first - 0.1 * second, -1.43]
    actual = [*w, *velocity]

    np.testing.assert_allclose(actual, expected, rtol=8 * EPSILON[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_steps_of_adam_are_kingma_and_bas(dtype):
    rate, beta1, beta2, epsilon = 0.1, 0.9, 0.99, 1e-3
    # Algorithm 1, t = 1
    m1, v1 = (1 - beta1) * 0.3, (1 - beta2) * 0.3**2
    w1 = WEIGHT - rate * (m1 / (1 - beta1)) / (math.sqrt(v1 / (1 - beta2)) + epsilon)
    # t = 2
    m2, v2 = beta1 * m1 + (1 - beta1) * -1.7, beta2 * v1 + (1 - beta2) * 1.7**2
    w2 = w1 - rate * (m2 / (1 - beta1**2)) / (math.sqrt(v2 / (1 - beta2**2)) + epsilon)

    # One weight, x = 1, identity: the gradient of a row is w - y. Two batches of one row, so the corrections are run's.
    network = Network((1, 1), bias=False, dtype=dtype)
    network.params[:] = WEIGHT
    y = [[WEIGHT - 0.3], [w1 + 1.7]]
    memory = trained(
        network, np.ones((2, 1), dtype), np.array(y, dtype), 1, Adam(rate, beta1=beta1, beta2=beta2, epsilon=epsilon)
    )

    expected = [w2, m2, v2]
    actual = [*memory.params, *memory.first, *memory.second]

    np.testing.assert_allclose(actual, expected, rtol=32 * EPSILON[dtype])
    np.testing.assert_allclose(memory.totals[2:], [beta1**2, beta2**2], rtol=32 * EPSILON[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_dead_momenta_become_zero_and_are_never_subnormal(dtype):
    cast, zero = dtype_of(dtype), np.zeros(2, dtype)
    w, velocity, first, second = zero.copy(), *(np.array([1, -1], dtype) for _ in range(2)), np.ones(2, dtype)
    seen = []
    for _ in range(1100):
        reference.momentum_sgd(w, zero, velocity, cast(0.1), cast(0.5), False)
        reference.adam(w, zero, first, second, *map(cast, (0.1, 0.5, 0.5, 1e-8, 1, 1)))
        seen += [velocity.copy(), first.copy(), second.copy()]

    expected = 0
    actual = np.array(seen)

    assert (np.abs(actual[actual != 0]) >= TINY[dtype]).all()
    np.testing.assert_array_equal(actual[-3:], expected)


# --- against scikit-learn -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "peer"), [("identity", "identity"), ("sigmoid", "logistic"), ("tanh", "tanh"), ("relu", "relu")]
)
@pytest.mark.parametrize(("loss", "outputs"), [("squared_error", 1), ("binary_cross_entropy", 1), ("cross_entropy", 3)])
def test_one_step_is_scikit_learns(loss, outputs, activation, peer, rng):
    X, labels = rng.normal(size=(20, 4)), np.arange(20) % 3
    kind = MLPRegressor if loss == "squared_error" else MLPClassifier
    model = kind(
        hidden_layer_sizes=(5, 3), activation=peer, solver="sgd", alpha=0, batch_size=20, learning_rate_init=0.5,
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

    expected = flat()
    actual = trained(network, X, y, 20, SGD(0.5)).params

    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-14)


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
        reference.run(plan, pieces, rows_of(X, y).ravel(), int(blocks))

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
    reference.run(plan._replace(block=150), whole, rows_of(X, y).ravel(), 4)
    expected = whole.params, whole.loss, whole.error
    reference.run(plan, memory, rows_of(X, y).ravel(), 6)
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


@pytest.mark.parametrize("loss", LOSSES)
def test_weight_of_a_row_counts_it_so_often(loss, problem, rng):
    network, X, _ = problem
    network = Network(network.sizes, activation="tanh", loss=loss, seed=0)
    y, often = targets(loss, (11, 2), rng), np.arange(11) % 3

    expected = trained(network, X.repeat(often, axis=0), y.repeat(often, axis=0), 20, SGD(0.1), mean=False).params
    actual = trained(network, X, y, 11, SGD(0.1), mean=False, weight=often).params

    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-14)


def test_without_an_optimiser_the_gradient_is_summed_and_kept(problem):
    network, X, y = problem
    plan, memory = prepare(network, 11, 11)
    logits = reference.forward(plan, network.params, X)
    gradient = np.zeros_like(network.params)
    reference.backward(plan, network.params, logits, reference.output(plan.loss, 0, logits[-1], y)[1], gradient)
    reference.run(plan, memory, rows_of(X, y).ravel(), 1)

    expected = gradient, network.params
    actual = memory.gradient[: plan.parameters], memory.params

    for expected_part, actual_part in zip(expected, actual, strict=True):
        np.testing.assert_array_equal(actual_part, expected_part)


@pytest.mark.parametrize("output", ["identity", "sigmoid", "softmax"])
def test_predictions_are_forward_and_activation_in_the_order_asked_for(output, rng):
    loss = "cross_entropy" if output == "softmax" else "squared_error"
    network, X, order = Network((3, 4, 2), output=output, loss=loss, seed=0), rng.normal(size=(5, 3)), [3, 0, 4, 2, 1]
    plan, memory = prepare(network, 5, 5)
    predictions = np.empty((5, 2))
    status = reference.predict(plan, memory.params, X, np.array(order), predictions)
    (w1, w2), (b1, b2) = network.weights, network.biases

    expected = PEERS[output](np.maximum(X[order] @ w1 + b1, 0) @ w2 + b2)
    actual = predictions

    assert status == reference.FINISHED
    np.testing.assert_allclose(actual, expected, rtol=1e-14)


def test_finite_sees_every_number():
    w = np.arange(5.0)
    broken = [np.where(w == k, bad, w) for k in range(5) for bad in (np.nan, np.inf, -np.inf)]

    expected = [True, *[False] * 15]
    actual = [reference.finite(x) for x in [w, *broken]]

    assert actual == expected
