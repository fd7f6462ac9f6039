"""The walk of `kernels.py` by a team of threads: a leader that runs it, and helpers that take chunks of its stages.

A *stage* is work that can be done in any order: panels of a block, units of a layer, rows of W, parameters. The leader
publishes it, and everybody, the leader too, takes one *chunk* after another from a counter until none is left. The
leader then waits for those that were taken, and never for a thread that has taken none: a helper that comes late, or
never, costs nothing. Whatever is summed is summed in the order of one thread, so that the bits are the same:

- panels, units, rows of W and parameters have sums of their own;
- what panels add to totals is kept panel by panel, and added up by the leader;
- sums over the lanes of a block are over those of the block of one thread, however many of them are walked at once.

Dimensions and the order of panels are those of `kernels.py`.
"""

import numpy as np

from fastbp.choices import ADAMW
from fastbp.formulas import begin_step, finite, misfit, update
from fastbp.jit import entry, inlined, kernel, merged
from fastbp.kernels import (
    activate_units,
    end_block,
    forward,
    gather,
    output_layer,
    predict_block,
    set_rate,
    shuffle,
    slope_units,
    weight_of,
)
from fastbp.products import bias_gradient, columns, gradient_rows, product, transposed
from fastbp.rows import few_rows
from fastbp.simd import (
    TILE_ROWS,
    at,
    atomic_add,
    atomic_load,
    atomic_store,
    bundle,
    core,
    flush_subnormals,
    give_way,
    if_few,
    if_full,
    lane_sum,
    lanes_of,
    nap,
    pause,
    put_back,
    ticks,
)
from fastbp.workspace import (
    ALONE_UNTIL,
    BATCH_WEIGHT,
    CAUTION,
    DONE,
    EDGE_ROWS,
    EPOCH,
    ERROR,
    FAULTS,
    FIGURES_PLACES,
    FINISHED,
    IN_TIME,
    LEADERS_CORE,
    LEAST_CAUTION,
    LIMIT,
    LOSS,
    MISFIT,
    OPEN,
    PANEL,
    REFUSED,
    ROW,
    STAGE,
    STAGE_EPOCH,
    STAGE_LAYER,
    STAGE_PANEL,
    STAGE_ROW,
    STAGE_SAMPLES,
    STAGE_UPDATES,
    TICKET,
    WEIGHT,
    Memory,
    Plan,
    Share,
)

# The stages; of no literal type, since kernels are compiled anew for each literal.
PANELS, CHECKED, UNITS, DELTAS, GRADIENTS, PARAMETERS = np.arange(6)

# A ticket holds two counters: of chunks that the leader took, from the first on, and of those that helpers took, from
# the last on, so that with two threads each mostly meets what it has in its cache. They sum to LIMIT when all are
# taken, and to more where a thread came too late.
LEADERS = 2**32
CHUNK_WORK = 2**14  # vectors multiplied and added in a chunk, 5 to 10 us: the leader may have to wait for one
CHUNK_PARAMETERS = 2**13  # of an optimiser's step
SPINS = 2**10  # looks at the counter, some 30 us, until a thread that waits lets others run
# A leader that waited for so many ticks, some 50 us, and longer than it worked, goes on alone for 2^4 times as long; if
# it has to wait again before that many stages ended in time, for twice as long as that, and so on.
LATE, MOST_CAUTION, TRUSTED = 2**17, 9, 2**10
LEAST_NAP = 50  # microseconds
LINGER = 2**11 + 2  # looks, some 300 us, until a helper that nobody wants returns, to sleep


# --- the team ---------------------------------------------------------------------------------------------------------


@entry
def team_words(precision, version, plan, memory, share, data, validation, blocks, helper):
    """`run_words` by a team: as its leader for helper 0, else as one of its helpers, until there is no more to do."""
    before = flush_subnormals()
    plan, memory = bundle(Plan, precision, version, plan), bundle(Memory, precision, version, memory)
    share, data, validation = bundle(Share, precision, version, share), at(data, 0), at(validation, 0)
    status = FINISHED
    if helper > 0:
        help_out(work, plan, memory, share, data, validation, helper)
    else:
        status = lead(plan, memory, share, data, validation, blocks)
    put_back(before)
    return status


