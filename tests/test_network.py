"""A network is its vector of parameters: how it is drawn, seen, copied, evaluated and differentiated."""

import contextlib
import copy
import hashlib
import itertools
import pickle
import time
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor

import mpmath
import numpy as np
import pytest
from helpers import assert_once_at_most, loss_settings, outputs_for, ratio_of_seconds
from scipy.optimize import minimize
from scipy.special import erf
from scipy.stats import kstest, norm, uniform

import fastbp
from fastbp.checks import DataError, ParameterError, ParameterTypeError, ResourceError
from fastbp.choices import ELEMENTWISE, INITIALISERS, LOSSES
from fastbp.network import engine, normal

Network, train = fastbp.Network, fastbp.train

DTYPES = ["float32", "float64"]
XOR_X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], float)

# Loss, output activation, activation of the hidden layers: every one at least once.
MODELS = [
    *[("squared_error", output, "tanh") for output in ELEMENTWISE],
    *[(loss, LOSSES[loss].outputs[0], activation) for loss in LOSSES for activation in ELEMENTWISE],
]


def model(loss, output, activation, dtype="float64", sizes=(4, 7, 5, 3)):
    """A network whose biases are not zero."""
    sizes = (*sizes[:-1], outputs_for(loss, sizes[-1]))
    network = Network(
        sizes, activation=activation, output=output, seed=1, dtype=dtype, **loss_settings(loss, sizes[-1])
    )
    for bias in network.biases:
        bias[:] = np.linspace(-0.3, 0.4, bias.size)
    if activation == "exponential":
        network.params *= 0.3  # layer on layer of them grows beyond what differences can resolve
    return network


def targets(loss, rows, rng):
    if loss == "cross_entropy":
        return rng.integers(0, 3, rows)
    if loss == "poisson":
        return rng.poisson(1.5, (rows, 3))
    if loss == "gaussian_nll":
        return rng.normal(size=(rows, 2))  # of four outputs
    return rng.integers(0, 2, (rows, 3)) if loss == "binary_cross_entropy" else rng.normal(size=(rows, 3))


# --- parameters and their views -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(2, 1), (1, 1), (2, 2, 1), (3, 17, 8, 9, 2), [4, 5], np.array([4, 5])], ids=str)
def test_parameters_are_one_vector_in_the_order_of_the_layers(sizes, bias):
    network = Network(sizes, bias=bias, seed=0)
    layers = list(itertools.pairwise(sizes))

    expected = np.concatenate(
        [part.ravel() for layer in zip(network.weights, network.biases, strict=True) for part in layer]
    )
    actual = network.params

    assert network.sizes == tuple(sizes)
    assert [weights.shape for weights in network.weights] == layers
    assert [biases.shape for biases in network.biases] == [(outputs * bias,) for _, outputs in layers]
    assert actual.tobytes() == expected.tobytes()


def test_views_share_memory_with_the_parameters():
    network = Network((2, 3, 1), seed=0)

    for view in [*network.weights, *network.biases]:
        assert np.shares_memory(view, network.params)


def test_written_weight_changes_the_prediction():
    network = Network((2, 1), init="zeros")
    network.weights[0][1, 0] = 3
    network.biases[0][0] = 0.5

    expected = [[0.5], [3.5], [0.5], [3.5]]
    actual = network.predict(XOR_X)

    assert network.params.tolist() == [0, 3, 0.5]
    assert actual.tolist() == expected


def test_replaced_parameters_are_used():
    network = Network((2, 1), init="zeros")
    network.params = np.array([1.0, 2.0, 3.0])

    expected = [[3], [5], [4], [6]]
    actual = network.predict(XOR_X)

    assert actual.tolist() == expected
    assert network.weights[0].ravel().tolist() == [1, 2]


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_have_the_precision_asked_for(dtype):
    network = Network((2, 3, 1), dtype=dtype)

    assert network.params.dtype == dtype
    assert network.predict(XOR_X).dtype == dtype


def test_network_describes_itself():
    network = Network((2, 3, 3, 1), activation=("tanh", "relu"), loss="binary_cross_entropy", bias=False)

    expected = "Network((2, 3, 3, 1), ('tanh', 'relu', 'sigmoid'), 'binary_cross_entropy', float64)"
    actual = repr(network)

    assert actual == expected
    assert network.activations == ("tanh", "relu", "sigmoid")
    assert network.loss == "binary_cross_entropy"
    assert network.bias is False


@pytest.mark.parametrize("loss", LOSSES)
def test_output_is_the_partner_of_the_loss(loss):
    partners = {"binary_cross_entropy": "sigmoid", "cross_entropy": "softmax", "poisson": "exponential"}
    expected = partners.get(loss, "identity")
    actual = Network((2, outputs_for(loss, 3)), **loss_settings(loss, 3)).activations[-1]

    assert actual == expected


# --- initial weights ----------------------------------------------------------------------------------------------

