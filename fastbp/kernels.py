"""Back-propagation in compiled loops, from the outside in: training, one batch of it, its rows.

What a batch calls are the formulas of `formulas.py` and the matrix products of `products.py`, or if it has few rows
`rows.py`.

Dimensions
    n  rows of the data set          I  inputs of a layer        V  lanes: elements of one vector
    B  rows of a batch               O  outputs of a layer       S  samples of a panel: V or 2 V
    P  parameters                    F  I + O + 1 of the network, a row of data: x, y and its weight; I + 2 O where
                                        outputs have weights of their own

A *panel* holds S samples, feature-major: `panel[feature * S + sample]`, so that one vector is one feature of V samples
and a sum over features never crosses lanes. A *block* is a few panels, one after the other, that are walked together
layer by layer. The last panel of a batch may be padded: its spare samples have weight 0. A batch of few rows
stays rows.

Parameters are flat: for each layer W (I, O) in C order, then b (O,) if there are biases. Everything is handed in and
written in place; nothing is allocated and nothing is raised. `workspace.py` says what a plan and a memory hold; inside
the kernels their arrays are bare pointers, because the references to an array are counted at every call: XOR took 198
ns an epoch with arrays when it took 132 with pointers.
"""

import numpy as np

from fastbp.choices import (
    BINARY_CROSS_ENTROPY,
    CONSTANT,
    CROSS_ENTROPY,
    KEEP_GRADIENT,
    LEARNING_RATE,
    PLAIN_SGD,
    POISSON,
    REDUCE_ON_PLATEAU,
    REDUCE_ON_PLATEAU_FACTOR,
    REDUCE_ON_PLATEAU_MIN_DELTA,
    REDUCE_ON_PLATEAU_MINIMUM,
    REDUCE_ON_PLATEAU_PATIENCE,
    REDUCE_ON_PLATEAU_STOP,
    SOFTMAX,
)
from fastbp.formulas import (
    activate,
    activation,
    finite,
    highest,
    misfit,
    of_logits,
    output,
    random_stream,
    rate_factor,
    slope,
    softmax,
    step,
    times_slope,
)
from fastbp.jit import entry, inlined, kernel, merged
from fastbp.products import bias_gradient, is_wide, product, product_in_slabs, weight_gradient
from fastbp.rows import few_rows
from fastbp.simd import (
    add_outer,
    at,
    bundle,
    fill,
    flush_subnormals,
    if_few,
    if_full,
    keep_loops,
    lane_sum,
    lanes_of,
    load,
    load_rows,
    put_back,
    random_bits,
    store,
    transpose,
    uniform,
    where_less,
    zeros,
)
from fastbp.workspace import (
    BATCH_WEIGHT,
    BEST,
    BEST_RATE,
    DIVERGED,
    EPOCH,
    ERROR,
    FACTOR,
    FINISHED,
    LOSS,
    MISFIT,
    PANEL,
    RATE,
    REFUSED,
    ROW,
    SCALE,
    STALE,
    STALE_RATE,
    STOPPED,
    SUM_TOLERANCE,
    VALIDATION_LOSS,
    VALIDATION_MISFIT,
    WEIGHT,
    Memory,
    Plan,
    words_of,
)

PANELS = True  # how `run` takes rows that are not shuffled


# --- training and prediction ------------------------------------------------------------------------------------------


def run(plan, memory, data, validation, blocks):
    """Train for this many blocks, from memory.position on, in each epoch first the batches, then the validation.

    data: the rows (n, F), or where they are not shuffled as `panels_of` lays them out, batch after batch; validation:
    panels. Returns FINISHED, or at the end of an epoch DIVERGED, before validation, or STOPPED as `judge` says.
    """
    return bind(plan, memory, data, validation)(blocks)


def bind(plan, memory, data, validation):
    """`run` as a function of the blocks alone: its words are made once, and are its attribute `words`."""
    words = memory.scalars.dtype.type(), plan.version, words_of(plan), words_of(memory)

    def bound(blocks, arrays=(plan, memory)):  # which must outlive the words, their addresses
        return run_words(*words, data, validation, blocks)

    bound.words = words[-1]  # type: ignore[attr-defined]
    return bound


@entry
def run_words(precision, version, plan, memory, data, validation, blocks):
    """`run` with the words of plan and memory, any number of the working precision, and the version of the plan."""
    before = flush_subnormals()
    status = run_blocks(
        bundle(Plan, precision, version, plan),
        bundle(Memory, precision, version, memory),
        at(data, 0),
        at(validation, 0),
        blocks,
    )
    put_back(before)
    return status


