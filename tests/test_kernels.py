"""Kernels against their twins in the reference, each array between guard words: pointers escape bounds checks."""

import dataclasses
import gc
import itertools

import numpy as np
import pytest
from helpers import EPSILON, TINY, loss_settings, outputs_for, pairwise
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbp import formulas, kernels, products, reference, workspace
from fastbp import rows as few_rows
from fastbp.choices import (
    ACTIVATIONS,
    ELEMENTWISE,
    LOSSES,
    OF_LOGITS,
    SGD,
    Adam,
    AdamW,
    CosineDecay,
    ExponentialDecay,
    InverseScaling,
    IRprop,
    ReduceOnPlateau,
    RMSprop,
)
from fastbp.jit import entry
from fastbp.network import Network
from fastbp.simd import at, bundle, lane_sum, lanes_of, load, store
from fastbp.workspace import (
    ERROR,
    LOSS,
    MISFIT,
    PANEL,
    TRAINING_LOSS,
    VALIDATION_LOSS,
    VALIDATION_MISFIT,
    VECTOR_BYTES,
    Memory,
    Plan,
    Share,
    aligned,
    forward_memory,
    make_memory,
    make_plan,
    panels_of,
    rows_of,
    words_of,
)

DTYPES = [np.float64, np.float32]
LANES = {dtype: VECTOR_BYTES // np.dtype(dtype).itemsize for dtype in DTYPES}
RUN_TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}
WIDTHS = [1, 2, 7, 8, 9, 15, 16, 17, 33]
PAIRS = [(loss, output) for loss in LOSSES for output in LOSSES[loss].outputs]
OPTIMIZERS = [
    SGD(0.05),
    SGD(0.005, momentum=0.9),
    SGD(0.005, momentum=0.9, nesterov=True),
    # With the usual epsilon a gradient that is nothing but rounding would still move a weight by the whole rate.
    Adam(0.01, epsilon=0.01),
    Adam(0.01, epsilon=0.01, epsilon_hat=True),
    AdamW(0.01, epsilon=0.01, weight_decay=0.5),
    RMSprop(0.005, epsilon=0.01),
    IRprop(0.01),
]


def label(value):
    """How a choice is called in the name of a test."""
    if isinstance(value, tuple | list):
        return "-".join(map(label, value))
    if isinstance(value, dict):
        return label(list(value.values()))
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    return getattr(value, "__name__", str(value))


by_dtype = pytest.mark.parametrize("dtype", DTYPES)
by_vectors = pytest.mark.parametrize("vectors", [1, 2])  # of a panel

# --- guard words --------------------------------------------------------------------------------------------------

GUARD = 64  # elements on each side
# Signalling NaNs: what is computed from them is NaN, and, written back, has other bits.
MARKERS = {8: np.uint64(0x7FF4DEADBEEFBEEF), 4: np.uint32(0x7FADBEEF)}


def fenced(array, fences):
    """A copy of the array between guard words; `fences` collects them."""
    fence = aligned(array.size + 2 * GUARD, array.dtype)
    words, marker = fence.view(f"u{array.itemsize}"), MARKERS[array.itemsize]
    words[:] = marker
    inside = fence[GUARD : GUARD + array.size].reshape(array.shape)
    inside[...] = array
    fences.append((words, marker))
    return inside


def copied(argument, fences):
    """A copy with fences around every array; numbers stay."""
    if isinstance(argument, Plan | Memory | Share):
        return type(argument)(*(copied(field, fences) for field in argument))
    return fenced(argument, fences) if isinstance(argument, np.ndarray) else argument


def bits(array):
    return array.view(f"u{array.itemsize}")


def call(function, *arguments, writes):
    """Call with fenced copies, check the guard words, and that only the arrays in `writes` changed; copy those back."""
    fences = []
    copies = [copied(argument, fences) for argument in arguments]
    compiled = hasattr(function, "py_func")
    result = function(*(words_of(c) if compiled and isinstance(c, Plan | Memory) else c for c in copies))
    for words, marker in fences:
        assert (words[:GUARD] == marker).all(), "written before an array"
        assert (words[-GUARD:] == marker).all(), "written behind an array"
    for argument, copy in zip(arguments, copies, strict=True):
        tuples = isinstance(argument, tuple)
        for array, after in zip(argument if tuples else [argument], copy if tuples else [copy], strict=True):
            if any(array is written for written in writes):
                array[...] = after
            elif isinstance(array, np.ndarray):
                np.testing.assert_array_equal(bits(after), bits(array), "written to, though it is only read")
    return result


def test_guard_words_see_what_is_written_outside():
    @entry
    def write(a, k):
        at(a, 0)[k] += 1

    a = np.ones(3)
    call(write, a, 2, writes=[a])

    assert a.tolist() == [1, 1, 2]
    for k, side in ((-1, "before"), (3, "behind")):
        with pytest.raises(AssertionError, match=side):
            call(write, a, k, writes=[a])
    with pytest.raises(AssertionError, match="only read"):
        call(write, a, 0, writes=[])


# --- kernels as Python can call them: arrays and numbers instead of pointers --------------------------------------


@entry
def product(w, row_stride, column_stride, rows, n, bias, x, S, out):
    products.product(at(w, 0), row_stride, column_stride, rows, n, at(bias, 0), at(x, 0), S, at(out, 0))


@entry
def product_in_slabs(w, row_stride, column_stride, rows, n, bias, x, x_stride, panels, S, out, out_stride):
    products.product_in_slabs(
        at(w, 0), row_stride, column_stride, rows, n, at(bias, 0), at(x, 0), x_stride, panels, S, at(out, 0), out_stride
    )


@entry
def activation(plan, kind, z):
    full = bundle(Plan, z[0], True, plan)
    for q in range(0, z.size, lanes_of(at(z, 0))):
        store(at(z, q), 0, formulas.activation(full, kind, load(1, 1, at(z, q), 0)))


@entry
def activate(plan, kind, z):
    formulas.activate(bundle(Plan, z[0], True, plan), kind, at(z, 0), z.size, at(z, 0))


@entry
def times_slope(plan, kind, delta, a):
    full = bundle(Plan, a[0], True, plan)
    for q in range(0, a.size, lanes_of(at(a, 0))):
        store(at(delta, q), 0, formulas.times_slope(full, kind, load(1, 1, at(delta, q), 0), load(1, 1, at(a, q), 0)))


@entry
def slope(plan, kind, delta, a):
    formulas.slope(bundle(Plan, a[0], True, plan), kind, at(delta, 0), at(a, 0), a.size)


@entry
def output(plan, a, y, weight, outputs, S, delta, totals):
    full = bundle(Plan, a[0], True, plan)
    formulas.output(full, at(a, 0), at(y, 0), at(weight, 0), outputs, S, at(delta, 0), at(totals, 0))


@entry
def dropout(rate, key, n, first, a, outputs, S):
    kernels.dropout(rate[0], key, n, first, at(a, 0), outputs, S, at(a, 0))


@entry
def misfit(plan, p, y, weight, outputs, S, totals):
    full = bundle(Plan, p[0], True, plan)
    totals[MISFIT] += lane_sum(formulas.misfit(full, at(p, 0), at(y, 0), at(weight, 0), full.spread, outputs, S))


@entry
def softmax(z, outputs, S):
    for v in range(0, S, lanes_of(at(z, 0))):
        formulas.softmax(formulas.highest(at(z, v), outputs, S), at(z, v), outputs, S)


@entry
def weight_gradient(a, a_stride, inputs, delta, outputs, samples, S, counting, all_zero, scratch, gradient):
    products.weight_gradient(
        at(a, 0), a_stride, inputs, at(delta, 0), outputs, samples, S, at(counting, 0), at(all_zero, 0), at(scratch, 0),
        at(gradient, 0),
    )  # fmt: skip


@entry
def bias_gradient(delta, outputs, panels, S, gradient):
    products.bias_gradient(at(delta, 0), outputs, outputs, panels, S, at(gradient, 0))


@entry
def outputs_of_rows(w, inputs, outputs, bias, a, stride, D, count, out):
    if outputs == 1:
        few_rows.outputs_of_column(at(w, 0), inputs, at(bias, 0), at(a, 0), stride, D, count, at(out, 0))
    else:
        few_rows.outputs_of_rows(at(w, 0), inputs, outputs, at(bias, 0), at(a, 0), stride, D, count, at(out, 0))


@entry
def backward_layer(w, g, update, inputs, outputs, a, C, delta, D, count, stride, below):
    target = at(w, 0) if update else at(g, 0)
    if outputs == 1:
        few_rows.deltas_of_column(at(w, 0), inputs, at(delta, 0), D, count, stride, at(below, 0))
        few_rows.add_to_column(target, inputs, at(a, 0), C, at(delta, 0), D, count)
    else:
        few_rows.backward_layer(
            at(w, 0), target, update, inputs, outputs, at(a, 0), C, at(delta, 0), D, count, stride, at(below, 0)
        )  # fmt: skip


@entry
def add_to_rows(g, n, outputs, a, C, delta, D, count):
    few_rows.add_to_rows(at(g, 0), n, outputs, at(a, 0), C, at(delta, 0), D, count)


@entry
def dropout_rows(rate, key, n, first, a, outputs, D, count):
    few_rows.dropout_rows(rate[0], key, n, first, at(a, 0), outputs, D, count, at(a, 0))


@entry
def scaled(x, factor, out):
    few_rows.scaled(x.size, at(x, 0), factor, at(out, 0))


# The numbers of an optimiser come in an array, so that they have the working precision.


@entry
def plain_sgd(w, g, numbers):
    formulas.plain_sgd(w.size, at(w, 0), at(g, 0), numbers[0], numbers[1])


@entry
def momentum_sgd(w, g, velocity, numbers, nesterov):
    formulas.momentum_sgd(w.size, at(w, 0), at(g, 0), at(velocity, 0), numbers[0], numbers[1], numbers[2], nesterov)


@entry
def adam(w, g, first, second, numbers):
    scale, rate, beta1, beta2, epsilon = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    formulas.adam(
        w.size, at(w, 0), at(g, 0), at(first, 0), at(second, 0), scale, rate, beta1, beta2, numbers[5], numbers[6],
        epsilon,
    )  # fmt: skip


@entry
def rmsprop(w, g, second, numbers):
    scale, rate, decay, epsilon, rest = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    formulas.rmsprop(w.size, at(w, 0), at(g, 0), at(second, 0), scale, rate, decay, rest, epsilon)


