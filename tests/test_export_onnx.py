"""A model of ONNX predicts what fastbp does, in onnxruntime and in the reference evaluator of onnx."""

import sys

import numpy as np
import pytest
from helpers import loss_settings, outputs_for

from fastbp import onnx_graph, reference
from fastbp.checks import DataError, ParameterError, ParameterTypeError
from fastbp.choices import ACTIVATIONS, ELEMENTWISE, LOSSES
from fastbp.export import to_onnx
from fastbp.network import Network

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
evaluation = pytest.importorskip("onnx.reference")

DTYPES = ["float32", "float64"]
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}  # of the largest number of an output, or of 1
ROWS = [1, 7, 1000]


@pytest.fixture(autouse=True)
def by_reference(monkeypatch):
    """Predictions by NumPy: nothing here needs the kernels to be compiled."""
    monkeypatch.setattr("fastbp.network.engine", lambda backend: reference)


def network_of(sizes, **settings):
    """A network whose biases are not zero."""
    network = Network(sizes, seed=1, **settings)
    for biases in network.biases:
        biases[:] = np.linspace(-0.3, 0.4, biases.size)
    return network


def run_onnxruntime(path, X):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, {"X": X}), strict=True))


def run_reference(path, X):
    session = evaluation.ReferenceEvaluator(str(path))
    careless = b"Sigmoid" in path.read_bytes()  # its own computes what it does not return
    with np.errstate(**dict.fromkeys(("over", "invalid"), "ignore" if careless else "warn")):
        return dict(zip(session.output_names, session.run(None, {"X": X}), strict=True))


RUNTIMES = [run_onnxruntime, run_reference]


def saved(tmp_path, network, **settings):
    """The path of the model, which its own library finds nothing wrong with."""
    path = tmp_path / "network.onnx"
    to_onnx(network, path, **settings)
    onnx.checker.check_model(path, full_check=True)
    return path


def rows_of(n, inputs, dtype, rng):
    return (3 * rng.normal(size=(n, inputs))).astype(dtype)


def assert_close(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    scale = np.maximum(np.abs(expected).max(axis=0), 1)
    assert (np.abs(actual - expected) <= TOLERANCE[expected.dtype.name] * scale).all()


# --- activations, losses, shapes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ELEMENTWISE)
def test_model_predicts_what_the_network_does(activation, dtype, run, rng, tmp_path):
    network = network_of((3, 8, 5, 2), activation=(activation, "tanh"), output=activation, dtype=dtype)
    path = saved(tmp_path, network)

    for n in ROWS:
        X = rows_of(n, 3, dtype, rng)
        results = run(path, X)

        assert results.keys() == {"predictions"}
        assert_close(results["predictions"], network.predict(X))


@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ELEMENTWISE)
def test_activation_neither_overflows_nor_loses_digits(activation, dtype, run, tmp_path):
    network = Network((1, 1), output=activation, init="zeros", dtype=dtype)
    network.weights[0][:] = 1
    sizes = np.concatenate([[0], 10.0 ** np.arange(-30, 6)])
    X = np.concatenate([sizes, -sizes])[:, None].astype(dtype)
    with np.errstate(over="ignore"):
        expected = network.predict(np.clip(X, *onnx_graph.EXP_RANGE[dtype]) if activation == "exponential" else X)
    actual = run(saved(tmp_path, network), X)["predictions"]

    assert np.isfinite(actual).all()
    np.testing.assert_allclose(actual, expected, rtol=10 * TOLERANCE[dtype], atol=TOLERANCE[dtype] / 2)


def test_every_activation_has_a_form():
    assert onnx_graph.FORMS.keys() == ACTIVATIONS.keys()


