"""What fastbp hands to its neighbours they compute as fastbp does, and what comes back has the same bits."""

import itertools
import sys
from collections import OrderedDict

import numpy as np
import pytest

from fastbp import reference
from fastbp.checks import DataError, ParameterError, ParameterTypeError
from fastbp.choices import ACTIVATIONS, ELEMENTWISE, LOSSES
from fastbp.export import SKLEARN_ACTIVATIONS, SKLEARN_OUTPUTS, from_sklearn, from_torch, to_sklearn, to_torch
from fastbp.network import Network

DTYPES = ["float32", "float64"]
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
HIDDEN = [(), (5,), (4, 3)]

SHORT = {"activation": "logistic", "random_state": 0, "tol": 1e9, "n_iter_no_change": 1}  # stops without a warning

# Losses, and all numbers of outputs that are different for scikit-learn.
SKLEARN_MODELS = [
    (loss, outputs)
    for loss in SKLEARN_OUTPUTS
    for outputs in (1, 2, 3)
    if loss in LOSSES and (loss, outputs) != ("cross_entropy", 1)
]

# The modules of PyTorch that are our activations, with their arguments.
TORCH_ACTIVATIONS = {
    "identity": ("Identity", {}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "relu": ("ReLU", {}),
    "leaky_relu": ("LeakyReLU", {}),
    "softmax": ("Softmax", {"dim": 1}),
    "elu": ("ELU", {}),
    "gelu": ("GELU", {}),
    "silu": ("SiLU", {}),
    "softplus": ("Softplus", {}),
}
NOT_IN_TORCH = {"exponential"}


@pytest.fixture
def X(rng):
    return rng.normal(size=(20, 3))


@pytest.fixture
def by_reference(monkeypatch):
    """Predictions by NumPy, where float32 would otherwise have to be compiled for a few rows."""
    monkeypatch.setattr("fastbp.network.engine", lambda backend: reference)


OUTPUTS = {"quantile": 3, "gaussian_nll": 2}  # of the losses that say how many


def with_biases(sizes, **settings):
    """A network whose biases are not zero."""
    network = Network(sizes, seed=1, **settings)
    for biases in network.biases:
        biases[:] = np.linspace(-0.3, 0.4, biases.size)
    return network


def same_network(actual, expected):
    attributes = ("sizes", "activations", "loss", "bias")
    assert [getattr(actual, name) for name in attributes] == [getattr(expected, name) for name in attributes]
    assert actual.params.dtype == expected.params.dtype

    return actual.params.tobytes() == expected.params.tobytes()


def exported(network):
    """What scikit-learn makes of the network, or a skip if it is older than the loss."""
    neural_network = pytest.importorskip("sklearn.neural_network")
    if network.loss == "poisson" and "loss" not in neural_network.MLPRegressor().get_params():
        pytest.skip("scikit-learn < 1.7 has no such loss")
    return to_sklearn(network)


# --- to scikit-learn ------------------------------------------------------------------------------------------------


def outputs_of(estimator, X):
    """What an estimator predicts, as a network shows it: probabilities of classes, of two only that of the second."""
    if not hasattr(estimator, "predict_proba"):
        return estimator.predict(X).reshape(len(X), -1)
    probabilities = estimator.predict_proba(X)
    return (
        probabilities[:, 1:] if estimator.out_activation_ == "logistic" and estimator.n_outputs_ == 1 else probabilities
    )


@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
@pytest.mark.parametrize("activation", SKLEARN_ACTIVATIONS)
@pytest.mark.parametrize(("loss", "outputs"), SKLEARN_MODELS)
def test_sklearn_predicts_what_the_network_does(loss, outputs, activation, hidden, X):
    network = with_biases((3, *hidden, outputs), activation=activation, loss=loss)
    estimator = exported(network)

    expected = network.predict(X)
    actual = outputs_of(estimator, X)

    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
@pytest.mark.parametrize(("loss", "outputs"), SKLEARN_MODELS)
def test_sklearn_predicts_classes_and_values(loss, outputs, hidden, X):
    network = with_biases((3, *hidden, outputs), loss=loss)
    predictions = network.predict(X)
    shape = (20,) if outputs == 1 or loss == "cross_entropy" else (20, outputs)

    expected = {
        "binary_cross_entropy": predictions > 0.5,
        "cross_entropy": predictions.argmax(axis=1),
    }.get(loss, predictions)
    actual = exported(network).predict(X)

    assert actual.shape == shape
    np.testing.assert_allclose(actual, expected.reshape(shape), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_sklearn_scores_its_own_predictions_as_right(outputs, X):
    loss = "binary_cross_entropy" if outputs == 1 else "cross_entropy"
    estimator = exported(with_biases((3, 5, outputs), loss=loss))

    expected = 1.0
    actual = estimator.score(X, estimator.predict(X))

    assert actual == expected
    assert estimator.classes_.tolist() == list(range(max(outputs, 2)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sklearn_has_the_attributes_of_a_fitted_estimator(dtype):
    neural_network = pytest.importorskip("sklearn.neural_network")
    network = with_biases((3, 5, 4, 1), activation="tanh", dtype=dtype)
    estimator = to_sklearn(network)
    fitted = neural_network.MLPRegressor(hidden_layer_sizes=(5, 4), **SHORT).fit(np.eye(3, dtype=dtype), [0, 1, 2])

    for name in ("n_layers_", "n_outputs_", "out_activation_", "n_features_in_"):
        assert getattr(estimator, name) == getattr(fitted, name)
    for name in ("coefs_", "intercepts_"):
        assert [(a.shape, a.dtype) for a in getattr(estimator, name)] == [
            (a.shape, dtype) for a in getattr(fitted, name)
        ]


def test_estimator_can_be_cloned_and_fitted():
    base = pytest.importorskip("sklearn.base")
    estimator = exported(with_biases((2, 3, 1), activation="sigmoid", loss="binary_cross_entropy"))

    expected = [(2, 3), (3, 1)]
    actual = base.clone(estimator).set_params(tol=1e9, n_iter_no_change=1).fit([[0, 1], [1, 0]], [0, 1])

    assert [coefs.shape for coefs in actual.coefs_] == expected
    assert actual.activation == "logistic"


def test_missing_biases_become_zeros_for_sklearn():
    expected = [[0] * 4, [0]]
    actual = exported(Network((3, 4, 1), bias=False, seed=0)).intercepts_

    assert [intercepts.tolist() for intercepts in actual] == expected


def test_estimator_shares_no_memory_with_the_network():
    network = with_biases((3, 4, 1))
    estimator = exported(network)

    for array in (*estimator.coefs_, *estimator.intercepts_):
        assert not np.shares_memory(array, network.params)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"activation": "leaky_relu"},
            r"'network\.activations\[0\]' must be one of .* for scikit-learn, got 'leaky_relu'",
        ),
        (
            {"activation": ("relu", "tanh")},
            "'network.activations' must be one for all hidden layers, got 'relu', 'tanh'",
        ),
        ({"output": "tanh"}, r"'network\.activations\[-1\]' must be one of 'identity' for scikit-learn .*, got 'tanh'"),
        ({"output": "sigmoid"}, "'squared_error', got 'sigmoid'"),
        ({"loss": "cross_entropy"}, "'network.sizes' must end with at least 2 outputs for a classifier, got 1"),
        *[
            ({"loss": loss}, f"'network.loss' must be one of .* for scikit-learn, got '{loss}'")
            for loss in LOSSES
            if loss not in SKLEARN_OUTPUTS
        ],
    ],
    ids=str,
)
def test_what_sklearn_cannot_express_is_refused(settings, message):
    pytest.importorskip("sklearn")
    network = Network((2, 3, 3, OUTPUTS.get(settings.get("loss"), 1)), **settings)

    with pytest.raises(ParameterError, match=message):
        to_sklearn(network)


