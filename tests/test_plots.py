"""What the pictures show, read back from matplotlib; and that nothing else is touched."""

import sys
from functools import partial

import numpy as np
import pytest
from helpers import output_of

from benchmarks import example
from fastbp import reference
from fastbp.checks import DataError, ParameterError, ParameterTypeError
from fastbp.many import ManyResult
from fastbp.network import Network
from fastbp.plots import COLOURS, MARKERS, decision_boundary, loss_curve, loss_spread
from fastbp.train import train

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402
from matplotlib.colors import to_hex, to_rgb  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

train_numpy = partial(train, backend="numpy", seed=0)


@pytest.fixture(autouse=True)
def nothing_global_changes():
    """No test leaves a figure of pyplot, a setting of matplotlib or the global random numbers of NumPy changed."""
    settings, random = dict(matplotlib.rcParams), np.random.get_state()[1].tobytes()  # noqa: NPY002

    yield

    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == settings
    assert np.random.get_state()[1].tobytes() == random  # noqa: NPY002


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture(scope="module")
def result():
    return train_numpy([[0.0], [1.0], [2.0]], [0.0, 1.0, 3.0], epochs=50)


@pytest.fixture
def by_reference(monkeypatch):
    """Predictions by NumPy, where float32 would otherwise have to be compiled for a few rows."""
    monkeypatch.setattr("fastbp.network.engine", lambda backend: reference)


def labels_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# --- loss_curve -----------------------------------------------------------------------------------------------------


def test_curve_is_the_loss_of_each_epoch(result, ax):
    loss_curve(result, ax)
    line = ax.get_lines()[0]

    expected = np.arange(1, 51), result.loss
    actual = line.get_data()

    np.testing.assert_array_equal(actual, expected)
    assert line.get_label() == "training"


def test_axes_are_named(result, ax):
    loss_curve(result, ax)

    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "loss")
    assert labels_of(ax) == ["training", "best epoch: 50"]


@pytest.mark.parametrize(("least", "expected"), [(1e-300, "log"), (0.0, "linear"), (-1.0, "linear")])
def test_scale_is_logarithmic_if_all_losses_are_positive(least, expected, result, ax):
    loss = result.loss.copy()
    loss[7] = least
    loss_curve(result._replace(loss=loss), ax)

    assert ax.get_yscale() == expected


@pytest.mark.parametrize("losses", [[0.9, 0.8, 0.79], [30, 0.02], [1e-9, 1e3], [1.0], [2.0, 2.0]], ids=str)
def test_ticks_are_plain_numbers(losses, result, ax):
    loss_curve(result._replace(loss=np.array(losses)), ax)
    ax.figure.draw_without_rendering()
    low, high = ax.get_ylim()
    texts = [text.get_text().replace("\N{MINUS SIGN}", "-") for text in ax.get_yticklabels()]
    shown = [float(text) for text in texts if text and low <= float(text) <= high]

    assert len(shown) >= 2


@pytest.mark.parametrize(("epochs", "expected"), [(1, ["1"]), (3, ["1", "2", "3"]), (20_000, ["0", "5,000", "10,000"])])
def test_epochs_are_whole_numbers_with_thousands_set_apart(epochs, expected, result, ax):
    loss_curve(result._replace(loss=np.linspace(2, 1, epochs)), ax)
    ax.figure.draw_without_rendering()
    low, high = ax.get_xlim()
    actual = [text.get_text() for text in ax.get_xticklabels() if low <= text.get_position()[0] <= high]

    assert actual[: len(expected)] == expected


def test_single_epoch_is_seen(result, ax):
    loss_curve(result._replace(loss=np.ones(1)), ax)

    assert ax.get_lines()[0].get_marker() == "."


def test_best_epoch_is_marked_with_thousands_set_apart(result, ax):
    loss = np.ones(3000)
    loss[1233] = 0.5
    loss_curve(result._replace(loss=loss), ax)
    *_, point = ax.get_lines()

    assert np.ravel(point.get_data()).tolist() == [1234, 0.5]
    assert point.get_label() == "best epoch: 1,234"


