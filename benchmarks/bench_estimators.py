"""Epochs per second of scikit-learn's classifier and of `fastbp.sklearn`'s, by `fit`, on data sets of scikit-learn."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest


class Task(NamedTuple):
    """A data set and what both classifiers are told about it."""

    loader: str
    hidden: int
    batch_size: int


TASKS = {"digits": Task("load_digits", 100, 200), "breast cancer": Task("load_breast_cancer", 16, 32)}
LIBRARIES = {"fastbp": "fastbp.sklearn", "scikit-learn": "sklearn.neural_network"}


def fitter(task: Task, library: str, dtype: str) -> Callable[[int], Any]:
    """Return `fit(epochs)`, with relu, Adam and the defaults of scikit-learn, which only the epochs end."""
    from sklearn import datasets
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.preprocessing import StandardScaler

    classifier = importlib.import_module(LIBRARIES[library]).MLPClassifier
    X, y = getattr(datasets, task.loader)(return_X_y=True)
    X = StandardScaler().fit_transform(X).astype(dtype)

    def fit(epochs: int) -> Any:
        model = classifier(
            (task.hidden,), batch_size=task.batch_size, max_iter=epochs, tol=0, n_iter_no_change=np.inf, random_state=0
        )
        with warnings.catch_warnings(category=ConvergenceWarning, action="ignore"):
            return model.fit(X, y)

    return fit


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", TASKS)
def test_estimator(name: str, dtype: str, measure: Callable[..., None]) -> None:
    limit = pytest.importorskip("threadpoolctl").threadpool_limits
    with limit(1):  # fastbp has one thread anyway
        makers = {library: partial(fitter, TASKS[name], library, dtype) for library in LIBRARIES}
        measure("estimators", f"{name} {dtype}", makers)
