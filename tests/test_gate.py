"""The performance gate: what it concludes from made-up times, and that it catches a kernel that is slower indeed."""

import argparse
import inspect
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fastbp
from benchmarks import compare, floors, gate_cases, selftest
from benchmarks.cases import CASES
from benchmarks.compare import COLD, IMPORT, MEAN, NO_VERDICT, PASS, SLOWER, WARM, MeasurementError, Tree, Verdict

ROOT = Path(__file__).resolve().parents[1]
STEADY = compare.STEADY.names
CASE, OTHER = STEADY[:2]
THREADED = compare.THREADS.names[0]
CONTROL = compare.CONTROLS.names[0]
SIDES = ("base", "head")


def made_up(changes, pairs=7):
    """Pairs in which each side takes 2 s for everything, but head so many times as long: always, or pair by pair."""
    measured = [{side: dict.fromkeys(compare.NAMES, 2.0) for side in SIDES} for _ in range(pairs)]
    for name, ratios in changes.items():
        for pair, ratio in zip(measured, ratios if isinstance(ratios, list) else [ratios] * pairs, strict=True):
            pair["head"][name] *= ratio
    return measured


# --- judging --------------------------------------------------------------------------------------------------------

NOISE = [1.04, 0.96, 1.01, 0.97, 1.05, 0.99, 1.0]


@pytest.mark.parametrize(
    ("changes", "status", "slower"),
    [
        pytest.param({}, PASS, [], id="nothing changed"),
        pytest.param(dict.fromkeys(compare.NAMES, NOISE), PASS, [], id="noise"),
        pytest.param({CASE: 1.25}, SLOWER, [CASE], id="one case slower"),
        pytest.param({CASE: 1.25, OTHER: 1.25}, SLOWER, [CASE, OTHER], id="two cases slower"),
        pytest.param({CASE: 1.14}, PASS, [], id="one case slower, within the limit"),
        pytest.param({CASE: 0.5}, PASS, [], id="one case faster"),
        pytest.param({CASE: [1.2] * 6 + [0.9]}, SLOWER, [CASE], id="slower in six pairs of seven"),
        pytest.param({CASE: [1.4] * 5 + [0.99] * 2}, PASS, [], id="one-sided luck, five pairs of seven"),
        pytest.param({CASE: [3.0] * 3 + [1.0] * 4}, PASS, [], id="three interruptions"),
        pytest.param(dict.fromkeys(STEADY, 1.07), SLOWER, [MEAN], id="all cases slower, each within the limit"),
        pytest.param(dict.fromkeys(STEADY, 1.04), PASS, [], id="all cases slower, within both limits"),
        pytest.param({CONTROL: 1.12}, NO_VERDICT, [], id="control slower"),
        pytest.param({CONTROL: 0.88}, NO_VERDICT, [], id="control faster"),
        pytest.param({CONTROL: 1.08}, PASS, [], id="control moved, within the limit"),
        pytest.param({CONTROL: 1.12, CASE: 1.5}, NO_VERDICT, [CASE], id="control and a case slower"),
        pytest.param({COLD: 1.4, WARM: 1.4, IMPORT: 1.4}, PASS, [], id="first calls and import, within the limit"),
        pytest.param({THREADED: 1.4}, PASS, [], id="threads slower, within the limit"),
        pytest.param({THREADED: 1.6}, SLOWER, [THREADED], id="threads slower"),
        pytest.param({COLD: 1.6}, SLOWER, [COLD], id="compiling slower"),
        pytest.param({WARM: 1.6, IMPORT: 1.6}, SLOWER, [WARM, IMPORT], id="loading and import slower"),
    ],
)
def test_verdict(changes, status, slower):
    actual = compare.judge(made_up(changes), compare.NAMES)

    assert (actual.status, actual.slower) == (status, slower)


@pytest.mark.parametrize(
    ("ratios", "status"),
    [
        ([1.3, 1.3, 0.9], SLOWER),
        ([1.9, 0.99, 0.99], PASS),
        ([1.3] * 19 + [0.9], SLOWER),
        ([1.3] * 18 + [0.9] * 2, PASS),
    ],
)
def test_one_pair_of_any_number_may_disagree(ratios, status):
    actual = compare.judge(made_up({CASE: ratios}, len(ratios)), compare.NAMES)

    assert actual.status == status