@kernel
def run_blocks(plan, memory, data, validation, blocks):
    """`run` with pointers in place of arrays."""
    keep_loops()  # of `tiny_batch`: XOR takes 5 % longer without
    position, status = memory.position, FINISHED
    epoch, row, panel = position[EPOCH], position[ROW], position[PANEL]
    set_rate(plan, memory, epoch)
    for _ in range(blocks):
        if row < plan.rows:
            count = train_block(plan, memory, data, epoch, row, panel)
        else:
            count = if_full(plan, 0, validate_block, plan, memory, validation, row - plan.rows, panel)
        status, epoch, row, panel = end_block(plan, memory, epoch, row, panel, count)
        if status != FINISHED:
            break
    position[EPOCH], position[ROW], position[PANEL] = epoch, row, panel
    return status


@inlined
def panel_count(count, S, pointer):
    """Panels of so many samples: a division by a number that is not known beforehand takes XOR 3 % of its time."""
    V = lanes_of(pointer)
    return (count + V - 1) // V if S == V else (count + 2 * V - 1) // (2 * V)


@inlined
def end_block(plan, memory, epoch, row, panel, count):
    """What follows the next rows of an epoch, so many;  returns the status of `run` and where the next ones begin."""
    n, rows, S, status = plan.rows, plan.rows + plan.validation_rows, plan.width, FINISHED
    row, panel = row + count, panel + panel_count(count, S, memory.activations)
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
    return status, epoch, row, panel


