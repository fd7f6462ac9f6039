"""The workers of an executor train what this process would, and are sent the data once."""

import collections
import concurrent.futures
import importlib
import multiprocessing
import os
import pickle
import re
import signal
import time

import numpy as np
import pytest
from helpers import ROOT

import fastbp
from fastbp import many, train_many
from fastbp.groups import MOST_PARAMETERS, Workshop

N = 60
_random = np.random.default_rng(0)
X = _random.standard_normal((N, 5))
Y = np.c_[X[:, 0] * X[:, 1], X.sum(axis=1) > 0].astype(float)
WEIGHTS = _random.random(N)
WIDE = MOST_PARAMETERS // 7  # units of a network that is for no lane
TOLD = {"hidden": (7, 4), "activation": "tanh", "epochs": 5}  # kernels that other tests compile too

processes = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")  # of a fork, since Python 3.12


def bits(result):
    return [network.params.tobytes() for network in result.networks], result.loss.tobytes(), result.stopped


def pool(kind):
    if kind == "threads":
        return concurrent.futures.ThreadPoolExecutor(2)
    if kind not in multiprocessing.get_all_start_methods():
        pytest.skip("this system has no fork")
    return concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(kind))


class Recording(concurrent.futures.Executor):
    """Hands over to another executor, and keeps what was submitted and the futures."""

    def __init__(self, executor):
        self.executor, self.submitted, self.futures = executor, [], []

    def submit(self, function, /, *arguments):
        self.submitted.append(arguments)
        self.futures.append(self.executor.submit(function, *arguments))
        return self.futures[-1]

    @property
    def parts(self):
        return [networks for _, _, _, networks, _ in self.submitted]

    @property
    def carriers(self):
        """Numbers of the submissions that had the data with them."""
        return [number for number, (_, data, *_) in enumerate(self.submitted) if isinstance(data, many.Shared)]


class Simulated(concurrent.futures.Executor):
    """Workers with data of their own, of whom the first that is free takes what has waited longest.

    A part takes 100 ticks, and 1 to say that data are missing. Time passes while `train_many` waits for an answer.
    """

    def __init__(self, monkeypatch, free_at, takes=lambda worker, arguments: True):
        self.free_at, self.takes = list(free_at), takes
        self.kept = [None] * len(self.free_at)
        self.waiting, self.running, self.trained, self.now = [], [], [], 0
        self.answers = collections.deque()
        self.patch = monkeypatch
        monkeypatch.setattr(many, "SimpleQueue", lambda: self)

    def submit(self, function, /, *arguments):
        future = concurrent.futures.Future()
        self.waiting.append((future, function, pickle.dumps(arguments), arguments))
        return future

    def put(self, future):
        self.answers.append(future)

    def get(self):
        while not self.answers:
            self.tick()
        return self.answers.popleft()

    def tick(self):
        for worker in sorted(range(len(self.kept)), key=self.free_at.__getitem__):
            task = next((task for task in self.waiting if self.takes(worker, task[3])), None)
            if self.free_at[worker] <= self.now and task:
                self.waiting.remove(task)
                self.start(worker, *task)
        done = [run for run in self.running if run[0] <= self.now]
        for run in done:
            self.running.remove(run)
            run[1].set_result(run[2])
        self.now += not done

    def start(self, worker, future, function, pickled, _):
        with self.patch.context() as patch:
            patch.setattr(many, "_kept", self.kept[worker])
            patch.setattr(many.os, "getpid", lambda: worker)
            answer = function(*pickle.loads(pickled))
            self.kept[worker] = many._kept
        if not isinstance(answer, many.Missing):
            self.trained.append(worker)
        self.free_at[worker] = self.now + (1 if isinstance(answer, many.Missing) else 100)
        self.running.append((self.free_at[worker], future, answer))


# --- who trains -------------------------------------------------------------------------------------------------------


