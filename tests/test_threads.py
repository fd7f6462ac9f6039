"""Threads inside one network: the bits of one thread, whoever comes, late or never, and none of them left over."""

import _thread
import dataclasses
import gc
import os
import platform
import signal
import threading
import time

import numpy as np
import pytest
from helpers import output_of, pairwise
from test_kernels import DTYPES, OPTIMIZERS, WRITTEN, bits, build, call, has_output_weights, label, rows_for

import fastbp
from fastbp import kernels, teams, threads
from fastbp.checks import ParameterError, ParameterTypeError
from fastbp.choices import LOSSES, SGD, Adam, ExponentialDecay, IRprop
from fastbp.network import Network
from fastbp.workspace import ALONE_UNTIL, DONE, OPEN, TICKET, VALIDATION_MISFIT, make_memory, make_plan, panels_of

COUNTS = [1, 2, 3, 4, 7]
ROWS, EPOCHS = 300, 2


@pytest.fixture(autouse=True)
def idle_machine(monkeypatch):
    """No strangers that teams would begin alone for."""
    monkeypatch.setattr(threads, "idle_cores", lambda: 64)


@pytest.fixture(scope="module")
def team_of():
    """Teams by the number of their threads."""
    made = {count: threads.Team(count) for count in COUNTS}
    yield made.__getitem__
    for team in made.values():
        team.close()


AXES = {
    "sizes": [(5, 3), (16, 40, 24, 1), (20, 56, 8, 33), (3, 130, 70, 9), (40, 17, 100, 10)],
    "activation": range(0, 10, 3),
    "loss": list(LOSSES),
    "optimizer": [None, *OPTIMIZERS],
    "bias": [True, False],
    "mean": [True, False],
    "batch_size": [1, 8, 33, 64, 129, ROWS],
    "shuffled": [True, False],
    "by_units": [True, False],
    "dtype": DTYPES,
    "dropout": [0, 0.3],
    "l2": [0.0, 0.1],
    "clip_norm": [0.0, 0.3],
    "weighted": [False, True, "outputs"],
    "schedule": [None, ExponentialDecay(0.5)],
    "validation": [0, 1, 170],  # rows
    "patience": [-1, 1],
}
CASES = [dict(zip(AXES, row, strict=True)) for row in pairwise(0, *AXES.values())]
LEAN = {"activation": 3, "loss": "squared_error", "dropout": 0, "clip_norm": 0.0, "schedule": None, "validation": 0}
LEAN |= {"optimizer": Adam(0.01, epsilon=0.01), "dtype": np.float64, "patience": -1, "weighted": True}


def prepare(case):
    """Network, plan, rows and rows for validation, laid out."""
    optimizer, batch_size, held = case["optimizer"], case["batch_size"], case["validation"]
    if optimizer is None or isinstance(optimizer, IRprop):
        batch_size = ROWS
    elif not case["mean"]:
        optimizer = dataclasses.replace(optimizer, learning_rate=optimizer.learning_rate / batch_size)
    network, data = build(
        case["sizes"], case["loss"], activation=case["activation"], bias=case["bias"], dtype=case["dtype"], rows=ROWS
    )
    apart = has_output_weights(case)
    if apart:
        data = rows_for(network, ROWS, np.random.default_rng(2), weights=(0, 0.5, 2), apart=True)
    plan = make_plan(
        network, ROWS, batch_size, optimizer, mean=case["mean"], weighted=bool(case["weighted"]), output_weights=apart,
        shuffled=case["shuffled"] and batch_size < ROWS, seed=5, l2=case["l2"], clip_norm=case["clip_norm"],
        dropout=(case["dropout"],) * (len(network.sizes) - 2), schedule=case["schedule"], validation_rows=held,
        spread=(1.0,) * network.sizes[-1], watched=VALIDATION_MISFIT if held else 0, patience=case["patience"],
        keep_best=bool(held) and case["patience"] >= 0,
    )._replace(tiny=False)  # fmt: skip
    rows = data.ravel() if plan.shuffled else panels_of(data, plan)
    validation = rows[:0]
    if held:
        held_rows = rows_for(network, held, np.random.default_rng(1), apart=apart)
        validation = panels_of(held_rows, plan._replace(batch_size=held, few=0))
    return network, plan, rows, validation


def alone(network, plan, rows, validation):
    """Status and memory of one thread."""
    memory = make_memory(plan, network.params.copy(), EPOCHS)
    return kernels.bind(plan, memory, rows, validation)(EPOCHS * plan.blocks_per_epoch), memory