@entry
def irprop(w, g, last, steps, numbers):
    increase, decrease, smallest, largest = numbers[0], numbers[1], numbers[2], numbers[3]
    formulas.irprop(w.size, at(w, 0), at(g, 0), at(last, 0), at(steps, 0), increase, decrease, smallest, largest)


@entry
def norm(x):
    return formulas.norm(x.size, at(x, 0))


@entry
def shrink(root, x):
    formulas.shrink(x.size, root, at(x, 0))


@entry
def penalty(plan, w, g):
    return formulas.penalty(bundle(Plan, w[0], True, plan), at(w, 0), at(g, 0))


@entry
def decay(plan, w, numbers):
    formulas.decay(bundle(Plan, w[0], True, plan), at(w, 0), numbers[0])


@entry
def rate_factor(schedule, settings, epoch, reached, vector):
    return formulas.rate_factor(schedule, at(settings, 0), epoch, reached, at(vector, 0))


@entry
def power(base, exponent, vector):
    return formulas.power(base, exponent, at(vector, 0))


@entry
def cosine(x):
    return formulas.cosine(x)


@entry
def judge(plan, memory, epoch):
    return kernels.judge(bundle(Plan, 0.0, True, plan), bundle(Memory, 0.0, True, memory), epoch)


@entry
def shuffle(seed, epoch, order):
    kernels.shuffle(order.size, seed, epoch, at(order, 0))


@entry
def gather(data, order, count, F, S, panels, all_zero, out):
    kernels.gather(at(data, 0), at(order, 0), count, F, S, panels, at(all_zero, 0), at(out, 0))


@entry
def finite(w):
    return formulas.finite(w.size, at(w, 0))


PLAN = make_plan(Network((1, 1)), 1, 1)  # for kernels that only ask whether it is lean


def plan_of(loss, output=None, outputs=2, d=1.0, **extras):
    """A plan of one layer with this loss and this activation."""
    network = Network((1, outputs), output=output, huber_delta=d, **loss_settings(loss, outputs))
    return make_plan(network, 1, 1, **extras)


def numbers_of(dtype, *numbers):
    return np.array(numbers, dtype)


def draw(rng, dtype, *shape):
    return rng.normal(size=shape).astype(dtype)


def assert_near(actual, expected, units, scale=None, message=""):
    """Equal to so many roundings of the scale, by default of each number itself."""
    epsilon = EPSILON[actual.dtype.type]
    relative, absolute = (units * epsilon, TINY[actual.dtype.type]) if scale is None else (0, units * epsilon * scale)
    np.testing.assert_allclose(actual, expected, rtol=relative, atol=absolute, err_msg=str(message))


# --- matrix product -----------------------------------------------------------------------------------------------


@by_dtype
@by_vectors
@pytest.mark.parametrize("transposed", [False, True], ids=["forward", "transposed"])
@pytest.mark.parametrize("rows", WIDTHS)
def test_product_equals_its_twin(rows, transposed, vectors, dtype, rng):
    S = vectors * LANES[dtype]
    for n in WIDTHS:
        # Forward w is stored (n, rows), backward (rows, n).
        w, bias, x = draw(rng, dtype, n, rows), draw(rng, dtype, rows), draw(rng, dtype, n, S)
        stored, strides = (w.T.copy(), (n, 1)) if transposed else (w, (1, rows))
        out = np.empty((rows, S), dtype)
        call(product, stored, *strides, rows, n, bias, x, S, out, writes=[out])

        expected = reference.product(w, x.T, bias).T
        actual = out

        assert_near(actual, expected, 4, scale=n**0.5 * 4, message=f"n = {n}")


@by_dtype
def test_sum_of_a_product_does_not_depend_on_the_shape(dtype, rng):
    V, n = LANES[dtype], 9
    for rows in WIDTHS:
        w, bias, x = draw(rng, dtype, n, rows), draw(rng, dtype, rows), draw(rng, dtype, n, 2 * V)
        whole = np.empty((rows, 2 * V), dtype)
        call(product, w, 1, rows, rows, n, bias, x, 2 * V, whole, writes=[whole])
        parts = np.empty((rows, 2, V), dtype)
        for r, half in itertools.product(range(rows), range(2)):
            part, columns = np.empty((1, V), dtype), x[:, half * V : (half + 1) * V].copy()
            call(product, w[:, r].copy(), 1, 1, 1, n, bias[r : r + 1].copy(), columns, V, part, writes=[part])
            parts[r, half] = part

        expected = parts.reshape(rows, 2 * V)
        actual = whole

        np.testing.assert_array_equal(actual, expected, err_msg=f"rows = {rows}")


# Of several columns, of several rows, and with rows left over: fewer than half a tile, and more.
SLABS = [(1, 700), (9, 193), (33, 641), (102, 1400), (300, 321), (700, 100)]


@by_dtype
@by_vectors
@pytest.mark.parametrize("transposed", [False, True], ids=["forward", "transposed"])
@pytest.mark.parametrize("panels", [1, 3])
def test_product_in_slabs_gives_the_bits_of_the_product(panels, transposed, vectors, dtype, rng):
    S = vectors * LANES[dtype]
    for (rows, n), beside in itertools.product([*itertools.product(WIDTHS, WIDTHS), *SLABS], [0, 2]):
        w, bias, x = draw(rng, dtype, n, rows), draw(rng, dtype, rows), draw(rng, dtype, panels, n + beside, S)
        stored, strides = (w.T.copy(), (n, 1)) if transposed else (w, (1, rows))
        out = draw(rng, dtype, panels, rows + beside, S)
        expected = out.copy()
        for x_p, expected_p in zip(x, expected, strict=True):
            product(stored, *strides, rows, n, bias, x_p, S, expected_p)
        call(
            product_in_slabs, stored, *strides, rows, n, bias, x, n + beside, panels, S, out, rows + beside,
            writes=[out],
        )  # fmt: skip

        actual = out

        message = f"rows = {rows}, n = {n}, {beside} beside"
        np.testing.assert_array_equal(bits(actual), bits(expected), message)


# --- activations --------------------------------------------------------------------------------------------------


def logits(name, dtype, rng):
    """Numbers that an activation may meet, whole vectors of them."""
    special = [0, -0.0, 1e-30, -1e-30, 1e-3, -1e-3, 20, -20, 87, -87, 89, -89, 710, -710, 800, -800, np.inf, -np.inf]
    z = np.concatenate([special, rng.normal(size=15) * 3, rng.normal(size=31)]).astype(dtype)
    if name == "exponential":  # which ends where the kernels' exp does, and in NumPy at infinity
        z[z > {np.float64: 709, np.float32: 88}[dtype]] = 1
    if ACTIVATIONS[name].code in OF_LOGITS:  # 0 times infinity
        z[np.isinf(z)] = -1
    return z


def tolerances(name, dtype):
    """Relative and absolute: far below zero Phi(z) is the rest of a difference, and a sigmoid does not fall to 0."""
    absolute = {"gelu": 32 * EPSILON[dtype], "silu": 1000 * TINY[dtype]}.get(name, TINY[dtype])
    return {"rtol": 8 * EPSILON[dtype], "atol": absolute}