@processes
@pytest.mark.parametrize("kind", ["threads", "fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_executor_trains_the_same_bits(kind):
    jobs = [{"learning_rate": 0.01 * (1 + place % 3)} for place in range(40)] + [{"epochs": 0}, {"hidden": WIDE}]
    told = TOLD | {"sample_weight": WEIGHTS, "seed": 1}
    expected = train_many(X, Y, jobs, **told)
    with pool(kind) as executor:
        actual = train_many(X, Y, jobs, executor=executor, part=5, **told)

    assert bits(actual) == bits(expected)
    assert actual.seeds.tolist() == list(range(1, 43))
    assert many._kept is None


@pytest.mark.slow
def test_loky_trains_the_same_bits():
    joblib = pytest.importorskip("joblib")
    expected = train_many(X, Y, 20, seed=0, **TOLD)
    executor = joblib.externals.loky.get_reusable_executor(2)
    try:
        actual = train_many(X, Y, 20, seed=0, executor=executor, part=3, **TOLD)
    finally:
        executor.shutdown(wait=True)

    assert bits(actual) == bits(expected)


@pytest.mark.parametrize("given", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
def test_precision_is_that_of_this_process(given, monkeypatch):
    """A table of float32 has no dtype, so that it is trained in float64; the array that is shipped has one."""
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X.astype(np.float32))
    jobs = [{}, {"dtype": None}, {"dtype": given}]
    executor = Simulated(monkeypatch, [0])
    actual = train_many(table, Y, jobs, seed=0, executor=executor, part=1, **TOLD)

    assert bits(actual) == bits(train_many(table, Y, jobs, seed=0, **TOLD))


# --- what is shipped --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("free_at", [[0], [0, 0], [0] * 7, [0, 250], [0, 10, 40, 150, 1000]], ids=str)
def test_data_are_sent_once_to_each_worker(free_at, monkeypatch):
    executor = Recording(Simulated(monkeypatch, free_at))
    actual = train_many(X, Y, 60, seed=0, executor=executor, part=1, **TOLD)

    assert len(executor.carriers) == len(free_at)
    assert set(executor.executor.trained) == set(range(len(free_at)))
    assert executor.executor.now < max(free_at) + 100 * (60 / len(free_at) + 3)  # nobody is idle for long
    assert bits(actual) == bits(train_many(X, Y, 60, seed=0, **TOLD))


def test_a_worker_that_never_gets_the_data_delays_nobody(monkeypatch):
    """Whatever has data with it goes to the first worker, and the second one asks for ever."""
    takes = lambda worker, arguments: worker == 0 or not isinstance(arguments[1], many.Shared)  # noqa: E731
    executor = Recording(Simulated(monkeypatch, [0, 0], takes))
    actual = train_many(X, Y, 30, seed=0, executor=executor, part=1, **TOLD)

    assert set(executor.executor.trained) == {0}
    assert executor.executor.now < 100 * 31
    assert bits(actual) == bits(train_many(X, Y, 30, seed=0, **TOLD))


def test_workers_keep_the_data_for_the_next_call(monkeypatch):
    executor = Recording(Simulated(monkeypatch, [0, 0]))
    for rate in (0.1, 0.2):
        train_many(X, Y, 30, seed=0, executor=executor, part=1, learning_rate=rate, **TOLD)

    assert len(executor.carriers) == 2
    train_many(X + 1, Y, 30, seed=0, executor=executor, part=1, **TOLD)
    assert len(executor.carriers) == 4


def test_a_part_has_nothing_with_it_that_all_share(monkeypatch):
    large = {"sample_weight": WEIGHTS, "validation": (X, Y, WEIGHTS), "rows": np.arange(N)}
    executor = Recording(Simulated(monkeypatch, [0]))
    actual = train_many(X, Y, 20, seed=0, executor=executor, part=4, **TOLD, **large)
    sizes = [len(pickle.dumps(arguments)) for arguments in executor.submitted]
    shared = sum(array.nbytes for array in (X, Y, WEIGHTS, large["rows"]))

    assert len(executor.carriers) == 1
    assert sizes[executor.carriers[0]] > shared
    assert max(size for number, size in enumerate(sizes) if number not in executor.carriers) < 500
    assert bits(actual) == bits(train_many(X, Y, 20, seed=0, **TOLD, **large))


def test_epochs_that_were_not_run_are_not_shipped():
    told = TOLD | {"epochs": 500, "validation": 0.2, "patience": 0}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        executor = Recording(pool)
        actual = train_many(X, Y, 8, seed=0, executor=executor, **told)
    (outcomes,) = [future.result() for future in executor.futures]

    assert max(len(outcome.loss) for outcome in outcomes) == actual.epochs.max() < 500


@processes
def test_processes_are_sent_less_than_the_data_of_each_part():
    wide = np.tile(X, (200, 1)), np.tile(Y, (200, 1))
    with pool("fork") as executor:
        list(executor.map(time.sleep, [0.1] * 4))  # both are forked before they could inherit the data
        recording = Recording(executor)
        train_many(*wide, 16, seed=0, executor=recording, part=1, **TOLD)
    sent = sum(len(pickle.dumps(arguments)) for arguments in recording.submitted)

    assert len(recording.parts) > 16
    assert len(recording.carriers) <= 4  # two, and as many more if one worker takes what is meant for the other
    assert sent < 5 * sum(array.nbytes for array in wide)


# --- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("networks", "sizes"), [(1, [1]), (40, [16, 16, 8]), (300, [48] * 6 + [12])])
def test_parts_fill_all_lanes(networks, sizes, monkeypatch):
    monkeypatch.setattr(many, "cores", lambda: 2)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        executor = Recording(pool)
        train_many(X, Y, networks, seed=0, executor=executor, **TOLD | {"epochs": 1})

    assert [len(part) for part in executor.parts] == sizes


def test_parts_are_cut_in_the_order_of_shapes():
    jobs = [{"hidden": (7, 4 + place % 2), "epochs": 1 + place % 3} for place in range(64)] + [{"hidden": WIDE}]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        executor = Recording(pool)
        actual = train_many(X, Y, jobs, seed=0, executor=executor, part=16, **TOLD | {"epochs": 2})
    shapes = [[network["hidden"] for network in part] for part in executor.parts]

    assert shapes[0][0] == WIDE  # what takes longest comes first
    assert [len(set(part)) for part in shapes] == [2, 1, 2, 1, 1]
    assert [network.sizes[-2] for network in actual.networks] == [4, 5] * 32 + [WIDE]
    assert bits(actual) == bits(train_many(X, Y, jobs, seed=0, **TOLD | {"epochs": 2}))


def test_progress_counts_networks_that_have_ended(capsys, monkeypatch):
    shown = []
    monkeypatch.setattr("fastbp.progress.Progress.show", lambda bar, done: shown.append((done, bar.total, bar.unit)))
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        train_many(X, Y, [{"epochs": 0}] * 2 + [{}] * 8, seed=0, executor=executor, part=3, progress=True, **TOLD)

    assert shown == [(done, 10, "network") for done in (1, 2, 5, 8, 10)]


# --- what goes wrong --------------------------------------------------------------------------------------------------


def failing(monkeypatch, error, seed=3):
    """Have the part fail that has the network of a seed."""
    run = Workshop.run

    def run_or_fail(workshop):
        tasks = [task for bucket in workshop.buckets for task in bucket.tasks]
        if seed in {task.seed for task in tasks}:
            error()
        run(workshop)

    monkeypatch.setattr(Workshop, "run", run_or_fail)


@processes
@pytest.mark.parametrize("kind", ["threads", "fork"])
def test_error_of_a_worker_comes_here_and_what_waits_is_cancelled(kind, monkeypatch):
    def fail():
        raise fastbp.ResourceError("must be less", "epochs")

    failing(monkeypatch, fail)
    with pool(kind) as executor:
        recording = Recording(executor)
        with pytest.raises(fastbp.ResourceError, match="'epochs' must be less") as caught:
            train_many(X, Y, 60, seed=0, executor=recording, part=1, **TOLD | {"epochs": 3000})

    assert caught.value.name == "epochs"
    assert any(future.cancelled() for future in recording.futures)
    assert all(future.done() for future in recording.futures)
    assert {"interrupted"} < set(caught.value.result.stopped)
    assert many._kept is None


@processes
def test_broken_pool_is_said_so_and_what_is_finished_is_kept(monkeypatch):
    failing(monkeypatch, lambda: os._exit(1), seed=15)
    expected = train_many(X, Y, 1, seed=0, **TOLD)
    with pool("fork") as executor, pytest.raises(concurrent.futures.process.BrokenProcessPool) as caught:
        train_many(X, Y, 16, seed=0, executor=executor, part=1, **TOLD)
    result = caught.value.result

    assert result.stopped[15] == "interrupted"
    assert result.stopped[0] == "epochs"
    assert result.networks[0].params.tobytes() == expected.networks[0].params.tobytes()


def test_memory_is_checked_here_and_by_workers(monkeypatch):
    monkeypatch.setattr("fastbp.checks._physical_memory", lambda: 2**20)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        executor = Recording(pool)
        with pytest.raises(fastbp.ResourceError, match="would fit"):
            train_many(X, Y, 1000, executor=executor, **TOLD | {"epochs": 1000})
        with pytest.raises(fastbp.ResourceError, match="would fit"):
            many.train_part("", many.Shared("", X, Y, {}), TOLD | {"epochs": 1000}, [{"seed": 0}] * 1000, 1)

    assert executor.submitted == []


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals")
def test_ctrl_c_cancels_what_waits_and_leaves_what_is_finished(monkeypatch, ctrl_c):
    def interrupt():
        time.sleep(0.2)  # in which the parts before are gathered
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)

    train_many(X, Y, 1, seed=0, **TOLD)
    failing(monkeypatch, interrupt)
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        recording = Recording(executor)
        with pytest.raises(KeyboardInterrupt) as caught:
            train_many(X, Y, 30, seed=0, executor=recording, part=1, **TOLD)

    assert caught.value.result.stopped == ["epochs"] * 3 + ["interrupted"] * 27
    assert [future.cancelled() for future in recording.futures] == [False] * 4 + [True] * 26


# --- a cluster --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """A scheduler in this process, and two workers in processes of their own."""
    distributed = pytest.importorskip("distributed")
    settings = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with distributed.LocalCluster(**settings) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    from distributed import Client

    with Client(cluster) as client:
        yield client


def test_dask_cluster_of_the_readme_trains_the_same_bits(client, monkeypatch):
    blocks = re.findall(
        r"^```py\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    (lines,) = [block for block in blocks if "train_many" in block]
    monkeypatch.setattr(importlib.import_module("dask.distributed"), "Client", lambda: client)
    executors = []

    def on_cluster(*data, executor, **told):
        executors.append(Recording(executor))
        return train_many(*data, executor=executors[0], **told)

    monkeypatch.setattr(fastbp, "train_many", on_cluster)
    names = {"dask": importlib.import_module("dask"), "fastbp": fastbp, "X": X, "y": Y, "settings": TOLD | {"seed": 0}}
    exec(lines.replace("10_000", "1_000"), names)
    (executor,) = executors
    expected = train_many(X, Y, 1000, seed=0, **TOLD)

    assert len(lines.splitlines()) == 3
    assert bits(names["result"]) == bits(expected)
    assert names["result"].networks[0].params.flags.writeable
    assert 1 <= len(executor.carriers) <= 4 < len(executor.parts)


def test_data_are_not_sent_with_each_part_of_a_dask_cluster(client):
    executor = Recording(client.get_executor())
    wide = np.tile(X, (100, 1)), np.tile(Y, (100, 1))
    result = train_many(*wide, 40, seed=0, executor=executor, part=1, **TOLD)

    assert bits(result) == bits(train_many(*wide, 40, seed=0, **TOLD))
    assert len(executor.carriers) <= 4  # two, and as many more if one worker is given what is meant for the other


def test_error_of_a_dask_worker_comes_here(client, monkeypatch):
    def refuses(data, settings, networks):
        raise fastbp.ResourceError("must be less", "epochs")

    class Refusing(Recording):
        def submit(self, function, number, data, settings, networks, threads):
            if networks[0].get("seed") == 3:
                self.futures.append(self.executor.submit(refuses, data, settings, networks))
                return self.futures[-1]
            return super().submit(function, number, data, settings, networks, threads)

    executor = Refusing(client.get_executor())
    with pytest.raises(fastbp.ResourceError, match="'epochs' must be less"):
        train_many(X, Y, 60, seed=0, executor=executor, part=1, **TOLD | {"epochs": 2000})

    assert any(future.cancelled() for future in executor.futures)


@pytest.mark.slow
def test_loss_of_a_dask_worker_in_mid_run_is_survived(client, monkeypatch):
    told = TOLD | {"epochs": 500}
    before = client.run(os.getpid)
    killed = []

    def kill(bar, done):
        if done >= 5 and not killed:
            killed.append(next(iter(before.values())))
            os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr("fastbp.progress.Progress.show", kill)
    executor = Recording(client.get_executor())
    actual = train_many(X, Y, 60, seed=0, executor=executor, part=1, **told)
    expected = train_many(X, Y, 60, seed=0, **told)
    client.wait_for_workers(2)

    assert killed
    assert killed[0] not in client.run(os.getpid).values()
    assert bits(actual) == bits(expected)
    assert len(executor.carriers) <= 8
