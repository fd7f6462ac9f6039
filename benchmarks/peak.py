"""The most that one core can do: fused multiply-adds on registers, none waiting for another."""

from __future__ import annotations

import functools
import math
import time

import numpy as np

STEPS = 1_000_000


@functools.cache
def peak_gflops(dtype: str) -> float:
    """Measure 10^9 operations per second in "float32" or "float64": the best of ten runs of some 10 ms."""
    from numba import njit

    from fastbp import simd

    # A row of the tile is a chain of dependent additions. Twelve hide the latency of two units that need four or five
    # cycles; where a vector is split over narrower registers, fewer rows are as many chains, and more would not fit.
    chains = 12 if simd.REGISTER_BITS == 512 else 6
    at, fill, load, multiply_add, store = simd.at, simd.fill, simd.load, simd.multiply_add, simd.store

    @njit
    def run(start, factor, term, steps):  # type: ignore[no-untyped-def]
        sums = fill(chains, 1, at(start, 0))
        a, b = load(1, 1, at(factor, 0), 0), load(1, 1, at(term, 0), 0)
        for _ in range(steps):
            sums = multiply_add(sums, a, b)
        store(at(start, 0), simd.VECTOR_BITS // 8 // start.itemsize, sums)

    lanes = simd.VECTOR_BITS // 8 // np.dtype(dtype).itemsize
    start, half, one = np.zeros(chains * lanes, dtype), np.full(lanes, 0.5, dtype), np.ones(lanes, dtype)
    best = math.inf
    for _ in range(10):
        began = time.perf_counter()
        run(start, half, one, STEPS)
        best = min(best, time.perf_counter() - began)
    return 2 * chains * lanes * STEPS / best / 1e9