@pytest.mark.parametrize(
    ("sides", "status"), [(["base"], PASS), (["head"], NO_VERDICT), (["base", "head"], PASS)], ids=str
)
def test_missing_case_is_listed_and_head_must_have_what_base_has(sides, status):
    pairs = made_up({})
    for pair in pairs:
        for side in sides:
            pair[side][CASE] = "TypeError: unknown"
    actual = compare.judge(pairs, compare.NAMES)
    missing = "; ".join(f"not on {side}: TypeError: unknown" for side in sides)

    assert actual.status == status
    assert actual.missing == {CASE: missing}
    assert f"Not compared: {CASE}, {missing}." in compare.report(actual, 7)


def test_missing_in_one_pair_is_missing():
    pairs = made_up({})
    del pairs[3]["base"][CASE]
    actual = compare.judge(pairs, compare.NAMES)

    assert list(actual.missing) == [CASE]


@pytest.mark.parametrize(
    "names",
    [pytest.param(STEADY, id="without controls"), pytest.param(compare.CONTROLS.names, id="controls alone")],
)
def test_there_is_no_verdict_on_nothing(names):
    actual = compare.judge(made_up({}), names)

    assert actual.status == NO_VERDICT


# --- measuring in pairs ---------------------------------------------------------------------------------------------


def recorder(first, afresh, pairs=7):
    """A stand-in for `measure` that takes its times from made-up pairs, and the list of what it was asked."""
    asked = []

    def measure(side, names):
        again = sum(name == names[0] and where == side for where, group in asked for name in group)
        asked.append((side, names))
        pair = [*made_up(first, pairs), *made_up(afresh, pairs)][again]
        return {name: pair[side][name] for name in names}

    return measure, asked


def test_sides_take_turns_in_order_abba():
    measure, asked = recorder({}, {})
    compare.compare(measure, [CASE, CONTROL], 5)

    expected = ["base", "head", "head", "base", "base", "head", "head", "base", "base", "head"]
    actual = [side for side, _ in asked]

    assert actual == expected


def test_first_calls_and_import_have_processes_of_their_own():
    measure, asked = recorder({}, {})
    compare.compare(measure, compare.NAMES, 3)

    expected = [STEADY + compare.THREADS.names + compare.CONTROLS.names, [COLD], [WARM], [IMPORT]]
    actual = [asked[process][1] for process in range(0, len(asked), 6)]

    assert actual == expected


@pytest.mark.parametrize(
    ("first", "afresh", "status", "measured_again"),
    [
        pytest.param({}, {}, PASS, set(), id="pass"),
        pytest.param({CONTROL: 2.0, CASE: 1.3}, {}, NO_VERDICT, set(), id="no verdict"),
        pytest.param({CASE: 1.3}, {CASE: 1.3}, SLOWER, {CASE}, id="slower twice"),
        pytest.param({CASE: 1.3}, {}, PASS, {CASE}, id="slower once"),
        pytest.param({CASE: 1.3}, {CASE: 1.3, CONTROL: 1.2}, NO_VERDICT, {CASE}, id="then a control moves"),
        pytest.param(dict.fromkeys(STEADY, 1.07), dict.fromkeys(STEADY, 1.07), SLOWER, set(STEADY), id="all slower"),
        pytest.param(dict.fromkeys(STEADY, 1.07), {CASE: 1.3}, PASS, set(STEADY), id="all slower, then another one"),
        pytest.param({IMPORT: 2.0}, {IMPORT: 2.0}, SLOWER, {IMPORT}, id="import slower twice"),
    ],
)
def test_what_is_slower_is_measured_afresh(first, afresh, status, measured_again):
    measure, asked = recorder(first, afresh)
    _, verdict = compare.compare(measure, compare.NAMES, 7)

    expected = measured_again | set(compare.CONTROLS.names) if measured_again else set()
    actual = {name for _, names in asked[4 * 14 :] for name in names}

    assert verdict.status == status
    assert actual == expected


# --- measuring in processes -----------------------------------------------------------------------------------------

STRANGE = """
import os
assert {os.environ[f"{name}_NUM_THREADS"] for name in ("NUMBA", "OMP", "OPENBLAS", "MKL")} == {"1"}
assert os.environ["PYTHONHASHSEED"] == "0"
def train(X, y, **settings):
    if "batch_size" in settings:
        raise TypeError("no batch_size")
    with open(os.path.join(os.environ["NUMBA_CACHE_DIR"], "compiled"), "x"):
        pass
"""