@pytest.mark.parametrize("loss", ["poisson"] if "poisson" in LOSSES else [])
def test_loss_of_newer_sklearn_says_the_version(loss, monkeypatch):
    neural_network = pytest.importorskip("sklearn.neural_network")
    monkeypatch.setattr(neural_network.MLPRegressor, "get_params", lambda self: {})

    with pytest.raises(ImportError, match=r"'poisson' needs scikit-learn >= 1\.7"):
        to_sklearn(Network((2, 1), loss=loss))


# --- from scikit-learn ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", SKLEARN_ACTIVATIONS)
@pytest.mark.parametrize("hidden", [(5,), (4, 3)], ids=str)
@pytest.mark.parametrize(("loss", "outputs"), SKLEARN_MODELS)
def test_network_comes_back_from_sklearn_with_the_same_bits(loss, outputs, hidden, activation, dtype):
    expected = with_biases((3, *hidden, outputs), activation=activation, loss=loss, dtype=dtype)
    actual = from_sklearn(exported(expected))

    assert same_network(actual, expected)


TARGETS = {
    "two classes": ("MLPClassifier", ["no", "yes"] * 10, "binary_cross_entropy", 1),
    "three classes": ("MLPClassifier", [*"abca"] * 5, "cross_entropy", 3),
    "labels": ("MLPClassifier", [[0, 1, 1, 0], [1, 0, 1, 0]] * 10, "binary_cross_entropy", 4),
    "one value": ("MLPRegressor", [0.5, -1.0] * 10, "squared_error", 1),
    "two values": ("MLPRegressor", [[0.5, -1.0], [2.0, 3.0]] * 10, "squared_error", 2),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "y", "loss", "outputs"), TARGETS.values(), ids=TARGETS)
