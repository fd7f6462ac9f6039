"""The twin of the kernels in NumPy: the same names, written as algebra on whole matrices.

Rows are samples: x is (B, I), a layer's output (B, O). `run` and `predict` take and write what the kernels' do, except
that data is always the rows themselves. It is what the kernels are tested against and what runs for backend="numpy".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbp.choices import (
    ADAM,
    BINARY_CROSS_ENTROPY,
    CROSS_ENTROPY,
    LEAK,
    LEAKY_RELU,
    MOMENTUM_SGD,
    PLAIN_SGD,
    RELU,
    SIGMOID,
    SOFTMAX,
    TANH,
    TINY_FLOAT32,
    TINY_FLOAT64,
)

Array = NDArray[Any]
FINISHED, DIVERGED = range(2)
PANELS = False  # `run` takes the rows themselves


# --- matrix product -------------------------------------------------------------------------------------------------


def product(w: Array, x: Array, bias: Array | float = 0) -> Array:
    """X w + bias."""
    return x @ w + bias


# --- activations ----------------------------------------------------------------------------------------------------


def activation(kind: int, z: Array) -> Array:
    """a = f(z)."""
    if kind == SIGMOID:
        e = np.exp(np.where(z < 0, z, -z))
        return np.where(z < 0, e, 1) / (1 + e)
    if kind == TANH:
        return np.tanh(z)
    if kind == RELU:
        return np.where(z < 0, z.dtype.type(0), z)
    if kind == LEAKY_RELU:
        return np.where(z < 0, LEAK * z, z)
    return z


def times_slope(kind: int, delta: Array, a: Array) -> Array:
    """delta * f'(z), the slope written with a = f(z)."""
    if kind == SIGMOID:
        return delta * (a * (1 - a))
    if kind == TANH:
        return delta * (1 - a * a)
    if kind == RELU:
        return np.where(a > 0, delta, 0 * a)
    if kind == LEAKY_RELU:
        return np.where(a > 0, delta, LEAK * delta)
    return delta


def tiny_of(x: Array) -> float:
    """Size below which a delta or a momentum counts as 0, for the type of x."""
    return TINY_FLOAT32 if x.dtype == np.float32 else TINY_FLOAT64


def flush(x: Array) -> Array:
    """0 where |x| is below `tiny_of(x)`."""
    return np.where(np.abs(x) < tiny_of(x), x.dtype.type(0), x)


# --- losses: prediction, delta and loss of each sample ---------------------------------------------------------------


def squared_error(kind: int, z: Array, y: Array) -> tuple[Array, Array, Array]:
    """loss = 1/2 sum_o (p_o - y_o)^2, delta_o = (p_o - y_o) f'(z_o), p = f(z)."""
    p = activation(kind, z)
    return p, times_slope(kind, p - y, p), 0.5 * ((p - y) ** 2).sum(axis=1)


def binary_cross_entropy(z: Array, y: Array) -> tuple[Array, Array, Array]:
    """loss = sum_o max(z, 0) - z y + log(1 + exp(-|z|)), delta_o = p_o - y_o, p = sigmoid(z)."""
    p = activation(SIGMOID, z)
    loss = np.where(z < 0, z.dtype.type(0), z) - z * y + np.log1p(np.exp(np.where(z < 0, z, -z)))
    return p, p - y, loss.sum(axis=1)