@pytest.fixture
def strange_tree(tmp_path):
    """A tree that knows no batch sizes, checks its environment, and cannot be compiled twice into the same cache."""
    (tmp_path / "fastbp").mkdir()
    (tmp_path / "fastbp" / "__init__.py").write_text(STRANGE)
    (tmp_path / "cache").mkdir()
    return Tree(tmp_path, str(tmp_path / "cache"))


def test_case_that_a_tree_cannot_run_is_left_out(strange_tree):
    actual = compare.measure(strange_tree, [CASE, CONTROL])

    assert actual[CASE] == "TypeError: no batch_size"
    assert 0 < actual[CONTROL] < 10


OLD = """
def train(X, y, *, epochs, seed, hidden, batch_size, shuffle, activation, optimizer, learning_rate):
    pass
"""


def test_case_for_which_a_tree_has_no_class_or_parameter_is_left_out(tmp_path):
    (tmp_path / "fastbp").mkdir()
    (tmp_path / "fastbp" / "__init__.py").write_text(OLD)
    one_row = "batch 1, width 128, float32"
    actual = compare.measure(Tree(tmp_path, str(tmp_path)), [one_row, "step, 1 row", THREADED])

    assert actual.pop(one_row) >= 0
    assert actual == {
        "step, 1 row": "AttributeError: module 'fastbp' has no attribute 'Network'",
        THREADED: "TypeError: train() got an unexpected keyword argument 'threads'",
    }


@pytest.mark.parametrize("name", [*gate_cases.CASES, *gate_cases.THREADED, *gate_cases.CONTROLS])
def test_case_runs_on_this_tree(name):
    if name in gate_cases.THREADED and "threads" not in inspect.signature(fastbp.train).parameters:
        pytest.skip("train has no parameter for threads")
    (gate_cases.CASES | gate_cases.THREADED | gate_cases.CONTROLS)[name]()()


def test_only_threads_are_timed_on_the_wall(monkeypatch):
    def waiting():
        return lambda: time.sleep(0.001)

    monkeypatch.setattr(gate_cases, "CASES", {"one thread": waiting})
    monkeypatch.setattr(gate_cases, "THREADED", {"two threads": waiting})
    monkeypatch.setattr(gate_cases, "clock", lambda: 0.0)
    monkeypatch.setattr(gate_cases.gc, "disable", lambda: None)
    actual = gate_cases.measure(["one thread", "two threads"])

    assert actual["one thread"] == 0
    assert actual["two threads"] >= 0.001


def test_first_call_finds_an_empty_cache_or_that_of_the_tree(strange_tree):
    for names in ([COLD], [COLD], [WARM], [IMPORT]):
        assert 0 < compare.measure(strange_tree, names)[names[0]] < 10

    with pytest.raises(MeasurementError, match="FileExistsError"):
        compare.measure(strange_tree, [WARM])


def test_wrong_tree_is_noticed(tmp_path):
    with pytest.raises(MeasurementError, match=r"fastbp was imported from .*, which is not in"):
        compare.python(Tree(ROOT, str(tmp_path)), [gate_cases.__file__, str(tmp_path), CASE])


def arguments(**changes):
    return argparse.Namespace(base=ROOT, head=ROOT, pairs=7, json=None, spread=False, **changes)


def test_failed_measurement_is_no_verdict(monkeypatch, capsys):
    def fail(*_):
        raise MeasurementError("broken")

    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.setattr(compare, "measure", fail)
    actual = compare.main(arguments())

    assert actual == NO_VERDICT
    assert "broken" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--pairs", "2"], ["--base", "nowhere"]])
def test_bad_options_are_no_verdict(options):
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    with pytest.raises(SystemExit) as error:
        parser.parse_args(["--base", str(ROOT), "--head", str(ROOT), *options])

    assert error.value.code == NO_VERDICT


