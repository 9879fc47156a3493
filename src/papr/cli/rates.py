"""How far a run over a data set is: samples, their rate and the remaining time."""

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from papr.cli.common import errors, print_line
from papr.cli.hosting import first
from papr.words import counted

if TYPE_CHECKING:  # the extra "eval" is for those commands that need it
    from papr.evaluate import Source

_EVERY = 30.0  # seconds


class Rate(Progress):
    """A bar over samples with their rate and the remaining time, on standard error.

    `watch` is what `papr.evaluate` calls. Where standard error is no terminal, a line is printed
    every 30 seconds instead. Nothing is drawn by any but the first of torchrun's processes.

    Args:
        unit: what is counted, in the singular.
    """

    def __init__(self, unit: str = "image") -> None:
        super().__init__(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeRemainingColumn(),
            console=errors,
            transient=True,
            disable=not first(),
        )
        self._task = self.add_task("starting", total=None, count="")
        self._found: int | None = None  # samples that an earlier session had done
        self._unit, self._said, self._all = unit, time.monotonic(), False

    def watch(self, done: int, total: int | None) -> None:
        """Count samples; the first call says how many an earlier session had done."""
        task = self.tasks[0]
        if self._found is None:
            self._found = done
            self._all = done == total
        completed = int(task.completed) + done
        fresh, elapsed = completed - self._found, task.elapsed or 0.0
        rate = f", {fresh / elapsed:.1f} {self._unit}s/s" if fresh and elapsed else ""
        count = f"{completed} of {total}{rate}" if total else f"{completed}{rate}"
        self.update(
            self._task,
            completed=completed,
            total=total,
            description=f"{self._unit}s",
            count=Text(count),
        )
        if not self.console.is_terminal and not self.disable:
            self._say(count)

    def _say(self, count: str) -> None:
        if time.monotonic() - self._said < _EVERY:
            return
        self._said = time.monotonic()
        left = self.tasks[0].time_remaining
        more = f", {timedelta(seconds=int(left))} left" if left else ""
        print_line(f"{self._unit}s: {count}{more}", to=errors)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Say how a stopped run goes on, and that a finished one had nothing left to do."""
        super().__exit__(kind, error, trace)
        if self.disable:
            return
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            done = int(self.tasks[0].completed)
            errors.print(f"stopped after {counted(done, self._unit)}: the same command goes on")
        elif kind is None and self._all:
            errors.print("nothing was left to do: these are the figures of the finished run")


def rate_of(source: "Source") -> Rate:
    """A bar over the samples of a source, named as they are."""
    return Rate("video" if source.kind == "videos" else "image")
