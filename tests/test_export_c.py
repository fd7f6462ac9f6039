"""The C file compiles without a warning, predicts what fastbp does, and says so itself."""

import ctypes
import itertools
import platform
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import EPSILON, ROOT, TINY

from fastbp import c_code, reference
from fastbp.checks import DataError, ParameterError, ParameterTypeError
from fastbp.choices import ACTIVATIONS, ELEMENTWISE
from fastbp.export import C_KEYWORDS, to_c
from fastbp.network import Network

DTYPES = ["float32", "float64"]
COMPILERS = [name for name in ("gcc", "clang") if shutil.which(name)]
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic", "-O2"]
SANITIZED = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
WITHOUT_LIBRARY = ["identity", "relu", "leaky_relu"]  # activations whose bits no C library decides


@pytest.fixture(params=COMPILERS or [None])
def compiler(request):
    if request.param is None:
        pytest.skip("neither gcc nor clang is installed")
    return request.param


def fusing():
    """What a compiler must be told to fuse multiply-adds; None where the machine does not."""
    if platform.machine() in ("aarch64", "arm64"):
        return []
    try:
        return ["-mfma"] if " fma " in Path("/proc/cpuinfo").read_text(encoding="utf-8") else None
    except OSError:
        return None


@pytest.fixture
def by_reference(monkeypatch):
    """Predictions by NumPy, where bits do not matter and kernels would have to be compiled."""
    monkeypatch.setattr("fastbp.network.engine", lambda backend: reference)


def network_of(sizes, **settings):
    """A network whose biases are not zero."""
    network = Network(sizes, **{"seed": 1, **settings})
    for biases in network.biases:
        biases[:] = np.linspace(-0.3, 0.4, biases.size)
    return network


def run(*command):
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Library:
    """A compiled model, called row by row through ctypes."""

    def __init__(self, compiler, path, name="net", flags=()):
        self.shared = path.with_suffix(".so")
        run(compiler, *STRICT, *flags, "-shared", "-fPIC", path, "-o", self.shared, "-lm")
        text = path.read_text(encoding="ascii")
        self.functions, self.name = ctypes.CDLL(str(self.shared)), name
        macros = dict(re.findall(rf"^#define {name.upper()}_([A-Z]+) (\d+)$", text, re.MULTILINE))
        self.inputs, self.outputs, self.scratch = (int(macros[key]) for key in ("INPUTS", "OUTPUTS", "SCRATCH"))
        self.classes = int(macros.get("CLASSES", 0))
        self.dtype = "float32" if "const float *x" in text else "float64"

    def __call__(self, function, X, shape=(), dtype=None):
        """Results of a function for each row: an array it writes, or what it returns."""
        scratch, results = np.full(self.scratch, np.nan, self.dtype), []
        call = self.functions[f"{self.name}_{function}"]
        for row in np.ascontiguousarray(X, self.dtype):
            result = np.zeros(shape, dtype or self.dtype)
            pointers = [row.ctypes, *([result.ctypes] if shape else []), scratch.ctypes]
            returned = call(*[ctypes.c_void_p(pointer.data) for pointer in pointers])
            results.append(result if shape else returned)
        return np.array(results)

    def predict(self, X):
        return self("predict", X, (self.outputs,))


def built(compiler, tmp_path, network, flags=(), **settings):
    path = tmp_path / "network.c"
    to_c(network, path, **{"name": "net", **settings})
    return Library(compiler, path, settings.get("name", "net"), flags)


def units_of(network, X):
    return np.array([c_code.units_of(network, row) for row in X.astype(network.params.dtype)])


def rows_of(n, inputs, dtype, rng):
    return (2 * rng.normal(size=(n, inputs))).astype(dtype)


# --- agreement ------------------------------------------------------------------------------------------------------


def test_every_activation_has_a_form():
    assert c_code.FORMS.keys() == ACTIVATIONS.keys()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", WITHOUT_LIBRARY)
def test_fused_sums_have_the_bits_of_the_kernels(activation, dtype, compiler, rng, tmp_path):
    if fusing() is None:
        pytest.skip("the machine fuses no multiply-adds")
    network = network_of((5, 40, 13, 3), activation=activation, output=activation, dtype=dtype)
    X, mean, scale = rows_of(100, 5, dtype, rng), np.arange(5, dtype=dtype) / 3, np.linspace(0.3, 7, 5, dtype=dtype)

    expected = network.predict((X - mean) / scale)
    actual = built(compiler, tmp_path, network, fusing(), scaler=(mean, scale)).predict(X)

    assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ELEMENTWISE)