@pytest.fixture
def validated(result):
    """A result with a validation loss, best in epoch 3 by its score, which neither of the losses shows."""
    losses = {"loss": np.array([2.0, 1.0, 0.5, 0.2]), "validation_loss": np.array([3.0, 1.0, 2.0, 1.5])}
    return result._replace(**losses, best_epoch=3)


def test_validation_loss_is_drawn_beside_the_loss(validated, ax):
    loss_curve(validated, ax)
    training, validation, _, point = ax.get_lines()

    assert training.get_ydata().tolist() == [2, 1, 0.5, 0.2]
    assert np.array(validation.get_data()).tolist() == [[1, 2, 3, 4], [3, 1, 2, 1.5]]
    assert validation.get_linestyle() != training.get_linestyle()
    assert validation.get_color() != training.get_color()
    assert np.ravel(point.get_data()).tolist() == [3, 2]
    assert labels_of(ax) == ["training", "validation", "best epoch: 3"]


def test_validation_loss_of_0_makes_the_scale_linear(validated, ax):
    loss_curve(validated._replace(validation_loss=np.array([3.0, 2.0, 0.0, 1.5])), ax)

    assert ax.get_yscale() == "linear"


def test_best_epoch_is_that_of_the_result(ax):
    X, y = [[0.0], [1.0], [2.0]], [0.0, 1.0, 3.0]
    validated = train_numpy(X, y, epochs=30, learning_rate=0.3, validation=([[0.5], [3.0]], [1.0, 2.0]), patience=5)
    loss_curve(validated, ax)
    *_, point = ax.get_lines()

    expected = [validated.best_epoch, validated.validation_loss.min()]
    actual = np.ravel(point.get_data()).tolist()

    assert actual == expected
    assert validated.best_epoch < len(validated.loss)


def test_result_without_epochs_is_refused(result):
    with pytest.raises(ParameterError, match=r"'len\(result\.loss\)' must be an integer >= 1, got 0"):
        loss_curve(result._replace(loss=np.empty(0)))


@pytest.mark.parametrize("given", [None, [1.0, 0.5], np.ones(3), Network((2, 1))], ids=str)
def test_what_is_no_result_is_refused(given):
    with pytest.raises(ParameterTypeError, match="'result' must be a TrainResult"):
        loss_curve(given)


# --- loss_spread ----------------------------------------------------------------------------------------------------


def many(loss, epochs=None):
    """A result of these losses (epochs, networks)."""
    loss = np.array(loss, float)
    networks = loss.shape[1]
    epochs = np.full(networks, len(loss)) if epochs is None else np.array(epochs)
    loss[np.arange(len(loss))[:, None] >= epochs] = np.nan
    numbers = np.arange(networks)
    return ManyResult([], loss, None, None, epochs, 0 * numbers, ["epochs"] * networks, numbers, 0.0, 0.0)


def band(ax, place):
    """The least and most of a band at each epoch."""
    (path,) = ax.collections[place].get_paths()
    epochs = np.unique(path.vertices[:, 0])
    heights = [path.vertices[path.vertices[:, 0] == epoch, 1] for epoch in epochs]
    return epochs, np.array([[h.min(), h.max()] for h in heights])


def test_bands_hold_their_share_of_the_networks(ax, rng):
    loss = rng.random((30, 101)) + 0.1
    loss_spread(many(loss), ax)

    for place, share in enumerate((0.9, 0.5)):
        epochs, actual = band(ax, place)
        inside = (loss >= actual[:, :1]) & (loss <= actual[:, 1:])

        assert epochs.tolist() == list(range(1, 31))
        np.testing.assert_allclose(inside.mean(axis=1), share, atol=0.02)
    assert labels_of(ax) == ["90 % of the networks", "50 %", "median", "single networks"]
    np.testing.assert_allclose(ax.get_lines()[0].get_ydata(), np.median(loss, axis=1))


