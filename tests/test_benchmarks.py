"""The benchmarks measure the same arithmetic in every library, and the report shows what was measured."""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastbp
from benchmarks import cases, goal, many_report, report, threads, turns
from benchmarks.cases import (
    CASES,
    DEFAULT,
    GRID,
    MATRIX_EXPONENTIAL,
    OPTIMIZERS,
    PREDICTIONS,
    Case,
    calibrate,
    data,
    exponential,
)
from benchmarks.many import (
    LEAVERS,
    MANY,
    MANY_DEFAULT,
    MANY_LIBRARIES,
    Many,
    Run,
    leaving,
    many_in_turns,
    settings_of,
    stopping,
)
from benchmarks.peers import LIBRARIES, PREDICTORS, trainer

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 5
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
PEERS = [library for library in LIBRARIES if library != "numpy"]

# All settings that a case can have, small: compiling for JAX takes half a second each.
SMALL = [
    *(replace(CASES[f"optimizer {name}"], rows=64, dtype="float64") for name in OPTIMIZERS),
    replace(CASES["train 1x8 float32"], rows=32),
    replace(CASES["train 32x8 float64"], rows=64),
    replace(CASES["train 1024x8 float64"], rows=64, batch_size=64),
    replace(CASES["train 4x32 float32"], rows=32),
    replace(CASES["train 32x32 float32"], rows=64),  # PyTorch compiled
    replace(CASES["train 32x33 float64"], rows=64),
    replace(CASES["64-512-512-10 batch 32 float32"], rows=64),
    replace(MATRIX_EXPONENTIAL, rows=64, batch_size=64),
    CASES["XOR notebook"],
]


def made(make: Callable[[], Any]) -> Any:
    """What a library makes of a case, or a skip if it is not installed or cannot do the case."""
    try:
        return make()
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    except NotImplementedError as reason:
        pytest.skip(str(reason))


# --- the same arithmetic --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", PEERS)
@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.name}, {case.dtype}")
def test_libraries_have_the_same_loss_after_the_same_epochs(case: Case, library: str) -> None:
    train = made(lambda: trainer(case, library))
    expected = trainer(case, "numpy")(EPOCHS)
    actual = train(EPOCHS)

    assert actual == pytest.approx(expected, rel=TOLERANCE[case.dtype])


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", ["optimizer momentum", "train 32x32 float32"])
def test_each_call_begins_with_the_same_weights(name: str, library: str) -> None:
    train = made(lambda: trainer(replace(CASES[name], rows=64), library))
    expected = train(EPOCHS)
    actual = train(EPOCHS)

    assert actual == expected


def test_pytorch_that_finds_no_compiler_is_left_out() -> None:
    config = pytest.importorskip("torch._inductor.config")
    case = replace(CASES["train 32x32 float32"], rows=64)
    unable = config.patch({"cpp.cxx": ("no compiler",), "fx_graph_cache": False})
    with unable, pytest.raises(NotImplementedError, match="PyTorch cannot compile here"):
        trainer(case, "torch compiled")


FEW = [
    Many(cases.XOR, 3, EPOCHS),
    Many(Case("", (16, 8, 8, 1), rows=64, dtype="float64"), 3, EPOCHS),
]


@pytest.mark.parametrize("library", MANY_LIBRARIES)
@pytest.mark.parametrize("many", FEW, ids=lambda many: many.name)
def test_libraries_train_the_same_networks_side_by_side(many: Many, library: str) -> None:
    run = made(lambda: MANY_LIBRARIES[library](many))
    seeds = [many.seeded(place) for place in range(many.networks)]
    expected = [trainer_of_seed(many.case, case.seed) for case in seeds]
    first, again = run.train(EPOCHS), run.train(EPOCHS)

    np.testing.assert_allclose(first, expected[: run.networks], rtol=TOLERANCE[many.case.dtype])
    np.testing.assert_array_equal(again, first)  # from the same weights


