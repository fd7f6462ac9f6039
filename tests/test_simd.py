"""The intrinsics of simd.py, one by one: accuracy against mpmath, exact bits against NumPy, and what they leave alone.

Each test iterates over the table of its kind, and the last one looks for intrinsics that are in none.
"""

import functools
import itertools
import math
import platform
import re
import textwrap
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import mpmath
import numba
import numpy as np
import pytest
from helpers import output_of
from llvmlite import binding, ir

from fastbp import jit, reference, simd
from fastbp.choices import ACTIVATIONS, Adam
from fastbp.network import Network
from fastbp.simd import (
    add_lane_sums,
    add_outer,
    add_outer_vectors,
    add_products,
    add_rows,
    add_to_totals,
    at,
    atomic_add,
    atomic_load,
    atomic_store,
    bundle,
    core,
    fill,
    flush_subnormals,
    give_way,
    if_few,
    if_full,
    keep_loops,
    lane_sum,
    lanes_of,
    load,
    load_first,
    load_matrix,
    load_rows,
    multiply_add,
    nap,
    pause,
    put_back,
    random_bits,
    store,
    store_first,
    store_lane_sums,
    store_matrix,
    ticks,
    transpose,
    uniform,
    uniform_of,
    zeros,
)
from fastbp.workspace import Memory, Plan, make_memory, make_plan, words_of

njit = numba.njit(**jit.OPTIONS)
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])
tiles = pytest.mark.parametrize(("rows", "vectors"), [(1, 1), (3, 2), (8, 1)])


def lanes(dtype):
    """Lanes of a vector, which is 64 bytes."""
    return 64 // np.dtype(dtype).itemsize


def bits(x):
    return x.view(f"u{x.itemsize}")


def assert_same_bits(actual, expected):
    """All NaN count as one; 0 and -0 do not."""
    assert actual.dtype == expected.dtype
    differ = (bits(actual) != bits(expected)) & ~(np.isnan(actual) & np.isnan(expected))

    assert not differ.any(), (np.flatnonzero(differ)[:4], actual[differ][:4], expected[differ][:4])


@functools.cache
def compiled(expression):
    """An expression of tiles x, y, z, w and a number s as a function of arrays, one vector after the other."""
    function = njit(eval(f"lambda x, y, z, w, s: {expression}", vars(simd)))

    @njit
    def loop(x, y, z, w, s, out):
        for q in range(0, out.size, lanes_of(at(out, 0))):
            operands = (
                load(1, 1, at(x, q), 0),
                load(1, 1, at(y, q), 0),
                load(1, 1, at(z, q), 0),
                load(1, 1, at(w, q), 0),
            )
            store(at(out, q), 0, function(*operands, s))

    return loop