@kernel
def lead(plan, memory, share, data, validation, blocks):
    """`run_blocks` of a team."""
    position, status = memory.position, FINISHED
    epoch, row, panel = position[EPOCH], position[ROW], position[PANEL]
    begin_call(share.control)
    set_rate(plan, memory, epoch)
    for _ in range(blocks):
        if row < plan.rows:
            count = share_training(plan, memory, share, data, validation, epoch, row, panel)
        else:
            count = if_full(plan, 0, share_validation, plan, memory, share, data, validation, row - plan.rows, panel)
        status, epoch, row, panel = end_block(plan, memory, epoch, row, panel, count)
        if status != FINISHED:
            break
    position[EPOCH], position[ROW], position[PANEL] = epoch, row, panel
    return status


@inlined
def begin_call(control):
    """What a leader does first."""
    if control[ALONE_UNTIL] < 0:  # so many ticks from now on
        control[ALONE_UNTIL] = ticks() - control[ALONE_UNTIL]


@kernel
def perform(plan, memory, share, data, validation, stage, layer, chunks):
    """Have the chunks of a stage done, by whoever comes, and wait for those that somebody took."""
    offer(work, plan, memory, share, data, validation, stage, layer, chunks)


@merged
def offer(do, plan, memory, share, data, validation, stage, layer, chunks):
    """`perform` of whatever does a chunk as `work` does; share may be anything that has a control."""
    control, mine, leader = share.control, np.int64(0), np.int64(0)
    control[STAGE], control[STAGE_LAYER] = stage, layer
    began = ticks()
    if chunks < 2 or began < control[ALONE_UNTIL]:
        for chunk in range(chunks):
            do(plan, memory, share, data, validation, chunk, leader)
    else:
        control[LEADERS_CORE] = core()
        atomic_store(control, DONE, 0)
        atomic_store(control, TICKET, LIMIT - chunks)
        ticket = atomic_add(control, TICKET, LEADERS)
        while ticket // LEADERS + ticket % LEADERS < LIMIT:
            do(plan, memory, share, data, validation, ticket // LEADERS, leader)
            mine += 1
            ticket = atomic_add(control, TICKET, LEADERS)
        looks, waits = 0, ticks()
        while atomic_load(control, DONE) != chunks - mine:
            looks += 1
            if looks < 8 * SPINS:
                pause()
            else:
                give_way()
        judge_helpers(control, began, waits)


@inlined
def judge_helpers(control, began, waits):
    """Have the leader work alone for a while after it waited, since `waits`, for a helper whose core others have.

    The chunk that the helper is in ends no sooner than the system gives it a core again, some milliseconds later.
    """
    now = ticks()
    if now - waits > LATE + waits - began:
        control[CAUTION] = min(control[CAUTION] + 1, MOST_CAUTION)
        control[ALONE_UNTIL] = now + (now - waits << control[CAUTION])
        control[IN_TIME] = 0
    else:
        control[IN_TIME] += 1
        if control[IN_TIME] == TRUSTED:
            control[CAUTION], control[IN_TIME] = LEAST_CAUTION, 0


@merged
def help_out(do, plan, memory, share, data, validation, helper):
    """Do chunks, as in `offer`, as long as the leader wants helpers, and for a while after."""
    control = share.control
    looks = 0
    while True:
        # On the leader's own core a helper would only keep it from its work.
        apart = control[LEADERS_CORE] == 0 or core() != control[LEADERS_CORE]
        ticket = atomic_load(control, TICKET)
        if apart and ticket // LEADERS + ticket % LEADERS < LIMIT:
            ticket = atomic_add(control, TICKET, 1)
            if ticket // LEADERS + ticket % LEADERS < LIMIT:
                do(plan, memory, share, data, validation, LIMIT - 1 - ticket % LEADERS, helper)
                atomic_add(control, DONE, 1)
                looks = 0
        looks += 1
        wanted = atomic_load(control, OPEN)
        if wanted < 0 or (wanted == 0 and looks > LINGER):
            break
        if apart and looks < 2 * SPINS:
            pause()
        else:
            looks = max(looks, 2 * SPINS)
            nap(LEAST_NAP << min(looks - 2 * SPINS, 5))  # no longer than it has waited


@kernel
def work(plan, memory, share, data, validation, chunk, helper):
    """Do one chunk of the stage."""
    control = share.control
    stage, layer, epoch, row = control[STAGE], control[STAGE_LAYER], control[STAGE_EPOCH], control[STAGE_ROW]
    S, F, samples = plan.width, plan.features, control[STAGE_SAMPLES]
    panels, place = (samples + S - 1) // S, control[STAGE_PANEL] * F * S
    if stage == CHECKED:
        check_panels(plan, memory, share, at(validation, place), F, panels, row, chunk)
    elif stage == PARAMETERS:
        first = chunk * CHUNK_PARAMETERS
        update(plan, memory, first, min(CHUNK_PARAMETERS, plan.parameters - first))
    else:
        x = memory.data if plan.shuffled else at(data, place)
        if stage == PANELS:
            walk_panels(plan, memory, share, data, x, F, samples, epoch, row, chunk)
        elif stage == UNITS:
            walk_units(plan, memory, x, F, panels, epoch, row, layer, chunk)
        elif stage == DELTAS:
            walk_deltas(plan, memory, share, panels, epoch, row, layer, chunk)
        else:
            sum_gradients(plan, memory, share, x, F, samples, chunk, helper)


# --- a block ----------------------------------------------------------------------------------------------------------


@inlined
def share_training(plan, memory, share, data, validation, epoch, row, panel):
    """`train_block` by a team."""
    S, F, totals, control = plan.width, plan.features, memory.totals, share.control
    batch = row // plan.batch_size * plan.batch_size
    batch_rows = min(plan.batch_size, plan.rows - batch)
    count = min(batch + batch_rows - row, plan.block * S)
    panels = (count + S - 1) // S
    control[STAGE_EPOCH], control[STAGE_ROW], control[STAGE_PANEL], control[STAGE_SAMPLES] = epoch, row, panel, count
    x = memory.data if plan.shuffled else at(data, panel * F * S)
    none = np.int64(0)
    if plan.shuffled and row == 0:
        shuffle(plan.rows, plan.seed, epoch, memory.order)
    if count == batch_rows <= plan.few:
        if_few(plan, None, few_rows, plan, memory, data, epoch, row, panel, count)
        return count
    if share.by_units:
        if plan.shuffled:
            gather(data, at(memory.order, row), count, F, S, panels, memory.all_zero, x)
        for layer in range(plan.layers):
            chunks = chunks_of(panels, plan.sizes[layer + 1], plan.sizes[layer], S, x)
            perform(plan, memory, share, data, validation, UNITS, layer, chunks)
        output_layer(plan, memory, x, F, none, panels, clear(share, panels), FIGURES_PLACES)
        transpose_deltas(plan, memory, share, plan.layers - 1, none, panels, none, plan.sizes[plan.layers])
        for layer in range(plan.layers - 1, 0, -1):
            chunks = chunks_of(panels, plan.sizes[layer], plan.sizes[layer + 1], S, x)
            perform(plan, memory, share, data, validation, DELTAS, layer, chunks)
    else:
        clear(share, panels)
        each = panels_of_chunk(plan)
        perform(plan, memory, share, data, validation, PANELS, none, (panels + each - 1) // each)
    for p in range(panels):
        totals[LOSS] += share.figures[p * FIGURES_PLACES + LOSS]
        totals[ERROR] += share.figures[p * FIGURES_PLACES + ERROR]
    weight = np.float64(batch_rows)
    if plan.weighted:
        weight = totals[BATCH_WEIGHT] = weight_of(plan, x, F, S, panels, totals[BATCH_WEIGHT])
    scale = 1.0 / weight if plan.mean and weight > 0 else 1.0
    last = row + count == batch + batch_rows
    # What looks at each parameter by itself follows its gradient at once, while that is in the cache.
    by_itself = not (plan.l2 > 0 or plan.clip_norm > 0 or plan.optimizer == ADAMW)
    updates = last and weight > 0  # a batch without weight is as if it were not there
    if updates and by_itself:
        begin_step(plan, memory, scale)
    control[STAGE_UPDATES] = updates and by_itself
    chunks = none
    for layer in range(plan.layers):
        rows = rows_of_chunk(count, plan.sizes[layer + 1], lanes_of(x))
        chunks += (plan.sizes[layer] + rows - 1) // rows
    perform(plan, memory, share, data, validation, GRADIENTS, none, chunks)
    if updates and not by_itself:
        begin_step(plan, memory, scale)
        chunks = (plan.parameters + CHUNK_PARAMETERS - 1) // CHUNK_PARAMETERS
        perform(plan, memory, share, data, validation, PARAMETERS, none, chunks)
    if last:
        totals[WEIGHT] += weight
        totals[BATCH_WEIGHT] = 0
    return count


@kernel
def share_validation(plan, memory, share, data, validation, row, panel):
    """`validate_block` by a team."""
    S, F, totals, control = plan.width, plan.features, memory.totals, share.control
    count = min(plan.validation_rows - row, plan.block * S)
    panels = (count + S - 1) // S
    control[STAGE_EPOCH], control[STAGE_ROW], control[STAGE_PANEL], control[STAGE_SAMPLES] = 0, row, panel, count
    figures, each, none = clear(share, panels), panels_of_chunk(plan), np.int64(0)
    perform(plan, memory, share, data, validation, CHECKED, none, (panels + each - 1) // each)
    for p in range(panels):
        totals[LOSS] += figures[p * FIGURES_PLACES + LOSS]
        totals[ERROR] += figures[p * FIGURES_PLACES + ERROR]
        totals[MISFIT] += figures[p * FIGURES_PLACES + MISFIT]
    totals[WEIGHT] = weight_of(plan, at(validation, panel * F * S), F, S, panels, totals[WEIGHT])
    return count


@inlined
def clear(share, panels):
    """Set the figures of a block to 0;  returns them."""
    for q in range(panels * FIGURES_PLACES):
        share.figures[q] = 0
    return share.figures


# --- stages by panels -------------------------------------------------------------------------------------------------


@inlined
def panels_of_chunk(plan):
    """Panels of a chunk of PANELS and CHECKED."""
    vectors = 2 * plan.width // lanes_of(plan.settings) * plan.parameters
    return max(1, min(plan.block // 8, CHUNK_WORK // vectors))


@kernel
def walk_panels(plan, memory, share, data, x, F, samples, epoch, row, chunk):
    """Forward pass, output and deltas of the panels of a chunk."""
    S, each, none = plan.width, panels_of_chunk(plan), np.int64(0)
    begin = chunk * each
    end = min(begin + each, (samples + S - 1) // S)
    if plan.shuffled:
        first = begin * S
        count = min(samples - first, each * S)
        gather(data, at(memory.order, row + first), count, F, S, end - begin, memory.all_zero, at(x, first * F))
    params, all_zero, a = memory.params, memory.all_zero, memory.activations
    forward(plan, params, all_zero, plan.dropout, x, F, begin, end, epoch, row, memory.kept, a)
    output_layer(plan, memory, x, F, begin, end, share.figures, FIGURES_PLACES)
    for layer in range(plan.layers - 1, -1, -1):
        transpose_deltas(plan, memory, share, layer, begin, end, none, plan.sizes[layer + 1])
        if layer > 0:
            for p in range(begin, end):
                panel_deltas(plan, memory, layer, p, none, plan.sizes[layer], epoch, row)


@kernel
def check_panels(plan, memory, share, x, F, panels, row, chunk):
    """Forward pass, output and misfit of the panels of a chunk of the rows for validation."""
    S, I, O, each, a = plan.width, plan.sizes[0], plan.sizes[plan.layers], panels_of_chunk(plan), memory.activations
    begin = chunk * each
    end = min(begin + each, panels)
    forward(plan, memory.params, memory.all_zero, memory.all_zero, x, F, begin, end, np.int64(0), row, a, a)
    output_layer(plan, memory, x, F, begin, end, share.figures, FIGURES_PLACES)
    top = plan.tops[plan.layers - 1] * plan.block * S
    for p in range(begin, end):
        y = at(x, (p * F + I) * S)
        p_p, figures = at(a, top + p * O * S), at(share.figures, p * FIGURES_PLACES)
        figures[MISFIT] += lane_sum(misfit(plan, p_p, y, at(y, O * S), plan.spread, O, S))


# --- stages by units --------------------------------------------------------------------------------------------------


@inlined
def units_of_chunk(panels, terms, S, pointer):
    """Units of a chunk of UNITS or DELTAS, each of so many terms: whole tiles, and vectors of transposed deltas."""
    whole = max(TILE_ROWS, lanes_of(pointer))
    return max(1, CHUNK_WORK // (panels * S // lanes_of(pointer) * terms * whole)) * whole


@inlined
def chunks_of(panels, units, terms, S, pointer):
    """Chunks of so many units."""
    each = units_of_chunk(panels, terms, S, pointer)
    return (units + each - 1) // each


@kernel
def walk_units(plan, memory, x, F, panels, epoch, row, layer, chunk):
    """Forward pass of the units of a chunk of a layer."""
    S, I, O = plan.width, plan.sizes[layer], plan.sizes[layer + 1]
    each = units_of_chunk(panels, I, S, x)
    unit = chunk * each
    units, top, w = min(each, O - unit), plan.tops[layer] * plan.block * S, at(memory.params, plan.starts[layer])
    bias = at(w, I * O) if plan.biases else memory.all_zero
    a, a_stride = x, F
    if layer > 0:
        a, a_stride = at(memory.activations, plan.tops[layer - 1] * plan.block * S), I
    for p in range(panels):
        place = top + (p * O + unit) * S
        out, a_p = at(memory.activations, place), at(a, p * a_stride * S)
        z = at(memory.kept, place) if plan.keeps[layer] else out
        product(at(w, unit), np.int64(1), O, units, I, at(bias, unit), a_p, S, z)
        if layer + 1 < plan.layers:
            activate_units(plan, layer, plan.dropout, unit, units, S, epoch, row + p * S, z, out)


@inlined
def panel_deltas(plan, memory, layer, p, unit, units, epoch, row):
    """Deltas of some units below a layer, from this one on, in panel p;  writes deltas."""
    S, I, O, w = plan.width, plan.sizes[layer], plan.sizes[layer + 1], at(memory.params, plan.starts[layer])
    place = plan.tops[layer - 1] * plan.block * S + (p * I + unit) * S
    delta, below = at(memory.deltas, (plan.tops[layer] * plan.block + p * O) * S), at(memory.deltas, place)
    kept = at(memory.kept if plan.keeps[layer - 1] else memory.activations, place)
    product(at(w, unit * O), O, np.int64(1), units, O, memory.all_zero, delta, S, below)
    slope_units(plan, layer, unit, units, S, epoch, row + p * S, kept, below)


@kernel
def walk_deltas(plan, memory, share, panels, epoch, row, layer, chunk):
    """Deltas of the units of a chunk below a layer."""
    S, I, O = plan.width, plan.sizes[layer], plan.sizes[layer + 1]
    each = units_of_chunk(panels, O, S, memory.params)
    unit = chunk * each
    units = min(each, I - unit)
    for p in range(panels):
        panel_deltas(plan, memory, layer, p, unit, units, epoch, row)
    transpose_deltas(plan, memory, share, layer - 1, np.int64(0), panels, unit, unit + units)


# --- gradients --------------------------------------------------------------------------------------------------------


@inlined
def deltas_of(plan, share, layer, p, O):
    """Where the transposed deltas of the panels from p on begin, in a layer with O outputs."""
    S, scratch = plan.width, share.scratch
    V = lanes_of(scratch)
    return at(scratch, ((plan.tops[layer] + layer * V) * plan.block + p * columns(O, V)) * S)


@kernel
def transpose_deltas(plan, memory, share, layer, begin, end, unit, after):
    """`transposed` for the panels from begin to end and the units from this one on, whole vectors, until `after`."""
    S, O = plan.width, plan.sizes[layer + 1]
    C = columns(O, lanes_of(memory.params))
    until = C if after == O else min(C, after)
    panels = (share.control[STAGE_SAMPLES] + S - 1) // S
    for p in range(begin, end):
        first = p // share.cut * share.cut  # panel of those that `sum_gradients` takes together
        delta, samples = (
            at(memory.deltas, (plan.tops[layer] * plan.block + p * O) * S),
            min(share.cut, panels - first) * S,
        )
        transposed(
            delta, O, p - first, np.int64(1), S, memory.counting, memory.all_zero, unit, until, samples,
            deltas_of(plan, share, layer, first, O),
        )  # fmt: skip


@inlined
def rows_of_chunk(samples, O, V):
    """Rows of W of a chunk of GRADIENTS: whole tiles."""
    return max(1, CHUNK_WORK // (samples * O // V * TILE_ROWS + 1)) * TILE_ROWS


@kernel
def sum_gradients(plan, memory, share, x, F, samples, chunk, helper):
    """Gradients of the rows of W of a chunk, and of a share of the biases, and if so asked their update."""
    S, layer = plan.width, 0
    I, O = plan.sizes[0], plan.sizes[1]
    rows = rows_of_chunk(samples, O, lanes_of(x))
    chunks = (I + rows - 1) // rows
    while chunk >= chunks:
        chunk -= chunks
        layer += 1
        I, O = plan.sizes[layer], plan.sizes[layer + 1]
        rows = rows_of_chunk(samples, O, lanes_of(x))
        chunks = (I + rows - 1) // rows
    first, w = chunk * rows, plan.starts[layer]
    rows = min(rows, I - first)
    # The biases of the layer are shared out among its chunks, in tiles of four.
    bias = (O + 3) // 4 * chunk // chunks * 4
    biases = min(O, (O + 3) // 4 * (chunk + 1) // chunks * 4) - bias if plan.biases else 0
    a, a_stride = x, F
    if layer > 0:
        a, a_stride = at(memory.activations, plan.tops[layer - 1] * plan.block * S), I
    for p in range(0, (samples + S - 1) // S, share.cut):
        part = min(samples - p * S, share.cut * S)
        delta = at(memory.deltas, (plan.tops[layer] * plan.block + p * O) * S)
        gradient_chunk(
            share, at(a, (p * a_stride + first) * S), a_stride, rows, delta, O, part, S,
            deltas_of(plan, share, layer, p, O), helper, at(memory.gradient, w + first * O),
        )  # fmt: skip
        if biases > 0:
            bias_gradient(at(delta, bias * S), O, biases, (part + S - 1) // S, S, at(memory.gradient, w + I * O + bias))
    if share.control[STAGE_UPDATES] != 0:
        update(plan, memory, w + first * O, rows * O)
        if biases > 0:
            update(plan, memory, w + I * O + bias, biases)


@inlined
def gradient_chunk(share, a, a_stride, rows, delta, O, samples, S, scratch, helper, gradient):
    """`gradient_rows` for rows after which another thread writes: the last ones are summed elsewhere."""
    last = min(rows, EDGE_ROWS) if columns(O, lanes_of(a)) > O else 0
    gradient_rows(a, a_stride, rows - last, delta, O, samples, S, scratch, gradient)
    if last > 0:
        edge = at(share.edges, helper * share.edge)
        own = at(gradient, (rows - last) * O)
        for q in range(last * O):
            edge[q] = own[q]
        gradient_rows(at(a, (rows - last) * S), a_stride, last, delta, O, samples, S, scratch, edge)
        for q in range(last * O):
            own[q] = edge[q]


# --- predictions ------------------------------------------------------------------------------------------------------


@entry
def predict_words(
    full, plan, control, params, data, counting, all_zero, gathered, activations, predictions, threads, helper
):
    """`predict_words` of the kernels by so many threads: the leader is helper 0, and waits for blocks that others took.

    gathered and activations have room for each thread. Control begins with zeros. What the leader returns counts.
    """
    before = flush_subnormals()
    status = predict_blocks(
        bundle(Plan, params[0], full, plan), at(control, 0), at(params, 0), at(data, 0), at(counting, 0),
        at(all_zero, 0), at(gathered, gathered.size // threads * helper),
        at(activations, activations.size // threads * helper), at(predictions, 0), helper,
    )  # fmt: skip
    put_back(before)
    return status


@kernel
def predict_blocks(plan, control, params, data, counting, all_zero, x, a, predictions, helper):
    """`predict_words` with pointers in place of arrays."""
    rows = plan.block * plan.width
    blocks, looks = (plan.rows + rows - 1) // rows, 0
    if helper == 0 and not finite(plan.parameters, params):
        atomic_add(control, FAULTS, 1)
    block = atomic_add(control, TICKET, 1)
    while block < blocks:
        if not predict_block(plan, params, data, counting, all_zero, block * rows, x, a, predictions):
            atomic_add(control, FAULTS, 1)
        atomic_add(control, DONE, 1)
        block = atomic_add(control, TICKET, 1)
    while helper == 0 and atomic_load(control, DONE) != blocks:
        looks += 1
        if looks < 8 * SPINS:
            pause()
        else:
            give_way()
    return FINISHED if atomic_load(control, FAULTS) == 0 else REFUSED