def test_activation_without_a_form_is_refused(tmp_path, monkeypatch):
    monkeypatch.delitem(onnx_graph.FORMS, "silu")

    with pytest.raises(ParameterError, match=r"'network\.activations\[1\]' must be one of .* for ONNX, got 'silu'"):
        to_onnx(Network((2, 3, 3, 1), activation=("relu", "silu")), tmp_path / "network.onnx")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(3, 1), (1, 1, 1), (2, 1, 4, 3)], ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_model_of_any_loss_and_shape_predicts_what_the_network_does(loss, sizes, bias, run, rng, tmp_path):
    outputs = max(sizes[-1], 2) if loss == "cross_entropy" else outputs_for(loss, sizes[-1])
    network = network_of((*sizes[:-1], outputs), bias=bias, **loss_settings(loss, outputs))
    X = rows_of(7, sizes[0], "float64", rng)

    expected = network.predict(X)
    results = run(saved(tmp_path, network), X)
    actual = results.get("predictions", results.get("probabilities"))

    if loss == "binary_cross_entropy" and outputs == 1:
        expected = np.hstack([1 - expected, expected])
    assert_close(actual, expected)


# --- classes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [None, [7, -2, 2**62], ["a", "bä", "c d"]], ids=str)
@pytest.mark.parametrize("n", ROWS)
def test_model_tells_the_likeliest_class(n, classes, dtype, run, rng, tmp_path):
    network = network_of((4, 6, 3), loss="cross_entropy", dtype=dtype)
    X = rows_of(n, 4, dtype, rng)

    probabilities = network.predict(X)
    expected = np.array(classes or [0, 1, 2])[probabilities.argmax(axis=1)]
    actual = run(saved(tmp_path, network, classes=classes), X)

    assert_close(actual["probabilities"], probabilities)
    assert actual["label"].tolist() == expected.tolist()
    assert n == 1 or len(set(actual["label"].tolist())) > 1


@pytest.mark.parametrize("run", RUNTIMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [None, ["no", "yes"], (np.True_, np.False_)], ids=str)
def test_model_tells_one_of_two_classes(classes, dtype, run, rng, tmp_path):
    network = network_of((4, 6, 1), loss="binary_cross_entropy", dtype=dtype)
    X = rows_of(1000, 4, dtype, rng)

    p = network.predict(X)
    expected = [(classes or [0, 1])[k] for k in (p[:, 0] > 0.5).astype(int)]
    actual = run(saved(tmp_path, network, classes=classes), X)

    assert_close(actual["probabilities"], np.hstack([1 - p, p]))
    assert actual["label"].tolist() == expected
    assert len(set(expected)) == 2


@pytest.mark.parametrize("run", RUNTIMES)
def test_probability_of_a_half_is_the_first_class(run, tmp_path):
    path = saved(tmp_path, Network((1, 1), loss="binary_cross_entropy", init="zeros"), classes=["no", "yes"])

    assert run(path, np.ones((1, 1)))["label"].tolist() == ["no"]


@pytest.mark.parametrize("run", RUNTIMES)
def test_model_tells_each_of_several_labels(run, rng, tmp_path):
    network = network_of((4, 6, 3), loss="binary_cross_entropy")
    X = rows_of(100, 4, "float64", rng)

    expected = network.predict(X)
    actual = run(saved(tmp_path, network), X)

    assert_close(actual["probabilities"], expected)
    assert actual["label"].tolist() == (expected > 0.5).astype(int).tolist()


# --- estimators and scalers -----------------------------------------------------------------------------------------

TARGETS = {
    "names": ("MLPClassifier", np.array(["a", "b", "c"])[np.arange(30) % 3]),
    "numbers": ("MLPClassifier", np.array([5, 9])[np.arange(30) % 2]),
    "several labels": ("MLPClassifier", np.eye(3, dtype=int)[np.arange(30) % 3]),
    "one value": ("MLPRegressor", np.linspace(0, 1, 30)),
    "values": ("MLPRegressor", np.linspace(0, 1, 60).reshape(30, 2)),
}


def estimators(kind):
    """Ours and scikit-learn's, in short trainings that may end anywhere."""
    own, theirs = pytest.importorskip("fastbp.sklearn"), pytest.importorskip("sklearn.neural_network")
    settings = {"hidden_layer_sizes": (5,), "tol": 1e9, "n_iter_no_change": 1, "random_state": 0}
    return [getattr(own, kind)(**settings), getattr(theirs, kind)(**settings)]