def test_activation_agrees_to_four_units_in_its_last_place(activation, dtype, compiler, tmp_path):
    network = Network((1, 1), output=activation, init="zeros", dtype=dtype)
    network.weights[0][:] = 1
    sizes = np.concatenate([[0], np.geomspace(1e-30, 1e5, 500), np.linspace(0.01, 100, 500)])
    X = np.concatenate([sizes, -sizes])[:, None].astype(dtype)

    expected = network.predict(X)
    actual = built(compiler, tmp_path, network).predict(X)
    # gelu is z (0.5 + 0.5 erf), of which little remains where z is below zero
    units = EPSILON[dtype] * np.maximum(abs(X / 2 if activation == "gelu" else expected), TINY[dtype])

    assert np.isfinite(actual).all()
    assert (abs(actual - expected) <= 4 * units).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_network_agrees_to_four_units_in_the_last_place(activation, dtype, compiler, rng, tmp_path):
    settings = {"loss": "cross_entropy"} if activation == "softmax" else {"activation": activation}
    network = network_of((5, 40, 13, 3), output=activation, dtype=dtype, **settings)
    if activation == "exponential":
        network.params[:] *= 0.2  # three of them would overflow
    X = rows_of(100, 5, dtype, rng)

    expected, units = network.predict(X), units_of(network, X)
    actual = built(compiler, tmp_path, network).predict(X)

    assert (abs(actual.astype(np.float64) - expected) <= 4 * units).all()
    assert (units <= 100 * EPSILON[dtype] * np.maximum(abs(expected), 1)).all()  # a bound that says something


@pytest.mark.parametrize("init", ["uniform", "glorot_uniform"])
def test_wide_network_agrees_to_four_units_in_the_last_place(init, compiler, rng, tmp_path):
    network = Network((400, 200, 2), activation="relu", init=init, seed=0)
    X = abs(rows_of(10, 400, "float64", rng))  # with uniform weights nothing cancels

    expected, units = network.predict(X), units_of(network, X)
    actual = built(compiler, tmp_path, network).predict(X)

    assert (abs(actual - expected) <= 4 * units).all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(3, 1), (1, 1, 1), (2, 1, 4, 3), (1, 7, 1), (4, *[3, 2] * 10, 2)], ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_network_of_any_shape_agrees(scaled, sizes, bias, compiler, rng, tmp_path):
    network, X = network_of(sizes, bias=bias), rows_of(20, sizes[0], "float64", rng)
    mean, scale = np.linspace(-1, 1, sizes[0]), np.linspace(0.3, 30, sizes[0])
    Z = (X - mean) / scale if scaled else X

    expected, units = network.predict(Z), units_of(network, Z)
    actual = built(compiler, tmp_path, network, scaler=(mean, scale) if scaled else None).predict(X)

    assert (abs(actual - expected) <= 4 * units).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_of_any_size_are_computed_with(dtype, compiler, tmp_path):
    largest = float(np.finfo(dtype).max)
    network = Network((2, 2), init="zeros", dtype=dtype)
    network.params[:] = [largest, -0.0, -1e-30, largest, 0.5, -0.0]

    expected = network.predict(X := np.array([[0.75, 1e-30], [-0.0, -0.5]]))
    actual = built(compiler, tmp_path, network).predict(X)

    np.testing.assert_allclose(actual, expected, rtol=4 * EPSILON[dtype])


# --- classes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [(), (6,), (6, 7)], ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_file_tells_the_likeliest_class(scaled, hidden, dtype, compiler, rng, tmp_path):
    network = network_of((4, *hidden, 3), loss="cross_entropy", dtype=dtype)
    X = rows_of(50, 4, dtype, rng)

    expected = network.predict(X)
    library = built(compiler, tmp_path, network, scaler=(np.zeros(4), np.ones(4)) if scaled else None)
    actual = library("probabilities", X, (3,))

    np.testing.assert_allclose(actual, expected, rtol=100 * EPSILON[dtype])
    assert library("class", X).tolist() == expected.argmax(axis=1).tolist()
    assert library.classes == 3