# The distribution of the weights of a layer with so many inputs and outputs.
DISTRIBUTIONS = {
    "glorot_uniform": lambda inputs, outputs: uniform(-(r := np.sqrt(6 / (inputs + outputs))), 2 * r),
    "glorot_normal": lambda inputs, outputs: norm(0, np.sqrt(2 / (inputs + outputs))),
    "he_uniform": lambda inputs, outputs: uniform(-(r := np.sqrt(6 / inputs)), 2 * r),
    "he_normal": lambda inputs, outputs: norm(0, np.sqrt(2 / inputs)),
    "uniform": lambda inputs, outputs: uniform(0, 1),
    "zeros": lambda inputs, outputs: None,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("init", INITIALISERS)
def test_weights_are_drawn_by_their_formula_and_biases_are_zero(init, dtype):
    network = Network((40, 120, 60), init=init, seed=3, dtype=dtype)

    for weights, biases in zip(network.weights, network.biases, strict=True):
        distribution = DISTRIBUTIONS[init](*weights.shape)

        if distribution:
            low, high = distribution.support()
            assert kstest(weights.ravel(), distribution.cdf).pvalue > 0.01
            assert low <= weights.min() < weights.max() <= high
            assert abs(weights.std() / distribution.std() - 1) < 0.02
        else:
            assert not weights.any()
        assert not biases.any()


@pytest.mark.parametrize("init", [init for init in INITIALISERS if init != "zeros"])
def test_each_weight_is_drawn_anew(init):
    expected = 40 * 120 + 120 * 60
    actual = np.unique(np.concatenate([w.ravel() for w in Network((40, 120, 60), init=init, seed=3).weights])).size

    assert actual == expected


def test_uniform_weights_are_those_of_the_notebook():
    np.random.seed(42)  # noqa: NPY002 - as the notebook does
    expected = [np.random.uniform(size=(2, 2)), np.random.uniform(size=(2, 1))]  # noqa: NPY002
    actual = Network((2, 2, 1), init="uniform", bias=False, seed=42).weights

    assert [weights.tolist() for weights in actual] == [weights.tolist() for weights in expected]
    assert actual[0][0, 0] == 0.3745401188473625


def test_seed_decides_the_weights():
    same, again, other, fresh, fresh_again = (
        Network((3, 4), seed=seed).params.tolist() for seed in (5, 5, 6, None, None)
    )

    assert same == again
    assert same != other
    assert fresh != fresh_again


def test_weights_are_drawn_in_double_precision():
    expected = Network((3, 4, 2), seed=5).params.astype(np.float32)
    actual = Network((3, 4, 2), seed=5, dtype="float32").params

    assert actual.tobytes() == expected.tobytes()


def test_seed_does_not_touch_the_global_generator():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    Network((3, 4), seed=5)
    train(XOR_X, XOR_X, epochs=1, seed=5)

    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


# --- copies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "duplicate",
    [Network.copy, copy.deepcopy, *(lambda network, n=n: pickle.loads(pickle.dumps(network, n)) for n in range(2, 6))],
    ids=["copy", "deepcopy", "pickle 2", "pickle 3", "pickle 4", "pickle 5"],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_duplicate_is_equal_and_independent(duplicate, dtype, rng):
    network = model("cross_entropy", "softmax", "tanh", dtype)
    X = rng.normal(size=(9, 4))
    before, twin = network.params.tobytes(), duplicate(network)

    assert repr(twin) == repr(network)
    assert twin.bias == network.bias
    assert twin.params.tobytes() == before
    assert twin.predict(X).tobytes() == network.predict(X).tobytes()

    train(X, rng.integers(0, 3, 9), network=twin, epochs=2)

    assert twin.params.tobytes() != before
    assert network.params.tobytes() == before


# --- predict ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "output", "activation"), MODELS)
def test_prediction_is_the_textbook_formula(loss, output, activation, rng):
    functions = {
        "identity": lambda z: z,
        "sigmoid": lambda z: 1 / (1 + np.exp(-z)),
        "tanh": np.tanh,
        "relu": lambda z: np.maximum(z, 0),
        "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
        "elu": lambda z: np.where(z > 0, z, np.expm1(z)),
        "gelu": lambda z: z * (1 + erf(z / np.sqrt(2))) / 2,
        "silu": lambda z: z / (1 + np.exp(-z)),
        "softplus": lambda z: np.log(1 + np.exp(z)),
        "exponential": np.exp,
        "softmax": lambda z: np.exp(z) / np.exp(z).sum(axis=1, keepdims=True),
    }
    network, X = model(loss, output, activation), rng.normal(size=(21, 4))

    expected = X
    for weights, biases, name in zip(network.weights, network.biases, network.activations, strict=True):
        expected = functions[name](expected @ weights + biases)
    actual = network.predict(X)

    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("outputs", [1, 3])
def test_no_rows_have_no_predictions(outputs):
    expected = (0, outputs)
    actual = Network((2, 3, outputs)).predict(np.zeros((0, 2))).shape

    assert actual == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("loss", "output", "activation"), MODELS)
def test_prediction_of_a_row_does_not_depend_on_its_neighbours(loss, output, activation, dtype, rng):
    network = model(loss, output, activation, dtype)
    X = rng.normal(size=(300, 4)).astype(dtype)
    expected = network.predict(X)

    assert np.vstack([network.predict(row[None]) for row in X[:40]]).tobytes() == expected[:40].tobytes()
    assert network.predict(X[::-1])[::-1].tobytes() == expected.tobytes()
    for rows in (2, 7, 8, 9, 15, 16, 17, 33, 65, 129):
        batches = [network.predict(X[first : first + rows]) for first in range(0, len(X), rows)]
        assert np.vstack(batches).tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "form",
    [
        lambda X: X.tolist(),
        np.asfortranarray,
        lambda X: X.astype(">f8"),
        lambda X: X.astype(np.float16),
        lambda X: X.astype(np.float32),
        lambda X: X.astype(int),
        lambda X: np.repeat(X, 2, axis=1)[:, ::2],
        lambda X: X[::-1].copy()[::-1],
    ],
    ids=["list", "Fortran", "big-endian", "float16", "float32", "int", "strided", "negative stride"],
)
def test_prediction_does_not_depend_on_the_form_of_x(form, dtype, rng):
    network = Network((4, 6, 2), seed=0, dtype=dtype)
    X = rng.integers(-5, 6, (19, 4)).astype(float)

    expected = network.predict(X)
    actual = network.predict(form(X))

    assert actual.dtype == dtype
    assert actual.tobytes() == expected.tobytes()