def test_network_predicts_what_a_fitted_estimator_does(kind, y, loss, outputs, dtype, X, by_reference):
    neural_network = pytest.importorskip("sklearn.neural_network")
    make = getattr(neural_network, kind)
    network = from_sklearn(estimator := make(hidden_layer_sizes=(5, 4), **SHORT).fit(X.astype(dtype), y))

    expected = outputs_of(estimator, X.astype(dtype))
    actual = network.predict(X)

    assert (network.loss, network.sizes, network.params.dtype) == (loss, (3, 5, 4, outputs), dtype)
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_network_of_counts_predicts_what_a_fitted_estimator_does(X):
    neural_network = pytest.importorskip("sklearn.neural_network")
    if "poisson" not in LOSSES or "loss" not in neural_network.MLPRegressor().get_params():
        pytest.skip("no such loss")
    estimator = neural_network.MLPRegressor(loss="poisson", hidden_layer_sizes=5, **SHORT).fit(X, np.arange(20))

    expected = estimator.predict(X)
    actual = from_sklearn(estimator).predict(X)[:, 0]

    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_network_shares_no_memory_with_the_estimator():
    estimator = exported(with_biases((3, 4, 1)))
    before = [array.copy() for array in (*estimator.coefs_, *estimator.intercepts_)]
    from_sklearn(estimator).params[:] = 7

    for array, expected in zip((*estimator.coefs_, *estimator.intercepts_), before, strict=True):
        assert array.tobytes() == expected.tobytes()


def spoiled(**attributes):
    """An exported estimator with some attributes replaced."""
    estimator = exported(with_biases((3, 4, 1)))
    for name, value in attributes.items():
        setattr(estimator, name, value)
    return estimator


@pytest.mark.parametrize(
    ("attributes", "error", "message"),
    [
        ({"activation": "gelu"}, ParameterError, r"'estimator\.activation' must be one of 'identity', 'logistic'"),
        ({"out_activation_": "tanh"}, ParameterError, r"'estimator\.out_activation_' must be one of"),
        ({"coefs_": []}, ParameterError, "at least 1 layer of weights, got 0"),
        ({"coefs_": [np.ones((3, 4)), np.ones((5, 1))]}, DataError, r"layers must .* \[\(3, 4\), \(5, 1\)\]"),
        ({"intercepts_": [np.ones(4)]}, DataError, r"layers must .* biases \[4\]"),
        ({"intercepts_": [np.ones(4), np.ones(1), np.ones(1)]}, DataError, r"layers must .* biases \[4, 1, 1\]"),
        ({"coefs_": [np.ones(4), np.ones((4, 1))]}, DataError, r"'coefs_\[0\]' must be 2-D, got shape \(4,\)"),
        ({"intercepts_": [np.ones(4), np.array([np.nan])]}, DataError, r"'intercepts_\[1\]' must be finite"),
    ],
    ids=str,
)
def test_spoiled_estimator_is_refused(attributes, error, message):
    estimator = spoiled(**attributes)

    with pytest.raises(error, match=message):
        from_sklearn(estimator)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "y", "loss", "outputs"), TARGETS.values(), ids=TARGETS)
