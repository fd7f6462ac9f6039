"""What a kernel is handed: the plan it reads, the memory it writes, the data it walks."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_type_hints

import numpy as np
from numpy.typing import NDArray

from fastbp.choices import (
    ACTIVATIONS,
    ADAM,
    BINARY_CROSS_ENTROPY,
    CONSTANT,
    CROSS_ENTROPY,
    IDENTITY,
    IRPROP,
    KEEP_GRADIENT,
    LBFGS_HISTORY,
    LEAKY_RELU,
    LEARNING_RATE,
    LEVENBERG_MARQUARDT_DAMPING,
    LIMITED_BFGS,
    LOSSES,
    MARQUARDT,
    MOMENTUM_SGD,
    OF_LOGITS,
    PLAIN_SGD,
    RELU,
    SECOND_ORDER,
    SIGMOID,
    SLOTS,
    SOFTMAX,
    SQUARED_ERROR,
    TANH,
    Constant,
    Optimizer,
    Schedule,
)

Array = NDArray[Any]

# What the lean version of the kernels knows; the full one has the rest too, and takes some seconds more to compile.
LEAN_ACTIVATIONS = {IDENTITY, SIGMOID, TANH, RELU, LEAKY_RELU, SOFTMAX}
LEAN_LOSSES = {SQUARED_ERROR, BINARY_CROSS_ENTROPY, CROSS_ENTROPY}
LEAN_OPTIMIZERS = {KEEP_GRADIENT, PLAIN_SGD, MOMENTUM_SGD, ADAM}

VECTOR_BYTES = 64
TINY_UNITS = 8  # the fused path: every layer at most so wide, and the batch one vector
MOST_FEW = 12  # rows of a batch with features in the lanes, whatever the network
TINY_SAMPLES = 4  # likewise with a network in each lane: the batch is exactly so many
LANES_SAMPLES = 16  # of a block with a network in each lane: 8 took 4 to 7 % longer at 8 to 64 units, 32 no less
BLOCK_VECTORS = 8  # samples of a block: what its sums are read back for, against what stays in the cache
SUM_ERROR = 1e-5  # that checks allow a row of probabilities; rounding them to float32 moves their sum by 6e-8 at most
SUM_TOLERANCE = 1.000001 * SUM_ERROR  # that kernels allow: no less, whatever the order of summation
PIECE = 2**17  # numbers that one call of NumPy lays out, which takes some 0.2 ms: Ctrl-C waits for its end

# What early stopping watches: all of them are better the lower they are.
TRAINING_LOSS, VALIDATION_LOSS, VALIDATION_MISFIT = range(3)

# Places in Memory.position: where the next call goes on, and epochs that were no better than the best before.
POSITION_PLACES = 5
EPOCH, ROW, PANEL, STALE, STALE_RATE = range(POSITION_PLACES)

FINISHED, DIVERGED, STOPPED, REFUSED, UNFINISHED, CONVERGED, EXHAUSTED = range(7)  # what calls of kernels return

# Places in Memory.totals: sums over the rows seen in this epoch, of its weights in this batch and in the epoch; beta1^t
# and beta2^t of Adam; the best figure of early stopping and of ReduceOnPlateau, and the factor that the latter reached.
TOTALS_PLACES = 10
LOSS, ERROR, POWER1, POWER2, MISFIT, BATCH_WEIGHT, WEIGHT, BEST, BEST_RATE, FACTOR = range(TOTALS_PLACES)

# Places in Share.control: chunks given out and done, and whether helpers are wanted, each in a cache line of its own,
# since all threads write to or watch them; then what there is to do; and what the leader thinks of its helpers.
CONTROL_PLACES = 40
TICKET, DONE, OPEN = 0, 8, 16
STAGE, STAGE_LAYER, STAGE_EPOCH, STAGE_ROW, STAGE_PANEL, STAGE_SAMPLES, STAGE_UPDATES, LEADERS_CORE = range(24, 32)
ALONE_UNTIL, CAUTION, IN_TIME = range(32, 35)
FAULTS = 24  # of a prediction, in place of what there is to do
LIMIT = 2**20  # above the chunks of any stage
FOREVER = 2**62  # ticks
LEAST_CAUTION = 3
FIGURES_PLACES = 8  # a cache line
EDGE_ROWS = 8  # of W, at least as many as a tile has

# Places in Group.position: where the next call goes on, the epoch of the group at whose end a network will be done, and
# whether the rows of a block are those of the epoch before; in Group.totals, as in Memory.totals; and in Group.numbers,
# in the working precision.
GROUP_PLACES = 4
GROUP_ROW, GROUP_EPOCH, GROUP_UNTIL, GROUP_LAID = range(GROUP_PLACES)
GROUP_TOTALS_PLACES = 12
GROUP_RATE, FIGURE = range(10, GROUP_TOTALS_PLACES)  # before the schedule; the last of an epoch
NUMBERS_PLACES = 10
BATCH, PENALTY, SUM, BETTER = range(6, NUMBERS_PLACES)  # after those of Memory.scalars

# Places in Search.state: what is done next, the next rows, evaluations of this search, whether slope is that of point.
SEARCH_STATE_PLACES = 5
AT_STAGE, AT_ROW, AT_PANEL, EVALUATED, KNOWN = range(SEARCH_STATE_PLACES)

# Places in Search.figures: sums over the rows at the point; loss and slope along the direction there; the step that is
# tried; step, loss and slope of the best step and of the other end of the interval; the slope of the line above which
# losses are compared; and the length of the interval after the last trial and the one before.
SEARCH_FIGURES_PLACES = 15
POINT_LOSS, POINT_ERROR, POINT_WEIGHT, POINT_VALUE, POINT_SLOPE, TRIED = range(6)
LOW, LOW_VALUE, LOW_SLOPE, HIGH, HIGH_VALUE, HIGH_SLOPE, TILT, SPAN, SPAN_BEFORE = range(6, SEARCH_FIGURES_PLACES)

# Arrays of a Memory in the working precision, but for the parameters; and those that have a number for each epoch.
WORKING = (
    "gradient", "first", "second", "best", "all_zero", "scalars", "data", "activations", "kept", "deltas", "scratch",
)  # fmt: skip
HISTORY = ("loss", "error", "validation_loss", "validation_error", "validation_misfit")

# Places in Memory.scalars, through which numbers pass from float64 to the working precision.
SCALARS_PLACES = 6
SCALE, RATE, REST1, REST2, CORRECTED_RATE, CORRECTED_EPSILON = range(SCALARS_PLACES)

# Places in Squares.state, beside the first three of Search.state: first row and panel of the batch, attempts that were
# refused. And in Squares.figures: LOSS, ERROR and WEIGHT of the batch, its loss as it is compared, and that of the
# trial.
SQUARES_STATE_PLACES, SQUARES_FIGURES_PLACES = 6, 16
BATCH_ROW, BATCH_PANEL, REFUSED_STEPS = range(3, SQUARES_STATE_PLACES)
BATCH_VALUE, TRIAL_LOSS = 10, 11

# A batch is walked in so many parts at most, whoever walks them, and their sums are added in this order: the bits are
# the same for any number of threads. Each part has a J'J of its own; of more bytes together, to add them up would take
# a tenth of the time that making them takes.
MOST_PARTS, PARTS_BYTES = 8, 2**19


class Plan(NamedTuple):
    """What is computed; nothing here is written. A plan equals itself alone, so that what is made of it can be kept."""

    sizes: NDArray[np.int64]  # (layers + 1,) units, inputs first
    kinds: NDArray[np.int64]  # (layers,) codes of the activations
    layers: int
    starts: NDArray[np.int64]  # (layers + 1,) place of each layer's W in the flat vector, and its end
    tops: NDArray[np.int64]  # (layers,) units of the layers before, inputs not counted; with few rows in whole vectors
    parameters: int  # P
    loss: int
    huber_delta: float
    quantiles: NDArray[np.float64]  # (O,) levels of the loss "quantile", none of others
    crossing_penalty: float
    biases: bool
    optimizer: int
    settings: Array  # (SLOTS,) those of the optimiser, in the slots that choices.py names
    l2: float
    clip_norm: float  # largest norm of a gradient; 0 for any
    dropout: Array  # (layers,) share of the units of a layer that a sample does without
    keeps: NDArray[np.int64]  # (layers,) whether what its slope is written with is kept apart from the activations
    schedule: int
    schedule_settings: NDArray[np.float64]  # (SLOTS,) those of the schedule
    batch_size: int
    mean: bool  # whether the gradient of a batch is divided by the weight of its rows
    weighted: bool  # whether rows have weights other than 1
    output_weights: bool  # whether a row has a weight for each output
    features: int  # F, numbers of a row of data
    shuffled: bool  # whether each epoch has an order of its own
    seed: int  # of the orders and of dropout
    rows: int  # n
    validation_rows: int
    spread: NDArray[np.float64]  # (O,) what a residual of each output is multiplied by in the misfit
    watched: int  # what early stopping watches
    patience: int  # epochs that need not be better; -1 for any number
    min_delta: float  # by how much an epoch must be better
    keep_best: bool  # whether the weights of the best epoch are kept
    width: int  # S, samples of a panel
    block: int  # panels of a block at most
    few: int  # rows of a batch up to which features are in the lanes; 0 where no batch is so small
    tiny: bool  # whether a batch is one vector of a very small network, trained without extras

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    @property
    def lean(self) -> bool:
        """Whether the lean version of the kernels does all of it."""
        rest = self.clip_norm or self.dropout.any() or self.schedule != CONSTANT
        rest = rest or self.validation_rows or self.output_weights
        usual = self.optimizer in LEAN_OPTIMIZERS and self.loss in LEAN_LOSSES and set(self.kinds) <= LEAN_ACTIVATIONS
        return usual and not rest

    @property
    def version(self) -> bool | int | float | None:
        """The version of the kernels that walks it, by the type of this value, as `bundle` reads it.

        What somebody does not use, his first call does not wait for: what is full, and batches of few rows.
        """
        few = self.few > 0
        return (1 if few else None) if self.lean else (1.0 if few else True)

    @property
    def second_order(self) -> bool:
        """Whether `lbfgs.py` or `marquardt.py` runs it."""
        return self.optimizer in SECOND_ORDER

    @property
    def blocks_per_epoch(self) -> int:
        """Blocks in which the batches of one epoch are walked, and then the rows for validation.

        Of an optimiser of second order an epoch is one block: nobody knows how often it walks its rows.
        """
        if self.second_order:
            return 1
        full, rest = divmod(self.rows, self.batch_size)
        samples = self.block * self.width
        batches = full * -(-self.batch_size // samples) + -(-rest // samples)
        return batches + -(-self.validation_rows // samples)


class Memory(NamedTuple):
    """What is written, and the position from which the next call goes on."""

    params: Array  # (P,)
    gradient: Array  # (P + V,) zero between batches
    first: Array  # (P,) velocity, Adam's mean of gradients, or iRprop's last gradient; L-BFGS's steps and their (m, P)
    second: Array  # (P,) the mean of squares of Adam and RMSprop, or iRprop's steps; Marquardt's damping (1,), or how
    # often the searches of L-BFGS have evaluated (1,): in float32 up to 2^24 times, and then no more are counted
    best: Array  # (P,) weights of the best epoch, if they are kept
    all_zero: Array  # (widest layer, layers, at least V) zeros, where there is no bias and no dropout
    counting: NDArray[np.int64]  # (V,) 0, 1, 2, ...
    order: NDArray[np.int64]  # (n,) rows in the order of the epoch, if shuffled
    scalars: Array  # (SCALARS_PLACES,) numbers on their way from float64
    data: Array  # (block, F, S) rows gathered for a block
    activations: Array  # (layers, block, O, S), or of few rows (layers, rows, O in whole vectors), as the next two
    kept: Array  # (layers, block, O, S) what slopes are written with, in the layers that keep it
    deltas: Array  # (layers, block, O, S)
    scratch: Array  # (C block S,) deltas of a layer, transposed; of few rows their outputs as a panel, and inputs
    position: NDArray[np.int64]  # (POSITION_PLACES,)
    totals: NDArray[np.float64]  # (TOTALS_PLACES,)
    vector: NDArray[np.float64]  # (8,) one vector of float64
    loss: NDArray[np.float64]  # (epochs,)
    error: NDArray[np.float64]  # (epochs,)
    validation_loss: NDArray[np.float64]  # (epochs,) as the next two, if there are rows for it
    validation_error: NDArray[np.float64]
    validation_misfit: NDArray[np.float64]

    @property
    def state(self) -> tuple[Array, ...]:
        """All that a later epoch depends on."""
        return self.params, self.gradient, self.first, self.second, self.best, self.position, self.totals


class Share(NamedTuple):
    """What threads that walk a block together have beside its memory."""

    control: NDArray[np.int64]  # (CONTROL_PLACES,) who does what, and what there is to do
    figures: NDArray[np.float64]  # (block, FIGURES_PLACES) what a panel adds to totals
    scratch: Array  # (layers, block, S, C) deltas, transposed
    edges: Array  # (threads, edge) the last rows of a chunk of W, which are not to be written beyond
    edge: int
    cut: int  # panels, over which one thread would sum lanes at once
    by_units: bool  # whether batches have too few panels, and the units of a layer are shared out instead


class Group(NamedTuple):
    """What a group of networks is trained with, each in a lane of its own: every item is a vector of V numbers."""

    params: Array  # (P, V)
    gradient: Array  # (P, V) zero between batches
    first: Array  # (P, V) as in Memory, and so are those that follow
    second: Array
    best: Array
    all_zero: Array  # (V,)
    x: Array  # (block, F, V) rows gathered for a block
    activations: Array  # (layers, block, O, V)
    kept: Array
    deltas: Array
    numbers: Array  # (NUMBERS_PLACES, V)
    dropout: Array  # (layers, V) share of the units of a layer that a sample does without
    spread: Array  # (O, V) what a residual of each output is multiplied by in the misfit
    weights: Array  # (n, V) of the rows, by their place before they are shuffled, if they have any
    held_weights: Array  # (validation rows, V)
    seeds: NDArray[np.int64]  # (V,)
    keys: NDArray[np.int64]  # (layers, V) of the random numbers of dropout in this epoch
    rows: NDArray[np.int64]  # (n, V) rows of the data, by their place, where lanes have rows or an order of their own
    held: NDArray[np.int64]  # (validation rows, V)
    order: NDArray[np.int64]  # (n, V) places in the order of the epoch, if shuffled
    drawn: NDArray[np.int64]  # (block, V) rows of the data for a block
    drawn_weights: Array  # (block, V)
    begun: NDArray[np.int64]  # (V,) epochs of the group before the network came
    histories: NDArray[np.int64]  # (V,) where its losses would be of the first epoch of the group
    status: NDArray[np.int64]  # (V,) whether there is a network, and whether and how it has ended
    stale: NDArray[np.int64]  # (2, V) epochs that were no better than the best, for early stopping and the schedule
    position: NDArray[np.int64]  # (GROUP_PLACES,)
    totals: NDArray[np.float64]  # (GROUP_TOTALS_PLACES, V)
    vector: NDArray[np.float64]  # (8,) one vector of float64
    loss: NDArray[np.float64]  # (networks, epochs) of all groups
    validation_loss: NDArray[np.float64]  # likewise
    validation_misfit: NDArray[np.float64]
    own_rows: bool  # whether networks have rows or weights of their own, or an order of them
    drawn_anew: bool  # whether anything is drawn or computed for each epoch


class Search(NamedTuple):
    """What L-BFGS has beside the memory, and none of it has to be kept: it is computed anew for the same bits."""

    state: NDArray[np.int64]  # (SEARCH_STATE_PLACES,) where the next call goes on
    figures: NDArray[np.float64]  # (SEARCH_FIGURES_PLACES,) of the point and of the line search
    shares: NDArray[np.float64]  # (m,) what of each remembered change the two loops take
    point: Array  # (P,) where the search begins
    slope: Array  # (P,) the gradient there
    direction: Array  # (P,)


class Squares(NamedTuple):
    """What Levenberg and Marquardt's step has beside the memory; D is P in whole vectors."""

    state: NDArray[np.int64]  # (SQUARES_STATE_PLACES,) where the next call goes on
    figures: NDArray[np.float64]  # (SQUARES_FIGURES_PLACES,) of the batch, before the step and at the trial
    point: Array  # (P,) the parameters before the step
    slope: NDArray[np.float64]  # (chunks, D) the gradient there, chunk by chunk, and then the sum in the first place
    solution: NDArray[np.float64]  # (D,) the step
    normal: NDArray[np.float64]  # (parts, D, D) J'J, of which the half above the diagonal counts, likewise
    factor: NDArray[np.float64]  # (D, D) its Cholesky factor, damped
    units: NDArray[np.float64]  # (block, U, S) what rows of J are made of: see `units_of`
    factors: NDArray[np.int64]  # (2, D) where the two rows of `units` begin whose product is a column of J
    jacobian: NDArray[np.float64]  # (D block S,) rows of J, in tiles of columns
    roots: Array  # (block, O, S) what rows of J are multiplied by, so that J'J is the curvature
    batch: Array  # (panels, F, S) the rows of a batch, if they are shuffled
    control: NDArray[np.int64]  # (CONTROL_PLACES,) as in Share
    sums: NDArray[np.float64]  # (chunks, FIGURES_PLACES) what chunks add to figures
    cut: int  # panels that a thread walks together
    parts: int  # of a batch, each with a J'J of its own
    bands: int  # chunks of a part: each computes J anew, and of J'J the rows of every so many-th tile


