"""Seconds until fastbp is of use: its import and its first call, each in a fresh process.

The JSON's statistics are of whole processes; its figures are what they measured themselves, beyond NumPy or Numba.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

IMPORT = """
import time, numpy
began = time.perf_counter()
from fastbp import train
print(time.perf_counter() - began)
"""
FIRST_CALL = """
import time, numba, numpy
X = numpy.random.default_rng(0).standard_normal((1024, 16))
began = time.perf_counter()
from fastbp import train
train(X, X[:, 0], hidden=32, epochs=1, seed=0)
print(time.perf_counter() - began)
"""


def seconds(code: str, cache: Path) -> float:
    """Run code in a fresh process with this cache of compiled code; it prints its seconds."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache)}
    return float(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True))


def best(benchmark: Any, code: str, caches: list[Path]) -> float:
    """Run code once with each cache; the fewest seconds."""
    measured: list[float] = []
    remaining = iter(caches)
    benchmark.pedantic(lambda: measured.append(seconds(code, next(remaining))), rounds=len(caches), iterations=1)
    return min(measured)


def test_import(benchmark: Any, record: Callable[..., None], tmp_path: Path) -> None:
    record("start", "import", {"fastbp": best(benchmark, IMPORT, [tmp_path] * 5)})


def test_first_call_with_a_cold_cache(benchmark: Any, record: Callable[..., None], tmp_path: Path) -> None:
    caches = [tmp_path / str(round) for round in range(2)]
    record("start", "first call, cold cache", {"fastbp": best(benchmark, FIRST_CALL, caches)})


def test_first_call_with_a_warm_cache(benchmark: Any, record: Callable[..., None], tmp_path: Path) -> None:
    seconds(FIRST_CALL, tmp_path)
    record("start", "first call, warm cache", {"fastbp": best(benchmark, FIRST_CALL, [tmp_path] * 5)})