def together(team, network, plan, rows, validation, by_units=None, blocks=None):
    """Status and memory of a team, in one call or in calls of so many blocks."""
    plan, share = threads.shared(plan, network.params.dtype, team.threads)
    if by_units is not None:
        share = share._replace(by_units=by_units)
    memory = make_memory(plan, network.params.copy(), EPOCHS)
    run, left, status = threads.bind(plan, memory, share, rows, validation, team), EPOCHS * plan.blocks_per_epoch, 0
    while left > 0 and status == kernels.FINISHED:
        count = min(left, blocks or left)
        status = run(count)
        left -= count
    return status, memory


def assert_same_bits(actual, expected):
    assert actual[0] == expected[0]
    for name in (*WRITTEN, "gradient", "position"):
        np.testing.assert_array_equal(bits(getattr(actual[1], name)), bits(getattr(expected[1], name)), name)


# --- bits -------------------------------------------------------------------------------------------------------------


def compiled(case):
    """The case; slow if it is not lean in float64: each other version compiles for ten seconds."""
    slow = not prepare(case)[1].lean or case["dtype"] is np.float32
    return pytest.param(case, marks=pytest.mark.slow if slow else [], id=label(case))


BY_VERSION = [np.float64, pytest.param(np.float32, marks=pytest.mark.slow)]  # of what is lean


@pytest.mark.parametrize("case", [compiled(case) for case in [*CASES, *(case | LEAN for case in CASES[::3])]])
def test_any_number_of_threads_gives_the_bits_of_one(case, team_of):
    problem = prepare(case)
    expected = alone(*problem)
    for count in COUNTS:
        assert_same_bits(together(team_of(count), *problem, by_units=case["by_units"]), expected)


@pytest.mark.parametrize("by_units", [True, False])
@pytest.mark.parametrize("dtype", BY_VERSION)
def test_wide_layers_in_many_chunks_give_the_bits_of_one_thread(by_units, dtype, team_of):
    network, data = build((30, 300, 220, 24), dtype=dtype, rows=ROWS)
    plan = make_plan(network, ROWS, 129, Adam(0.001), mean=True)
    problem = network, plan, panels_of(data, plan), data.ravel()[:0]
    expected = alone(*problem)
    for count in COUNTS:
        assert_same_bits(together(team_of(count), *problem, by_units=by_units), expected)


@pytest.mark.parametrize("by_units", [True, False])
@pytest.mark.parametrize("blocks", [1, 3])
def test_pieces_of_a_run_give_the_bits_of_the_whole(blocks, by_units, team_of):
    problem = prepare(CASES[0] | LEAN | {"sizes": (16, 40, 24, 1), "batch_size": 64})

    assert_same_bits(together(team_of(3), *problem, by_units=by_units, blocks=blocks), alone(*problem))


def by_leader(plan, memory, share, rows, validation, blocks):
    return threads.bind(plan, memory, share, rows, validation, threads.Team(1))(blocks)


@pytest.mark.parametrize("case", [compiled(case) for case in CASES[::4]])
def test_nothing_is_written_outside_nor_read_before_it_is_written(case):
    network, plan, rows, validation = prepare(case)
    expected = alone(network, plan, rows, validation)
    plan, share = threads.shared(plan, network.params.dtype, 2)
    share = share._replace(by_units=case["by_units"])
    for array in (share.figures, share.scratch, share.edges):
        array[:] = np.nan
    memory = make_memory(plan, network.params.copy(), EPOCHS)
    blocks = EPOCHS * plan.blocks_per_epoch
    arrays = [field for field in (*memory, *share) if isinstance(field, np.ndarray)]
    status = call(by_leader, plan, memory, share, rows, validation, blocks, writes=arrays)

    assert_same_bits((status, memory), expected)


# --- who comes late, or never -----------------------------------------------------------------------------------------


def problem_of(sizes=(16, 128, 128, 1), batch_size=ROWS, dtype=np.float64, optimizer=SGD(0.01)):  # noqa: B008
    network, data = build(sizes, dtype=dtype, rows=ROWS)
    plan = make_plan(network, ROWS, batch_size, optimizer, mean=True)
    return network, plan, panels_of(data, plan), data.ravel()[:0]