def softmax(z: Array) -> Array:
    """p_o = exp(z_o) / sum_o exp(z_o)."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def cross_entropy(z: Array, y: Array) -> tuple[Array, Array, Array]:
    """loss = sum_o y_o (log sum_k exp(z_k) - z_o), delta_o = p_o - y_o, p = softmax(z)."""
    below = z.max(axis=1, keepdims=True) - z
    loss = (y * below).sum(axis=1) + np.log(np.exp(-below).sum(axis=1))
    p = softmax(z)
    return p, p - y, loss


def output(loss: int, kind: int, z: Array, y: Array) -> tuple[Array, Array, Array]:
    """Prediction (B, O), delta (B, O) and loss (B,) from the logits z (B, O)."""
    if loss == CROSS_ENTROPY:
        return cross_entropy(z, y)
    if loss == BINARY_CROSS_ENTROPY:
        return binary_cross_entropy(z, y)
    return squared_error(kind, z, y)


# --- gradients ------------------------------------------------------------------------------------------------------


def weight_gradient(a: Array, delta: Array) -> Array:
    """a^T delta."""
    return a.T @ delta


def bias_gradient(delta: Array) -> Array:
    """Sum of delta over the samples."""
    return delta.sum(axis=0)


# --- forward and backward -------------------------------------------------------------------------------------------


def layers_of(plan: Any, flat: Array) -> list[tuple[Array, Array]]:
    """W (I, O) and b (O,), as views of a flat vector; b is empty where there are no biases."""
    layers, start = [], 0
    for I, O in zip(plan.sizes[:-1], plan.sizes[1:], strict=True):
        end = start + I * O
        layers.append((flat[start:end].reshape(I, O), flat[end : end + O * plan.biases]))
        start = end + O * plan.biases
    return layers


def forward(plan: Any, params: Array, x: Array) -> list[Array]:
    """X and a_l = f_l(a_{l-1} W_l + b_l) for every layer; the last is left as logits."""
    activations = [x]
    layers = layers_of(plan, params)
    for layer, (w, b) in enumerate(layers):
        z = product(w, activations[-1], b if b.size else 0)
        activations.append(activation(plan.kinds[layer], z) if layer + 1 < len(layers) else z)
    return activations


def backward(plan: Any, params: Array, activations: list[Array], delta: Array, gradient: Array) -> None:
    """Gradients of every layer, given the deltas of the last;  adds to gradient (P,)."""
    layers, gradients = layers_of(plan, params), layers_of(plan, gradient)
    for layer in range(len(layers) - 1, -1, -1):
        w_gradient, b_gradient = gradients[layer]
        w_gradient += weight_gradient(activations[layer], delta)
        if b_gradient.size:
            b_gradient += bias_gradient(delta)
        if layer > 0:
            below = product(layers[layer][0].T, delta)
            delta = flush(times_slope(plan.kinds[layer - 1], below, activations[layer]))


# --- optimisers -----------------------------------------------------------------------------------------------------


def plain_sgd(w: Array, g: Array, rate: Any) -> None:
    """W -= rate g."""
    w -= rate * g


def momentum_sgd(w: Array, g: Array, velocity: Array, rate: Any, momentum: Any, nesterov: bool) -> None:
    """Velocity = momentum velocity + g; w -= rate velocity, or rate (g + momentum velocity) with Nesterov."""
    velocity[:] = flush(momentum * velocity + g)
    w -= rate * (g + momentum * velocity if nesterov else velocity)


def adam(
    w: Array, g: Array, first: Array, second: Array, rate: Any, beta1: Any, beta2: Any, epsilon: Any,
    correction1: Any, correction2: Any,
) -> None:  # fmt: skip
    """W -= rate (first / correction1) / (sqrt(second / correction2) + epsilon), correction = 1 - beta^t."""
    first[:] = flush(beta1 * first + (1 - beta1) * g)
    g = np.where(np.abs(g) < np.sqrt(tiny_of(g)), g.dtype.type(0), g)  # its square would be subnormal
    second[:] = flush(beta2 * second + (1 - beta2) * g**2)
    w -= rate * (first / correction1) / (np.sqrt(second / correction2) + epsilon)


def step(plan: Any, memory: Any, scale: float) -> None:
    """Update the weights with the gradient of a batch, times scale, and clear it."""
    cast = memory.params.dtype.type
    w, g, settings = memory.params, cast(scale) * memory.gradient[: plan.parameters], plan.settings
    if plan.optimizer == PLAIN_SGD:
        plain_sgd(w, g, settings[0])
    elif plan.optimizer == MOMENTUM_SGD:
        momentum_sgd(w, g, memory.first, settings[0], settings[1], bool(settings[2]))
    elif plan.optimizer == ADAM:
        memory.totals[2:] *= settings[1:3]
        correction1, correction2 = cast(1 - memory.totals[2]), cast(1 - memory.totals[3])
        rate, beta1, beta2, epsilon = settings
        adam(w, g, memory.first, memory.second, rate, beta1, beta2, epsilon, correction1, correction2)
    if plan.optimizer in (PLAIN_SGD, MOMENTUM_SGD, ADAM):
        memory.gradient[:] = 0


# --- the loop -------------------------------------------------------------------------------------------------------


def random_bits(counter: Array) -> Array:
    """64 random bits from each counter: splitmix64."""
    z = counter * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def shuffle(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of the rows in an epoch: Fisher and Yates, from n - 1 down."""
    key = random_bits(random_bits(np.array([seed], np.uint64)) + np.uint64(epoch))
    uniform = (random_bits(key + np.arange(n, dtype=np.uint64)) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    other = (uniform * np.arange(1, n + 1)).astype(np.int64)
    order = list(range(n))
    for i in range(n - 1, 0, -1):
        j = int(other[i])
        order[i], order[j] = order[j], order[i]
    return np.array(order)


def finite(w: Array) -> bool:
    """Whether all numbers of w are finite."""
    return bool(np.isfinite(w).all())


def run(plan: Any, memory: Any, data: Array, blocks: int) -> int:
    """Train for this many blocks, from memory.position on;  returns FINISHED, or DIVERGED at the end of an epoch.

    data (n, F): x, y and the weight of each row.
    """
    I, O = plan.sizes[0], plan.sizes[-1]
    rows = data.reshape(plan.rows, I + O + 1)
    position, totals = memory.position, memory.totals
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        for _ in range(blocks):
            epoch, row = int(position[0]), int(position[1])
            begin = row // plan.batch_size * plan.batch_size  # of the batch
            end = min(begin + plan.batch_size, plan.rows)
            last = min(row + plan.block * plan.width, end)
            if plan.shuffled and row == 0:
                memory.order[:] = shuffle(plan.rows, plan.seed, epoch)
            block = rows[memory.order[row:last]] if plan.shuffled else rows[row:last]
            x, y, weight = block[:, :I], block[:, I : I + O], block[:, I + O :]
            activations = forward(plan, memory.params, x)
            p, delta, loss = output(plan.loss, plan.kinds[-1], activations[-1], y)
            backward(plan, memory.params, activations, flush(delta * weight), memory.gradient)
            totals[0] += (loss * weight[:, 0]).sum(dtype=np.float64)
            totals[1] += np.abs((p - y) * weight).sum(dtype=np.float64)
            if last == end:
                step(plan, memory, 1 / (end - begin) if plan.mean else 1.0)
            position[1] = last
            if last == plan.rows:
                memory.loss[epoch], memory.error[epoch] = totals[0] / plan.rows, totals[1] / (plan.rows * O)
                healthy = np.isfinite(totals[0]) and finite(memory.params)
                position[:], totals[:2] = (epoch + 1, 0, 0), 0
                if not healthy:
                    return DIVERGED
    return FINISHED


def predict(plan: Any, params: Array, data: Array, order: NDArray[np.int64], *memory: Array) -> int:
    """Predictions for the data (n, I) in the given order (n,);  writes the last array, predictions (n, O)."""
    *_, predictions = memory
    z, kind = forward(plan, params, data[order])[-1], plan.kinds[-1]
    predictions[:] = softmax(z) if kind == SOFTMAX else activation(kind, z)
    return FINISHED
