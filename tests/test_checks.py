"""Every check accepts what it promises, refuses all else by class and message, and never prints or changes data."""

import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import math
import os
import pickle
import re
import sys
import tracemalloc
from pathlib import Path

import hypothesis.extra.numpy as npst
import numpy as np
import pandas
import pytest
import scipy.sparse
from helpers import forged
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_sample_weight

from fastbp import checks
from fastbp.checks import DataError, DivergenceError, FastbpError, ParameterError, ParameterTypeError, ResourceError
from fastbp.choices import (
    CLASSIFYING,
    ELEMENTWISE,
    LBFGS,
    LOSSES,
    OPTIMIZERS,
    SCHEDULES,
    SGD,
    Adam,
    AdamW,
    Constant,
    CosineDecay,
    ExponentialDecay,
    InverseScaling,
    IRprop,
    LevenbergMarquardt,
    ReduceOnPlateau,
    RMSprop,
)

FLOAT32, FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
DTYPES = [FLOAT32, FLOAT64]
ROWS = 3  # of the X that the targets in these tables go with
PARTNERS = [(loss, partner) for loss in LOSSES for partner in LOSSES[loss].outputs]
REAL = ("squared_error", "absolute_error", "huber")  # losses that take any finite targets

# The bounds of every number of an optimiser or a schedule.
INTERVALS = {
    SGD: {"learning_rate": "(0, inf)", "momentum": "[0, 1)", "nesterov": "flag"},
    Adam: {
        "learning_rate": "(0, inf)", "beta1": "[0, 1)", "beta2": "[0, 1)", "epsilon": "(0, inf)", "epsilon_hat": "flag",
    },
    AdamW: {
        "learning_rate": "(0, inf)", "beta1": "[0, 1)", "beta2": "[0, 1)", "epsilon": "(0, inf)",
        "weight_decay": "[0, inf)",
    },
    RMSprop: {"learning_rate": "(0, inf)", "decay": "[0, 1)", "epsilon": "(0, inf)"},
    IRprop: {
        "learning_rate": "(0, inf)", "increase": "[1, inf)", "decrease": "(0, 1)", "smallest_step": "(0, inf)",
        "largest_step": "(0, inf)",
    },
    LBFGS: {
        "learning_rate": "(0, inf)", "history": "1, 2, ...", "c1": "(0, 1)", "c2": "(0, 1)", "evaluations": "1, 2, ...",
        "gradient_tolerance": "[0, inf)", "loss_tolerance": "[0, inf)", "max_evaluations": "0, 1, ...",
    },
    LevenbergMarquardt: {
        "learning_rate": "(0, 1]", "damping": "(0, inf)", "increase": "(1, inf)", "decrease": "(0, 1)",
        "smallest": "(0, inf)", "largest": "(0, inf)", "attempts": "1, 2, ...",
    },
    Constant: {},
    ExponentialDecay: {"decay": "(0, 1]"},
    InverseScaling: {"power": "(0, inf)", "pace": "(0, inf)"},
    CosineDecay: {"epochs": "1, 2, ...", "warmup": "0, 1, ...", "minimum": "[0, 1]"},
    ReduceOnPlateau: {
        "factor": "(0, 1)", "patience": "0, 1, ...", "min_delta": "[0, inf)", "minimum": "[0, 1]", "stop": "flag",
    },
}  # fmt: skip

# What another field must be where one stands at the end of its interval.
BESIDE = {
    (SGD, "nesterov"): {"momentum": 0.5},
    (IRprop, "smallest_step"): {"largest_step": sys.float_info.max},
    (IRprop, "largest_step"): {"smallest_step": 5e-324},
    (LBFGS, "c1"): {"c2": math.nextafter(1, 0)},
    (LBFGS, "c2"): {"c1": 5e-324},
    (LevenbergMarquardt, "smallest"): {"largest": sys.float_info.max},
    (LevenbergMarquardt, "largest"): {"smallest": 5e-324},
    (CosineDecay, "warmup"): {"epochs": 2**31 - 1},
}

# How the tables call a check: one argument varies, the others stand still.
CALLS = {
    "count": lambda value: checks.count("batch_size", value),
    "count from 0": lambda value: checks.count("epochs", value, minimum=0),
    "number": lambda value: checks.number("min_delta", value),
    "number above 0": lambda value: checks.number("learning_rate", value, above=0),
    "number in [0, 1)": lambda value: checks.number("l2", value, at_least=0, below=1),
    "flag": lambda value: checks.flag("bias", value),
    "choice": lambda value: checks.choice("activation", value, ELEMENTWISE),
    "choice of loss": lambda value: checks.choice("loss", value, LOSSES),
    "seed": checks.seed,
    "hidden": checks.hidden,
    "activations": lambda value: checks.activations(value, 2),
    **{f"output {loss}": lambda value, loss=loss: checks.output(value, loss) for loss in LOSSES},
    "number in (0, 1]": lambda value: checks.number("decay", value, above=0, at_most=1),
    "optimizer": checks.optimizer,
    "optimizer learning_rate": lambda value: checks.optimizer("adam", value),
    "optimizer momentum": lambda value: checks.optimizer(SGD(momentum=value)),
    "optimizer nesterov": lambda value: checks.optimizer(SGD(momentum=0.5, nesterov=value)),
    "optimizer beta1": lambda value: checks.optimizer(Adam(beta1=value)),
    "optimizer beta2": lambda value: checks.optimizer(Adam(beta2=value)),
    "optimizer epsilon": lambda value: checks.optimizer(Adam(epsilon=value)),
    "optimizer steps": lambda value: checks.optimizer(IRprop(smallest_step=0.1, largest_step=value)),
    "schedule": lambda value: checks.schedule(value, 50),
    "schedule of 0 epochs": lambda value: checks.schedule(value, 0),
    "schedule warmup": lambda value: checks.schedule(CosineDecay(warmup=value), 50),
    "schedule of 5 epochs": lambda value: CosineDecay(5, warmup=value),
    "dropout": lambda value: checks.dropout(value, 2),
    "dropout of no layer": lambda value: checks.dropout(value, 0),
    "class_weight": checks.class_weight,
    "validation": checks.validation,
    "path": checks.path,
    "dtype": checks.dtype,
    "dtype of X": lambda value: checks.dtype(None, value),
    "features": lambda value: checks.features(value, FLOAT64),
    "features float32": lambda value: checks.features(value, FLOAT32),
    "features of 4": lambda value: checks.features(value, FLOAT64, inputs=4),
    "features from 2 rows": lambda value: checks.features(value, FLOAT64, minimum_rows=2),
    "squared_error": lambda value: checks.targets(value, "squared_error", ROWS, None, FLOAT64),
    "squared_error float32": lambda value: checks.targets(value, "squared_error", ROWS, None, FLOAT32),
    "squared_error of 2": lambda value: checks.targets(value, "squared_error", ROWS, 2, FLOAT64),
    "binary_cross_entropy": lambda value: checks.targets(value, "binary_cross_entropy", ROWS, None, FLOAT64),
    "binary_cross_entropy of 2": lambda value: checks.targets(value, "binary_cross_entropy", ROWS, 2, FLOAT32),
    "cross_entropy": lambda value: checks.targets(value, "cross_entropy", ROWS, None, FLOAT64),
    "cross_entropy of 3": lambda value: checks.targets(value, "cross_entropy", ROWS, 3, FLOAT32),
    "poisson": lambda value: checks.targets(value, "poisson", ROWS, None, FLOAT64),
    "poisson float32": lambda value: checks.targets(value, "poisson", ROWS, None, FLOAT32),
    "huber": lambda value: checks.targets(value, "huber", ROWS, None, FLOAT64),
    "absolute_error": lambda value: checks.targets(value, "absolute_error", ROWS, None, FLOAT64),
    "features of validation": lambda value: checks.features(value, FLOAT64, 4, name="validation[0]"),
    "squared_error of validation": lambda value: targets_of_validation(value, "squared_error"),
    "binary_cross_entropy of validation": lambda value: targets_of_validation(value, "binary_cross_entropy"),
    "cross_entropy of validation": lambda value: targets_of_validation(value, "cross_entropy"),
    "poisson of validation": lambda value: targets_of_validation(value, "poisson"),
    "row_weights": lambda value: checks.row_weights(value, ROWS, FLOAT64),
    "row_weights float32": lambda value: checks.row_weights(value, ROWS, FLOAT32),
    "row_weights of validation": lambda value: checks.row_weights(value, ROWS, FLOAT64, "validation[2]"),
    "memory": lambda value: checks.memory(value, "a network"),
}
DATA = [check for check in CALLS if check.startswith(("features", "row_weights", *LOSSES))]
SETTINGS = [check for check in CALLS if check not in [*DATA, "memory"]]
IN_FLOAT32 = (
    *("features float32", "squared_error float32", "binary_cross_entropy of 2", "cross_entropy of 3"),
    *("poisson float32", "row_weights float32"),
)
SEQUENCES = ("hidden", "activations", "dtype of X", "dropout", "dropout of no layer", "validation", "class_weight")
SINGLE = [check for check in [*SETTINGS, *DATA] if check not in SEQUENCES]


def targets_of_validation(value, loss):
    """Return targets of two outputs for validation, or of three classes."""
    return checks.targets(value, loss, ROWS, 3 if loss == "cross_entropy" else 2, FLOAT64, "validation[1]")