def test_prediction_writes_neither_x_nor_the_parameters(rng):
    network, X = Network((4, 6, 2), seed=0), rng.normal(size=(19, 4))
    before = X.tobytes(), network.params.tobytes()
    first = network.predict(X)
    kept = first.tobytes()
    network.predict(X + 1)

    assert (X.tobytes(), network.params.tobytes()) == before
    assert first.tobytes() == kept


def test_threads_share_a_network(rng):
    network = Network((4, 33, 9, 3), seed=0, loss="cross_entropy")
    batches = [rng.normal(size=(rows, 4)) for rows in rng.integers(1, 400, 200)]

    expected = [network.predict(X).tobytes() for X in batches]
    with ThreadPoolExecutor(8) as pool:
        actual = list(pool.map(lambda X: network.predict(X).tobytes(), batches))

    assert actual == expected


@pytest.mark.timed
def test_prediction_of_one_row_costs_little_more_than_in_numpy():
    """Measured: 3.6 times as much."""
    network, X = Network((4, 16, 1), seed=0), np.ones((1, 4))
    (first, last), (first_bias, last_bias) = network.weights, network.biases

    def seconds(predict):
        began = time.perf_counter()
        for _ in range(1000):
            predict(X)
        return time.perf_counter() - began

    def formula(X):
        return np.maximum(X @ first + first_bias, 0) @ last + last_bias

    network.predict(X)
    assert_once_at_most(10, lambda: ratio_of_seconds(lambda: seconds(network.predict), lambda: seconds(formula)))


# --- loss and gradient --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "output", "activation"), MODELS)
def test_gradient_agrees_with_central_differences(loss, output, activation, rng):
    network = model(loss, output, activation)
    X, y = rng.normal(size=(21, 4)), targets(loss, 21, rng)
    step, expected = 1e-6, []
    for q in range(network.params.size):
        sides = []
        for side in (step, -step):
            moved = network.copy()
            moved.params[q] += side
            sides.append(moved.loss_and_gradient(X, y)[0])
        expected.append((sides[0] - sides[1]) / (2 * step))

    _, actual = network.loss_and_gradient(X, y)

    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rows", [1, 8, 9, 300])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_is_the_first_step_of_training(loss, rows, rng):
    network = model(loss, None, "tanh")
    X, y = rng.normal(size=(rows, 4)), targets(loss, rows, rng)
    before = network.params.copy()
    value, gradient = network.loss_and_gradient(X, y)
    untouched = network.params.tobytes()
    result = train(X, y, network=network, optimizer="sgd", learning_rate=0.5, epochs=1, batch_size=None)

    expected = before - 0.5 * gradient
    actual = network.params

    assert untouched == before.tobytes()
    assert isinstance(value, float)
    assert value == result.loss[0]
    assert gradient.shape == before.shape
    np.testing.assert_allclose(actual, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("rows", [1, 9, 300])
@pytest.mark.parametrize("loss", LOSSES)
def test_weighted_loss_is_that_of_repeated_rows(loss, rows, rng):
    network = model(loss, None, "tanh")
    X, y, weights = rng.normal(size=(rows, 4)), targets(loss, rows, rng), rng.integers(0, 4, rows)
    weights[0] = 2

    expected_loss, expected = network.loss_and_gradient(np.repeat(X, weights, axis=0), np.repeat(y, weights, axis=0))
    actual_loss, actual = network.loss_and_gradient(X, y, sample_weight=weights)

    assert actual_loss == pytest.approx(expected_loss, rel=1e-12)
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("weights", "error"),
    [([1.0], DataError), ([0.0] * 4, DataError), ([1, 1, 1, -1], DataError), (1.0, ParameterTypeError)],
)
def test_bad_weights_of_rows_are_refused(weights, error):
    with pytest.raises(error, match="'sample_weight'"):
        Network((2, 1)).loss_and_gradient(XOR_X, [0, 1, 1, 0], weights)


def test_gradient_of_float32_agrees_with_float64(rng):
    X, y = rng.normal(size=(50, 4)).astype(np.float32), rng.normal(size=(50, 3)).astype(np.float32)
    single, double = (model("squared_error", None, "tanh", dtype) for dtype in DTYPES)
    double.params[:] = single.params

    expected_loss, expected = double.loss_and_gradient(X, y)
    actual_loss, actual = single.loss_and_gradient(X, y)

    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual_loss, expected_loss, rtol=1e-6)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_gradient_is_an_array_of_its_own(rng):
    network, X, y = Network((4, 3), seed=0), rng.normal(size=(9, 4)), rng.normal(size=(9, 3))
    _, first = network.loss_and_gradient(X, y)
    kept = first.tobytes()
    network.loss_and_gradient(X, y + 1)

    assert first.tobytes() == kept