def test_threads_that_cannot_start_are_done_without(monkeypatch):
    def refused(*_):
        raise RuntimeError("can't start new thread")

    problem, X = problem_of(), np.ones((500, 16))
    expected = problem[0].predict(X)
    monkeypatch.setattr(_thread, "start_new_thread", refused)
    with threads.Team(3) as team:
        assert_same_bits(together(team, *problem), alone(*problem))
    np.testing.assert_array_equal(problem[0].predict(X, threads=3), expected)


def test_thread_that_begins_after_the_end_does_nothing(monkeypatch):
    late, network, X = [], problem_of()[0], np.ones((500, 16))
    expected = network.predict(X)
    monkeypatch.setattr(_thread, "start_new_thread", lambda *call: late.append(call) or 0)
    monkeypatch.setattr(threads, "_move", lambda *_: None)
    predictions = network.predict(X, threads=3)
    before = predictions.copy()
    network.params[:] = 0
    for function, arguments in late:
        function(*arguments)

    assert len(late) == 2
    np.testing.assert_array_equal(bits(before), bits(expected))
    np.testing.assert_array_equal(bits(predictions), bits(before))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be told where to run")
@pytest.mark.usefixtures("nobody_left")
def test_threads_that_have_begun_may_go_wherever_their_leader_may():
    helpers, seen, allowed = threads.Helpers(), [], os.sched_getaffinity(0)
    helpers.start(lambda helper: seen.append((helper, os.sched_getaffinity(0))), 2)
    deadline = time.monotonic() + 60
    while len(seen) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    helpers.close()

    assert sorted(seen) == [(1, allowed), (2, allowed)]
    assert os.sched_getaffinity(0) == allowed


@pytest.mark.parametrize("after", [0, 0.005])
def test_helper_that_comes_late_or_never_keeps_nobody_waiting(after, monkeypatch):
    problem, may_begin, helping = problem_of(), threading.Event(), threads.Room.help

    def late(room, helper):
        may_begin.wait()
        helping(room, helper)

    monkeypatch.setattr(threads.Room, "help", late)
    with threads.Team(2) as team:
        if after:
            threading.Timer(after, may_begin.set).start()
        actual = together(team, *problem)  # which would not return
        may_begin.set()

    assert_same_bits(actual, alone(*problem))


def test_helper_returns_where_there_is_nothing_to_do():
    network, plan, rows, validation = problem_of()
    plan, share = threads.shared(plan, network.params.dtype, 2)
    memory = make_memory(plan, network.params.copy(), 1)
    words = threads.Work(teams.team_words, plan, memory, share, rows, validation).words
    for wanted in (0, -1):
        share.control[OPEN] = wanted
        before = share.control.copy()

        assert teams.team_words(*words, -1, 1) == kernels.FINISHED
        assert share.control.tolist() == before.tolist()


def test_helper_that_finds_all_chunks_taken_does_none():
    network, plan, rows, validation = problem_of()
    plan, share = threads.shared(plan, network.params.dtype, 2)
    memory = make_memory(plan, network.params.copy(), 1)
    words = threads.Work(teams.team_words, plan, memory, share, rows, validation).words
    share.control[OPEN] = -1
    share.control[TICKET] = threads.LIMIT - 5 + 5 * teams.LEADERS  # the leader took all five
    teams.team_words(*words, -1, 1)

    assert share.control[DONE] == 0
    assert not memory.activations.any()


def test_leader_that_had_to_wait_for_long_works_alone_for_a_while():
    network, plan, rows, validation = problem_of()
    plan, share = threads.shared(plan, network.params.dtype, 2)
    memory = make_memory(plan, network.params.copy(), 1)
    share.control[ALONE_UNTIL] = 2**62
    with threads.Team(2) as team:
        status = threads.bind(plan, memory, share, rows, validation, team)(plan.blocks_per_epoch)

    assert share.control[TICKET] == threads.LIMIT  # nothing was offered
    assert status == kernels.FINISHED


def test_leader_beside_a_stranger_begins_alone(monkeypatch):
    monkeypatch.setattr(threads, "idle_cores", lambda: 1)
    monkeypatch.setattr(threads, "ALONE_TICKS", 2**62)
    network, plan, rows, validation = problem_of()
    expected = alone(network, plan, rows, validation)
    plan, share = threads.shared(plan, network.params.dtype, 2)
    memory = make_memory(plan, network.params.copy(), EPOCHS)
    with threads.Team(2) as team:
        status = threads.bind(plan, memory, share, rows, validation, team)(EPOCHS * plan.blocks_per_epoch)

    assert_same_bits((status, memory), expected)
    assert share.control[TICKET] == threads.LIMIT  # nothing was offered
    if platform.machine() in ("x86_64", "AMD64"):
        assert 2**62 < share.control[ALONE_UNTIL] < 2**63 - 1


