"""How far a training is: a bar of tqdm, or a plain line where tqdm is not installed."""

from __future__ import annotations

import sys
import time
from typing import Any

LINE_SECONDS = 0.1  # from one plain line to the next
LINE_WIDTH = 79  # a line is filled up to it with blanks, which cover a longer one before


class Progress:
    """A bar on stderr while it is entered, if `shown`; it counts epochs."""

    def __init__(self, epochs: int, shown: bool) -> None:
        self.epochs, self.shown = epochs, shown and sys.stderr is not None  # it is None under pythonw and in services
        self.bar: Any = None
        self.done, self.loss = 0, 0.0
        self.began = self.last = time.perf_counter()

    def __enter__(self) -> Progress:
        if self.shown:
            try:
                from tqdm import tqdm
            except ImportError:
                return self
            self.bar = tqdm(total=self.epochs, unit="epoch")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.shown and self.done:
            self._line()
            sys.stderr.write("\n")

    def show(self, done: int, loss: float) -> None:
        """Show the epochs done and the loss of the last."""
        if not self.shown:
            return
        if self.bar is not None:
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
        line = f"epoch {self.done} of {self.epochs}, loss {self.loss:.4g}, {rate:.4g} epochs/s"
        sys.stderr.write(f"\r{line:<{LINE_WIDTH}}")
        sys.stderr.flush()
