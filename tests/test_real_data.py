"""On real data networks learn what they should, and the kernels compute what the reference does."""

import pytest
from sklearn import datasets
from sklearn.model_selection import train_test_split

import fastbp

train = fastbp.train

DATA = {
    "digits": datasets.load_digits,
    "breast cancer": datasets.load_breast_cancer,
    "diabetes": datasets.load_diabetes,
}
SETTINGS = {
    "digits": {"loss": "cross_entropy", "hidden": 64, "epochs": 30},
    "breast cancer": {"loss": "binary_cross_entropy", "hidden": 16, "epochs": 100},
    "diabetes": {"loss": "squared_error", "hidden": 16, "epochs": 50},
}


def split(name):
    """Rows to train on and rows held out, features standardised by the former; targets of diabetes too."""
    X, y = DATA[name](return_X_y=True)
    X, X_held_out, y, y_held_out = train_test_split(X, y, test_size=0.25, random_state=0)
    mean, scale = X.mean(axis=0), X.std(axis=0)
    scale[scale == 0] = 1  # pixels that are white in every digit
    if name == "diabetes":
        y, y_held_out = (y - y.mean()) / y.std(), (y_held_out - y.mean()) / y.std()
    return (X - mean) / scale, (X_held_out - mean) / scale, y, y_held_out


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_digits_are_recognised(dtype):
    X, X_held_out, y, y_held_out = split("digits")
    network = train(X, y, **SETTINGS["digits"], seed=0, dtype=dtype).network

    expected = y_held_out
    actual = network.predict(X_held_out).argmax(axis=1)

    assert (actual == expected).mean() >= 0.97


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_breast_cancer_is_recognised(dtype):
    X, X_held_out, y, y_held_out = split("breast cancer")
    network = train(X, y, **SETTINGS["breast cancer"], seed=0, dtype=dtype).network

    expected = y_held_out
    actual = network.predict(X_held_out).ravel() > 0.5

    assert (actual == expected).mean() >= 0.95


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_diabetes_is_predicted_better_than_by_the_mean(dtype):
    X, X_held_out, y, y_held_out = split("diabetes")
    network = train(X, y, **SETTINGS["diabetes"], seed=0, dtype=dtype).network

    by_mean = ((y_held_out - y.mean()) ** 2).mean()
    by_network = ((y_held_out - network.predict(X_held_out).ravel()) ** 2).mean()

    assert by_network < 0.8 * by_mean


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("name", DATA)
def test_kernels_give_the_weights_of_the_reference(name, activation):
    X, _, y, _ = split(name)
    settings = SETTINGS[name] | {"epochs": 3, "seed": 0, "activation": activation, "dtype": "float64"}

    expected = train(X, y, **settings, backend="numpy").network.params
    actual = train(X, y, **settings).network.params

    # Measured: 9e-17 to 1.2e-15.
    assert abs(actual - expected).max() < 1e-10 * abs(expected).max()
