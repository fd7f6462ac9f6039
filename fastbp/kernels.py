"""Back-propagation in compiled loops, from the outside in: training, one batch of it, what a batch calls, tiles last.

Dimensions
    n  rows of the data set          I  inputs of a layer        V  lanes: elements of one vector
    B  rows of a batch               O  outputs of a layer       S  samples of a panel: V or 2 V
    P  parameters                    F  I + O + 1 of the network, a row of data: x, y and its weight

A *panel* holds S samples, feature-major: `panel[feature * S + sample]`, so that one vector is one feature of V samples
and a sum over features never crosses lanes. A *block* is a few panels, one after the other, that are walked together
layer by layer. The last panel of a batch may be padded: its spare samples have weight 0.

Parameters are flat: for each layer W (I, O) in C order, then b (O,) if there are biases. Everything is handed in and
written in place; nothing is allocated and nothing is raised. `workspace.py` says what a plan and a memory hold; inside
the kernels their arrays are bare pointers, because the references to an array are counted at every call: XOR took 198
ns an epoch with arrays when it took 132 with pointers.
"""

import numpy as np

from fastbp.choices import (
    ABSOLUTE_ERROR,
    ADAM,
    ADAM_BETA1,
    ADAM_BETA2,
    ADAM_EPSILON,
    ADAM_EPSILON_HAT,
    ADAMW,
    ADAMW_WEIGHT_DECAY,
    BINARY_CROSS_ENTROPY,
    CONSTANT,
    COSINE,
    COSINE_EPOCHS,
    COSINE_MINIMUM,
    COSINE_WARMUP,
    CROSS_ENTROPY,
    ELU,
    EXPONENTIAL,
    EXPONENTIAL_DECAY,
    EXPONENTIAL_DECAY_DECAY,
    GELU,
    HUBER,
    INVERSE_SCALING,
    INVERSE_SCALING_PACE,
    INVERSE_SCALING_POWER,
    IRPROP,
    IRPROP_DECREASE,
    IRPROP_INCREASE,
    IRPROP_LARGEST_STEP,
    IRPROP_SMALLEST_STEP,
    KEEP_GRADIENT,
    LEAK,
    LEAKY_RELU,
    LEARNING_RATE,
    MOMENTUM_SGD,
    OF_LOGITS,
    PLAIN_SGD,
    POISSON,
    REDUCE_ON_PLATEAU,
    REDUCE_ON_PLATEAU_FACTOR,
    REDUCE_ON_PLATEAU_MIN_DELTA,
    REDUCE_ON_PLATEAU_MINIMUM,
    REDUCE_ON_PLATEAU_PATIENCE,
    REDUCE_ON_PLATEAU_STOP,
    RELU,
    RMSPROP,
    RMSPROP_DECAY,
    RMSPROP_EPSILON,
    SGD_MOMENTUM,
    SGD_NESTEROV,
    SIGMOID,
    SILU,
    SOFTMAX,
    SOFTPLUS,
    TANH,
)
from fastbp.jit import entry, inlined, kernel, merged
from fastbp.simd import (
    PAIRED,
    TILE_ROWS,
    absolute,
    add_lane_sums,
    add_outer,
    at,
    bundle,
    erf,
    exp,
    expm1,
    fill,
    flush_subnormals,
    if_full,
    lane_sum,
    lanes_of,
    load,
    load_rows,
    log,
    log1p,
    multiply_add,
    put_back,
    random_bits,
    sigmoid,
    store,
    tanh,
    transpose,
    uniform,
    where_less,
    zeros,
)
from fastbp.workspace import (
    BATCH_WEIGHT,
    BEST,
    BEST_RATE,
    CORRECTED_EPSILON,
    CORRECTED_RATE,
    EPOCH,
    ERROR,
    FACTOR,
    LOSS,
    MISFIT,
    PANEL,
    POWER1,
    POWER2,
    RATE,
    REST1,
    REST2,
    ROW,
    SCALE,
    STALE,
    STALE_RATE,
    SUM_TOLERANCE,
    VALIDATION_LOSS,
    VALIDATION_MISFIT,
    WEIGHT,
    Memory,
    Plan,
    words_of,
)

FINISHED, DIVERGED, STOPPED, REFUSED = range(4)
PANELS = True  # how `run` takes rows that are not shuffled


# --- training and prediction ------------------------------------------------------------------------------------------


def run(plan, memory, data, validation, blocks):
    """Train for this many blocks, from memory.position on, in each epoch first the batches, then the validation.

    data: the rows (n, F), or where they are not shuffled all panels laid out, batch after batch; validation: all panels
    laid out. Returns FINISHED, or at the end of an epoch DIVERGED, before validation, or STOPPED as `judge` says.
    """
    return bind(plan, memory, data, validation)(blocks)


def bind(plan, memory, data, validation):
    """`run` as a function of the blocks alone: their words are made once, which takes 20 us."""
    full = None if plan.lean else True
    words = memory.scalars.dtype.type(), full, words_of(plan), words_of(memory)

    def bound(blocks, arrays=(plan, memory)):  # which must outlive the words, their addresses
        return run_words(*words, data, validation, blocks)

    return bound


@entry
def run_words(precision, full, plan, memory, data, validation, blocks):
    """`run` with the words of plan and memory, any number of the working precision, and None for a lean plan."""
    before = flush_subnormals()
    status = run_blocks(
        bundle(Plan, precision, full, plan),
        bundle(Memory, precision, full, memory),
        at(data, 0),
        at(validation, 0),
        blocks,
    )
    put_back(before)
    return status


@kernel
def run_blocks(plan, memory, data, validation, blocks):
    """`run` with pointers in place of arrays."""
    n, rows, S, position = plan.rows, plan.rows + plan.validation_rows, plan.width, memory.position
    epoch, row, panel = position[EPOCH], position[ROW], position[PANEL]
    status = FINISHED
    set_rate(plan, memory, epoch)
    for _ in range(blocks):
        if row < n:
            count = train_block(plan, memory, data, epoch, row, panel)
        else:
            count = if_full(plan, 0, validate_block, plan, memory, validation, row - n, panel)
        row, panel = row + count, panel + (count + S - 1) // S
        if row == n:
            status = end_training(plan, memory, epoch)
            panel = 0
        elif row == rows:
            if_full(plan, None, end_validation, plan, memory, epoch)
        if row == rows or status == DIVERGED:
            if status == FINISHED and (plan.patience >= 0 or plan.schedule != CONSTANT):
                status = judge(plan, memory, epoch)
            epoch, row, panel = epoch + 1, 0, 0
            if plan.schedule != CONSTANT:
                set_rate(plan, memory, epoch)
            if status != FINISHED:
                break
    position[EPOCH], position[ROW], position[PANEL] = epoch, row, panel
    return status