def test_own_estimator_gives_a_copy_of_its_network(kind, y, loss, outputs, dtype, X):
    own = pytest.importorskip("fastbp.sklearn")
    estimator = getattr(own, kind)(hidden_layer_sizes=(5, 4), **SHORT).fit(X.astype(dtype), y)
    before = estimator.network_.params.tobytes()
    network = from_sklearn(estimator)

    assert same_network(network, estimator.network_)
    assert (network.loss, network.sizes) == (loss, (3, 5, 4, outputs))
    network.params[:] = 0
    assert estimator.network_.params.tobytes() == before


def test_own_estimator_with_spoiled_weights_is_refused(X):
    own = pytest.importorskip("fastbp.sklearn")
    estimator = own.MLPRegressor(hidden_layer_sizes=(5,), **SHORT).fit(X, X[:, 0])
    estimator.network_.params[0] = np.inf

    with pytest.raises(DataError, match="must be finite"):
        from_sklearn(estimator)


def test_own_estimator_that_is_not_fitted_is_refused():
    own = pytest.importorskip("fastbp.sklearn")

    with pytest.raises(ParameterTypeError, match=r"or a fitted one of fastbp\.sklearn, got fastbp\.sklearn\.MLPC"):
        from_sklearn(own.MLPClassifier())


def test_estimator_that_is_not_fitted_is_refused():
    neural_network = pytest.importorskip("sklearn.neural_network")

    with pytest.raises(ParameterError, match="'estimator' must be fitted"):
        from_sklearn(neural_network.MLPClassifier())


@pytest.mark.parametrize("estimator", [None, Network((1, 1)), "MLPClassifier"], ids=str)
def test_estimator_of_another_class_is_refused(estimator):
    pytest.importorskip("sklearn")

    with pytest.raises(ParameterTypeError, match="'estimator' must be scikit-learn's MLPClassifier or MLPRegressor"):
        from_sklearn(estimator)


@pytest.mark.parametrize("function", [to_sklearn, from_sklearn])
def test_missing_sklearn_says_what_to_install(function, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)

    with pytest.raises(ImportError, match=r'needs scikit-learn: pip install "fastbp\[sklearn\]"'):
        function(Network((1, 1)))


# --- PyTorch's state dict, without PyTorch --------------------------------------------------------------------------


def forward(state, X, activations):
    """The outputs of torch.nn.Sequential(Linear, activation, ...) by NumPy: x W^T + b."""
    for layer, name in enumerate(activations):
        z = X @ state[f"{2 * layer}.weight"].T + state.get(f"{2 * layer}.bias", 0)
        X = reference.activation(ACTIVATIONS[name].code, z)
    return X


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_state_dict_has_the_names_and_shapes_of_a_sequential(hidden, bias):
    sizes = (3, *hidden, 2)
    layers = list(itertools.pairwise(sizes))

    expected = {f"{2 * layer}.weight": (outputs, inputs) for layer, (inputs, outputs) in enumerate(layers)}
    expected |= {f"{2 * layer}.bias": (outputs,) for layer, (_, outputs) in enumerate(layers) if bias}
    actual = {name: array.shape for name, array in to_torch(Network(sizes, bias=bias)).items()}

    assert actual == expected


