"""How far a training is: a bar of tqdm, or a plain line where tqdm is not installed."""

from __future__ import annotations

import sys
import time
from typing import Any

LINE_SECONDS = 0.1  # from one plain line to the next
LINE_WIDTH = 79  # a line is filled up to it with blanks, which cover a longer one before


class Progress:
    """A bar on stderr while it is entered, if `shown`; it counts epochs, or networks."""

    def __init__(self, total: int, shown: bool, unit: str = "epoch") -> None:
        self.total, self.unit = total, unit
        self.shown = shown and sys.stderr is not None  # it is None under pythonw and in services
        self.bar: Any = None
        self.done: int = 0
        self.loss: float | None = None
        self.began = self.last = time.perf_counter()

    def __enter__(self) -> Progress:
        if self.shown:
            try:
                from tqdm import tqdm
            except ImportError:
                return self
            self.bar = tqdm(total=self.total, unit=self.unit)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.shown and self.done:
            self._line()
            sys.stderr.write("\n")

    def show(self, done: int, loss: float | None = None) -> None:
        """Show how many are done, and the loss of the last epoch."""
        if not self.shown:
            return
        if self.bar is not None:
            if loss is not None:
                self.bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
            self.bar.update(done - self.bar.n)
            return
        self.done, self.loss = done, loss
        now = time.perf_counter()
        if now - self.last >= LINE_SECONDS:
            self.last = now
            self._line()

    def _line(self) -> None:
        """Write the plain line over the one before."""
        rate = self.done / max(time.perf_counter() - self.began, 1e-9)
        loss = "" if self.loss is None else f" loss {self.loss:.4g},"
        line = f"{self.unit} {self.done} of {self.total},{loss} {rate:.4g} {self.unit}s/s"
        sys.stderr.write(f"\r{line:<{LINE_WIDTH}}")
        sys.stderr.flush()