# --- the ends of threads ----------------------------------------------------------------------------------------------


living = _thread._count  # all threads of Python but the main one


@pytest.fixture
def nobody_left():
    """No thread more than before."""
    before = living()
    yield
    gc.collect()
    deadline = time.monotonic() + 60
    while living() > before and time.monotonic() < deadline:
        time.sleep(0.01)

    assert living() <= before  # less, if one of another test still had to end


@pytest.mark.usefixtures("nobody_left")
class TestNoThreadIsLeft:
    def test_after_close(self):
        team = threads.Team(3)
        together(team, *problem_of())
        room, deadline = team._room, time.monotonic() + 60
        while room.inside < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert room.inside == 2
        team.close()

    def test_after_an_error(self):
        def fails():
            with threads.Team(3) as team:
                together(team, *problem_of())
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fails()

    def test_after_the_last_reference(self):
        together(threads.Team(3), *problem_of())

    def test_after_divergence(self):
        with threads.Team(3) as team:
            status, _ = together(team, *problem_of(optimizer=SGD(1e300)))

        assert status == kernels.DIVERGED

    def test_after_ctrl_c(self):
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
        network, plan, rows, validation = problem_of()
        plan, share = threads.shared(plan, network.params.dtype, 2)
        memory = make_memory(plan, network.params.copy(), 100)

        def interrupted():
            with threads.Team(2) as team:
                run = threads.bind(plan, memory, share, rows, validation, team)
                run(1)
                threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
                while True:
                    memory.position[:] = 0
                    run(10)

        try:
            with pytest.raises(KeyboardInterrupt):
                interrupted()
        finally:
            signal.signal(signal.SIGINT, handler)

        assert share.control[OPEN] <= 0

    def test_and_a_closed_team_begins_anew(self):
        problem, team = problem_of(), threads.Team(2)
        for _ in range(2):
            assert_same_bits(together(team, *problem), alone(*problem))
            team.close()
            team.close()


def test_team_goes_from_one_work_to_another(team_of):
    problems = [problem_of(), problem_of((16, 40, 24, 1), 64, np.float64, Adam())]
    expected = [alone(*problem) for problem in problems]
    for _ in range(5):
        for problem, result in zip(problems, expected, strict=True):
            assert_same_bits(together(team_of(2), *problem), result)


def test_sleeping_helpers_are_woken(team_of):
    problem = problem_of()
    expected = alone(*problem)
    for _ in range(3):
        assert_same_bits(together(team_of(3), *problem), expected)
        time.sleep(0.05)  # long enough for helpers to fall asleep