@pytest.mark.parametrize("scaled", [False, True], ids=["alone", "in a pipeline"])
@pytest.mark.parametrize("which", [0, 1], ids=["fastbp", "scikit-learn"])
@pytest.mark.parametrize("target", TARGETS)
def test_model_of_an_estimator_predicts_what_it_does(target, which, scaled, rng, tmp_path, monkeypatch):
    monkeypatch.undo()  # trainings are the kernels'
    kind, y = TARGETS[target]
    X = 5 + 3 * rng.normal(size=(30, 4))
    estimator = estimators(kind)[which]
    if scaled:
        pipeline, preprocessing = pytest.importorskip("sklearn.pipeline"), pytest.importorskip("sklearn.preprocessing")
        estimator = pipeline.make_pipeline(preprocessing.StandardScaler(), estimator)
    estimator.fit(X, y)
    actual = run_onnxruntime(saved(tmp_path, estimator), X)

    if kind == "MLPRegressor":
        assert_close(actual["predictions"], estimator.predict(X).reshape(30, -1))
    else:
        assert_close(actual["probabilities"], estimator.predict_proba(X))
        assert actual["label"].tolist() == estimator.predict(X).tolist()


@pytest.mark.parametrize("dtype", DTYPES)
def test_scaler_comes_first(dtype, rng, tmp_path):
    network = network_of((3, 5, 1), dtype=dtype)
    X = rows_of(100, 3, dtype, rng)
    mean, scale = [1, -2, 3], [0.1, 2, 30]

    expected = network.predict((X - np.array(mean, dtype)) / np.array(scale, dtype))
    actual = run_onnxruntime(saved(tmp_path, network, scaler=(mean, scale)), X)["predictions"]

    assert_close(actual, expected)


@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize("with_std", [True, False])
def test_scaler_may_leave_out_mean_or_scale(with_std, with_mean, rng, tmp_path):
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    network, X = network_of((3, 5, 1)), 5 + 3 * rng.normal(size=(20, 3))
    scaler = preprocessing.StandardScaler(with_mean=with_mean, with_std=with_std).fit(X)

    expected = network.predict(scaler.transform(X))
    actual = run_onnxruntime(saved(tmp_path, network, scaler=scaler), X)["predictions"]

    assert_close(actual, expected)


# --- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_model_says_what_it_is(dtype, tmp_path):
    model = onnx.load(saved(tmp_path, network_of((3, 5, 2), dtype=dtype)))
    (x,) = model.graph.input

    assert (model.ir_version, [(entry.domain, entry.version) for entry in model.opset_import]) == (8, [("", 17)])
    assert (model.producer_name, x.name) == ("fastbp", "X")
    assert [dimension.dim_param or dimension.dim_value for dimension in x.type.tensor_type.shape.dim] == ["rows", 3]
    assert {constant.data_type for constant in model.graph.initializer} == {
        onnx.TensorProto.FLOAT if dtype == "float32" else onnx.TensorProto.DOUBLE
    }


def test_parameters_are_in_the_file_bit_by_bit(tmp_path):
    network = network_of((2, 2))
    network.params[:] = [-0.0, 5e-324, 1.7976931348623157e308, np.pi, -1e-310, 0.1]
    model = onnx.load(saved(tmp_path, network))

    actual = b"".join(onnx.numpy_helper.to_array(constant).tobytes() for constant in model.graph.initializer)
    assert actual == network.params.tobytes()


def test_same_network_gives_the_same_file(tmp_path):
    files = [saved(tmp_path, network_of((3, 5, 2), activation="gelu")).read_bytes() for _ in range(2)]

    assert files[0] == files[1]


def test_network_too_large_for_the_format_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "MOST_BYTES", 100)

    with pytest.raises(ParameterError, match="'network' must have parameters of at most 100 bytes for ONNX, got 200"):
        to_onnx(Network((4, 4, 1), init="zeros"), tmp_path / "network.onnx")


# --- what is refused ------------------------------------------------------------------------------------------------

