"""Three pictures: the loss over the epochs, of one network or of many; and what one of two inputs makes of the plane.

Each is drawn into the axes given, or into those of a new figure of pyplot, and returns the axes; to show or save them
is up to the caller. Colours are told apart by colour-blind eyes, and in grey by lightness, line style and marker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastbp import checks
from fastbp.many import ManyResult
from fastbp.network import Network
from fastbp.train import TrainResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[Any]

# Okabe and Ito, "Color universal design", 2008, in an order in which neighbours differ in lightness; without the yellow
# until it is needed, as it is hardly seen on white.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#333333"
POINTS: dict[str, Any] = {"s": 26, "edgecolors": "white", "linewidths": 0.6, "zorder": 3}

_POINTS = 200  # of a curve of many: more are not seen, and a file holds them all
_CURVES = 9  # of single networks
_CELLS = 200  # of the grid, along each side: borders look smooth, and predictions take some ms
_MARGIN = 0.08  # of the plane beyond the points, in spans of them


def loss_curve(result: TrainResult, ax: Axes | None = None) -> Axes:
    """Draw the loss of each epoch, on a logarithmic scale if all losses are above 0, and mark the best epoch.

    Parameters
    ----------
    result : TrainResult
        What `fastbp.train` returned, of at least one epoch. If it has a validation loss, that is drawn beside the loss.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default the axes of a new figure of pyplot.

    Returns
    -------
    matplotlib.axes.Axes
        Where it was drawn.

    Raises
    ------
    ParameterError
        If there is no epoch.
    ParameterTypeError
        If `result` is not a TrainResult or `ax` no axes of matplotlib.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> from fastbp import train
    >>> from matplotlib.figure import Figure
    >>> result = train([[0.0], [1.0]], [0.0, 1.0], epochs=100, seed=0, backend="numpy")
    >>> axes = loss_curve(result, ax=Figure().subplots())
    >>> axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()
    ('epoch', 'loss', 'log')
    """
    checks.instance("result", result, TrainResult)
    checks.count("len(result.loss)", len(result.loss))
    ax = _axes("loss_curve", ax)
    epochs = np.arange(1, len(result.loss) + 1)
    curves = {"training": result.loss}
    if result.validation_loss is not None:
        curves["validation"] = result.validation_loss
    marker = "." if len(epochs) == 1 else ""  # a line of one point is not seen
    for (label, losses), colour, style in zip(curves.items(), COLOURS, ("-", "--"), strict=False):
        ax.plot(epochs, losses, style, marker=marker, color=colour, lw=1.8, label=label)
    losses = [*curves.values()][-1]
    best = result.best_epoch or int(losses.argmin()) + 1
    ax.axvline(best, color=INK, lw=0.8, ls=":")
    ax.plot([best], [losses[best - 1]], "o", ms=7, mfc="white", mec=INK, mew=1.5, label=f"best epoch: {best:,}")
    lowest, highest = min(map(np.min, curves.values())), max(map(np.max, curves.values()))
    _finish_losses(ax, lowest, highest)
    return ax


def loss_spread(result: ManyResult, ax: Axes | None = None) -> Axes:
    """Draw how the losses of many networks spread in each epoch: bands of half and nine tenths of them, and some alone.

    A network that has stopped counts with its last loss. The single ones are those whose last losses are the least, the
    most, and seven between at equal shares. The scale is logarithmic if all losses are above 0.

    Parameters
    ----------
    result : ManyResult
        What `fastbp.train_many` returned, of at least one epoch.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default the axes of a new figure of pyplot.

    Returns
    -------
    matplotlib.axes.Axes
        Where it was drawn.

    Raises
    ------
    ParameterError
        If there is no epoch.
    ParameterTypeError
        If `result` is not a ManyResult or `ax` no axes of matplotlib.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> from fastbp import train_many
    >>> from matplotlib.figure import Figure
    >>> result = train_many([[0.0], [1.0]], [0.0, 1.0], 20, epochs=50, seed=0)
    >>> axes = loss_spread(result, ax=Figure().subplots())
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['90 % of the networks', '50 %', 'median', 'single networks']
    """
    checks.instance("result", result, ManyResult)
    checks.count("len(result.loss)", len(result.loss))
    ax = _axes("loss_spread", ax)

    trained = result.epochs > 0
    last = result.epochs[trained] - 1
    epochs = np.unique(np.linspace(0, len(result.loss) - 1, _POINTS).round().astype(int))
    losses = result.loss[:, trained][np.minimum(epochs[:, None], last), np.arange(len(last))]
    marker = "." if len(epochs) == 1 else ""
    for share, alpha, label in ((0.9, 0.2, "90 % of the networks"), (0.5, 0.4, "50 %")):
        low, high = np.quantile(losses, [0.5 - share / 2, 0.5 + share / 2], axis=1)
        ax.fill_between(epochs + 1, low, high, color=COLOURS[0], alpha=alpha, lw=0, label=label)
    ax.plot(epochs + 1, np.median(losses, axis=1), marker=marker, color=COLOURS[0], lw=1.8, label="median")
    places = np.unique(np.linspace(0, len(last) - 1, _CURVES).round().astype(int))
    for place, network in enumerate(losses[-1].argsort(kind="stable")[places]):
        label = "_" if place else "single networks"
        ax.plot(epochs + 1, losses[:, network], color=INK, lw=0.7, ls="--", marker=marker, label=label)
    _finish_losses(ax, losses.min(), losses.max())
    return ax


def decision_boundary(network: Network, X: ArrayLike, y: ArrayLike, ax: Axes | None = None) -> Axes:
    """Draw what a network of two inputs predicts for the plane around the points, and the points on top of it.

    With the output "softmax" the plane has the colour of the most probable class, with one output "sigmoid" that of
    class 1 where the network predicts more than 0.5, else of class 0. With one output of another activation, contours
    show its value; points have the colour of their target on the same scale.

    Parameters
    ----------
    network : Network
        With two inputs, and one output or "softmax".
    X : array_like of shape (n, 2)
        Points; finite numbers. Never written to.
    y : array_like of shape (n,) or (n, outputs)
        Their targets, as `fastbp.train` takes them; 0 and 1 with the output "sigmoid". Never written to.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default the axes of a new figure of pyplot.

    Returns
    -------
    matplotlib.axes.Axes
        Where it was drawn.

    Raises
    ------
    ParameterError
        If the network has not two inputs, or several outputs other than "softmax".
    ParameterTypeError
        If an argument has the wrong type.
    DataError
        If X or y has the wrong shape, values that are not finite, or labels out of range.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> network = Network((2, 3, 2), loss="cross_entropy", seed=0)
    >>> axes = decision_boundary(network, [[0.0, 0.0], [1.0, 1.0]], [0, 1], ax=Figure().subplots())
    >>> [text.get_text() for text in axes.get_legend().get_texts()]
    ['class 0', 'class 1']
    """
    checks.instance("network", network, Network)
    inputs, outputs, output = network.sizes[0], network.sizes[-1], network.activations[-1]
    if inputs != 2:
        raise checks.ParameterError(f"must have 2 inputs, one for each axis, got {inputs}", "network")
    if outputs != 1 and output != "softmax":
        raise checks.ParameterError(
            f"must have one output or the output 'softmax', got {outputs} {output!r}", "network"
        )
    X = checks.features(X, network.params.dtype, inputs)
    y = checks.targets(y, network.loss, len(X), outputs, network.params.dtype)
    if output == "sigmoid" and not ((y == 0) | (y == 1)).all():
        raise checks.DataError("must be 0 or 1 where the output of the network is 'sigmoid'", "y")
    low, high = X.min(axis=0), X.max(axis=0)
    edge = np.where(high > low, _MARGIN * (high - low), 1)
    sides = np.linspace(low - edge, high + edge, _CELLS, dtype=X.dtype)
    across, up = np.meshgrid(*sides.T)
    predictions = network.predict(np.column_stack([across.ravel(), up.ravel()])).reshape(_CELLS, _CELLS, outputs)
    ax = _axes("decision_boundary", ax)

    if output == "softmax":
        _classes(ax, across, up, predictions, X, y.argmax(axis=1))
    elif output == "sigmoid":
        _classes(ax, across, up, np.concatenate([1 - predictions, predictions], axis=2), X, y[:, 0])
    else:
        _values(ax, across, up, predictions[:, :, 0], X, y[:, 0])
    ax.set(xlim=across[0, [0, -1]], ylim=up[[0, -1], 0], xlabel="first input", ylabel="second input")
    return ax


def _axes(function: str, ax: Any) -> Axes:
    """Return the axes given, or those of a new figure; only that touches pyplot."""
    try:
        from matplotlib.axes import Axes
    except ImportError as error:
        raise ImportError(f'{function} needs matplotlib: pip install "fastbp[plot]"') from error
    if ax is None:
        from matplotlib import pyplot

        return pyplot.subplots(layout="constrained")[1]
    checks.instance("ax", ax, Axes)
    return ax


def _finish_losses(ax: Axes, lowest: float, highest: float) -> None:
    """Give axes of losses their scales, names and legend."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    if lowest > 0:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if highest < 100 * lowest else (1,)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.set_xlabel("epoch")
    ax.set_ylabel("loss")
    ax.grid(alpha=0.25)
    ax.legend()


