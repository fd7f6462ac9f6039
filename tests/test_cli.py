"""`python -m fastbp`, run as its users run it: in processes of its own, with a cache of its own."""

import itertools
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import NOTEBOOK_LOSSES, ROOT, assert_once_at_most, environment, python
from numpy.testing import assert_allclose

import fastbp
from fastbp import __main__, jit, xor
from fastbp.choices import BACKENDS
from fastbp.export import from_sklearn

FIGURES = """
Final hidden weights:
[[0.90571962 7.32475086]
 [0.90572643 7.32731531]]
Final output weights:
[[-27.46354604]
 [ 21.74964594]]
Predictions of the last epoch:
[[0.05432736]
 [0.89823995]
 [0.89824011]
 [0.13514441]]

"""

OFF = ["FASTBP_CACHE", "NUMBA_DISABLE_JIT"]  # what would turn off the compiler or its cache

posix = pytest.mark.skipif(os.name != "posix", reason="signals and pipes of another kind")
x86 = pytest.mark.skipif(platform.machine().lower() not in {"x86_64", "amd64"}, reason="names of x86 processors")


def run(*arguments, **variables):
    """Run the program; return what it prints if it ends well and complains of nothing."""
    done = python("-m", "fastbp", *arguments, without=OFF, **variables)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def losses(text):
    return {int(epoch): loss for epoch, loss in re.findall(r"^Epoch (\d+), Loss: (\S+)$", text, re.MULTILINE)}


def row(text, name):
    return re.search(rf"^ *{name} +(.*)$", text, re.MULTILINE)[1]


def packages(importtime):
    """Packages in the listing of -X importtime."""
    return {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in importtime.splitlines() if "|" in line}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Keep compiled code in a directory that only `warmup` has written to."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def warmup(cache):
    text = run("warmup", NUMBA_CACHE_DIR=cache)
    shared = Path(os.environ["NUMBA_CACHE_DIR"], "fastbp")  # for the tests of other files
    shared.mkdir(mode=0o700, exist_ok=True)
    for file in Path(cache, "fastbp").iterdir():
        if not (shared / file.name).exists():  # for another worker may have compiled the same
            os.replace(shutil.copy(file, shared / f"copy-of-{file.name}"), shared / file.name)  # and none may read half
    return text


@pytest.fixture(scope="module")
def table(cache, warmup):
    """What the program prints, by back end."""
    return {backend: run("xor", "--backend", backend, NUMBA_CACHE_DIR=cache) for backend in BACKENDS}


# --- warmup -------------------------------------------------------------------------------------------------------


def test_warmup_names_what_it_compiled_and_where(cache, warmup):
    expected = list(itertools.product(("float32", "float64"), ("lean", "full"), ("train", "predict", "step")))
    actual = re.findall(r"^(\w+) (\w+) (\w+) +\d+\.\d\d s$", warmup, re.MULTILINE)

    assert actual == expected
    assert row(warmup, "cache:") == str(Path(cache) / "fastbp")


def test_nothing_is_compiled_after_warmup(cache, warmup):
    code = """
import numpy as np
import fastbp

for dtype in ("float32", "float64"):
    X = np.ones((40, 3), dtype)
    X.flags.writeable = False
    for settings in (
        {},
        {"optimizer": "sgd", "batch_size": None, "hidden": (9, 9), "bias": False},
        {"hidden": 3, "activation": "gelu", "dropout": 0.1, "validation": 0.2, "clip_norm": 1.0, "schedule": "cosine"},
    ):
        network = fastbp.train(X, X, epochs=2, dtype=dtype, **settings).network
        network.predict(X[::2])
        network.predict(X[::2])
        fastbp.Trainer(network).step(X, X)
        network.loss_and_gradient(X.tolist(), X)

from fastbp import kernels

for entry in (kernels.run_words, kernels.predict_words, kernels.take_rows_words):
    print(sum(entry.stats.cache_hits.values()), sum(entry.stats.cache_misses.values()))
"""
    expected = (0, "4 0\n4 0\n2 0\n", "")
    done = python("-c", code, without=OFF, NUMBA_CACHE_DIR=cache)
    actual = done.returncode, done.stdout, done.stderr

    assert actual == expected