@inlined
def train_block(plan, memory, data, epoch, row, panel):
    """Forward and backward pass of the next rows of a batch, and the update after its last;  returns their number.

    The rows from `row` on, which begin at this panel of the data, unless they are shuffled.  Writes as `step`.
    """
    S, F, a, totals = plan.width, plan.sizes[0] + plan.sizes[plan.layers] + 1, memory.activations, memory.totals
    batch = row // plan.batch_size * plan.batch_size  # its first row
    batch_rows = min(plan.batch_size, plan.rows - batch)
    count = min(batch + batch_rows - row, plan.block * S)
    panels = (count + S - 1) // S
    x = at(data, panel * F * S)
    if plan.shuffled:
        if row == 0:
            shuffle(plan.rows, plan.seed, epoch, memory.order)
        x = memory.data
        gather(data, at(memory.order, row), count, F, S, panels, memory.none, x)
    weight = np.float64(batch_rows)
    if plan.weighted:
        totals[BATCH_WEIGHT] += weight_of(x, F, S, panels)
        weight = totals[BATCH_WEIGHT]
    scale = 1.0 / weight if plan.mean and weight > 0 else 1.0
    if plan.tiny:
        tiny_batch(plan, memory, x, scale)
    else:
        forward(plan, memory.params, memory.none, plan.dropout, x, F, panels, epoch, row, memory.kept, a)
        output_layer(plan, memory, x, F, panels)
        backward(plan, memory, x, F, count, epoch, row)
        if row + count == batch + batch_rows:
            if weight > 0:  # a batch without weight is as if it were not there
                step(plan, memory, scale)
            totals[WEIGHT] += weight
            totals[BATCH_WEIGHT] = 0
    return count


@kernel
def validate_block(plan, memory, validation, row, panel):
    """Loss, error and misfit of the next rows for validation;  adds to totals, returns their number."""
    S, I, O = plan.width, plan.sizes[0], plan.sizes[plan.layers]
    F, top, a, totals = I + O + 1, plan.tops[plan.layers - 1] * plan.block * S, memory.activations, memory.totals
    count = min(plan.validation_rows - row, plan.block * S)
    panels = (count + S - 1) // S
    x = at(validation, panel * F * S)
    forward(plan, memory.params, memory.none, memory.none, x, F, panels, 0, row, a, a)
    output_layer(plan, memory, x, F, panels)
    for p in range(panels):
        y = at(x, (p * F + I) * S)
        misfit(plan.loss, at(a, top + p * O * S), y, at(y, O * S), plan.spread, O, S, totals)
    totals[WEIGHT] += weight_of(x, F, S, panels)
    return count


@inlined
def end_training(plan, memory, epoch):
    """Mean loss and error of the rows of an epoch;  writes loss, error and totals, returns FINISHED or DIVERGED."""
    totals, O = memory.totals, plan.sizes[plan.layers]
    loss, weight = totals[LOSS], totals[WEIGHT] if plan.weighted else np.float64(plan.rows)
    memory.loss[epoch], memory.error[epoch] = loss / weight, totals[ERROR] / (weight * O)
    totals[LOSS], totals[ERROR], totals[WEIGHT] = 0, 0, 0
    return FINISHED if converges(plan, memory, loss) else DIVERGED


@kernel
def end_validation(plan, memory, epoch):
    """Mean loss, error and misfit of the rows for validation;  writes them and totals."""
    totals, O = memory.totals, plan.sizes[plan.layers]
    weight = totals[WEIGHT]
    memory.validation_loss[epoch] = totals[LOSS] / weight
    memory.validation_error[epoch] = totals[ERROR] / (weight * O)
    memory.validation_misfit[epoch] = totals[MISFIT] / weight
    totals[LOSS], totals[ERROR], totals[MISFIT], totals[WEIGHT] = 0, 0, 0, 0


def bind_rows(plan, memory, saved, rows):
    """`take_rows` as a function of nothing: what is in the rows (n, F), flat, when it is called."""
    words = memory.scalars.dtype.type(), words_of(plan), words_of(memory), words_of(saved)

    def bound(arrays=(plan, memory, saved)):  # which must outlive the words, their addresses
        return take_rows_words(*words, rows)

    return bound


@entry
def take_rows_words(precision, plan, memory, saved, rows):
    """`take_rows` with the words of plan and memories, and any number of the working precision."""
    before = flush_subnormals()
    status = take_rows(
        bundle(Plan, precision, None, plan), bundle(Memory, precision, None, memory),
        bundle(Memory, precision, None, saved), at(rows, 0),
    )  # fmt: skip
    put_back(before)
    return status


