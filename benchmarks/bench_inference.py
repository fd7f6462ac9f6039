"""Predictions per second: whole calls, a few rows or many."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from benchmarks.cases import PREDICTIONS
from benchmarks.peers import PREDICTORS, predictor


@pytest.mark.parametrize("name", PREDICTIONS)
def test_inference(name: str, measure: Callable[..., None]) -> None:
    measure("predict", name, {library: partial(predictor, PREDICTIONS[name], library) for library in PREDICTORS})