OF_NUMBERS, OF_TWO, OF_THREE = (
    Network((2, 1)),
    Network((2, 1), loss="binary_cross_entropy"),
    Network((2, 3), loss="cross_entropy"),
)
OF_LABELS = Network((2, 3), loss="binary_cross_entropy")
REFUSED = {
    "no network": (None, {}, ParameterTypeError, "'network' must be a Network, a fitted MLP.*, got None"),
    "a class": (Network, {}, ParameterTypeError, "got the class Network"),
    "one class": (Network((2, 1), loss="cross_entropy"), {}, ParameterError, "at least 2 outputs .*, got 1"),
    "classes of numbers": (OF_NUMBERS, {"classes": [0, 1]}, ParameterError, "'classes' must be left out with the loss"),
    "classes of labels": (OF_LABELS, {"classes": [0, 1, 2]}, ParameterError, "left out where a row has several"),
    "too few classes": (OF_THREE, {"classes": ["a", "b"]}, ParameterError, "must be 3 different labels, got 2"),
    "no classes": (OF_THREE, {"classes": []}, ParameterError, "must be 3 different labels, got 0"),
    "too many classes": (OF_TWO, {"classes": ["a", "b", "c"]}, ParameterError, "must be 2 different labels, got 3"),
    "equal classes": (OF_TWO, {"classes": ["a", "a"]}, ParameterError, "got 2, of which 1 differ"),
    "mixed classes": (OF_TWO, {"classes": ["a", 1]}, ParameterTypeError, "must be integers or strings, all of them"),
    "float classes": (OF_TWO, {"classes": [0.0, 1.0]}, ParameterTypeError, "must be integers or strings"),
    "nested classes": (OF_TWO, {"classes": [[0], [1, 2]]}, ParameterTypeError, "must be integers or strings"),
    "classes in two dimensions": (OF_TWO, {"classes": [[0], [1]]}, ParameterTypeError, "a sequence of labels"),
    "a name for classes": (OF_TWO, {"classes": "ab"}, ParameterTypeError, "must be a sequence of labels, got 'ab'"),
    "large classes": (OF_TWO, {"classes": [0, 2**63]}, ParameterError, "must be integers of 64 bits"),
    "NUL": (OF_TWO, {"classes": ["a", "b\0"]}, ParameterError, "must not contain the character NUL"),
    "a surrogate": (OF_TWO, {"classes": ["a", "\udc80"]}, ParameterError, "half a surrogate pair"),
    "a number as scaler": (OF_TWO, {"scaler": 2.0}, ParameterTypeError, "must be a StandardScaler or a pair"),
    "one array as scaler": (OF_TWO, {"scaler": ([0, 0],)}, ParameterError, r"must be a pair \(mean, scale\)"),
    "mean of another shape": (OF_TWO, {"scaler": ([0], [1, 1])}, DataError, r"'scaler\[0\]' must have shape \(2,\)"),
    "scale in two dimensions": (OF_TWO, {"scaler": ([0, 0], [[1, 1]])}, DataError, r"'scaler\[1\]' must be 1-D"),
    "scale of 0": (OF_TWO, {"scaler": ([0, 0], [1, 0])}, DataError, r"'scaler\[1\]' must be above 0"),
    "scale below 0": (OF_TWO, {"scaler": ([0, 0], [1, -1])}, DataError, r"'scaler\[1\]' must be above 0"),
    "subnormal scale": (OF_TWO, {"scaler": ([0, 0], [1, 1e-310])}, DataError, r"normal numbers in float64"),
    "mean of NaN": (OF_TWO, {"scaler": ([0, np.nan], [1, 1])}, DataError, r"'scaler\[0\]' must be finite"),
    "mean of strings": (OF_TWO, {"scaler": (["a", "b"], [1, 1])}, DataError, r"'scaler\[0\]' must hold real numbers"),
    "mean beyond the precision": (
        Network((2, 1), dtype="float32"), {"scaler": ([0, 1e300], [1, 1])}, DataError, "must not overflow float32",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("network", "settings", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_argument_is_refused_and_the_file_stays(network, settings, error, message, tmp_path):
    path = tmp_path / "network.onnx"
    path.write_bytes(b"before")

    with pytest.raises(error, match=message):
        to_onnx(network, path, **settings)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("network.onnx", b"before")]


def test_network_with_parameters_that_are_not_finite_is_refused(tmp_path):
    network = Network((2, 1))
    network.params[1] = np.inf

    with pytest.raises(DataError, match=r"'network\.params' must be finite"):
        to_onnx(network, tmp_path / "network.onnx")


@pytest.mark.parametrize(
    ("path", "error"), [("a\0b", ParameterError), (3, ParameterTypeError), ("missing/network.onnx", OSError)]
)
def test_wrong_path_is_refused(path, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(error):
        to_onnx(Network((2, 1)), path)
    assert not [*tmp_path.iterdir()]


def pipelines():
    """What is no pipeline of a scaler and a fitted perceptron."""
    compose, linear = pytest.importorskip("sklearn.pipeline"), pytest.importorskip("sklearn.linear_model")
    processing, own = pytest.importorskip("sklearn.preprocessing"), pytest.importorskip("fastbp.sklearn")
    neural_network = pytest.importorskip("sklearn.neural_network")
    X, y = np.arange(60.0).reshape(30, 2), np.linspace(0, 1, 30)
    fitted = own.MLPRegressor(hidden_layer_sizes=(2,), tol=1e9, n_iter_no_change=1).fit(X, y)
    scaler = processing.StandardScaler().fit(X)
    return {
        "Pipeline of MinMaxScaler, MLPRegressor": compose.make_pipeline(processing.MinMaxScaler(), fitted),
        "Pipeline of StandardScaler, StandardScaler, MLPRegressor": compose.make_pipeline(scaler, scaler, fitted),
        "Pipeline of StandardScaler": compose.make_pipeline(scaler),
        "Pipeline of StandardScaler, LinearRegression": compose.make_pipeline(scaler, linear.LinearRegression()),
        "Pipeline of StandardScaler, MLPClassifier": compose.make_pipeline(scaler, neural_network.MLPClassifier()),
        "MLPRegressor": own.MLPRegressor(),
        "LinearRegression": linear.LinearRegression().fit(X, y),
    }


def test_estimator_that_is_none_of_those_is_refused(tmp_path, monkeypatch):
    monkeypatch.undo()
    for given, estimator in pipelines().items():
        with pytest.raises(ParameterTypeError, match=rf"'network' must be a Network, .*, got (a )?{given}"):
            to_onnx(estimator, tmp_path / "network.onnx")


def test_scaler_that_is_not_fitted_or_one_too_many_is_refused(tmp_path, monkeypatch):
    monkeypatch.undo()
    compose, processing = pytest.importorskip("sklearn.pipeline"), pytest.importorskip("sklearn.preprocessing")
    own = pytest.importorskip("fastbp.sklearn")
    fitted = own.MLPRegressor(hidden_layer_sizes=(2,), tol=1e9, n_iter_no_change=1).fit(
        np.eye(30, 2), np.linspace(0, 1, 30)
    )
    scaler = processing.StandardScaler()

    with pytest.raises(ParameterError, match="'scaler' must be fitted, got one without 'scale_'"):
        to_onnx(compose.make_pipeline(scaler, fitted), tmp_path / "network.onnx")
    with pytest.raises(ParameterError, match="'scaler' must be left out where the Pipeline has one"):
        to_onnx(compose.make_pipeline(scaler, fitted), tmp_path / "network.onnx", scaler=([0, 0], [1, 1]))


def test_missing_onnx_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)

    with pytest.raises(ImportError, match=r'to_onnx needs onnx: pip install "fastbp\[onnx\]"'):
        to_onnx(Network((1, 1)), tmp_path / "network.onnx")


def test_missing_sklearn_leaves_networks(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)

    to_onnx(Network((1, 1)), tmp_path / "network.onnx")
    with pytest.raises(ParameterTypeError, match="'network' must be a Network"):
        to_onnx("MLPClassifier", tmp_path / "network.onnx")
