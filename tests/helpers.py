"""What several test files share."""

import dataclasses
import itertools
import os
import platform
import random
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
EPSILON = {dtype: float(np.finfo(dtype).eps) for dtype in (np.float64, np.float32, "float64", "float32")}
# Of what is smaller, few digits are left in a product.
TINY = {dtype: 2.0**-1000 if np.dtype(dtype) == np.float64 else 2.0**-120 for dtype in EPSILON}

# What the notebook prints: losses by their epochs, and to 8 digits the weights at the end and the last predictions.
NOTEBOOK_LOSSES = {
    1000: 0.39557039180027914,
    2000: 0.268978650120054,
    3000: 0.20877501367079165,
    4000: 0.17388635703099511,
    5000: 0.15095324126862225,
    6000: 0.13460178571028433,
    7000: 0.12227213430243797,
    8000: 0.11258998461667526,
    9000: 0.10475002443046719,
    10000: 0.09824792584007563,
}
NOTEBOOK_WEIGHTS = [0.90571962, 7.32475086, 0.90572643, 7.32731531, -27.46354604, 21.74964594]
NOTEBOOK_PREDICTIONS = [0.05432736, 0.89823995, 0.89824011, 0.13514441]


def loss_settings(loss, outputs):
    """Settings of a network for a loss and so many outputs."""
    levels = {"quantiles": [(k + 1) / (outputs + 1) for k in range(outputs)], "crossing_penalty": 0.5}
    return {"loss": loss, **(levels if loss == "quantile" else {})}


def outputs_for(loss, outputs):
    """So many outputs, or one more where the loss needs an even number."""
    return outputs + outputs % 2 if loss == "gaussian_nll" else outputs


# --- processes ------------------------------------------------------------------------------------------------------


def environment(without=(), **variables):
    """The variables of this process but those that begin so, and others; the package is that of this tree."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(tuple(without))}
    return kept | {"PYTHONPATH": str(ROOT)} | variables


def python(*arguments, cwd=None, without=(), **variables):
    """Run Python in a new process, where a warning is an error too."""
    command, variables = [sys.executable, "-W", "error", *arguments], environment(without, **variables)
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=600, check=False)


def output_of(*arguments, **settings):
    """Run Python in a new process, which must end well; return what it prints."""
    done = python(*arguments, **settings)

    assert done.returncode == 0, (done.returncode, done.stderr)  # -6 is SIGABRT
    return done.stdout


# --- cases ----------------------------------------------------------------------------------------------------------


def forged(kind, **values):
    """Settings that were never checked, as a pickle can make them: the defaults of the class but for these values."""
    settings = object.__new__(kind)
    for field in dataclasses.fields(kind):
        object.__setattr__(settings, field.name, values.get(field.name, field.default))
    return settings


def machine():
    """Name the processor, as far as the system tells, and count its cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def pairwise(seed, *axes):
    """Rows of choices, one from each axis, in which each two choices from two axes meet at least once."""
    draw = random.Random(seed)
    columns = list(itertools.combinations(range(len(axes)), 2))
    missing = {(i, j, a, b) for i, j in columns for a in range(len(axes[i])) for b in range(len(axes[j]))}
    while missing:
        rows = [[draw.randrange(len(axis)) for axis in axes] for _ in range(10)]
        met = [{(i, j, row[i], row[j]) for i, j in columns} & missing for row in rows]
        best = max(range(len(rows)), key=lambda k: len(met[k]))
        missing -= met[best]
        yield [axis[k] for axis, k in zip(axes, rows[best], strict=True)]


# --- clocks: only tests marked `timed` may depend on one ------------------------------------------------------------


def ratio_of_seconds(first, second, rounds=11):
    """Median ratio of the seconds that two functions return, called in turns, so that both meet the same machine."""
    return statistics.median(first() / second() for _ in range(rounds))


def assert_once_at_most(limit, measure, attempts=5):
    """Fail if each of several measurements is above the limit: a busy machine makes figures larger, none smaller."""
    figures = []
    for _ in range(attempts):
        figures.append(measure())
        if figures[-1] <= limit:
            return
    raise AssertionError(f"{figures} all above {limit} on {machine()}")