def test_scipy_minimises_xor():
    network = Network((2, 8, 1), activation="tanh", loss="binary_cross_entropy", seed=0)

    def objective(x):
        network.params[:] = x
        return network.loss_and_gradient(XOR_X, [0, 1, 1, 0])

    result = minimize(objective, network.params.copy(), method="L-BFGS-B", jac=True)
    network.params[:] = result.x

    expected = [0, 1, 1, 0]
    actual = network.predict(XOR_X).ravel().round().tolist()

    assert result.fun < 1e-3
    assert actual == expected


# --- bad arguments ------------------------------------------------------------------------------------------------

BAD_SETTINGS = [
    ({"sizes": (2,)}, ParameterError, "'sizes'"),
    ({"sizes": ()}, ParameterError, "'sizes'"),
    ({"sizes": 3}, ParameterError, "'sizes'"),
    ({"sizes": None}, ParameterTypeError, "'sizes'"),
    ({"sizes": "2 1"}, ParameterTypeError, "'sizes'"),
    ({"sizes": (2, 0, 1)}, ParameterError, r"'sizes\[1\]'"),
    ({"sizes": (2, -3)}, ParameterError, r"'sizes\[1\]'"),
    ({"sizes": (2, 3.0)}, ParameterTypeError, r"'sizes\[1\]'"),
    ({"sizes": (True, 1)}, ParameterTypeError, r"'sizes\[0\]'"),
    ({"sizes": np.ones((2, 2), int)}, ParameterTypeError, "'sizes'"),
    ({"sizes": (1,) * 2000}, ParameterError, "at most"),
    ({"sizes": (10**6, 10**6)}, ResourceError, "memory"),
    ({"sizes": (2**31 - 1, 2**31 - 1, 2**31 - 1)}, ResourceError, "memory"),
    ({"activation": "softmax"}, ParameterError, "'activation'"),
    ({"activation": "thanh"}, ParameterError, "did you mean 'tanh'"),
    ({"activation": ()}, ParameterError, "one per hidden layer"),
    ({"activation": 2}, ParameterTypeError, "'activation'"),
    ({"output": "softmax"}, ParameterError, "'output'"),
    ({"output": "identity", "loss": "cross_entropy"}, ParameterError, "with the loss 'cross_entropy'"),
    ({"output": 0}, ParameterTypeError, "'output'"),
    ({"loss": "mse"}, ParameterError, "'loss'"),
    ({"loss": 0}, ParameterTypeError, "'loss'"),
    ({"bias": 1}, ParameterTypeError, "'bias'"),
    ({"bias": None}, ParameterTypeError, "'bias'"),
    ({"init": "ones"}, ParameterError, "'init'"),
    ({"init": None}, ParameterTypeError, "'init'"),
    ({"seed": -1}, ParameterError, "'seed'"),
    ({"seed": 2**32}, ParameterError, "'seed'"),
    ({"seed": 0.5}, ParameterTypeError, "'seed'"),
    ({"dtype": "float16"}, ParameterError, "'dtype'"),
    ({"dtype": int}, ParameterError, "'dtype'"),
]

BAD_X = [
    (np.ones(2), DataError, "'X' must be 2-D"),
    (np.ones((2, 2, 2)), DataError, "'X' must be 2-D"),
    (np.ones((3, 1)), DataError, "X has 1 column, the network has 2 inputs"),
    (np.ones((3, 5)), DataError, "X has 5 columns, the network has 2 inputs"),
    ([[1, np.nan]], DataError, "'X' must be finite"),
    ([[1, -np.inf]], DataError, "'X' must be finite"),
    ([[1, 2], [3]], DataError, "rows of equal length"),
    ([["1", "2"]], DataError, "'X' must hold real numbers"),
    (np.ones((1, 2), complex), DataError, "'X' must hold real numbers"),
    (None, ParameterTypeError, "'X'"),
    ("12", ParameterTypeError, "'X'"),
    (1.0, ParameterTypeError, "'X'"),
]

BAD_Y = [
    ("squared_error", [1, 2], DataError, "X has 3 rows, y has 2"),
    ("squared_error", np.ones((3, 1)), DataError, "y has 1 column, the network has 3 outputs"),
    ("squared_error", [[1, 2, np.nan]] * 3, DataError, "'y' must be finite"),
    ("squared_error", None, ParameterTypeError, "'y'"),
    ("binary_cross_entropy", [[0, 1, 2]] * 3, DataError, "'y' must be 0 or 1"),
    ("cross_entropy", [0, 1, 3], DataError, r"class numbers in 0\.\.2"),
    ("cross_entropy", [0, 1, -1], DataError, "class numbers"),
    ("cross_entropy", [0, 1, 0.5], DataError, "whole class numbers"),
    ("cross_entropy", np.ones((3, 3)), DataError, "sum to 1"),
    ("cross_entropy", np.full((3, 2), 0.5), DataError, "y has 2 columns, the network has 3 outputs"),
]

# What may not stand in place of the parameters of a (2, 3) network.
BAD_PARAMETERS = [
    np.zeros(8),
    np.zeros(10),
    np.zeros((9, 1)),
    np.zeros(0),
    np.zeros(9, int),
    np.zeros(9, complex),
    np.zeros(9, np.float16),
    np.zeros(9, ">f8"),
    np.zeros(18)[::2],
    np.zeros(9, np.float32),
    np.broadcast_to(0.0, 9),
    np.ma.array(np.zeros(9), mask=[True] + [False] * 8),
    np.ma.array(np.zeros(9)),
    [0.0] * 9,
    None,
    0.0,
]


def numbered(table):
    return [str(i) for i in range(len(table))]