FORK = """
import os, sys
sys.path.insert(0, "tests")
from test_threads import alone, assert_same_bits, problem_of, together
from fastbp import threads

problem = problem_of()
expected = alone(*problem)
team = threads.Team(3)
assert_same_bits(together(team, *problem), expected)
room = team._room
process = os.fork()
assert room.inside == 0
assert team._room is None
assert_same_bits(together(team, *problem), expected)
team.close()
if process == 0:
    os._exit(0)
assert os.waitpid(process, 0)[1] == 0
print("both")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_child_trains_and_so_does_its_parent():
    assert output_of("-c", FORK, cwd=threads.__file__.rpartition("fastbp")[0]) == "both\n"


# --- predictions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", BY_VERSION)
@pytest.mark.parametrize(("loss", "sizes"), [("cross_entropy", (7, 33, 10)), ("squared_error", (16, 40, 24, 1))])
@pytest.mark.parametrize("rows", [1, 127, 128, 1000])
def test_predictions_have_the_bits_of_one_thread(rows, loss, sizes, dtype):
    network, data = build(sizes, loss, dtype=dtype, rows=rows)
    X = data[:, : sizes[0]].copy()
    expected = network.predict(X)
    plan = make_plan(network, rows, rows)
    for count in COUNTS:
        actual, run = np.full(expected.shape, np.nan, dtype), threads.bind_predict(plan, network.params, count)
        assert run(X, actual) == kernels.FINISHED
        np.testing.assert_array_equal(bits(actual), bits(expected))
        X[-1, -1] = np.inf
        assert run(X, actual) == kernels.REFUSED
        X[-1, -1] = data[-1, sizes[0] - 1]


def test_prediction_starts_no_thread_on_a_core_of_a_stranger_unless_asked(monkeypatch):
    started, network, X = [], problem_of()[0], np.ones((500, 16))
    expected = network.predict(X)
    monkeypatch.setattr(threads.Helpers, "start", lambda helpers, _, count: started.append(count))
    monkeypatch.setattr("fastbp.network.best_to_predict", lambda *_: 3)
    for idle in (1, 2, 4):
        monkeypatch.setattr(threads, "idle_cores", lambda idle=idle: idle)
        for count in ("auto", 3):
            np.testing.assert_array_equal(network.predict(X, threads=count), expected)

    assert started == [0, 2, 1, 2, 2, 2]


# --- how many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_thread_is_best_for_what_is_small_and_more_for_what_is_large(dtype):
    def best(width, batch_size, batches=10**6, most=2):
        plan = make_plan(Network((16, width, width, 1), dtype=np.dtype(dtype).name), batch_size, batch_size, SGD())
        return threads.best(plan, np.dtype(dtype), batches, most)

    assert [best(width, batch_size) for width, batch_size in ((2, 4), (8, 32), (32, 32), (512, 1))] == [1] * 4
    assert [best(width, batch_size) for width, batch_size in ((128, 512), (256, 256), (512, 512), (512, 64))] == [2] * 4
    assert best(512, 512, batches=0) == best(512, 512, most=1) == 1
    assert best(512, 512, most=7) > 2


def test_predictions_of_many_rows_are_shared_out():
    network = Network((16, 256, 256, 1))
    few, many = (threads.best_to_predict(make_plan(network, n, n), np.dtype(np.float64), 4) for n in (32, 10**5))

    assert (few, many) == (1, 4)


def test_what_is_not_long_takes_no_core_of_a_stranger(monkeypatch):
    plan, dtype = make_plan(Network((16, 512, 512, 1)), 10**5, 512, SGD()), np.dtype(np.float64)
    monkeypatch.setattr(threads, "cores", lambda: 4)
    for idle in (1, 2, 4):
        monkeypatch.setattr(threads, "idle_cores", lambda idle=idle: idle)

        assert threads.best(plan, dtype, 10) == idle
        assert threads.best(plan, dtype, 10**6) == 4  # strangers come and go


@pytest.mark.parametrize(
    ("text", "idle"),
    [
        ("0.13 0.89 1.35 1/84 11822\n", 4),
        ("9 9 9 3/84 1", 2),
        ("9 9 9 9/84 1", 1),
        ("0 0 0", 4),
        ("0 0 0 x/1", 4),
        ("", 4),
    ],
)
def test_idle_cores_are_those_that_the_system_tells_of(text, idle, monkeypatch):
    monkeypatch.undo()  # `idle_machine`
    monkeypatch.setattr(threads, "_asked", (0.0, 1))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "read", lambda *_: text.encode())

    assert threads.idle_cores() == idle

    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(os, "open", refused)
    assert threads.idle_cores() == idle  # as it was just told
    monkeypatch.setattr(threads, "_asked", (0.0, 1))
    assert threads.idle_cores() == 4


def test_no_more_threads_than_cores():
    plan, dtype = make_plan(Network((16, 512, 512, 1)), 10**5, 512, SGD()), np.dtype(np.float64)

    assert 1 <= threads.best(plan, dtype, 10**6) <= threads.cores() <= os.cpu_count()
    assert 1 <= threads.best_to_predict(plan, dtype) <= threads.cores()


# --- other code -------------------------------------------------------------------------------------------------------

OTHER = """
import sys
sys.path.insert(0, "tests")
from test_threads import CASES, COUNTS, alone, assert_same_bits, prepare, problem_of, together
from fastbp import threads

small = CASES[0] | {"sizes": (20, 56, 8, 33), "dtype": problem_of()[0].params.dtype.type}
for problem in (problem_of(), prepare(small)):
    expected = alone(*problem)
    for count in COUNTS:
        with threads.Team(count) as team:
            for by_units in (False, True):
                assert_same_bits(together(team, *problem, by_units=by_units), expected)
