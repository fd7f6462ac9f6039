"""Many networks at once: each is what `train` makes of it alone, whoever its neighbours are."""

import concurrent.futures
import os
import signal
import threading
import time

import numpy as np
import pytest

import fastbp
from fastbp import ManyResult, train, train_many, workspace
from fastbp.groups import MOST_PARAMETERS, Bucket, Lanes, Workshop
from fastbp.many import _one_array, _tasks, _told
from fastbp.workspace import GROUP_EPOCH

N = 70
MEMBERS = 11  # a group and a part of one in float64, part of one in float32

_random = np.random.default_rng(0)
X = _random.standard_normal((N, 5))
NUMBERS = np.c_[X[:, 0] * X[:, 1], X.sum(axis=1) > 0].astype(float)
COUNTS, SIGNS, CLASSES = np.abs(NUMBERS), (X.sum(axis=1) > 0).astype(int), _random.integers(0, 3, N)
WEIGHTS = _random.random(N) * (_random.random(N) < 0.7)

# What `train` is told, a row for each branch of the kernels.
TRAININGS = {
    "tanh": (NUMBERS, {"hidden": (7, 4), "activation": "tanh", "epochs": 5}),
    "dropout": (NUMBERS, {"hidden": (7, 4), "activation": "gelu", "dropout": 0.3, "batch_size": 8, "epochs": 5}),
    "no hidden layer": (NUMBERS, {"hidden": (), "epochs": 5}),
    "penalty": (SIGNS, {"hidden": 5, "loss": "binary_cross_entropy", "optimizer": "sgd", "l2": 0.1, "epochs": 5}),
    "classes": (CLASSES, {"hidden": 5, "loss": "cross_entropy", "optimizer": "adamw", "l2": 0.01, "epochs": 5}),
    "share": (
        CLASSES,
        {"hidden": 5, "loss": "cross_entropy", "validation": 0.2, "patience": 2, "class_weight": "balanced",
         "epochs": 20},
    ),
    "score": (
        NUMBERS,
        {"hidden": 5, "optimizer": fastbp.SGD(momentum=0.9, nesterov=True), "validation": 0.2, "patience": 1,
         "watch": "score", "sample_weight": WEIGHTS, "epochs": 30},
    ),
    "other rows": (
        NUMBERS,
        {"hidden": 5, "validation": (X[:9] + 0.1, NUMBERS[:9], WEIGHTS[:9] + 0.1), "patience": 0, "epochs": 20},
    ),
    "clipped": (
        NUMBERS,
        {"hidden": 5, "optimizer": "rmsprop", "schedule": "cosine", "clip_norm": 0.1, "batch_size": N, "epochs": 9},
    ),
    "whole gradients": (
        NUMBERS, {"hidden": 5, "optimizer": "irprop", "batch_size": None, "reduction": "sum", "epochs": 9}
    ),
    "plateau": (
        NUMBERS,
        {"hidden": (5, 3), "schedule": fastbp.ReduceOnPlateau(patience=0, min_delta=0.1, stop=True, minimum=0.1),
         "bias": False, "activation": ("silu", "softplus"), "loss": "huber", "epochs": 40},
    ),
    "one row": (COUNTS, {"hidden": 5, "loss": "poisson", "batch_size": 1, "epochs": 3}),
    "weights": (
        NUMBERS,
        {"hidden": 5, "loss": "absolute_error", "batch_size": 3, "shuffle": False, "sample_weight": WEIGHTS,
         "epochs": 4},
    ),
    "wide": (NUMBERS, {"hidden": MOST_PARAMETERS // 7, "epochs": 3}),
}  # fmt: skip


def alone(y, told, seed, **more):
    return train(X, y, seed=seed, **told, **more)


def assert_equal(result, place, expected, tolerance):
    n = len(expected.loss)
    assert (result.stopped[place], result.epochs[place]) == (expected.stopped, n)
    np.testing.assert_allclose(result.networks[place].params, expected.network.params, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(result.loss[:n, place], expected.loss, rtol=tolerance)
    assert np.isnan(result.loss[n:, place]).all()
    if expected.validation_loss is not None:
        assert result.best_epoch[place] == expected.best_epoch
        np.testing.assert_allclose(result.validation_loss[:n, place], expected.validation_loss, rtol=tolerance)
        np.testing.assert_allclose(
            result.validation_score[:n, place], expected.validation_score, rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-12), pytest.param("float32", 2e-4, marks=pytest.mark.slow)]
)
def test_each_network_is_what_train_makes_of_it(name, dtype, tolerance):
    y, told = TRAININGS[name]
    result = train_many(X, y, MEMBERS, seed=3, threads=2, dtype=dtype, **told)
    places = range(MEMBERS) if dtype == "float64" else (0, MEMBERS - 1)
    expected = [alone(y, told, 3 + place, dtype=dtype) for place in places]

    assert result.seeds.tolist() == list(range(3, 3 + MEMBERS))
    for place, single in zip(places, expected, strict=True):
        if dtype == "float32" and single.validation_loss is not None:  # rounding may decide when such a one stops
            continue
        assert_equal(result, place, single, tolerance)


def bits(result):
    return [network.params.tobytes() for network in result.networks], result.epochs.tolist()


@pytest.mark.parametrize("name", ["tanh", "share", "dropout", "penalty", "plateau"])
def test_bits_depend_on_no_neighbour_no_place_and_no_thread(name):
    y, told = TRAININGS[name]
    jobs = [{"seed": seed, "learning_rate": 0.01 * (1 + seed % 3)} for seed in range(29)]
    expected = bits(train_many(X, y, jobs, threads=1, **told))
    for threads, order in [(2, np.arange(29)), (3, np.random.default_rng(1).permutation(29)), (1, np.arange(29)[::-3])]:
        actual = bits(train_many(X, y, [jobs[place] for place in order], threads=threads, **told))

        assert actual[0] == [expected[0][place] for place in order]
        assert actual[1] == [expected[1][place] for place in order]


def test_tiny_networks_have_the_bits_of_the_general_path(monkeypatch):
    x, y = [[0, 0], [0, 1], [1, 0], [1, 1]], [0, 1, 1, 0]
    for told in ({}, {"bias": False, "reduction": "sum"}, {"optimizer": "adam", "activation": "relu"}):
        told = {"hidden": 2, "activation": "sigmoid", "optimizer": "sgd", "batch_size": None, "epochs": 50} | told
        assert Bucket(_tasks(x, y, _told(1, told))).plan.tiny
        fused = train_many(x, y, 9, seed=0, **told)
        with monkeypatch.context() as patch:
            patch.setattr(workspace, "TINY_UNITS", 1)
            general = train_many(x, y, 9, seed=0, **told)

        assert bits(fused) == bits(general)
        np.testing.assert_array_equal(fused.loss, general.loss)


def test_settings_may_differ_from_network_to_network():
    rows = np.arange(0, N, 2)
    jobs = [
        {"hidden": 3, "l2": 0.1},
        {"hidden": (4, 2), "learning_rate": 0.05},
        {"hidden": 3, "dropout": 0.2, "seed": 99},
        {"hidden": 3, "rows": rows, "validation_rows": np.arange(1, N, 2), "epochs": 4},
        {"hidden": 3, "sample_weight": WEIGHTS},
        {"hidden": 3, "optimizer": "sgd", "epochs": 0},
        {"hidden": 600},
    ]
    result = train_many(X, NUMBERS, jobs, epochs=6, seed=5)
    own = [dict(job) for job in jobs]
    held = own[3].pop("validation_rows"), own[3].pop("rows")
    for place, job in enumerate(own):
        job = {"epochs": 6, "seed": 5 + place} | job
        data = (X, NUMBERS)
        if place == 3:
            data, job["validation"] = (X[rows], NUMBERS[rows]), (X[held[0]], NUMBERS[held[0]])

        assert_equal(result, place, train(*data, **job), 1e-12)


def test_a_network_that_diverges_stops_alone():
    jobs = [{"learning_rate": 1e-2 if seed != 4 else 1e6, "seed": seed} for seed in range(MEMBERS)]
    told = {"hidden": 5, "activation": "identity", "optimizer": "sgd", "epochs": 30}
    result = train_many(X, NUMBERS, jobs, **told)
    others = train_many(X, NUMBERS, jobs[:4] + jobs[5:], **told)
    with pytest.raises(fastbp.DivergenceError) as caught:
        train(X, NUMBERS, **told, **jobs[4])

    assert result.stopped == ["epochs"] * 4 + ["diverged"] + ["epochs"] * 6
    assert result.epochs[4] == caught.value.epoch - 1
    np.testing.assert_allclose(result.networks[4].params, caught.value.result.network.params, rtol=1e-9)
    assert np.isnan(result.loss[result.epochs[4] :, 4]).all()
    assert bits(others)[0] == [b for place, b in enumerate(bits(result)[0]) if place != 4]


def test_lanes_are_given_to_those_who_wait(monkeypatch):
    jobs = [{"epochs": int(epochs), "seed": place} for place, epochs in enumerate(_random.integers(1, 40, 60))]
    tasks = _tasks(X, NUMBERS, _told(jobs, {"hidden": 3}))
    finished, groups = [], []
    monkeypatch.setattr("fastbp.groups.Lanes", lambda bucket: groups.append(Lanes(bucket)) or groups[-1])
    Workshop(tasks, 1, finished.append).run()
    walked = sum(int(lanes.group.position[GROUP_EPOCH]) for lanes in groups)

    assert finished == list(range(1, 61))
    assert 8 * walked <= sum(job["epochs"] for job in jobs) + 8 * 40  # nothing is lost but at the end of the last group


def test_a_thread_fills_its_lanes_whoever_waits_beside_it(monkeypatch):
    counts = []
    fill = Lanes.fill

    def counted(lanes, *arguments):
        filled = fill(lanes, *arguments)
        counts.append(sum(task is not None for task in lanes.tasks))
        return filled

    monkeypatch.setattr(Lanes, "fill", counted)
    lanes = workspace.VECTOR_BYTES // 8
    train_many(X, NUMBERS, 2 * lanes, hidden=3, epochs=2, threads=2, seed=0, dtype="float64")

    assert set(counts) == {0, lanes}  # lanes that are half full take as long


@pytest.mark.parametrize(("networks", "hidden", "helpers"), [(1, 3, 0), (8, 3, 0), (9, 3, 1), (40, 3, 3), (3, 60, 2)])
def test_no_more_threads_are_started_than_there_are_groups(networks, hidden, helpers, monkeypatch):
    started, help_out = [], Workshop._help
    monkeypatch.setattr(Workshop, "_help", lambda workshop: started.append(workshop) or help_out(workshop))
    told = {"hidden": (hidden, hidden), "epochs": 2, "seed": 0, "dtype": "float64"}
    result = train_many(X, NUMBERS, networks, threads=4, **told)

    assert len(started) == helpers
    assert len(result.networks) == networks


def test_result_predicts_with_all_networks():
    result = train_many(X, CLASSES, 5, hidden=4, loss="cross_entropy", epochs=3, seed=1)
    members = np.stack([network.predict(X) for network in result.networks])

    assert isinstance(result, ManyResult)
    np.testing.assert_array_equal(result.predict(X), members)
    np.testing.assert_array_equal(result.mean(X), members.mean(axis=0))
    np.testing.assert_array_equal(result.std(X), members.std(axis=0))
    counts = np.stack([(members.argmax(axis=2) == k).sum(axis=0) for k in range(3)])
    np.testing.assert_array_equal(result.vote(X), counts.argmax(axis=0))


@pytest.mark.parametrize(
    ("networks", "told", "error", "said"),
    [
        (0, {}, fastbp.ParameterError, "networks"),
        ([], {}, fastbp.ParameterError, "networks"),
        (True, {}, fastbp.ParameterTypeError, "networks"),
        ("ab", {}, fastbp.ParameterTypeError, "networks"),
        ([3], {}, fastbp.ParameterTypeError, r"networks\[0\]"),
        (2, {"hiden": 3}, fastbp.ParameterError, "hiden"),
        (2, {"callback": print}, fastbp.ParameterError, "callback"),
        ([{"network": None}], {}, fastbp.ParameterError, "network"),
        ([{}, {"learning_rate": -1}], {}, fastbp.ParameterError, "learning_rate"),
        (2, {"threads": 0}, fastbp.ParameterError, "threads"),
        (2, {"executor": 3}, fastbp.ParameterTypeError, "executor"),
        (2, {"part": 0}, fastbp.ParameterError, "part"),
        (2, {"rows": [0, N]}, fastbp.DataError, "rows"),
        (2, {"rows": [0.5]}, fastbp.DataError, "rows"),
        (2, {"validation_rows": []}, fastbp.DataError, "validation_rows"),
        (2, {"validation_rows": [1], "validation": 0.5}, fastbp.ParameterError, "validation"),
        (2, {"watch": "score"}, fastbp.ParameterError, "watch"),
        (2, {"optimizer": "irprop"}, fastbp.ParameterError, "batch_size"),
        (2, {"validation": 0.999}, fastbp.ParameterError, "validation"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(networks, told, error, said):
    with pytest.raises(error, match=said):
        train_many(X, NUMBERS, networks, **told)


def test_too_much_memory_is_refused_with_the_number_that_would_fit(monkeypatch):
    monkeypatch.setattr("fastbp.checks._physical_memory", lambda: 2**20)
    with pytest.raises(fastbp.ResourceError, match=r"1,?000 networks .* GiB.*: \d+ would fit"):
        train_many(X, NUMBERS, 1000, hidden=8, epochs=1000)


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_ctrl_c_ends_all_threads_and_leaves_what_is_finished(monkeypatch, ctrl_c):
    before = threading.active_count()
    jobs = [{"epochs": 3}] * 8 + [{"epochs": 1_000_000}] * 8

    def show(bar, done, loss=None):
        if done == 8:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("fastbp.progress.Progress.show", show)
    with pytest.raises(KeyboardInterrupt) as caught:
        train_many(X, NUMBERS, jobs, hidden=3, seed=0, threads=2)
    monkeypatch.undo()
    result = caught.value.result
    expected = train_many(X, NUMBERS, jobs[:8], hidden=3, seed=0)

    assert threading.active_count() == before
    assert result.stopped == ["epochs"] * 8 + ["interrupted"] * 8
    assert bits(result)[0][:8] == bits(expected)[0]


def test_an_executor_trains_the_same_bits_in_parts():
    y, told = TRAININGS["share"]
    expected = train_many(X, y, 20, seed=1, **told)
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        actual = train_many(X, y, 20, seed=1, executor=executor, part=3, **told)

    assert bits(actual) == bits(expected)
    np.testing.assert_array_equal(actual.loss, expected.loss)
    assert actual.stopped == expected.stopped


def test_lines_are_one_array_only_if_they_are():
    whole = np.ones((2, 3))
    read = [np.frombuffer(line.tobytes()) for line in whole]  # as they come from a worker

    assert _one_array(list(whole), (2, 3)) is whole
    assert _one_array(list(whole[::-1]), (2, 3)) is None
    assert _one_array(list(whole[:1]), (1, 3)) is None
    assert _one_array(read, (2, 3)) is None


def test_time_is_measured_without_compiling():
    began = time.perf_counter()
    result = train_many(X, NUMBERS, 3, epochs=2, seed=0)

    assert 0 <= result.seconds <= time.perf_counter() - began


@pytest.mark.parametrize("loss", ["quantile", "gaussian_nll"])
def test_losses_that_are_not_for_lanes_have_the_bits_of_train(loss):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(30, 2)), rng.normal(size=30)
    settings = {"loss": loss, "hidden": 4, "epochs": 3, "validation": 0.3, "quantiles": (0.2, 0.7)}
    many = fastbp.train_many(X, y, 2, **settings, seed=5)

    for k, network in enumerate(many.networks):
        alone = fastbp.train(X, y, **settings, seed=5 + k)
        assert network.params.tobytes() == alone.network.params.tobytes()
        np.testing.assert_array_equal(many.loss[:, k], alone.loss)


@pytest.mark.parametrize(
    ("chosen", "is_whole"), [([0, 1, 2], True), ([1, 0, 2], False), ([0, 1], False), ([0, 1, 1], False)]
)
def test_losses_are_taken_without_a_copy_where_they_are_all_lines_of_an_array_in_their_order(chosen, is_whole):
    whole = np.zeros((3, 4))
    actual = _one_array([whole[line] for line in chosen], (3, 4))

    assert (actual is whole) == is_whole


def test_losses_are_copied_where_networks_had_arrays_of_their_own():
    assert _one_array([np.zeros(4) for _ in range(3)], (3, 4)) is None
