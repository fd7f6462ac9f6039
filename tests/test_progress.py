"""What is shown while a training runs, by tqdm and without it; it goes to stderr, and only if asked for."""

import io
import re
import sys

import numpy as np
import pytest

import fastbp
from fastbp.choices import BACKENDS
from fastbp.progress import LINE_WIDTH, Progress

train = fastbp.train
MODULE = sys.modules["fastbp.progress"]
X, Y = np.linspace(-1, 1, 37)[:, None], np.linspace(-1, 1, 37) ** 2
SETTINGS = {"hidden": 4, "batch_size": 5, "seed": 0}
LINE = re.compile(r"epoch (\d+) of (\d+), loss (\S+), (\S+) epochs/s *")


@pytest.fixture
def without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)  # which makes its import an ImportError


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(MODULE.time, "perf_counter", lambda: now[0])
    return now


def lines(text):
    """The plain lines of a text, each of which is written over the one before."""
    return [LINE.fullmatch(line) for line in text.strip("\r\n").split("\r")]


def stop(state):
    return state.epoch == 7


# How a training ends, and the epochs that it has then done of so many.
ENDS = {
    "epochs": ({"epochs": 20}, 20, 20),
    "callback": ({"epochs": 20, "callback": stop}, 7, 20),
    "patience": ({"epochs": 20, "patience": 0, "min_delta": 1e9}, 2, 20),
}


@pytest.mark.parametrize("end", ENDS)
def test_plain_line_ends_with_the_last_epoch(end, without_tqdm, capsys):
    settings, done, epochs = ENDS[end]
    result = train(X, Y, **SETTINGS, **settings, progress=True)
    out, err = capsys.readouterr()
    last = lines(err)[-1]

    expected = str(done), str(epochs), f"{result.loss[-1]:.4g}"
    actual = last.groups()[:3]

    assert actual == expected
    assert float(last[4]) > 0
    assert err.endswith("\n")
    assert out == ""


@pytest.mark.parametrize("end", ENDS)
def test_bar_of_tqdm_ends_with_the_last_epoch(end, capsys):
    pytest.importorskip("tqdm")
    settings, done, epochs = ENDS[end]
    result = train(X, Y, **SETTINGS, **settings, progress=True)
    out, err = capsys.readouterr()
    last = err.strip().split("\r")[-1]

    assert f"| {done}/{epochs} [" in last
    assert f", loss {result.loss[-1]:.4g}]" in last
    assert re.search(r"[\d.]+epoch/s|[\d.]+s/epoch", last)
    assert out == ""


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_shown_unless_asked_for(backend, capfd):
    train(X, Y, **SETTINGS, epochs=20, backend=backend, validation=0.2, patience=3)

    assert capfd.readouterr() == ("", "")


def test_no_epochs_show_no_line(without_tqdm, capsys):
    train(X, Y, **SETTINGS, epochs=0, progress=True)

    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("plain", [True, False])
def test_progress_changes_no_bit(plain, monkeypatch, capsys):
    if plain:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    else:
        pytest.importorskip("tqdm")

    expected = train(X, Y, **SETTINGS, epochs=20)
    actual = train(X, Y, **SETTINGS, epochs=20, progress=True)

    assert actual.network.params.tobytes() == expected.network.params.tobytes()
    assert actual.loss.tobytes() == expected.loss.tobytes()


def test_resumed_training_counts_its_own_epochs(without_tqdm, capsys):
    fastbp.resume(train(X, Y, **SETTINGS, epochs=5), X, Y, epochs=3, progress=True)

    expected = "3", "3"
    actual = lines(capsys.readouterr().err)[-1].groups()[:2]

    assert actual == expected


def test_line_ends_where_a_callback_fails(without_tqdm, capsys):
    def fail(state):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        train(X, Y, **SETTINGS, epochs=20, progress=True, callback=fail, callback_every=3)

    err = capsys.readouterr().err

    assert lines(err)[-1][1] == "3"
    assert err.endswith("\n")


def test_bar_is_closed_where_a_callback_fails(monkeypatch, capsys):
    tqdm = pytest.importorskip("tqdm")
    bars = []

    class Recorded(tqdm.tqdm):
        def __init__(self, *arguments, **settings):
            super().__init__(*arguments, **settings)
            bars.append(self)

    def fail(state):
        raise RuntimeError("mine")

    monkeypatch.setattr(tqdm, "tqdm", Recorded)
    with pytest.raises(RuntimeError, match="mine"):
        train(X, Y, **SETTINGS, epochs=20, progress=True, callback=fail, callback_every=3)

    assert [(bar.n, bar.disable) for bar in bars] == [(3, True)]  # close() disables


def test_lines_are_some_time_apart(without_tqdm, clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(MODULE, "LINE_SECONDS", 16.0)
    with Progress(100, True) as progress:
        for done in range(1, 101):
            clock[0] += 1
            progress.show(done, 1 / done)

    expected = [16, 32, 48, 64, 80, 96, 100]
    actual = [int(line[1]) for line in lines(sys.stderr.getvalue())]

    assert actual == expected


def test_rate_is_that_since_the_beginning(without_tqdm, clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Progress(10, True) as progress:
        clock[0] += 4
        progress.show(10, 0.5)

    expected = ["2.5", "2.5"]
    actual = [line[4] for line in lines(sys.stderr.getvalue())]

    assert actual == expected


def test_shorter_line_covers_a_longer_one(without_tqdm, clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Progress(10, True) as progress:
        clock[0] += 1
        progress.show(1, 1.234e-10)
        clock[0] += 1
        progress.show(2, 0.5)

    actual = {len(line) for line in sys.stderr.getvalue().strip("\r\n").split("\r")}

    assert actual == {LINE_WIDTH}


def test_tqdm_is_not_imported_unless_shown():
    with Progress(10, False) as progress:
        progress.show(1, 0.5)

    assert progress.bar is None


@pytest.mark.parametrize("plain", [True, False])
def test_nothing_is_shown_where_there_is_no_stderr(plain, monkeypatch):
    """As under pythonw, and in services of Windows."""
    if plain:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    else:
        pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "stderr", None)

    expected = train(X, Y, **SETTINGS, epochs=20).loss.tobytes()
    actual = train(X, Y, **SETTINGS, epochs=20, progress=True).loss.tobytes()

    assert actual == expected
