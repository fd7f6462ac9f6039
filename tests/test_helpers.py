"""What decides in the tests that a clock gives the verdict of is tried without one."""

import itertools
import re

import pytest
from helpers import assert_once_at_most, machine, pairwise, ratio_of_seconds


def test_one_measurement_within_the_limit_is_enough():
    left = [3.0, 2.0, 1.0, 5.0]
    assert_once_at_most(1.0, lambda: left.pop(0))

    assert left == [5.0]


@pytest.mark.parametrize("figure", [1.1, float("nan")])
def test_several_measurements_beyond_the_limit_fail_and_name_the_machine(figure):
    figures = []

    def measure():
        figures.append(figure)
        return figure

    with pytest.raises(AssertionError, match=f"{figure}.* all above 1.0 on {re.escape(machine())}"):
        assert_once_at_most(1.0, measure)

    assert len(figures) == 5


def test_ratio_is_the_median_of_pairs_measured_in_turns():
    calls = []

    def timed(name, seconds):
        seconds = iter(seconds)

        def measure():
            calls.append(name)
            return next(seconds)

        return measure

    expected = 2.0
    actual = ratio_of_seconds(timed("a", [2, 50, 3]), timed("b", [1, 10, 3]), rounds=3)

    assert actual == expected
    assert calls == ["a", "b"] * 3


def test_each_two_choices_meet():
    axes = [[1, 2, 3], "ab", [True, False, None]]
    rows = list(pairwise(0, *axes))

    for i, j in itertools.combinations(range(3), 2):
        assert {(row[i], row[j]) for row in rows} == set(itertools.product(axes[i], axes[j]))