def test_network_that_has_stopped_counts_with_its_last_loss(ax):
    loss_spread(many([[3, 9, 8], [2, 9, 7], [1, 9, 6]], epochs=[3, 0, 1]), ax)
    median, *single = [line.get_ydata().tolist() for line in ax.get_lines()]

    assert single == [[3, 2, 1], [8, 8, 8]]
    assert median == [5.5, 5, 4.5]


def test_single_networks_are_spread_over_all_by_their_last_losses(ax, rng):
    loss = np.ones((5, 1)) * (rng.permutation(1000) + 1)
    loss_spread(many(loss), ax)
    _, *single = ax.get_lines()

    expected = [1, 126, 251, 376, 501, 625, 750, 875, 1000]
    actual = [line.get_ydata()[-1] for line in single]

    np.testing.assert_allclose(actual, expected, atol=1)


def test_many_epochs_are_drawn_by_few_points(ax):
    loss_spread(many(np.linspace(2, 1, 20_000)[:, None]), ax)
    epochs = ax.get_lines()[0].get_xdata()

    assert (epochs[0], epochs[-1], len(epochs)) == (1, 20_000, 200)


@pytest.mark.parametrize(("least", "expected"), [(1e-300, "log"), (0.0, "linear")])
def test_scale_of_many_is_logarithmic_if_all_losses_are_positive(least, expected, ax):
    loss_spread(many([[1, 2], [least, 1]]), ax)

    assert (ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel()) == (expected, "epoch", "loss")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (many(np.empty((0, 3))), ParameterError, r"'len\(result\.loss\)' must be an integer >= 1, got 0"),
        (None, ParameterTypeError, "'result' must be a ManyResult"),
        (np.ones((3, 3)), ParameterTypeError, "'result' must be a ManyResult"),
    ],
    ids=["no epoch", "None", "array"],
)
def test_spread_of_nothing_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        loss_spread(given)


# --- decision_boundary ----------------------------------------------------------------------------------------------


def plane(activation="identity", output=None, loss="squared_error", weights=(), biases=()):
    """A network of two inputs and no hidden layer, with these weights (inputs, outputs)."""
    network = Network((2, np.shape(weights)[1]), output=output, loss=loss)
    network.weights[0][:] = weights
    network.biases[0][:] = biases
    return network


def regions(ax):
    """The filled contours of `ax` with their colours."""
    return [c for c in ax.collections if hasattr(c, "levels") and c.filled]


def points(ax):
    return [c for c in ax.collections if not hasattr(c, "levels")]


def inside(region, point):
    return any(path.contains_point(point) for path in region.get_paths())


# Class 1 to the right of x = 0.5; as two outputs, and as three of which class 2 is above y = 3.
RIGHT = plane(output="sigmoid", loss="binary_cross_entropy", weights=[[4], [0]], biases=[-2])
SIGMOID = plane(output="sigmoid", weights=[[4], [0]], biases=[-2])
TWO = plane(loss="cross_entropy", weights=[[0, 4], [0, 0]], biases=[0, -2])
THREE = plane(loss="cross_entropy", weights=[[0, 4, 0], [0, 0, 9]], biases=[0, -2, -27])
X = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 4.0], [1.0, 4.0], [0.2, 2.0]])
PLACES = {
    "binary_cross_entropy": (RIGHT, [0, 1, 0, 1, 0], {(0.2, 1): 0, (0.8, 1): 1, (0.45, 3.9): 0, (0.55, 3.9): 1}),
    "sigmoid": (SIGMOID, [0, 1, 0, 1, 0], {(0.2, 1): 0, (0.8, 1): 1}),
    "two classes": (TWO, [0, 1, 0, 1, 0], {(0.2, 1): 0, (0.8, 1): 1}),
    "three classes": (THREE, [0, 1, 2, 2, 0], {(0.2, 1): 0, (0.8, 1): 1, (0.2, 3.5): 2, (0.8, 3.9): 2}),
    "probabilities": (TWO, np.eye(2)[[0, 1, 0, 1, 0]], {(0.2, 1): 0, (0.8, 1): 1}),
    "one column": (RIGHT, [[0], [1], [0], [1], [0]], {(0.2, 1): 0, (0.8, 1): 1}),
}


