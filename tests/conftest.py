"""What all tests share: a fresh cache of compiled code, all cores, a seeded generator, and no hurry."""

import atexit
import gc
import os
import shutil
import signal
import sys
import tempfile

# Before NumPy is imported. Matrices are small here, and where a core is busy threads of BLAS wait for each other.
# Benchmarks, beside which this file is loaded too, leave NumPy and scikit-learn the threads they like.
if "--benchmark-only" not in sys.argv:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import pytest
from helpers import machine
from hypothesis import HealthCheck, settings

# Numba reads the variable when it is imported, so it is set here, before any test module is; processes started by
# tests inherit it, and so do the workers that share a run. A fresh directory, because no test may pass or fail on code
# compiled from an older source.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="fastbp-tests-")
    atexit.register(shutil.rmtree, os.environ["NUMBA_CACHE_DIR"], ignore_errors=True)

# Files that begin first. What `warmup` compiles in the tests of the program, all others load; meanwhile other workers
# are busy with code that is compiled for a test alone. Then what takes longest, so that all end together.
FIRST = ("cli", "jit", "simd", "generated_code", "threads", "kernels", "train", "checks", "sklearn", "benchmarks")
MOST_WORKERS = 4  # each holds up to 0.8 GB

# The same examples in every run, and no verdict of a clock on any of them.
settings.register_profile(
    "fastbp", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fastbp")


def pytest_report_header() -> str:
    """Name the machine, which timed tests judge together with the code."""
    return f"machine: {machine()}"


@pytest.hookimpl(tryfirst=True)  # before that of pytest-xdist, which acts on what is set here
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Share out the files of the whole suite to as many workers as there are cores.

    A part of it, what a clock decides and a debugger have the one process, as has everything with `-n 0`.
    """
    option, worker = config.option, hasattr(config, "workerinput")
    whole = config.args_source is config.ArgsSource.TESTPATHS and not option.keyword
    timeless = not option.benchmark_only and ("not timed" in option.markexpr or option.markexpr == "slow")
    free = not (worker or option.usepdb or option.trace) and getattr(option, "numprocesses", 0) is None
    if whole and timeless and free:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        option.numprocesses = min(cores, MOST_WORKERS)
        option.dist = "loadfile"
        option.loadscopereorder = False  # the order of files is that of FIRST, not of their numbers of tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files of FIRST."""
    ranks = {f"test_{name}.py": rank for rank, name in enumerate(FIRST)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(ranks)))


def pytest_collection_finish() -> None:
    """Let the collector of garbage pass over what pytest itself keeps: half a second each time for all these tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def ctrl_c():
    """Have SIGINT raise KeyboardInterrupt: a shell may have started the tests with it ignored."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)
