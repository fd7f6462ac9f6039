"""The libraries, each written as its best users would write the case, all with the same arithmetic.

A row of LIBRARIES makes `train(epochs)`, a row of PREDICTORS `predict()`. What a library needs once, such as its own
arrays, is made outside of these; what it needs once a run, such as a copy of the first weights, inside. Everything is
imported when it is first used: nobody need have all of them.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cases import OPTIMIZERS, TORCH_COMPILED, XOR, Case, data

Array = NDArray[Any]
Train = Callable[[int], float]
Predict = Callable[[], Any]


def network(case: Case) -> Any:
    """Return the network that every library begins with."""
    import fastbp

    return fastbp.Network(
        case.sizes, activation=case.activation, output=case.output, bias=case.bias, init=case.init, seed=case.seed,
        dtype=case.dtype,
    )  # fmt: skip


# --- fastbp and NumPy -----------------------------------------------------------------------------------------------


def with_backend(backend: str, case: Case, threads: int | str = "auto") -> Train:
    """Train by the public function, with its checks and by default as many threads as it thinks pay.

    The reference walks whole batches, one matrix product for each layer and direction: no program in NumPy alone has
    fewer calls to make for them, and large ones run on as many threads as its BLAS likes. So it stands for NumPy here.
    """
    import fastbp

    X, y = data(case)
    first = network(case)
    settings = OPTIMIZERS[case.optimizer] | {"learning_rate": case.learning_rate}
    optimizer = fastbp.Adam(**settings) if case.optimizer == "adam" else fastbp.SGD(**settings)

    def train(epochs: int) -> float:
        result = fastbp.train(
            X, y, network=first.copy(), optimizer=optimizer, epochs=epochs, batch_size=case.batch_size, shuffle=False,
            reduction=case.reduction, backend=backend, threads=threads,
        )  # fmt: skip
        return float(result.loss[-1])

    return train


def notebook_trainer(case: Case) -> Train:
    """Train XOR by the loop of the notebook, as it is written there: NumPy for these three layers and no others."""
    if case.name != XOR.name:
        raise NotImplementedError("the notebook trains XOR alone")
    X, y = data(case)
    first = network(case).weights

    def sigmoid(z: Array) -> Array:
        return 1 / (1 + np.exp(-z))

    def slope(a: Array) -> Array:
        return a * (1 - a)

    def train(epochs: int) -> float:
        into_hidden, into_output = (weights.copy() for weights in first)
        for _ in range(epochs):
            hidden = sigmoid(np.dot(X, into_hidden))
            prediction = sigmoid(np.dot(hidden, into_output))
            error = y - prediction
            output_delta = error * slope(prediction)
            hidden_delta = np.dot(output_delta, into_output.T) * slope(hidden)
            into_output += np.dot(hidden.T, output_delta) * case.learning_rate
            into_hidden += np.dot(X.T, hidden_delta) * case.learning_rate
        return float(0.5 * (error**2).sum() / case.rows)

    return train


def fastbp_predictor(case: Case, threads: int | str = "auto") -> Predict:
    """Predict by the public method, with its checks and by default as many threads as it thinks pay."""
    X, _ = data(case)
    return functools.partial(network(case).predict, X, threads=threads)


def numpy_predictor(case: Case) -> Predict:
    """Predict in NumPy, with the sigmoid of the reference, which cannot overflow."""
    from fastbp.choices import ACTIVATIONS
    from fastbp.reference import activation

    X, _ = data(case)
    layers = network(case)
    kinds = [ACTIVATIONS[name].code for name in layers.activations]

    def predict() -> Array:
        a = X
        for weights, biases, kind in zip(layers.weights, layers.biases, kinds, strict=True):
            z = a @ weights
            z += biases
            a = activation(kind, z)
        return a

    return predict


# --- scikit-learn ---------------------------------------------------------------------------------------------------

SKLEARN_NAMES = {"sigmoid": "logistic", "tanh": "tanh", "relu": "relu", "identity": "identity"}


def sklearn_targets(y: Array) -> Array:
    """Return targets (n, outputs) as scikit-learn wants them, which warns of a single column."""
    return y.ravel() if y.shape[1] == 1 else y


def sklearn_model(case: Case) -> Any:
    """Return a regressor with the weights of the case, in which nothing but the given epochs ends training."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPRegressor

    if case.optimizer == "adam":
        raise NotImplementedError("scikit-learn's Adam adds epsilon before the bias is corrected")
    if not case.bias or case.output != "identity" or case.reduction != "mean":
        raise NotImplementedError("scikit-learn's regressor has biases, a linear output and the mean gradient")
    X, y = data(case)
    settings = OPTIMIZERS[case.optimizer]
    model = MLPRegressor(
        hidden_layer_sizes=case.sizes[1:-1], activation=SKLEARN_NAMES[case.activation], solver="sgd", alpha=0,
        batch_size=min(case.batch_size, case.rows), learning_rate_init=case.learning_rate,
        momentum=settings.get("momentum", 0.0), nesterovs_momentum=settings.get("nesterov", False), shuffle=False,
        n_iter_no_change=np.inf, warm_start=True, max_iter=1, random_state=0,
    )  # fmt: skip
    with warnings.catch_warnings(category=ConvergenceWarning, action="ignore"):
        model.fit(X, sklearn_targets(y))  # for the attributes beside the weights
    first = network(case)
    model.coefs_, model.intercepts_ = first.weights, first.biases
    return model