@pytest.mark.parametrize("hidden", [(), (6,)], ids=str)
def test_file_tells_one_of_two_classes(hidden, compiler, rng, tmp_path):
    network = network_of((4, *hidden, 1), loss="binary_cross_entropy")
    X = rows_of(50, 4, "float64", rng)

    p = network.predict(X)
    library = built(compiler, tmp_path, network)
    actual = library("probabilities", X, (2,))

    np.testing.assert_allclose(actual, np.hstack([1 - p, p]), rtol=100 * EPSILON["float64"])
    assert (actual[:, 0] == 1 - actual[:, 1]).all()
    assert library("class", X).tolist() == (p[:, 0] > 0.5).astype(int).tolist()
    assert library.classes == 2


def test_probability_of_a_half_is_the_first_class(compiler, tmp_path):
    library = built(compiler, tmp_path, Network((1, 1), loss="binary_cross_entropy", init="zeros"))

    assert library("class", np.ones((1, 1))).tolist() == [0]


@pytest.mark.parametrize("hidden", [(), (6,)], ids=str)
def test_file_tells_each_of_several_labels(hidden, compiler, rng, tmp_path):
    network = network_of((4, *hidden, 3), loss="binary_cross_entropy")
    X = rows_of(50, 4, "float64", rng)

    expected = network.predict(X)
    library = built(compiler, tmp_path, network)

    np.testing.assert_allclose(library("probabilities", X, (3,)), expected, rtol=100 * EPSILON["float64"])
    assert library("labels", X, (3,), np.intc).tolist() == (expected > 0.5).astype(int).tolist()


LABELS = ["a", 'say "hi" \\', "what??/", "ä\n1", "*/"]


@pytest.mark.parametrize("classes", [LABELS, [0, -1, 2**63 - 1, -(2**63), 7]], ids=["strings", "integers"])
def test_labels_are_in_the_file(classes, compiler, tmp_path):
    library = built(compiler, tmp_path, Network((1, 5), loss="cross_entropy", seed=0), classes=classes)
    kind = ctypes.c_char_p if classes is LABELS else ctypes.c_longlong

    actual = [*(kind * 5).in_dll(library.functions, "net_classes")]
    assert [label.decode() if isinstance(label, bytes) else label for label in actual] == classes


# --- estimators -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_file_of_a_pipeline_predicts_what_it_does(dtype, compiler, rng, tmp_path):
    own, pipeline = pytest.importorskip("fastbp.sklearn"), pytest.importorskip("sklearn.pipeline")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    X = (5 + 3 * rng.normal(size=(60, 4))).astype(dtype)
    y = np.array(["a", "b", "c"])[np.digitize(X[:, 0], [4, 6])]
    perceptron = own.MLPClassifier((5,), solver="sgd", max_iter=50, tol=0, n_iter_no_change=50, random_state=0)
    model = pipeline.make_pipeline(preprocessing.StandardScaler(), perceptron)
    with pytest.warns(match="before it converged"):
        model.fit(X, y)
    library = built(compiler, tmp_path, model, name="Iris2")

    actual = [*(ctypes.c_char_p * 3).in_dll(library.functions, "Iris2_classes")]
    np.testing.assert_allclose(library("probabilities", X, (3,)), model.predict_proba(X), rtol=200 * EPSILON[dtype])
    assert [actual[number].decode() for number in library("class", X)] == model.predict(X).tolist()
    assert library.dtype == dtype