# How `struct` calls their fields.
_LAYOUTS = {
    kind: "".join("d" if hint is float else "q" for hint in get_type_hints(kind).values())
    for kind in (Plan, Memory, Share, Group, Search, Squares)
}


def words_of(bundle: Plan | Memory | Share | Group | Search | Squares) -> NDArray[np.int64]:
    """The fields as kernels read them, 8 bytes each: numbers, and addresses of arrays, which must outlive the words."""
    return _words_of_plan(bundle) if isinstance(bundle, Plan) else _words(bundle)


def _words(bundle: Plan | Memory | Share | Group | Search | Squares) -> NDArray[np.int64]:
    values = [address(x) if isinstance(x, np.ndarray) else x for x in bundle]
    return np.frombuffer(bytearray(struct.pack(_LAYOUTS[type(bundle)], *values)), np.int64)


@functools.lru_cache(maxsize=16)  # of those that are asked for again and again
def _words_of_plan(plan: Plan) -> NDArray[np.int64]:
    return _words(plan)


def address(array: Array) -> int:
    """Where the numbers of an array lie; 0 if there are none."""
    if array.flags.writeable:  # NumPy's own answer takes four times as long: of some forty a training has to wait for
        return ctypes.addressof(ctypes.c_char.from_buffer(array)) if array.size else 0  # type: ignore[arg-type]
    return array.__array_interface__["data"][0]