@pytest.mark.parametrize(("settings", "error", "fragment"), BAD_SETTINGS, ids=numbered(BAD_SETTINGS))
def test_bad_setting_is_refused(settings, error, fragment):
    with pytest.raises(error, match=fragment):
        Network(**{"sizes": (2, 3, 1)} | settings)


@pytest.mark.parametrize(("X", "error", "fragment"), BAD_X, ids=numbered(BAD_X))
def test_bad_x_is_refused(X, error, fragment):
    network = Network((2, 1), seed=0)

    with pytest.raises(error, match=fragment):
        network.predict(X)
    with pytest.raises(error, match=fragment):
        network.loss_and_gradient(X, [1.0])


def test_no_rows_must_have_the_columns_of_the_network():
    with pytest.raises(DataError, match="X has 3 columns, the network has 2 inputs"):
        Network((2, 1)).predict(np.zeros((0, 3)))


def test_gradient_needs_a_row():
    with pytest.raises(DataError, match="at least 1 row"):
        Network((2, 1)).loss_and_gradient(np.zeros((0, 2)), [])


@pytest.mark.parametrize(("loss", "y", "error", "fragment"), BAD_Y, ids=numbered(BAD_Y))
def test_bad_y_is_refused(loss, y, error, fragment):
    network = Network((2, 3), loss=loss, seed=0)

    with pytest.raises(error, match=fragment):
        network.loss_and_gradient(np.ones((3, 2)), y)


@pytest.mark.parametrize("params", BAD_PARAMETERS, ids=numbered(BAD_PARAMETERS))
def test_wrong_parameters_are_refused(params):
    network = Network((2, 3), seed=0)
    before = network.params.tobytes()

    with pytest.raises(DataError, match=r"'network\.params'"):
        network.params = params

    assert network.params.tobytes() == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_parameters_that_are_not_finite_can_be_assigned_and_not_used(value):
    network = Network((2, 3), seed=0)
    network.params = np.array([0.0] * 8 + [value])

    with pytest.raises(DataError, match=r"'network\.params'"):
        network.predict(XOR_X)
    with pytest.raises(DataError, match=r"'network\.params'"):
        network.loss_and_gradient(XOR_X, np.zeros((4, 3)))
    with pytest.raises(DataError, match=r"'network\.params'"):
        train(XOR_X, np.zeros((4, 3)), network=network)


def test_unaligned_parameters_are_used_like_others():
    network = Network((2, 3), seed=0)
    expected = network.predict(XOR_X)
    buffer = np.zeros(network.params.nbytes + 1, np.uint8)
    unaligned = buffer[1:].view(float)
    unaligned[:] = network.params
    network.params = unaligned
    actual = network.predict(XOR_X)

    assert not unaligned.flags.aligned
    assert actual.tobytes() == expected.tobytes()


# --- what must not break it ---------------------------------------------------------------------------------------

DESCRIPTION = {
    "sizes": (2, 50, 1),
    "activations": ("tanh",) * 50,
    "loss": "cross_entropy",
    "huber_delta": None,
    "quantiles": (0.5,),
    "crossing_penalty": 1.0,
    "bias": False,
}


@pytest.mark.parametrize("name", DESCRIPTION)
def test_description_is_read_only(name):
    network = Network((2, 3, 1), seed=0)
    before, prediction = repr(network), network.predict(XOR_X).tobytes()

    with pytest.raises(AttributeError):
        setattr(network, name, DESCRIPTION[name])
    with pytest.raises(AttributeError):
        delattr(network, name)
    with pytest.raises(AttributeError):
        del network.params
    with pytest.raises(AttributeError, match="made once"):
        network.__init__((2, 50, 1))

    assert repr(network) == before
    assert network.predict(XOR_X).tobytes() == prediction


def test_assigned_parameters_are_copied():
    network = Network((2, 1), seed=0)
    view, given = network.params, np.array([1.0, 2.0, 3.0])
    network.params = given
    given[:] = 0

    assert network.params.tolist() == [1, 2, 3]
    assert view.tolist() == [1, 2, 3]


def test_subclass_of_an_array_is_taken_without_its_methods():
    class Mine(np.ndarray):
        def __getitem__(self, key):
            raise AssertionError

        def __array_function__(self, *_):
            raise AssertionError

    network = Network((2, 1), seed=0)
    network.params = np.array([1.0, 2.0, 3.0]).view(Mine)

    assert type(network.params) is np.ndarray
    assert network.params.tolist() == [1, 2, 3]


# What can be done to an array that is all of somebody's own, where it is the vector of parameters.
TAMPERING = {
    "resize": lambda array: array.resize(3, refcheck=False),
    "resize of the base": lambda array: array.base.resize(3, refcheck=False),
    "shape": lambda array: setattr(array, "shape", (-1, 1)),
    "shape of the base": lambda array: setattr(array.base, "shape", (-1, 1)),
    "dtype": lambda array: setattr(array, "dtype", np.float32),
    "dtype of the base": lambda array: setattr(array.base, "dtype", np.int64),
    "flags": lambda array: array.setflags(write=False),
    "flags of the base": lambda array: array.base.setflags(write=False),
    "base of the base": lambda array: array.base.base.resize(3, refcheck=False),
}


def tamper(name, array):
    """Try it; NumPy may refuse."""
    with warnings.catch_warnings(), contextlib.suppress(ValueError, AttributeError):
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy 2.5 on setting a shape or dtype
        TAMPERING[name](array)