def sklearn_trainer(case: Case) -> Train:
    """Train a regressor that goes on from the weights it is given."""
    from sklearn.exceptions import ConvergenceWarning

    model = sklearn_model(case)
    first, first_biases = model.coefs_, model.intercepts_
    X, y = data(case)
    outputs = case.sizes[-1]
    y = sklearn_targets(y)

    def train(epochs: int) -> float:
        model.coefs_, model.intercepts_ = [w.copy() for w in first], [b.copy() for b in first_biases]
        model.loss_curve_, model.max_iter = [], epochs
        with warnings.catch_warnings(category=ConvergenceWarning, action="ignore"):
            model.fit(X, y)
        return outputs * float(model.loss_curve_[-1])  # its loss is the mean over outputs, its gradient of the sum

    return train


def sklearn_predictor(case: Case) -> Predict:
    """Predict by the public method."""
    return functools.partial(sklearn_model(case).predict, data(case)[0])


# --- PyTorch --------------------------------------------------------------------------------------------------------


@functools.cache
def torch_threads() -> int:
    """Return how many threads PyTorch chose, before anybody else did."""
    import torch

    return torch.get_num_threads()


def torch_layers(case: Case) -> tuple[list[Any], Callable[[list[Any], Any], Any]]:
    """Return the first parameters and `forward(parameters, x)`.

    Plain tensors and `addmm` instead of `Sequential` and `Linear`, and gradients asked for instead of left in the
    tensors: at 1x8 that is twice as fast, at 1024x512 a tenth, measured with one thread.
    """
    import torch

    functions = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu, "identity": lambda z: z}
    first = network(case)
    activations = [functions[name] for name in first.activations]
    count = len(activations)
    parameters = [torch.from_numpy(w) for w in first.weights] + [torch.from_numpy(b) for b in first.biases if b.size]

    def forward(parameters: list[Any], x: Any) -> Any:
        for layer, f in enumerate(activations):
            w = parameters[layer]
            x = f(torch.addmm(parameters[count + layer], x, w) if case.bias else x @ w)
        return x

    return parameters, forward


def torch_trainer(threads: Callable[[], int], case: Case) -> Train:
    """Train by automatic differentiation, with the optimisers that update all tensors in one call."""
    import torch

    torch_threads()
    X, y = map(torch.from_numpy, data(case))
    batches = list(zip(X.split(case.batch_size), y.split(case.batch_size), strict=True))
    first, forward = torch_layers(case)

    def make_optimizer(parameters: list[Any]) -> Any:
        settings = OPTIMIZERS[case.optimizer]
        if case.optimizer == "adam":
            betas = settings["beta1"], settings["beta2"]
            return torch.optim.Adam(parameters, lr=case.learning_rate, betas=betas, eps=settings["epsilon"], fused=True)
        return torch.optim.SGD(parameters, lr=case.learning_rate, fused=True, **settings)

    def train(epochs: int) -> float:
        torch.set_num_threads(threads())
        parameters = [w.clone().requires_grad_() for w in first]
        optimizer = None if case.optimizer == "sgd" else make_optimizer(parameters)
        for _ in range(epochs):
            losses = []
            for x, target in batches:
                loss = 0.5 * torch.nn.functional.mse_loss(forward(parameters, x), target, reduction="sum")
                mean = loss / len(x) if case.reduction == "mean" else loss
                gradients = torch.autograd.grad(mean, parameters)
                if optimizer is None:
                    with torch.no_grad():
                        torch._foreach_add_(parameters, gradients, alpha=-case.learning_rate)
                else:
                    for w, gradient in zip(parameters, gradients, strict=True):
                        w.grad = gradient
                    optimizer.step()
                losses.append(loss.detach())
        return float(torch.stack(losses).sum()) / case.rows

    return train