@pytest.mark.parametrize("hidden", HIDDEN, ids=str)
def test_state_dict_by_hand_predicts_what_the_network_does(hidden, X):
    network = with_biases((3, *hidden, 2), activation="tanh")

    expected = network.predict(X)
    actual = forward(to_torch(network), X, network.activations)

    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("sizes", [(3, 4, 2), (3, 1), (1, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_state_dict_holds_copies_in_c_order(dtype, sizes):
    network = with_biases(sizes, dtype=dtype)

    for array in to_torch(network).values():
        assert array.dtype == dtype
        assert array.flags.carray
        assert not np.shares_memory(array, network.params)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_network_comes_back_from_its_state_dict_with_the_same_bits(loss, bias, dtype):
    sizes = (3, 4, 5, OUTPUTS.get(loss, 2))
    expected = with_biases(sizes, activation=("relu", "tanh"), loss=loss, bias=bias, dtype=dtype)
    actual = from_torch(to_torch(expected), activation=("relu", "tanh"), loss=loss)

    assert same_network(actual, expected)


def test_output_and_loss_are_what_is_asked_for():
    state = to_torch(Network((3, 4, 2)))

    expected = ("tanh", "sigmoid"), "squared_error"
    actual = from_torch(state, activation="tanh", output="sigmoid")

    assert (actual.activations, actual.loss) == expected


def test_numbers_of_layers_order_them():
    """Of twelve modules number 10 comes after number 2, wherever it stands; gaps are modules without parameters."""
    state = to_torch(with_biases((2, 3, 4, 5, 1)))
    numbers = {"0": "0", "2": "3", "4": "9", "6": "10"}
    renamed = {numbers[name[0]] + name[1:]: array for name, array in reversed(state.items())}

    expected = from_torch(state)
    actual = from_torch(OrderedDict(renamed))

    assert same_network(actual, expected)


def test_some_missing_biases_are_zeros():
    expected = [[0.0, 0.0], [5.0]]
    actual = from_torch({"0.weight": np.ones((2, 3)), "2.weight": np.ones((1, 2)), "2.bias": [5]}).biases

    assert [biases.tolist() for biases in actual] == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("float32", "float32"), "float32"),
        (("float16", "float32"), "float32"),
        (("float16", "float16"), "float32"),
        (("float32", "float64"), "float64"),
        (("float64", "float32"), "float64"),
        (("int64", "float32"), "float64"),
        ((">f4", ">f4"), "float32"),
    ],
    ids=str,
)
def test_precision_holds_all_values(given, expected):
    weight, bias = given
    actual = from_torch({"0.weight": np.array([[3, 2]], weight), "0.bias": np.array([1], bias)}).params

    assert actual.dtype == expected
    assert actual.dtype.isnative
    assert actual.tolist() == [3, 2, 1]


def test_state_dict_is_not_written_to():
    state = to_torch(with_biases((3, 4, 1)))
    before = {name: array.tobytes() for name, array in state.items()}
    for array in state.values():
        array.flags.writeable = False
    from_torch(state).params[:] = 7

    assert {name: array.tobytes() for name, array in state.items()} == before


W = np.ones((2, 3))


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        ([("0.weight", W)], ParameterTypeError, "'state_dict' must be a mapping, got list"),
        ({}, ParameterError, "at least 1 layer of weights, got 0"),
        ({"net.0.weight": W}, ParameterError, "names such as '0.weight', '0.bias', got 'net.0.weight'"),
        ({"0.weight": W, "1.running_mean": W}, ParameterError, "got '1.running_mean'"),
        ({"00.weight": W}, ParameterError, "got '00.weight'"),
        ({0: W}, ParameterError, "got 0"),
        ({"x" * 1000: W}, ParameterError, "got 'x{79}$"),
        ({"0.weight": W, "2.bias": [1.0]}, ParameterError, r"must have '2\.weight' beside '2\.bias'"),
        ({"0.weight": W, "2.weight": W}, DataError, r"layers must .* \[\(3, 2\), \(3, 2\)\]"),
        ({"0.weight": W, "0.bias": [1.0]}, DataError, r"layers must .* biases \[1\]"),
        ({"0.weight": np.ones(3)}, DataError, r"'state_dict\[0\.weight\]' must be 2-D, got shape \(3,\)"),
        ({"0.weight": W, "0.bias": W}, DataError, r"'state_dict\[0\.bias\]' must be 1-D, got shape \(2, 3\)"),
        ({"0.weight": W * np.inf}, DataError, r"'state_dict\[0\.weight\]' must be finite.*got 6 bad of 6"),
        ({"0.weight": [["a"]]}, DataError, r"'state_dict\[0\.weight\]' must hold real numbers"),
        ({"0.weight": None}, ParameterTypeError, r"'state_dict\[0\.weight\]' must be an array"),
        ({"0.weight": np.ones((2, 0))}, ParameterError, r"'sizes\[0\]' must be an integer >= 1, got 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_state_dict_is_refused(state, error, message):
    with pytest.raises(error, match=message):
        from_torch(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "rleu"}, "'activation' must be one of"),
        ({"activation": ("relu", "relu")}, "'activation' must be one name or one per hidden layer"),
        ({"output": "softmax"}, "'output' must be one of"),
        ({"loss": "mse"}, "'loss' must be one of"),
    ],
    ids=str,
)
def test_wrong_setting_of_a_state_dict_is_refused(settings, message):
    with pytest.raises(ParameterError, match=message):
        from_torch(to_torch(Network((3, 4, 1))), **settings)