def aligned(size: int, dtype: Any) -> Array:
    """Zeros that begin at a multiple of 64 bytes: a vector that crosses cache lines costs two accesses."""
    spare = VECTOR_BYTES // dtype.itemsize
    raw = np.zeros(size + spare, dtype)
    start = -address(raw) % VECTOR_BYTES // dtype.itemsize
    return raw[start : start + size]


def panel_width(batch_size: int, dtype: Any) -> int:
    """Samples of a panel: two vectors, but one where an odd number of them would leave much of the last one idle."""
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    vectors = -(-batch_size // lanes)
    return lanes if vectors in (1, 3, 5) else 2 * lanes


def few_of(sizes: tuple[int, ...], dtype: Any) -> int:
    """Rows of a batch up to which features are in the lanes; panels of samples are faster from there on."""
    lanes = VECTOR_BYTES // dtype.itemsize
    layers = list(itertools.pairwise(sizes))
    # What a panel takes, with one output waiting for each of its sums, and what a row takes: the vectors that hold W,
    # and what layers and several outputs, which rows hand over as a panel, cost beside. The constants are fitted to 14
    # networks, 3 to 12 rows, both precisions, SGD: 16-h-h-1 at h = 2, 8, 16, 33, 64, 100, 128, 16-h-1 at 32, 128,
    # 64-100-10, 4-16-1, 20-10, 32-20-20-5, 100-20-1. Of the two ways the rule takes one that is at most 11 % slower
    # than the other, 0.5 % in the mean.
    panel = sum(a * b if b > 1 else 4 * a for a, b in layers)
    row = sum(a * -(-b // lanes) if b > 1 else -(-a // lanes) for a, b in layers) + 3 * len(layers)
    row += 8 * sizes[-1] if sizes[-1] > 1 else 0
    few = int(1.6 + 0.8 * panel / row)
    # Panels of float64 hold 8 samples: those that are level with about as many rows are behind again with 9 to 12.
    return MOST_FEW if few >= lanes - 2 else min(few, MOST_FEW)


def make_plan(network: Any, rows: int, batch_size: int, optimizer: Optimizer | None = None, **extras: Any) -> Plan:
    """Plan for so many rows, with any of the extras of `_plan`; without an optimiser the gradient is kept as summed."""
    return _plan(*network._description, network._params.dtype, rows, batch_size, optimizer, **extras)


@functools.lru_cache(maxsize=256)  # a network that predicts row by row asks for the same one again and again
def _plan(
    sizes: tuple[int, ...],
    activations: tuple[str, ...],
    loss: str,
    huber_delta: float,
    bias: bool,
    quantiles: tuple[float, ...],
    crossing_penalty: float,
    dtype: Any,
    rows: int,
    batch_size: int,
    optimizer: Optimizer | None,
    *,
    mean: bool = False,
    weighted: bool = False,
    output_weights: bool = False,
    shuffled: bool = False,
    seed: int = 0,
    l2: float = 0.0,
    clip_norm: float = 0.0,
    dropout: tuple[float, ...] = (),
    schedule: Schedule | None = None,
    validation_rows: int = 0,
    spread: tuple[float, ...] = (),
    watched: int = TRAINING_LOSS,
    patience: int = -1,
    min_delta: float = 0.0,
    keep_best: bool = False,
) -> Plan:
    lanes, layers = VECTOR_BYTES // dtype.itemsize, len(activations)
    width = panel_width(batch_size, dtype)
    kinds = np.array([ACTIVATIONS[name].code for name in activations], np.int64)
    rates = np.zeros(layers, dtype)
    rates[: len(dropout)] = dropout
    keeps = np.array([k in OF_LOGITS or r > 0 for k, r in zip(kinds.tolist(), rates.tolist(), strict=True)], np.int64)
    keeps[-1] = 0  # the loss takes this slope while it has the logits at hand
    schedule = schedule or Constant()
    starts = starts_of(sizes, bias)
    small = batch_size <= lanes and max(sizes) <= TINY_UNITS
    tiny = small and not (weighted or output_weights or l2 or clip_norm or keeps.any())
    few = few_of(sizes, dtype)
    if optimizer and optimizer.code in SECOND_ORDER:  # which walks panels alone: one version of it to compile
        tiny, few = False, 0
    if tiny or few < min(batch_size, rows % batch_size or batch_size):
        few = 0
    # Rows of activations are whole vectors.
    units = [-(-n // lanes) * lanes if few else n for n in sizes[1:-1]]
    return Plan(
        sizes=np.array(sizes, np.int64),
        kinds=kinds,
        layers=layers,
        starts=np.array(starts, np.int64),
        tops=np.cumsum((0, *units)),
        parameters=starts[-1],
        loss=LOSSES[loss].code,
        huber_delta=huber_delta,
        quantiles=np.array(quantiles, np.float64),
        crossing_penalty=crossing_penalty,
        biases=bias,
        optimizer=optimizer.code if optimizer else KEEP_GRADIENT,
        settings=slots(optimizer, dtype),
        l2=l2,
        clip_norm=clip_norm,
        dropout=rates,
        keeps=keeps,
        schedule=schedule.code,
        schedule_settings=slots(schedule, np.float64),
        batch_size=batch_size,
        mean=mean,
        weighted=weighted,
        output_weights=output_weights,
        features=sizes[0] + sizes[-1] + (sizes[-1] if output_weights else 1),
        shuffled=shuffled,
        seed=seed,
        rows=rows,
        validation_rows=validation_rows,
        spread=np.array(spread, np.float64),
        watched=watched,
        patience=patience,
        min_delta=min_delta,
        keep_best=keep_best,
        width=width,
        block=min(-(-batch_size // width), BLOCK_VECTORS * lanes // width),
        few=few,
        tiny=tiny,
    )


@functools.lru_cache(maxsize=256)
def starts_of(sizes: tuple[int, ...], bias: bool) -> tuple[int, ...]:
    """Place of each layer's W in the flat vector, and the end of the vector: b follows W, and the next layer b."""
    parameters = (outputs * (inputs + bias) for inputs, outputs in itertools.pairwise(sizes))
    return tuple(itertools.accumulate(parameters, initial=0))


def layers_of(flat: Array, sizes: Sequence[int] | Array, starts: Sequence[int] | Array) -> list[tuple[Array, Array]]:
    """W (inputs, outputs) and b (outputs,) of each layer, views of a flat vector; b is empty where there are none."""
    layers = []
    for inputs, outputs, start, end in zip(sizes[:-1], sizes[1:], starts[:-1], starts[1:], strict=True):
        biases = start + inputs * outputs
        layers.append((flat[start:biases].reshape(inputs, outputs), flat[biases:end]))
    return layers


def slots(settings: Optimizer | Schedule | None, dtype: Any) -> Array:
    """The values of the fields in their order, filled up with zeros."""
    slots = np.zeros(SLOTS, dtype)
    if settings:
        # dataclasses.astuple would copy each value, for 10 us
        values = [getattr(settings, field.name) for field in dataclasses.fields(settings)]
        slots[: len(values)] = values  # raises if there are more
    return slots


def state_sizes(optimizer: int, settings: Array, parameters: int) -> tuple[int, int]:
    """Numbers in `first` and `second` of a Memory, given code and slots of an optimiser."""
    if optimizer == LIMITED_BFGS:
        return 2 * int(settings[LBFGS_HISTORY]) * parameters, 1
    if optimizer == MARQUARDT:
        return 0, 1
    return parameters, parameters


def forward_sizes(plan: Plan, lanes: int) -> tuple[int, int, int]:
    """Numbers that a forward pass needs: the rows gathered for a block, the activations, and the zeros it reads."""
    inputs, *units = plan.sizes.tolist()
    samples = plan.block * plan.width
    last = -(-units[-1] // lanes) * lanes if plan.few else units[-1]
    return (
        samples * plan.features,
        samples * (int(plan.tops[-1]) + last),
        max(lanes, plan.layers, inputs, *units),
    )


def forward_memory(plan: Plan, dtype: Any, threads: int = 1) -> tuple[NDArray[np.int64], Array, Array, Array]:
    """What `predict` reads beside params and data, counting and all_zero, and what it writes: gathered and activations.

    Those of each thread follow those of the last.
    """
    lanes = VECTOR_BYTES // dtype.itemsize
    gathered, activations, all_zero = forward_sizes(plan._replace(block=threads * plan.block), lanes)
    memory = aligned(gathered + activations + all_zero, dtype)
    counting = np.arange(plan.block * plan.width)
    return counting, memory[gathered + activations :], memory[:gathered], memory[gathered : gathered + activations]


def memory_sizes(plan: Plan, dtype: Any, epochs: int) -> dict[str, int]:
    """Numbers in each array of the memory for so many epochs, but for the parameters and what is always short."""
    lanes, P = VECTOR_BYTES // dtype.itemsize, plan.parameters
    data, activations, all_zero = forward_sizes(plan, lanes)
    widest = -(-max(plan.sizes.tolist()) // lanes) * lanes
    validated = epochs if plan.validation_rows else 0
    first, second = state_sizes(plan.optimizer, plan.settings, P)
    outputs = 2 * int(plan.sizes[-1]) + plan.features - int(plan.sizes[0])  # as a panel, with targets and weights
    return {
        "gradient": P + lanes,  # kernels read and rewrite up to a vector beyond the last row
        "first": first,
        "second": second,
        "best": P * plan.keep_best,
        "all_zero": all_zero,
        "scalars": SCALARS_PLACES,
        "order": plan.rows * plan.shuffled,
        "data": data,
        "activations": activations,
        "kept": activations * bool(plan.keeps.any()),
        "deltas": activations,
        "scratch": plan.block * plan.width * max(widest + lanes, outputs * (plan.few > 0)),
        "loss": epochs,
        "error": epochs,
        "validation_loss": validated,
        "validation_error": validated,
        "validation_misfit": validated,
    }


def parts_of(plan: Plan, block: int, threads: int) -> tuple[int, int]:
    """How many J'J are summed side by side, and in how many bands each of them, so that all threads have a share.

    Whoever sums a band makes all of J for it, a tenth of the work where there are so many parameters.
    block: panels that a thread walks together; each part has two blocks at least.
    """
    D, blocks = -(-plan.parameters // 8) * 8, -(-plan.batch_size // (plan.width * block))
    parts = max(1, min(MOST_PARTS, PARTS_BYTES // (8 * D * D), blocks // 2))
    return parts, -(-threads // parts)


def second_order_sizes(plan: Plan, dtype: Any, threads: int = 1) -> dict[str, int]:
    """Numbers in each array of a Search or of Squares, by its name; none for other optimisers."""
    P, m = plan.parameters, int(plan.settings[LBFGS_HISTORY])
    if plan.optimizer == LIMITED_BFGS:
        state, figures = SEARCH_STATE_PLACES, SEARCH_FIGURES_PLACES
        return {"state": state, "figures": figures, "shares": m, "point": P, "slope": P, "direction": P}
    if plan.optimizer != MARQUARDT:
        return {}
    inputs, outputs = plan.sizes[[0, -1]].tolist()
    D, samples, lanes = -(-P // 8) * 8, plan.block * plan.width, VECTOR_BYTES // dtype.itemsize
    batch = -(-plan.batch_size // plan.width) * plan.width * (inputs + outputs + 1)
    parts, bands = parts_of(plan, plan.block // threads, threads)
    chunks = max(MOST_PARTS, parts * bands)
    return {
        "state": SQUARES_STATE_PLACES,
        "figures": SQUARES_FIGURES_PLACES,
        "point": P,
        "slope": chunks * D,
        "solution": D + lanes,
        "normal": parts * D * D,
        "factor": D * D,
        "units": (2 + inputs + 2 * (int(plan.tops[-1]) + outputs)) * samples,
        "factors": 2 * D,
        "jacobian": D * samples,
        "roots": outputs * samples,
        "batch": batch * plan.shuffled,
        "control": CONTROL_PLACES,
        "sums": chunks * FIGURES_PLACES,
    }


def second_order_memory(plan: Plan, dtype: Any, threads: int = 1) -> Search | Squares:
    """What an optimiser of second order writes beside the memory, its blocks being those of all threads together."""
    kind: Any = Search if plan.optimizer == LIMITED_BFGS else Squares
    hints, kinds = get_type_hints(kind), {NDArray[np.int64]: np.dtype(np.int64), NDArray[np.float64]: np.dtype(float)}
    sizes = second_order_sizes(plan, dtype, threads)
    arrays = {name: aligned(size, kinds.get(hints[name], dtype)) for name, size in sizes.items()}
    if kind is Search:
        return Search(**arrays)
    block = plan.block // threads
    parts, bands = parts_of(plan, block, threads)
    room = Squares(**arrays, cut=block, parts=parts, bands=bands)
    room.factors.reshape(2, -1)[:, : plan.parameters] = _factors(plan)
    room.control[[TICKET, CAUTION, ALONE_UNTIL]] = LIMIT, LEAST_CAUTION, FOREVER if threads == 1 else 0
    return room


def _factors(plan: Plan) -> NDArray[np.int64]:
    """Where the rows of `Squares.units` begin for each parameter: what comes in by it, or 1, and its unit's delta."""
    sizes, parts = plan.sizes.tolist(), []
    incoming, deltas = 2, 2 + sum(sizes)
    for inputs, outputs in itertools.pairwise(sizes):
        rows = [*range(incoming, incoming + inputs), *[1] * plan.biases]
        parts += [(row, delta) for row in rows for delta in range(deltas, deltas + outputs)]
        incoming, deltas = incoming + inputs, deltas + outputs
    return plan.width * np.array(parts).T


def make_memory(plan: Plan, params: Array, epochs: int) -> Memory:
    """Memory to train for so many epochs, with these parameters, which the kernel updates in place."""
    dtype, sizes = params.dtype, memory_sizes(plan, params.dtype, epochs)
    lanes = VECTOR_BYTES // dtype.itemsize
    # In one piece, each part at a whole vector: to make it takes longer than an epoch of a small network.
    ends = list(itertools.accumulate((-(-sizes[name] // lanes) * lanes for name in WORKING), initial=0))
    piece = aligned(ends[-1], dtype)
    memory = Memory(
        params=params,
        **{name: piece[start : start + sizes[name]] for name, start in zip(WORKING, ends, strict=False)},
        counting=np.arange(lanes),
        order=np.empty(sizes["order"], np.int64),
        position=np.zeros(POSITION_PLACES, np.int64),
        totals=np.zeros(TOTALS_PLACES),
        vector=aligned(VECTOR_BYTES // 8, np.dtype(np.float64)),
        **{name: np.zeros(sizes[name]) for name in HISTORY},
    )
    begin(plan, memory)
    return memory


def begin(plan: Plan, memory: Memory) -> None:
    """Set what a training begins with where zeros are not it."""
    totals = memory.totals
    totals[POWER1] = totals[POWER2] = totals[FACTOR] = 1
    totals[BEST] = totals[BEST_RATE] = np.inf
    if plan.optimizer == IRPROP:
        memory.second[:] = plan.settings[LEARNING_RATE]
    elif plan.optimizer == MARQUARDT:
        memory.second[:] = plan.settings[LEVENBERG_MARQUARDT_DAMPING]


def make_lanes_plan(network: Any, rows: int, batch_size: int, optimizer: Optimizer, **extras: Any) -> Plan:
    """Plan for networks like this one, each in a lane."""
    plan = make_plan(network, rows, batch_size, optimizer, **extras)
    units = plan.sizes.tolist()
    weighted = plan.weighted or plan.l2 or plan.clip_norm or plan.keeps.any()
    return plan._replace(
        width=VECTOR_BYTES // network.params.dtype.itemsize,
        block=min(LANES_SAMPLES, max(batch_size, plan.validation_rows)),
        tops=np.cumsum((0, *units[1:-1])),
        few=0,
        tiny=batch_size == rows == TINY_SAMPLES and max(units) <= TINY_UNITS and plan.loss != CROSS_ENTROPY
        and not weighted,
    )  # fmt: skip


def group_sizes(plan: Plan, own_rows: bool) -> dict[str, int]:
    """Vectors of V numbers in each array of a group, but for the losses and what is always short."""
    inputs, *units = plan.sizes.tolist()
    P, block, n = plan.parameters, plan.block, plan.rows * (own_rows or plan.shuffled)
    momenta = P * (plan.optimizer != PLAIN_SGD)
    activations = block * (plan.tops.item(-1) + units[-1])
    return {
        "params": P,
        "gradient": P,
        "first": momenta,
        "second": momenta,
        "best": P * plan.keep_best,
        "all_zero": 1,
        "x": block * (inputs + units[-1] + 1),
        "activations": activations,
        "kept": activations * bool(plan.keeps.any()),
        "deltas": activations,
        "numbers": NUMBERS_PLACES,
        "dropout": plan.layers,
        "spread": units[-1],
        "weights": n * plan.weighted,
        "held_weights": plan.validation_rows,
        "drawn_weights": block,
        "seeds": 1,
        "keys": plan.layers,
        "rows": n,
        "held": plan.validation_rows,
        "order": plan.rows * plan.shuffled,
        "drawn": block,
        "begun": 1,
        "histories": 1,
        "status": 1,
        "stale": 2,
    }


def make_group(
    plan: Plan, dtype: Any, loss: Array, validation_loss: Array, validation_misfit: Array, own_rows: bool
) -> Group:
    """Memory of a group, whose losses are rows of these (networks, epochs)."""
    hints = get_type_hints(Group)
    arrays = {
        name: aligned(size * plan.width, np.dtype(np.int64) if hints[name] == NDArray[np.int64] else dtype)
        for name, size in group_sizes(plan, own_rows).items()
    }
    return Group(
        **arrays,
        position=np.zeros(GROUP_PLACES, np.int64),
        totals=aligned(GROUP_TOTALS_PLACES * plan.width, np.dtype(np.float64)),
        vector=aligned(VECTOR_BYTES // 8, np.dtype(np.float64)),
        loss=loss,
        validation_loss=validation_loss,
        validation_misfit=validation_misfit,
        own_rows=own_rows or plan.shuffled,
        drawn_anew=bool(plan.shuffled or plan.dropout.any() or plan.schedule != CONSTANT),
    )


def pieces(n: int, numbers: int) -> Iterator[slice]:
    """Slices of n rows of so many numbers, one after the other: between them Python attends to Ctrl-C."""
    step = max(1, PIECE // numbers)
    return (slice(first, min(first + step, n)) for first in range(0, n, step))


def rows_of(
    X: Array,
    y: Array,
    weights: Array | None = None,
    chosen: NDArray[np.int64] | None = None,
    outputs: int | None = None,
    output_weights: bool = False,
) -> Array:
    """The rows (n, F) that kernels gather from: x, y and the weights, 1 by default; all or those chosen.

    y is repeated until each of so many outputs has a target, and so are the weights if outputs have their own.
    """
    n, inputs, outputs = len(X) if chosen is None else len(chosen), X.shape[1], outputs or y.shape[1]
    features = inputs + outputs + (outputs if output_weights else 1)
    rows = aligned(n * features, X.dtype).reshape(n, features)
    for piece in pieces(n, features):
        those, part = piece if chosen is None else chosen[piece], rows[piece]
        part[:, :inputs], part[:, inputs : inputs + outputs] = X[those], repeated(y[those], outputs)
        given = np.ones((1, 1), X.dtype) if weights is None else weights[those].reshape(len(part), -1)
        part[:, inputs + outputs :] = repeated(given, features - inputs - outputs)
    return rows


def repeated(columns: Array, outputs: int) -> Array:
    """The columns, over and over, until there are so many."""
    return columns if columns.shape[1] == outputs else np.tile(columns, outputs // columns.shape[1])


def panels_in(rows: int, plan: Plan) -> int:
    """Panels of so many rows, each batch padded to whole ones; none if all batches are of few rows."""
    full, rest = divmod(rows, plan.batch_size)
    if plan.batch_size <= plan.few:
        return 0
    return full * -(-plan.batch_size // plan.width) + -(-rest // plan.width)


def panels_of(rows: Array, plan: Plan) -> Array:
    """The same rows as panels (F, S), one after the other, each batch padded with zeros to whole panels.

    Batches of few rows stay rows: all of them, or a short last one, in the place of its panel.
    """
    n, features = rows.shape
    if plan.batch_size <= plan.few:
        return rows.ravel()
    per_batch = -(-plan.batch_size // plan.width) * plan.width
    panels = aligned(panels_in(n, plan) * features * plan.width, rows.dtype).reshape(-1, features, plan.width)
    if len(panels) == 1:  # as below, in a tenth of the time
        panels[0, :, :n] = rows.T
        return panels.ravel()
    for piece in pieces(n, features):
        batch, within = np.divmod(np.arange(piece.start, piece.stop), plan.batch_size)
        panel, sample = np.divmod(batch * per_batch + within, plan.width)
        panels[panel, :, sample] = rows[piece]
    flat = panels.ravel()
    rest = n % plan.batch_size
    if 0 < rest <= min(plan.few, plan.block * plan.width):
        start = n // plan.batch_size * per_batch * features
        flat[start : start + rest * features] = rows[n - rest :].ravel()
    return flat