@inlined
def train_block(plan, memory, data, epoch, row, panel):
    """Forward and backward pass of the next rows of a batch, and the update after its last;  returns their number.

    The rows from `row` on, which begin at this panel of the data, unless they are shuffled.  Writes as `step`.
    """
    S, F, a, totals = plan.width, plan.features, memory.activations, memory.totals
    batch = row - row % plan.batch_size if row > 0 else row  # its first row; XOR need not divide
    batch_rows = min(plan.batch_size, plan.rows - batch)
    count = min(batch + batch_rows - row, plan.block * S)
    panels = panel_count(count, S, a)
    x = at(data, panel * F * S)
    if plan.shuffled and row == 0:
        shuffle(plan.rows, plan.seed, epoch, memory.order)
    if count == batch_rows <= plan.few:
        if_few(plan, None, few_rows, plan, memory, data, epoch, row, panel, count)
        return count
    if plan.shuffled:
        x = memory.data
        gather(data, at(memory.order, row), count, F, S, panels, memory.all_zero, x)
    weight = np.float64(batch_rows)
    if plan.weighted:
        weight = totals[BATCH_WEIGHT] = weight_of(plan, x, F, S, panels, totals[BATCH_WEIGHT])
    scale = 1.0 / weight if plan.mean and weight > 0 else 1.0
    if plan.tiny:
        tiny_batch(plan, memory, x, scale)
    else:
        begin = np.int64(0)
        forward(plan, memory.params, memory.all_zero, plan.dropout, x, F, begin, panels, epoch, row, memory.kept, a)
        output_layer(plan, memory, x, F, begin, panels, totals, begin)
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
    F, top, a, totals = plan.features, plan.tops[plan.layers - 1] * plan.block * S, memory.activations, memory.totals
    count = min(plan.validation_rows - row, plan.block * S)
    panels = (count + S - 1) // S
    x = at(validation, panel * F * S)
    begin = np.int64(0)
    forward(plan, memory.params, memory.all_zero, memory.all_zero, x, F, begin, panels, begin, row, a, a)
    output_layer(plan, memory, x, F, begin, panels, totals, begin)
    for p in range(panels):
        y = at(x, (p * F + I) * S)
        p_p = at(a, top + p * O * S)
        totals[MISFIT] += lane_sum(misfit(plan, p_p, y, at(y, O * S), plan.spread, O, S))
    totals[WEIGHT] = weight_of(plan, x, F, S, panels, totals[WEIGHT])
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
    F = plan.features
    if not (finite(n * F, rows) and finite(P, memory.params) and are_targets(plan.loss, at(rows, I), n, O, F)):
        return REFUSED
    copy(P, memory.params, saved.params)
    if plan.optimizer != PLAIN_SGD:
        copy(P, memory.first, saved.first)
        copy(P, memory.second, saved.second)
    copy(10, memory.totals, saved.totals)
    if n > plan.few:
        gather(rows, memory.order, n, F, S, (n + S - 1) // S, memory.all_zero, memory.data)
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


def predict(plan, params, data, counting, all_zero, gathered, activations, predictions):
    """Predictions for all rows, a block at a time.

    params (P,), data (n, I), counting (block S,) 0, 1, ..., all_zero (widest layer, at least V) zeros;  writes gathered
    (block, I, S), activations as `forward` and predictions (n, O). All arrays are flat. Returns FINISHED, or REFUSED if
    a number of params or data is not finite.
    """
    return bind_predict(plan, params, counting, all_zero, gathered, activations)(data, predictions)


def bind_predict(plan, params, counting, all_zero, gathered, activations):
    """`predict` as a function of data and predictions."""
    full, words = None if plan.lean else True, words_of(plan)

    def bound(data, predictions, plan=plan):  # whose arrays must outlive the words, their addresses
        return predict_words(full, words, params, data, counting, all_zero, gathered, activations, predictions)

    return bound


@entry
def predict_words(full, plan, params, data, counting, all_zero, gathered, activations, predictions):
    """`predict` with the words of the plan."""
    before = flush_subnormals()
    status = predict_blocks(
        bundle(Plan, params[0], full, plan), at(params, 0), at(data, 0), at(counting, 0), at(all_zero, 0),
        at(gathered, 0), at(activations, 0), at(predictions, 0),
    )  # fmt: skip
    put_back(before)
    return status


@kernel
def predict_blocks(plan, params, data, counting, all_zero, x, a, predictions):
    """`predict` with pointers in place of arrays."""
    good = finite(plan.parameters, params)
    for first in range(0, plan.rows, plan.block * plan.width):
        good = predict_block(plan, params, data, counting, all_zero, first, x, a, predictions) and good
    return FINISHED if good else REFUSED


@inlined
def predict_block(plan, params, data, counting, all_zero, first, x, a, predictions):
    """`predict` for a block of rows, from the first on;  returns whether all their numbers are finite."""
    S, I, O = plan.width, plan.sizes[0], plan.sizes[plan.layers]
    kind, top = plan.kinds[plan.layers - 1], plan.tops[plan.layers - 1] * plan.block * S
    count = min(plan.rows - first, plan.block * S)
    panels = (count + S - 1) // S
    gather(at(data, first * I), counting, count, I, S, panels, all_zero, x)
    good = finite(panels * I * S, x)
    forward(plan, params, all_zero, all_zero, x, I, np.int64(0), panels, first, first, a, a)
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
    return good


# --- one batch: forward pass, loss, backward pass, update -------------------------------------------------------------


@kernel
def forward(plan, params, all_zero, rates, x, F, begin, end, epoch, first, kept, activations):
    """a_l = f_l(W_l^T a_{l-1} + b_l) for every layer and the panels from begin to end of a block; logits at the last.

    params (P,), all_zero (widest layer,) zeros, rates (layers,) of dropout, x (panels, F, S), samples from `first` on;
    writes activations, layer after layer, each (panels, O, S), and kept likewise, in the layers that keep it.
    """
    S = plan.width
    a, a_stride = x, F
    for layer in range(plan.layers):
        I, O, top = plan.sizes[layer], plan.sizes[layer + 1], plan.tops[layer] * plan.block * S
        w, out = at(params, plan.starts[layer]), at(activations, top)
        logits = at(kept, top) if plan.keeps[layer] else out
        bias = at(w, I * O) if plan.biases else all_zero
        unit, none = np.int64(1), np.int64(0)  # a literal would compile `product` once more
        wide = is_wide(O, I, lanes_of(x))
        # z[o, s] = b[o] + sum_i w[i, o] a[i, s]
        if wide:
            a_begin, z_begin = at(a, begin * a_stride * S), at(logits, begin * O * S)
            product_in_slabs(w, unit, O, O, I, bias, a_begin, a_stride, end - begin, S, z_begin, O)
        for p in range(begin, end):
            z, out_p = at(logits, p * O * S), at(out, p * O * S)
            if not wide:
                product(w, unit, O, O, I, bias, at(a, p * a_stride * S), S, z)
            if layer + 1 < plan.layers:
                activate_units(plan, layer, rates, none, O, S, epoch, first + p * S, z, out_p)
        a, a_stride = out, O


@inlined
def activate_units(plan, layer, rates, unit, units, S, epoch, first, z, out):
    """f(z), with dropout, for some units of a hidden layer, from this one on, and one panel;  writes z and out."""
    f_z = out if of_logits(plan.kinds[layer]) else z
    activate(plan, plan.kinds[layer], z, units * S, f_z)
    if rates[layer] > 0:
        key = random_stream(plan.seed, epoch, layer + 1) + np.uint64(unit * plan.rows)
        if_full(plan, None, dropout, rates[layer], key, plan.rows, first, f_z, units, S, out)


@kernel
def output_layer(plan, memory, x, F, begin, end, figures, stride):
    """Predictions, deltas and loss of the panels from begin to end;  writes activations and deltas of the last layer.

    Adds to figures what `output` adds to totals, those of each panel `stride` numbers after those of the last.
    """
    S, I, O = plan.width, plan.sizes[0], plan.sizes[plan.layers]
    top = plan.tops[plan.layers - 1] * plan.block * S
    for p in range(begin, end):
        y = at(x, (p * F + I) * S)
        a, delta = at(memory.activations, top + p * O * S), at(memory.deltas, top + p * O * S)
        output(plan, a, y, at(y, O * S), O, S, delta, at(figures, p * stride))


@kernel
def backward(plan, memory, x, F, samples, epoch, first):
    """Gradients of every layer of a block, given the deltas of the last;  writes deltas, adds to gradient.

    x (panels, F, S), samples from `first` on; activations, kept and deltas as `forward` lays them out.
    """
    S = plan.width
    panels = (samples + S - 1) // S
    counting, all_zero, unit, none = memory.counting, memory.all_zero, np.int64(1), np.int64(0)
    for layer in range(plan.layers - 1, -1, -1):
        I, O, w = plan.sizes[layer], plan.sizes[layer + 1], plan.starts[layer]
        delta, gradient = at(memory.deltas, plan.tops[layer] * plan.block * S), at(memory.gradient, w)
        if plan.biases:
            bias_gradient(delta, O, O, panels, S, at(gradient, I * O))
        if layer == 0:
            weight_gradient(x, F, I, delta, O, samples, S, counting, all_zero, memory.scratch, gradient)
        else:
            top = plan.tops[layer - 1] * plan.block * S
            a, below, w_layer = at(memory.activations, top), at(memory.deltas, top), at(memory.params, w)
            kept = at(memory.kept, top) if plan.keeps[layer - 1] else a
            weight_gradient(a, I, I, delta, O, samples, S, counting, all_zero, memory.scratch, gradient)
            # delta_below[i, s] = f'(z[i, s]) sum_o w[i, o] delta[o, s], and what dropout did to a[i, s]
            wide = is_wide(I, O, lanes_of(x))
            if wide:
                product_in_slabs(w_layer, O, unit, I, O, all_zero, delta, O, panels, S, below, I)
            for p in range(panels):
                below_p = at(below, p * I * S)
                if not wide:
                    product(w_layer, O, unit, I, O, all_zero, at(delta, p * O * S), S, below_p)
                slope_units(plan, layer, none, I, S, epoch, first + p * S, at(kept, p * I * S), below_p)


@inlined
def slope_units(plan, layer, unit, units, S, epoch, first, kept, below):
    """below *= f'(z), and what dropout did, for some units below a layer, from this one on, and one panel."""
    slope(plan, plan.kinds[layer - 1], below, kept, units * S)
    if plan.dropout[layer - 1] > 0:
        key = random_stream(plan.seed, epoch, layer) + np.uint64(unit * plan.rows)
        if_full(plan, None, dropout, plan.dropout[layer - 1], key, plan.rows, first, below, units, S, below)


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
        reached, vector = memory.totals[FACTOR], memory.vector
        factor = if_full(plan, 1.0, rate_factor, plan.schedule, plan.schedule_settings, epoch, reached, vector)
    memory.scalars[RATE] = factor * plan.settings[LEARNING_RATE]


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
def gather(data, order, count, F, S, panels, all_zero, out):
    """out[p, f, s] = data[order[p S + s], f], samples from `count` on zero, weight and all.

    data (n, F), order (count,), all_zero (V,) zeros;  writes out (panels, F, S).
    """
    V = lanes_of(data)
    for first in range(0, panels * S, V):
        panel = at(out, first // S * F * S + first % S)
        here = at(order, min(first, count - 1))
        whole = F // V * V
        for f in range(0, whole, V):
            store(at(panel, f * S), S, transpose(load_rows(at(data, f), here, F, count - first, all_zero)))
        for s in range(V):
            row = at(data, order[min(first + s, count - 1)] * F)
            for f in range(whole, F):
                panel[f * S + s] = row[f] if first + s < count else 0


@kernel
def weight_of(plan, x, F, S, panels, total):
    """The total and the weights of a block, the last feature of x (panels, F, S), panel by panel: no cut shows."""
    for p in range(panels):
        for v in range(0, S, lanes_of(x)):
            weight = at(x, (p * F + F - 1) * S + v)
            total += if_full(plan, lane_sum(load(1, 1, weight, 0)), mean_weight, plan, weight, S)
    return total


@kernel
def mean_weight(plan, last, S):
    """Sum over V samples of their weights, or of the means of those of their outputs, whose last is handed in.

    So weights that are all 1 count as none would.
    """
    if not plan.output_weights:
        return lane_sum(load(1, 1, last, 0))
    O, sums = plan.sizes[plan.layers], load(1, 1, last, 0)
    for o in range(1, O):
        sums = sums + load(1, 1, at(last, -o * S), 0)
    return lane_sum(sums / O)


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
            random = uniform(a, key + np.uint64(o * n + first + v), np.uint64(1))
            store(at(out, q), 0, where_less(random, rate, 0.0, scale * load(1, 1, at(a, q), 0)))


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
            z = fill(1, 1, at(params, w + I * O + o) if plan.biases else memory.all_zero)
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