@pytest.mark.parametrize("function", [to_sklearn, to_torch])
def test_what_is_no_network_is_refused(function):
    with pytest.raises(ParameterTypeError, match="'network' must be a Network, got None"):
        function(None)


@pytest.mark.parametrize("function", [to_sklearn, to_torch])
def test_network_with_parameters_that_are_not_finite_is_refused(function):
    network = Network((2, 1))
    network.params[1] = np.nan

    with pytest.raises(DataError, match=r"'network\.params' must be finite"):
        function(network)


# --- PyTorch itself -------------------------------------------------------------------------------------------------


def sequential(torch, network):
    """The module that the state dict is said to fit, with the activation of the output as its last module."""
    modules = []
    for (inputs, outputs), name in zip(itertools.pairwise(network.sizes), network.activations, strict=True):
        kind, arguments = TORCH_ACTIVATIONS[name]
        modules += [torch.nn.Linear(inputs, outputs, bias=network.bias), getattr(torch.nn, kind)(**arguments)]
    return torch.nn.Sequential(*modules).to(getattr(torch, network.params.dtype.name))


def test_every_activation_is_known_to_torch_or_not():
    assert set(ACTIVATIONS) <= set(TORCH_ACTIVATIONS) | NOT_IN_TORCH


TORCH_MODELS = [
    *[("tanh", output, "squared_error") for output in ELEMENTWISE if output in TORCH_ACTIVATIONS],
    *[(activation, None, "squared_error") for activation in ELEMENTWISE if activation in TORCH_ACTIVATIONS],
    *[("relu", None, loss) for loss, row in LOSSES.items() if row.outputs[0] in TORCH_ACTIVATIONS],
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("activation", "output", "loss"), TORCH_MODELS)
def test_torch_predicts_what_the_network_does(activation, output, loss, dtype, X, by_reference):
    torch = pytest.importorskip("torch")
    sizes = (3, 5, 4, OUTPUTS.get(loss, 2))
    network = with_biases(sizes, activation=activation, output=output, loss=loss, dtype=dtype)
    module = sequential(torch, network)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in to_torch(network).items()})
    X = X.astype(dtype)

    expected = network.predict(X)
    actual = module(torch.from_numpy(X)).detach().numpy()

    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_network_of_a_module_predicts_what_it_does(dtype, bias, X, by_reference):
    torch = pytest.importorskip("torch")
    layers = [torch.nn.Linear(inputs, outputs, bias=bias) for inputs, outputs in [(3, 6), (6, 4), (4, 2)]]
    module = torch.nn.Sequential(
        layers[0], torch.nn.SiLU() if "silu" in ACTIVATIONS else torch.nn.ReLU(), torch.nn.Dropout(), layers[1],
        torch.nn.Tanh(), layers[2], torch.nn.Softmax(dim=1),
    )  # fmt: skip
    module = module.to(getattr(torch, dtype)).eval()
    activation = ["silu" if "silu" in ACTIVATIONS else "relu", "tanh"]
    network = from_torch(module.state_dict(keep_vars=True), activation=activation, loss="cross_entropy")
    X = X.astype(dtype)

    expected = module(torch.from_numpy(X)).detach().numpy()
    actual = network.predict(X)

    assert (network.params.dtype, network.bias) == (dtype, bias)
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_name_of_five_thousand_digits_is_refused():
    with pytest.raises(ParameterError, match="'state_dict' must have names such as"):
        from_torch({f"{'1' * 5000}.weight": [[1.0]]})