def test_warmup_says_that_nothing_is_compiled_without_compiler():
    assert run("warmup", NUMBA_DISABLE_JIT="1") == "nothing to compile: NUMBA_DISABLE_JIT is set\n"


# --- xor ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_are_the_notebook_s(table, backend):
    expected = NOTEBOOK_LOSSES
    actual = {epoch: float(loss) for epoch, loss in losses(table[backend]).items()}

    assert list(actual) == list(expected)
    assert_allclose(list(actual.values()), list(expected.values()), rtol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_and_predictions_are_the_notebook_s(table, backend):
    expected = FIGURES
    actual = table[backend]

    assert expected in actual
    assert len(re.findall(r"\d\.\d{8}(?!\d)", actual)) == 10  # .ci/run takes them for these


def test_no_command_means_xor(table, cache):
    expected = table["numba"].split("Time")[0]
    actual = run(NUMBA_CACHE_DIR=cache).split("Time")[0]

    assert actual == expected


@pytest.mark.timed
def test_kernels_are_much_faster_than_the_reference(cache, warmup):
    """A floor, not a benchmark."""
    assert_once_at_most(1 / 50, lambda: 1 / float(row(run(NUMBA_CACHE_DIR=cache), "ratio")))


def test_program_says_itself_what_it_compiles_and_for_how_long(capsys):
    before = jit.NOTICE_SECONDS
    with __main__._telling(__main__._Compiling()):
        compiled = jit.announced("run_words")(abs)(-3)
        assert jit.NOTICE_SECONDS > 1e6  # and stderr says nothing
    jit.announced("predict_words")(abs)(-3)

    assert compiled == 3
    assert capsys.readouterr() == ("Compiling run_words, once; this takes some seconds ... 0.0 s\n", "")
    assert before == jit.NOTICE_SECONDS


def test_times_are_printed_apart(table):
    expected = ["compiled kernels", "NumPy reference"]
    actual = re.findall(r"^  (\w+ \w+) +\d+\.\d (?:ns|us|ms)$", table["numba"], re.MULTILINE)

    assert actual == expected
    assert re.fullmatch(r"\d+\.\d\d s", row(table["numba"], "Compiling the kernels, or loading them from disk:"))


def test_reference_alone_says_nothing_of_kernels(table):
    assert re.fullmatch(r"\d+\.\d [um]s", row(table["numpy"], "NumPy reference"))
    assert re.findall("ratio|ompil|kernel", table["numpy"]) == []


def test_reference_does_without_numba():
    done = python("-X", "importtime", "-m", "fastbp", "--backend", "numpy", "--epochs", "10")

    assert done.returncode == 0
    assert packages(done.stderr) & {"numba", "llvmlite"} == set()


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (500, range(50, 501, 50)),
        (25, [*range(2, 25, 2), 25]),
        (3, [1, 2, 3]),
        (1, [1]),
    ],
)
def test_about_ten_losses_are_printed(epochs, expected):
    actual = losses(run("--backend", "numpy", "--epochs", str(epochs)))

    assert list(actual) == list(expected)


def test_options_do_without_the_word_xor():
    options = ("--backend", "numpy", "--epochs", "20", "--seed", "7", "--hidden", "4", "3")
    expected = run("xor", *options).split("Time")[0]
    actual = run(*options).split("Time")[0]

    assert actual == expected
    assert actual.count("[[") == 4  # weights of three layers and the predictions


def test_seed_matters():
    first, second = (losses(run("--backend", "numpy", "--epochs", "1", "--seed", seed)) for seed in "12")

    assert first != second


@pytest.mark.parametrize("backend", BACKENDS)
def test_stopping_before_the_last_epoch_changes_no_bit(backend, warmup):
    code = f"""
import numpy as np
from fastbp import xor

for epochs in (1, 2, 1000):
    for hidden in (2, (9, 4)):
        expected = xor.train_xor({backend!r}, epochs, hidden=hidden)
        actual, predictions = xor.train_and_predict({backend!r}, epochs, hidden=hidden)

        assert actual.network.params.tobytes() == expected.network.params.tobytes()
        assert actual.error.tobytes() == expected.error.tobytes()
        assert actual.loss.tobytes() == expected.loss.tobytes()
        assert np.isclose(np.abs(xor.y - predictions).mean(), expected.error[-1], rtol=1e-14, atol=0)
"""
    done = python("-c", code, without=OFF, NUMBA_CACHE_DIR=os.environ["NUMBA_CACHE_DIR"])  # which has few rows too

    assert (done.returncode, done.stderr) == (0, ""), done.stderr