print("same")
"""


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["haswell", "x86-64"])
@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="the names are those of x86")
def test_code_for_other_processors_gives_the_bits_of_one_thread(processor):
    root = threads.__file__.rpartition("fastbp")[0]
    output = output_of("-c", OTHER, cwd=root, NUMBA_CPU_NAME=processor, NUMBA_CPU_FEATURES="", FASTBP_CACHE="0")

    assert output == "same\n"


# --- the doors --------------------------------------------------------------------------------------------------------

WIDE = {"hidden": (40, 24), "batch_size": 128, "epochs": 3, "seed": 0}


def doors_task(dtype="float64"):
    rng = np.random.default_rng(0)
    return rng.normal(size=(300, 16)).astype(dtype), rng.normal(size=(300, 2)).astype(dtype)


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({}, np.float64),
        ({"batch_size": 5}, np.float64),
        pytest.param({"validation": 0.2, "patience": 1, "dropout": 0.2}, np.float32, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.parametrize("count", [2, 3, "auto"])
@pytest.mark.usefixtures("nobody_left")
def test_training_has_the_same_bits_for_any_threads(count, settings, dtype):
    X, y = doors_task(dtype)
    expected = fastbp.train(X, y, **WIDE | settings)
    actual = fastbp.train(X, y, **WIDE | settings, threads=count)

    assert actual.network.params.tobytes() == expected.network.params.tobytes()
    assert actual.loss.tobytes() == expected.loss.tobytes()
    if "validation" not in settings:
        more = {"epochs": 2}
        expected, actual = fastbp.resume(expected, X, y, **more), fastbp.resume(actual, X, y, **more, threads=count)
        assert actual.network.params.tobytes() == expected.network.params.tobytes()


@pytest.mark.parametrize("dtype", BY_VERSION)
@pytest.mark.parametrize("count", [2, 3, "auto"])
@pytest.mark.parametrize("rows", [0, 1, 7, 300, 1000])
@pytest.mark.usefixtures("nobody_left")
def test_prediction_has_the_same_bits_for_any_threads(rows, count, dtype):
    X = np.random.default_rng(1).normal(size=(rows, 16)).astype(dtype)
    network = Network((16, 40, 24, 3), seed=0, dtype=dtype)
    X.flags.writeable = False

    assert network.predict(X, threads=count).tobytes() == network.predict(X).tobytes()


@pytest.mark.parametrize("dtype", BY_VERSION)
@pytest.mark.parametrize("count", [2, 3, "auto"])
@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.usefixtures("nobody_left")
def test_gradient_has_the_same_bits_for_any_threads(rows, count, dtype):
    X, y = (array[:rows] for array in doors_task(dtype))
    network, weights = Network((16, 40, 24, 2), seed=0, dtype=dtype), np.linspace(0.5, 2, rows)
    expected = network.loss_and_gradient(X, y, weights, l2=0.1)
    actual = network.loss_and_gradient(X, y, weights, l2=0.1, threads=count)

    assert actual[0] == expected[0]
    assert actual[1].tobytes() == expected[1].tobytes()


@pytest.mark.parametrize("count", [2, "auto"])
@pytest.mark.parametrize("rows", [1, 7, 100, 300])
@pytest.mark.usefixtures("nobody_left")
def test_step_has_the_same_bits_for_any_threads(rows, count):
    X, y = (array[:rows] for array in doors_task())
    expected, actual = (fastbp.Trainer(Network((16, 40, 2), seed=0), **given) for given in ({}, {"threads": count}))
    for _ in range(5):
        assert actual.step(X, y) == expected.step(X, y)
    assert actual.network.params.tobytes() == expected.network.params.tobytes()
    del actual
    gc.collect()


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "all", [2], 10**9])
@pytest.mark.parametrize("door", ["train", "resume", "predict", "loss_and_gradient", "Trainer"])
def test_bad_threads_are_refused(door, value):
    X, y = doors_task()
    network = Network((16, 2))
    doors = {
        "train": lambda: fastbp.train(X, y, threads=value),
        "resume": lambda: fastbp.resume(fastbp.train(X, y, epochs=1), X, y, epochs=1, threads=value),
        "predict": lambda: network.predict(X, threads=value),
        "loss_and_gradient": lambda: network.loss_and_gradient(X, y, threads=value),
        "Trainer": lambda: fastbp.Trainer(network, threads=value),
    }
    with pytest.raises((ParameterError, ParameterTypeError), match="'threads' must be"):
        doors[door]()


@pytest.mark.usefixtures("nobody_left")
def test_divergence_and_callbacks_end_the_threads():
    X, y = doors_task()
    with pytest.raises(fastbp.DivergenceError):
        fastbp.train(X, y, **WIDE | {"epochs": 50}, optimizer="sgd", learning_rate=1e200, threads=2)

    def fail(state):
        raise KeyError

    with pytest.raises(KeyError):
        fastbp.train(X, y, **WIDE, callback=fail, threads=2)
