"""Kernels against their twins in the reference, each array between guard words: pointers escape bounds checks."""

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbp import kernels, reference
from fastbp.choices import ACTIVATIONS, ELEMENTWISE, LOSSES, SGD, TINY_FLOAT32, TINY_FLOAT64, Adam
from fastbp.jit import entry
from fastbp.network import Network
from fastbp.simd import at, lanes_of, load, store
from fastbp.workspace import (
    VECTOR_BYTES,
    Memory,
    Plan,
    aligned,
    forward_memory,
    make_memory,
    make_plan,
    panels_of,
    rows_of,
)

DTYPES = [np.float64, np.float32]
LANES = {dtype: VECTOR_BYTES // np.dtype(dtype).itemsize for dtype in DTYPES}
EPSILON = {dtype: float(np.finfo(dtype).eps) for dtype in DTYPES}
TINY = {np.float64: TINY_FLOAT64, np.float32: TINY_FLOAT32}
RUN_TOLERANCE = {np.float64: 1e-12, np.float32: 1e-5}
WIDTHS = [1, 2, 7, 8, 9, 15, 16, 17, 33]
PAIRS = [(loss, output) for loss in LOSSES for output in LOSSES[loss].outputs]
OPTIMIZERS = [
    SGD(0.05),
    SGD(0.005, momentum=0.9),
    SGD(0.005, momentum=0.9, nesterov=True),
    # With the usual epsilon a gradient that is nothing but rounding would still move a weight by the whole rate.
    Adam(0.01, epsilon=0.01),
]


def label(value):
    """How a choice is called in the name of a test."""
    if isinstance(value, tuple | list):
        return "-".join(map(label, value))
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
    if isinstance(argument, Plan | Memory):
        return type(argument)(*(copied(field, fences) for field in argument))
    return fenced(argument, fences) if isinstance(argument, np.ndarray) else argument


def bits(array):
    return array.view(f"u{array.itemsize}")


def call(function, *arguments, writes):
    """Call with fenced copies, check the guard words, and that only the arrays in `writes` changed; copy those back."""
    fences = []
    copies = [copied(argument, fences) for argument in arguments]
    result = function(*copies)
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
    kernels.product(at(w, 0), row_stride, column_stride, rows, n, at(bias, 0), at(x, 0), S, at(out, 0))


@entry
def activation(kind, z):
    for q in range(0, z.size, lanes_of(at(z, 0))):
        store(at(z, q), 0, kernels.activation(kind, load(1, 1, at(z, q), 0)))


@entry
def activate(kind, z):
    kernels.activate(kind, at(z, 0), z.size)


@entry
def times_slope(kind, delta, a):
    for q in range(0, a.size, lanes_of(at(a, 0))):
        store(at(delta, q), 0, kernels.times_slope(kind, load(1, 1, at(delta, q), 0), load(1, 1, at(a, q), 0)))


@entry
def slope(kind, delta, a):
    kernels.slope(kind, at(delta, 0), at(a, 0), a.size)


@entry
def output(loss, kind, a, y, weight, outputs, S, delta, totals):
    kernels.output(loss, kind, at(a, 0), at(y, 0), at(weight, 0), outputs, S, at(delta, 0), at(totals, 0))


@entry
def softmax(z, outputs, S):
    for v in range(0, S, lanes_of(at(z, 0))):
        kernels.softmax(kernels.highest(at(z, v), outputs, S), at(z, v), outputs, S)


@entry
def weight_gradient(a, a_stride, inputs, delta, outputs, samples, S, counting, none, scratch, gradient):
    kernels.weight_gradient(
        at(a, 0), a_stride, inputs, at(delta, 0), outputs, samples, S, at(counting, 0), at(none, 0), at(scratch, 0),
        at(gradient, 0),
    )  # fmt: skip


@entry
def bias_gradient(delta, outputs, panels, S, gradient):
    kernels.bias_gradient(at(delta, 0), outputs, panels, S, at(gradient, 0))


# The numbers of an optimiser come in an array, so that they have the working precision.


@entry
def plain_sgd(w, g, numbers):
    kernels.plain_sgd(w.size, at(w, 0), at(g, 0), numbers[0], numbers[1])


@entry
def momentum_sgd(w, g, velocity, numbers, nesterov):
    scale, rate, momentum, tiny = numbers[0], numbers[1], numbers[2], numbers[3]
    kernels.momentum_sgd(w.size, at(w, 0), at(g, 0), at(velocity, 0), scale, rate, momentum, nesterov, tiny)


@entry
def adam(w, g, first, second, numbers):
    scale, rate, beta1, beta2, epsilon = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    correction1, correction2, tiny, root = numbers[5], numbers[6], numbers[7], numbers[8]
    kernels.adam(
        w.size, at(w, 0), at(g, 0), at(first, 0), at(second, 0), scale, rate, beta1, beta2, epsilon,
        correction1, correction2, tiny, root,
    )  # fmt: skip


@entry
def random_bits(counters, out):
    for k in range(counters.size):
        out[k] = kernels.random_bits(counters[k])


@entry
def shuffle(seed, epoch, order):
    kernels.shuffle(order.size, seed, epoch, at(order, 0))


@entry
def gather(data, order, count, F, S, panels, none, out):
    kernels.gather(at(data, 0), at(order, 0), count, F, S, panels, at(none, 0), at(out, 0))


@entry
def finite(w):
    return kernels.finite(w.size, at(w, 0))


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


# --- activations --------------------------------------------------------------------------------------------------


def logits(dtype, rng):
    """Numbers that an activation may meet, whole vectors of them."""
    special = [0, -0.0, 1e-30, -1e-30, 1e-3, -1e-3, 20, -20, 87, -87, 89, -89, 710, -710, 800, -800, np.inf, -np.inf]
    return np.concatenate([special, rng.normal(size=15) * 3, rng.normal(size=31)]).astype(dtype)


@by_dtype
@pytest.mark.parametrize("kernel", [activation, activate], ids=["activation", "activate"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_activation_equals_its_twin(name, kernel, dtype, rng):
    kind, z = ACTIVATIONS[name].code, logits(dtype, rng)
    for n in (LANES[dtype], z.size):
        a = z[:n].copy()
        call(kernel, kind, a, writes=[a])

        expected = reference.activation(kind, z[:n])
        actual = a

        assert_near(actual, expected, 8)


@by_dtype
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_nan_passes_through_activation_and_slope(name, dtype):
    kind = ACTIVATIONS[name].code
    lane = np.arange(LANES[dtype])
    for k in (0, LANES[dtype] - 1):
        a = np.where(lane == k, np.nan, 1).astype(dtype)
        call(activate, kind, a, writes=[a])

        expected = lane == k
        actual = np.isnan(a)

        np.testing.assert_array_equal(actual, expected)
        if name not in ("identity", "leaky_relu"):  # whose slopes do not contain a
            delta = np.ones_like(a)
            call(slope, kind, delta, a, writes=[delta])

            np.testing.assert_array_equal(np.isnan(delta), expected)


@by_dtype
@pytest.mark.parametrize("kernel", [times_slope, slope], ids=["times_slope", "slope"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_slope_equals_its_twin(name, kernel, dtype, rng):
    kind, z = ACTIVATIONS[name].code, logits(dtype, rng)
    a, delta = reference.activation(kind, z), draw(rng, dtype, z.size)
    a[-1] = np.nan
    delta[::5], delta[1::5] = 1e-3 * TINY[dtype], -4 * TINY[dtype]
    delta[2::20], delta[3::20] = np.inf, np.nan
    actual = delta.copy()
    call(kernel, kind, actual, a, writes=[actual])

    with np.errstate(invalid="ignore"):
        expected = reference.times_slope(kind, delta, a)
    if kernel is slope:
        expected = reference.flush(expected)
        assert (np.abs(actual[actual != 0]) >= TINY[dtype])[np.isfinite(actual[actual != 0])].all()

    np.testing.assert_allclose(actual, expected, rtol=8 * EPSILON[dtype], atol=0)


# --- losses -------------------------------------------------------------------------------------------------------


def targets(loss, dtype, rng, *shape):
    """Targets that the loss is meant for: any numbers, 0 and 1, or rows of probabilities."""
    if loss == "binary_cross_entropy":
        return rng.integers(0, 2, shape).astype(dtype)
    if loss == "cross_entropy":
        return rng.dirichlet(np.ones(shape[1]), shape[0]).astype(dtype)
    return draw(rng, dtype, *shape)


@by_dtype
@by_vectors
@pytest.mark.parametrize("spread", [1, 30])
@pytest.mark.parametrize(("loss", "output_name"), PAIRS)
def test_loss_of_a_panel_equals_its_twin(loss, output_name, spread, vectors, dtype, rng):
    S, code, kind = vectors * LANES[dtype], LOSSES[loss].code, ACTIVATIONS[output_name].code
    for outputs in WIDTHS:
        z, y = spread * draw(rng, dtype, S, outputs), targets(loss, dtype, rng, S, outputs)
        weight = rng.choice([0, 0.5, 1, 2], S).astype(dtype)
        a, delta, totals = z.T.copy(), np.empty((outputs, S), dtype), np.array([10.0, 20, 30, 40])
        call(output, code, kind, a, y.T.copy(), weight, outputs, S, delta, totals, writes=[a, delta, totals])

        p, expected_delta, losses = reference.output(code, kind, z, y)
        expected_delta = reference.flush(expected_delta * weight[:, None])
        error = np.abs((p - y) * weight[:, None])
        expected = [10 + (losses * weight).sum(dtype=float), 20 + error.sum(dtype=float), 30, 40]
        actual = totals

        np.testing.assert_allclose(actual, expected, rtol=16 * EPSILON[dtype], err_msg=f"outputs = {outputs}")
        # Differences of logits are rounded like the logits.
        assert_near(a.T, p, 16 if loss != "cross_entropy" else 16 * (1 + spread), message=f"outputs = {outputs}")
        assert_near(
            delta.T, expected_delta, 16, scale=max(1, np.abs(z).max(), np.abs(y).max()), message=f"outputs = {outputs}"
        )
        assert (np.abs(delta[delta != 0]) >= TINY[dtype]).all()


@by_dtype
@pytest.mark.parametrize("loss", ["binary_cross_entropy", "cross_entropy"])
def test_loss_is_stable_for_large_logits(loss, dtype):
    # Two outputs for each of V samples; sure and right, sure and wrong, undecided
    S = LANES[dtype]
    z = np.tile(np.array([[800, -800], [-800, 800], [800, 800], [0, 0]], dtype), (S // 4, 1))
    y = np.tile(np.array([1, 0], dtype), (S, 1))
    code, kind = LOSSES[loss].code, ACTIVATIONS[LOSSES[loss].outputs[0]].code
    a, delta, totals = z.T.copy(), np.empty((2, S), dtype), np.zeros(4)
    call(output, code, kind, a, y.T.copy(), np.ones(S, dtype), 2, S, delta, totals, writes=[a, delta, totals])

    four = 0 + 1600 + 800 + 2 * np.log(2) if loss == "binary_cross_entropy" else 0 + 1600 + np.log(2) + np.log(2)
    expected = four * S / 4
    actual = totals[0]

    assert actual == pytest.approx(expected, rel=4 * EPSILON[dtype])
    assert np.isfinite(delta).all()


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
@pytest.mark.parametrize("outputs", WIDTHS)
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


# --- optimisers ---------------------------------------------------------------------------------------------------


def draw_momentum(rng, dtype, P):
    """Momenta, of which every third is about to die."""
    momentum = draw(rng, dtype, P)
    momentum[::3] = TINY[dtype] * 1.01
    return momentum


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
    w, g, velocity = draw(rng, dtype, P), draw(rng, dtype, P), draw_momentum(rng, dtype, P)
    g[::3] = 0
    expected = w.copy(), velocity.copy()
    reference.momentum_sgd(expected[0], dtype(0.25) * g, expected[1], dtype(0.1), dtype(0.9), nesterov)
    actual = w, velocity
    call(
        momentum_sgd, w, g, velocity, numbers_of(dtype, 0.25, 0.1, 0.9, TINY[dtype]), nesterov, writes=[w, g, velocity]
    )

    assert_near(actual[0], expected[0], 2, scale=4)
    assert_near(actual[1], expected[1], 2, scale=4)
    assert not velocity[::3].any()
    assert not g.any()


@by_dtype
@pytest.mark.parametrize("P", WIDTHS)
def test_adam_equals_its_twin(P, dtype, rng):
    w, g, first = draw(rng, dtype, P), draw(rng, dtype, P), draw_momentum(rng, dtype, P)
    second = np.abs(draw_momentum(rng, dtype, P))
    g[::3] = 0
    expected = w.copy(), first.copy(), second.copy()
    numbers = numbers_of(dtype, 0.25, 0.1, 0.9, 0.95, 1e-8, 0.19, 0.0975, TINY[dtype], TINY[dtype] ** 0.5)
    scale, *rest = numbers[:-2]
    reference.adam(expected[0], scale * g, expected[1], expected[2], *rest)
    actual = w, first, second
    call(adam, w, g, first, second, numbers, writes=[w, g, first, second])

    for actual_part, expected_part in zip(actual, expected, strict=True):
        assert_near(actual_part, expected_part, 4, scale=4)
    assert not first[::3].any()
    assert not second[::3].any()
    assert not g.any()


# --- the data -----------------------------------------------------------------------------------------------------


def test_random_bits_equal_their_twins(rng):
    edges = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    counters = np.concatenate([edges, rng.integers(0, 2**64, 100, np.uint64)])
    actual = np.zeros_like(counters)
    call(random_bits, counters, actual, writes=[actual])

    expected = reference.random_bits(counters)

    np.testing.assert_array_equal(actual, expected)


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
    network = Network(
        sizes, activation=hidden, output=output_name, loss=loss, bias=bias, seed=seed, dtype=np.dtype(dtype).name
    )
    network.params[:] += 0.1 * draw(rng, dtype, network.params.size)  # biases too
    data = rows_of(draw(rng, dtype, rows, sizes[0]), targets(loss, dtype, rng, rows, sizes[-1]))
    data[:, -1] = rng.choice([0.5, 1, 2], rows)
    return network, data


def run(engine, plan, memory, data, blocks=None):
    """Run the kernel or the reference on the rows, by default to the end; returns the status."""
    flat = data.ravel() if plan.shuffled or engine is reference else panels_of(data, plan)
    blocks = len(memory.loss) * plan.blocks_per_epoch if blocks is None else blocks
    arguments = plan, memory, flat, blocks
    return call(engine.run, *arguments, writes=memory) if engine is kernels else engine.run(*arguments)


def trained(engine, network, plan, data, epochs=3):
    memory = make_memory(plan, network.params.copy(), epochs)
    assert run(engine, plan, memory, data) == engine.FINISHED
    return memory


def assert_same_run(actual, expected, dtype, units=1):
    """Equal to rounding: weights, momenta, losses and errors."""
    assert actual.position[:2].tolist() == expected.position[:2].tolist()
    for name in ("params", "first", "second", "loss", "error", "totals"):
        actual_part, expected_part = getattr(actual, name), getattr(expected, name)
        scale = np.abs(expected_part).max(initial=0)
        if name not in ("params", "second"):  # which may be nothing but rounding
            scale = max(scale, np.abs(expected.params).max())
        tolerance = units * RUN_TOLERANCE[dtype] * scale
        np.testing.assert_allclose(actual_part, expected_part, rtol=0, atol=tolerance, err_msg=name)


def pairwise(seed, *axes):
    """Rows of choices, one from each axis, in which each two choices from two axes meet at least once."""
    draw = random.Random(seed)
    columns = list(itertools.combinations(range(len(axes)), 2))
    missing = {(i, j, a, b) for i, j in columns for a in range(len(axes[i])) for b in range(len(axes[j]))}
    while missing:
        rows = [[draw.randrange(len(axis)) for axis in axes] for _ in range(30)]
        met = [{(i, j, row[i], row[j]) for i, j in columns} & missing for row in rows]
        best = max(range(30), key=lambda k: len(met[k]))
        missing -= met[best]
        yield [axis[k] for axis, k in zip(axes, rows[best], strict=True)]


SIZES = [(1, 1), (3, 1), (5, 7, 2), (2, 2, 1), (16, 8, 9, 3), (4, 17, 1), (7, 33, 15, 10)]
CASES = [
    case
    for seed in range(3)
    for case in pairwise(
        seed,
        SIZES,
        range(len(ELEMENTWISE)),
        PAIRS,
        OPTIMIZERS,
        [True, False],  # bias
        [True, False],  # mean
        [1, 3, 8, 16, 17, 40, ROWS],  # batch size
        [True, False],  # shuffled
        [None, 1, 2],  # panels of a block
        [True, False],  # the fused path, where the problem is small enough
        DTYPES,
    )
]


@pytest.mark.parametrize("case", CASES, ids=label)
def test_run_equals_its_twin(case):
    sizes, activation, pair, optimizer, bias, mean, batch_size, shuffled, block, fused, dtype = case
    network, data = build(sizes, *pair, activation=activation, bias=bias, dtype=dtype)
    plan = make_plan(network, ROWS, batch_size, optimizer, mean=mean, shuffled=shuffled, seed=5)
    plan = plan._replace(tiny=plan.tiny and fused, block=min(plan.block, block or plan.block))
    if not mean:
        plan.settings[0] /= batch_size

    expected = trained(reference, network, plan, data)
    actual = trained(kernels, network, plan, data)

    assert_same_run(actual, expected, dtype)
    assert not actual.gradient[: plan.parameters].any()


def test_runs_vary_in_every_choice():
    """Otherwise the table above would not hold what it promises."""
    choices = [set(map(str, column)) for column in zip(*CASES, strict=True)]

    assert [len(column) for column in choices] == [7, 5, len(PAIRS), 4, 2, 2, 7, 2, 3, 2, 2]


@by_dtype
@pytest.mark.parametrize("pair", PAIRS, ids=label)
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=label)
def test_both_paths_equal_the_twin(optimizer, pair, dtype):
    for sizes, bias, activation in [
        ((3, 1), True, 0),
        ((2, 2, 1), False, 1),
        ((4, 8, 2), True, 2),
        ((2, 3, 5, 2), True, 4),
    ]:
        network, data = build(sizes, *pair, activation=activation, bias=bias, dtype=dtype, rows=11)
        plan = make_plan(network, 11, 8, optimizer, mean=True)
        assert plan.tiny

        expected = trained(reference, network, plan, data)
        for tiny in (True, False):
            actual = trained(kernels, network, plan._replace(tiny=tiny), data)

            assert_same_run(actual, expected, dtype)


@by_dtype
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("batch_size", [40, 100, 110])
def test_block_and_width_change_nothing_but_rounding(batch_size, shuffled, dtype):
    network, data = build((6, 17, 3), activation=2, dtype=dtype, rows=110)
    plan = make_plan(network, 110, batch_size, Adam(0.01, epsilon=0.01), mean=True, shuffled=shuffled)

    expected = trained(reference, network, plan._replace(block=110), data, 2)
    for vectors, block in itertools.product([1, 2], [1, 2, 3, 5, 14]):
        other = plan._replace(width=vectors * LANES[dtype], block=block)
        actual = trained(kernels, network, other, data, 2)

        assert_same_run(actual, expected, dtype)


@by_dtype
@pytest.mark.parametrize("sizes", [(3, 2), (3, 5, 2), (3, 33, 9, 2)])
def test_spare_samples_of_the_last_panel_count_for_nothing(sizes, dtype):
    for rows in range(1, 2 * LANES[dtype] + 2):
        for shuffled in (False, True):
            network, data = build(sizes, activation=1, dtype=dtype, rows=rows)
            plan = make_plan(network, rows, rows, SGD(0.05, momentum=0.5), mean=True, shuffled=shuffled)

            expected = trained(reference, network, plan, data, 2)
            actual = trained(kernels, network, plan, data, 2)

            assert_same_run(actual, expected, dtype)


@by_dtype
@pytest.mark.parametrize("sizes", [(3, 2), (3, 5, 2), (7, 33, 15, 10)])
def test_without_an_optimiser_the_gradient_is_summed_and_kept(sizes, dtype):
    for rows in (1, 7, 8, 43, 150):
        network, data = build(sizes, activation=1, dtype=dtype, rows=rows)
        plan = make_plan(network, rows, rows)
        expected = trained(reference, network, plan, data, epochs=1)
        actual = trained(kernels, network, plan, data, epochs=1)

        scale = np.abs(expected.gradient).max()
        np.testing.assert_allclose(actual.gradient, expected.gradient, rtol=0, atol=RUN_TOLERANCE[dtype] * scale)
        np.testing.assert_array_equal(actual.params, network.params)
        assert_same_run(actual, expected, dtype)


# --- a run in pieces ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(("sizes", "batch_size"), [((3, 5, 2), 17), ((2, 2, 1), 8), ((2, 9, 1), ROWS)])
def test_pieces_of_a_run_give_the_bits_of_the_whole(sizes, batch_size, shuffled, optimizer):
    network, data = build(sizes, activation=1)
    plan = make_plan(network, ROWS, batch_size, optimizer, mean=True, shuffled=shuffled)._replace(block=1)
    blocks = 3 * plan.blocks_per_epoch
    expected = trained(kernels, network, plan, data)

    @settings(max_examples=10, deadline=None, derandomize=True, database=None)
    @given(st.sets(st.integers(0, blocks)))
    def check(cuts):
        actual = make_memory(plan, network.params.copy(), 3)
        for piece in np.diff([0, *sorted(cuts), blocks]):
            assert run(kernels, plan, actual, data, int(piece)) == kernels.FINISHED

        for name in ("params", "gradient", "first", "second", "position", "totals", "loss", "error"):
            np.testing.assert_array_equal(bits(getattr(actual, name)), bits(getattr(expected, name)), name)

    check()


def test_no_blocks_change_nothing():
    network, data = build((3, 5, 2))
    plan = make_plan(network, ROWS, 8, Adam())
    expected = make_memory(plan, network.params.copy(), 1)
    actual = make_memory(plan, network.params.copy(), 1)
    status = run(kernels, plan, actual, data, blocks=0)

    assert status == kernels.FINISHED
    for name in actual._fields:
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
        epochs, row, _ = memory.position.tolist()
        stopped.append(epochs)

        assert row == 0
        assert np.isfinite(memory.loss[: epochs - 1]).all()
        assert not memory.loss[epochs:].any()
        assert not memory.totals[:2].any()
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
@pytest.mark.parametrize("activation", range(len(ELEMENTWISE)))
def test_nan_weight_of_a_hidden_layer_surfaces_in_the_loss(activation, dtype):
    for sizes, tiny in [((2, 3, 1), True), ((2, 3, 1), False), ((3, 9, 9, 2), False)]:
        network, data = build(sizes, activation=activation, dtype=dtype, rows=8)
        network.params[0] = np.nan
        plan = make_plan(network, 8, 8, SGD(0.1), mean=True)._replace(tiny=tiny)
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


def predicted(engine, network, x, order, batch_size=None):
    """Predictions for the rows in this order."""
    plan = make_plan(network, len(order), batch_size or len(order))
    gathered, activations, none = forward_memory(plan, x.dtype)
    predictions = np.empty((len(order), network.sizes[-1]), x.dtype)
    arguments = plan, network.params, x, order, none, gathered, activations, predictions
    if engine is kernels:
        status = call(engine.predict, *arguments, writes=[gathered, activations, predictions])
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
    x, order = data[:, : sizes[0]].copy(), reference.shuffle(ROWS, 0, 0)

    expected = predicted(reference, network, x, order)
    actual = predicted(kernels, network, x, order)

    assert_near(actual, expected, 32, scale=max(1, np.abs(expected).max()))


@by_dtype
@pytest.mark.parametrize(("sizes", "loss", "name", "hidden"), PREDICTING, ids=label)
def test_prediction_of_a_row_does_not_depend_on_the_others(sizes, loss, name, hidden, dtype):
    network, data = build(sizes, loss, name, activation=hidden, dtype=dtype)
    x, natural = data[:, : sizes[0]].copy(), np.arange(ROWS)

    expected = bits(predicted(kernels, network, x, natural))
    actual = {"reversed": predicted(kernels, network, x, natural[::-1].copy())[::-1].copy()}
    for batch in (1, 2, 7, 8, 9, 16, 17, 40):
        parts = [predicted(kernels, network, x, natural[k : k + batch].copy()) for k in range(0, ROWS, batch)]
        actual[f"in calls of {batch}"] = np.concatenate(parts)
        actual[f"in blocks for batches of {batch}"] = predicted(kernels, network, x, natural, batch_size=batch)

    for how, predictions in actual.items():
        np.testing.assert_array_equal(bits(predictions), expected, how)
