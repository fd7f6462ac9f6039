"""The benchmarks measure the same arithmetic in every library, and the report shows what was measured."""

import json
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

from benchmarks import report
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
def test_each_call_begins_with_the_same_weights(library: str) -> None:
    train = made(lambda: trainer(replace(CASES["optimizer momentum"], rows=64), library))
    expected = train(EPOCHS)
    actual = train(EPOCHS)

    assert actual == expected


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


# --- collection -----------------------------------------------------------------------------------------------------


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


# --- the report -----------------------------------------------------------------------------------------------------


def entry(case: str, library: str, **figures: float) -> dict[str, Any]:
    """A benchmark as the JSON has it."""
    return {"extra_info": {"case": case, "library": library, **figures}}


def training(case: str, library: str, speed: float) -> dict[str, Any]:
    return entry(case, library, epochs_per_second=speed, gflops=speed / 10, share_of_peak=speed / 1000)


@pytest.fixture
def run() -> dict[str, Any]:
    """A run in which fastbp wins one cell of the grid and loses another."""
    won, lost = GRID[0].name, GRID[1].name
    return {
        "benchmarks": [
            *(training(won, *row) for row in [("fastbp", 800.0), ("numpy", 10.0), ("jax", 200.0)]),
            *(training(lost, *row) for row in [("fastbp", 50.0), ("numpy", 20.0), ("torch", 100.0)]),
            entry("predict 1 row", "fastbp", calls_per_second=90_000.0),
            entry("import", "fastbp", seconds=0.0213),
        ],
        "machine_info": {
            "cpu": {"brand_raw": "Some CPU", "count": 2},
            "system": "Linux",
            "python_version": "3.11.0",
            "versions": {"fastbp": "0.1.0", "numpy": "2.4.6"},
        },
        "datetime": "2026-01-31T12:00:00+00:00",
    }


def write_report(run: dict[str, Any], directory: Path, *arguments: str) -> None:
    """Run the subcommand on the JSON of a run."""
    (directory / "run.json").write_text(json.dumps(run), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(directory)}
    command = [sys.executable, "-m", "benchmarks", "report", "run.json", "--output", "results", *arguments]
    subprocess.run(command, cwd=directory, env=environment, check=True, capture_output=True)


def test_summary_counts_wins_and_names_the_extremes(run: dict[str, Any]) -> None:
    expected = ["1 of 2 ", "0.500 times", "4.00 times"]
    actual = report.summary(report.tables_of(run)[report.TRAINING])

    assert all(text in actual for text in expected)


def test_table_shows_cells_that_fastbp_loses_like_the_others(run: dict[str, Any]) -> None:
    expected = "| 1 | 4.00 (jax) | 0.500 (torch) |"
    actual = report.short_table(run)

    assert expected in actual.splitlines()


def test_table_ends_with_machine_versions_and_date(run: dict[str, Any]) -> None:
    expected = (
        "Some CPU, 2 cores, one core's peak 100 GFLOP/s in float32; Linux, Python 3.11.0; fastbp 0.1.0, numpy 2.4.6; "
        "2026-01-31."
    )
    actual = report.short_table(run).splitlines()[-1]

    assert actual == expected


def test_terminal_shows_ratios_to_numpy_and_to_the_best_peer(run: dict[str, Any]) -> None:
    expected = ["fastbp", "800", "80.0", "4.00"]
    title, lines = report.text_tables([entry["extra_info"] for entry in run["benchmarks"]])[-1]
    actual = lines[1].removeprefix(GRID[0].name).split()

    assert (title, actual) == ("epochs/s", expected)


def test_report_replaces_the_lines_between_the_marks(run: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf-8")
    expected = f"before\n{report.BEGIN}\n{report.short_table(run)}\n{report.END}\nafter\n"
    write_report(run, tmp_path, "--readme", "README.md")
    actual = readme.read_text(encoding="utf-8")

    assert actual == expected


def test_readme_without_marks_is_an_error() -> None:
    with pytest.raises(ValueError, match="must be there, once"):
        report.insert("no marks", "table")


def test_same_run_writes_the_same_files(run: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        write_report(run, tmp_path / name)
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
