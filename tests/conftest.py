"""What all tests share: a fresh cache of compiled code and a seeded generator."""

import atexit
import os
import shutil
import tempfile

import numpy as np
import pytest

# Numba reads the variable when it is imported, so it is set here, before any test module is; processes started by
# tests inherit it. A fresh directory, because no test may pass or fail on code compiled from an older source.
os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="fastbp-tests-")
atexit.register(shutil.rmtree, os.environ["NUMBA_CACHE_DIR"], ignore_errors=True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