@pytest.mark.parametrize(("network", "y", "places"), PLACES.values(), ids=PLACES)
def test_plane_has_the_colour_of_the_predicted_class(network, y, places, ax):
    decision_boundary(network, X, y, ax)
    filled = regions(ax)

    for place, label in places.items():
        expected = [COLOURS[label].lower()]
        actual = [to_hex(region.get_facecolor()[0]) for region in filled if inside(region, place)]

        assert actual == expected


@pytest.mark.parametrize(("network", "y", "places"), PLACES.values(), ids=PLACES)
def test_points_have_the_colour_and_marker_of_their_class(network, y, places, ax):
    decision_boundary(network, X, y, ax)
    y = np.argmax(y, axis=1) if np.shape(y) == (5, 2) else np.ravel(y)
    classes = range(y.max() + 1)

    expected = [(COLOURS[k].lower(), X[y == k].tolist()) for k in classes]
    actual = [(to_hex(drawn.get_facecolor()[0]), drawn.get_offsets().tolist()) for drawn in points(ax)]

    assert actual == expected
    assert labels_of(ax) == [f"class {k}" for k in classes]
    assert [drawn.get_label() for drawn in points(ax)] == labels_of(ax)


def test_no_strip_of_a_third_class_lies_between_two(ax):
    """Class 0 left, class 2 right, class 1 nowhere: as numbers of classes, 1 would lie between them."""
    network = plane(loss="cross_entropy", weights=[[-9, 0, 9], [0, 0, 0]], biases=[0, -99, 0])
    decision_boundary(network, X - [0.5, 0], [0, 2, 0, 2, 0], ax)

    expected = [COLOURS[0].lower(), COLOURS[2].lower()]
    actual = [to_hex(region.get_facecolor()[0]) for region in regions(ax)]

    assert actual == expected


@pytest.mark.parametrize("loss", ["binary_cross_entropy", "cross_entropy"])
def test_plane_of_one_prediction_is_class_0(loss, ax):
    outputs = 1 if loss == "binary_cross_entropy" else 3
    network = Network((2, outputs), loss=loss, init="zeros")
    decision_boundary(network, X, [0, 1, 0, 1, 0], ax)

    expected = [COLOURS[0].lower()]
    actual = [to_hex(region.get_facecolor()[0]) for region in regions(ax)]

    assert actual == expected


def test_first_class_has_the_plane_where_several_are_equal(ax):
    """Left of 0 the hidden unit is dead, and both classes have the probability 1/2."""
    network = Network((2, 1, 2), loss="cross_entropy")
    network.weights[0][:] = [[1], [0]]
    network.weights[1][:] = [[0, 1]]
    decision_boundary(network, [[-1, 0], [1, 1]], [0, 1], ax)

    expected = [[True, False], [False, True]]
    actual = [[inside(region, (x, 0.5)) for region in regions(ax)] for x in (-0.5, 0.5)]

    assert actual == expected


def test_border_lies_where_the_network_predicts_a_half(ax):
    decision_boundary(RIGHT, X, [0, 1, 0, 1, 0], ax)
    borders = [c for c in ax.collections if hasattr(c, "levels") and not c.filled]

    for border in borders:
        np.testing.assert_allclose(np.concatenate([p.vertices for p in border.get_paths()])[:, 0], 0.5, atol=1e-3)
    assert borders


@pytest.mark.parametrize("classes", [2, len(COLOURS), len(COLOURS) + 1, 12])
def test_every_class_has_a_colour_of_its_own(classes, rng, ax):
    network = Network((2, classes), loss="cross_entropy", seed=0)
    decision_boundary(network, rng.normal(size=(classes, 2)), np.arange(classes), ax)

    expected = classes
    actual = len({to_hex(drawn.get_facecolor()[0]) for drawn in points(ax)})

    assert actual == expected