def _classes(ax: Axes, across: Array, up: Array, probabilities: Array, X: Array, labels: Array) -> None:
    """Fill the region of each class, and draw its points."""
    classes = probabilities.shape[2]
    winner = probabilities.argmax(axis=2)
    for label in range(classes):
        colour, marker = _colour(label, classes), MARKERS[label % len(MARKERS)]
        # How far a class is ahead of the best other one: contours of the winner's number would draw a strip of class 1
        # between 0 and 2. Where classes are equal the first wins.
        others = np.delete(probabilities, label, axis=2).max(axis=2, initial=0)
        ahead = probabilities[:, :, label] - others
        ahead = np.where(winner == label, np.maximum(ahead, 1e-9), np.minimum(ahead, -1e-9))
        if (winner == label).any():
            ax.contourf(across, up, ahead, levels=[0, 2], colors=[colour], alpha=0.3)
            ax.contour(across, up, ahead, levels=[0], colors=[INK], linewidths=1)
        points = X[labels == label]
        ax.scatter(points[:, 0], points[:, 1], color=colour, marker=marker, label=f"class {label}", **POINTS)
    ax.legend()


def _values(ax: Axes, across: Array, up: Array, values: Array, X: Array, targets: Array) -> None:
    """Draw contours of the output, and the points on the same scale of colours."""
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    lowest, highest = min(values.min(), targets.min()), max(values.max(), targets.max())
    levels = MaxNLocator(12).tick_values(lowest, highest)
    colours: dict[str, Any] = {"cmap": "cividis", "norm": Normalize(levels[0], levels[-1])}
    filled = ax.contourf(across, up, values, levels=levels, **colours)
    ax.scatter(X[:, 0], X[:, 1], c=targets, **colours, **POINTS)
    ax.figure.colorbar(filled, ax=ax, label="output")


def _colour(label: int, classes: int) -> Any:
    """Return the colour of a class: one of the few that everybody can tell apart, or of a scale if classes are many."""
    if classes <= len(COLOURS):
        return COLOURS[label]
    from matplotlib import colormaps

    return colormaps["viridis"](label / (classes - 1))