def trainer_of_seed(case: Case, seed: int) -> float:
    """The loss after EPOCHS of the reference, from the weights of another seed on the data of the case."""
    told = settings_of(Many(case, 1, EPOCHS))
    return float(fastbp.train(*data(case), seed=seed, epochs=EPOCHS, backend="numpy", **told).loss[-1])


@pytest.mark.parametrize("make", [leaving, stopping])
def test_time_of_networks_that_end_apart_is_that_of_so_many_epochs_together(
    make: Callable[..., Callable[[], float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, trained = 0.0, fastbp.train_many

    def train_many(*arguments: Any, **told: Any) -> fastbp.ManyResult:
        nonlocal now
        result = trained(*arguments, **told)
        now += float(result.epochs.sum())
        return result

    once = make(Many(Case("", (16, 8, 8, 1), rows=64, dtype="float64"), 20, 3), 1)
    monkeypatch.setattr(fastbp, "train_many", train_many)
    monkeypatch.setattr("time.perf_counter", lambda: now)
    actual = once()

    assert actual == pytest.approx(1.0)


@pytest.mark.parametrize("library", PREDICTORS)
@pytest.mark.parametrize("rows", [1, 32])
def test_libraries_make_the_same_predictions(library: str, rows: int) -> None:
    case = replace(PREDICTIONS["predict 32 rows"], rows=rows, dtype="float64")
    predict = made(lambda: PREDICTORS[library](case))
    expected = PREDICTORS["numpy"](case)()
    actual = np.asarray(predict()).reshape(rows, 1)  # scikit-learn has one axis for one output

    np.testing.assert_allclose(actual, expected, rtol=1e-12)


# --- the cases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_data_have_the_shape_and_type_of_the_case(name: str) -> None:
    case = CASES[name]
    expected = [((case.rows, case.sizes[0]), case.dtype), ((case.rows, case.sizes[-1]), case.dtype)]
    actual = [(array.shape, str(array.dtype)) for array in data(case)]

    assert actual == expected


def test_default_has_every_kind_of_case() -> None:
    expected = {name.split()[0] for name in CASES}
    actual = {name.split()[0] for name in DEFAULT}

    assert actual == expected


def test_flops_of_a_layer_count_forward_and_gradient_and_of_the_next_also_backward() -> None:
    expected = 2 * 10 * (4 * 3) * 2 + 2 * 10 * (3 * 5) * 3
    actual = Case("", (4, 3, 5), rows=10).flops_per_epoch

    assert actual == expected


def test_exponential_is_the_sum_of_its_series(rng: np.random.Generator) -> None:
    matrices = rng.standard_normal((20, 2, 2))
    term = expected = np.broadcast_to(np.eye(2), matrices.shape)
    for k in range(1, 60):
        term = term @ matrices / k
        expected = expected + term
    actual = exponential(matrices)

    np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


def test_calibration_finds_the_epochs_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def repeat(times: int) -> None:
        nonlocal now
        now += times * 0.000_1

    monkeypatch.setattr("time.perf_counter", lambda: now)
    expected = 400
    actual = calibrate(repeat, seconds=0.04)

    assert actual == expected


# --- measuring in turns ---------------------------------------------------------------------------------------------


class Machine:
    """A machine whose clock moves as the libraries run, each of which takes its own time for one epoch."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.now = 0.0
        self.pace = 1.0  # how many times as long everything takes
        self.turns: list[str] = []
        self.runs = {library: self.run(library, each) for library, each in seconds.items()}

    def run(self, library: str, seconds: float) -> Callable[[int], None]:
        def run(epochs: int) -> None:
            self.now += epochs * seconds * self.pace
            if epochs > 1 and self.turns[-1:] != [library]:
                self.turns.append(library)

        return run


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], turns.Measured]:
    def measure(machine: Machine) -> turns.Measured:
        monkeypatch.setattr("time.perf_counter", lambda: machine.now)
        return turns.in_turns(machine.runs)

    return measure


def test_peers_near_the_best_are_measured_in_turns_and_the_others_once(
    measured: Callable[[Machine], turns.Measured],
) -> None:
    machine = Machine({"fastbp": 1e-3, "numpy": 1e-2, "torch": 2.8e-3, "jax": 2e-3})
    actual = measured(machine)

    assert actual.speeds == pytest.approx({"fastbp": 1000, "numpy": 100, "torch": 1000 / 2.8, "jax": 500})
    assert actual.ratios.keys() == {"torch", "jax"}
    assert actual.ratios["jax"] == pytest.approx([2.0] * turns.ROUNDS)
    there_and_back = ["fastbp", "torch", "jax", "torch"]  # who goes last goes first in the next round
    assert machine.turns[-2 * turns.ROUNDS - 1 :] == (there_and_back * turns.ROUNDS)[: 2 * turns.ROUNDS + 1]


def test_drift_moves_speeds_but_hardly_a_ratio(measured: Callable[[Machine], turns.Measured]) -> None:
    machine = Machine({"fastbp": 1e-3, "jax": 2e-3})
    run = machine.runs["fastbp"]

    def slower_and_slower(epochs: int) -> None:
        machine.pace *= 1.05
        run(epochs)

    machine.runs["fastbp"] = slower_and_slower
    actual = measured(machine)

    assert machine.pace > 2
    assert actual.ratios["jax"] == pytest.approx([2.0] * turns.ROUNDS, rel=0.11)


def test_interruption_of_one_call_does_not_count(measured: Callable[[Machine], turns.Measured]) -> None:
    machine = Machine({"fastbp": 1e-3, "jax": 2e-3})
    run, calls = machine.runs["jax"], iter(range(1000))

    def interrupted(epochs: int) -> None:
        run(epochs)
        machine.now += 0.1 * (next(calls) % turns.CALLS)

    machine.runs["jax"] = interrupted
    actual = measured(machine)

    assert actual.ratios["jax"] == pytest.approx([2.0] * turns.ROUNDS)


def test_library_without_peers_is_measured(measured: Callable[[Machine], turns.Measured]) -> None:
    actual = measured(Machine({"fastbp": 1e-3}))

    assert actual.speeds == pytest.approx({"fastbp": 1000})
    assert actual.ratios == {}


def test_networks_per_second_are_those_of_whole_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def taking(fixed: float, each: float) -> Callable[[int], np.ndarray]:
        def train(epochs: int) -> np.ndarray:
            nonlocal now
            now += fixed + each * epochs
            return np.zeros(1)

        return train

    monkeypatch.setattr("time.perf_counter", lambda: now)
    runs = {
        "fastbp": Run(taking(0.1, 0.0004), 100),
        "pool": Run(taking(0.1, 0.0004), 4),
        "jax": Run(taking(0.0, 0.01), 100, linear=True),
        "slow": Run(taking(0.0, 1.0), 1, linear=True),
    }
    actual = many_in_turns(runs, 1000)

    assert actual.speeds == pytest.approx({"fastbp": 200, "pool": 8, "jax": 10, "slow": 0.001})
    assert actual.ratios == {"pool": pytest.approx([25.0] * 5), "jax": pytest.approx([20.0] * 5)}


def test_default_has_what_is_wanted_of_many_networks() -> None:
    assert {MANY[name].case.sizes for name in MANY_DEFAULT} == {
        (2, 2, 1),
        (16, 32, 1),
        (16, 8, 8, 1),
        (16, 128, 128, 1),
    }
    assert len(MANY) == len({*MANY, *MANY_DEFAULT})


# --- pytest --benchmark-only ----------------------------------------------------------------------------------------


def pytest_process(*arguments: str) -> list[str]:
    """The lines that pytest prints."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}  # no worker
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.stdout.splitlines()


def test_collecting_benchmarks_imports_no_library_that_is_measured() -> None:
    code = """
import sys, pytest
pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "benchmarks"])
print(sorted({"jax", "matplotlib", "numba", "sklearn", "torch"} & sys.modules.keys()))
"""
    expected = "[]"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    actual = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True)

    assert actual.splitlines()[-1] == expected


def test_benchmarks_alone_are_collected_a_test_a_case() -> None:
    lines = pytest_process("--benchmark-only", "--collect-only", "-q")
    collected = [line for line in lines if "::" in line]
    expected = [f"benchmarks/bench_training.py::test_training[{name}]" for name in DEFAULT]
    actual = [line for line in collected if "test_training" in line]

    assert actual == expected
    assert all(line.startswith("benchmarks/bench_") for line in collected)
    assert lines[-1].startswith(f"{len(collected)} tests collected")  # of no more: nothing was deselected


def test_case_is_selected_by_its_name() -> None:
    lines = pytest_process("--benchmark-only", "--collect-only", "-q", "-k", "32x512")
    expected = [f"benchmarks/bench_training.py::test_training[train 32x512 {dtype}]" for dtype in cases.DTYPES]
    actual = [line for line in lines if "::" in line]

    assert actual == expected


@pytest.mark.parametrize(("option", "expected"), [("--benchmark-only", "None"), ("-q", "1")])
def test_benchmarks_leave_blas_the_threads_it_likes(option: str, expected: str) -> None:
    code = """
import os, sys, pytest
pytest.main(sys.argv[1:])
print(os.environ.get("OPENBLAS_NUM_THREADS"))
"""
    command = [sys.executable, "-c", code, option, "--collect-only", "tests/test_progress.py"]
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    actual = subprocess.check_output(command, cwd=ROOT, env=environment, text=True)

    assert actual.splitlines()[-1] == expected


def test_tests_named_beside_benchmark_only_are_deselected() -> None:
    lines = pytest_process(
        "--benchmark-only", "tests/test_progress.py", "benchmarks/bench_inference.py", "--collect-only"
    )
    actual = [line.strip() for line in lines if line.strip().startswith("<Function")]

    assert actual == [f"<Function test_inference[{name}]>" for name in PREDICTIONS]


def test_run_ends_in_its_table() -> None:
    lines = pytest_process("--benchmark-only", "-k", "test_import")
    (progress,) = [line for line in lines if "::test_import" in line]
    *_, title, head, row, end = lines

    assert re.search(r"::test_import \d\.\d+ seconds +\[100%\]$", progress)
    assert " start, seconds " in title
    assert head.split() == ["case", "fastbp"]
    assert re.fullmatch(r"import +\d\.\d+", row)
    assert "1 passed" in end


# --- the report -----------------------------------------------------------------------------------------------------


def entry(section: str, case: str, figures: dict[str, float], **more: Any) -> dict[str, Any]:
    """A benchmark as the JSON has it."""
    return {"extra_info": {"section": section, "case": case, "figures": figures, "ratios": {}} | more}


def training(case: str, figures: dict[str, float], **ratios: list[float]) -> dict[str, Any]:
    return entry("training", case, {"numpy": 5.0, "torch": 5.0, "jax": 5.0} | figures, ratios=ratios, peak_gflops=100.0)


WON, LOST, TIED, UNCOUNTED = (case.name for case in GRID[:4])
FIGURES = {"fastbp": 8000.0, "numpy": 10.0, "scikit-learn": 20.0, "torch": 2000.0, "jax": 2100.0}


@pytest.fixture
def run() -> dict[str, Any]:
    """A run in which fastbp wins a cell of the grid, loses one, ties in one, and has one without JAX."""
    return {
        "benchmarks": [
            training(WON, FIGURES, jax=[4.0, 3.0, 5.0], torch=[4.5, 0.9, 4.5]),
            training(LOST, {"fastbp": 50.0}, torch=[0.5, 0.4, 0.6]),
            training(TIED, {"fastbp": 6.0}, jax=[1.2, 0.9, 1.3]),
            entry("training", UNCOUNTED, {"fastbp": 90.0, "numpy": 1.0}, ratios={"numpy": [90.0]}, peak_gflops=100.0),
            training("XOR notebook", {"fastbp": 6e6, "notebook": 3e4}, jax=[1.5, 1.4, 1.6]),
            entry("estimators", "digits float64", {"fastbp": 9.0, "scikit-learn": 3.0}, ratios={"scikit-learn": [3.0]}),
            entry("predict", "predict 1 row", {"fastbp": 90_000.0}),
            entry("start", "import", {"fastbp": 0.0213}),
        ],
        "machine_info": {
            "cpu": {"brand_raw": "Some CPU", "count": 2},
            "cores": 2,
            "system": "Linux",
            "python_version": "3.11.0",
            "versions": {"fastbp": "0.1.0", "numpy": "2.4.6"},
        },
        "datetime": "2026-01-31T12:00:00+00:00",
    }


def write_report(runs: list[dict[str, Any]], directory: Path, *arguments: str) -> None:
    """Run the subcommand on the JSON of runs."""
    files = [directory / f"run{number}.json" for number in range(len(runs))]
    for file, run in zip(files, runs, strict=True):
        file.write_text(json.dumps(run), encoding="utf-8")
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    assert report.main(parser.parse_args([*map(str, files), "--output", str(directory / "results"), *arguments])) == 0


def test_best_peer_is_the_one_that_fastbp_is_least_ahead_of(run: dict[str, Any]) -> None:
    actual = report.comparison_of(report.entries_of(run)[0])

    assert actual == report.Comparison("jax", 4.0, 3.0, 5.0)


@pytest.mark.parametrize(
    ("ratios", "tie", "expected"),
    [
        ([1.2, 1.1, 1.3], False, "1.20 (1.10..1.30) jax"),
        ([1.2, 0.9, 1.3], True, "tie, 1.20 (0.900..1.30) jax"),
        ([0.8, 0.5, 1.0], True, "tie, 0.800 (0.500..1.00) jax"),
        ([0.8, 0.5, 0.9], False, "0.800 (0.500..0.900) jax"),
    ],
)
def test_range_that_holds_1_is_a_tie(ratios: list[float], tie: bool, expected: str) -> None:
    actual = report.comparison_of({"ratios": {"jax": ratios}})

    assert actual is not None
    assert (actual.tie, str(actual)) == (tie, expected)


def test_headline_counts_the_cases_in_which_all_competed(run: dict[str, Any]) -> None:
    expected = [
        "fastbp is faster than the best of the other libraries in 2 of 4 training cases, slower in 1 and tied in 1.",
        f"The median ratio of its epochs per second to theirs is 0.500 in the least favourable case ({LOST}) and 4.00 "
        f"in the most favourable ({WON}).",
        "NumPy, PyTorch and JAX competed in all of these, scikit-learn in 1.",
        "XOR trains 200 times as fast as by the notebook's own loop in NumPy.",
        "Not counted, because scikit-learn alone competed, and on one thread: `fastbp.sklearn` fits classifiers 3.00 "
        "to 3.00 times as fast as scikit-learn, in 1 cases.",
    ]
    actual = report.headline(report.entries_of(run))

    assert actual == expected


def test_headline_names_the_cases_for_which_pytorch_was_compiled(run: dict[str, Any]) -> None:
    for benchmark in run["benchmarks"][:2]:
        benchmark["extra_info"]["figures"]["torch compiled"] = 1.0
    expected = f"PyTorch was also compiled for {WON}, {LOST}."
    actual = report.headline(report.entries_of(run))

    assert expected in actual


def test_headline_counts_nothing_when_a_library_was_absent(run: dict[str, Any]) -> None:
    (actual,) = report.headline(report.entries_of(run)[3:4])

    assert actual.startswith("No training case is counted")


def test_table_shows_cells_that_fastbp_loses_like_the_others(run: dict[str, Any]) -> None:
    entries = report.entries_of(run)
    shares = [f"{report.share_of_peak(entry):.0%}" for entry in entries[:4]]
    expected = (
        f"| 1 | 4.00 (3.00..5.00) jax, {shares[0]} | 0.500 (0.400..0.600) torch, {shares[1]} | "
        f"tie, 1.20 (0.900..1.30) jax, {shares[2]} | 90.0 (90.0..90.0) numpy, {shares[3]} |"
    )
    actual = report.short_table(run)

    assert expected in actual.splitlines()


def test_share_of_peak_is_what_the_matrix_products_reach(run: dict[str, Any]) -> None:
    case = CASES[WON]  # 16-2-2-1, 1,024 rows
    flops = 2 * case.rows * (2 * 16 * 2 + 3 * 2 * 2 + 3 * 2 * 1)
    expected = 8000 * flops / 100e9
    actual = report.share_of_peak(report.entries_of(run)[0])

    assert actual == pytest.approx(expected)


@pytest.mark.parametrize(
    ("number", "expected"), [(0, "4.00 (3.00..5.00) jax, 1%"), (-2, "90,000 calls/s"), (-1, "0.0213 seconds")]
)
def test_line_of_a_case_says_what_was_measured(run: dict[str, Any], number: int, expected: str) -> None:
    actual = report.cell(report.entries_of(run)[number])

    assert actual == expected


def test_picture_shows_speeds_of_batch_sizes_with_all_widths(run: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    run["benchmarks"] = [training(case.name, FIGURES, jax=[2.0, 1.5, 2.5]) for case in GRID]
    expected = ["batches of 1", "batches of 32", "batches of 1,024"]
    _, below, _ = report.picture(run).subfigs
    actual = [axes.get_title() for axes in below.axes]

    assert actual == expected


def test_table_of_widths_that_are_no_power_of_two_is_one_of_its_own(run: dict[str, Any]) -> None:
    run["benchmarks"] += [
        training("train 32x33 float32", FIGURES, jax=[2.0, 1.5, 2.5]),
        training("train 1x7 float32", FIGURES, jax=[3.0, 2.5, 3.5]),
    ]
    expected = [
        "| float32: batch | width 7 | width 33 |",
        "| --- | ---: | ---: |",
        "| 1 | 3.00 (2.50..3.50) jax, 6% |  |",
        "| 32 |  | 2.00 (1.50..2.50) jax, 72% |",
    ]
    actual = report.short_table(run)

    assert "\n".join(expected) in actual
    assert "train 32x33" not in actual  # and among the figures of the other cases no more


def test_table_ends_with_machine_versions_and_date(run: dict[str, Any]) -> None:
    expected = (
        "Some CPU, 2 cores, one core's peak 100 GFLOP/s in float32, one core's peak 100 GFLOP/s in float64; Linux, "
        "Python 3.11.0; fastbp 0.1.0, numpy 2.4.6; 2026-01-31."
    )
    actual = report.short_table(run).splitlines()[-1]

    assert actual == expected


def test_terminal_shows_a_row_a_case_and_a_column_a_library(run: dict[str, Any]) -> None:
    entries = report.entries_of(run)
    share = 8000 * CASES[WON].flops_per_epoch / 1e11
    expected = [*WON.split(), "8,000", "10.0", "20.0", "2,000", "2,100", "4.00", "(3.00..5.00)", "jax", f"{share:.0%}"]
    titles, tables = zip(*report.text_tables(entries), strict=True)
    actual = next(line for line in tables[-1] if line.startswith(WON)).split()

    assert titles == (
        "start, seconds", "predict, calls/s", "classifiers, `fit` on one thread, epochs/s", "training, epochs/s"
    )  # fmt: skip
    assert actual == expected
    assert len(set(map(len, tables[-1][-5:]))) == 1  # columns end below each other


def test_report_replaces_the_lines_between_the_marks(run: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf-8")
    expected = f"before\n{report.BEGIN}\n{report.short_table(run)}\n{report.END}\nafter\n"
    write_report([run], tmp_path, "--readme", str(readme))
    actual = readme.read_text(encoding="utf-8")

    assert actual == expected


def test_report_shows_each_machine_under_its_name(run: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    other = json.loads(json.dumps(run).replace("Some CPU", "Another CPU"))
    write_report([run, other], tmp_path)
    text = (tmp_path / "results" / "table.md").read_text(encoding="utf-8")
    heads = [
        f"### {name}, 2 cores\n\n{report.headline(report.entries_of(run))[0]}" for name in ("Some CPU", "Another CPU")
    ]
    _, some, another = re.split("|".join(map(re.escape, heads)), text)

    assert some.strip() == another.strip().replace("Another CPU", "Some CPU")


def test_run_on_one_core_is_beside_the_other_and_in_the_readme_in_short(run: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    readme = tmp_path / "README.md"
    readme.write_text(f"{report.BEGIN}\n{report.END}\n", encoding="utf-8")
    bound = run | {"machine_info": run["machine_info"] | {"cores": 1}}
    write_report([run, bound], tmp_path, "--readme", str(readme))
    head, counts = "### Some CPU, 1 of 2 cores\n\n", " ".join(report.headline(report.entries_of(run)))
    table = (tmp_path / "results" / "table.md").read_text(encoding="utf-8")
    actual = readme.read_text(encoding="utf-8")

    assert table.count(head) == 1
    assert table.count("All figures:") == 2
    assert "### Some CPU, 2 cores\n\n" in actual
    assert actual.endswith(f"{head}{counts}\n\n{report.machine(bound)}.\n{report.END}\n")
    assert report.machine(bound).startswith("Some CPU, 1 of 2 cores, ")


def test_table_of_many_networks_has_its_own_marks_and_says_what_is_derived(run: dict[str, Any], tmp_path: Path) -> None:
    figures = {"fastbp": 30_000.0, "fastbp, 1 thread": 20_000.0, "thread pool over train": 1_000.0, "jax vmap": 3_000.0}
    ratios = {"thread pool over train": [30.0, 29.0, 31.0], "jax vmap": [10.0, 9.0, 11.0]}
    shape = "64 x 16-8-8-1 float32"
    run["benchmarks"] += [
        entry("many", "1,000 x XOR float32", figures, ratios=ratios, threads=[1.5, 1.4, 1.6], peak=100.0),
        entry("many", shape, figures, ratios=ratios, threads=[1.5, 1.4, 1.6], peak=100_000.0),
        entry("leaving", next(iter(LEAVERS)), {"fastbp": 1.1}, least=1.0, most=1.2),
    ]
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{many_report.BEGIN}\nold\n{many_report.END}\nafter\n", encoding="utf-8")
    parser = argparse.ArgumentParser()
    many_report.add_arguments(parser)
    assert many_report.main(parser.parse_args([str(tmp_path / "run.json"), "--readme", str(readme)])) == 0
    lines = readme.read_text(encoding="utf-8").splitlines()
    share = 20_000 * MANY[shape].epochs * MANY[shape].case.flops_per_epoch / 1e9 / 100_000

    assert lines[:2] == ["before", many_report.BEGIN]
    assert lines[-2:] == [many_report.END, "after"]
    assert lines[2] == (
        "fastbp trains 30,000 networks per second: XOR, 10,000 epochs each, 1,000 at once in float32, 10.0 "
        "(9.00..11.0) times as many as jax vmap."
    )
    for expected in (
        "| 1,000 x XOR float32 | 30,000 | 20,000 | 1,000 | 3,000 | 10.0 (9.00..11.0) jax vmap |",
        "| 1,000 x XOR float32 | ns for a network and epoch, 1 thread | 5.00 |",
        "| 1,000 x XOR float32 | all cores / 1 thread | 1.50 (1.40..1.60) |",
        f"| {shape} | of a core's peak by matrix products alone, 1 thread | {share:.0%} |",
        f"| {shape} | fastbp / thread pool over train | 30.0 (29.0..31.0) |",
        f"| {next(iter(LEAVERS))} | time / that of as many epochs in full lanes | 1.10 (1.00..1.20) |",
    ):
        assert expected in lines
    assert shape not in report.short_table(run)  # which has the other sections
    assert lines[2] in (tmp_path / "benchmarks" / "results" / "many.md").read_text(encoding="utf-8")


def test_readme_without_marks_is_an_error() -> None:
    with pytest.raises(ValueError, match="must be there, once"):
        report.insert("no marks", "table")


def test_same_run_writes_the_same_files(run: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_report([run], tmp_path / name)
        written.append({path.name: path.read_bytes() for path in (tmp_path / name / "results").iterdir()})

    assert written[0] == written[1]
    assert written[0].keys() == {"table.md", "picture.svg"}
    assert b">Some CPU, 2 cores, " in written[0]["picture.svg"]  # text as text
    assert b"<dc:date>" not in written[0]["picture.svg"]


def test_results_are_small_and_each_is_linked_from_a_readme() -> None:
    linked = {
        (readme.parent / target).resolve()
        for readme in (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
        for target in re.findall(r"\]\(([^)#]+)\)", readme.read_text(encoding="utf-8"))
    }
    results = set(report.RESULTS.iterdir())

    assert results
    assert results <= linked
    assert max(path.stat().st_size for path in results) < 100_000


@pytest.mark.parametrize(
    ("figure", "expected"), [(0.01234, "0.0123"), (1.0, "1.00"), (99.99, "100.0"), (1234.5, "1,234"), (None, "")]
)
def test_numbers_have_three_digits(figure: float | None, expected: str) -> None:
    actual = report.digits(figure)

    assert actual == expected


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "passed"),
    [
        ([[0.5, 0.9, 1.2]], True),
        ([[0.9, 1.04, 1.1], [0.9, 1.0, 1.5]], True),  # slower once, and not again
        ([[0.9, 1.04, 1.1], [1.0, 1.05, 1.1]], False),
    ],
)
def test_auto_fails_where_its_median_is_above_the_limit_twice(rounds: list[list[float]], passed: bool) -> None:
    left = {"one": [[0.8, 1.0, 1.1]], "other": list(rounds)}
    table, actual = threads.judge(left, 1.03, lambda name: left[name].pop(0))

    assert actual is passed
    assert ("SLOWER" in table) is not passed
    assert left == {"one": [], "other": []}
    assert f"| other | {rounds[-1][1]:.3f} |" in table


def test_auto_and_one_thread_train_and_predict_the_same() -> None:
    auto, one = threads.runs_of("XOR notebook").values()

    assert auto(3) == one(3)
    for run in threads.runs_of("predict 32 rows").values():
        run(1)


# --- time to a goal -----------------------------------------------------------------------------------------------


def test_problems_to_reach_a_goal_on_are_scaled():
    for problem in goal.problems().values():
        for array in problem:
            np.testing.assert_allclose(array.mean(axis=0), 0, atol=1e-12)
            np.testing.assert_allclose(array.std(axis=0), 1, rtol=1e-12)


def test_goal_that_is_not_reached_takes_for_ever():
    problem, settings = goal.problems()["sinc(10 x)"], {"optimizer": "sgd", "batch_size": None, "backend": "numpy"}

    assert goal.seconds_to(1.0, np.array([2.0, 0.9]), problem, settings, 0) > 0
    assert goal.seconds_to(0.5, np.array([2.0, 0.9]), problem, settings, 0) == math.inf


def test_table_of_goals_shows_what_was_not_reached():
    row = {optimizer: [0.0123, 1.5, math.inf] for optimizer in goal.OPTIMIZERS}
    lines = goal.written({"wave": row}, 5.0).splitlines()

    assert lines[2] == "| wave |" + " 0.012, 1.5, - |" * len(goal.OPTIMIZERS)
    assert lines[-1].endswith("- is more than 5 s.")