@pytest.mark.parametrize("duplicate", [lambda network: network, Network.copy, copy.deepcopy, copy.copy])
@pytest.mark.parametrize("name", TAMPERING)
def test_view_of_the_parameters_is_nobody_else_s(name, duplicate, rng):
    X, y = rng.normal(size=(9, 2)), rng.normal(size=(9, 1))
    network = duplicate(Network((2, 3, 1), seed=0))
    params, expected = network.params, network.copy()
    tamper(name, params)
    tamper(name, network.weights[0])

    assert network.params.shape == expected.params.shape
    assert network.predict(X).tobytes() == expected.predict(X).tobytes()
    assert network.loss_and_gradient(X, y)[1].tobytes() == expected.loss_and_gradient(X, y)[1].tobytes()

    train(X, y, network=network, epochs=2, seed=0)
    train(X, y, network=expected, epochs=2, seed=0)

    assert network.params.tobytes() == expected.params.tobytes()


@pytest.mark.parametrize("name", TAMPERING)
def test_callback_may_do_anything_to_a_view_of_the_parameters(name, rng):
    X, y = rng.normal(size=(9, 2)), rng.normal(size=(9, 1))
    network, shown = Network((2, 3, 1), seed=0), []

    def attack(state):
        tamper(name, network.params)
        tamper(name, state.network.params)
        shown.append(state.network.predict(X))

    expected = train(X, y, network=network.copy(), epochs=4, seed=0).network.params.tobytes()
    actual = train(X, y, network=network, epochs=4, seed=0, callback=attack).network.params.tobytes()

    assert len(shown) == 4
    assert actual == expected


def test_subclass_cannot_describe_its_networks_otherwise(rng):
    class Deep(Network):
        sizes, activations, bias = (2, 50, 50, 1), ("tanh",) * 50, False

    network, X = Deep((2, 3, 1), seed=0), rng.normal(size=(9, 2))

    expected = Network((2, 3, 1), seed=0).predict(X).tobytes()
    actual = network.predict(X).tobytes()

    assert actual == expected
    assert type(network.copy()) is Deep


class Rows:
    """Rows that run code while they are converted."""

    def __init__(self, array, code):
        self.array, self.code = array, code

    def __array__(self, dtype=None, copy=None):
        self.code()
        return self.array


def test_parameters_are_looked_at_after_the_rows_are_converted():
    network = Network((2, 1), seed=0)

    def spoil():
        network.params[:] = np.nan

    with pytest.raises(DataError, match=r"'network\.params' must be finite"):
        network.predict(Rows(XOR_X, spoil))
    network.params[:] = 0
    with pytest.raises(DataError, match=r"'network\.params' must be finite"):
        network.loss_and_gradient(XOR_X, Rows(np.zeros(4), spoil))


@pytest.mark.parametrize(
    "change",
    [
        lambda network: setattr(network, "params", np.zeros(1)),
        lambda network: setattr(network, "sizes", (2, 9, 1)),
        lambda network: network.__init__((2, 50, 1)),
    ],
    ids=["params", "sizes", "init"],
)
def test_rows_cannot_exchange_the_network_under_the_call(change):
    network = Network((2, 3, 1), seed=0)
    before, refused = network.params.tobytes(), []

    def attack():
        try:
            change(network)
        except (DataError, AttributeError) as error:
            refused.append(error)

    network.predict(Rows(XOR_X, attack))
    network.loss_and_gradient(XOR_X, Rows(np.zeros(4), attack))
    train(Rows(XOR_X, attack), np.zeros(4), network=network, epochs=0)

    assert len(refused) == 3
    assert network.params.tobytes() == before


# --- large calls --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("loss", "output", "activation"), MODELS[:2] + MODELS[-1:])
def test_calls_of_the_kernel_show_in_no_bit(loss, output, activation, dtype, monkeypatch, rng):
    network, X = model(loss, output, activation, dtype), rng.normal(size=(700, 4))
    y, weights = targets(loss, 700, rng), rng.random(700)

    expected = network.predict(X), *network.loss_and_gradient(X, y, weights)
    monkeypatch.setattr("fastbp.network.CALL_WORK", 1)
    actual = network.predict(X), *network.loss_and_gradient(X, y, weights)

    assert [np.asarray(part).tobytes() for part in actual] == [np.asarray(part).tobytes() for part in expected]


@pytest.mark.parametrize("threads", [1, "auto", 2])
@pytest.mark.parametrize("rows", [3, 1000])
def test_second_prediction_of_as_many_rows_is_as_careful_as_the_first(rows, threads, rng):
    network, X = Network((4, 8, 2), seed=0), rng.normal(size=(rows, 4))
    expected = network.predict(X, threads=threads)
    fixed, spoiled, aside = X.copy(), X.copy(), np.zeros(8 * X.size + 1, np.uint8)[1:].view(np.float64).reshape(rows, 4)
    fixed.flags.writeable, spoiled[-1, -1], aside[:] = False, np.nan, X
    forms = X, fixed, np.asfortranarray(X), aside, X.astype(np.float32).astype(np.float64), X.tolist()
    for form in forms:
        np.testing.assert_allclose(network.predict(form, threads=threads), expected, atol=1e-6)
        with pytest.raises(DataError, match="'X' must be finite"):
            network.predict(spoiled, threads=threads)
    expected.fill(0)  # nobody else's
    assert network.predict(X, threads=threads).any()
    network.params[-1] = np.inf
    with pytest.raises(DataError, match=r"'network\.params' must be finite"):
        network.predict(X, threads=threads)
    network.params[:] = 0
    assert not network.predict(X, threads=threads).any()


