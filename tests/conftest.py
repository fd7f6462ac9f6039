"""What all tests share: a fresh cache of compiled code, a seeded generator, and no hurry."""

import atexit
import os
import shutil
import tempfile

# Before NumPy is imported. Matrices are small here, and where a core is busy threads of BLAS wait for each other.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import pytest
from helpers import machine
from hypothesis import HealthCheck, settings

# Numba reads the variable when it is imported, so it is set here, before any test module is; processes started by
# tests inherit it. A fresh directory, because no test may pass or fail on code compiled from an older source.
os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="fastbp-tests-")
atexit.register(shutil.rmtree, os.environ["NUMBA_CACHE_DIR"], ignore_errors=True)

# The same examples in every run, and no verdict of a clock on any of them.
settings.register_profile(
    "fastbp", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fastbp")


def pytest_report_header() -> str:
    """Name the machine, which timed tests judge together with the code."""
    return f"machine: {machine()}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests of the command `warmup`: what it compiles is loaded by all others."""
    items.sort(key=lambda item: item.path.name != "test_cli.py")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