def test_neighbouring_classes_differ_in_grey():
    """Lightness as the eye weighs it; markers tell apart what is still close."""
    grey = [np.dot(to_rgb(colour), [0.299, 0.587, 0.114]) for colour in COLOURS]

    assert np.abs(np.diff(grey)).min() > 0.05
    assert abs(grey[0] - grey[1]) > 0.2
    assert len(set(MARKERS)) == len(MARKERS) == len(COLOURS)


def test_regression_shows_the_output_and_the_targets_on_one_scale(ax):
    network = plane(weights=[[2], [0]], biases=[1])
    decision_boundary(network, X, [0, 5, 1, 2, 3], ax)
    filled, drawn = regions(ax)[0], points(ax)[0]
    bar = next(axes for axes in ax.figure.axes if axes is not ax)

    assert filled.zmin == pytest.approx(2 * -0.08 + 1)
    assert filled.zmax == pytest.approx(2 * 1.08 + 1)
    assert (min(filled.levels), max(filled.levels)) == (0, 5)
    assert drawn.norm is filled.norm
    assert drawn.cmap == filled.cmap
    assert drawn.get_array().tolist() == [0, 5, 1, 2, 3]
    assert bar.get_ylabel() == "output"


def test_constant_regression_is_drawn(ax):
    decision_boundary(Network((2, 1), init="zeros"), X, np.zeros(5), ax)

    assert regions(ax)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_plane_reaches_a_little_beyond_the_points(dtype, ax, by_reference):
    decision_boundary(Network((2, 1), seed=0, dtype=dtype), X, np.zeros(5), ax)

    expected = -0.08, 1.08, -0.32, 4.32
    actual = *ax.get_xlim(), *ax.get_ylim()

    assert actual == pytest.approx(expected)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("first input", "second input")


def test_single_point_is_drawn(ax):
    decision_boundary(RIGHT, [[3.0, 5.0]], [1], ax)

    expected = 2, 4, 4, 6
    actual = *ax.get_xlim(), *ax.get_ylim()

    assert actual == pytest.approx(expected)


@pytest.mark.parametrize(
    ("network", "X", "y", "error", "message"),
    [
        (Network((3, 1)), np.ones((5, 3)), [0] * 5, ParameterError, "'network' must have 2 inputs, .* got 3"),
        (Network((1, 1)), np.ones((5, 1)), [0] * 5, ParameterError, "'network' must have 2 inputs, .* got 1"),
        (Network((2, 2)), X, np.ones((5, 2)), ParameterError, "'network' must have one output .* got 2 'identity'"),
        (Network((2, 2), loss="binary_cross_entropy"), X, np.ones((5, 2)), ParameterError, "got 2 'sigmoid'"),
        (RIGHT, X[:, :1], [0] * 5, DataError, "X has 1 column, the network has 2 inputs"),
        (RIGHT, X[0], [0], DataError, "'X' must be 2-D"),
        (RIGHT, X[:0], [], DataError, "'X' must have at least 1 row"),
        (RIGHT, X * np.nan, [0] * 5, DataError, "'X' must be finite"),
        (RIGHT, X, [0] * 4, DataError, "X has 5 rows, y has 4"),
        (RIGHT, X, [0, 1, 2, 0, 0], DataError, "'y' must be 0 or 1"),
        (SIGMOID, X, [0, 1, 0.5, 0, 0], DataError, "'y' must be 0 or 1 where the output of the network is 'sigmoid'"),
        (TWO, X, [0, 1, 2, 0, 0], DataError, r"'y' must hold class numbers in 0\.\.1"),
        (None, X, [0] * 5, ParameterTypeError, "'network' must be a Network"),
        (RIGHT, "X", [0] * 5, ParameterTypeError, "'X' must be an array"),
    ],
)
def test_what_cannot_be_drawn_is_refused(network, X, y, error, message):
    with pytest.raises(error, match=message):
        decision_boundary(network, X, y)


# --- all ------------------------------------------------------------------------------------------------------------

ALL = {
    "loss_curve": lambda ax=None: loss_curve(train_numpy(X, X[:, 0], epochs=3), ax),
    "loss_spread": lambda ax=None: loss_spread(many(np.ones((3, 4))), ax),
    "decision_boundary": lambda ax=None: decision_boundary(RIGHT, X, [0, 1, 0, 1, 0], ax),
}