def test_large_calls_are_cut(monkeypatch, rng):
    """Python attends to Ctrl-C only between calls of a kernel."""
    calls, kernels = [], engine("numba")
    for name, rows_of_call in (("predict_words", lambda args: len(args[3])), ("run_words", lambda args: args[6])):
        kernel = getattr(kernels, name)

        def counted(*args, kernel=kernel, rows_of_call=rows_of_call):
            calls.append(rows_of_call(args))
            return kernel(*args)

        monkeypatch.setattr(kernels, name, counted)
    network = Network((4, 512, 512, 1), seed=0, dtype="float32")
    X = rng.normal(size=(1000, 4))
    network.predict(X)
    network.loss_and_gradient(X, X[:, 0])

    assert calls[:5] == [224] * 4 + [104]
    assert calls[5:] == [1] * 8


def test_predictions_that_do_not_fit_are_refused_before_they_are_made(monkeypatch):
    network, X = Network((1, 10_000), init="zeros"), np.zeros((300, 1))
    monkeypatch.setattr("fastbp.checks._physical_memory", lambda: 2**24)

    with pytest.raises(ResourceError, match=r"^the array of 300 predictions"):
        network.predict(X)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("init", INITIALISERS)
def test_new_network_takes_little_beside_its_parameters(init, dtype):
    tracemalloc.start()
    try:
        network = Network((1000, 2000, 1), init=init, dtype=dtype)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert network.params.nbytes <= peak < network.params.nbytes + 2**24


def test_network_may_be_as_large_as_the_memory(monkeypatch):
    monkeypatch.setattr("fastbp.checks._physical_memory", lambda: 8 * 1002)
    Network((1000, 1), init="zeros")

    with pytest.raises(ResourceError, match=r"^the vector of 1003 parameters needs"):
        Network((1002, 1), init="zeros")


# --- normal numbers -----------------------------------------------------------------------------------------------

UNIT = 2.0**-53  # of the uniform numbers


def uniform_numbers():
    """Some of the whole interval, and the first and last of it, where the tails are."""
    steps = np.arange(300) * UNIT
    tails = np.round(2.0 ** -np.linspace(1, 53, 500) / UNIT) * UNIT
    borders = np.array([0.075, 0.925, 0.5 - 0.425, 0.5])  # of the pieces of the approximation
    return np.concatenate([np.random.default_rng(0).random(2000), steps, 1 - UNIT - steps, tails, borders])


def test_normal_numbers_are_the_inverse_of_their_distribution():
    uniforms = uniform_numbers()
    with mpmath.workdps(50):
        exact = [mpmath.sqrt(2) * mpmath.erfinv(2 * (mpmath.mpf(u) + mpmath.mpf(UNIT) / 2) - 1) for u in uniforms]
        actual = normal(uniforms)
        ulps = [abs(a - e) / np.spacing(abs(float(e))) for a, e in zip(actual.tolist(), exact, strict=True)]

    assert max(ulps) < 8


def test_normal_numbers_are_symmetric_and_finite():
    first, last = normal(np.array([0.0, 1 - UNIT]))

    assert np.isfinite(first)
    assert first == -last
    assert first == pytest.approx(-8.2923610758, abs=1e-9)


def test_normal_numbers_have_the_moments_of_the_distribution(rng):
    numbers = normal(rng.random(10**6))

    expected = [0, 1, 0, 3]
    actual = [np.mean(numbers**k) for k in (1, 2, 3, 4)]

    np.testing.assert_allclose(actual, expected, atol=0.03)
    assert kstest(numbers[:100_000], norm.cdf).pvalue > 0.01


def test_normal_numbers_are_made_by_exactly_rounded_operations_alone(monkeypatch):
    """Functions of the C library differ in the last bit from machine to machine."""
    exact = {np.add, np.subtract, np.multiply, np.divide, np.sqrt, np.absolute, np.negative, np.frexp, np.copysign}
    exact |= {np.less, np.less_equal, np.maximum, np.minimum}
    seen = set()

    class Watched(np.ndarray):
        def __array_ufunc__(self, ufunc, method, *inputs, **options):
            seen.add(ufunc)
            bare = [np.asarray(value) for value in inputs]
            result = getattr(ufunc, method)(*bare, **options)
            results = result if isinstance(result, tuple) else (result,)
            wrapped = tuple(np.asarray(part).view(Watched) for part in results)
            return wrapped if isinstance(result, tuple) else wrapped[0]

    uniforms = uniform_numbers()
    actual = normal(uniforms.view(Watched))

    assert np.asarray(actual).tobytes() == normal(uniforms).tobytes()
    assert {np.frexp, np.divide, np.sqrt} <= seen <= exact


@pytest.mark.parametrize(
    ("init", "expected"),
    [
        ("glorot_normal", "eba54deaa9fedb4e"),
        ("he_normal", "87c03caa09b12b71"),
    ],
)
def test_normal_weights_have_the_bits_they_always_had(init, expected):
    params = Network((40, 120, 60), init=init, seed=3).params
    actual = hashlib.sha256(params.astype("<f8").tobytes()).hexdigest()[:16]

    assert actual == expected


def test_gradients_whose_memory_does_not_fit_are_refused_before_they_are_computed(monkeypatch):
    network, X = Network((1, 10_000), init="zeros"), np.zeros((300, 1))
    monkeypatch.setattr("fastbp.checks._physical_memory", lambda: 2**25)

    with pytest.raises(ResourceError, match=r"^the gradient of 300 rows"):
        network.loss_and_gradient(X, np.zeros((300, 10_000)))