@pytest.mark.parametrize(("given", "asked"), [("float64", "float32"), ("float32", np.float64)], ids=str)
def test_parameters_are_rounded_to_the_precision_that_is_asked_for(given, asked, compiler, rng, tmp_path):
    network = network_of((3, 5, 2), activation=("leaky_relu",), loss="huber", huber_delta=2, dtype=given)
    before, X = network.params.tobytes(), rows_of(20, 3, "float32", rng)
    other = network_of((3, 5, 2), activation=("leaky_relu",), dtype=asked)
    other.params = network.params.astype(asked)

    expected = other.predict(X)
    library = built(compiler, tmp_path, network, dtype=asked)
    actual = library.predict(X)

    assert library.dtype == np.dtype(asked)
    assert (abs(actual.astype(float) - expected) <= 4 * units_of(other, X)).all()
    assert network.params.tobytes() == before


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_lines_of_the_readme_make_a_file_that_predicts_what_the_model_does(compiler, tmp_path, monkeypatch):
    datasets = pytest.importorskip("sklearn.datasets")
    (example,) = re.findall(r"^```python\n((?:>>> .*\n)*>>> .*to_c\(.*\n)", README, re.MULTILINE)
    (other,) = re.findall(r"^```c\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    X, _ = datasets.load_iris(return_X_y=True)
    monkeypatch.chdir(tmp_path)
    lines, names = example.splitlines(), {}
    exec("\n".join(line.removeprefix(">>> ") for line in lines), names)
    (tmp_path / "other.c").write_text(other, encoding="ascii")
    run(compiler, *STRICT, "-c", tmp_path / "other.c", "-o", tmp_path / "other.o")
    run(compiler, *STRICT, "-DIRIS_SELFTEST", tmp_path / "iris.c", "-o", tmp_path / "program", "-lm")

    assert len(lines) == 6
    assert run(tmp_path / "program").startswith("0 of 15 predictions are off")
    assert Library(compiler, tmp_path / "iris.c", "iris")("class", X).tolist() == names["model"].predict(X).tolist()


# --- the file -------------------------------------------------------------------------------------------------------

MODELS = {
    "numbers": ({"sizes": (3, 9, 7, 2), "activation": ("tanh", "gelu"), "output": "softplus"}, {}),
    "numbers without biases": ({"sizes": (3, 9, 2), "activation": "elu", "output": "exponential", "bias": False}, {}),
    "one layer": ({"sizes": (3, 1)}, {}),
    "classes": ({"sizes": (4, 6, 2), "loss": "cross_entropy"}, {"classes": ["a", "b"], "scaler": ([1] * 4, [2] * 4)}),
    "two classes": ({"sizes": (4, 6, 1), "activation": "silu", "loss": "binary_cross_entropy"}, {"classes": [3, 4]}),
    "labels": ({"sizes": (4, 2), "loss": "binary_cross_entropy"}, {"scaler": ([1] * 4, [2] * 4)}),
}  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("settings", "arguments"), MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("flags", [[], SANITIZED], ids=["plain", "sanitized"])
def test_file_checks_itself(flags, settings, arguments, dtype, compiler, tmp_path, by_reference):
    if flags and not can_sanitize(compiler, tmp_path):
        pytest.skip(f"{compiler} has no sanitizers")
    path, program = tmp_path / "network.c", tmp_path / "program"
    to_c(network_of(dtype=dtype, **settings), path, name="net", **arguments)
    run(compiler, *STRICT, *flags, "-DNET_SELFTEST", path, "-o", program, "-lm")

    expected = f"0 of {5 * settings['sizes'][-1]} predictions are off by more than 4 units in the last place"
    assert run(program).startswith(expected)


def can_sanitize(compiler, tmp_path):
    (tmp_path / "empty.c").write_text("int main(void) { return 0; }\n", encoding="ascii")
    command = [compiler, *SANITIZED, tmp_path / "empty.c", "-o", tmp_path / "empty"]
    return subprocess.run([*map(str, command)], capture_output=True, check=False).returncode == 0


def every_function(settings, arguments):
    """A program that calls all that a file declares, with arrays that hold exactly what they must."""
    calls = ["net_predict(x, y, scratch);"]
    if "loss" in settings:
        calls += ["net_probabilities(x, p, scratch);"]
        labels = settings["loss"] == "binary_cross_entropy" and settings["sizes"][-1] > 1
        calls += ["net_labels(x, labels, scratch);" if labels else "labels[0] = net_class(x, scratch);"]
    if "classes" in arguments:
        calls += ["if (net_classes[0] == net_classes[1]) return 1;"]
    if "loss" not in settings:
        calls += ["(void)p, (void)labels;"]
    return (
        '#define NET_DECLARATIONS\n#include "network.c"\n#ifndef NET_CLASSES\n#define NET_CLASSES 1\n#endif\n'
        "static double x[NET_INPUTS], y[NET_OUTPUTS], p[NET_CLASSES], scratch[NET_SCRATCH];\n"
        f"static int labels[NET_CLASSES];\nint main(void)\n{{\n{''.join(calls)}\nreturn 0;\n}}\n"
    )


@pytest.mark.parametrize("language", ["c", "c++"])
@pytest.mark.parametrize(("settings", "arguments"), MODELS.values(), ids=MODELS)
def test_other_files_see_the_declarations(settings, arguments, language, compiler, tmp_path, by_reference):
    other = {"gcc": "g++", "clang": "clang++"}[compiler] if language == "c++" else compiler
    if not shutil.which(other):
        pytest.skip(f"{other} is not installed")
    path, program = tmp_path / "network.c", tmp_path / "program"
    to_c(network_of(**settings), path, name="net", **arguments)
    ending, standard = (".c", "-std=c99") if language == "c" else (".cpp", "-std=c++11")
    (tmp_path / f"main{ending}").write_text(every_function(settings, arguments), encoding="ascii")
    flags = SANITIZED if can_sanitize(compiler, tmp_path) else []
    run(compiler, *STRICT, *flags, "-c", path, "-o", tmp_path / "network.o")
    run(other, standard, *STRICT[1:], *flags, tmp_path / f"main{ending}", tmp_path / "network.o", "-o", program, "-lm")

    run(program)


def test_self_test_finds_a_wrong_parameter(compiler, tmp_path, by_reference):
    path, program = tmp_path / "network.c", tmp_path / "program"
    network = network_of((3, 5, 1), dtype="float32", activation="tanh")
    network.weights[0][1, 2] = 0.75
    to_c(network, path, name="net")
    text = path.read_text(encoding="ascii")
    assert text.count("0x1.8p-1f") == 1
    path.write_text(text.replace("0x1.8p-1f", "0x1.801p-1f"), encoding="ascii")
    run(compiler, *STRICT, "-DNET_SELFTEST", path, "-o", program, "-lm")
    done = subprocess.run([program], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert re.match(r"[1-5] of 5 predictions are off by more than 4 units", done.stdout)


def constants_of(text):
    """The arrays of a file by their names, read as Python reads them."""
    arrays = re.findall(r"static const (float|double) (\w+)\[[^=]*= \{\n(.*?)\n\};", text, re.DOTALL)
    return {
        name: np.array([float.fromhex(literal.rstrip("f")) for literal in re.findall(r"-?0x[^, }\n]+", numbers)])
        for _, name, numbers in arrays
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_literals_read_back_exactly(dtype, rng, tmp_path, by_reference):
    network = Network((20, 20, 1), init="zeros", dtype=dtype)
    information = np.finfo(dtype)
    few = [0.0, -0.0, 1, -1, 0.1, information.tiny, information.smallest_subnormal, -3 * information.smallest_subnormal]
    few += [information.eps, 1 - information.epsneg, 2**20 + 1, information.max, -information.max]
    network.params[:] = rng.normal(size=network.params.size) * 10.0 ** rng.integers(-3, 3, network.params.size)
    network.weights[0][0, : len(few)] = few
    network.weights[1][: len(few)] = 0
    to_c(network, tmp_path / "network.c", name="net", scaler=(np.full(20, 0.1), np.full(20, 1e30)))
    constants = constants_of((tmp_path / "network.c").read_text(encoding="ascii"))

    actual = np.concatenate([constants[f"net_{name}"] for name in ("w0", "b0", "w1", "b1")])
    assert actual.astype(dtype).tobytes() == network.params.tobytes()
    assert constants["net_mean"].astype(dtype).tobytes() == np.full(20, 0.1, dtype).tobytes()


def test_comment_tells_memory_and_time(tmp_path, by_reference):
    to_c(
        network_of((4, 6, 3), loss="cross_entropy", dtype="float32"),
        tmp_path / "a.c",
        name="a",
        scaler=([0] * 4, [1] * 4),
    )
    comment = (tmp_path / "a.c").read_text(encoding="ascii").partition("*/")[0]

    assert "layers 4-6-3, activations relu, softmax." in comment
    assert re.search(rf"constants +{4 * (4 * 6 + 6 + 6 * 3 + 3 + 8)} bytes\n", comment)
    assert re.search(r"scratch +40 bytes, A_SCRATCH numbers\n", comment)  # 6 beside the scaled inputs, 4
    assert re.search(rf"multiply-adds +{4 * 6 + 6 * 3}\n", comment)
    assert "   int a_class(const float *x, float *scratch);\n" in comment
    assert "-DA_SELFTEST" in comment
    assert "name" not in comment.lower()


def test_file_is_plain_and_the_same_each_time(tmp_path, by_reference):
    for name in ("a", "b"):
        to_c(network_of((4, 6, 3), loss="cross_entropy"), tmp_path / name, name="net", classes=LABELS[1:4])
    first, second = ((tmp_path / name).read_bytes() for name in ("a", "b"))

    assert first == second
    assert first.isascii()
    assert max(map(len, first.splitlines())) <= 120
    assert not re.search(rb"\b(malloc|calloc|static (?!const|double net_|void net_))", first.partition(b"int main")[0])


def test_threads_may_predict_at_once(compiler, rng, tmp_path, by_reference):
    network, X = network_of((30, 60, 60, 2), activation="tanh"), rows_of(400, 30, "float64", rng)
    library = built(compiler, tmp_path, network)
    expected, found = library.predict(X), {}
    barrier = threading.Barrier(2)

    def predict(part):
        barrier.wait()
        found[part] = [library.predict(X[part::2]).tobytes() for _ in range(10)]

    threads = [threading.Thread(target=predict, args=(part,)) for part in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {*itertools.chain(*found.values())} == {expected[part::2].tobytes() for part in range(2)}


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "iris", "Iris_2", "X", "net_of_3", "int8", "name", "real", "exp", "f"])
def test_identifier_is_taken(name, compiler, tmp_path, by_reference):
    program = tmp_path / "program"
    network = network_of((2, 3, 2), activation="softplus", loss="cross_entropy")
    to_c(network, tmp_path / "network.c", name=name, classes=["name_x", "real"], scaler=([0, 0], [1, 1]))
    run(compiler, *STRICT, f"-D{name.upper()}_SELFTEST", tmp_path / "network.c", "-o", program, "-lm")

    run(program)


BAD_NAMES = ["", "3d", "_x", "x_", "a__b", "a b", "a-b", "é", "a;", "a\n", "a*/", "x" * 50 + "!", *C_KEYWORDS]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_no_identifier_is_refused(name, tmp_path):
    with pytest.raises(ParameterError, match="'name' must be letters of ASCII, digits and single underscores"):
        to_c(Network((2, 1)), tmp_path / "network.c", name=name)
    assert not [*tmp_path.iterdir()]


REFUSED = {
    "a number as name": (Network((2, 1)), {"name": 3}, ParameterTypeError, "'name' must be a str, got 3"),
    "a precision of its own": (Network((2, 1)), {"dtype": "half"}, ParameterError, "'dtype' must be one of 'float32'"),
    "no network": ("net", {}, ParameterTypeError, "'network' must be a Network, a fitted MLP.*, got 'net'"),
    "classes of numbers": (Network((2, 1)), {"classes": [0, 1]}, ParameterError, "'classes' must be left out"),
    "a scaler of another shape": (Network((2, 1)), {"scaler": ([0], [1])}, DataError, r"must have shape \(2,\)"),
}  # fmt: skip


@pytest.mark.parametrize(("network", "settings", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_argument_is_refused_and_the_file_stays(network, settings, error, message, tmp_path):
    path = tmp_path / "network.c"
    path.write_bytes(b"before")

    with pytest.raises(error, match=message):
        to_c(network, path, **{"name": "net", **settings})
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("network.c", b"before")]


def test_parameters_beyond_the_precision_are_refused(tmp_path):
    network = Network((2, 1))
    network.params[0] = 1e300

    with pytest.raises(DataError, match=r"'network\.params' must not overflow float32"):
        to_c(network, tmp_path / "network.c", name="net", dtype="float32")


def test_network_whose_predictions_overflow_is_refused(tmp_path, by_reference):
    network = Network((2, 1, 1), activation="identity", init="zeros")
    network.params[:] = 1e300  # the bias alone, times the weight of the next layer

    with pytest.raises(DataError, match="'network' must have parameters with which predictions are finite"):
        to_c(network, tmp_path / "network.c", name="net")
    assert not [*tmp_path.iterdir()]


def test_activation_without_a_form_is_refused(tmp_path, monkeypatch):
    monkeypatch.delitem(c_code.FORMS, "silu")

    with pytest.raises(ParameterError, match=r"'network\.activations\[0\]' must be one of .* for C, got 'silu'"):
        to_c(Network((2, 3, 1), activation="silu"), tmp_path / "network.c", name="net")


@pytest.mark.parametrize(
    ("path", "error"), [("a\0b", ParameterError), (3, ParameterTypeError), ("missing/network.c", OSError)]
)
def test_wrong_path_is_refused(path, error, tmp_path, monkeypatch, by_reference):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(error):
        to_c(Network((2, 1)), path, name="net")
    assert not [*tmp_path.iterdir()]