def torch_compiled_trainer(threads: Callable[[], int], case: Case) -> Train:
    """Train by one compiled call a batch, forward, backward and update, made for this shape and number of threads."""
    import torch

    if case.name not in TORCH_COMPILED:
        raise NotImplementedError("compiling PyTorch for every case would take a quarter of an hour")
    torch_threads()
    X, y = map(torch.from_numpy, data(case))
    batches = list(zip(X.split(case.batch_size), y.split(case.batch_size), strict=True))
    first, forward = torch_layers(case)
    rate = case.learning_rate / (case.batch_size if case.reduction == "mean" else 1)

    def objective(parameters: list[Any], x: Any, target: Any) -> Any:
        return 0.5 * torch.nn.functional.mse_loss(forward(parameters, x), target, reduction="sum")

    def step(parameters: list[Any], x: Any, target: Any) -> Any:
        gradients, loss = torch.func.grad_and_value(objective)(parameters, x, target)
        torch._foreach_add_(parameters, gradients, alpha=-rate)
        return loss

    compiled = torch.compile(step, dynamic=False, fullgraph=True)

    def train(epochs: int) -> float:
        torch.set_num_threads(threads())
        parameters = [w.clone() for w in first]
        for _ in range(epochs):
            losses = [compiled(parameters, x, target) for x, target in batches]
        return float(torch.stack(losses).sum()) / case.rows

    # PyTorch makes no more than eight versions of a function, and the steps of all cases are versions of one.
    torch.compiler.reset()
    try:
        with warnings.catch_warnings(category=DeprecationWarning, action="ignore"):  # of what PyTorch itself imports
            train(1)
    except torch._dynamo.exc.BackendCompilerFailed as reason:
        raise NotImplementedError(f"PyTorch cannot compile here: {reason}") from None
    return train


def torch_predictor(threads: Callable[[], int], case: Case) -> Predict:
    """Predict from a tensor to a tensor."""
    import torch

    torch_threads()
    X = torch.from_numpy(data(case)[0])
    parameters, forward = torch_layers(case)

    def predict() -> Any:
        torch.set_num_threads(threads())
        with torch.inference_mode():
            return forward(parameters, X)

    return predict


# --- JAX ------------------------------------------------------------------------------------------------------------


def jax_layers(case: Case) -> tuple[Any, Callable[[Any, Any], Any]]:
    """Return the first parameters and `forward(parameters, x)`."""
    import jax

    jax.config.update("jax_enable_x64", True)  # arrays keep the type they are given
    functions = {"sigmoid": jax.nn.sigmoid, "tanh": jax.numpy.tanh, "relu": jax.nn.relu, "identity": lambda z: z}
    first = network(case)
    activations = [functions[name] for name in first.activations]
    parameters = [
        (jax.numpy.array(w), *([jax.numpy.array(b)] if b.size else []))
        for w, b in zip(first.weights, first.biases, strict=True)
    ]

    def forward(parameters: Any, x: Any) -> Any:
        for layer, f in zip(parameters, activations, strict=True):
            z = x @ layer[0]
            x = f(z + layer[1] if len(layer) > 1 else z)
        return x

    return parameters, forward


def jax_step(case: Case, parameters: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
    """Update the parameters and the state of the optimiser: two running means, and beta1^t and beta2^t."""
    import jax
    import jax.numpy as jnp

    rate, settings = case.learning_rate, OPTIMIZERS[case.optimizer]
    if case.optimizer == "sgd":
        return jax.tree.map(lambda w, g: w - rate * g, parameters, gradient), state
    first, second, powers = state
    if case.optimizer == "adam":
        beta1, beta2, epsilon = settings["beta1"], settings["beta2"], settings["epsilon"]
        first = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, first, gradient)
        second = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g**2, second, gradient)
        powers = powers * jnp.array([beta1, beta2])
        correction1, correction2 = (1 - powers).astype(case.dtype)
        parameters = jax.tree.map(
            lambda w, m, v: w - rate * (m / correction1) / (jnp.sqrt(v / correction2) + epsilon),
            parameters, first, second,
        )  # fmt: skip
    else:
        momentum = settings["momentum"]
        first = jax.tree.map(lambda v, g: momentum * v + g, first, gradient)
        step = first
        if settings.get("nesterov"):
            step = jax.tree.map(lambda v, g: g + momentum * v, first, gradient)
        parameters = jax.tree.map(lambda w, s: w - rate * s, parameters, step)
    return parameters, (first, second, powers)