# --- rows that are prepared for -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("n", [1, 2, 8, 17, 64, 65, 128])
def test_prediction_is_the_same_however_often_it_is_asked_for(n, dtype, rng):
    network = Network((4, 16, 2), activation="tanh", seed=0, dtype=dtype)
    X = rng.normal(size=(n, 4)).astype(dtype)
    expected = Network((4, 16, 2), activation="tanh", seed=0, dtype=dtype).predict(X.tolist())

    results = [network.predict(X) for _ in range(3)]
    others = [
        network.predict(form) for form in (X, np.asfortranarray(X), X[::-1][::-1], X.astype(">f8"), X.tolist(), X)
    ]

    assert all(each.tobytes() == expected.tobytes() for each in results + others)
    results[0][:] = 0
    assert network.predict(X).tobytes() == expected.tobytes()


@pytest.mark.parametrize("change", ["in place", "assigned", "trained", "state"])
def test_prediction_is_that_of_the_parameters_of_now(change):
    network, X = Network((2, 3, 1), seed=0), np.array([[1.0, 2.0]])
    network.predict(X)
    other = Network((2, 3, 1), seed=1)
    match change:
        case "in place":
            network.params[:] = other.params
        case "assigned":
            network.params = other.params
        case "trained":
            other = fastbp.train(X, [9.0], network=network, epochs=3, seed=0).network.copy()
        case "state":
            network.__setstate__(other.__getstate__())

    assert network.predict(X).tobytes() == other.predict(X.tolist()).tobytes()


@pytest.mark.parametrize("twin", [Network.copy, copy.copy, copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_twin_of_a_network_that_has_predicted_is_independent(twin):
    network, X = Network((2, 3, 1), seed=0), np.array([[1.0, 2.0]])
    expected = network.predict(X)
    other = twin(network)
    other.params[:] = 0

    assert other.predict(X).tolist() == [[0.0]]
    assert network.predict(X).tobytes() == expected.tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_when_prepared(bad):
    network, X = Network((2, 3, 1), seed=0), np.array([[1.0, 2.0]])
    network.predict(X)
    with pytest.raises(DataError, match=r"^'X' must be finite.* the first at \[0, 1\]$"):
        network.predict(np.array([[1.0, bad]]))
    network.predict(X)
    network.params[3] = bad
    with pytest.raises(DataError, match=r"^'network\.params' must be finite"):
        network.predict(X)


def test_threads_predict_side_by_side(rng):
    network, X = Network((4, 16, 1), activation="tanh", seed=0), rng.normal(size=(50, 4))
    expected = network.predict(X)

    def predicted(_):
        return np.concatenate([network.predict(row[None]) for row in X])

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(predicted, range(40)))

    assert all(result.tobytes() == expected.tobytes() for result in results)


def test_network_is_prepared_for_few_numbers_of_rows():
    network = Network((2, 3, 1), seed=0)
    for n in range(1, 65):
        network.predict(np.zeros((n, 2)))

    assert len(network._prepared) <= 8


def test_reference_predicts_the_same(rng):
    X = rng.normal(size=(5, 3))
    for loss in LOSSES:
        network = Network((3, 6, 2), activation="tanh", seed=0, **loss_settings(loss, 2))
        np.testing.assert_allclose(network.predict(X, backend="numpy"), network.predict(X), rtol=1e-13)


@pytest.mark.parametrize(("backend", "error"), [("cuda", ParameterError), (None, ParameterTypeError)])
def test_unknown_backend_is_refused(backend, error):
    with pytest.raises(error, match="'backend'"):
        Network((1, 1)).predict([[1.0]], backend=backend)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sizes", [(3, 4, 1), (3, 20, 2)])
def test_penalty_is_in_loss_and_gradient(sizes, weighted, dtype, rng):
    network = Network(sizes, activation="tanh", seed=0, dtype=dtype)
    for bias in network.biases:
        bias[:] = 0.5
    X, y = rng.normal(size=(7, 3)), rng.normal(size=(7, sizes[-1]))
    weights = rng.uniform(1, 2, 7) if weighted else None
    total = weights.sum() if weighted else 7
    loss, gradient = network.loss_and_gradient(X, y, weights)
    penalised = network.copy()
    for bias in penalised.biases:
        bias[:] = 0

    actual_loss, actual_gradient = network.loss_and_gradient(X, y, weights, l2=0.3)

    tolerance = 1e-12 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(actual_loss, loss + 0.15 * (penalised.params**2).sum() / total, rtol=tolerance)
    np.testing.assert_allclose(actual_gradient, gradient + 0.3 * penalised.params / total, rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize(("l2", "error"), [(-1, ParameterError), (1e-310, ParameterError), ("1", ParameterTypeError)])
def test_bad_penalty_of_a_gradient_is_refused(l2, error):
    with pytest.raises(error, match="'l2'"):
        Network((1, 1)).loss_and_gradient([[1.0]], [1.0], l2=l2)


def test_weights_are_those_of_their_seed_though_threads_draw_side_by_side():
    def drawn(seed):
        return Network((20, 30, 2), init=list(INITIALISERS)[seed % 6], seed=seed).params.tobytes()

    expected = [drawn(seed) for seed in range(100)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(drawn, range(100))) == expected
    first = np.random.RandomState(7).uniform(size=2).tolist()
    assert Network((2, 1), init="uniform", seed=7).weights[0].ravel().tolist() == first
