"""The page on clusters: what is computed from figures, and that it is what the command writes."""

import re
from pathlib import Path

import pytest

from benchmarks import cluster
from benchmarks.cluster import Figures, networks_of_a_part, page

FIGURES = [Figures(workers, 0.01, 0.001 * workers, 0.004, workers, 140_000, 300.0, 42_000.0) for workers in (1, 2, 4)]


@pytest.mark.parametrize("workers", [1, 100, 1000])
@pytest.mark.parametrize("seconds", [0.0001, 0.01, 1.0])
@pytest.mark.parametrize(("hub", "worker"), [(0.001, 0.004), (0.003, 0.0), (0.0, 0.01)])
def test_workers_are_busy_with_so_many_networks_and_not_with_fewer(workers, seconds, hub, worker):
    def busy(networks):
        training = networks * seconds
        return training / max(training + worker, workers * hub)

    networks = networks_of_a_part(workers, seconds, hub, worker)

    assert networks % 16 == 0
    assert busy(networks) >= 0.9 - 1e-9
    assert networks == 16 or busy(networks - 16) < 0.9


def test_page_says_what_was_measured_and_what_follows():
    text = page(FIGURES, "Some CPU")

    assert "| 2 | 0.01000 | 0.00200 | 0.00400 | 2 | 140,000 | 300 | 42,000 |" in text
    assert "h = 4.0 ms and o = 4.0 ms" in text.replace("\n", " ")
    assert f"| 0.01 s | 48 | {networks_of_a_part(1000, 0.01, 0.004, 0.004)} |" in text
    assert max(len(line) for line in text.splitlines() if line[0:1] != "|") <= 120


def test_page_in_the_folder_has_the_words_of_the_command():
    def words(text):
        return re.sub(r"[\d.,]+|\(.*?\)", "", text).split()

    assert words(Path(cluster.PAGE).read_text(encoding="utf-8")) == words(page(FIGURES, "Some CPU"))