@kernel
def take_rows(plan, memory, saved, rows):
    """Lay out the rows (n, F) of one batch, and save the state before its update;  writes data, and all of saved.

    Returns FINISHED, or REFUSED, with nothing written, if a number or a parameter is not finite or a target is none of
    the loss.
    """
    n, S, I, O, P = plan.rows, plan.width, plan.sizes[0], plan.sizes[plan.layers], plan.parameters
    F = I + O + 1
    if not (finite(n * F, rows) and finite(P, memory.params) and are_targets(plan.loss, at(rows, I), n, O, F)):
        return REFUSED
    copy(P, memory.params, saved.params)
    if plan.optimizer != PLAIN_SGD:
        copy(P, memory.first, saved.first)
        copy(P, memory.second, saved.second)
    copy(10, memory.totals, saved.totals)
    gather(rows, memory.order, n, F, S, (n + S - 1) // S, memory.none, memory.data)
    return FINISHED


@kernel
def are_targets(loss, y, n, O, F):
    """Whether all targets y (n, O), a row every F numbers, are such as the loss has."""
    good = True
    for row in range(n):
        total = 0.0
        for o in range(O):
            target = y[row * F + o]
            total += target
            if loss == BINARY_CROSS_ENTROPY:
                good = good and (target == 0 or target == 1)
            elif loss in (POISSON, CROSS_ENTROPY):
                good = good and target >= 0
        if loss == CROSS_ENTROPY:
            good = good and abs(total - 1) <= SUM_TOLERANCE
    return good


@kernel
def copy(n, x, out):
    """out = x (n,)."""
    for q in range(n):
        out[q] = x[q]


@kernel
def converges(plan, memory, loss):
    """Whether the loss of an epoch, the weights and what the optimiser keeps of the gradients are finite."""
    P, good = plan.parameters, loss * 0 == 0 and finite(plan.parameters, memory.params)
    if good and plan.optimizer != KEEP_GRADIENT and plan.optimizer != PLAIN_SGD:
        good = finite(P, memory.first) and finite(P, memory.second)
    return good


def predict(plan, params, data, order, none, gathered, activations, predictions):
    """Predictions for all rows, a block at a time.

    params (P,), data (n, I), order (n,), none (widest layer, at least V) zeros;  writes gathered (block, I, S),
    activations as `forward` and predictions (n, O). All arrays are flat.
    """
    predict_words(
        None if plan.lean else True, words_of(plan), params, data, order, none, gathered, activations, predictions
    )
    return FINISHED


def bind_predict(plan, *arrays):
    """`predict` as a function of nothing."""
    full, words = None if plan.lean else True, words_of(plan)

    def bound(plan=plan):  # whose arrays must outlive the words, their addresses
        return predict_words(full, words, *arrays)

    return bound


@entry
def are_finite(params, data):
    """Whether all numbers of both arrays, neither of them empty, are finite."""
    return finite(params.size, at(params, 0)) and finite(data.size, at(data, 0))


@entry
def predict_words(full, plan, params, data, order, none, gathered, activations, predictions):
    """`predict` with the words of the plan."""
    before = flush_subnormals()
    predict_blocks(
        bundle(Plan, params[0], full, plan), at(params, 0), at(data, 0), at(order, 0), at(none, 0), at(gathered, 0),
        at(activations, 0), at(predictions, 0),
    )  # fmt: skip
    put_back(before)


@kernel
def predict_blocks(plan, params, data, order, none, x, a, predictions):
    """`predict` with pointers in place of arrays."""
    n, S, I, O = plan.rows, plan.width, plan.sizes[0], plan.sizes[plan.layers]
    kind, top = plan.kinds[plan.layers - 1], plan.tops[plan.layers - 1] * plan.block * S
    for first in range(0, n, plan.block * S):
        count = min(n - first, plan.block * S)
        panels = (count + S - 1) // S
        gather(data, at(order, first), count, I, S, panels, none, x)
        forward(plan, params, none, none, x, I, panels, first, first, a, a)
        for p in range(panels):
            z = at(a, top + p * O * S)
            if kind == SOFTMAX:
                for v in range(0, S, lanes_of(z)):
                    softmax(highest(at(z, v), O, S), at(z, v), O, S)
            else:
                activate(plan, kind, z, O * S, z)
            out = at(predictions, (first + p * S) * O)
            for s in range(min(S, count - p * S)):
                for o in range(O):
                    out[s * O + o] = z[o * S + s]


# --- one batch: forward pass, loss, backward pass, update -------------------------------------------------------------


@kernel
def forward(plan, params, none, rates, x, F, panels, epoch, first, kept, activations):
    """a_l = f_l(W_l^T a_{l-1} + b_l) for every layer of a block; the last layer is left as logits.

    params (P,), none (widest layer,) zeros, rates (layers,) of dropout, x (panels, F, S), samples from `first` on;
    writes activations, layer after layer, each (panels, O, S), and kept likewise, in the layers where it is apart.
    """
    layers, S = plan.layers, plan.width
    a, a_stride = x, F
    unit = np.int64(1)  # a literal would compile `product` once more
    for layer in range(layers):
        I, O, top = plan.sizes[layer], plan.sizes[layer + 1], plan.tops[layer] * plan.block * S
        w, out = at(params, plan.starts[layer]), at(activations, top)
        logits = at(kept, top) if plan.apart[layer] else out
        bias = at(w, I * O) if plan.biases else none
        for p in range(panels):
            z, out_p = at(logits, p * O * S), at(out, p * O * S)
            # z[o, s] = b[o] + sum_i w[i, o] a[i, s]
            product(w, unit, O, O, I, bias, at(a, p * a_stride * S), S, z)
            if layer + 1 < layers:
                f_z = out_p if of_logits(plan.kinds[layer]) else z
                activate(plan, plan.kinds[layer], z, O * S, f_z)
                if rates[layer] > 0:
                    key = random_stream(plan.seed, epoch, layer + 1)
                    if_full(plan, None, dropout, rates[layer], key, plan.rows, first + p * S, f_z, O, S, out_p)
        a, a_stride = out, O


@kernel
def output_layer(plan, memory, x, F, panels):
    """Predictions, deltas and loss of a block;  writes activations and deltas of the last layer, adds to totals."""
    S, I, O = plan.width, plan.sizes[0], plan.sizes[plan.layers]
    top = plan.tops[plan.layers - 1] * plan.block * S
    for p in range(panels):
        y = at(x, (p * F + I) * S)
        a, delta = at(memory.activations, top + p * O * S), at(memory.deltas, top + p * O * S)
        output(plan, a, y, at(y, O * S), O, S, delta, memory.totals)


@kernel
def backward(plan, memory, x, F, samples, epoch, first):
    """Gradients of every layer of a block, given the deltas of the last;  writes deltas, adds to gradient.

    x (panels, F, S), samples from `first` on; activations, kept and deltas as `forward` lays them out.
    """
    S = plan.width
    panels = (samples + S - 1) // S
    unit, counting, none = np.int64(1), memory.counting, memory.none
    for layer in range(plan.layers - 1, -1, -1):
        I, O, w = plan.sizes[layer], plan.sizes[layer + 1], plan.starts[layer]
        delta, gradient = at(memory.deltas, plan.tops[layer] * plan.block * S), at(memory.gradient, w)
        if plan.biases:
            bias_gradient(delta, O, panels, S, at(gradient, I * O))
        if layer == 0:
            weight_gradient(x, F, I, delta, O, samples, S, counting, none, memory.scratch, gradient)
        else:
            top = plan.tops[layer - 1] * plan.block * S
            a, below = at(memory.activations, top), at(memory.deltas, top)
            kept = at(memory.kept, top) if plan.apart[layer - 1] else a
            weight_gradient(a, I, I, delta, O, samples, S, counting, none, memory.scratch, gradient)
            for p in range(panels):
                # delta_below[i, s] = f'(z[i, s]) sum_o w[i, o] delta[o, s], and what dropout did to a[i, s]
                delta_p, below_p = at(delta, p * O * S), at(below, p * I * S)
                product(at(memory.params, w), O, unit, I, O, none, delta_p, S, below_p)
                slope(plan, plan.kinds[layer - 1], below_p, at(kept, p * I * S), I * S)
                if plan.dropout[layer - 1] > 0:
                    key = random_stream(plan.seed, epoch, layer)
                    rate = plan.dropout[layer - 1]
                    if_full(plan, None, dropout, rate, key, plan.rows, first + p * S, below_p, I, S, below_p)


@kernel
def step(plan, memory, scale):
    """Update the weights with the gradient of a batch, times scale;  writes params, gradient, momenta and totals."""
    P, w, g, settings, totals = plan.parameters, memory.params, memory.gradient, plan.settings, memory.totals
    cast = memory.scalars  # float64 numbers stored here and read back have the working precision
    if plan.l2 > 0:
        totals[LOSS] += penalty(plan, w, g)
    if plan.clip_norm > 0:
        if_full(plan, None, clip, plan, g, scale)
    cast[SCALE] = scale
    if plan.optimizer == PLAIN_SGD:
        plain_sgd(P, w, g, cast[SCALE], cast[RATE])
    elif plan.optimizer == MOMENTUM_SGD:
        momentum, nesterov = settings[SGD_MOMENTUM], settings[SGD_NESTEROV] != 0
        momentum_sgd(P, w, g, memory.first, cast[SCALE], cast[RATE], momentum, nesterov)
    elif plan.optimizer in (ADAM, ADAMW):
        beta1, beta2, epsilon = settings[ADAM_BETA1], settings[ADAM_BETA2], settings[ADAM_EPSILON]
        totals[POWER1] *= beta1  # beta1^t
        totals[POWER2] *= beta2  # beta2^t
        # first / (1 - beta1^t) over sqrt(second / (1 - beta2^t)) + epsilon: taken out of the loop, the corrections
        # spare it two divisions.
        root = np.sqrt(1 - totals[POWER2])
        cast[CORRECTED_RATE], cast[CORRECTED_EPSILON] = cast[RATE] * root / (1 - totals[POWER1]), epsilon * root
        cast[REST1], cast[REST2] = 1 - beta1, 1 - beta2
        if plan.optimizer == ADAMW:
            if_full(plan, None, decay, plan, w, cast[RATE] * settings[ADAMW_WEIGHT_DECAY])
        elif settings[ADAM_EPSILON_HAT] != 0:
            cast[CORRECTED_EPSILON] = epsilon
        adam(
            P, w, g, memory.first, memory.second, cast[SCALE], cast[CORRECTED_RATE], beta1, beta2, cast[REST1],
            cast[REST2], cast[CORRECTED_EPSILON],
        )  # fmt: skip
    elif plan.optimizer == RMSPROP:
        beta, epsilon = settings[RMSPROP_DECAY], settings[RMSPROP_EPSILON]
        cast[REST1] = 1 - beta
        if_full(plan, None, rmsprop, P, w, g, memory.second, cast[SCALE], cast[RATE], beta, cast[REST1], epsilon)
    elif plan.optimizer == IRPROP:
        increase, decrease = settings[IRPROP_INCREASE], settings[IRPROP_DECREASE]
        smallest, largest = settings[IRPROP_SMALLEST_STEP], settings[IRPROP_LARGEST_STEP]
        if_full(plan, None, irprop, P, w, g, memory.first, memory.second, increase, decrease, smallest, largest)


# --- activations ------------------------------------------------------------------------------------------------------


@kernel
def activate(plan, kind, z, n, a):
    """a = f(z) for n elements, whole vectors;  writes a, which may be z."""
    # The branch inside the loop goes the same way each time, so that it is predicted.
    for q in range(0, n, lanes_of(a)):
        store(at(a, q), 0, activation(plan, kind, load(1, 1, at(z, q), 0)))


@inlined
def activation(plan, kind, z):
    """a = f(z), lane by lane. NaN passes through."""
    if kind == SIGMOID:
        return sigmoid(z)
    if kind == TANH:
        return tanh(z)
    if kind == RELU:
        return where_less(z, 0.0, 0.0, z)
    if kind == LEAKY_RELU:
        return where_less(z, 0.0, LEAK * z, z)
    if kind > SOFTMAX:
        return if_full(plan, z, further_activation, kind, z)
    return z


@kernel
def further_activation(kind, z):
    """The rest of `activation`: apart, so that what is compiled into every caller is short."""
    if kind == ELU:
        return where_less(z, 0.0, expm1(z), z)
    if kind == GELU:
        return z * normal(z)
    if kind == SILU:
        return z * sigmoid(z)
    if kind == SOFTPLUS:
        return softplus(z)
    if kind == EXPONENTIAL:
        return exp(z)
    return z


@kernel
def normal(z):
    """Phi(z) = (1 + erf(z / sqrt 2)) / 2, the distribution function of the normal distribution, lane by lane."""
    return 0.5 + 0.5 * erf(0.7071067811865476 * z)


@kernel
def softplus(z):
    """log(1 + exp(z)), lane by lane, without overflow."""
    return where_less(z, 0.0, 0.0, z) + log1p(exp(0.0 - absolute(z)))


@kernel
def slope(plan, kind, delta, kept, n):
    """delta *= f'(z) for n elements, whole vectors, kept as in `times_slope`;  writes delta."""
    for q in range(0, n, lanes_of(kept)):
        store(at(delta, q), 0, times_slope(plan, kind, load(1, 1, at(delta, q), 0), load(1, 1, at(kept, q), 0)))


@inlined
def times_slope(plan, kind, delta, kept):
    """delta * f'(z), lane by lane, the slope written with a = f(z), or for gelu and silu with z."""
    a = kept
    if kind == SIGMOID:  # a = 1 / (1 + exp(-z))
        return delta * (a * (1.0 - a))
    if kind == TANH:  # a = tanh(z)
        return delta * (1.0 - a * a)
    if kind == RELU:  # a = max(z, 0); 0 a is NaN where a is
        return where_less(0.0, a, delta, 0.0 * a)
    if kind == LEAKY_RELU:  # a = z if z > 0 else LEAK z
        return where_less(0.0, a, delta, LEAK * delta)
    if kind > SOFTMAX:
        return if_full(plan, delta, further_slope, kind, delta, kept)
    return delta


@kernel
def further_slope(kind, delta, kept):
    """The rest of `times_slope`, for the same reason."""
    a = z = kept
    if kind == ELU:  # a = z if z > 0 else exp(z) - 1
        return where_less(0.0, a, delta, delta * (1.0 + a))
    if kind == GELU:  # a = z Phi(z), and dPhi(z) / dz = exp(-z^2 / 2) / sqrt(2 pi)
        return delta * (normal(z) + z * exp(-0.5 * z * z) * 0.3989422804014327)
    if kind == SILU:  # a = z sigmoid(z)
        s = sigmoid(z)
        return delta * (s * (1.0 + z * (1.0 - s)))
    if kind == SOFTPLUS:  # a = log(1 + exp(z)), exp(-a) = 1 / (1 + exp(z))
        return delta * (0.0 - expm1(0.0 - a))
    if kind == EXPONENTIAL:  # a = exp(z)
        return delta * a
    return delta


@kernel
def of_logits(kind):
    """Whether the slope is written with z."""
    return kind in OF_LOGITS


# --- losses: prediction, delta and loss of a panel --------------------------------------------------------------------


@inlined
def output(plan, a, y, weight, O, S, delta, totals):
    """Prediction, delta and loss of a panel from the logits in a (O, S);  writes as the four above."""
    if plan.loss == CROSS_ENTROPY:
        cross_entropy(a, y, weight, O, S, delta, totals)
    elif plan.loss == BINARY_CROSS_ENTROPY:
        binary_cross_entropy(a, y, weight, O, S, delta, totals)
    elif plan.loss == POISSON:
        if_full(plan, None, poisson, a, y, weight, O, S, delta, totals)
    else:
        regression(plan, a, y, weight, O, S, delta, totals)


@inlined
def regression(plan, a, y, weight, O, S, delta, totals):
    """loss = sum_o loss_of(p_o - y_o), delta_o = loss_slope(p_o - y_o) f'(z_o), p = f(z).

    a (O, S) holds z, y (O, S), weight (S,);  writes p into a, delta (O, S), adds loss and |p - y| to totals.
    """
    V, loss, d, kind = lanes_of(a), plan.loss, plan.huber_delta, plan.kinds[plan.layers - 1]
    total, error = zeros(1, 1, a), zeros(1, 1, a)
    for v in range(0, S, V):
        share = load(1, 1, at(weight, v), 0)
        for q in range(v, O * S, S):
            z = load(1, 1, at(a, q), 0)
            p = activation(plan, kind, z)
            residual = p - load(1, 1, at(y, q), 0)
            total = multiply_add(loss_of(loss, residual, d), share, total)
            error = multiply_add(absolute(residual), share, error)
            store(at(a, q), 0, p)
            delta_q = times_slope(plan, kind, loss_slope(loss, residual, d) * share, z if of_logits(kind) else p)
            store(at(delta, q), 0, delta_q)
    totals[LOSS] += lane_sum(total)
    totals[ERROR] += lane_sum(error)


@inlined
def loss_of(loss, residual, d):
    """Loss of a residual r = p - y, lane by lane: r^2 / 2, |r|, or Huber's of both, which meet at |r| = d."""
    if loss == ABSOLUTE_ERROR:
        return absolute(residual)
    square = 0.5 * residual * residual
    if loss == HUBER:
        size = absolute(residual)
        return where_less(size, d, square, d * (size - 0.5 * d))
    return square


@inlined
def loss_slope(loss, residual, d):
    """Derivative of `loss_of` by r, lane by lane: r, its sign, or r cut off at -d and d. NaN passes through."""
    if loss == ABSOLUTE_ERROR:
        return where_less(residual, 0.0, -1.0, where_less(0.0, residual, 1.0, residual))
    if loss == HUBER:
        return where_less(residual, -d, -d, where_less(d, residual, d, residual))
    return residual


@kernel
def poisson(a, y, weight, O, S, delta, totals):
    """loss = sum_o p_o - y_o + y_o (log y_o - z_o), delta_o = p_o - y_o, p = exp(z).

    a (O, S) holds z, y (O, S), weight (S,);  writes p into a, delta (O, S), adds loss and |p - y| to totals.
    """
    V = lanes_of(a)
    loss, error = zeros(1, 1, a), zeros(1, 1, a)
    for v in range(0, S, V):
        share = load(1, 1, at(weight, v), 0)
        for q in range(v, O * S, S):
            z, target = load(1, 1, at(a, q), 0), load(1, 1, at(y, q), 0)
            p = exp(z)
            residual = p - target
            # 0 log 0 counts as 0
            sample = residual + where_less(0.0, target, target * (log(target) - z), 0.0)
            loss = multiply_add(sample, share, loss)
            weighted = residual * share
            error = error + absolute(weighted)
            store(at(a, q), 0, p)
            store(at(delta, q), 0, weighted)
    totals[LOSS] += lane_sum(loss)
    totals[ERROR] += lane_sum(error)


@kernel
def binary_cross_entropy(a, y, weight, O, S, delta, totals):
    """loss = sum_o max(z, 0) - z y + log(1 + exp(-|z|)), delta_o = p_o - y_o, p = sigmoid(z).

    a (O, S) holds z, y (O, S), weight (S,);  writes p into a, delta (O, S), adds loss and |p - y| to totals.
    """
    V = lanes_of(a)
    loss, error = zeros(1, 1, a), zeros(1, 1, a)
    for v in range(0, S, V):
        share = load(1, 1, at(weight, v), 0)
        for q in range(v, O * S, S):
            z, target = load(1, 1, at(a, q), 0), load(1, 1, at(y, q), 0)
            p = sigmoid(z)
            # log p and log(1 - p) would lose all digits where p nears 0 or 1
            sample = where_less(z, 0.0, 0.0, z) - z * target + log1p(exp(0.0 - absolute(z)))
            weighted = (p - target) * share
            loss = multiply_add(sample, share, loss)
            error = error + absolute(weighted)
            store(at(a, q), 0, p)
            store(at(delta, q), 0, weighted)
    totals[LOSS] += lane_sum(loss)
    totals[ERROR] += lane_sum(error)


@kernel
def cross_entropy(a, y, weight, O, S, delta, totals):
    """loss = sum_o y_o (log sum_k exp(z_k) - z_o), delta_o = p_o - y_o, p = softmax(z); the y of a sample sum to 1.

    a (O, S) holds z, y (O, S), weight (S,);  writes p into a, delta (O, S), adds loss and |p - y| to totals.
    """
    V = lanes_of(a)
    loss, error = zeros(1, 1, a), zeros(1, 1, a)
    for v in range(0, S, V):
        share = load(1, 1, at(weight, v), 0)
        top = highest(at(a, v), O, S)
        below = zeros(1, 1, a)  # sum_o y_o (top - z_o): differences of logits, so that nothing large cancels
        for q in range(v, O * S, S):
            below = multiply_add(load(1, 1, at(y, q), 0), top - load(1, 1, at(a, q), 0), below)
        total = softmax(top, at(a, v), O, S)
        loss = multiply_add(below + log(total), share, loss)
        for q in range(v, O * S, S):
            weighted = (load(1, 1, at(a, q), 0) - load(1, 1, at(y, q), 0)) * share
            error = error + absolute(weighted)
            store(at(delta, q), 0, weighted)
    totals[LOSS] += lane_sum(loss)
    totals[ERROR] += lane_sum(error)


@kernel
def highest(z, O, S):
    """max_o z_o for V samples;  returns one vector."""
    top = load(1, 1, z, 0)
    for q in range(S, O * S, S):
        next_z = load(1, 1, at(z, q), 0)
        top = where_less(top, next_z, next_z, top)
    return top


@kernel
def softmax(top, z, O, S):
    """p_o = exp(z_o - top) / sum_o exp(z_o - top) for V samples;  writes p into z, returns the sum."""
    total = zeros(1, 1, z)
    for q in range(0, O * S, S):
        e = exp(load(1, 1, at(z, q), 0) - top)
        total = total + e
        store(at(z, q), 0, e)
    for q in range(0, O * S, S):
        store(at(z, q), 0, load(1, 1, at(z, q), 0) / total)
    return total


@kernel
def misfit(loss, p, y, weight, spread, O, S, totals):
    """What of a panel is not predicted: samples of which a class is wrong, or squared residuals.

    Wrong is a likeliest class that is not the sample's, and any of several binary outputs. The residuals of each output
    are multiplied by its spread.  p, y (O, S), weight (S,), spread (O,);  adds to totals.
    """
    V = lanes_of(p)
    total = zeros(1, 1, p)
    for v in range(0, S, V):
        wrong = zeros(1, 1, p)
        if loss == CROSS_ENTROPY:
            likeliest, there, most = load(1, 1, at(p, v), 0), load(1, 1, at(y, v), 0), load(1, 1, at(y, v), 0)
            for q in range(v + S, O * S, S):
                p_o, y_o = load(1, 1, at(p, q), 0), load(1, 1, at(y, q), 0)
                there = where_less(likeliest, p_o, y_o, there)
                likeliest = where_less(likeliest, p_o, p_o, likeliest)
                most = where_less(most, y_o, y_o, most)
            wrong = where_less(there, most, 1.0, wrong)
        else:
            for o in range(O):
                p_o, y_o = load(1, 1, at(p, o * S + v), 0), load(1, 1, at(y, o * S + v), 0)
                if loss == BINARY_CROSS_ENTROPY:
                    chosen = where_less(0.5, p_o, 1.0, zeros(1, 1, p))
                    wrong = where_less(absolute(chosen - y_o), 0.5, wrong, 1.0)
                else:
                    residual = spread[o] * (p_o - y_o)
                    wrong = multiply_add(residual, residual, wrong)
        total = multiply_add(wrong, load(1, 1, at(weight, v), 0), total)
    totals[MISFIT] += lane_sum(total)


# --- optimisers -------------------------------------------------------------------------------------------------------


@kernel
def plain_sgd(P, w, g, scale, rate):
    """w -= rate g, g scaled;  writes w, and zeros into g. All (P,)."""
    for q in range(P):
        w[q] -= rate * (scale * g[q])
        g[q] = 0


@kernel
def momentum_sgd(P, w, g, velocity, scale, rate, momentum, nesterov):
    """velocity = momentum velocity + rate g; w -= velocity, or rate g + momentum velocity with Nesterov.

    Sutskever et al. 2013, equations 1 to 4.  Writes w, velocity, and zeros into g. All (P,).
    """
    for q in range(P):
        step_q = rate * (scale * g[q])
        velocity[q] = momentum * velocity[q] + step_q
        w[q] -= step_q + momentum * velocity[q] if nesterov else velocity[q]
        g[q] = 0


@kernel
def adam(P, w, g, first, second, scale, rate, beta1, beta2, rest1, rest2, epsilon):
    """w -= rate first / (sqrt(second) + epsilon), with rate and epsilon as `step` corrects them.

    first = beta1 first + (1 - beta1) g and second = beta2 second + (1 - beta2) g^2: Kingma and Ba 2015, section 2.
    rest1 and rest2 are 1 - beta1 and 1 - beta2.  Writes w, first, second, and zeros into g. All (P,).
    """
    for q in range(P):
        g_q = scale * g[q]
        first[q] = beta1 * first[q] + rest1 * g_q
        second[q] = beta2 * second[q] + rest2 * (g_q * g_q)
        w[q] -= rate * first[q] / (np.sqrt(second[q]) + epsilon)
        g[q] = 0


@kernel
def rmsprop(P, w, g, second, scale, rate, beta, rest, epsilon):
    """second = beta second + (1 - beta) g^2; w -= rate g / (sqrt(second) + epsilon): Tieleman and Hinton 2012.

    rest is 1 - beta.  Writes w, second, and zeros into g. All (P,).
    """
    for q in range(P):
        g_q = scale * g[q]
        second[q] = beta * second[q] + rest * (g_q * g_q)
        w[q] -= rate * g_q / (np.sqrt(second[q]) + epsilon)
        g[q] = 0


@kernel
def irprop(P, w, g, last, steps, increase, decrease, smallest, largest):
    """w -= sign(g) step, where the step has grown if g kept its sign, and shrunk if not, and then g counts as 0.

    iRprop-: Igel and Huesken 2003, section 2.2.  Writes w, last (the g before), steps, and zeros into g. All (P,).
    """
    for q in range(P):
        g_q, step_q = g[q], steps[q]
        if (g_q > 0 and last[q] > 0) or (g_q < 0 and last[q] < 0):
            step_q = step_q * increase if step_q * increase < largest else largest
        elif (g_q > 0 and last[q] < 0) or (g_q < 0 and last[q] > 0):
            step_q = step_q * decrease if step_q * decrease > smallest else smallest
            g_q = g_q * 0
        if g_q > 0:
            w[q] -= step_q
        elif g_q < 0:
            w[q] += step_q
        last[q] = g_q
        steps[q] = step_q
        g[q] = 0


@kernel
def penalty(plan, w, g):
    """g += l2 w for the weights, not for the biases;  writes g (P,), returns l2 / 2 sum w^2."""
    total = 0.0
    for layer in range(plan.layers):
        n, start = plan.sizes[layer] * plan.sizes[layer + 1], plan.starts[layer]
        add_scaled(n, at(w, start), plan.l2, at(g, start))
        total += sum_of_squares(n, at(w, start), 1.0)
    return 0.5 * plan.l2 * total


@kernel
def decay(plan, w, share):
    """w -= share w for the weights, not for the biases: Loshchilov and Hutter 2019, algorithm 2.  Writes w (P,)."""
    for layer in range(plan.layers):
        w_layer = at(w, plan.starts[layer])
        add_scaled(plan.sizes[layer] * plan.sizes[layer + 1], w_layer, -share, w_layer)


@kernel
def clip(plan, g, scale):
    """Scale gradients down to `clip_norm` where their norm times scale is above: Pascanu et al. 2013, algorithm 1."""
    length = scale * norm(plan.parameters, g)
    if length > plan.clip_norm:
        shrink(plan.parameters, np.sqrt(plan.clip_norm) / np.sqrt(length), g)


@kernel
def norm(n, x):
    """sqrt(sum_q x_q^2), x (n,); where squares might overflow or vanish, all are divided by the largest first."""
    total = sum_of_squares(n, x, 1.0)
    if 1e-30 < total < 1e30:
        return np.sqrt(total)
    largest = 0.0
    for q in range(n):
        largest = max(largest, np.float64(abs(x[q])))
    return largest * np.sqrt(sum_of_squares(n, x, 1.0 / np.sqrt(largest))) if largest > 0 else total


@kernel
def shrink(n, root, x):
    """x *= root^2, which may be below all normal numbers;  writes x (n,)."""
    for q in range(n):
        x[q] = x[q] * root * root


@kernel
def sum_of_squares(n, x, root):
    """sum_q (root^2 x_q)^2, x (n,)."""
    V = lanes_of(x)
    sums = zeros(4, 1, x)  # four sums at once: one alone would wait for each addition
    q = 0
    while q + 4 * V <= n:
        part = load(4, 1, at(x, q), V) * root * root
        sums = multiply_add(part, part, sums)
        q += 4 * V
    total = np.float64(lane_sum(sums))
    while q < n:
        part_q = x[q] * root * root
        total += part_q * part_q
        q += 1
    return total


@kernel
def add_scaled(n, x, factor, y):
    """y += factor x;  writes y. All (n,), and x may be y."""
    V = lanes_of(x)
    q = 0
    while q + V <= n:
        store(at(y, q), 0, multiply_add(load(1, 1, at(x, q), 0), factor, load(1, 1, at(y, q), 0)))
        q += V
    while q < n:
        y[q] += factor * x[q]
        q += 1


@kernel
def finite(P, w):
    """Whether all numbers of w (P,) are finite: 0 w is 0 for those, and NaN for others."""
    V = lanes_of(w)
    sums = zeros(4, 1, w)  # four sums at once: one alone would wait for each addition
    q = 0
    while q + 4 * V <= P:
        sums = multiply_add(load(4, 1, at(w, q), V), 0.0, sums)
        q += 4 * V
    rest = w[0] * 0
    while q < P:
        rest += w[q] * 0
        q += 1
    return rest + lane_sum(sums) == 0


# --- early stopping and learning-rate schedules -----------------------------------------------------------------------


@kernel
def judge(plan, memory, epoch):
    """Early stopping and REDUCE_ON_PLATEAU at the end of an epoch;  writes best, position and totals.

    Returns STOPPED if more than `patience` epochs in a row were not better than the best before, else FINISHED.
    """
    position, totals, settings = memory.position, memory.totals, plan.schedule_settings
    figure = memory.loss[epoch]
    if plan.watched == VALIDATION_LOSS:
        figure = memory.validation_loss[epoch]
    elif plan.watched == VALIDATION_MISFIT:
        figure = memory.validation_misfit[epoch]
    status = FINISHED
    position[STALE] = 0 if figure < totals[BEST] - plan.min_delta else position[STALE] + 1
    if figure < totals[BEST]:
        totals[BEST] = figure
        if plan.keep_best:
            for q in range(plan.parameters):
                memory.best[q] = memory.params[q]
    if position[STALE] > plan.patience >= 0:
        status = STOPPED
    if plan.schedule == REDUCE_ON_PLATEAU:
        least = totals[BEST_RATE] - settings[REDUCE_ON_PLATEAU_MIN_DELTA]
        position[STALE_RATE] = 0 if figure < least else position[STALE_RATE] + 1
        if figure < totals[BEST_RATE]:
            totals[BEST_RATE] = figure
        if position[STALE_RATE] > settings[REDUCE_ON_PLATEAU_PATIENCE]:
            position[STALE_RATE] = 0
            if totals[FACTOR] > settings[REDUCE_ON_PLATEAU_MINIMUM]:
                totals[FACTOR] *= settings[REDUCE_ON_PLATEAU_FACTOR]
            elif settings[REDUCE_ON_PLATEAU_STOP] > 0:
                status = STOPPED
    return status


@kernel
def set_rate(plan, memory, epoch):
    """Learning rate of an epoch;  writes scalars."""
    factor = 1.0
    if plan.schedule != CONSTANT:
        reached, space = memory.totals[FACTOR], memory.space
        factor = if_full(plan, 1.0, rate_factor, plan.schedule, plan.schedule_settings, epoch, reached, space)
    memory.scalars[RATE] = factor * plan.settings[LEARNING_RATE]


@kernel
def rate_factor(schedule, settings, epoch, reached, space):
    """Factor of the learning rate in an epoch, counted from 0; `reached` is that of REDUCE_ON_PLATEAU."""
    if schedule == EXPONENTIAL_DECAY:
        return power(settings[EXPONENTIAL_DECAY_DECAY], np.float64(epoch), space)
    if schedule == INVERSE_SCALING:
        return power(1.0 + settings[INVERSE_SCALING_PACE] * epoch, -settings[INVERSE_SCALING_POWER], space)
    if schedule == COSINE:
        epochs, warmup, minimum = settings[COSINE_EPOCHS], settings[COSINE_WARMUP], settings[COSINE_MINIMUM]
        if epoch < warmup:
            return (epoch + 1.0) / (warmup + 1.0)
        share = (epoch - warmup) / (epochs - warmup)
        return minimum + (1.0 - minimum) * 0.5 * (1.0 + cosine(share if share < 1.0 else 1.0))
    if schedule == REDUCE_ON_PLATEAU:
        return reached
    return 1.0


@kernel
def power(base, exponent, space):
    """base^exponent, base > 0, by our own exp and log: the C library's differ between machines.  Writes space (V,)."""
    space[0] = base
    store(space, 0, exp(exponent * log(fill(1, 1, space))))
    return space[0]


@kernel
def cosine(x):
    """cos(pi x) for 0 <= x <= 1 by its series, for the same reason."""
    sign = 1.0 if x <= 0.5 else -1.0
    angle = np.pi * (x if x <= 0.5 else 1.0 - x)
    term = total = 1.0
    for k in range(2, 24, 2):
        term *= -angle * angle / (k * (k - 1))
        total += term
    return sign * total


# --- rows of a batch, and what is drawn at random ---------------------------------------------------------------------


@kernel
def shuffle(n, seed, epoch, order):
    """The order of the rows in an epoch: Fisher and Yates, from n - 1 down;  writes order (n,).

    NumPy draws one in 8 ns a row, a fifth of the time of the training at 16-32-1; this and `gather` take 6.
    """
    key = random_stream(seed, epoch, 0)
    for i in range(n):
        order[i] = i
    for i in range(n - 1, 0, -1):
        random = np.int64(random_bits(key + np.uint64(i)) >> np.uint64(11)) * 2.0**-53
        j = np.int64(random * (i + 1))
        order[i], order[j] = order[j], order[i]


@kernel
def gather(data, order, count, F, S, panels, none, out):
    """out[p, f, s] = data[order[p S + s], f], samples from `count` on zero, weight and all.

    data (n, F), order (count,), none (V,) zeros;  writes out (panels, F, S).
    """
    V = lanes_of(data)
    for first in range(0, panels * S, V):
        panel = at(out, first // S * F * S + first % S)
        here = at(order, min(first, count - 1))
        whole = F // V * V
        for f in range(0, whole, V):
            store(at(panel, f * S), S, transpose(load_rows(at(data, f), here, F, count - first, none)))
        for s in range(V):
            row = at(data, order[min(first + s, count - 1)] * F)
            for f in range(whole, F):
                panel[f * S + s] = row[f] if first + s < count else 0


@kernel
def weight_of(x, F, S, panels):
    """Sum of the weights of a block, the last feature of x (panels, F, S)."""
    total = 0.0
    for p in range(panels):
        for v in range(0, S, lanes_of(x)):
            total += lane_sum(load(1, 1, at(x, (p * F + F - 1) * S + v), 0))
    return total


@kernel
def dropout(rate, key, n, first, a, O, S, out):
    """out = 0 with probability rate, else a / (1 - rate): Srivastava et al. 2014, section 10.

    The random number of a unit and a sample depends on nothing but the key, the unit and the place of the sample among
    the n of the epoch, counted on from `first`: the backward pass draws it once more instead of reading it.
    a (O, S);  writes out (O, S), which may be a.
    """
    scale = 1.0 / (1.0 - rate)
    for o in range(O):
        for v in range(0, S, lanes_of(a)):
            q = o * S + v
            random = uniform(a, key + np.uint64(o * n + first + v))
            store(at(out, q), 0, where_less(random, rate, 0.0, scale * load(1, 1, at(a, q), 0)))


@kernel
def random_stream(seed, epoch, layer):
    """Key of the random numbers for the dropout of a layer, counted from 1, in an epoch; 0 is for its order of rows."""
    return random_bits(random_bits(np.uint64(seed)) + np.uint64(epoch) + (np.uint64(layer) << np.uint64(32)))


# --- one vector of samples: all of the above for a tiny network -------------------------------------------------------


@merged
def tiny_batch(plan, memory, x, scale):
    """Forward, backward and update of a batch that is one vector of samples of a small network, such as XOR.

    Here loops cost more than arithmetic, and each sum is used where it is still in a register: gradients written as
    scalars and read back as vectors would wait for the store. Over panels XOR takes 2.1 times as long.
    x (F, S), S = V;  writes activations, deltas, totals and params, or for optimisers with momenta the gradient.
    """
    layers, S = plan.layers, plan.width
    params, gradient = memory.params, memory.gradient
    memory.scalars[SCALE] = scale
    rate = memory.scalars[SCALE] * memory.scalars[RATE]
    fused = plan.optimizer == PLAIN_SGD
    a = x
    for layer in range(layers):
        I, O, w = plan.sizes[layer], plan.sizes[layer + 1], plan.starts[layer]
        out = at(memory.activations, plan.tops[layer] * S)
        for o in range(O):
            # z[o, s] = b[o] + sum_i w[i, o] a[i, s]
            z = fill(1, 1, at(params, w + I * O + o) if plan.biases else memory.none)
            for i in range(I):
                z = add_outer(z, at(params, w + i * O + o), 0, at(a, i * S))
            store(at(out, o * S), 0, activation(plan, plan.kinds[layer], z) if layer + 1 < layers else z)
        a = out

    O = plan.sizes[layers]
    y, delta = at(x, plan.sizes[0] * S), at(memory.deltas, plan.tops[layers - 1] * S)
    output(plan, a, y, at(y, O * S), O, S, delta, memory.totals)

    for layer in range(layers - 1, -1, -1):
        I, O, w = plan.sizes[layer], plan.sizes[layer + 1], plan.starts[layer]
        a, below = x, delta
        if layer > 0:
            top = plan.tops[layer - 1] * S
            a, below = at(memory.activations, top), at(memory.deltas, top)
            for i in range(I):
                # delta_below[i, s] = f'(z[i, s]) sum_o w[i, o] delta[o, s], with w from before its update
                sums = zeros(1, 1, a)
                for o in range(O):
                    sums = add_outer(sums, at(params, w + i * O + o), 0, at(delta, o * S))
                sums = times_slope(plan, plan.kinds[layer - 1], sums, load(1, 1, at(a, i * S), 0))
                store(at(below, i * S), 0, sums)
        for o in range(O):
            delta_o = load(1, 1, at(delta, o * S), 0)
            for i in range(I):
                # gradient[i, o] = sum_s a[i, s] delta[o, s]
                total = lane_sum(load(1, 1, at(a, i * S), 0) * delta_o)
                if fused:
                    params[w + i * O + o] -= rate * total
                else:
                    gradient[w + i * O + o] = total
            if plan.biases:
                # gradient[o] = sum_s delta[o, s]
                if fused:
                    params[w + I * O + o] -= rate * lane_sum(delta_o)
                else:
                    gradient[w + I * O + o] = lane_sum(delta_o)
        delta = below
    if not fused:
        step(plan, memory, scale)


# --- products and sums, by tiles that stay in registers ---------------------------------------------------------------


@kernel
def product(w, row_stride, column_stride, rows, n, bias, x, S, out):
    """out[r, :] = bias[r] + sum_k w[r, k] x[k, :], each sum in the order of k.

    w (rows, n) with these strides, bias (rows,), x (n, S);  writes out (rows, S).
    """
    r = 0
    while r < rows:
        # If at least half a tile of rows is left over, they share a tile with rows already done, which are computed
        # again: row by row, each addition would wait for the last.
        if r + TILE_ROWS > rows >= TILE_ROWS and rows - r >= TILE_ROWS // 2:
            r = rows - TILE_ROWS
        w_r, bias_r, out_r = at(w, r * row_stride), at(bias, r), at(out, r * S)
        if r + TILE_ROWS <= rows:
            product_rows(TILE_ROWS, w_r, row_stride, column_stride, n, bias_r, x, S, out_r)
            r += TILE_ROWS
        else:
            product_rows(1, w_r, row_stride, column_stride, n, bias_r, x, S, out_r)
            r += 1


@kernel
def product_rows(rows, w, row_stride, column_stride, n, bias, x, S, out):
    """`product` for a few rows;  writes out (rows, S)."""
    V = lanes_of(x)
    if PAIRED and S == 2 * V:
        product_tile(rows, 2, w, row_stride, column_stride, n, bias, x, S, out)
    else:
        for v in range(0, S, V):
            product_tile(rows, 1, w, row_stride, column_stride, n, bias, at(x, v), S, at(out, v))


@kernel
def product_tile(rows, vectors, w, row_stride, column_stride, n, bias, x, S, out):
    """`product` for a few rows and one or two vectors, whose sums stay in registers;  writes out (rows, vectors V)."""
    sums = fill(rows, vectors, bias)
    for k in range(n):
        sums = add_outer(sums, at(w, k * column_stride), row_stride, at(x, k * S))
    store(out, S, sums)


@kernel
def weight_gradient(a, a_stride, I, delta, O, samples, S, counting, none, scratch, gradient):
    """gradient[i, o] += sum_s a[i, s] delta[o, s], over all samples of a block.

    a (panels, a_stride, S) of which I features are used, delta (panels, O, S), counting and none as in `transposed`;
    writes scratch (panels, S, C), adds to gradient (I, O). Up to V numbers after gradient are written as they were.
    """
    # forward: z[o, s] = b[o] + sum_i w[i, o] a[i, s], so dz[o, s] / dw[i, o] = a[i, s]
    V = lanes_of(a)
    panels = (samples + S - 1) // S
    # The product again, with outputs in the lanes. The lanes beyond O belong to the next row: they have delta 0, and
    # rows are stored in order, so that each is last written by its own.
    C = (O + V // 2) // V * V
    transposed(delta, O, panels, S, counting, none, C, scratch)
    i = 0
    while i < I and C > 0:
        a_i, g = at(a, i * S), at(gradient, i * O)
        if i + TILE_ROWS <= I:
            wide_rows(TILE_ROWS, a_i, a_stride, scratch, C, samples, S, g, O)
            i += TILE_ROWS
        else:
            wide_rows(1, a_i, a_stride, scratch, C, samples, S, g, O)
            i += 1
    # Fewer outputs than fill half a vector have samples in the lanes: 64 x 100 took 8 % longer without.
    for o in range(C, O):
        delta_o = at(delta, o * S)
        i = 0
        while i < I:
            a_i, g = at(a, i * S), at(gradient, i * O + o)
            if i + 4 <= I:
                narrow_tile(4, a_i, a_stride, delta_o, O, panels, S, g)
                i += 4
            else:
                narrow_tile(1, a_i, a_stride, delta_o, O, panels, S, g)
                i += 1


@kernel
def transposed(delta, O, panels, S, counting, none, C, out):
    """out[p, s, o] = delta[p, o, s] for the first C outputs, whole vectors, and zeros beyond O.

    delta (panels, O, S), counting (V,) 0, 1, ..., none (V,) zeros;  writes out (panels, S, C).
    """
    V = lanes_of(delta)
    for p in range(panels):
        for o in range(0, C, V):
            for v in range(0, S, V):
                rows = load_rows(at(delta, (p * O + o) * S + v), counting, S, O - o, none)
                store(at(out, (p * S + v) * C + o), C, transpose(rows))


@kernel
def wide_rows(rows, a, a_stride, delta, C, samples, S, gradient, O):
    """`weight_gradient` for a few inputs and all outputs."""
    V = lanes_of(a)
    o = 0
    while o < C:
        if PAIRED and o + 2 * V <= C:
            wide_tile(rows, 2, a, a_stride, at(delta, o), C, samples, S, at(gradient, o), O)
            o += 2 * V
        else:
            wide_tile(rows, 1, a, a_stride, at(delta, o), C, samples, S, at(gradient, o), O)
            o += V


@kernel
def wide_tile(rows, vectors, a, a_stride, delta, C, samples, S, gradient, O):
    """`weight_gradient` for a few inputs and one or two vectors of outputs, whose sums stay in registers."""
    sums = load(rows, vectors, gradient, O)
    while samples > 0:
        for s in range(min(S, samples)):
            sums = add_outer(sums, at(a, s), S, at(delta, s * C))
        a, delta, samples = at(a, a_stride * S), at(delta, S * C), samples - S
    store(gradient, O, sums)


@kernel
def narrow_tile(rows, a, a_stride, delta, O, panels, S, gradient):
    """`weight_gradient` for a few inputs and one output: each sum is a vector, whose lanes are summed at the end."""
    sums = zeros(rows, 1, a)
    for p in range(panels):
        for v in range(0, S, lanes_of(a)):
            delta_o = load(1, 1, at(delta, p * O * S + v), 0)
            sums = multiply_add(load(rows, 1, at(a, p * a_stride * S + v), S), delta_o, sums)
    add_lane_sums(sums, gradient, O)


@kernel
def bias_gradient(delta, O, panels, S, gradient):
    """gradient[o] += sum_s delta[o, s], over all samples of a block.

    delta (panels, O, S);  adds to gradient (O,).
    """
    o = 0
    while o < O:
        if o + 4 <= O:
            bias_tile(4, at(delta, o * S), O, panels, S, at(gradient, o))
            o += 4
        else:
            bias_tile(1, at(delta, o * S), O, panels, S, at(gradient, o))
            o += 1


@kernel
def bias_tile(rows, delta, O, panels, S, gradient):
    """`bias_gradient` for a few outputs."""
    sums = zeros(rows, 1, delta)
    for p in range(panels):
        for v in range(0, S, lanes_of(delta)):
            sums = sums + load(rows, 1, at(delta, p * O * S + v), S)
    add_lane_sums(sums, gradient, 1)
