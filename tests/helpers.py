"""What several test files share."""

import itertools
import os
import platform
import random
import statistics
from pathlib import Path


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
    while not figures or (figures[-1] > limit and len(figures) < attempts):
        figures.append(measure())

    assert figures[-1] <= limit, f"{figures} all above {limit} on {machine()}"