class Foreign:
    """An array of another library, as NumPy sees it."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        if isinstance(self.array, Exception):
            raise self.array
        return self.array


class Undescribable:
    """Fails at whatever a message might ask of it."""

    def __len__(self):
        raise RuntimeError

    @property
    def shape(self):
        raise RuntimeError


def outcome(check, value):
    """Return what a check returns, or the typed error it raises."""
    try:
        return CALLS[check](value)
    except FastbpError as error:
        return error


def numbered(table):
    """Return names of the rows of a table that do not print their values, which can be as long as they like."""
    return [f"{row[0]} {i}" for i, row in enumerate(table)]


def matrix(array):
    """Return an np.matrix without the warning its constructor gives."""
    return np.asarray(array).view(np.matrix)


def with_bad(value, *index, shape=(40, 2), dtype=float):
    """Return an array of ones with one other value."""
    array = np.ones(shape, dtype)
    array[index] = value
    return array


def unaligned(array):
    """Return an equal array that starts at an odd address."""
    buffer = np.zeros(array.nbytes + 1, np.uint8)
    result = buffer[1:].view(array.dtype).reshape(array.shape)
    result[...] = array
    return result


def read_only(array):
    """Return an equal array that cannot be written to."""
    result = array.copy()
    result.flags.writeable = False
    return result


def one_hot(labels, classes):
    """Return class numbers as rows with a single 1."""
    return np.arange(classes) == np.array(labels)[:, None]


def snapshot(value):
    """Return all of an argument that a check could have changed."""
    if isinstance(value, np.ndarray):
        return value.tobytes(), value.shape, value.strides, value.dtype, value.flags.writeable
    return repr(value)


ACCEPTED = [
    ("count", 1, 1),
    ("count", 2**31 - 1, 2**31 - 1),
    ("count", np.int8(7), 7),
    ("count", np.uint64(7), 7),
    ("count from 0", 0, 0),
    ("number", -2, -2.0),
    ("number", 1e308, 1e308),
    ("number", np.float32(0.5), 0.5),
    ("number", np.longdouble(0.5), 0.5),
    ("number", np.int16(3), 3.0),
    ("number above 0", 5e-324, 5e-324),
    ("number in [0, 1)", 0, 0.0),
    ("number in [0, 1)", math.nextafter(1, 0), math.nextafter(1, 0)),
    ("number in (0, 1]", 1, 1.0),
    ("number in (0, 1]", 5e-324, 5e-324),
    ("flag", True, True),
    ("flag", np.False_, False),
    ("choice", np.str_("tanh"), "tanh"),
    ("seed", 0, 0),
    ("seed", 2**32 - 1, 2**32 - 1),
    ("seed", np.uint32(2**32 - 1), 2**32 - 1),
    ("hidden", 64, (64,)),
    ("hidden", np.int64(64), (64,)),
    ("hidden", (), ()),
    ("hidden", [], ()),
    ("hidden", [3, np.uint8(2)], (3, 2)),
    ("hidden", np.array([3, 2], ">i2"), (3, 2)),
    ("hidden", (1,) * 1000, (1,) * 1000),
    ("activations", "tanh", ("tanh", "tanh")),
    ("activations", ["tanh", np.str_("relu")], ("tanh", "relu")),
    ("optimizer", "sgd", SGD()),
    ("optimizer", "adam", Adam()),
    ("optimizer", SGD(1, np.float32(0.5), np.True_), SGD(1.0, 0.5, True)),
    ("optimizer", Adam(beta1=0, beta2=0), Adam(beta1=0.0, beta2=0.0)),
    ("optimizer learning_rate", 0.5, Adam(learning_rate=0.5)),
    *(("optimizer", name, kind()) for name, kind in OPTIMIZERS.items()),
    *(("schedule", name, kind()) for name, kind in SCHEDULES.items() if kind is not CosineDecay),
    ("schedule", "cosine", CosineDecay(epochs=50)),
    ("schedule", CosineDecay(warmup=49), CosineDecay(epochs=50, warmup=49)),
    ("schedule", CosineDecay(np.int8(7), np.uint8(6), 1), CosineDecay(7, 6, 1.0)),
    ("schedule", ExponentialDecay(1), ExponentialDecay(1.0)),
    ("schedule", ReduceOnPlateau(0.5, np.int64(0), 0, 1, np.True_), ReduceOnPlateau(0.5, 0, 0.0, 1.0, True)),
    ("schedule of 0 epochs", "cosine", CosineDecay(epochs=1)),
    ("optimizer steps", 0.1, IRprop(smallest_step=0.1, largest_step=0.1)),
    ("dropout", 0, ()),
    ("dropout", 0.5, (0.5, 0.5)),
    ("dropout", np.float32(0.5), (0.5, 0.5)),
    ("dropout", [0, 0.25], (0.0, 0.25)),
    ("dropout", (0, 0), ()),
    ("dropout of no layer", 0.0, ()),
    ("dropout of no layer", (), ()),
    ("class_weight", None, None),
    ("class_weight", "balanced", "balanced"),
    ("class_weight", {}, {}),
    ("class_weight", {np.int64(1): 2, 0: np.float32(0.5)}, {1: 2.0, 0: 0.5}),
    ("class_weight", {65536: 0}, {65536: 0.0}),
    ("validation", None, None),
    ("validation", 0.25, 0.25),
    ("validation", np.float32(0.25), 0.25),
    ("validation", math.nextafter(1, 0), math.nextafter(1, 0)),
    ("validation", (1, 2), None),
    ("validation", (1, 2, 3), None),
    ("path", "file", "file"),
    ("path", Path("a") / "b", os.path.join("a", "b")),
    ("dtype", "float32", FLOAT32),
    ("dtype", np.float32, FLOAT32),
    ("dtype", FLOAT64, FLOAT64),
    ("dtype", float, FLOAT64),
    ("dtype", np.dtype(">f4"), FLOAT32),
    ("dtype", None, FLOAT64),
    ("dtype of X", np.ones(2, np.float32), FLOAT32),
    ("dtype of X", np.ones(2, ">f4"), FLOAT32),
    ("dtype of X", np.ones(2, np.float16), FLOAT32),
    ("dtype of X", np.ones(2), FLOAT64),
    ("dtype of X", np.ones(2, int), FLOAT64),
    ("dtype of X", np.ones(2, np.longdouble), FLOAT64),
    ("dtype of X", [[1.0]], FLOAT64),
    ("dtype of X", None, FLOAT64),
    *((f"output {loss}", partner, partner) for loss, partner in PARTNERS),
    *((f"output {loss}", None, LOSSES[loss].outputs[0]) for loss in LOSSES),
]

# Each makes another X out of the same (4, 3) array of whole numbers 0..11.
FORMS = {
    "itself": lambda base: base.copy(),
    "list": lambda base: base.tolist(),
    "tuple of tuples": lambda base: tuple(map(tuple, base.tolist())),
    "list of rows": list,
    "Fortran order": np.asfortranarray,
    "negative strides": lambda base: base[::-1, ::-1].copy()[::-1, ::-1],
    "every other column": lambda base: np.repeat(base, 2, axis=1)[:, ::2],
    "read-only": read_only,
    "unaligned": unaligned,
    "big-endian float64": lambda base: base.astype(">f8"),
    "big-endian float32": lambda base: base.astype(">f4"),
    "matrix of another library": Foreign,
    "no value masked": lambda base: np.ma.array(base, mask=np.zeros(base.shape, bool)),
    "without a mask": np.ma.array,
    **{f"{kind}": lambda base, kind=kind: base.astype(kind) for kind in "bhilqBHILQefdg"},
}

ACCEPTED_TARGETS = [
    ("squared_error", None, [0.5, -2, 3], [[0.5], [-2], [3]]),
    ("squared_error", 1, (1, 2, 3), [[1], [2], [3]]),
    ("squared_error", 2, [[1, 2], [3, 4], [5, 6]], [[1, 2], [3, 4], [5, 6]]),
    ("squared_error", None, np.array([True, False, True]), [[1], [0], [1]]),
    ("squared_error", None, np.arange(6.0)[::-2], [[5], [3], [1]]),
    ("squared_error", None, np.asfortranarray([[1.0, 2], [3, 4], [5, 6]]), [[1, 2], [3, 4], [5, 6]]),
    ("squared_error", None, np.broadcast_to(np.float64(2), (3, 2)), [[2, 2]] * 3),
    ("squared_error", None, read_only(np.ones(3)), [[1]] * 3),
    ("squared_error", None, Foreign(np.ones(3)), [[1]] * 3),
    *((loss, 2, [[1, -2], [0, 4], [5, 0.5]], [[1, -2], [0, 4], [5, 0.5]]) for loss in REAL),
    ("poisson", None, [0, 2.5, 1e30], [[0], [2.5], [1e30]]),
    ("poisson", 2, [[0, 1], [-0.0, 4], [5, 6]], [[0, 1], [0, 4], [5, 6]]),
    ("poisson", None, np.array([True, False, True]), [[1], [0], [1]]),
    ("binary_cross_entropy", None, [0, 1, 1], [[0], [1], [1]]),
    ("binary_cross_entropy", 1, np.array([True, False, True]), [[1], [0], [1]]),
    ("binary_cross_entropy", 2, np.array([[0, 1], [1, 0], [1, 1]], ">f4"), [[0, 1], [1, 0], [1, 1]]),
    ("cross_entropy", None, [2, 0, 1], one_hot([2, 0, 1], 3)),
    ("cross_entropy", None, [1.0, 0.0, 1.0], one_hot([1, 0, 1], 2)),
    ("cross_entropy", 4, [2, 0, 1], one_hot([2, 0, 1], 4)),
    ("cross_entropy", 4, [0, 0, 0], one_hot([0, 0, 0], 4)),
    ("cross_entropy", None, [[1], [0], [1]], one_hot([1, 0, 1], 2)),
    ("cross_entropy", None, np.array([True, False, True]), one_hot([1, 0, 1], 2)),
    ("cross_entropy", 300, np.array([0, 1, 127], np.int8), one_hot([0, 1, 127], 300)),
    ("cross_entropy", 300, np.array([0, 1, 255], np.uint8), one_hot([0, 1, 255], 300)),
    ("cross_entropy", 65536, np.array([0, 1, 2], np.float16), one_hot([0, 1, 2], 65536)),
    ("cross_entropy", None, np.array([0, 65535, 0], ">u8"), one_hot([0, 65535, 0], 65536)),
    ("cross_entropy", None, np.array([0, 1, 2], np.longdouble), np.eye(3)),
    ("cross_entropy", None, np.array([9, 0, 1, 9, 9, 9])[::2], one_hot([9, 1, 9], 10)),
    ("cross_entropy", None, np.eye(3, dtype=int), np.eye(3)),
    ("cross_entropy", 2, [[0.25, 0.75], [1, 0], [0.5, 0.5]], [[0.25, 0.75], [1, 0], [0.5, 0.5]]),
    ("cross_entropy", 2, [[0.25, 0.750009], [1, 0], [0.5, 0.5]], [[0.25, 0.750009], [1, 0], [0.5, 0.5]]),
]


def quoted(names):
    """Return names as messages list them."""
    return ", ".join(map(repr, names))


def classes(table):
    """Return the classes of a table as messages list them."""
    return ", ".join(kind.__name__ for kind in table.values())


huge = 10**400
recursive: list = []
recursive.append(recursive)
far_away = np.broadcast_to(np.float64(1), (10**9, 10**5))

ARGUMENTS = (  # how a message begins
    *("'X'", "X has ", "'y'", "y has ", "'batch_size'", "'epochs'", "'min_delta'", "'learning_rate'", "'l2'", "'bias'"),
    *("'activation", "'loss'", "'seed'", "'hidden", "'output'", "'optimizer'", "'momentum'", "'nesterov'", "'beta1'"),
    *("'beta2'", "'epsilon'", "'dtype'", "'smallest_step'", "'schedule'", "'warmup'", "'dropout", "'class_weight"),
    *("'validation", "validation[0] has ", "validation[1] has ", "'path'", "'sample_weight'", "'decay'", "'factor'"),
    *("'minimum'", "'patience'", "'stop'"),
)
X_ARRAY = "'X' must be an array or a list of numbers, got "
Y_ARRAY = "'y' must be an array or a list of numbers, got "
X_SHAPE = "'X' must be 2-D (rows, columns), got shape "
Y_SHAPE = "'y' must have shape (rows,) or (rows, outputs), got shape "
X_ANY = "'X' must convert to an array, got "
X_EQUAL = "'X' must convert to an array with rows of equal length, got "
Y_EQUAL = "'y' must convert to an array with rows of equal length, got "
X_REAL = "'X' must hold real numbers, got dtype "
Y_REAL = "'y' must hold real numbers, got dtype "
X_FINITE = "'X' must be finite, without NaN or infinity, got "
Y_FINITE = "'y' must be finite, without NaN or infinity, got "
BINARY = "'y' must be 0 or 1 with the loss 'binary_cross_entropy', got "
SUM = "'y' must hold class numbers of shape (rows,) or rows that sum to 1, got "
BATCH = "'batch_size' must be an integer >= 1, got "
RATE = "'learning_rate' must be a finite number > 0, got "
WIDTHS = "'hidden' must be an integer >= 1 or a sequence of them, got "
OPTIMIZER = f"'optimizer' must be one of {quoted(OPTIMIZERS)} or an instance of {classes(OPTIMIZERS)}, got "
SCHEDULE = f"'schedule' must be one of {quoted(SCHEDULES)} or an instance of {classes(SCHEDULES)}, got "
VALIDATION = "'validation' must be a share of the rows or a tuple (X, y) or (X, y, sample_weight), got "
DTYPE = "'dtype' must be one of 'float32', 'float64', got "
CLASSES = "'y' must hold class numbers in 0..65535, got "
CLASSES_OF_3 = "'y' must hold class numbers in 0..2, got "
WHOLE = "'y' must hold whole class numbers, got "
POSITIVE = "'y' must hold class numbers of shape (rows,) or probabilities >= 0, got "
ACTIVATION = f"'activation' must be one of {quoted(ELEMENTWISE)}, got "
NAMES = "'activation' must be a name or a list or tuple of names, got "
LOSS = f"'loss' must be one of {quoted(LOSSES)}, got "
MOMENTUM = "'momentum' must be a finite number >= 0 and < 1, got "

# Check, value, exact class, a fragment of the message.
REFUSED = [
    # shape and container of X
    ("features", np.ones(40), DataError, X_SHAPE + "(40,); X.reshape(-1, 1)"),
    ("features", [1.0, 2.0], DataError, X_SHAPE + "(2,)"),
    ("features", [], DataError, X_SHAPE + "(0,)"),
    ("features", np.array(1.0), DataError, X_SHAPE + "()"),
    ("features", np.float64(1), DataError, X_SHAPE + "()"),
    ("features", 1.0, ParameterTypeError, X_ARRAY + "1.0"),
    ("features", np.ones((2, 3, 4)), DataError, X_SHAPE + "(2, 3, 4)"),
    ("features", None, ParameterTypeError, X_ARRAY + "None"),
    ("features", np.ones((0, 2)), DataError, "'X' must have at least 1 row, got shape (0, 2)"),
    ("features from 2 rows", np.ones((1, 2)), DataError, "'X' must have at least 2 rows, got shape (1, 2)"),
    ("features", np.ones((2, 0)), DataError, "'X' must have at least 1 column, got shape (2, 0)"),
    ("features", [[], []], DataError, "'X' must have at least 1 column, got shape (2, 0)"),
    ("features of 4", np.ones((2, 3)), DataError, "X has 3 columns, the network has 4 inputs"),
    ("features of 4", np.ones((2, 1)), DataError, "X has 1 column, the network has 4 inputs"),
    ("features", [[1, 2], [3]], DataError, X_EQUAL + "list of length 2"),
    ("features", recursive, DataError, X_EQUAL),
    ("features", (row for row in [[1]]), ParameterTypeError, X_ARRAY + "generator"),
    ("features", iter([[1]]), ParameterTypeError, X_ARRAY + "list_iterator"),
    ("features", {1: 2}, ParameterTypeError, X_ARRAY + "dict of length 1"),
    ("features", {1, 2}, ParameterTypeError, X_ARRAY + "set of length 2"),
    ("features", "1.5", ParameterTypeError, X_ARRAY + "'1.5'"),
    ("features", b"1.5", ParameterTypeError, X_ARRAY + "bytes of length 3"),
    ("features", print, ParameterTypeError, X_ARRAY + "builtin_function"),
    ("features", list, ParameterTypeError, X_ARRAY + "the class list"),
    ("features", np.ndarray, DataError, X_REAL + "object"),
    ("features", Undescribable(), ParameterTypeError, X_ARRAY + "Undescribable"),
    # dtype of X
    ("features", np.ones((2, 2), object), DataError, X_REAL + "object; convert with .astype(float)"),
    ("features", [[1, None]], DataError, X_REAL + "object"),
    ("features", [[1, {}]], DataError, X_REAL + "object"),
    ("features", [["1.5", "2"]], DataError, X_REAL + "<U3; convert with .astype(float)"),
    ("features", [[1, "2"]], DataError, X_REAL + "<U"),
    ("features", np.array([["a"]]), DataError, X_REAL + "<U1"),
    ("features", np.str_("a"), DataError, X_REAL + "<U1"),
    ("features", np.array([["a"]], np.dtypes.StringDType()), DataError, X_REAL + "String"),
    ("features", np.array([[b"1"]]), DataError, X_REAL + "|S1"),
    ("features", np.ones((2, 2), "M8[s]"), DataError, X_REAL + "datetime64[s]"),
    ("features", np.ones((2, 2), "m8[s]"), DataError, X_REAL + "timedelta64[s]"),
    ("features", [[datetime.date.min]], DataError, X_REAL + "object"),
    ("features", np.ones((2, 2), "f8,f8"), DataError, X_REAL + "[("),
    ("features", np.ones((2, 2), [("x" * 500, "f8")]), DataError, X_REAL + "[('xxx"),
    ("features", np.ones((2, 2), "V8"), DataError, X_REAL + "|V8"),
    ("features", [[huge]], DataError, X_REAL + "object"),
    ("features", [[decimal.Decimal(1)]], DataError, X_REAL + "object"),
    ("features", np.ones((2, 2), complex), DataError, X_REAL + "complex128"),
    ("features float32", with_bad(1e300, 3, 1), DataError, "'X' must not overflow float32 (use dtype='float64')"),
    ("features float32", with_bad(-1e39, 3, 1), DataError, "1 bad of 80, the first at [3, 1]"),
    # masks, foreign containers, size of X
    (
        "features",
        np.ma.array(np.ones((2, 2)), mask=[[0, 0], [1, 1]]),
        DataError,
        "'X' must have no masked values, got 2",
    ),
    ("features", [np.ma.array([1.0, 2], mask=[0, 1])], DataError, "'X' must have no rows with masked values, got 1"),
    ("features", np.ma.ones((2, 2), "f8,f8"), DataError, X_REAL + "[("),
    ("features", matrix(np.ones((2, 2))), ParameterTypeError, X_ARRAY + "matrix of shape (2, 2)"),
    ("features", scipy.sparse.eye_array(2), ParameterTypeError, "'X' must be dense, got dia_array of shape (2, 2)"),
    (
        "features",
        scipy.sparse.csr_matrix((2, 2)),
        ParameterTypeError,
        "'X' must be dense, got csr_matrix of shape (2, 2)",
    ),
    ("features", Foreign(TypeError("on a GPU")), DataError, X_ANY + "Foreign: on a GPU"),
    ("features", Foreign(RuntimeError("use .detach()" + 500 * "!")), DataError, X_ANY + "Foreign: use .detach()!!!!"),
    ("features", Foreign(ValueError("of a value")), DataError, X_ANY + "Foreign"),
    ("features", Foreign([1]), DataError, X_ANY + "Foreign"),
    ("features", Foreign(np.ones(2, object)), DataError, X_REAL + "object"),
    ("features", far_away, ResourceError, "'X' of shape (1000000000, 100000) needs"),
    # values of X
    ("features", with_bad(np.nan, 3, 1), DataError, X_FINITE + "1 bad of 80, the first at [3, 1]"),
    ("features", with_bad(np.nan, (3, 5), 1), DataError, "got 2 bad of 80, the first at [3, 1]"),
    ("features", with_bad(np.inf, 0, 0), DataError, X_FINITE),
    ("features", with_bad(-np.inf, 0, 0), DataError, X_FINITE),
    ("features", [[1.0, math.nan]], DataError, X_FINITE + "1 bad of 2, the first at [0, 1]"),
    ("features", with_bad(np.nan, 0, 0, dtype=np.float16), DataError, X_FINITE),
    ("features", with_bad(np.inf, 0, 0, dtype=np.longdouble), DataError, X_FINITE),
    ("features float32", with_bad(np.nan, 0, 0), DataError, X_FINITE),
    ("features float32", with_bad(np.nan, 9, 0, dtype=">f8").T, DataError, X_FINITE),
    # y
    ("squared_error", [1, 2, math.nan], DataError, Y_FINITE + "1 bad of 3, the first at [2]"),
    ("squared_error", [[1], [math.inf], [2]], DataError, Y_FINITE),
    ("squared_error float32", [1, 2, 1e39], DataError, "'y' must not overflow float32 (use dtype='float64')"),
    ("squared_error", np.ones(2), DataError, "X has 3 rows, y has 2"),
    ("squared_error", [], DataError, "X has 3 rows, y has 0"),
    ("squared_error", np.ones((3, 0)), DataError, Y_SHAPE + "(3, 0)"),
    ("squared_error", np.ones((3, 1, 1)), DataError, Y_SHAPE + "(3, 1, 1)"),
    ("squared_error", np.array(1.0), DataError, Y_SHAPE + "()"),
    ("squared_error", None, ParameterTypeError, Y_ARRAY + "None"),
    ("squared_error", range(3), ParameterTypeError, Y_ARRAY + "range of length 3"),
    ("squared_error", np.ones(3, complex), DataError, Y_REAL + "complex128"),
    ("squared_error", ["a", "b", "c"], DataError, Y_REAL + "<U1"),
    ("squared_error", [[1], [2, 3], [4]], DataError, Y_EQUAL),
    ("squared_error", scipy.sparse.eye_array(3), ParameterTypeError, "'y' must be dense"),
    ("squared_error", matrix([[1], [2], [3]]), ParameterTypeError, Y_ARRAY + "matrix"),
    ("squared_error", np.ma.masked_equal([1, 2, 3], 2), DataError, "'y' must have no masked values, got 1"),
    ("squared_error of 2", np.ones((3, 4)), DataError, "y has 4 columns, the network has 2 outputs"),
    ("squared_error of 2", np.ones(3), DataError, "y has 1 column, the network has 2 outputs"),
    ("binary_cross_entropy", [0, 1, 2], DataError, BINARY + "1 bad of 3"),
    ("binary_cross_entropy", [0, 1, 0.5], DataError, BINARY),
    ("binary_cross_entropy", [0, 1, -1], DataError, BINARY),
    ("binary_cross_entropy", [0, 1, math.nan], DataError, BINARY),
    ("binary_cross_entropy", ["yes", "no", "no"], DataError, Y_REAL),
    ("binary_cross_entropy", [0, 1], DataError, "X has 3 rows, y has 2"),
    ("binary_cross_entropy of 2", np.ones(3), DataError, "y has 1 column, the network has 2 outputs"),
    ("binary_cross_entropy of 2", np.full((3, 2), 1 - 1e-9), DataError, BINARY),
    ("cross_entropy", [0, 1, math.nan], DataError, Y_FINITE),
    ("cross_entropy", [0, 1, math.inf], DataError, Y_FINITE),
    ("cross_entropy", [0, 1, 0.5], DataError, WHOLE + "1 bad of 3, the first at [2]"),
    ("cross_entropy", np.array([0, 1, 1 + np.finfo("g").eps], "g"), DataError, WHOLE),
    ("cross_entropy", [0, 1, -1], DataError, CLASSES + "1 bad of 3, the first at [2]"),
    ("cross_entropy", [0, 1, 65536], DataError, CLASSES),
    ("cross_entropy", [0, 1, 2**32 + 1], DataError, CLASSES),
    ("cross_entropy", [0, 1, 2**63], DataError, CLASSES),
    ("cross_entropy", [0, 1, 1e300], DataError, CLASSES),
    ("cross_entropy", [0, 1, huge], DataError, Y_REAL + "object"),
    ("cross_entropy", [0, 0, 0], DataError, "'y' must have at least 2 classes with the loss 'cross_entropy', got 1"),
    ("cross_entropy", ["a", "b", "a"], DataError, Y_REAL + "<U1; convert with .astype(float)"),
    ("cross_entropy", ["a", "b", "a"], DataError, "number class names with np.unique(y, return_inverse=True)[1]"),
    ("cross_entropy", np.array(["a", 1, 2], object), DataError, Y_REAL + "object"),
    ("cross_entropy", ["a", 1, 2], DataError, Y_REAL + "<U"),
    ("cross_entropy", [[0.5, 0.4]] * 3, DataError, SUM),
    ("cross_entropy", [[1, 0], [0.5, 0.50002], [1, 0]], DataError, SUM + "1 bad of 3, the first at [1]"),
    ("cross_entropy", [[1e308, 1e308]] * 3, DataError, SUM),
    ("cross_entropy", [[1.5, -0.5]] * 3, DataError, POSITIVE),
    ("cross_entropy", [[math.nan, 1]] * 3, DataError, Y_FINITE),
    ("cross_entropy", [[0.5], [0], [1]], DataError, WHOLE + "1 bad of 3, the first at [0]"),
    ("cross_entropy", None, ParameterTypeError, Y_ARRAY + "None"),
    ("cross_entropy of 3", [0, 1, 3], DataError, CLASSES_OF_3 + "1 bad of 3, the first at [2]"),
    ("cross_entropy of 3", [0, 1, 2**32 + 1], DataError, CLASSES_OF_3),
    ("cross_entropy of 3", np.array([0, 1, 255], np.uint8), DataError, CLASSES_OF_3),
    ("cross_entropy of 3", np.array([0, 1, -1], np.int8), DataError, CLASSES_OF_3),
    ("cross_entropy of 3", [[0, 1]] * 3, DataError, "y has 2 columns, the network has 3 outputs"),
    # settings
    ("count", 0, ParameterError, BATCH + "0"),
    ("count", -1, ParameterError, BATCH + "-1"),
    ("count", 2**31, ParameterError, "'batch_size' must be an integer <= 2147483647, got 2147483648"),
    ("count", huge, ParameterError, "'batch_size' must be an integer <= 2147483647, got an integer of 1329 bits"),
    ("count", -(10**5000), ParameterError, BATCH + "an integer of 16610 bits"),
    ("count", 2.5, ParameterTypeError, BATCH + "2.5"),
    ("count", 2.0, ParameterTypeError, BATCH + "2.0"),
    ("count", np.float32(2), ParameterTypeError, BATCH + "np.float32(2.0)"),
    ("count", "32", ParameterTypeError, BATCH + "'32'"),
    ("count", None, ParameterTypeError, BATCH + "None"),
    ("count", True, ParameterTypeError, BATCH + "True"),
    ("count", np.True_, ParameterTypeError, BATCH + "np.True_"),
    ("count", 2j, ParameterTypeError, BATCH + "2j"),
    ("count", [32], ParameterTypeError, BATCH + "list of length 1"),
    ("count", np.array(32), ParameterTypeError, BATCH + "ndarray of shape ()"),
    ("count", np.timedelta64(3, "s"), ParameterTypeError, BATCH + "np.timedelta64(3,'s')"),
    ("count", Undescribable(), ParameterTypeError, BATCH + "Undescribable"),
    ("count", range(2**70), ParameterTypeError, BATCH + "range"),
    ("count", "x" * 10**6, ParameterTypeError, BATCH + "'xxx"),
    ("count from 0", -3, ParameterError, "'epochs' must be an integer >= 0, got -3"),
    ("count from 0", 2.0, ParameterTypeError, "'epochs' must be an integer >= 0, got 2.0"),
    ("count from 0", "5", ParameterTypeError, "'epochs' must be an integer >= 0, got '5'"),
    ("count from 0", 2**63, ParameterError, "'epochs' must be an integer <= 2147483647, got 9223372036854775808"),
    ("number above 0", 0, ParameterError, RATE + "0"),
    ("number above 0", -0.1, ParameterError, RATE + "-0.1"),
    ("number above 0", math.nan, ParameterError, RATE + "nan"),
    ("number above 0", math.inf, ParameterError, RATE + "inf"),
    ("number above 0", np.float16("inf"), ParameterError, RATE + "np.float16(inf)"),
    ("number above 0", huge, ParameterError, RATE + "an integer of 1329 bits"),
    ("number above 0", "0.1", ParameterTypeError, RATE + "'0.1'"),
    ("number above 0", None, ParameterTypeError, RATE + "None"),
    ("number above 0", True, ParameterTypeError, RATE + "True"),
    ("number above 0", np.True_, ParameterTypeError, RATE + "np.True_"),
    ("number above 0", 1j, ParameterTypeError, RATE + "1j"),
    ("number above 0", np.array(0.1), ParameterTypeError, RATE + "ndarray of shape ()"),
    ("number above 0", [0.1], ParameterTypeError, RATE + "list of length 1"),
    ("number above 0", decimal.Decimal(1), ParameterTypeError, RATE + "Decimal"),
    ("number above 0", np.timedelta64(3, "s"), ParameterTypeError, RATE + "np.timedelta64(3,'s')"),
    ("number in [0, 1)", -1e-9, ParameterError, "'l2' must be a finite number >= 0 and < 1, got -1e-09"),
    ("number in [0, 1)", 1, ParameterError, "'l2' must be a finite number >= 0 and < 1, got 1"),
    ("number in [0, 1)", math.nan, ParameterError, "'l2' must be a finite number >= 0 and < 1, got nan"),
    ("number", -math.inf, ParameterError, "'min_delta' must be a finite number, got -inf"),
    ("flag", 1, ParameterTypeError, "'bias' must be True or False, got 1"),
    ("flag", 0.0, ParameterTypeError, "'bias' must be True or False, got 0.0"),
    ("flag", None, ParameterTypeError, "'bias' must be True or False, got None"),
    ("flag", "yes", ParameterTypeError, "'bias' must be True or False, got 'yes'"),
    ("flag", np.array(True), ParameterTypeError, "'bias' must be True or False, got ndarray of shape ()"),
    ("choice", "nonsense", ParameterError, ACTIVATION + "'nonsense'"),
    ("choice", "sigmiod", ParameterError, ACTIVATION + "'sigmiod'; did you mean 'sigmoid'?"),
    ("choice", "ReLU", ParameterError, ACTIVATION + "'ReLU'; did you mean 'relu'?"),
    ("choice", "softmax", ParameterError, ACTIVATION + "'softmax'"),
    ("choice", "", ParameterError, ACTIVATION + "''"),
    ("choice", "\udc80\n", ParameterError, ACTIVATION + r"'\udc80\n'"),
    ("choice", "a" * 10**7, ParameterError, ACTIVATION + "'aaa"),
    ("choice", None, ParameterTypeError, ACTIVATION + "None"),
    ("choice", b"relu", ParameterTypeError, ACTIVATION + "bytes of length 4"),
    ("choice", math.tanh, ParameterTypeError, ACTIVATION + "builtin_function_or_method"),
    ("choice of loss", "mse", ParameterError, LOSS + "'mse'"),
    ("choice of loss", "crossentropy", ParameterError, LOSS + "'crossentropy'; did you mean 'cross_entropy'?"),
    ("choice of loss", 0, ParameterTypeError, LOSS + "0"),
    ("seed", -1, ParameterError, "'seed' must be an integer >= 0, got -1"),
    ("seed", 2**32, ParameterError, "'seed' must be an integer <= 4294967295, got 4294967296"),
    ("seed", 2**200, ParameterError, "'seed' must be an integer <= 4294967295"),
    ("seed", 1.5, ParameterTypeError, "'seed' must be an integer >= 0, got 1.5"),
    ("seed", "x", ParameterTypeError, "'seed' must be an integer >= 0, got 'x'"),
    ("seed", math.nan, ParameterTypeError, "'seed' must be an integer >= 0, got nan"),
    ("seed", True, ParameterTypeError, "'seed' must be an integer >= 0, got True"),
    ("seed", np.random.default_rng(0), ParameterTypeError, "'seed' must be an integer >= 0, got Generator"),
    ("hidden", 0, ParameterError, "'hidden' must be an integer >= 1, got 0"),
    ("hidden", True, ParameterTypeError, "'hidden' must be an integer >= 1, got True"),
    ("hidden", 2.5, ParameterTypeError, WIDTHS + "2.5"),
    ("hidden", None, ParameterTypeError, WIDTHS + "None"),
    ("hidden", "64", ParameterTypeError, WIDTHS + "'64'"),
    ("hidden", {64, 32}, ParameterTypeError, WIDTHS + "set of length 2"),
    ("hidden", iter([64]), ParameterTypeError, WIDTHS + "list_iterator"),
    ("hidden", np.array([2.0]), ParameterTypeError, WIDTHS + "ndarray"),
    ("hidden", np.array([[2]]), ParameterTypeError, WIDTHS + "ndarray"),
    ("hidden", np.array(2), ParameterTypeError, WIDTHS + "ndarray"),
    ("hidden", np.timedelta64(2, "s"), ParameterTypeError, "'hidden' must be an integer >= 1, got"),
    ("hidden", (0,), ParameterError, "'hidden[0]' must be an integer >= 1, got 0"),
    ("hidden", (4, -3), ParameterError, "'hidden[1]' must be an integer >= 1, got -3"),
    ("hidden", np.array([4, 0]), ParameterError, "'hidden[1]' must be an integer >= 1, got 0"),
    ("hidden", (2.5,), ParameterTypeError, "'hidden[0]' must be an integer >= 1, got 2.5"),
    ("hidden", ("a",), ParameterTypeError, "'hidden[0]' must be an integer >= 1, got 'a'"),
    ("hidden", (4, True), ParameterTypeError, "'hidden[1]' must be an integer >= 1, got True"),
    ("hidden", [4, [4]], ParameterTypeError, "'hidden[1]' must be an integer >= 1, got list of length 1"),
    ("hidden", [4, None], ParameterTypeError, "'hidden[1]' must be an integer >= 1, got None"),
    ("hidden", np.ma.masked_equal([4, 3], 3), ParameterTypeError, "'hidden[1]' must be an integer >= 1, got None"),
    ("hidden", (10**10,), ParameterError, "'hidden[0]' must be an integer <= 2147483647, got 10000000000"),
    ("hidden", (4,) * 1001, ParameterError, "'hidden' must have at most 1000 layers, got tuple of length 1001"),
    ("hidden", np.ones(10**4, int), ParameterError, "'hidden' must have at most 1000 layers, got list of length 10000"),
    ("activations", "softmax", ParameterError, ACTIVATION + "'softmax'"),
    ("activations", "tan", ParameterError, ACTIVATION + "'tan'; did you mean 'tanh'?"),
    ("activations", ["tanh"], ParameterError, "'activation' must be one name or one per hidden layer (2), got 1"),
    ("activations", ("tanh",) * 3, ParameterError, "'activation' must be one name or one per hidden layer (2), got 3"),
    ("activations", ["tanh", "rleu"], ParameterError, "'activation[1]' must be one of"),
    ("activations", ["tanh", None], ParameterTypeError, "'activation[1]' must be one of"),
    ("activations", None, ParameterTypeError, NAMES + "None"),
    ("activations", {"tanh", "relu"}, ParameterTypeError, NAMES + "set of length 2"),
    ("output squared_error", "softmax", ParameterError, "with the loss 'squared_error', got 'softmax'"),
    ("output squared_error", 3, ParameterTypeError, "with the loss 'squared_error', got 3"),
    ("output binary_cross_entropy", "identity", ParameterError, "one of 'sigmoid' with the loss 'binary_"),
    ("output cross_entropy", "sigmoid", ParameterError, "one of 'softmax' with the loss 'cross_entropy'"),
    ("output cross_entropy", "sotfmax", ParameterError, "did you mean 'softmax'?"),
    ("optimizer", "adma", ParameterError, f"must be one of {quoted(OPTIMIZERS)}, got 'adma'; did you mean 'adam'?"),
    ("optimizer", SGD, ParameterTypeError, OPTIMIZER + "the class SGD"),
    ("optimizer", None, ParameterTypeError, OPTIMIZER + "None"),
    ("optimizer", {"name": "sgd"}, ParameterTypeError, OPTIMIZER + "dict"),
    ("optimizer", type("Mine", (SGD,), {})(), ParameterTypeError, OPTIMIZER + "Mine"),
    ("optimizer", forged(SGD, learning_rate=0), ParameterError, RATE + "0"),
    ("optimizer", forged(Adam, learning_rate=None), ParameterTypeError, RATE + "None"),
    ("optimizer", forged(SGD, nesterov=True), ParameterError, "'nesterov' must come with a 'momentum' > 0, got True"),
    ("optimizer learning_rate", math.nan, ParameterError, RATE + "nan"),
    ("optimizer learning_rate", 0, ParameterError, RATE + "0"),
    ("optimizer learning_rate", "0.1", ParameterTypeError, RATE + "'0.1'"),
    ("optimizer momentum", 1, ParameterError, MOMENTUM + "1"),
    ("optimizer momentum", -0.1, ParameterError, MOMENTUM + "-0.1"),
    ("optimizer momentum", math.nan, ParameterError, MOMENTUM + "nan"),
    ("optimizer momentum", "0.9", ParameterTypeError, MOMENTUM + "'0.9'"),
    ("optimizer nesterov", 1, ParameterTypeError, "'nesterov' must be True or False, got 1"),
    ("optimizer beta1", 1.0, ParameterError, "'beta1' must be a finite number >= 0 and < 1, got 1.0"),
    ("optimizer beta2", -0.5, ParameterError, "'beta2' must be a finite number >= 0 and < 1, got -0.5"),
    ("optimizer beta2", True, ParameterTypeError, "'beta2' must be a finite number >= 0 and < 1, got True"),
    ("optimizer epsilon", 0, ParameterError, "'epsilon' must be a finite number > 0, got 0"),
    ("optimizer epsilon", math.inf, ParameterError, "'epsilon' must be a finite number > 0, got inf"),
    ("dtype", "float16", ParameterError, DTYPE + "'float16'"),
    ("dtype", "f4x", ParameterError, DTYPE + "'f4x'"),
    ("dtype", "flaot32", ParameterError, "did you mean 'float32'?"),
    ("dtype", np.float16, ParameterError, DTYPE + "the class float16"),
    ("dtype", np.floating, ParameterError, DTYPE + "the class floating"),
    ("dtype", int, ParameterError, DTYPE + "the class int"),
    ("dtype", object, ParameterError, DTYPE + "the class object"),
    ("dtype", np.dtype("f8,f8"), ParameterError, DTYPE + "dtype [("),
    ("dtype", 32, ParameterTypeError, DTYPE + "32"),
    ("dtype", np.ones(2), ParameterTypeError, DTYPE + "ndarray of shape (2,)"),
]

REFUSED += [
    # targets of the other losses
    *((loss, [1, 2, math.nan], DataError, Y_FINITE + "1 bad of 3, the first at [2]") for loss in REAL),
    ("poisson", [1, 2, -1e-300], DataError, "'y' must be >= 0 with the loss 'poisson', got 1 bad of 3, the first at"),
    ("poisson", [[1], [-1], [-2]], DataError, "got 2 bad of 3, the first at [1, 0]"),
    ("poisson", [1, 2, math.inf], DataError, Y_FINITE),
    ("poisson", [1, 2, -math.inf], DataError, Y_FINITE),
    ("poisson float32", [1, 2, 1e39], DataError, "'y' must not overflow float32"),
    # data for validation are called what they are
    ("features of validation", None, ParameterTypeError, "'validation[0]' must be an array or a list of numbers"),
    ("features of validation", np.ones(4), DataError, "'validation[0]' must be 2-D (rows, columns), got shape (4,)"),
    ("features of validation", np.ones(4), DataError, "; validation[0].reshape(-1, 1) makes a column of it"),
    ("features of validation", np.ones((0, 4)), DataError, "'validation[0]' must have at least 1 row"),
    ("features of validation", np.ones((2, 3)), DataError, "validation[0] has 3 columns, the network has 4 inputs"),
    ("features of validation", with_bad(np.nan, 1, 1, shape=(2, 4)), DataError, "'validation[0]' must be finite"),
    ("features of validation", [["1"] * 4], DataError, "'validation[0]' must hold real numbers, got dtype <U1"),
    ("squared_error of validation", [1], DataError, "validation[0] has 3 rows, validation[1] has 1"),
    ("squared_error of validation", np.ones(3), DataError, "validation[1] has 1 column, the network has 2 outputs"),
    ("squared_error of validation", [[1, math.nan]] * 3, DataError, "'validation[1]' must be finite"),
    ("squared_error of validation", ["a"] * 3, DataError, "or number class names with np.unique"),
    ("binary_cross_entropy of validation", [[0, 2]] * 3, DataError, "'validation[1]' must be 0 or 1 with the loss"),
    ("cross_entropy of validation", [0, 1, 3], DataError, "'validation[1]' must hold class numbers in 0..2, got 1"),
    ("cross_entropy of validation", [0, 1, 0.5], DataError, "'validation[1]' must hold whole class numbers"),
    ("cross_entropy of validation", np.ones((3, 3)), DataError, "'validation[1]' must hold class numbers of shape"),
    ("cross_entropy of validation", [[2, 0, -1]] * 3, DataError, "'validation[1]' must hold class numbers of shape"),
    ("poisson of validation", [[1, -1]] * 3, DataError, "'validation[1]' must be >= 0 with the loss 'poisson'"),
    ("row_weights of validation", [1, 2], DataError, "'validation[2]' must have shape (3,), a number for each row"),
    # weights of rows
    ("row_weights", None, ParameterTypeError, "'sample_weight' must be an array or a list of numbers, got None"),
    ("row_weights", "balanced", ParameterTypeError, "'sample_weight' must be an array or a list of numbers"),
    ("row_weights", 1.0, ParameterTypeError, "'sample_weight' must be an array or a list of numbers, got 1.0"),
    ("row_weights", [1, 2], DataError, "'sample_weight' must have shape (3,), a number for each row, got shape (2,)"),
    ("row_weights", np.ones((3, 1)), DataError, "'sample_weight' must have shape (3,), a number for each row, got"),
    ("row_weights", [1, 2, -1], DataError, "'sample_weight' must be >= 0, got 1 bad of 3, the first at [2]"),
    ("row_weights", [1, 2, math.nan], DataError, "'sample_weight' must be finite"),
    ("row_weights", [1, 2, math.inf], DataError, "'sample_weight' must be finite"),
    ("row_weights", [0, 0, 0], DataError, "'sample_weight' must have a value above 0, got 3 zeros"),
    ("row_weights", ["1", "2", "3"], DataError, "'sample_weight' must hold real numbers, got dtype <U1"),
    ("row_weights", np.ones(3, complex), DataError, "'sample_weight' must hold real numbers"),
    ("row_weights float32", [1, 2, 1e39], DataError, "'sample_weight' must not overflow float32"),
    ("row_weights float32", [0, 0, 1e-60], DataError, "'sample_weight' must have a value above 0, got 3 zeros"),
    # schedules
    ("schedule", "cosnie", ParameterError, f"must be one of {quoted(SCHEDULES)}, got 'cosnie'; did you mean 'cosine'?"),
    ("schedule", None, ParameterTypeError, SCHEDULE + "None"),
    ("schedule", 0.1, ParameterTypeError, SCHEDULE + "0.1"),
    ("schedule", CosineDecay, ParameterTypeError, SCHEDULE + "the class CosineDecay"),
    ("schedule", SGD(), ParameterTypeError, SCHEDULE + "SGD"),
    ("schedule", type("Mine", (Constant,), {})(), ParameterTypeError, SCHEDULE + "Mine"),
    ("optimizer", Constant(), ParameterTypeError, OPTIMIZER + "Constant"),
    ("schedule", CosineDecay(warmup=50), ParameterError, "'warmup' must be less than the epochs of the schedule (50)"),
    (
        "schedule",
        forged(CosineDecay, epochs=5, warmup=5),
        ParameterError,
        "'warmup' must be less than the epochs of the schedule",
    ),
    ("schedule of 5 epochs", 5, ParameterError, "'warmup' must be less than the epochs of the schedule (5), got 5"),
    ("schedule of 0 epochs", CosineDecay(warmup=1), ParameterError, "'warmup' must be less than the epochs of the"),
    ("schedule warmup", -1, ParameterError, "'warmup' must be an integer >= 0, got -1"),
    ("schedule warmup", 1.0, ParameterTypeError, "'warmup' must be an integer >= 0, got 1.0"),
    ("optimizer steps", 0.05, ParameterError, "'smallest_step' must be at most 'largest_step', got 0.1 and 0.05"),
    # dropout
    ("dropout", 1, ParameterError, "'dropout' must be a finite number >= 0 and < 1, got 1"),
    ("dropout", -0.1, ParameterError, "'dropout' must be a finite number >= 0 and < 1, got -0.1"),
    ("dropout", math.nan, ParameterError, "'dropout' must be a finite number >= 0 and < 1, got nan"),
    ("dropout", None, ParameterTypeError, "'dropout' must be a finite number >= 0 and < 1, got None"),
    ("dropout", True, ParameterTypeError, "'dropout' must be a finite number >= 0 and < 1, got True"),
    ("dropout", "0.5", ParameterTypeError, "'dropout' must be a finite number >= 0 and < 1, got '0.5'"),
    (
        "dropout",
        np.array([0.5, 0.5]),
        ParameterTypeError,
        "'dropout' must be a finite number >= 0 and < 1, got ndarray",
    ),
    ("dropout", [0.5, 1.0], ParameterError, "'dropout[1]' must be a finite number >= 0 and < 1, got 1.0"),
    ("dropout", [0.5, None], ParameterTypeError, "'dropout[1]' must be a finite number >= 0 and < 1, got None"),
    ("dropout", [0.5], ParameterError, "'dropout' must be one rate or one per hidden layer (2), got 1"),
    ("dropout", [0, 0, 0], ParameterError, "'dropout' must be one rate or one per hidden layer (2), got 3"),
    ("dropout of no layer", 0.5, ParameterError, "'dropout' must be one rate or one per hidden layer (0), got 1"),
    ("dropout of no layer", 1.0, ParameterError, "'dropout' must be a finite number >= 0 and < 1, got 1.0"),
    # class_weight, validation, path
    (
        "class_weight",
        "balance",
        ParameterError,
        "'balanced' or a dict of class numbers and weights, got 'balance'; did",
    ),
    ("class_weight", 1.0, ParameterTypeError, "'class_weight' must be 'balanced' or a dict, got 1.0"),
    ("class_weight", [1, 2], ParameterTypeError, "'class_weight' must be 'balanced' or a dict, got list of length 2"),
    (
        "class_weight",
        {"a": 1},
        ParameterTypeError,
        "'class_weight' must be a dict whose keys are integers >= 0, got 'a'",
    ),
    (
        "class_weight",
        {True: 1},
        ParameterTypeError,
        "'class_weight' must be a dict whose keys are integers >= 0, got True",
    ),
    ("class_weight", {-1: 1}, ParameterError, "'class_weight' must be a dict whose keys are integers >= 0, got -1"),
    (
        "class_weight",
        {65537: 1},
        ParameterError,
        "'class_weight' must be a dict whose keys are integers <= 65536, got 65537",
    ),
    ("class_weight", {3: -1}, ParameterError, "'class_weight[3]' must be a finite number >= 0, got -1"),
    ("class_weight", {3: math.inf}, ParameterError, "'class_weight[3]' must be a finite number >= 0, got inf"),
    ("class_weight", {3: "1"}, ParameterTypeError, "'class_weight[3]' must be a finite number >= 0, got '1'"),
    ("validation", 0, ParameterError, "'validation' must be a finite number > 0 and < 1, got 0"),
    ("validation", 1, ParameterError, "'validation' must be a finite number > 0 and < 1, got 1"),
    ("validation", math.nan, ParameterError, "'validation' must be a finite number > 0 and < 1, got nan"),
    ("validation", True, ParameterTypeError, "'validation' must be a finite number > 0 and < 1, got True"),
    ("validation", "0.1", ParameterTypeError, "'validation' must be a finite number > 0 and < 1, got '0.1'"),
    ("validation", (1,), ParameterTypeError, VALIDATION + "tuple of length 1"),
    ("validation", (1,) * 4, ParameterTypeError, VALIDATION + "tuple of length 4"),
    ("validation", [1, 2], ParameterTypeError, VALIDATION + "list of length 2"),
    ("validation", np.ones((2, 3)), ParameterTypeError, VALIDATION + "ndarray of shape (2, 3)"),
    ("path", None, ParameterTypeError, "'path' must be a str or os.PathLike, got None"),
    ("path", b"file", ParameterTypeError, "'path' must be a str or os.PathLike, got bytes of length 4"),
    ("path", 3, ParameterTypeError, "'path' must be a str or os.PathLike, got 3"),
    ("path", "a\0b", ParameterError, "'path' must not contain the character NUL"),
]

# Containers that hold a value which no message may show.
SECRET = 123456.789
CONTAINERS = [
    np.array(SECRET),
    np.full(40, SECRET),
    np.full((2, 0, 2), SECRET),
    np.full((40, 2), SECRET, object),
    np.full((40, 2), str(SECRET)),
    np.full((40, 2), str(SECRET).encode()),
    np.full((40, 2), SECRET, complex),
    np.full((40, 2), SECRET).view("f8,f8"),
    np.full((40, 2), SECRET).view("f8,f8")[0, 0],
    np.full((40, 2, 1), SECRET),
    np.ma.masked_less(np.full((40, 2), SECRET), np.inf),
    matrix(np.full((40, 2), SECRET)),
    scipy.sparse.csr_array(np.full((40, 2), SECRET)),
    [SECRET, str(SECRET), None],
    [[SECRET], [SECRET, SECRET]],
    [str(SECRET)] * ROWS,
    (SECRET, [SECRET]),
    {SECRET: SECRET},
    {SECRET},
    collections.deque([SECRET]),
    str(SECRET).encode(),
    bytearray(str(SECRET).encode()),
    fractions.Fraction(str(SECRET)),
    Foreign(ValueError(str(SECRET))),
    (SECRET for _ in range(3)),
]
# Arrays that fail for a value beside the one which no message may show.
SECRET_DATA = [
    ("features", [[SECRET, math.nan]]),
    ("features", [[SECRET, -math.inf]]),
    ("features float32", [[1.23456789e300, SECRET]]),
    ("features of 4", [[SECRET]]),
    ("squared_error", [SECRET, SECRET]),
    ("squared_error", [SECRET, SECRET, math.nan]),
    ("squared_error of 2", [SECRET] * 3),
    ("binary_cross_entropy", [0, 1, SECRET]),
    ("binary_cross_entropy", [0, 1, 123456]),
    ("cross_entropy", [0, 1, SECRET]),
    ("cross_entropy", [0, 1, 123456]),
    ("cross_entropy", [[SECRET, 0]] * 3),
    ("cross_entropy", [[-SECRET, SECRET + 1]] * 3),
    ("cross_entropy of 3", [0, 1, 123456]),
    ("poisson", [1, 2, -SECRET]),
    ("poisson", [SECRET, 2, -1]),
    ("features of validation", [[SECRET]]),
    ("features of validation", [[1, 2, SECRET, math.nan]]),
    ("squared_error of validation", [SECRET]),
    ("cross_entropy of validation", [0, 1, 123456]),
    ("poisson of validation", [[1, -SECRET]] * 3),
    ("row_weights", [SECRET, SECRET]),
    ("row_weights", [1, 2, -SECRET]),
    ("row_weights", [SECRET, 1, math.inf]),
]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 5),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    st.binary(),
    st.fractions(),
    st.decimals(),
    st.datetimes(),
    st.sampled_from([*ELEMENTWISE, *LOSSES, *OPTIMIZERS, "float32", "float64", "softmax"]),
    st.sampled_from([huge, -huge, len, list, float, np.float32, np.number, NotImplemented, ..., Undescribable()]),
    npst.scalar_dtypes(),
    npst.array_dtypes(),
    npst.scalar_dtypes().flatmap(npst.from_dtype),
)
dtypes = st.one_of(npst.scalar_dtypes(), npst.array_dtypes(), npst.unicode_string_dtypes(), st.just(np.dtype(object)))
arrays = npst.arrays(dtypes, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
fitting_arrays = npst.arrays(  # as many rows as the other argument has, and values that often pass
    st.sampled_from("bBhHiqQefdg"),
    st.sampled_from([(ROWS,), (ROWS, 1), (ROWS, 2), (ROWS, 3), (ROWS, 4)]),
    elements=st.sampled_from([0, 1, 1, 2, 100]),
)
masked_arrays = fitting_arrays.filter(lambda array: array.dtype != np.float16).map(  # np.ma fills it with 1e20
    lambda array: np.ma.masked_equal(array, 100)
)
settings_objects = st.one_of(
    *(st.builds(forged, st.just(kind), **dict.fromkeys(INTERVALS[kind], scalars)) for kind in INTERVALS),
)
leaves = st.one_of(scalars, arrays, fitting_arrays, settings_objects, arrays.map(Foreign), masked_arrays)
anything = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=2),
        st.iterables(inner, max_size=2),
    ),
    max_leaves=6,
)


def assert_ready(array, dtype, dimensions=2):
    """Assert what kernels rely on."""
    assert type(array) is np.ndarray
    assert array.dtype == dtype
    assert array.dtype.isnative
    assert array.ndim == dimensions
    assert array.flags.c_contiguous
    assert array.flags.aligned
    assert array.flags.writeable
    assert np.isfinite(array).all()


@pytest.mark.parametrize(("check", "value", "expected"), ACCEPTED, ids=numbered(ACCEPTED))
def test_good_setting_is_returned_in_one_form(check, value, expected):
    before = snapshot(value)
    actual = CALLS[check](value)

    assert actual == expected
    assert type(actual) is type(expected)
    assert repr(actual) == repr(expected)
    assert snapshot(value) == before


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_x_is_accepted_and_left_alone(form, dtype):
    X = FORMS[form](np.arange(12.0).reshape(4, 3))
    before = snapshot(X)
    expected = np.arange(12, dtype=dtype).reshape(4, 3)
    actual = checks.features(X, dtype, inputs=3)

    assert_ready(actual, dtype)
    np.testing.assert_array_equal(actual, expected)
    assert snapshot(X) == before


def test_memory_map_is_read_and_not_written(tmp_path):
    X = np.lib.format.open_memmap(tmp_path / "X.npy", "w+", np.float64, (4, 3))
    X[...] = expected = np.arange(12.0).reshape(4, 3)
    X.flush()
    actual = checks.features(np.load(tmp_path / "X.npy", mmap_mode="r"), FLOAT64)

    assert_ready(actual, FLOAT64)
    np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(np.load(tmp_path / "X.npy"), expected)


def test_booleans_become_0_and_1():
    expected = np.array([[0.0, 1.0]])
    actual = checks.features([[False, True]], FLOAT64)

    assert_ready(actual, FLOAT64)
    np.testing.assert_array_equal(actual, expected)


def test_x_without_rows_is_accepted_on_demand():
    expected = (0, 2)
    actual = checks.features(np.ones((0, 2)), FLOAT64, minimum_rows=0).shape

    assert actual == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ready_x_is_not_copied(dtype):
    X = np.ones((4, 3), dtype)
    expected = X
    actual = checks.features(X, dtype)

    assert actual is expected


@pytest.mark.parametrize(("loss", "outputs", "y", "expected"), ACCEPTED_TARGETS, ids=numbered(ACCEPTED_TARGETS))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_good_targets_become_rows_and_are_left_alone(loss, outputs, y, expected, dtype):
    before = snapshot(y)
    expected = np.array(expected).astype(dtype)
    actual = checks.targets(y, loss, ROWS, outputs, dtype)

    assert_ready(actual, dtype)
    np.testing.assert_array_equal(actual, expected)
    assert snapshot(y) == before


def test_settings_are_not_changed_by_an_override():
    given_settings = SGD(learning_rate=0.5, momentum=0.9)
    expected = SGD(learning_rate=0.25, momentum=0.9)
    actual = checks.optimizer(given_settings, 0.25)

    assert actual == expected
    assert given_settings == SGD(learning_rate=0.5, momentum=0.9)


def test_seed_none_draws_a_new_seed_each_time():
    actual = {checks.seed(None) for _ in range(20)}

    assert len(actual) == 20
    assert all(type(seed) is int and 0 <= seed < 2**32 for seed in actual)


def test_one_activation_serves_any_number_of_hidden_layers():
    expected = [(), ("relu",), ("relu",) * 3]
    actual = [checks.activations("relu", layers) for layers in (0, 1, 3)]

    assert actual == expected


@pytest.mark.parametrize(("check", "value", "error", "fragment"), REFUSED, ids=numbered(REFUSED))
def test_bad_argument_is_refused_by_class_and_message(check, value, error, fragment):
    actual = outcome(check, value)

    assert type(actual) is error
    assert fragment in str(actual)
    assert str(actual).startswith(ARGUMENTS)
    assert len(str(actual)) < 300


@pytest.mark.parametrize(("check", "value", "error", "fragment"), REFUSED, ids=numbered(REFUSED))
def test_error_carries_the_name_that_its_message_begins_with(check, value, error, fragment):
    actual = outcome(check, value)
    copies = [actual, pickle.loads(pickle.dumps(actual)), copy.copy(actual)]

    assert [copied.name for copied in copies] == [actual.name] * 3
    assert [str(copied) for copied in copies] == [str(actual)] * 3
    if actual.name is None:  # it speaks of two, or of what is not an argument
        assert error is ResourceError or re.match(r"\S+ has \d+ (rows?|columns?), ", str(actual))
    else:
        assert str(actual).startswith(f"'{actual.name}' ")


# --- optimisers and schedules -------------------------------------------------------------------------------------

FIELDS = [(kind, field) for kind in INTERVALS for field in INTERVALS[kind]]


def checked(kind, field, value):
    """Return what the check makes of a settings object with this value, or the error it raises."""
    check = CALLS["optimizer" if kind in OPTIMIZERS.values() else "schedule"]
    try:
        return check(kind(**BESIDE.get((kind, field), {}) | {field: value}))
    except FastbpError as error:
        return error


def ends(interval):
    """Return the values closest to the ends of an interval, inside it and outside."""
    if interval == "flag":
        return [True, False], []
    if interval.endswith("..."):
        first = int(interval[0])
        return [first, first + 1], [first - 1, -(2**40)]
    low, high = map(float, interval[1:-1].split(","))
    inside = [math.nextafter(low, math.inf), 0.5 * low + 0.5 * min(high, low + 1), math.nextafter(high, -math.inf)]
    outside = [math.nextafter(low, -math.inf), math.inf, -math.inf, math.nan]
    if high < math.inf:
        outside.append(math.nextafter(high, math.inf))
    (inside if interval.startswith("[") else outside).append(low)
    if high < math.inf:
        (inside if interval.endswith("]") else outside).append(high)
    return inside, outside


def test_every_field_of_every_class_has_its_interval():
    expected = {kind: [field.name for field in dataclasses.fields(kind)] for kind in INTERVALS}
    actual = {kind: list(fields) for kind, fields in INTERVALS.items()}

    assert actual == expected
    assert list(INTERVALS) == [*OPTIMIZERS.values(), *SCHEDULES.values()]


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_field_is_accepted_to_the_ends_of_its_interval(kind, field):
    inside, _ = ends(INTERVALS[kind][field])

    expected = inside
    actual = [getattr(checked(kind, field, value), field, None) for value in inside]

    assert actual == expected
    assert {type(value) for value in actual} == {type(value) for value in inside}


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_field_is_refused_beyond_the_ends_of_its_interval(kind, field):
    _, outside = ends(INTERVALS[kind][field])
    errors = [checked(kind, field, value) for value in outside]

    expected = [ParameterError] * len(outside)
    actual = [type(error) for error in errors]

    assert actual == expected
    assert all(str(error).startswith(f"'{field}' must be ") for error in errors)


@pytest.mark.parametrize(
    ("kind", "values", "error", "message"),
    [
        (SGD, {"momentum": 2}, ParameterError, "'momentum' must be a finite number >= 0 and < 1, got 2"),
        (SGD, {"nesterov": 1}, ParameterTypeError, "'nesterov' must be True or False, got 1"),
        (
            SGD, {"nesterov": True}, ParameterError,
            "'nesterov' must come with a 'momentum' > 0, got True with momentum 0",
        ),
        (AdamW, {"weight_decay": "0"}, ParameterTypeError, "'weight_decay' must be a finite number >= 0, got '0'"),
        (
            IRprop, {"smallest_step": 2, "largest_step": 1}, ParameterError,
            "'smallest_step' must be at most 'largest_step', got 2.0 and 1.0",
        ),
        (LBFGS, {"c1": 0.5, "c2": 0.25}, ParameterError, "'c1' must be at most 'c2', got 0.5 and 0.25"),
        (
            LevenbergMarquardt, {"smallest": 2, "largest": 1}, ParameterError,
            "'smallest' must be at most 'largest', got 2.0 and 1.0",
        ),
        (LBFGS, {"history": 0}, ParameterError, "'history' must be an integer >= 1, got 0"),
        (
            CosineDecay, {"epochs": 5, "warmup": 5}, ParameterError,
            "'warmup' must be less than the epochs of the schedule (5), got 5",
        ),
        (ReduceOnPlateau, {"patience": -1}, ParameterError, "'patience' must be an integer >= 0, got -1"),
    ],
)  # fmt: skip
def test_settings_are_refused_where_they_are_written(kind, values, error, message):
    with pytest.raises(error) as caught:
        kind(**values)

    assert str(caught.value) == message


@pytest.mark.parametrize("kind", INTERVALS)
def test_settings_survive_pickle_copy_and_replace(kind):
    expected = kind()
    actual = [pickle.loads(pickle.dumps(expected)), copy.deepcopy(expected), dataclasses.replace(expected)]

    assert actual == [expected] * 3
    assert [repr(settings) for settings in actual] == [repr(expected)] * 3
    assert {hash(settings) for settings in actual} == {hash(expected)}
    assert not hasattr(expected, "__dict__")


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
@pytest.mark.parametrize("value", ["1", [1], 1j, np.array(1), np.timedelta64(1, "s"), False, 0.25], ids=repr)
def test_field_of_another_type_is_refused(kind, field, value):
    interval = INTERVALS[kind][field]
    good = {bool: interval == "flag", float: interval[0] in "[("}.get(type(value), False)
    error = checked(kind, field, value)

    assert good or type(error) is ParameterTypeError
    assert good or str(error).startswith(f"'{field}' must be ")


@pytest.mark.parametrize("kind", INTERVALS)
def test_checked_settings_are_a_fixed_point(kind):
    check = CALLS["optimizer" if kind in OPTIMIZERS.values() else "schedule"]

    expected = check(kind())
    actual = check(expected)

    assert actual == expected
    assert hash(actual) == hash(expected)  # plans are cached by them


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", OPTIMIZERS.values())
def test_defaults_are_representable(kind, dtype):
    checks.representable(kind(), dtype)


# --- weights of rows and classes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", [list, tuple, np.array, read_only, unaligned, Foreign, lambda a: np.repeat(a, 2)[::2]])
def test_row_weights_are_accepted_and_left_alone(form, dtype):
    weights = form(np.array([0.5, 0, 2]))
    before = snapshot(weights)

    expected = [0.5, 0, 2]
    actual = checks.row_weights(weights, ROWS, dtype)

    assert_ready(actual, dtype, dimensions=1)
    assert actual.tolist() == expected
    assert snapshot(weights) == before


CLASSES = [
    ("binary_cross_entropy", [0, 1, 1, 1, 0, 1]),
    ("binary_cross_entropy", [1, 1, 1, 1, 1, 1]),
    ("cross_entropy", [0, 1, 2, 2, 2, 0]),
    ("cross_entropy", [0, 1, 1, 3, 1, 0]),  # nobody in class 2
]


def rows_of_classes(loss, labels):
    return (
        one_hot(labels, max(labels) + 1).astype(float) if loss == "cross_entropy" else np.array(labels, float)[:, None]
    )


@pytest.mark.parametrize(("loss", "labels"), CLASSES)
def test_balanced_weights_are_those_of_scikit_learn(loss, labels):
    expected = compute_sample_weight("balanced", labels)
    actual = checks.class_weights("balanced", loss, rows_of_classes(loss, labels), None)

    np.testing.assert_allclose(actual, expected, rtol=1e-15)


@pytest.mark.parametrize(("loss", "labels"), CLASSES)
def test_balanced_classes_have_the_same_sum_of_weights(loss, labels):
    weights = np.array([1, 2, 0.5, 3, 0, 1])
    actual = checks.class_weights("balanced", loss, rows_of_classes(loss, labels), weights)
    sums = np.bincount(labels, actual)

    np.testing.assert_allclose(sums[sums > 0], weights.sum() / np.count_nonzero(sums), rtol=1e-14)
    np.testing.assert_array_equal(actual == 0, weights == 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("loss", "labels"), CLASSES)
def test_weights_of_a_dict_are_multiplied_with_those_of_the_rows(loss, labels, dtype):
    rows, weights = rows_of_classes(loss, labels).astype(dtype), np.arange(6, dtype=dtype)
    before = snapshot(weights), snapshot(rows)

    expected = [weight * {1: 0.25}.get(label, 1) for label, weight in zip(labels, range(6), strict=True)]
    actual = checks.class_weights({1: 0.25}, loss, rows, weights)

    assert_ready(actual, dtype, dimensions=1)
    assert actual.tolist() == expected
    assert (snapshot(weights), snapshot(rows)) == before


BAD_CLASS_WEIGHTS = [
    *(
        ("balanced", loss, np.ones((6, 1)), ParameterError, "must be left out")
        for loss in LOSSES
        if loss not in CLASSIFYING
    ),
    ("balanced", "binary_cross_entropy", np.ones((6, 2)), ParameterError, "must be left out"),
    ({0: 1.0}, "binary_cross_entropy", np.ones((6, 2)), ParameterError, "must be left out"),
    (
        "balanced",
        "cross_entropy",
        np.full((6, 2), 0.5),
        DataError,
        "'y' must hold class numbers where 'class_weight' is",
    ),
    ({2: 1.0}, "binary_cross_entropy", np.ones((6, 1)), ParameterError, r"classes in 0\.\.1, got 2"),
    ({3: 1.0}, "cross_entropy", np.eye(3)[[0, 1, 2, 0, 1, 2]], ParameterError, r"classes in 0\.\.2, got 3"),
    ({1: 0.0}, "binary_cross_entropy", np.ones((6, 1)), DataError, "'class_weight' must have a value above 0, got 6"),
]


@pytest.mark.parametrize(("value", "loss", "y", "error", "fragment"), BAD_CLASS_WEIGHTS)
def test_bad_weights_of_classes_are_refused(value, loss, y, error, fragment):
    with pytest.raises(error, match=fragment):
        checks.class_weights(value, loss, y, None)


def test_weights_of_classes_may_not_overflow():
    rows = np.ones((ROWS, 1), np.float32)

    with pytest.raises(DataError, match="'class_weight' must not overflow float32"):
        checks.class_weights({1: 1e39}, "binary_cross_entropy", rows, None)


# --- foreign objects and memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize("check", DATA)
def test_only_targets_may_be_names_of_classes(check):
    expected = not check.startswith(("features", "row_weights"))
    actual = "number class names with" in str(outcome(check, [["a"] * 4] * ROWS))

    assert actual == expected


def test_foreign_error_is_kept_as_the_cause():
    expected = RuntimeError("on a GPU")
    with pytest.raises(DataError) as caught:
        checks.features(Foreign(expected), FLOAT64)
    actual = caught.value.__cause__

    assert actual is expected


@pytest.mark.parametrize("value", [1e39, 3.4028235677973366e38, np.longdouble("1e4000")])
def test_overflow_of_the_cast_is_an_error_and_never_a_warning(value):
    expected = "'X' must not overflow float32 (use dtype='float64'), got 1 bad of 80, the first at [3, 1]"
    with np.errstate(all="raise"), pytest.raises(DataError) as caught:
        checks.features(with_bad(value, 3, 1, dtype=np.longdouble), FLOAT32)
    actual = str(caught.value)

    assert actual == expected


def test_largest_float32_does_not_overflow():
    expected = np.finfo(np.float32).max
    actual = checks.features([[float(expected)]], FLOAT32)[0, 0]

    assert actual == expected


@pytest.mark.parametrize("check", SINGLE)
@pytest.mark.parametrize("container", CONTAINERS, ids=lambda container: type(container).__name__)
def test_message_never_shows_what_a_container_holds(check, container):
    actual = outcome(check, container)

    assert isinstance(actual, FastbpError)
    assert "123456" not in str(actual) + repr(actual)


@pytest.mark.parametrize(("check", "value"), SECRET_DATA, ids=numbered(SECRET_DATA))
def test_message_never_shows_data(check, value):
    actual = outcome(check, value)

    assert type(actual) is DataError
    assert "123456" not in str(actual) + repr(actual)
    assert "1.2345" not in str(actual) + repr(actual)


@pytest.mark.parametrize("check", SETTINGS)
@settings(max_examples=30)
@given(value=anything)
def test_any_setting_passes_or_fails_by_a_typed_error(check, value):
    actual = outcome(check, value)

    assert not isinstance(actual, FastbpError) or type(actual) in (ParameterError, ParameterTypeError)
    assert len(str(actual)) < 300 or not isinstance(actual, FastbpError)


@pytest.mark.parametrize("check", DATA)
@settings(max_examples=30)
@given(value=fitting_arrays | arrays | anything)
def test_any_data_passes_or_fails_by_a_typed_error(check, value):
    actual = outcome(check, value)

    if isinstance(actual, FastbpError):
        assert type(actual) in (DataError, ParameterTypeError)
        assert len(str(actual)) < 300
    else:
        assert_ready(actual, FLOAT32 if check in IN_FLOAT32 else FLOAT64, 1 if check.startswith("row_weights") else 2)


@settings(max_examples=30)
@given(bytes_needed=st.integers(-(2**100), 2**100))
def test_memory_passes_or_fails_by_a_typed_error(bytes_needed):
    present = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    expected = ResourceError if bytes_needed > present else type(None)
    actual = type(outcome("memory", bytes_needed))

    assert actual is expected


@pytest.fixture
def other_machine():
    """Lets the memory of the machine be asked for anew."""
    checks._physical_memory.cache_clear()
    yield
    checks._physical_memory.cache_clear()


def test_memory_error_says_how_much_is_missing(monkeypatch, other_machine):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**20}.__getitem__, raising=False)
    expected = "a network of 1e9 units needs 4.5 GiB of memory, this machine has 4.0 GiB"
    checks.memory(2**32, "a network of 1e9 units")
    with pytest.raises(ResourceError) as caught:
        checks.memory(2**32 + 2**29, "a network of 1e9 units")
    actual = str(caught.value)

    assert actual == expected


def test_memory_is_bounded_by_addresses_where_the_machine_does_not_tell(monkeypatch, other_machine):
    monkeypatch.delattr(os, "sysconf", raising=False)
    checks.memory(2**47, "a network")
    with pytest.raises(ResourceError):
        checks.memory(2**47 + 1, "a network")


def test_one_hot_rows_that_do_not_fit_are_refused_before_they_are_made(monkeypatch, other_machine):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 256}.__getitem__, raising=False)
    expected = "'y' as 65536 columns needs"
    with pytest.raises(ResourceError) as caught:
        checks.targets([0, 1, 65535], "cross_entropy", ROWS, None, FLOAT64)
    actual = str(caught.value)

    assert expected in actual


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (ParameterError, ValueError),
        (ParameterTypeError, TypeError),
        (DataError, ValueError),
        (ResourceError, MemoryError),
        (DivergenceError, ArithmeticError),
    ],
)
def test_errors_can_be_caught_as_ours_and_as_builtin(error, builtin):
    assert issubclass(error, FastbpError)
    assert issubclass(error, builtin)


def test_divergence_error_survives_pickling():
    expected = DivergenceError(7, {"loss": [1.0]})
    expected.add_note("while tuning")
    actual = pickle.loads(pickle.dumps(expected))

    assert (actual.epoch, actual.result, str(actual)) == (7, {"loss": [1.0]}, str(expected))
    assert "epoch 7" in str(actual)
    assert actual.__notes__ == ["while tuning"]


@pytest.mark.parametrize("word", ["'learning_rate'", "X", "y", "weights"])
def test_divergence_error_names_every_possible_cause(word):
    assert re.search(rf"(?<!\w){word}(?!\w)", str(DivergenceError(1)))


# --- subclasses and objects that answer with errors ---------------------------------------------------------------


def failing(*_, **__):
    raise RuntimeError("mine")


METHODS = [
    *("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__hash__", "__bool__", "__len__", "__iter__"),
    *("__getitem__", "__contains__", "__index__", "__int__", "__float__", "__str__", "__repr__", "__format__"),
    *("__add__", "__mul__", "__array__", "__array_ufunc__", "__array_function__", "__getattr__", "copy", "item"),
    *("tolist", "lower", "keys", "values", "items", "bit_length", "__fspath__"),
]


def hostile(base, *arguments):
    """An instance of a subclass whose every method fails."""
    methods = {name: failing for name in METHODS if name != "__hash__"} | {"__hash__": object.__hash__}
    return type("Hostile", (base,), methods)(*arguments)


class WithoutClass:
    """As a proxy is whose object is not there yet."""

    @property
    def __class__(self):
        raise RuntimeError("not there")

    def __getattr__(self, name):
        raise RuntimeError("not there")


HOSTILE = {
    "object": lambda: hostile(object),
    "int": lambda: hostile(int, 3),
    "float": lambda: hostile(float, 0.5),
    "str": lambda: hostile(str, "tanh"),
    "list": lambda: hostile(list, [3, 2]),
    "tuple": lambda: hostile(tuple, (3, 2)),
    "dict": lambda: hostile(dict, {0: 1.0}),
    "array": lambda: np.arange(3.0).view(type("Hostile", (np.ndarray,), {"tolist": failing, "item": failing})),
    "proxy": WithoutClass,
    "list of objects": lambda: [hostile(object)] * 3,
    "dict of objects": lambda: {0: hostile(object)},
    "key": lambda: {hostile(object): 1.0},
    "class": lambda: type("Meta", (type,), {"__eq__": failing, "__hash__": type.__hash__})("Mine", (), {})(),
}


@pytest.mark.parametrize("check", [*SETTINGS, *DATA])
def test_hostile_object_passes_or_fails_by_a_typed_error(check):
    for make in HOSTILE.values():
        actual = outcome(check, make())

        assert isinstance(actual, FastbpError) or type(actual).__module__ != __name__


@pytest.mark.parametrize("value", [3, 0.5, "tanh", [3, 2], (3, 2), {0: 1.0}], ids=repr)
def test_subclass_counts_as_its_base_whatever_its_methods_do(value):
    checks_that_pass = [check for check in SETTINGS if not isinstance(outcome(check, value), FastbpError)]

    for check in checks_that_pass:
        expected = outcome(check, value)
        actual = outcome(check, hostile(type(value), value))

        assert actual == expected
        assert type(actual) is type(expected)
    assert checks_that_pass or value == {0: 1.0}


def test_member_of_an_enumeration_is_its_value():
    class Activation(str, enum.Enum):  # noqa: UP042 - whose str() is not the value
        RELU = "relu"

    expected = "relu"
    actual = checks.choice("activation", Activation.RELU, ELEMENTWISE)

    assert actual == expected
    assert type(actual) is str


NO_DEFAULT = {
    "NumPy integer": np.int64(4),
    "NumPy float": np.float32(0.5),
    "array": np.zeros(2),
    "array of nothing": np.zeros(0),
    "Series": pandas.Series([1, 2]),
    "pd.NA": pandas.NA,
    "hostile": hostile(object),
    "hostile str": hostile(str, "tanh"),
    "proxy": WithoutClass(),
    "list": [],
}
DEFAULTS = [(), "relu", True, 1.0, None]


@pytest.mark.parametrize("name", NO_DEFAULT)
@pytest.mark.parametrize("default", DEFAULTS, ids=repr)
def test_what_is_not_the_default_is_refused_beside_a_network(name, default):
    with pytest.raises(ParameterError, match="'hidden' must be left out where 'network' is given"):
        checks.alone(hidden=(NO_DEFAULT[name], default))


@pytest.mark.parametrize(
    ("value", "default"),
    [*((default, default) for default in DEFAULTS), (1, 1.0), (np.float32(1), 1.0), (np.str_("relu"), "relu"),
     (np.True_, True), (np.float64(1), 1.0)],
    ids=repr,
)  # fmt: skip
def test_default_is_accepted_beside_a_network(value, default):
    checks.alone(hidden=(value, default))


# --- large arrays -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", [np.array, np.asfortranarray, lambda X: X.astype(np.float16), lambda X: X[::-1]])
@pytest.mark.parametrize("piece", [1, 7, 100])
def test_pieces_in_which_rows_are_converted_show_in_no_bit(piece, form, dtype, monkeypatch):
    X = form(np.arange(60.0).reshape(20, 3))
    monkeypatch.setattr(checks, "_PIECE", piece)

    expected = X.astype(dtype)
    actual = checks.features(X, dtype)

    assert_ready(actual, dtype)
    assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("value", [np.nan, 1e39])
def test_bad_values_of_all_pieces_are_counted(value, monkeypatch):
    X = np.ones((20, 3))
    X[4, 1] = X[17, 2] = value
    monkeypatch.setattr(checks, "_PIECE", 7)

    with pytest.raises(DataError, match=r"got 2 bad of 60, the first at \[4, 1\]"):
        checks.features(X, FLOAT32)


def test_conversion_takes_no_array_beside_the_one_it_returns():
    X = np.ones((10**6, 2), np.float32)
    tracemalloc.start()
    try:
        actual = checks.features(X, FLOAT64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert actual.nbytes <= peak < actual.nbytes + 2**20