@by_dtype
@pytest.mark.parametrize("kernel", [activation, activate], ids=["activation", "activate"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_activation_equals_its_twin(name, kernel, dtype, rng):
    kind, z = ACTIVATIONS[name].code, logits(name, dtype, rng)
    for n in (LANES[dtype], z.size):
        a = z[:n].copy()
        call(kernel, PLAN, kind, a, writes=[a])

        expected = reference.activation(kind, z[:n])
        actual = a

        np.testing.assert_allclose(actual, expected, **tolerances(name, dtype))


@by_dtype
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_nan_passes_through_activation_and_slope(name, dtype):
    kind = ACTIVATIONS[name].code
    lane = np.arange(LANES[dtype])
    for k in (0, LANES[dtype] - 1):
        a = np.where(lane == k, np.nan, 1).astype(dtype)
        call(activate, PLAN, kind, a, writes=[a])

        expected = lane == k
        actual = np.isnan(a)

        np.testing.assert_array_equal(actual, expected)
        if name not in ("identity", "leaky_relu"):  # whose slopes do not contain a
            delta = np.ones_like(a)
            call(slope, PLAN, kind, delta, a, writes=[delta])

            np.testing.assert_array_equal(np.isnan(delta), expected)


@by_dtype
@pytest.mark.parametrize("kernel", [times_slope, slope], ids=["times_slope", "slope"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_slope_equals_its_twin(name, kernel, dtype, rng):
    kind, z = ACTIVATIONS[name].code, logits(name, dtype, rng)
    kept, delta = z if reference.of_logits(kind) else reference.activation(kind, z), draw(rng, dtype, z.size)
    kept[-1] = np.nan
    delta[2::20], delta[3::20] = np.inf, np.nan
    actual = delta.copy()
    call(kernel, PLAN, kind, actual, kept, writes=[actual])

    with np.errstate(invalid="ignore"):
        expected = reference.times_slope(kind, delta, kept)

    # The slopes written with z are sums, which vanish somewhere.
    absolute = 64 * EPSILON[dtype] if reference.of_logits(kind) else 0
    np.testing.assert_allclose(actual, expected, rtol=8 * EPSILON[dtype], atol=absolute)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_kernels_keep_logits_for_the_slopes_that_need_them(name):
    expected = ACTIVATIONS[name].code in OF_LOGITS
    actual = formulas.of_logits.py_func(ACTIVATIONS[name].code)

    assert actual == expected


# --- dropout ------------------------------------------------------------------------------------------------------


def dropped(a, rate, key, n, first, S):
    """What dropout makes of a (samples, features), panel by panel."""
    dtype, (samples, features) = a.dtype.type, a.shape
    parts = []
    for p in range(0, samples, S):
        panel = in_panels(a[p : p + S], 1, features, S)[0]
        call(dropout, numbers_of(dtype, rate), key, n, first + p, panel, features, S, writes=[panel])
        parts.append(panel.T)
    return np.concatenate(parts)[:samples]


@by_dtype
@by_vectors
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_gives_the_bits_of_its_twin(rate, vectors, dtype, rng):
    for samples, features, first in [(1, 1, 0), (7, 3, 5), (40, 17, 0), (40, 2, 960)]:
        a, key = draw(rng, dtype, samples, features), reference.random_stream(3, 2, 1)
        a[0, 0] = np.nan

        expected = reference.dropout(dtype(rate), key, 1000, first, a)
        actual = dropped(a, rate, key[0], 1000, first, vectors * LANES[dtype])

        np.testing.assert_array_equal(actual, expected)


# --- losses -------------------------------------------------------------------------------------------------------


def targets(loss, dtype, rng, *shape):
    """Targets that the loss is meant for: any numbers, 0 and 1, rows of probabilities, or counts and parts of them."""
    if loss == "binary_cross_entropy":
        return rng.integers(0, 2, shape).astype(dtype)
    if loss == "cross_entropy":
        return rng.dirichlet(np.ones(shape[1]), shape[0]).astype(dtype)
    if loss == "poisson":
        return (rng.poisson(1, shape) * rng.choice([1, 0.3], shape)).astype(dtype)
    return draw(rng, dtype, *shape)


HUBER_DELTAS = [0.01, 1.0, 1.345, 100.0]


@by_dtype
@by_vectors
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("spread", [1, 30])
@pytest.mark.parametrize(("loss", "output_name"), PAIRS)
def test_loss_of_a_panel_equals_its_twin(loss, output_name, spread, apart, vectors, dtype, rng):
    S, kind = vectors * LANES[dtype], ACTIVATIONS[output_name].code
    if output_name == "exponential" or loss == "gaussian_nll":
        spread = min(spread, 5)  # of what nears infinity no digit is left
    apart = apart and loss != "cross_entropy"
    for width, d in itertools.product(WIDTHS, HUBER_DELTAS if loss == "huber" else [1.0]):
        outputs = outputs_for(loss, width)
        z, y = spread * draw(rng, dtype, S, outputs), targets(loss, dtype, rng, S, outputs)
        if output_name in ("identity", "relu"):
            y[::3] = reference.activation(kind, z[::3])  # residuals of 0
        weight = rng.choice([0, 0.5, 1, 2], (S, outputs if apart else 1)).astype(dtype)
        a, delta, totals = z.T.copy(), np.empty((outputs, S), dtype), np.arange(10.0)
        plan = plan_of(loss, output_name, outputs, d, output_weights=apart)
        arguments = plan, a, y.T.copy(), weight.T.copy(), outputs, S, delta, totals
        call(output, *arguments, writes=[a, delta, totals])

        p, expected_delta, losses, error = reference.output(plan, z, y, weight)
        expected = np.arange(10.0)
        expected[LOSS] += losses.sum(dtype=float)
        expected[ERROR] += error.sum(dtype=float)
        actual = totals

        message = f"outputs = {outputs}, d = {d}"
        rounding = 16 * EPSILON[dtype]
        cancelling = {"poisson": np.abs(z) * y + p, "gaussian_nll": np.abs(z)}  # terms
        absolute = rounding * cancelling.get(loss, np.zeros(1)).sum()
        np.testing.assert_allclose(actual, expected, rtol=rounding, atol=absolute, err_msg=message)
        # Differences of logits are rounded like the logits.
        relative = rounding * (1 + spread if loss == "cross_entropy" else 1)
        absolute = tolerances(output_name, dtype)["atol"] if output_name != "softmax" else TINY[dtype]
        np.testing.assert_allclose(a.T, p, rtol=relative, atol=absolute, err_msg=message)
        scale = max(1, np.abs(z).max(), np.abs(y).max(), np.abs(expected_delta).max())
        scale *= spread if reference.of_logits(kind) else 1  # slopes hold z times a difference
        assert_near(delta.T, expected_delta, 16, scale=scale, message=message)


@by_dtype
@pytest.mark.parametrize(("loss", "output_name"), PAIRS)
def test_nan_logit_surfaces_in_loss_and_delta(loss, output_name, dtype, rng):
    S, outputs = LANES[dtype], outputs_for(loss, 1)
    z, y = draw(rng, dtype, S, outputs), np.ones((S, outputs), dtype)
    z[1] = np.nan
    a, delta, totals = z.T.copy(), np.empty((outputs, S), dtype), np.zeros(10)
    plan, weight = plan_of(loss, output_name, outputs), np.ones(S, dtype)
    call(output, plan, a, y.T.copy(), weight, outputs, S, delta, totals, writes=[a, delta, totals])

    expected = np.arange(S) == 1
    actual = np.isnan(delta[0])

    np.testing.assert_array_equal(actual, expected)
    assert np.isnan(totals[[LOSS, ERROR]]).all()


# Logits of two outputs, their targets and the sum of their losses.
EXTREMES = {
    # sure and right, sure and wrong, undecided
    "binary_cross_entropy": [
        ([800, -800], [1, 0], 0), ([-800, 800], [1, 0], 1600), ([800, 800], [1, 0], 800),
        ([0, 0], [1, 0], 2 * np.log(2)),
    ],
    "cross_entropy": [
        ([800, -800], [1, 0], 0), ([-800, 800], [1, 0], 1600), ([800, 800], [1, 0], np.log(2)),
        ([0, 0], [1, 0], np.log(2)),
    ],
    # p - y + y (log y - z)
    "poisson": [
        ([-800, -800], [0, 0], 0), ([-800, -80], [1, 0], 799), ([0, 0], [1, 0], 1),
        ([np.log(4), 0], [4, 2], 2 * np.log(2) - 1),
    ],
    # (s + (m - y)^2 exp(-s)) / 2; a residual of 0 leaves the logarithm
    "gaussian_nll": [([1, 800], [0, 0], 400), ([3, -800], [3, 0], -400), ([3, 0], [1, 0], 2), ([2, 0], [2, 0], 0)],
}  # fmt: skip


@by_dtype
@pytest.mark.parametrize("loss", EXTREMES)
def test_loss_is_stable_for_large_logits(loss, dtype):
    S, four = LANES[dtype], EXTREMES[loss]
    z, y = (np.tile(np.array([row[k] for row in four], dtype), (S // 4, 1)) for k in range(2))
    a, delta, totals = z.T.copy(), np.empty((2, S), dtype), np.zeros(10)
    plan, weight = plan_of(loss), np.ones(S, dtype)
    call(output, plan, a, y.T.copy(), weight, 2, S, delta, totals, writes=[a, delta, totals])

    expected = sum(row[2] for row in four) * S / 4
    actual = totals[LOSS]

    assert actual == pytest.approx(expected, rel=4 * EPSILON[dtype])
    assert np.isfinite(delta).all()


@by_dtype
@by_vectors
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_misfit_equals_its_twin(loss, apart, vectors, dtype, rng):
    S, apart = vectors * LANES[dtype], apart and loss != "cross_entropy"
    for width in WIDTHS:
        outputs = outputs_for(loss, width)
        # Few different numbers, so that several classes are the likeliest, and outputs undecided.
        p = (rng.integers(0, 5, (S, outputs)) / 4).astype(dtype)
        y = (
            (rng.integers(0, 3, (S, outputs)) / 2).astype(dtype)
            if loss == "cross_entropy"
            else targets(loss, dtype, rng, S, outputs)
        )
        weight = rng.choice([0, 0.5, 1, 2], (S, outputs if apart else 1)).astype(dtype)
        plan = plan_of(loss, outputs=outputs, output_weights=apart, spread=tuple(rng.random(outputs).tolist()))
        totals = np.arange(10.0)
        call(misfit, plan, p.T.copy(), y.T.copy(), weight.T.copy(), outputs, S, totals, writes=[totals])

        expected = np.arange(10.0)
        expected[MISFIT] += reference.misfit(plan, p, y, weight).sum(dtype=float)
        actual = totals

        np.testing.assert_allclose(actual, expected, rtol=16 * EPSILON[dtype], err_msg=f"outputs = {outputs}")


@by_dtype
@by_vectors
def test_softmax_equals_its_twin(vectors, dtype, rng):
    S = vectors * LANES[dtype]
    for outputs in WIDTHS:
        z = 30 * draw(rng, dtype, S, outputs)
        p = z.T.copy()
        call(softmax, p, outputs, S, writes=[p])

        expected = reference.softmax(z).T
        actual = p

        assert_near(actual, expected, 16, message=f"outputs = {outputs}")


# --- gradients ----------------------------------------------------------------------------------------------------


def in_panels(x, panels, features, S):
    """x (samples, features) as panels (panels, features, S), spare samples zero."""
    padded = np.zeros((panels * S, features), x.dtype)
    padded[: len(x)] = x
    return padded.reshape(panels, S, features).transpose(0, 2, 1).copy()


@by_dtype
@by_vectors
@pytest.mark.parametrize("panels", [1, 2, 3])
@pytest.mark.parametrize("outputs", [*WIDTHS, 21, 47])  # the last two: a tile of two vectors, and one of one
def test_weight_gradient_equals_its_twin(outputs, panels, vectors, dtype, rng):
    V, S = LANES[dtype], vectors * LANES[dtype]
    for inputs, beside, spare in itertools.product(WIDTHS, [0, 3], [0, 5]):
        samples = panels * S - spare
        features, used = inputs + beside, inputs * outputs
        a, delta = draw(rng, dtype, samples, features), draw(rng, dtype, samples, outputs)
        a_panels, delta_panels = in_panels(a, panels, features, S), in_panels(delta, panels, outputs, S)
        before = draw(rng, dtype, used + V)
        gradient, scratch = before.copy(), np.empty(panels * S * -(-outputs // V) * V, dtype)
        call(
            weight_gradient, a_panels, features, inputs, delta_panels, outputs, samples, S, np.arange(V),
            np.zeros(V, dtype), scratch, gradient, writes=[scratch, gradient],
        )  # fmt: skip

        expected = before.copy()
        expected[:used] += reference.weight_gradient(a[:, :inputs], delta).ravel()
        actual = gradient

        message = f"inputs = {inputs}, {beside} beside, {spare} spare"
        assert_near(actual, expected, 4, scale=4 * samples**0.5, message=message)
        np.testing.assert_array_equal(actual[used:], before[used:], message)


@by_dtype
@by_vectors
def test_sum_of_a_weight_gradient_does_not_depend_on_the_outputs_beside(vectors, dtype, rng):
    V, S, inputs, samples = LANES[dtype], vectors * LANES[dtype], 9, 2 * vectors * LANES[dtype] - 5
    a, delta, before = (draw(rng, dtype, *shape) for shape in ((samples, inputs), (samples, 5 * V), (inputs, 5 * V)))

    def gradient(first, end):
        outputs = end - first
        result, scratch = np.append(before[:, first:end], np.zeros(V, dtype)), np.empty(2 * S * outputs, dtype)
        call(
            weight_gradient, in_panels(a, 2, inputs, S), inputs, inputs, in_panels(delta[:, first:end], 2, outputs, S),
            outputs, samples, S, np.arange(V), np.zeros(V, dtype), scratch, result, writes=[scratch, result],
        )  # fmt: skip
        return result[:-V].reshape(inputs, -1)

    expected = np.concatenate([gradient(o, o + V) for o in range(0, 5 * V, V)], axis=1)
    actual = gradient(0, 5 * V)

    np.testing.assert_array_equal(actual, expected)


@by_dtype
@by_vectors
@pytest.mark.parametrize("panels", [1, 2, 3])
def test_bias_gradient_equals_its_twin(panels, vectors, dtype, rng):
    S = vectors * LANES[dtype]
    for outputs in WIDTHS:
        delta, before = draw(rng, dtype, panels * S, outputs), draw(rng, dtype, outputs)
        gradient = before.copy()
        call(bias_gradient, in_panels(delta, panels, outputs, S), outputs, panels, S, gradient, writes=[gradient])

        expected = before + reference.bias_gradient(delta)
        actual = gradient

        assert_near(actual, expected, 4, scale=4 * (panels * S) ** 0.5, message=f"outputs = {outputs}")


# --- few rows -----------------------------------------------------------------------------------------------------


def padded(x, V):
    """x (rows, features), each row in whole vectors, whose spare lanes are NaN."""
    whole = np.full((len(x), -(-x.shape[1] // V) * V), np.nan, x.dtype)
    whole[:, : x.shape[1]] = x
    return whole


FEW_ROWS = [1, 2, 3, 5, 8]
WIDE = [*WIDTHS, 100]


@by_dtype
@pytest.mark.parametrize("outputs", WIDE)
def test_outputs_of_rows_give_the_bits_of_the_product(outputs, dtype, rng):
    V = LANES[dtype]
    for inputs, count, beside in itertools.product(WIDE, FEW_ROWS, [0, 3]):
        w, bias = draw(rng, dtype, inputs, outputs), draw(rng, dtype, outputs)
        a = draw(rng, dtype, count, inputs + beside)
        out, panel = padded(np.zeros((count, outputs), dtype), V), np.zeros((outputs, V), dtype)
        D, x = out.shape[1], np.zeros((inputs, V), dtype)
        call(outputs_of_rows, w, inputs, outputs, bias, a, inputs + beside, D, count, out, writes=[out])

        x[:, :count] = a[:, :inputs].T
        call(product, w, 1, outputs, outputs, inputs, bias, x, V, panel, writes=[panel])
        expected = panel[:, :count].T
        actual = out[:, :outputs]

        message = f"{inputs} inputs, {count} rows, {beside} beside"
        if outputs > 1:
            np.testing.assert_array_equal(actual, expected, message)
        else:
            assert_near(actual, expected, 4, scale=inputs**0.5 * 4, message=message)


@by_dtype
@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize("outputs", WIDE)
def test_backward_pass_of_a_layer_equals_its_twins(outputs, update, dtype, rng):
    V = LANES[dtype]
    for inputs, count in itertools.product(WIDE, FEW_ROWS):
        w, g, a, delta = (
            draw(rng, dtype, *shape)
            for shape in ((inputs, outputs), (inputs, outputs), (count, inputs), (count, outputs))
        )
        before = (w if update else g).copy()
        below, spread, deltas = padded(np.zeros((count, inputs), dtype), V), padded(a, V), padded(delta, V)
        expected_below = reference.product(w.T, delta, np.zeros(inputs, dtype))
        expected = before + reference.weight_gradient(a, delta)
        call(
            backward_layer, w, g, update, inputs, outputs, spread, spread.shape[1], deltas, deltas.shape[1], count,
            below.shape[1], below, writes=[below, w if update else g],
        )  # fmt: skip

        message = f"{inputs} inputs, {count} rows"
        assert_near(below[:, :inputs], expected_below, 4, scale=4 * outputs**0.5, message=message)
        assert_near(w if update else g, expected, 4, scale=4 * count**0.5, message=message)


@by_dtype
@pytest.mark.parametrize("outputs", WIDE)
def test_products_are_added_to_rows(outputs, dtype, rng):
    V = LANES[dtype]
    for n, count in itertools.product(WIDE, FEW_ROWS):
        g, a, delta = draw(rng, dtype, n, outputs), draw(rng, dtype, count, n), draw(rng, dtype, count, outputs)
        spread, deltas = padded(a, V), padded(delta, V)
        expected = g + reference.weight_gradient(a, delta)
        call(add_to_rows, g, n, outputs, spread, spread.shape[1], deltas, deltas.shape[1], count, writes=[g])

        assert_near(g, expected, 4, scale=4 * count**0.5, message=f"{n} inputs, {count} rows")


@by_dtype
@pytest.mark.parametrize("rate", [0.1, 0.9])
def test_dropout_of_rows_gives_the_bits_of_its_twin(rate, dtype, rng):
    for count, features, first in [(1, 1, 0), (3, 33, 5), (8, 17, 960)]:
        a, key = draw(rng, dtype, count, features), reference.random_stream(3, 2, 1)
        actual = padded(a, LANES[dtype])
        call(
            dropout_rows, numbers_of(dtype, rate), key[0], 1000, first, actual, features, actual.shape[1], count,
            writes=[actual],
        )  # fmt: skip

        expected = reference.dropout(dtype(rate), key, 1000, first, a)

        np.testing.assert_array_equal(actual[:, :features], expected)


@by_dtype
def test_scaled_is_numpys(dtype, rng):
    for n in WIDTHS:
        x, actual = draw(rng, dtype, n), np.empty(n, dtype)
        call(scaled, x, dtype(0.3), actual, writes=[actual])

        np.testing.assert_array_equal(actual, dtype(0.3) * x)


@pytest.fixture
def all_few(monkeypatch):
    """Batches of up to 15 rows have their features in the lanes, whatever the network."""
    monkeypatch.setattr(workspace, "few_of", lambda sizes, dtype: 15)
    monkeypatch.setattr(workspace, "TINY_UNITS", 0)
    monkeypatch.setattr(workspace, "_plan", workspace._plan.__wrapped__)


FEW_AXES = {
    "sizes": [
        (1, 1), (7, 1), (3, 2), (16, 1, 1), (2, 7, 3), (9, 8, 1), (5, 9, 15, 2), (8, 16, 17, 1), (4, 33, 10),
        (17, 100, 7, 9), (33, 15, 100, 1),
    ],
    "activation": range(len(ELEMENTWISE)),
    "loss": list(LOSSES),
    "output": range(len(ELEMENTWISE)),
    "optimizer": OPTIMIZERS,
    "bias": [True, False],
    "mean": [True, False],
    "batch_size": [*range(1, 16), 40],  # of 43 rows, so that the last is short
    "shuffled": [True, False],
    "block": [None],
    "fused": [False],
    "dtype": DTYPES,
    "dropout": [0, 0.3],
    "l2": [0.0, 0.1],
    "clip_norm": [0.0, 0.3],
    "weighted": [False, True, "outputs"],
    "schedule": [None, ExponentialDecay(0.5)],
    "validation": [0, 17],
    "watched": [VALIDATION_LOSS],
    "patience": [-1, 1],
}  # fmt: skip
FEW_CASES = [dict(zip(FEW_AXES, row, strict=True)) for seed in range(2) for row in pairwise(seed, *FEW_AXES.values())]


# --- optimisers ---------------------------------------------------------------------------------------------------


@by_dtype
@pytest.mark.parametrize("P", WIDTHS)
def test_plain_sgd_equals_its_twin(P, dtype, rng):
    w, g = draw(rng, dtype, P), draw(rng, dtype, P)
    expected = w.copy()
    reference.plain_sgd(expected, dtype(0.25) * g, dtype(0.1))
    actual = w
    call(plain_sgd, w, g, numbers_of(dtype, 0.25, 0.1), writes=[w, g])

    assert_near(actual, expected, 2, scale=1)
    assert not g.any()


@by_dtype
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("P", WIDTHS)
def test_momentum_sgd_equals_its_twin(P, nesterov, dtype, rng):
    w, g, velocity = draw(rng, dtype, P), draw(rng, dtype, P), draw(rng, dtype, P)
    expected = w.copy(), velocity.copy()
    reference.momentum_sgd(expected[0], dtype(0.25) * g, expected[1], dtype(0.1), dtype(0.9), nesterov)
    actual = w, velocity
    call(momentum_sgd, w, g, velocity, numbers_of(dtype, 0.25, 0.1, 0.9), nesterov, writes=[w, g, velocity])

    assert_near(actual[0], expected[0], 2, scale=4)
    assert_near(actual[1], expected[1], 2, scale=4)
    assert not g.any()


@by_dtype
@pytest.mark.parametrize("P", WIDTHS)
def test_adam_equals_its_twin(P, dtype, rng):
    w, g, first = draw(rng, dtype, P), draw(rng, dtype, P), draw(rng, dtype, P)
    second = np.abs(draw(rng, dtype, P))
    expected = w.copy(), first.copy(), second.copy()
    numbers = numbers_of(dtype, 0.25, 0.1, 0.9, 0.95, 1e-8, 1 - dtype(0.9), 1 - dtype(0.95))
    scale, *rest = numbers[:-2]
    reference.adam(expected[0], scale * g, expected[1], expected[2], *rest)
    actual = w, first, second
    call(adam, w, g, first, second, numbers, writes=[w, g, first, second])

    for actual_part, expected_part in zip(actual[:2], expected[:2], strict=True):
        assert_near(actual_part, expected_part, 4, scale=4)
    np.testing.assert_allclose(second, expected[2], rtol=4 * EPSILON[dtype], atol=0)
    assert not g.any()


@by_dtype
@pytest.mark.parametrize("P", WIDTHS)
def test_rmsprop_equals_its_twin(P, dtype, rng):
    w, g, second = draw(rng, dtype, P), draw(rng, dtype, P), np.abs(draw(rng, dtype, P))
    expected = w.copy(), second.copy()
    numbers = numbers_of(dtype, 0.25, 0.1, 0.9, 1e-8, 1 - dtype(0.9))
    scale, *rest = numbers[:-1]
    reference.rmsprop(expected[0], scale * g, expected[1], *rest)
    actual = w, second
    call(rmsprop, w, g, second, numbers, writes=[w, g, second])

    assert_near(actual[0], expected[0], 4, scale=4)
    np.testing.assert_allclose(second, expected[1], rtol=4 * EPSILON[dtype], atol=0)
    assert not g.any()


@by_dtype
@pytest.mark.parametrize("P", WIDTHS)
def test_irprop_gives_the_bits_of_its_twin(P, dtype, rng):
    w, steps = draw(rng, dtype, P), rng.choice([1e-6, 0.1, 50], P).astype(dtype)
    numbers, last = numbers_of(dtype, 1.2, 0.5, 1e-6, 50), np.zeros(P, dtype)
    for _ in range(5):
        g = rng.choice([-2, 0, 3], P).astype(dtype)
        expected = w.copy(), last.copy(), steps.copy()
        reference.irprop(expected[0], g, *expected[1:], *numbers)
        actual = w, last, steps
        call(irprop, w, g, last, steps, numbers, writes=[w, g, last, steps])

        for actual_part, expected_part in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(actual_part, expected_part)
        assert not g.any()


@by_dtype
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes", [(1, 1), (3, 5, 2), (7, 33, 15, 10)])
def test_penalty_and_decay_equal_their_twins(sizes, bias, dtype, rng):
    network = Network(sizes, bias=bias, dtype=np.dtype(dtype).name)
    plan = make_plan(network, 8, 8, l2=0.3)
    w, g = draw(rng, dtype, plan.parameters), draw(rng, dtype, plan.parameters)
    expected = w.copy(), g.copy()
    expected_penalty = reference.penalty(plan, *expected)
    reference.decay(plan, expected[0], dtype(0.2))
    actual = w, g
    actual_penalty = call(penalty, plan, w, g, writes=[g])
    call(decay, plan, w, numbers_of(dtype, 0.2), writes=[w])

    assert actual_penalty == pytest.approx(expected_penalty, rel=4 * EPSILON[dtype])
    for actual_part, expected_part in zip(actual, expected, strict=True):
        assert_near(actual_part, expected_part, 2, scale=4)


SCALES = [0, 1e-45, 1e-36, 1e-16, 1, 1e16, 1e36, np.inf, np.nan]


@by_dtype
@pytest.mark.parametrize("n", WIDTHS)
def test_norm_equals_its_twin_where_squares_overflow_or_vanish(n, dtype, rng):
    for scale in [*SCALES, *([1e-300, 1e300] if dtype is np.float64 else [])]:
        with np.errstate(invalid="ignore"):
            x = dtype(scale) * draw(rng, dtype, n)
            expected = reference.norm(x)
        actual = call(norm, x, writes=[])

        np.testing.assert_allclose(actual, expected, rtol=4 * n**0.5 * EPSILON[dtype], err_msg=str(scale))
        if 0 < scale < np.inf:
            assert expected == pytest.approx(float(np.linalg.norm(x.astype(float) / scale) * scale), rel=1e-6)


@by_dtype
def test_shrink_equals_its_twin_for_factors_that_the_type_lacks(dtype, rng):
    x, root = draw(rng, dtype, 33) * (np.finfo(dtype).max / 8), {np.float64: 1e-158, np.float32: 1e-22}[dtype]
    expected, actual = x.copy(), x.copy()
    reference.shrink(root, expected)
    call(shrink, root, actual, writes=[actual])

    assert_near(actual, expected, 1)
    assert actual.all()


# --- learning-rate schedules --------------------------------------------------------------------------------------


def test_power_is_numpys():
    for base, exponent in [(0.5, 3.0), (0.98, 1.0), (0.98, 0.0), (0.9, 6000.0), (1.0, 1e6), (1e6 + 1, -0.5), (3, 0.3)]:
        vector = np.full(8, 7.0)

        expected = np.power(base, exponent)
        actual = call(power, float(base), exponent, vector, writes=[vector])

        assert actual == pytest.approx(expected, rel=1e-12)


def test_cosine_is_numpys():
    x = np.concatenate([[0, 0.25, 0.5, 0.75, 1, np.nextafter(0.5, 1)], np.linspace(0, 1, 101)])

    expected = np.cos(np.pi * x)
    actual = [cosine(number) for number in x.tolist()]

    np.testing.assert_allclose(actual, expected, rtol=0, atol=4 * EPSILON[np.float64])
    assert (cosine(0.0), cosine(1.0)) == (1, -1)


SCHEDULES = [
    None,
    ExponentialDecay(0.9),
    InverseScaling(0.7, pace=3.0),
    CosineDecay(epochs=20),
    CosineDecay(epochs=20, warmup=5, minimum=0.1),
    ReduceOnPlateau(0.5),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=label)
def test_rate_factor_equals_its_twin(schedule):
    plan = make_plan(Network((1, 1)), 1, 1, SGD(), schedule=schedule)
    for epoch in [*range(25), 1000]:
        arguments, vector = (plan.schedule, plan.schedule_settings, epoch, 0.25), np.full(8, 7.0)

        expected = reference.rate_factor(*arguments)
        actual = call(rate_factor, *arguments, vector, writes=[vector])

        assert actual == pytest.approx(expected, rel=1e-12, abs=1e-15)


JUDGED = pairwise(
    0,
    [(-1, 0.0), (0, 0.0), (1, 1.0), (3, 0.5)],
    [
        None,
        ReduceOnPlateau(0.5, patience=0, min_delta=1.0),
        ReduceOnPlateau(0.5, patience=2, min_delta=0.0, minimum=0.25),  # which the factor reaches
        ReduceOnPlateau(0.1, patience=1, minimum=0.05, stop=True),
    ],
    [TRAINING_LOSS, VALIDATION_LOSS, VALIDATION_MISFIT],
    [True, False],
)


@pytest.mark.parametrize(("patient", "schedule", "watched", "keep_best"), list(JUDGED), ids=label)
def test_judge_equals_its_twin(patient, schedule, watched, keep_best, rng):
    patience, min_delta = patient
    network = Network((2, 1))
    plan = make_plan(
        network, 4, 4, SGD(), schedule=schedule, validation_rows=4, spread=(1.0,), watched=watched,
        patience=patience, min_delta=min_delta, keep_best=keep_best,
    )  # fmt: skip
    statuses = set()
    for _ in range(8):
        memories = [make_memory(plan, np.zeros(3), 12) for _ in range(2)]
        for memory in memories:
            memory.best[:] = -1
        for epoch in range(12):
            figures = rng.choice([1.0, 2, 2.5, 3, 4, np.nan], 3)
            for memory in memories:
                memory.params[:] = epoch
                memory.loss[epoch], memory.validation_loss[epoch], memory.validation_misfit[epoch] = figures
            expected, actual = memories
            expected_status = reference.judge(plan, expected, epoch)
            actual_status = call(judge, plan, actual, epoch, writes=[actual.best, actual.position, actual.totals])
            statuses.add(actual_status)

            assert actual_status == expected_status
            for name in ("best", "position", "totals"):
                np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), name)

    stopping = patience >= 0 or (schedule is not None and schedule.stop)
    assert statuses == {kernels.FINISHED, kernels.STOPPED} if stopping else {kernels.FINISHED}


# --- the data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epoch", [0, 1, 10**6])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_shuffle_equals_its_twin(seed, epoch):
    for n in [*WIDTHS, 1000]:
        actual = np.zeros(n, np.int64)
        call(shuffle, seed, epoch, actual, writes=[actual])

        expected = reference.shuffle(n, seed, epoch)

        np.testing.assert_array_equal(actual, expected)


@by_dtype
@by_vectors
@pytest.mark.parametrize("panels", [1, 2, 3])
def test_gather_lays_rows_out_as_panels(panels, vectors, dtype, rng):
    S = vectors * LANES[dtype]
    for F, count in itertools.product(WIDTHS, {1, S - 1, S, panels * S - 1, panels * S}):
        count = min(count, panels * S)
        data, order = draw(rng, dtype, 40, F), rng.integers(0, 40, count)
        out = np.full((panels, F, S), 7, dtype)
        call(gather, data, order, count, F, S, panels, np.zeros(S, dtype), out, writes=[out])

        expected = in_panels(data[order], panels, F, S)
        actual = out

        np.testing.assert_array_equal(actual, expected, err_msg=f"F = {F}, count = {count}")


@by_dtype
def test_finite_equals_its_twin(dtype):
    for P in [*WIDTHS, 64, 65, 135]:  # also several vectors at once
        w = np.arange(P, dtype=dtype)
        for k, value in itertools.product(range(0, P, 1 + P // 16), [1, np.nan, np.inf, -np.inf, np.finfo(dtype).max]):
            w[k] = value

            expected = reference.finite(w)
            actual = call(finite, w, writes=[])

            assert actual == expected
            w[k] = k


# --- whole runs ---------------------------------------------------------------------------------------------------

ROWS = 43


def build(
    sizes, loss="squared_error", output_name=None, *, activation=0, bias=True, dtype=np.float64, rows=ROWS, seed=0
):
    """A network and its data (n, F). Hidden layers have different activations, from this one of the table on."""
    rng = np.random.default_rng(seed)
    hidden = [ELEMENTWISE[(activation + layer) % len(ELEMENTWISE)] for layer in range(len(sizes) - 2)]
    sizes = (*sizes[:-1], outputs_for(loss, sizes[-1]))
    network = Network(
        sizes, activation=hidden, output=output_name, bias=bias, seed=seed, dtype=np.dtype(dtype).name,
        **loss_settings(loss, sizes[-1]),
    )  # fmt: skip
    network.params[:] += 0.1 * draw(rng, dtype, network.params.size)  # biases too
    if "exponential" in network.activations or loss == "gaussian_nll":
        network.params[:] *= 0.3  # or it dwarfs all other units, and its rounding their changes
    return network, rows_for(network, rows, rng)


def rows_for(network, rows, rng, weights=(0.5, 1, 2), apart=False):
    """Rows (n, F) with weights, for a network, or for each of its outputs."""
    dtype = network.params.dtype.type
    X, y = draw(rng, dtype, rows, network.sizes[0]), targets(network.loss, dtype, rng, rows, network.sizes[-1])
    chosen = rng.choice(weights, y.shape if apart else rows).astype(dtype)
    return rows_of(X, y, chosen, output_weights=apart)


def has_output_weights(case):
    return case["weighted"] == "outputs" and case["loss"] != "cross_entropy"


def laid_out(engine, data, plan):
    """The rows as the engine takes them where they are not shuffled."""
    return data.ravel() if engine is reference or not len(data) else panels_of(data, plan)


def run(engine, plan, memory, data, validation=None, blocks=None):
    """Run the kernel or the reference on the rows, by default to the end; returns the status."""
    flat = data.ravel() if plan.shuffled else laid_out(engine, data, plan)
    held = data[:0] if validation is None else validation
    held = laid_out(engine, held, plan._replace(batch_size=max(1, len(held)), few=0))
    blocks = len(memory.loss) * plan.blocks_per_epoch if blocks is None else blocks
    arguments = plan, memory, flat, held, blocks
    return call(engine.run, *arguments, writes=memory) if engine is kernels else engine.run(*arguments)


def trained(engine, network, plan, data, epochs=3, validation=None, status=kernels.FINISHED):
    memory = make_memory(plan, network.params.copy(), epochs)
    assert run(engine, plan, memory, data, validation) == status
    return memory


WRITTEN = ("params", "first", "second", "best", "loss", "error")
WRITTEN += ("validation_loss", "validation_error", "validation_misfit", "totals")


def assert_same_run(actual, expected, dtype, units=1):
    """Equal to rounding: weights, momenta, losses, errors and what early stopping makes of them."""
    assert np.delete(actual.position, PANEL).tolist() == np.delete(expected.position, PANEL).tolist()
    for name in WRITTEN:
        actual_part, expected_part = getattr(actual, name), getattr(expected, name)
        scale = np.abs(expected_part[np.isfinite(expected_part)]).max(initial=0)  # the best to begin with is infinite
        if name not in ("params", "second"):  # which may be nothing but rounding
            scale = max(scale, np.abs(expected.params).max())
        tolerance = units * RUN_TOLERANCE[dtype] * scale
        np.testing.assert_allclose(actual_part, expected_part, rtol=0, atol=tolerance, err_msg=name)


AXES = {
    "sizes": [(1, 1), (3, 1), (5, 7, 2), (2, 2, 1), (16, 8, 9, 3), (4, 17, 1), (7, 33, 15, 10)],
    "activation": range(len(ELEMENTWISE)),
    "loss": list(LOSSES),
    "output": range(len(ELEMENTWISE)),  # which of those that go with the loss
    "optimizer": OPTIMIZERS,
    "bias": [True, False],
    "mean": [True, False],
    "batch_size": [1, 3, 8, 16, 17, 40, ROWS],
    "shuffled": [True, False],
    "block": [None, 1, 2],  # panels of a block
    "fused": [True, False],  # the fused path, where the problem is small enough
    "dtype": DTYPES,
    # A problem with any of the next four never is.
    "dropout": [0, 0.3],
    "l2": [0.0, 0.1],
    "clip_norm": [0.0, 0.3],
    "weighted": [False, True, "outputs"],
    "schedule": [None, ExponentialDecay(0.5), InverseScaling(), CosineDecay(3, 1), ReduceOnPlateau(0.5, patience=0)],
    "validation": [0, 1, 17, 40],  # rows
    "watched": [VALIDATION_LOSS, VALIDATION_MISFIT],
    "patience": [-1, 0, 1],
}
CASES = [dict(zip(AXES, row, strict=True)) for seed in range(2) for row in pairwise(seed, *AXES.values())]


def output_of(case):
    """The output activation, one of those that go with the loss."""
    outputs = LOSSES[case["loss"]].outputs
    return outputs[case["output"] % len(outputs)]


def prepare(case):
    """Network, plan, data and rows for validation."""
    optimizer, batch_size, dtype, held = case["optimizer"], case["batch_size"], case["dtype"], case["validation"]
    if isinstance(optimizer, IRprop):
        # It takes whole gradients. Of those it reads signs, which in float32 are nothing but rounding too often.
        batch_size, dtype = ROWS, np.float64
    elif case["loss"] == "absolute_error" and case["weighted"] == "outputs":
        # Likewise, of residuals: one sign in a batch of three moved a run by 1e-3 in float32. Short steps turn none.
        dtype, optimizer = np.float64, dataclasses.replace(optimizer, learning_rate=0.1 * optimizer.learning_rate)
    if not isinstance(optimizer, IRprop) and not case["mean"]:
        optimizer = dataclasses.replace(optimizer, learning_rate=optimizer.learning_rate / batch_size)
    network, data = build(
        case["sizes"], case["loss"], output_of(case), activation=case["activation"], bias=case["bias"], dtype=dtype
    )  # fmt: skip
    hidden = len(network.sizes) - 2
    plan = make_plan(
        network, ROWS, batch_size, optimizer, mean=case["mean"], weighted=bool(case["weighted"]),
        output_weights=has_output_weights(case), shuffled=case["shuffled"], seed=5, l2=case["l2"],
        clip_norm=case["clip_norm"], dropout=(case["dropout"],) * hidden,
        schedule=case["schedule"], validation_rows=held, spread=tuple(1 / (1 + k) for k in range(network.sizes[-1])),
        watched=case["watched"] if held else TRAINING_LOSS, patience=case["patience"], min_delta=1e-3,
        keep_best=bool(held) and case["patience"] >= 0,
    )  # fmt: skip
    block = min(plan.block, case["block"] or plan.block)
    rng = np.random.default_rng(1)
    if case["weighted"]:
        data = rows_for(network, ROWS, rng, weights=(0, 0.5, 2), apart=plan.output_weights)
    validation = rows_for(network, held, rng, apart=plan.output_weights)
    return network, plan._replace(tiny=plan.tiny and case["fused"], block=block), data, validation


@pytest.mark.parametrize("case", CASES, ids=label)
def test_run_equals_its_twin(case):
    network, plan, data, validation = prepare(case)
    expected = make_memory(plan, network.params.copy(), 4)
    expected_status = run(reference, plan, expected, data, validation)
    actual = make_memory(plan, network.params.copy(), 4)
    actual_status = run(kernels, plan, actual, data, validation)

    assert actual_status == expected_status != kernels.DIVERGED
    assert_same_run(actual, expected, network.params.dtype.type)
    assert not actual.gradient[: plan.parameters].any()


@pytest.mark.usefixtures("all_few")
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[] if i % 4 == 0 else pytest.mark.slow) for i, case in enumerate(FEW_CASES)],
    ids=label,
)
def test_run_of_few_rows_equals_its_twin_and_that_of_panels(case):
    network, plan, data, validation = prepare(case)
    if isinstance(case["optimizer"], IRprop):  # which takes all rows at once
        data = data[:9]
        plan = make_plan(network, 9, 9, case["optimizer"], mean=True, output_weights=plan.output_weights)
        validation = data[:0]
    assert plan.few
    memories = []
    for engine, few in ((reference, 15), (kernels, 15), (kernels, 0)):
        memory = make_memory(plan, network.params.copy(), 4)
        memories.append((memory, run(engine, plan._replace(few=few), memory, data, validation)))

    expected, expected_status = memories[0]
    for actual, actual_status in memories[1:]:
        assert actual_status == expected_status != kernels.DIVERGED
        assert_same_run(actual, expected, network.params.dtype.type)
        assert not actual.gradient[: plan.parameters].any()


@pytest.mark.usefixtures("all_few")
@by_dtype
@pytest.mark.parametrize("sizes", [(3, 2), (5, 9, 1), (7, 33, 15, 10)])
def test_gradient_of_few_rows_is_summed_and_kept(sizes, dtype):
    for count in (1, 2, 3, 8):
        network, data = build(sizes, activation=1, dtype=dtype, rows=count)
        plan = make_plan(network, count, count, l2=0.1, weighted=True)
        assert plan.few
        expected = trained(reference, network, plan, data, epochs=1)
        actual = trained(kernels, network, plan, data, epochs=1)

        scale = np.abs(expected.gradient).max()
        np.testing.assert_allclose(actual.gradient, expected.gradient, rtol=0, atol=RUN_TOLERANCE[dtype] * scale)
        np.testing.assert_array_equal(actual.params, network.params)


@pytest.mark.usefixtures("all_few")
def test_bits_of_few_rows_do_not_depend_on_the_batches_before_them():
    """What they are laid out in is used again, and may hold anything."""
    network, data = build((5, 9, 3), activation=2, rows=40)
    for batch_size in (1, 3, 40):
        plan = make_plan(network, 43, batch_size, SGD(0.1), mean=True)
        last = 43 % batch_size or batch_size
        expected, actual = (make_memory(plan, network.params.copy(), 1) for _ in range(2))
        whole = np.concatenate([data, data[:3]])
        run(kernels, plan, actual, whole, blocks=plan.blocks_per_epoch - 1)
        expected.params[:] = actual.params
        alone = make_plan(network, last, last, SGD(0.1), mean=True)
        for name in ("activations", "deltas", "scratch", "data"):
            getattr(actual, name)[:] = np.nan
        run(kernels, plan, actual, whole, blocks=1)
        run(kernels, alone, expected, whole[-last:], blocks=1)

        np.testing.assert_array_equal(bits(actual.params), bits(expected.params))


def test_few_is_a_rule_of_the_network_alone():
    for kind, lanes in LANES.items():
        few = {h: workspace.few_of((16, h, h, 1), np.dtype(kind)) for h in (2, 4, 8, 16, 128, 512)}

        assert list(few.values()) == sorted(few.values())
        assert few[2] < few[4] < lanes
        assert few[128] == few[512] == workspace.MOST_FEW
        for batch_size, n, expected in [(1, 100, 12), (12, 100, 12), (13, 26, 0), (32, 65, 12), (32, 77, 0)]:
            plan = make_plan(Network((16, 128, 128, 1), dtype=np.dtype(kind).name), n, batch_size)

            assert plan.few == expected
            assert plan.block * plan.width >= min(batch_size, expected)


def test_runs_vary_in_every_choice():
    """Otherwise the table above would not hold what it promises."""
    for (first, choices), (second, others) in itertools.combinations(AXES.items(), 2):
        expected = len(choices) * len(others)
        actual = len({(str(case[first]), str(case[second])) for case in CASES})

        assert actual == expected, (first, second)


# What the fused path does not know.
EXTRAS = {
    "l2": {"l2": 0.1},
    "clip_norm": {"clip_norm": 1.0},
    "dropout": {"dropout": (0.5,)},
    "weights": {"weighted": True},
}


@pytest.mark.parametrize("name", EXTRAS)
def test_fused_path_is_refused_with_extras(name):
    network = Network((2, 3, 1), activation="tanh")

    assert make_plan(network, 8, 8, Adam()).tiny
    assert not make_plan(network, 8, 8, Adam(), **EXTRAS[name]).tiny


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_fused_path_is_refused_where_slopes_are_written_with_logits(name):
    if name != "softmax":
        expected = ACTIVATIONS[name].code not in OF_LOGITS
        actual = make_plan(Network((2, 3, 1), activation=name), 8, 8, Adam()).tiny

        assert actual == expected


FUSED_AXES = {
    "sizes": [(3, 1), (2, 2, 1), (4, 8, 2), (2, 3, 5, 2)],
    "activation": [ELEMENTWISE.index(name) for name in ELEMENTWISE if ACTIVATIONS[name].code not in OF_LOGITS],
    "loss": list(LOSSES),
    "output": range(len(ELEMENTWISE)),
    "optimizer": OPTIMIZERS,
    "bias": [True, False],
    "shuffled": [True, False],
    "schedule": [None, ExponentialDecay(0.5)],
    "validation": [0, 11],
    "patience": [-1, 0],
    "dtype": DTYPES,
}


@pytest.mark.parametrize(
    "case",
    [dict(zip(FUSED_AXES, row, strict=True)) for row in pairwise(0, *FUSED_AXES.values())],
    ids=label,
)
def test_both_paths_equal_the_twin(case):
    dtype, held = case["dtype"], case["validation"]
    network, data = build(
        case["sizes"], case["loss"], output_of(case), activation=case["activation"], bias=case["bias"], dtype=dtype,
        rows=11,
    )  # fmt: skip
    plan = make_plan(
        network, 11, 8, case["optimizer"], mean=True, shuffled=case["shuffled"], schedule=case["schedule"],
        validation_rows=held, spread=(1.0,) * network.sizes[-1], patience=case["patience"],
        keep_best=bool(held) and case["patience"] >= 0,
    )  # fmt: skip
    validation = rows_for(network, held, np.random.default_rng(1))
    memories = []
    for engine, tiny in ((reference, True), (kernels, True), (kernels, False)):
        memory = make_memory(plan, network.params.copy(), 3)
        memories.append((memory, run(engine, plan._replace(tiny=plan.tiny and tiny), memory, data, validation)))

    expected, expected_status = memories[0]
    for actual, actual_status in memories[1:]:
        assert actual_status == expected_status != kernels.DIVERGED
        assert_same_run(actual, expected, dtype)


@by_dtype
@pytest.mark.parametrize("extras", [{}, {"dropout": (0.3,), "weighted": True, "l2": 0.1}], ids=["plain", "extras"])
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("batch_size", [40, 100, 110])
def test_block_and_width_change_nothing_but_rounding(batch_size, shuffled, extras, dtype):
    network, data = build((6, 17, 3), activation=2, dtype=dtype, rows=110)
    plan = make_plan(
        network, 110, batch_size, Adam(0.01, epsilon=0.01), mean=True, shuffled=shuffled, validation_rows=70,
        spread=(1.0, 1.0, 1.0), **extras,
    )  # fmt: skip
    validation = rows_for(network, 70, np.random.default_rng(1))

    expected = trained(reference, network, plan._replace(block=110), data, 2, validation)
    for vectors, block in itertools.product([1, 2], [1, 2, 3, 5, 14]):
        other = plan._replace(width=vectors * LANES[dtype], block=block)
        actual = trained(kernels, network, other, data, 2, validation)

        assert_same_run(actual, expected, dtype)


@by_dtype
@pytest.mark.parametrize("sizes", [(3, 2), (3, 5, 2), (3, 33, 9, 2)])
def test_spare_samples_of_the_last_panel_count_for_nothing(sizes, dtype):
    for rows in range(1, 2 * LANES[dtype] + 2):
        for shuffled in (False, True):
            network, data = build(sizes, activation=1, dtype=dtype, rows=rows)
            plan = make_plan(
                network, rows, rows, SGD(0.05, momentum=0.5), mean=True, shuffled=shuffled, validation_rows=rows,
                spread=(1.0, 1.0),
            )  # fmt: skip

            expected = trained(reference, network, plan, data, 2, data)
            actual = trained(kernels, network, plan, data, 2, data)

            assert_same_run(actual, expected, dtype)


@by_dtype
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("sizes", [(3, 2), (3, 5, 2), (7, 33, 15, 10)])
def test_without_an_optimiser_the_gradient_is_summed_and_kept(sizes, weighted, dtype):
    for rows in (1, 7, 8, 43, 150):
        network, data = build(sizes, activation=1, dtype=dtype, rows=rows)
        plan = make_plan(network, rows, rows, l2=0.1, weighted=weighted)
        expected = trained(reference, network, plan, data, epochs=1)
        actual = trained(kernels, network, plan, data, epochs=1)

        scale = np.abs(expected.gradient).max()
        np.testing.assert_allclose(actual.gradient, expected.gradient, rtol=0, atol=RUN_TOLERANCE[dtype] * scale)
        np.testing.assert_array_equal(actual.params, network.params)
        assert_same_run(actual, expected, dtype)


@by_dtype
def test_batch_without_weight_moves_nothing_but_momenta(dtype):
    network, data = build((3, 5, 2), activation=1, dtype=dtype, rows=30)
    data[10:20, -1] = 0  # the second of three batches
    plan = make_plan(network, 30, 10, SGD(0.05), mean=True, weighted=True)
    expected = trained(kernels, network, plan._replace(rows=20), np.delete(data, np.s_[10:20], axis=0), 1)
    actual = trained(kernels, network, plan, data, 1)

    for name in ("params", "loss", "error"):
        np.testing.assert_allclose(
            getattr(actual, name), getattr(expected, name), rtol=RUN_TOLERANCE[dtype], err_msg=name
        )


@by_dtype
def test_dropout_is_for_training_alone(dtype):
    """While weights stay, the validation loss and the predictions are those without dropout."""
    network, data = build((3, 40, 2), activation=1, dtype=dtype)
    losses = []
    for dropout in ((), (0.5,)):
        plan = make_plan(network, ROWS, ROWS, dropout=dropout, validation_rows=ROWS, spread=(1.0, 1.0))
        memory = trained(kernels, network, plan, data, 1, data)
        losses.append((memory.loss[0], memory.validation_loss[0]))
    (plain_loss, expected), (dropped_loss, actual) = losses

    assert actual == expected
    assert abs(dropped_loss - plain_loss) > 1e-3 * plain_loss
    x = data[:, :3].copy()
    predictions = predicted(kernels, network, x, dropout=(0.5,))
    np.testing.assert_array_equal(predictions, predicted(kernels, network, x))


# --- a run in pieces ----------------------------------------------------------------------------------------------


# Optimiser and what else a later epoch may depend on.
PIECES = [
    *((optimizer, {}) for optimizer in OPTIMIZERS[:4]),
    (AdamW(0.01), {}),
    (RMSprop(0.01), {"dropout": (0.3,), "l2": 0.1, "clip_norm": 0.5}),
    (SGD(0.05), {"weighted": True, "schedule": ReduceOnPlateau(0.5, patience=0, min_delta=0.05)}),
    (Adam(0.01), {"validation_rows": 40, "patience": 0, "keep_best": True, "schedule": CosineDecay(3, 1)}),
    (SGD(1e-9), {"validation_rows": 17, "patience": 1, "min_delta": 0.1}),  # which stops after two epochs
]


@pytest.mark.parametrize(("optimizer", "extras"), PIECES, ids=label)
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(("sizes", "batch_size"), [((3, 5, 2), 17), ((2, 2, 1), 8), ((2, 9, 1), ROWS), ((3, 17, 1), 3)])
def test_pieces_of_a_run_give_the_bits_of_the_whole(sizes, batch_size, shuffled, optimizer, extras):
    network, data = build(sizes, activation=1)
    spread = (1.0,) * sizes[-1]
    plan = make_plan(network, ROWS, batch_size, optimizer, mean=True, shuffled=shuffled, spread=spread, **extras)
    plan = plan._replace(block=1)
    validation = rows_for(network, plan.validation_rows, np.random.default_rng(1))
    blocks = 3 * plan.blocks_per_epoch
    expected = make_memory(plan, network.params.copy(), 3)
    expected_status = run(kernels, plan, expected, data, validation)

    @settings(max_examples=10)
    @given(st.sets(st.integers(0, blocks)))
    def check(cuts):
        actual, actual_status = make_memory(plan, network.params.copy(), 3), kernels.FINISHED
        for piece in np.diff([0, *sorted(cuts), blocks]):
            if actual_status == kernels.FINISHED:
                actual_status = run(kernels, plan, actual, data, validation, int(piece))

        assert actual_status == expected_status
        for name in ("gradient", "position", *WRITTEN):
            np.testing.assert_array_equal(bits(getattr(actual, name)), bits(getattr(expected, name)), name)

    check()


def test_a_run_in_pieces_is_stopped_too():
    """Otherwise the table above would not hold what it promises."""
    optimizer, extras = PIECES[-1]
    network, data = build((3, 5, 2))
    plan = make_plan(network, ROWS, ROWS, optimizer, spread=(1.0, 1.0), **extras)
    memory = trained(kernels, network, plan, data, 5, data[:17], status=kernels.STOPPED)

    assert memory.position[0] == 3


def test_no_blocks_change_nothing():
    network, data = build((3, 5, 2))
    plan = make_plan(network, ROWS, 8, Adam())
    expected = make_memory(plan, network.params.copy(), 1)
    actual = make_memory(plan, network.params.copy(), 1)
    status = run(kernels, plan, actual, data, blocks=0)

    assert status == kernels.FINISHED
    for name in actual._fields:
        if name != "scalars":  # the rate of the epoch passes through them
            np.testing.assert_array_equal(getattr(actual, name), getattr(expected, name), name)


# --- what is not finite -------------------------------------------------------------------------------------------

LARGE = {np.float64: 1e200, np.float32: 1e25}  # whose square is infinite
# The biases of the outputs to begin with, and the learning rate.
DIVERGING = {
    "growing": lambda dtype: (1, 1e6),
    "loss alone": lambda dtype: (LARGE[dtype], 1e-9),
    "weights alone": lambda dtype: (8, float(np.finfo(dtype).max)),
}


@by_dtype
@pytest.mark.parametrize("sizes", [(3, 2), (3, 8, 2)])
@pytest.mark.parametrize("name", DIVERGING)
def test_run_stops_at_the_end_of_the_epoch_that_diverges(name, sizes, dtype):
    network, data = build(sizes, dtype=dtype, rows=8)
    bias, rate = DIVERGING[name](dtype)
    network.params[-2:] = bias
    plan = make_plan(network, 8, 8, SGD(rate), mean=True)
    assert plan.tiny
    stopped = []
    for engine, tiny in ((reference, False), (kernels, False), (kernels, True)):
        memory = make_memory(plan, network.params.copy(), 50)
        assert run(engine, plan._replace(tiny=tiny), memory, data) == engine.DIVERGED
        epochs, row, *_ = memory.position.tolist()
        stopped.append(epochs)

        assert row == 0
        assert np.isfinite(memory.loss[: epochs - 1]).all()
        assert not memory.loss[epochs:].any()
        assert not memory.totals[[LOSS, ERROR]].any()
        if name == "loss alone":
            assert np.isfinite(memory.params).all()
        if name == "weights alone":
            assert np.isfinite(memory.loss).all()

    first = stopped[0]
    expected = [first if name == "growing" else 1] * 3
    actual = stopped

    assert actual == expected
    assert (name == "growing") == (1 < first < 50)


@by_dtype
@pytest.mark.parametrize("optimizer", [Adam(), AdamW(), RMSprop()], ids=label)
def test_run_stops_where_an_optimiser_overflows_and_would_stand_still(optimizer, dtype):
    network, data = build((3, 2), dtype=dtype, rows=8)
    data[:, :3] *= {np.float64: 1e10, np.float32: 1e3}[dtype]
    data[:, 3:5] *= {np.float64: 1e150, np.float32: 1e18}[dtype]  # squared gradients overflow, squared residuals do not
    plan = make_plan(network, 8, 8, optimizer, mean=True)
    for engine, tiny in ((reference, False), (kernels, False), (kernels, True)):
        memory = make_memory(plan, network.params.copy(), 5)
        assert run(engine, plan._replace(tiny=tiny), memory, data) == engine.DIVERGED
        assert memory.position[0] == 1
        assert np.isfinite(memory.loss).all()
        assert np.isfinite(memory.params).all()


@by_dtype
@pytest.mark.parametrize("clip_norm", [1.0, 1e-6])
def test_clipping_holds_where_squared_gradients_overflow(clip_norm, dtype):
    network, data = build((3, 2), dtype=dtype, rows=8)
    data[:, :3] *= {np.float64: 1e155, np.float32: 1e18}[dtype]
    data[:, 3:5] *= {np.float64: 1e150, np.float32: 1e18}[dtype]
    network.params[:] = 0
    plan = make_plan(network, 8, 8, SGD(1.0), clip_norm=clip_norm)
    for engine in (reference, kernels):
        memory = make_memory(plan, network.params.copy(), 1)
        run(engine, plan, memory, data)

        assert np.linalg.norm(memory.params.astype(float)) == pytest.approx(clip_norm, rel=1e-5)


@by_dtype
@pytest.mark.parametrize("activation", range(len(ELEMENTWISE)))
def test_nan_weight_of_a_hidden_layer_surfaces_in_the_loss(activation, dtype):
    for sizes, tiny in [((2, 3, 1), True), ((2, 3, 1), False), ((3, 9, 9, 2), False)]:
        network, data = build(sizes, activation=activation, dtype=dtype, rows=8)
        network.params[0] = np.nan
        plan = make_plan(network, 8, 8, SGD(0.1), mean=True)
        plan = plan._replace(tiny=plan.tiny and tiny)
        for engine in (reference, kernels):
            memory = make_memory(plan, network.params.copy(), 2)

            expected = engine.DIVERGED
            actual = run(engine, plan, memory, data)

            assert actual == expected
            assert np.isnan(memory.loss[0])
            assert memory.position[:2].tolist() == [1, 0]


@by_dtype
@pytest.mark.parametrize("tiny", [True, False])
@pytest.mark.parametrize(
    "optimizer",
    [SGD(1e-6, momentum=0.5), Adam(1e-6, beta1=0.5, beta2=0.5)],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_saturated_runs_leave_no_subnormal_deltas_or_momenta(optimizer, tiny, dtype):
    network = Network((2, 4, 4, 4, 2), activation="sigmoid", output="sigmoid", seed=0, dtype=np.dtype(dtype).name)
    rng = np.random.default_rng(0)
    network.params[:] = draw(rng, dtype, network.params.size) * {np.float64: 200, np.float32: 25}[dtype]
    data = rows_of(draw(rng, dtype, 8, 2), targets("binary_cross_entropy", dtype, rng, 8, 2))
    plan = make_plan(network, 8, 8, optimizer, mean=True)._replace(tiny=tiny)
    memory = make_memory(plan, network.params, 1200)
    least, seen = np.finfo(dtype).smallest_normal, []
    for _ in range(60):
        assert run(kernels, plan, memory, data, blocks=20) == kernels.FINISHED
        for array in (memory.deltas, memory.first, memory.second, memory.activations):
            size = np.abs(array)
            seen.append(int(((size > 0) & (size < least)).sum()))

    expected = 0
    actual = sum(seen)

    assert actual == expected
    assert (memory.deltas == 0).any(), "nothing was saturated"


# --- predictions --------------------------------------------------------------------------------------------------


def predicted(engine, network, x, batch_size=None, **extras):
    """Predictions for all rows."""
    plan = make_plan(network, len(x), batch_size or len(x), **extras)
    predictions = np.empty((len(x), network.sizes[-1]), x.dtype)
    arguments = plan, network.params, x, *forward_memory(plan, x.dtype), predictions
    if engine is kernels:
        status = call(engine.predict, *arguments, writes=arguments[-3:])
    else:
        status = engine.predict(*arguments)
    assert status == engine.FINISHED
    return predictions


PREDICTING = [
    (sizes, loss, name, hidden)
    for sizes in [(3, 1), (5, 9, 3), (2, 16, 7, 33)]
    for loss, name, hidden in [
        *(("squared_error", name, k) for k, name in enumerate(ELEMENTWISE)),
        ("cross_entropy", "softmax", 1),
    ]
]


@by_dtype
@pytest.mark.parametrize(("sizes", "loss", "name", "hidden"), PREDICTING, ids=label)
def test_predictions_equal_the_twins(sizes, loss, name, hidden, dtype):
    network, data = build(sizes, loss, name, activation=hidden, dtype=dtype)
    x = data[:, : sizes[0]].copy()

    expected = predicted(reference, network, x)
    actual = predicted(kernels, network, x)

    assert_near(actual, expected, 32, scale=max(1, np.abs(expected).max()))


@by_dtype
@pytest.mark.parametrize(("sizes", "loss", "name", "hidden"), PREDICTING, ids=label)
def test_prediction_of_a_row_does_not_depend_on_the_others(sizes, loss, name, hidden, dtype):
    network, data = build(sizes, loss, name, activation=hidden, dtype=dtype)
    x = data[:, : sizes[0]].copy()

    expected = bits(predicted(kernels, network, x))
    actual = {"reversed": predicted(kernels, network, x[::-1].copy())[::-1].copy()}
    for batch in (1, 2, 7, 8, 9, 16, 17, 40):
        parts = [predicted(kernels, network, x[k : k + batch].copy()) for k in range(0, ROWS, batch)]
        actual[f"in calls of {batch}"] = np.concatenate(parts)
        actual[f"in blocks for batches of {batch}"] = predicted(kernels, network, x, batch_size=batch)

    for how, predictions in actual.items():
        np.testing.assert_array_equal(bits(predictions), expected, how)


@pytest.mark.parametrize("engine", [kernels, reference])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 7, 16, 33])
def test_number_that_is_not_finite_is_found_wherever_it_is(rows, dtype, engine):
    network, x = Network((3, 9, 2), dtype=np.dtype(dtype).name), np.ones((rows, 3), dtype)
    plan = make_plan(network, rows, rows)
    arrays = network.params, x, *forward_memory(plan, x.dtype), np.empty((rows, 2), dtype)

    assert engine.predict(plan, *arrays) == engine.FINISHED
    for array, bad in itertools.product((network.params, x.reshape(-1)), (np.nan, np.inf, -np.inf)):
        for place in range(array.size):
            before, array[place] = array[place], bad
            assert engine.predict(plan, *arrays) == engine.REFUSED
            array[place] = before
    assert engine.predict(plan, *arrays) == engine.FINISHED


GOOD_TARGETS = {
    "binary_cross_entropy": [(0, 1), (1, 1)],
    "cross_entropy": [(0, 1), (0.5, 0.5), (0.500004, 0.500004)],
    "poisson": [(0, 1e300)],
}
BAD_TARGETS = {
    "binary_cross_entropy": [(0, 0.5), (-1, 1), (1 + 1e-15, 0)],
    "cross_entropy": [(-0.1, 1.1), (1.1, 0), (0.50002, 0.5), (0.5, 0.49998)],
    "poisson": [(-1e-300, 1), (1, -1)],
}


@pytest.mark.parametrize("engine", [kernels, reference])
@pytest.mark.parametrize("loss", LOSSES)
def test_rows_are_taken_or_refused_by_their_targets(loss, engine):
    network = Network((1, 2), init="zeros", **loss_settings(loss, 2))
    plan = make_plan(network, 3, 3)

    def status(y):
        rows = rows_of(np.ones((3, 1)), np.array([(0, 1), y, (1, 0)], float))
        memory = make_memory(plan, np.ones(4), 1)
        memory = memory._replace(order=np.arange(3), data=aligned(4 * plan.width, rows.dtype))
        saved = memory._replace(params=np.zeros(4), first=np.zeros(4), second=np.zeros(4), totals=np.zeros(10))
        result = engine.bind_rows(plan, memory, saved, rows.ravel())()
        taken = result == engine.FINISHED
        np.testing.assert_array_equal(saved.params, memory.params * taken)
        np.testing.assert_array_equal(saved.totals, memory.totals if taken else 0)
        return result

    for y in GOOD_TARGETS.get(loss, [(-1e300, 0.5)]):
        assert status(y) == engine.FINISHED
    for y in [*BAD_TARGETS.get(loss, []), (0, np.nan), (np.inf, 0)]:
        assert status(y) == engine.REFUSED


@pytest.mark.parametrize("engine", [kernels, reference])
def test_bound_run_goes_on_where_it_ended_though_nobody_else_holds_its_arrays(engine):
    network = Network((3, 4, 2), activation="tanh", seed=0)
    rows = rows_of(np.arange(30.0).reshape(10, 3) / 30, np.ones((10, 2)))
    plan = make_plan(network, 10, 4, Adam())
    data = panels_of(rows, plan) if engine.PANELS else rows.ravel()
    expected = make_memory(plan, network.params.copy(), 2)
    engine.run(plan, expected, data, data[:0], 2 * plan.blocks_per_epoch)

    memory = make_memory(plan, network.params.copy(), 2)
    position, params, loss = memory.position, memory.params, memory.loss
    run = engine.bind(plan._replace(sizes=plan.sizes.copy(), settings=plan.settings.copy()), memory, data, data[:0])
    del memory
    gc.collect()
    filler = [np.full(size, np.nan) for size in range(1, 200)]
    for _ in range(2 * plan.blocks_per_epoch):
        assert run(1) == engine.FINISHED
    del filler

    assert position[0] == 2
    np.testing.assert_array_equal(params, expected.params)
    np.testing.assert_array_equal(loss, expected.loss)