def test_tables_go_to_the_summary_of_the_job(monkeypatch, capsys, tmp_path):
    pairs = made_up({CASE: 1.25, **dict.fromkeys(STEADY[1:], NOISE)})
    verdict = compare.judge(pairs, compare.NAMES)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    compare.publish(compare.report(verdict, 7) + compare.spread(pairs, verdict))
    summary = (tmp_path / "summary.md").read_text()

    assert summary.startswith("## Performance, head against base: slower\n")
    assert f"| {CASE} | 2,000 | 2,500 | 1.250 | 1.250 | 1.250 | 7 of 7 | SLOWER |" in summary
    assert f"| {OTHER} | 3.1% | -4.0% | +5.0% | +0.0% |" in summary
    assert summary.strip() == capsys.readouterr().out.strip()


# --- floors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratios", "measured", "failed", "times"),
    [
        pytest.param({"a": 3.0}, [], False, 0, id="above"),
        pytest.param({"a": 2.0}, [], False, 0, id="at the floor"),
        pytest.param({"a": 1.9}, [2.1], False, 1, id="below once"),
        pytest.param({"a": 1.9}, [1.9], True, 1, id="below twice"),
        pytest.param({}, [2.1], False, 1, id="not in the file"),
        pytest.param({}, [1.9, 2.1], False, 2, id="not in the file, and below once"),
        pytest.param({"a": float("nan")}, [float("nan")], True, 1, id="no number"),
        pytest.param({"b": 3.0}, [1.9, 1.9], True, 2, id="another case in the file"),
    ],
)
def test_floor(ratios, measured, failed, times):
    left = list(measured)
    row = floors.judge({"a": 2.0}, ratios, lambda _: left.pop(0))["a"]

    assert row.failed == failed
    assert len(measured) - len(left) == times
    assert ("TOO SLOW" in floors.report({"a": row})) == failed


def test_ratios_come_from_the_json_of_a_run(tmp_path):
    def entry(**info):
        return {"extra_info": info}

    benchmarks = [
        entry(section="training", case="a", figures={"numpy": 2.0, "jax": 9.0, "fastbp": 5.0}),
        entry(section="training", case="b", figures={"fastbp": 5.0}),
        entry(section="start", case="import", figures={"numpy": 5.0, "fastbp": 5.0}),
        entry(),
    ]
    (tmp_path / "run.json").write_text(json.dumps({"benchmarks": benchmarks}))

    expected = {"a": 2.5}
    actual = floors.ratios_in(tmp_path / "run.json")

    assert actual == expected


def test_floors_are_of_cases_that_exist():
    assert floors.FLOORS
    assert floors.FLOORS.keys() <= CASES.keys()
    assert min(floors.FLOORS.values()) > 0


# --- the gate itself ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slower", "doubts", "expected"),
    [
        ([*selftest.NAMED, MEAN], [], True),
        ([*selftest.NAMED, "batch 1024, width 8, float64", "softmax, Adam, shuffled", MEAN], [], True),
        ([*selftest.NAMED, MEAN], ["a control moved"], False),
        ([*selftest.NAMED], [], False),
        ([*selftest.NAMED[1:], MEAN], [], False),
        ([*selftest.NAMED, *selftest.UNTOUCHED[:1], MEAN], [], False),
        ([], [], False),
    ],
)
def test_selftest_asks_for_the_slowed_cases_and_no_others(slower, doubts, expected):
    actual = selftest.is_caught(Verdict({}, {}, 1.2, slower, doubts), compare.NAMES)

    assert actual == expected


def test_selftest_names_cases():
    assert {*selftest.NAMED, *selftest.UNTOUCHED} <= set(STEADY)


@pytest.mark.parametrize("kernels", ["", "    forward(plan, memory, x, F, panels)\n" * 2])
def test_selftest_notices_when_it_cannot_plant(kernels, monkeypatch, tmp_path):
    (tmp_path / "fastbp").mkdir()
    (tmp_path / "fastbp" / "kernels.py").write_text(kernels)
    monkeypatch.setattr(selftest, "ROOT", tmp_path)

    with pytest.raises(RuntimeError, match="there slowness is planted"):
        selftest.plant(tmp_path / "copy", selftest.SLOWER_2)


@pytest.mark.timed
def test_gate_passes_the_tree_and_catches_a_slower_kernel():
    kept = {name: value for name, value in os.environ.items() if name != "GITHUB_STEP_SUMMARY"}
    command = [sys.executable, "-m", "benchmarks", "selftest", "--quick"]
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=False)
    if done.returncode == NO_VERDICT and "the machine changed" in done.stdout:
        pytest.skip("the machine is too noisy for a verdict")

    assert done.returncode == PASS, done.stdout + done.stderr
