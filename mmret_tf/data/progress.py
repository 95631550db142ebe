"""Progress of long work (进度): a bar in a terminal or notebook, plain lines in a log file."""

import sys

import keras


def is_interactive() -> bool:
    """Whether output goes to a terminal or a notebook, where a line can be overwritten."""
    return sys.stdout.isatty() or "ipykernel" in sys.modules


class Progress:
    """Reports how much is done: a bar, or ten lines where output is not interactive.

    Args:
        total: Number of steps.
        unit: Name of one step.

    >>> progress = Progress(200, "item")
    >>> for done in (19, 20, 39, 200):
    ...     progress.update(done)
    20/200 items
    200/200 items
    """

    def __init__(self, total: int, unit: str):
        self.total = total
        self.unit = unit
        self._bar = keras.utils.Progbar(total, unit_name=unit) if is_interactive() else None
        self._tenths = 0

    def update(self, done: int) -> None:
        """Report the number of steps that are done."""
        if self._bar is not None:
            self._bar.update(done)
        elif (tenths := 10 * done // self.total) > self._tenths:
            self._tenths = tenths
            print(f"{done}/{self.total} {self.unit}s", flush=True)