def evaluate(expression, *operands, s=0.0):
    """The expression for all elements of up to four arrays."""
    size = operands[0].size
    padded = np.ones((4, -(-size // 16) * 16), operands[0].dtype)
    for row, operand in zip(padded, operands, strict=False):
        row[:size] = operand
    out = np.empty_like(padded[0])
    compiled(expression)(*padded, s, out)
    return out[:size]


# --- elementary functions -------------------------------------------------------------------------------------------

EXP_RANGE = {np.float32: (-87.0, 88.0), np.float64: (-708.0, 709.0)}


class Elementary(NamedTuple):
    numpy: Callable[..., Any]  # of float64: exact enough for float32
    mpmath: Callable[..., Any]  # for float64
    inverse: Callable[..., Any]
    range: Callable[..., Any]  # of a dtype: where the function is accurate
    units: float  # largest error there, in units in the last place, as measured; at most 2 are promised
    saturates: bool = False  # whether beyond its range it stays what it is at the end
    monotone: bool = False  # tanh, expm1 and erf are within their units only
    odd: bool = False


ELEMENTARY = {
    "exp": Elementary(np.exp, mpmath.exp, np.log, EXP_RANGE.get, 1.2, saturates=True, monotone=True),
    "log": Elementary(
        np.log, mpmath.log, np.exp, lambda dtype: (np.finfo(dtype).tiny, np.finfo(dtype).max), 0.9, monotone=True
    ),
    "log1p": Elementary(
        np.log1p,
        mpmath.log1p,
        np.expm1,
        lambda dtype: (np.nextafter(dtype(-1), 0), np.finfo(dtype).max),
        0.9,
        monotone=True,
    ),
    "expm1": Elementary(np.expm1, mpmath.expm1, np.log1p, EXP_RANGE.get, 1.7, saturates=True),
    "tanh": Elementary(np.tanh, mpmath.tanh, np.arctanh, lambda dtype: (-20.0, 20.0), 2, saturates=True, odd=True),
    "erf": Elementary(
        np.vectorize(math.erf, "d"),
        mpmath.erf,
        np.vectorize(lambda p: mpmath.erfinv(p) if abs(p) < 1 else math.nan, "d"),
        lambda dtype: (-6.0, 6.0),
        1.8,
        saturates=True,
        odd=True,
    ),
    "sigmoid": Elementary(
        lambda x: 1 / (1 + np.exp(-x)),
        lambda x: 1 / (1 + mpmath.exp(-x)),
        lambda p: np.log(p / (1 - p)),
        EXP_RANGE.get,
        1.6,
        saturates=True,
        monotone=True,
    ),
}
SPECIAL = [  # name, argument (a number or an attribute of numpy.finfo), result (None: the argument)
    ("exp", 0.0, 1),
    ("exp", -0.0, 1),
    ("exp", "smallest_subnormal", 1),
    ("log", 1, 0),
    ("log", 0.0, -np.inf),
    ("log", -0.0, -np.inf),
    ("log", "smallest_subnormal", -np.inf),
    ("log", np.inf, np.inf),
    ("log", -1, np.nan),
    ("log", "min", np.nan),
    ("log", -np.inf, np.nan),
    ("log1p", 0.0, None),
    ("log1p", -0.0, None),
    ("log1p", "smallest_subnormal", None),
    ("log1p", "tiny", None),
    ("log1p", np.inf, None),
    ("log1p", -1, -np.inf),
    ("log1p", -2, np.nan),
    ("log1p", "min", np.nan),
    ("log1p", -np.inf, np.nan),
    ("expm1", 0.0, None),
    ("expm1", -0.0, None),
    ("expm1", "smallest_subnormal", None),
    ("expm1", "tiny", None),
    ("expm1", -np.inf, -1),
    ("tanh", 0.0, None),
    ("tanh", -0.0, None),
    ("tanh", "smallest_subnormal", None),
    ("tanh", "tiny", None),
    ("tanh", np.inf, 1),
    ("tanh", -np.inf, -1),
    ("erf", 0.0, None),
    ("erf", -0.0, None),
    ("erf", "smallest_subnormal", None),
    ("erf", np.inf, 1),
    ("erf", -np.inf, -1),
    ("sigmoid", 0.0, 0.5),
    ("sigmoid", -0.0, 0.5),
    ("sigmoid", "smallest_subnormal", 0.5),
    ("sigmoid", np.inf, 1),
]
# Where searches found the largest errors, through all float32 between 0.001 and saturation, and 20 million float64
# (100 million for expm1 and erf), and where they were largest while a rounding was not yet made good.
WORST = [59.264122, -5.1983042, 0.70429426, -0.29570574, 0.40947255, 0.17249088, -0.17249088, 0.1726916, -16.929518]
WORST += [0.16742406193583237, 0.16296429875556695, 0.1662761991486602, 0.1649901798982159]
WORST += [-0.34740523, 0.20218165, 0.3472300808626659, 0.3624881406731074, 0.265920163880163, 0.22314873230698248]

names = pytest.mark.parametrize("name", ELEMENTARY)
monotone = pytest.mark.parametrize("name", [name for name, function in ELEMENTARY.items() if function.monotone])
saturating = pytest.mark.parametrize("name", [name for name, function in ELEMENTARY.items() if function.saturates])
odd = pytest.mark.parametrize("name", [name for name, function in ELEMENTARY.items() if function.odd])


@np.errstate(all="ignore")  # what is no argument is left out at the end
def samples(function, dtype, rng, count):
    """Arguments in the function's range, sorted, each with its next neighbour: of all sizes, uniform, and hard ones."""
    limits, (low, high) = np.finfo(dtype), function.range(dtype)
    sizes = np.exp2(rng.uniform(limits.minexp, limits.maxexp, count)) * rng.choice([-1, 1], count)
    uniform = [rng.uniform(max(low, -bound), min(high, bound), count) for bound in (1, 20, 1000)]
    # Hard are the surroundings of where reductions step, at x = (n + 1/2) ln 2 and 2^n sqrt(1/2), also of 2 x and of
    # 1 + x, and of where results cross a power of two, above which a unit in the last place is twice as large.
    multiples, powers = np.arange(-80, 81) / 4 * np.log(2), 2.0 ** np.arange(-30, 31)
    powers = np.concatenate([powers, powers * np.sqrt(0.5)])
    crossings = function.inverse(np.concatenate([powers, -powers]))
    hard = np.concatenate([multiples[72:89], multiples, powers, powers - 1, crossings])
    hard = rng.choice(hard[np.isfinite(hard)], 2 * count)
    hard *= 1 + rng.uniform(-1, 1, 2 * count) * np.exp2(-rng.uniform(2, limits.nmant, 2 * count))
    x = np.concatenate([sizes, *uniform, hard, WORST]).astype(dtype)
    x = np.unique([x, np.nextafter(x, limits.max)])
    return x[(low <= x) & (x <= high)]


def exact(function, x):
    """Two float64 arrays whose sum is the result in at least twice the precision of x."""
    if x.dtype == np.float32:
        result = function.numpy(x.astype(np.float64))
        return result, np.zeros_like(result)
    with mpmath.workprec(120):
        results = [function.mpmath(mpmath.mpf(number)) for number in x.tolist()]
        rounded = [float(result) for result in results]
        rest = [float(result - number) for result, number in zip(results, rounded, strict=True)]
    return np.array(rounded), np.array(rest)


def errors(actual, rounded, rest):
    """Distances from rounded + rest, in units in the last place of the exact result."""
    limits, size = np.finfo(actual.dtype), np.abs(rounded)
    size = np.where(np.sign(rest) * np.sign(rounded) < 0, np.nextafter(size, 0), size)  # 2^n stands for less than 2^n
    exponents = np.maximum(np.frexp(size)[1] - 1, limits.minexp)
    return np.abs(actual - rounded - rest) / np.ldexp(1.0, exponents - limits.nmant)


@names
@dtypes
def test_error_is_at_most_so_many_units_in_the_last_place(name, dtype, rng):
    function = ELEMENTARY[name]
    x = samples(function, dtype, rng, 200_000 if dtype == np.float32 else 1_000)
    expected = function.units
    actual = errors(evaluate(f"{name}(x)", x), *exact(function, x))

    assert actual.max() <= expected, x[actual.argmax()]


@monotone
@dtypes
def test_larger_argument_gives_no_smaller_result(name, dtype, rng):
    x = samples(ELEMENTARY[name], dtype, rng, 100_000)
    expected = 0
    actual = np.count_nonzero(np.diff(evaluate(f"{name}(x)", x)) < 0)

    assert actual == expected


@names
@dtypes
def test_nan_gives_nan(name, dtype):
    limits = np.finfo(dtype)
    infinities = bits(np.array([np.inf, -np.inf], dtype))
    payloads = np.array([1, 12345, 1 << (limits.nmant - 1), (1 << limits.nmant) - 1], infinities.dtype)
    x = (infinities[:, None] | payloads).ravel().view(dtype)
    actual = evaluate(f"{name}(x)", x)

    assert np.isnan(x).all()
    assert np.isnan(actual).all()


@pytest.mark.parametrize(("name", "x", "result"), SPECIAL)
@dtypes
def test_special_result(name, x, result, dtype):
    x = np.array([getattr(np.finfo(dtype), x) if isinstance(x, str) else x], dtype)
    expected = x if result is None else np.array([result], dtype)
    actual = evaluate(f"{name}(x)", x)

    assert_same_bits(actual, expected)


@saturating
@dtypes
def test_beyond_its_range_the_function_stays_what_it_is_at_the_end(name, dtype):
    limits = np.finfo(dtype)
    for end in np.array(ELEMENTARY[name].range(dtype), dtype):
        sizes = abs(end) * np.exp2(np.linspace(0, np.log2(limits.max) - 10, 1000))
        x = np.copysign([*sizes, np.nextafter(abs(end), limits.max), limits.max, np.inf], end).astype(dtype)
        last = evaluate(f"{name}(x)", np.array([end]))
        expected = np.full_like(x, last[0])
        actual = evaluate(f"{name}(x)", x)

        assert_same_bits(actual, expected)
        assert limits.tiny <= abs(last[0]) < np.inf  # neither subnormal nor too large


@odd
@dtypes
def test_function_is_odd(name, dtype, rng):
    x = samples(ELEMENTARY[name], dtype, rng, 10_000)
    expected = -evaluate(f"{name}(x)", x)
    actual = evaluate(f"{name}(x)", -x)

    assert_same_bits(actual, expected)


@names
@dtypes
def test_normal_argument_gives_no_subnormal_result(name, dtype, rng):
    limits = np.finfo(dtype)
    size = np.exp2(rng.uniform(limits.minexp, limits.maxexp, 100_000)).astype(dtype)
    size[:2] = limits.tiny, limits.max
    result = abs(evaluate(f"{name}(x)", np.concatenate([size, -size])))
    expected = 0
    actual = np.count_nonzero((result > 0) & (result < limits.tiny))

    assert actual == expected


# --- exact bits -----------------------------------------------------------------------------------------------------

VALUES = [0.0, -0.0, 1.0, -1.0, 0.1, -3.0, 1e-30, 1e30, np.inf, -np.inf, np.nan]
EXPRESSIONS = [
    "x + y",
    "x - y",
    "x * y",
    "x / y",
    "x + s",
    "s + x",
    "x - s",
    "s - x",
    "x * s",
    "s * x",
    "x / s",
    "s / x",
    "3 - x",
    "x * y + z",  # rounded twice: nothing is fused that is not written so
    "absolute(x)",
    "sqrt(x)",
    "where_less(x, y, z, w)",
    "where_less(x, s, 0.0, y)",
    "where_less(0.5, x, y, s)",
]
TWINS = {
    "absolute": np.abs,
    "sqrt": np.sqrt,
    "where_less": lambda x, y, yes, no: np.where(x < y, yes, no),
}


@pytest.mark.parametrize("expression", EXPRESSIONS)
@dtypes
def test_expression_gives_the_bits_of_numpy(expression, dtype):
    s = 0.1  # which neither precision has
    x, y, z, w = (np.array(column, dtype) for column in zip(*itertools.product(VALUES, repeat=4), strict=True))
    with np.errstate(all="ignore"):
        expected = eval(expression, TWINS, {"x": x, "y": y, "z": z, "w": w, "s": dtype(s)})
    actual = evaluate(expression, x, y, z, w, s=s)

    assert_same_bits(actual, expected.astype(dtype))


def fused(x, y, z):
    """x * y + z, rounded once; twice where the CPU cannot."""
    x, y, z = np.broadcast_arrays(x, y, z)
    if not simd.FUSED:
        return x * y + z
    with mpmath.workprec(np.finfo(x.dtype).nmant + 1):
        terms = zip(x.ravel().tolist(), y.ravel().tolist(), z.ravel().tolist(), strict=True)
        sums = [float(mpmath.fdot([(a, b), (c, 1)])) for a, b, c in terms]
    return np.array(sums, x.dtype).reshape(x.shape)


@pytest.mark.parametrize("operands", ["x, y, z", "s, y, z", "x, s, z", "x, y, s"])
@dtypes
def test_multiply_add_rounds_once(operands, dtype, rng):
    x, y = rng.standard_normal((2, 1000)).astype(dtype)
    x[:500], y[:500] = x[:500] * dtype(1e-3) + 1, y[:500] * dtype(1e-3) + 1
    z = np.where(rng.random(1000) < 0.5, -x * y, rng.standard_normal(1000)).astype(dtype)
    expected = fused(*eval(operands, {"x": x, "y": y, "z": z, "s": dtype(-1.1)}))
    actual = evaluate(f"multiply_add({operands})", x, y, z, s=-1.1)

    assert_same_bits(actual, expected)


@dtypes
def test_product_that_rounds_to_one_leaves_its_rest(dtype):
    e = np.array([dtype(2.0) ** -(np.finfo(dtype).nmant // 2 + 3)])
    expected = -e * e if simd.FUSED else 0 * e  # (1 + e) (1 - e) - 1
    actual = evaluate("multiply_add(x, y, -1)", 1 + e, 1 - e)

    assert_same_bits(actual, expected)
    assert_same_bits(evaluate("x * y + (-1)", 1 + e, 1 - e), 0 * e)


# --- subnormal numbers ----------------------------------------------------------------------------------------------

flushes = pytest.mark.skipif(simd.FLUSHING_BITS is None, reason="no control word of this CPU is known")


@njit
def control_word():
    word = flush_subnormals()
    put_back(word)
    return word


@flushes
@dtypes
def test_subnormal_numbers_count_as_zero_until_the_word_is_put_back(dtype):
    least = np.finfo(dtype).smallest_normal
    numbers = np.array([least / 4, least, 0.25, 4], dtype)

    @njit
    def products(numbers, out):
        word = flush_subnormals()
        out[0], out[1] = numbers[0] * numbers[3], numbers[1] * numbers[2]
        put_back(word)
        out[2], out[3] = numbers[0] * numbers[3], numbers[1] * numbers[2]

    before, actual = control_word(), np.empty(4, dtype)
    products(numbers, actual)

    assert actual.tolist() == [0, 0, least, least / 4]
    assert control_word() == before


@pytest.mark.parametrize(
    ("machine", "read", "write"),
    [("x86_64", "stmxcsr", "ldmxcsr"), ("aarch64", r"mrs\s.*FPCR", r"msr\s+FPCR")],
)
def test_control_word_is_that_of_the_machine(machine, read, write, monkeypatch):
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    try:
        target = binding.Target.from_triple(f"{machine}-unknown-linux-gnu").create_target_machine()
    except RuntimeError:
        pytest.skip("this LLVM knows no such machine")
    monkeypatch.setattr(simd, "MACHINE", machine)
    module = ir.Module()
    builder = ir.IRBuilder(ir.Function(module, ir.FunctionType(ir.VoidType(), []), "probe").append_basic_block())
    word = simd._control_word(builder)
    simd._set_control_word(builder, builder.or_(word, word.type(1)))
    builder.ret_void()
    assembly = target.emit_assembly(binding.parse_assembly(str(module)))

    assert re.search(f"{read}.*{write}", assembly, re.DOTALL)


# --- random numbers -------------------------------------------------------------------------------------------------

COUNTERS = [0, 1, 2**32 - 8, 2**63 - 1, 2**64 - 1, 2**64 - 5, 0x9E3779B97F4A7C15]


def test_random_bits_equal_their_twins(rng):
    counters = np.concatenate([np.array(COUNTERS, np.uint64), rng.integers(0, 2**64, 100, np.uint64)])

    @njit
    def function(counters, out):
        for k in range(counters.size):
            out[k] = random_bits(counters[k])

    expected = reference.random_bits(counters)
    actual = np.zeros_like(counters)
    function(counters, actual)

    np.testing.assert_array_equal(actual, expected)


@dtypes
@pytest.mark.parametrize("stride", [1, 0, 7, 2**63 + 1])
def test_uniform_numbers_equal_their_twins(stride, dtype, rng):
    @njit
    def function(counter, stride, out):
        store(at(out, 3), 0, uniform(at(out, 0), counter, stride))

    for counter in [*np.array(COUNTERS, np.uint64), *rng.integers(0, 2**64, 100, np.uint64)]:
        actual = buffers(rng, dtype, 1)[0]
        expected = actual.copy()
        with np.errstate(over="ignore"):
            counters = counter + np.uint64(stride) * np.arange(lanes(dtype), dtype=np.uint64)
        expected[3:][: lanes(dtype)] = reference.uniform(np.dtype(dtype), counters)
        function(counter, np.uint64(stride), actual)

        assert_same_bits(actual, expected)


@dtypes
def test_uniform_numbers_of_keys_equal_their_twins(dtype, rng):
    @njit
    def function(keys, counter, out):
        store(at(out, 3), 0, uniform_of(at(out, 0), at(keys, 1), counter))

    for counter in COUNTERS:
        actual, keys = buffers(rng, dtype, 1)[0], rng.integers(-(2**63), 2**63, 40)
        expected = actual.copy()
        with np.errstate(over="ignore"):
            counters = keys[1:][: lanes(dtype)].view(np.uint64) + np.uint64(counter)
        expected[3:][: lanes(dtype)] = reference.uniform(np.dtype(dtype), counters)
        function(keys, np.uint64(counter), actual)

        assert_same_bits(actual, expected)


# --- memory ---------------------------------------------------------------------------------------------------------
# Whole buffers are compared, so that what lies before, between and behind the rows guards itself.


def buffers(rng, dtype, number):
    return rng.standard_normal((number, 1000)).astype(dtype)


@tiles
@dtypes
@pytest.mark.parametrize(("stride", "out_stride"), [(1, 40), (0, 33), (37, 35)])
def test_tile_is_loaded_and_stored_row_by_row(rows, vectors, dtype, stride, out_stride, rng):
    actual, x = buffers(rng, dtype, 2)
    width = vectors * lanes(dtype)
    expected = actual.copy()
    for r in range(rows):
        expected[5 + r * out_stride :][:width] = x[3 + r * stride :][:width]
    copy(rows, vectors)(x, stride, actual, out_stride)

    assert_same_bits(actual, expected)


@functools.cache
def copy(rows, vectors):
    @njit
    def function(x, stride, out, out_stride):
        store(at(out, 5), out_stride, load(rows, vectors, at(at(x, 1), 2), stride))

    return function


@tiles
@dtypes
def test_only_the_first_lanes_are_read_and_written(rows, vectors, dtype, rng):
    @njit
    def function(x, stride, out, out_stride, count):
        tile = load_first(rows, vectors, at(x, 3), stride, count)
        store_first(at(out, 5), out_stride, tile, count)
        store(at(out, 505), out_stride, tile)

    width = vectors * lanes(dtype)
    for count in (0, 1, width // 2 + 1, width - 1, width, width + 3):
        actual, x = buffers(rng, dtype, 2)
        expected, first = actual.copy(), min(count, width)
        for r in range(rows):
            there = x[3 + r * 37 :][:first]
            expected[5 + r * 40 :][:first] = there
            expected[505 + r * 40 :][:width] = np.concatenate([there, np.zeros(width - first, dtype)])
        function(x, 37, actual, 40, count)

        assert_same_bits(actual, expected)


@dtypes
def test_nothing_is_read_behind_the_first_lanes(dtype):
    """The page behind the array cannot be read."""
    mmap = pytest.importorskip("mmap")
    if not hasattr(mmap, "MAP_PRIVATE") or platform.system() != "Linux":
        pytest.skip("pages are protected by Linux's mprotect")
    code = f"""
        import ctypes, mmap, numba, numpy as np
        from fastbp.simd import at, load_first, store_first

        @numba.njit
        def function(x, count):
            store_first(at(x, 0), 0, load_first(1, 1, at(x, 0), 0, count), count)

        page = mmap.PAGESIZE
        memory = mmap.mmap(-1, 2 * page)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(begin + page), ctypes.c_size_t(page), 0) == 0
        for count in range(1, {lanes(dtype)} + 1):
            size = count * {np.dtype(dtype).itemsize}
            x = np.frombuffer(memory, np.{dtype.__name__}, count, page - size)
            function(x, count)
    """
    output_of("-c", textwrap.dedent(code))


@dtypes
def test_products_of_rows_add_up_in_order(dtype, rng):
    @njit
    def function(x, y, out):
        store(
            at(out, 2), 0, add_products(load(1, 1, at(out, 2), 0), load(5, 1, at(x, 0), 40), load(5, 1, at(y, 0), 50))
        )

    actual, x, y = buffers(rng, dtype, 3)
    expected, V = actual.copy(), lanes(dtype)
    for r in range(5):
        expected[2:][:V] = fused(x[40 * r :][:V], y[50 * r :][:V], expected[2:][:V])
    function(x, y, actual)

    assert_same_bits(actual, expected)


@dtypes
def test_rows_add_up_in_order(dtype, rng):
    @njit
    def function(x, out):
        store(at(out, 2), 0, add_rows(load(1, 1, at(out, 2), 0), load(5, 1, at(x, 1), 40)))

    actual, x = buffers(rng, dtype, 2)
    expected, V = actual.copy(), lanes(dtype)
    for r in range(5):
        expected[2:][:V] += x[1 + 40 * r :][:V]
    function(x, actual)

    assert_same_bits(actual, expected)


@pytest.mark.parametrize(("rows", "columns"), [(4, 4), (2, 2), (4, 1), (1, 4), (3, 2)])
@dtypes
def test_products_of_matrices_of_vectors_add_up_in_order(rows, columns, dtype, rng):
    @njit
    def product(x, y, n, out):
        sums = load_matrix(rows, columns, at(out, 1), 130, 20)
        for k in range(n):
            sums = add_outer_vectors(sums, rows, at(x, 2 + 17 * k), 160, at(y, 3 + 19 * k), 150)
        store_matrix(rows, at(out, 1), 130, 20, sums)

    actual, x, y = buffers(rng, dtype, 3)
    expected, V = actual.copy(), lanes(dtype)
    for r, c in itertools.product(range(rows), range(columns)):
        there = expected[1 + 130 * r + 20 * c :][:V]
        for k in range(3):
            there[:] = fused(x[2 + 17 * k + 160 * r :][:V], y[3 + 19 * k + 150 * c :][:V], there)
    product(x, y, 3, actual)

    assert_same_bits(actual, expected)


@dtypes
def test_totals_are_summed_in_float64(dtype, rng):
    @njit
    def function(x, totals):
        add_to_totals(at(totals, 3), load(1, 1, at(x, 1), 0))

    (x,), (actual,) = buffers(rng, dtype, 1), buffers(rng, np.float64, 1)
    expected, V = actual.copy(), lanes(dtype)
    expected[3:][:V] += x[1:][:V].astype(np.float64)
    function(x, actual)

    assert_same_bits(actual, expected)


@tiles
@dtypes
def test_product_of_tiles_adds_up_in_order(rows, vectors, dtype, rng):
    @njit
    def product(bias, w, stride, x, n, out):
        sums = fill(rows, vectors, at(bias, 1))
        for k in range(n):
            sums = add_outer(sums, at(w, 2 + k), stride, at(x, 3 + k * 40))
        store(at(out, 4), 50, sums)
        store(at(out, 504), 50, zeros(rows, vectors, at(x, 0)))

    actual, bias, w, x = buffers(rng, dtype, 4)
    width, expected = vectors * lanes(dtype), actual.copy()
    for r in range(rows):
        sums = np.full(width, bias[1 + r])
        for k in range(3):
            sums = fused(w[2 + r * 7 + k], x[3 + k * 40 :][:width], sums)
        expected[4 + r * 50 :][:width] = sums
        expected[504 + r * 50 :][:width] = 0
    product(bias, w, 7, x, 3, actual)

    assert_same_bits(actual, expected)


@tiles
@dtypes
def test_tile_of_one_row_stands_for_every_row(rows, vectors, dtype, rng):
    @njit
    def function(x, y, out):
        several, one = load(rows, vectors, at(x, 0), 40), load(1, vectors, at(y, 0), 0)
        store(at(out, 0), 40, multiply_add(one, several, one - several) * one)

    actual, x, y = buffers(rng, dtype, 3)
    width, expected = vectors * lanes(dtype), actual.copy()
    one = y[:width]
    for r in range(rows):
        several = x[r * 40 :][:width]
        expected[r * 40 :][:width] = fused(one, several, one - several) * one
    function(x, y, actual)

    assert_same_bits(actual, expected)


def sum_of_lanes(vector):
    """The upper half of the lanes is added to the lower half until one is left."""
    while vector.size > 1:
        vector = vector[: vector.size // 2] + vector[vector.size // 2 :]
    return vector[0]


@pytest.mark.parametrize("rows", [1, 2, 4, 8])
@dtypes
def test_sum_of_lanes_does_not_depend_on_how_many_are_made(rows, dtype, rng):
    @njit
    def function(x, g, stride, out):
        tile = load(rows, 1, at(x, 3), 20)
        add_lane_sums(tile, at(g, 5), stride)
        out[7] = lane_sum(tile)
        store_lane_sums(at(out, 9), tile)

    x, g, out = buffers(rng, dtype, 3)
    x *= np.exp(x)
    actual = g.copy(), out.copy()
    vectors = [x[3 + 20 * r :][: lanes(dtype)] for r in range(rows)]
    sums = np.array([sum_of_lanes(vector) for vector in vectors])
    g[5 : 5 + 11 * rows : 11] += sums
    out[7] = functools.reduce(np.add, sums)
    out[9 : 9 + rows] = sums
    function(x, actual[0], 11, actual[1])

    assert_same_bits(actual[0], g)
    assert_same_bits(actual[1], out)


@dtypes
def test_order_of_a_sum_of_lanes_shows_in_its_bits(dtype, rng):
    x = buffers(rng, dtype, 1)[0]
    vectors = x[: 60 * lanes(dtype)].reshape(60, -1)
    differ = [sum_of_lanes(vector) != functools.reduce(np.add, vector) for vector in vectors]

    assert np.mean(differ) > 0.5  # otherwise the test above could not fail


@pytest.mark.parametrize("rows", [1, 5, 8, 15, 16, 20])
@dtypes
def test_rows_are_gathered_and_transposed(rows, dtype, rng):
    @njit
    def function(x, index, stride, rows, nothing, out, transposed):
        tile = load_rows(at(x, 3), at(index, 0), stride, rows, at(nothing, 1))
        store(at(out, 7), 20, tile)
        store(at(transposed, 7), 20, transpose(tile))

    width = lanes(dtype)
    x, nothing, out, transposed = buffers(rng, dtype, 4)
    index = rng.permutation(16)
    index[min(rows, width) :] = 10**12  # nothing is read there
    actual = out.copy(), transposed.copy()
    for r in range(width):
        row = x[3 + 17 * index[r] :][:width] if r < rows else nothing[1:][:width]
        out[7 + 20 * r :][:width] = row
        transposed[7 + r :][: 20 * width : 20] = row
    function(x, index, 17, rows, nothing, *actual)

    assert_same_bits(actual[0], out)
    assert_same_bits(actual[1], transposed)


@dtypes
def test_vector_is_64_bytes(dtype):
    expected = lanes(dtype)
    actual = njit(lambda x: lanes_of(at(x, 0)))(np.zeros(1, dtype))

    assert actual == expected


# --- bundles --------------------------------------------------------------------------------------------------------


@dtypes
def test_bundle_gives_the_fields_of_a_plan_and_a_memory(dtype):
    network = Network((3, 4, 2), dtype=np.dtype(dtype).name, bias=False, loss="huber", huber_delta=0.25, seed=0)
    plan = make_plan(network, 20, 8, Adam(0.125), l2=3, patience=-1, keep_best=True)
    memory = make_memory(plan, network._params, 2)

    @njit
    def function(precision, plan, memory, out):
        p, m = bundle(Plan, precision, True, plan), bundle(Memory, precision, True, memory)
        out[0], out[1], out[2], out[3] = p.sizes[1], p.kinds[0], p.l2, p.huber_delta
        out[4], out[5], out[6], out[7] = p.biases, p.keep_best, p.patience, p.settings[0]
        out[8], out[9] = m.params[5], m.counting[3]
        m.loss[1] = 7
        m.params[0] = 0.5

    expected = [4, ACTIVATIONS["relu"].code, 3, 0.25, False, True, -1, 0.125, network.params[5], 3]
    actual = np.zeros(10)
    function(np.dtype(dtype).type(), words_of(plan), words_of(memory), actual)

    assert actual.tolist() == expected
    assert (memory.loss[1], network.params[0]) == (7, 0.5)


@njit
def twice(x):
    return x + x


def test_version_says_which_functions_are_compiled():
    """By the type of its value: `Plan.version`."""
    plan = make_plan(Network((4, 16, 1)), 1, 1)
    versions = [
        replaced.version for replaced in (
            plan._replace(few=0), plan, plan._replace(few=0, clip_norm=1.0), plan._replace(clip_norm=1.0),
        )
    ]  # fmt: skip
    counted = []
    for version in versions:

        @njit
        def which(x, version, plan):
            fields = bundle(Plan, 0.0, version, plan)
            return if_full(fields, 0, twice, x), if_few(fields, 0, twice, x)

        counted.append(which(1, version, np.zeros(len(Plan._fields), np.int64)))

    assert versions == [None, 1, True, 1.0]
    assert counted == [(0, 0), (0, 2), (2, 0), (2, 2)]


def test_function_is_left_out_of_a_lean_bundle():
    never = numba.njit(lambda x: x.compiled_by_mistake)

    @njit
    def full(x, plan):
        return if_full(bundle(Plan, 0.0, True, plan), x, twice, x)

    @njit
    def lean(x, plan):
        return if_full(bundle(Plan, 0.0, None, plan), x, never, x)

    words = np.zeros(len(Plan._fields), np.int64)

    assert full(3, words) == 6
    assert lean(3, words) == 3
    assert never.signatures == []


# --- threads --------------------------------------------------------------------------------------------------------


@njit
def count_up(numbers, n):
    for _ in range(n):
        atomic_add(at(numbers, 0), 1, 3)


@njit
def passed_on(numbers, number):
    atomic_store(at(numbers, 0), 2, number)
    return atomic_load(at(numbers, 0), 2), atomic_add(at(numbers, 0), 2, -1)


@njit
def rest(n):
    began = ticks()
    for _ in range(n):
        pause()
        give_way()
        nap(1)
    return ticks() - began, core()


def test_kernel_that_keeps_its_loops_says_so_to_llvm():
    @njit
    def function(n):
        keep_loops()
        return n

    assert function(1) == 1
    assert "optsize" in str(function.inspect_llvm())


def test_sums_of_several_threads_lose_nothing():
    numbers = np.zeros(4, np.int64)
    count_up(numbers, 0)
    workers = [threading.Thread(target=count_up, args=(numbers, 10**6)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert numbers.tolist() == [0, 12 * 10**6, 0, 0]


def test_stored_number_is_loaded_and_the_old_one_returned():
    numbers = np.zeros(4, np.int64)

    assert passed_on(numbers, 2**40 + 7) == (2**40 + 7, 2**40 + 7)
    assert numbers.tolist() == [0, 0, 2**40 + 6, 0]


def test_thread_that_waits_goes_on():
    passed, number = rest(3)

    assert passed >= 0
    assert 0 <= number <= 4096


@pytest.mark.parametrize(("machine", "system", "platform"), [("aarch64", "posix", "darwin"), ("other", "nt", "win32")])
def test_other_machines_and_systems_are_asked_for_nothing_they_lack(machine, system, platform, monkeypatch):
    monkeypatch.setattr(simd, "MACHINE", machine)
    monkeypatch.setattr(simd, "os", SimpleNamespace(name=system))
    monkeypatch.setattr(simd, "sys", SimpleNamespace(platform=platform))
    elsewhere = njit(rest.py_func)
    elsewhere.compile((numba.int64,))
    code = elsewhere.inspect_llvm(elsewhere.signatures[0])

    assert not re.search("x86.sse|readcyclecounter|sched_getcpu", code)
    assert ("sched_yield" in code, "usleep" in code) == (system == "posix",) * 2


# --- the machine ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="the names are those of x86")
@pytest.mark.parametrize(
    ("processor", "expected"), [("haswell", "256 True"), ("skylake-avx512", "512 True"), ("x86-64", "128 False")]
)
def test_code_generator_is_asked_what_it_can_do(processor, expected):
    code = "from fastbp import simd; print(simd.REGISTER_BITS, simd.FUSED)"
    actual = output_of("-c", code, NUMBA_CPU_NAME=processor, NUMBA_CPU_FEATURES="")

    assert actual.strip() == expected


def test_every_intrinsic_is_tested():
    def intrinsics(names):
        return {name for name, value in names.items() if isinstance(value, type(simd.at))}

    expected = intrinsics(vars(simd))
    actual = intrinsics(globals()) | set(ELEMENTARY) | set(re.findall(r"\w+(?=\()", " ".join(EXPRESSIONS)))

    assert actual == expected