# --- many ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """What the program does with few networks, and its picture."""
    picture = tmp_path_factory.mktemp("many") / "losses.svg"
    words = ("many", "--networks", "40", "--epochs", "900", "--seed", "7", "--plot", str(picture))
    done = python("-m", "fastbp", *words, without=OFF)

    assert done.returncode == 0, done.stderr
    return done, picture


def test_many_says_how_many_solve_it_and_how_fast(many):
    result = xor.train_many_xor(40, 900, seed=7)
    text = many[0].stdout
    good = int(xor.solved(result.predict(xor.X)).sum())

    assert 20 <= good < 40
    assert text.startswith("XOR, 40 networks 2-2-1 from as many seeds, 900 epochs\n")
    assert row(text, "solve it") == f"{good} of 40"
    assert re.fullmatch(r"[\d.]+ s on \d+ cores", row(text, "time"))
    assert float(row(text, "networks/s").replace(",", "")) > 0


def test_many_has_a_bar_of_networks(many):
    assert "40/40" in many[0].stderr
    assert "10/10" in many[0].stderr
    assert "Warning" not in many[0].stderr


def test_many_is_compared_with_as_much_by_scikit_learn(many):
    *_, peers = many[0].stdout.partition("The same by scikit-learn's MLPClassifier, 10 of them:\n")

    assert re.fullmatch(r"\d+ of 10", row(peers, "solve it"))
    assert int(row(peers, "ratio").replace(",", "")) > 1


def test_scikit_learn_makes_the_same_updates():
    """Its first epoch, and 49 of ours, are its 50."""
    network = from_sklearn(xor._peer(1, 3, 2))
    settings = {name: value for name, value in xor.MANY.items() if name not in ("activation", "loss")}
    fastbp.train(xor.X, xor.y, network=network, epochs=49, **settings)
    expected = from_sklearn(xor._peer(50, 3, 2))

    assert_allclose(network.params, expected.params, rtol=1e-10)


