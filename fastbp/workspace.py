"""What a kernel is handed: the plan it reads, the memory it writes, the data it walks."""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastbp.choices import ACTIVATIONS, KEEP_GRADIENT, LOSSES, SGD, Adam

Array = NDArray[Any]

VECTOR_BYTES = 64
TINY_UNITS = 8  # the fused path: every layer at most so wide, and the batch one vector
BLOCK_VECTORS = 8  # samples of a block: what its sums are read back for, against what stays in the cache


class Plan(NamedTuple):
    """What is computed; nothing here is written."""

    sizes: NDArray[np.int64]  # (layers + 1,) units, inputs first
    kinds: NDArray[np.int64]  # (layers,) codes of the activations
    layers: int
    parameters: int  # P
    loss: int
    biases: bool
    optimizer: int
    settings: Array  # (4,) learning rate, then what the optimiser names
    batch_size: int
    mean: bool  # whether the gradient of a batch is divided by its rows
    shuffled: bool  # whether each epoch has an order of its own
    seed: int  # of the orders
    rows: int  # n
    width: int  # S, samples of a panel
    block: int  # panels of a block at most
    tiny: bool  # whether a batch is one vector of a very small network

    @property
    def blocks_per_epoch(self) -> int:
        """Blocks in which the batches of one epoch are walked."""
        full, rest = divmod(self.rows, self.batch_size)
        samples = self.block * self.width
        return full * -(-self.batch_size // samples) + -(-rest // samples)


class Memory(NamedTuple):
    """What is written, and the position from which the next call goes on."""

    params: Array  # (P,)
    gradient: Array  # (P + V,) zero between batches
    first: Array  # (P,) velocity, or Adam's mean of gradients
    second: Array  # (P,) Adam's mean of squares
    none: Array  # (widest layer, at least V) zeros, where there is no bias
    counting: NDArray[np.int64]  # (V,) 0, 1, 2, ...
    order: NDArray[np.int64]  # (n,) rows in the order of the epoch, if shuffled
    scalars: Array  # (5,) numbers on their way from float64
    data: Array  # (block, F, S) rows gathered for a block
    activations: Array  # (layers, block, O, S)
    deltas: Array  # (layers, block, O, S)
    scratch: Array  # (block, S, C) deltas of a layer, transposed
    position: NDArray[np.int64]  # (3,) epoch, row and panel of the next block
    totals: NDArray[np.float64]  # (4,) loss and error so far in this epoch, beta1^t, beta2^t
    loss: NDArray[np.float64]  # (epochs,)
    error: NDArray[np.float64]  # (epochs,)

    @property
    def state(self) -> tuple[Array, ...]:
        """All that a later epoch depends on."""
        return self.params, self.gradient, self.first, self.second, self.position, self.totals


def aligned(size: int, dtype: Any) -> Array:
    """Zeros that begin at a multiple of 64 bytes: a vector that crosses cache lines costs two accesses."""
    spare = VECTOR_BYTES // dtype.itemsize
    raw = np.zeros(size + spare, dtype)
    start = -raw.__array_interface__["data"][0] % VECTOR_BYTES // dtype.itemsize
    return raw[start : start + size]


def panel_width(batch_size: int, dtype: Any) -> int:
    """Samples of a panel: two vectors, but one where an odd number of them would leave much of the last one idle."""
    lanes = VECTOR_BYTES // np.dtype(dtype).itemsize
    vectors = -(-batch_size // lanes)
    return lanes if vectors in (1, 3, 5) else 2 * lanes


def make_plan(
    network: Any,
    rows: int,
    batch_size: int,
    optimizer: SGD | Adam | None = None,
    *,
    mean: bool = False,
    shuffled: bool = False,
    seed: int = 0,
) -> Plan:
    """Plan for so many rows; without an optimiser the gradient is kept as it is summed."""
    shape = network.sizes, network.activations, network.loss, network.bias, network.params.dtype
    return _plan(*shape, rows, batch_size, optimizer, mean, shuffled, seed)


@functools.lru_cache(maxsize=256)  # a network that predicts row by row asks for the same one again and again
def _plan(
    sizes: tuple[int, ...],
    activations: tuple[str, ...],
    loss: str,
    bias: bool,
    dtype: Any,
    rows: int,
    batch_size: int,
    optimizer: SGD | Adam | None,
    mean: bool,
    shuffled: bool,
    seed: int,
) -> Plan:
    lanes = VECTOR_BYTES // dtype.itemsize
    width = panel_width(batch_size, dtype)
    return Plan(
        sizes=np.array(sizes, np.int64),
        kinds=np.array([ACTIVATIONS[name].code for name in activations], np.int64),
        layers=len(activations),
        parameters=sum(outputs * (inputs + bias) for inputs, outputs in itertools.pairwise(sizes)),
        loss=LOSSES[loss].code,
        biases=bias,
        optimizer=optimizer.code if optimizer else KEEP_GRADIENT,
        settings=np.array((optimizer.learning_rate, *optimizer.settings) if optimizer else (0, 0, 0, 0), dtype),
        batch_size=batch_size,
        mean=mean,
        shuffled=shuffled,
        seed=seed,
        rows=rows,
        width=width,
        block=min(-(-batch_size // width), BLOCK_VECTORS * lanes // width),
        tiny=batch_size <= lanes and max(sizes) <= TINY_UNITS,
    )


def forward_memory(plan: Plan, dtype: Any) -> tuple[Array, Array, Array]:
    """What a forward pass writes: the rows gathered for a block and the activations; and zeros for missing biases."""
    inputs, *units = plan.sizes.tolist()
    samples, lanes = plan.block * plan.width, VECTOR_BYTES // dtype.itemsize
    gathered, activations = samples * (inputs + units[-1] + 1), samples * sum(units)
    memory = aligned(gathered + activations + max(lanes, inputs, *units), dtype)
    return memory[:gathered], memory[gathered : gathered + activations], memory[gathered + activations :]


def make_memory(plan: Plan, params: Array, epochs: int) -> Memory:
    """Memory to train for so many epochs, with these parameters, which the kernel updates in place."""
    dtype, lanes = params.dtype, VECTOR_BYTES // params.dtype.itemsize
    samples, P, widest = plan.block * plan.width, plan.parameters, max(plan.sizes.tolist())
    data, activations, none = forward_memory(plan, dtype)
    return Memory(
        params=params,
        gradient=aligned(P + lanes, dtype),  # kernels read and rewrite up to a vector beyond the last row
        first=aligned(P, dtype),
        second=aligned(P, dtype),
        none=none,
        counting=np.arange(lanes),
        order=np.empty(plan.rows * plan.shuffled, np.int64),
        scalars=aligned(5, dtype),
        data=data,
        activations=activations,
        deltas=aligned(activations.size, dtype),
        scratch=aligned(samples * -(-widest // lanes) * lanes, dtype),
        position=np.zeros(3, np.int64),
        totals=np.array([0.0, 0.0, 1.0, 1.0]),
        loss=np.zeros(epochs),
        error=np.zeros(epochs),
    )


def rows_of(X: Array, y: Array) -> Array:
    """The rows (n, F) that kernels gather from: x, y and the weight of the row."""
    n, inputs = X.shape
    rows = aligned(n * (inputs + y.shape[1] + 1), X.dtype).reshape(n, -1)
    rows[:, :inputs], rows[:, inputs:-1], rows[:, -1] = X, y, 1
    return rows


def panels_of(rows: Array, plan: Plan) -> Array:
    """The same rows as panels (F, S), one after the other, each batch padded with zeros to whole panels."""
    n, features = rows.shape
    per_batch = -(-plan.batch_size // plan.width) * plan.width
    batch, within = np.divmod(np.arange(n), plan.batch_size)
    slot = batch * per_batch + within
    panels = aligned(-(-(int(slot[-1]) + 1) // plan.width) * plan.width * features, rows.dtype)
    panels = panels.reshape(-1, features, plan.width)
    panels[slot // plan.width, :, slot % plan.width] = rows
    return panels.ravel()