@pytest.mark.parametrize("draw", ALL.values(), ids=ALL)
def test_axes_given_are_drawn_into_and_returned(draw, ax):
    before = ax.figure.axes

    assert draw(ax) is ax
    assert ax.has_data()
    assert ax.figure.axes == before


@pytest.mark.parametrize("draw", ALL.values(), ids=ALL)
def test_axes_not_given_are_those_of_one_new_figure(draw):
    ax = draw()

    assert [pyplot.figure(number) for number in pyplot.get_fignums()] == [ax.figure]
    assert ax.figure.axes == [ax]
    pyplot.close(ax.figure)


@pytest.mark.parametrize("draw", ALL.values(), ids=ALL)
def test_nothing_is_shown(draw, monkeypatch, ax):
    monkeypatch.setattr(pyplot, "show", lambda *arguments, **settings: pytest.fail("shown"))
    draw(ax)
    pyplot.close(draw().figure)


@pytest.mark.parametrize("draw", ALL.values(), ids=ALL)
@pytest.mark.parametrize("given", [pyplot, Figure(), "ax"], ids=["pyplot", "figure", "string"])
def test_what_is_no_axes_is_refused(draw, given):
    with pytest.raises(ParameterTypeError, match="'ax' must be a Axes, got"):
        draw(given)


@pytest.mark.parametrize("draw", ALL.values(), ids=ALL)
def test_missing_matplotlib_says_what_to_install(draw, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    with pytest.raises(ImportError, match=r'needs matplotlib: pip install "fastbp\[plot\]"'):
        draw()


def test_inputs_are_not_written_to(ax):
    X_given, y_given, result = X.copy(), np.array([0.0, 1, 0, 1, 0]), train_numpy(X, X[:, 0], epochs=3)
    loss, params = result.loss.copy(), RIGHT.params.copy()
    for array in (X_given, y_given, result.loss, result.error):
        array.flags.writeable = False
    decision_boundary(RIGHT, X_given, y_given, ax)
    loss_curve(result, ax)
    losses = many([[3, 9], [2, 9]], epochs=[2, 1])
    losses.loss.flags.writeable = False
    loss_spread(losses, ax)

    assert X_given.tobytes() == X.tobytes()
    assert y_given.tolist() == [0, 1, 0, 1, 0]
    assert result.loss.tobytes() == loss.tobytes()
    assert RIGHT.params.tobytes() == params.tobytes()


def test_pyplot_is_not_loaded_where_axes_are_given():
    code = """if True:
        import sys
        from matplotlib.figure import Figure
        from fastbp.plots import loss_curve
        from fastbp.train import train
        loss_curve(train([[1.0]], [1.0], epochs=1, backend="numpy"), Figure().subplots())
        assert "matplotlib.pyplot" not in sys.modules
    """
    output_of("-c", code)


def test_matplotlib_is_not_loaded_before_it_is_used():
    code = "import sys, fastbp.plots; assert 'matplotlib' not in sys.modules"
    output_of("-c", code)


# --- the picture of the README --------------------------------------------------------------------------------------


def test_example_writes_the_same_small_file_every_time(monkeypatch, tmp_path):
    monkeypatch.setattr(example, "train", lambda *data, **settings: train_numpy(*data, **settings | {"epochs": 20}))
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    example.write(first)
    example.write(second)

    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < 150_000
    assert b"<dc:date>" not in first.read_bytes()


def test_example_shows_both_plots_of_a_network_that_learnt(monkeypatch):
    monkeypatch.setattr(example, "train", train_numpy)  # without the seconds that compiling takes
    left, right = example.picture().axes

    assert (left.get_xlabel(), right.get_xlabel()) == ("epoch", "first input")
    assert left.get_lines()[0].get_ydata()[-1] < 0.1


def test_moons_are_as_many_of_each_class():
    X, y = example.moons(241, seed=3)

    assert X.shape == (241, 2)
    assert np.bincount(y).tolist() == [121, 120]