def test_many_does_without_scikit_learn(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    xor.report_many(3, 5)

    assert 'scikit-learn is not installed: pip install "fastbp[sklearn]"' in capsys.readouterr().out


def test_many_draws_the_losses(many, tmp_path):
    picture = many[1].read_bytes()
    good = row(many[0].stdout, "solve it")
    xor._draw(xor.train_many_xor(40, 900, seed=7), f"{good} networks 2-2-1 solve XOR", tmp_path / "again.svg")

    assert f"{good} networks 2-2-1 solve XOR".encode() in picture
    assert picture == (tmp_path / "again.svg").read_bytes()
    assert b"<dc:date>" not in picture


def test_picture_of_the_readme_is_small_and_that_of_the_command():
    picture = (ROOT / "benchmarks/results/many.svg").read_bytes()

    assert re.search(rb">\d+ of 1,000 networks 2-2-1 solve XOR<", picture)
    assert len(picture) < 100_000


def test_many_needs_matplotlib_before_it_trains(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    assert __main__.main(["many", "--plot", "losses.svg"]) == 2
    assert capsys.readouterr() == (
        "",
        "python -m fastbp: error: 'plot' needs matplotlib: pip install \"fastbp[plot]\"\n",
    )


# --- interruptions ------------------------------------------------------------------------------------------------


def start(*arguments):
    """Start the program with the reference, and return when training begins."""
    command = [sys.executable, "-m", "fastbp", "--backend", "numpy", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # children inherit it where a shell ignores it
    process = subprocess.Popen(command, env=environment(OFF), text=True, **pipes)
    signal.signal(signal.SIGINT, handler)
    process.stdout.readline()
    return process


@posix
def test_interrupted_program_ends_with_one_line():
    with start("--epochs", "10000000") as process:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=600)

    assert (process.returncode, errors) == (130, "python -m fastbp: interrupted\n")


@posix
def test_reader_may_leave_before_the_end():
    with start("--epochs", "10") as process:
        process.stdout.close()
        errors = process.stderr.read()

    assert (process.returncode, errors) == (1, "")


# --- info ---------------------------------------------------------------------------------------------------------


def test_info_names_versions_and_cache(tmp_path):
    text = run("info", NUMBA_CACHE_DIR=str(tmp_path))
    expected = [fastbp.__version__, np.__version__, platform.platform(), str(tmp_path / "fastbp")]
    actual = [row(text, name) for name in ("fastbp", "NumPy", "platform", "cache")]

    assert actual == expected
    assert row(text, "Python").startswith(platform.python_version())
    assert list(tmp_path.iterdir()) == []  # asking creates nothing


def test_info_says_that_the_cache_is_off():
    assert row(run("info", FASTBP_CACHE="0"), "cache") == "off"


@x86
@pytest.mark.parametrize(
    ("name", "features", "registers", "multiply_add"),
    [
        ("x86-64", "", 128, "no fused multiply-add: bits differ from other CPUs"),
        ("haswell", "", 256, "fused"),
        ("skylake-avx512", "-prefer-256-bit", 512, "fused"),
    ],
)
def test_info_describes_the_processor_that_code_is_for(name, features, registers, multiply_add):
    text = run("info", NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)
    expected = [name, features or "those of its name", f"512 bits, in registers of {registers} bits", multiply_add]
    actual = [row(text, label) for label in ("code for", "features", "vectors", "multiply-add")]

    assert actual == expected


# --- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", ["--help", "-h", "--version", "xor --help", "--epochs 3 -h", "many -h", "info -h", "warmup -h"]
)
def test_help_imports_neither_numba_nor_numpy(words):
    done = python("-X", "importtime", "-m", "fastbp", *words.split())

    assert done.returncode == 0
    assert "fastbp" in done.stdout
    assert "argparse" in packages(done.stderr)
    assert packages(done.stderr) & {"numba", "llvmlite", "numpy"} == set()


def test_version_is_the_package_s():
    assert run("--version") == f"fastbp {fastbp.__version__}\n"


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("--epochs 0", "'epochs'"),
        ("--epochs -1", "'epochs'"),
        ("--seed -1", "'seed'"),
        ("--seed 4294967296", "'seed'"),
        ("--hidden 0", "'hidden"),
        ("--hidden 2 -3", "'hidden"),
    ],
)
def test_refused_setting_is_one_line(words, fault):
    done = python("-m", "fastbp", "--backend", "numpy", *words.split())

    assert done.returncode == 2
    assert re.fullmatch(rf"python -m fastbp: error: {fault}.*\n", done.stderr)


@pytest.mark.parametrize(
    ("words", "fault"),
    [("--networks 0", "'networks'"), ("--epochs 0", "'epochs'"), ("--hidden 0", "'hidden"), ("--plot a.foo", "'plot'")],
)
def test_refused_setting_of_many_is_one_line(words, fault):
    done = python("-m", "fastbp", "many", *words.split())

    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"python -m fastbp: error: {fault}.*\n", done.stderr)


@pytest.mark.parametrize(
    "words",
    [
        "xro",
        "--epochs 1e4",
        "--backend torch",
        "--hidden",
        "--rate 1",
        "info --epochs 3",
        "warmup now",
        "xor info",
        "many 3",
    ],
)
def test_misunderstood_words_show_the_usage(words):
    done = python("-m", "fastbp", *words.split())

    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m fastbp")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device")
@pytest.mark.parametrize("words", ["info", "--backend numpy --epochs 2"])
def test_full_disk_is_one_line(words):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-W", "error", "-m", "fastbp", *words.split()]
        done = subprocess.run(
            command, env=environment(OFF), stdout=full, stderr=subprocess.PIPE, text=True, timeout=600
        )

    assert done.returncode == 1
    assert re.fullmatch(r"python -m fastbp: error: .*No space left on device\n", done.stderr)


@posix
def test_closed_output_is_no_error():
    command = f"{sys.executable} -W error -m fastbp --backend numpy --epochs 2 >&-"
    done = subprocess.run(command, shell=True, env=environment(OFF), stderr=subprocess.PIPE, text=True, timeout=600)

    assert (done.returncode, done.stderr) == (0, "")