def jax_trainer(case: Case) -> Train:
    """Train in one compiled call: a loop over epochs around a scan over batches, weights updated in place."""
    import jax
    import jax.numpy as jnp

    first, forward = jax_layers(case)
    X, y = (jnp.asarray(a.reshape(-1, case.batch_size, a.shape[1])) for a in data(case))
    scale = 1 / case.batch_size if case.reduction == "mean" else 1.0

    def objective(parameters: Any, x: Any, target: Any) -> Any:
        return 0.5 * scale * jnp.sum((forward(parameters, x) - target) ** 2)

    def batch(carry: Any, xy: Any) -> Any:
        parameters, state = carry
        loss, gradient = jax.value_and_grad(objective)(parameters, *xy)
        return jax_step(case, parameters, state, gradient), loss

    @functools.partial(jax.jit, donate_argnums=0)
    def run(carry: Any, epochs: Any, X: Any, y: Any) -> Any:
        def epoch(_: Any, carry_and_loss: Any) -> Any:
            carry, losses = jax.lax.scan(batch, carry_and_loss[0], (X, y))
            return carry, losses.sum() / scale / case.rows

        return jax.lax.fori_loop(0, epochs, epoch, (carry, jnp.zeros((), X.dtype)))

    def train(epochs: int) -> float:
        parameters = jax.tree.map(jnp.array, first)  # `run` writes over it
        zeros = (jax.tree.map(jnp.zeros_like, first) for _ in range(2))
        state = () if case.optimizer == "sgd" else (*zeros, jnp.ones(2))
        return float(run((parameters, state), epochs, X, y)[1])

    return train


def jax_predictor(case: Case) -> Predict:
    """Predict in one compiled call, from a JAX array to a JAX array."""
    import jax

    parameters, forward = jax_layers(case)
    X = jax.numpy.asarray(data(case)[0])
    compiled = jax.jit(forward)
    return lambda: compiled(parameters, X).block_until_ready()


LIBRARIES: dict[str, Callable[[Case], Train]] = {
    "fastbp": functools.partial(with_backend, "numba"),
    "numpy": functools.partial(with_backend, "numpy"),
    "notebook": notebook_trainer,
    "scikit-learn": sklearn_trainer,
    "torch, 1 thread": functools.partial(torch_trainer, lambda: 1),
    "torch": functools.partial(torch_trainer, torch_threads),
    "torch compiled, 1 thread": functools.partial(torch_compiled_trainer, lambda: 1),
    "torch compiled": functools.partial(torch_compiled_trainer, torch_threads),
    "jax": jax_trainer,
}

PREDICTORS: dict[str, Callable[[Case], Predict]] = {
    "fastbp": fastbp_predictor,
    "numpy": numpy_predictor,
    "scikit-learn": sklearn_predictor,
    "torch, 1 thread": functools.partial(torch_predictor, lambda: 1),
    "torch": functools.partial(torch_predictor, torch_threads),
    "jax": jax_predictor,
}


def trainer(case: Case, library: str) -> Train:
    """Prepare a case in a library, one of LIBRARIES.

    Returns
    -------
    callable
        Trains so many epochs from the weights of the case, the same at each call, and returns the mean loss of a row
        in the last epoch. Its first call may compile.

    Raises
    ------
    ImportError
        If the library is not installed.
    NotImplementedError
        If the library cannot do the same arithmetic; the message says why.
    """
    return LIBRARIES[library](case)


def predictor(case: Case, library: str) -> Callable[[int], None]:
    """Prepare a prediction in a library, one of PREDICTORS: a function that makes it so many times.

    Raises
    ------
    ImportError
        If the library is not installed.
    """
    return repeated(PREDICTORS[library](case))


def repeated(predict: Predict) -> Callable[[int], None]:
    """Make a function that predicts so many times."""

    def repeat(times: int) -> None:
        for _ in range(times):
            predict()

    return repeat
