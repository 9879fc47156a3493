"""How far a command is: a bar in a terminal, a line now and then where there is none."""

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
)
from rich.text import Text

from papr.cli.console import shown

_EVERY = 10.0  # seconds


class Bar(Progress):
    """A bar with a count and a remaining time that follows from all that was done so far.

    Where the console is no terminal, a line says the same every ten seconds.

    Args:
        label: what is done; may hold fields of a task, such as {task.description}.
        console: where it is drawn.
        counted: show how many are done; else the percentage, where steps are not alike.
    """

    def __init__(self, label: str, console: Console, counted: bool = True) -> None:
        count = MofNCompleteColumn() if counted else TaskProgressColumn()
        columns = (TextColumn(label), BarColumn(), count, _Left())
        unseen = not console.is_terminal
        super().__init__(*columns, console=console, transient=True, disable=unseen)
        self._label, self._said = label, time.monotonic() - 0.7 * _EVERY

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count steps."""
        super().advance(task_id, advance)
        self._note(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a task."""
        super().update(task_id, **changes)
        if {"advance", "completed"} & {*changes}:
            self._note(task_id)

    def _note(self, task_id: TaskID) -> None:
        """Remember when this was, and say it where nobody sees a bar."""
        task = self.tasks[self.task_ids.index(task_id)]
        task.fields["at"] = task.elapsed
        if not self.disable or time.monotonic() - self._said < _EVERY:
            return
        self._said = time.monotonic()
        percent = "" if task.total is None else f" {task.percentage:.0f} %"
        seconds = left(task)
        more = "" if seconds is None else f", {timedelta(seconds=int(seconds))} left"
        text = f"{self._label.format(task=task)}:{percent}{more}"
        self.console.print(text, highlight=False, markup=False)


class _Left(ProgressColumn):
    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        seconds = left(task)
        shown = "-:--:--" if seconds is None else str(timedelta(seconds=int(seconds)))
        return Text(shown, style="progress.remaining")


def left(task: Task) -> float | None:
    """Seconds until a task ends if it goes on as it went since it began; None where unknown."""
    at, elapsed = task.fields.get("at"), task.elapsed
    if not at or elapsed is None or not task.completed or task.total is None:
        return None
    rest = at / task.completed * (task.total - task.completed)
    return float(max(0.0, rest - (elapsed - at)))


@contextlib.contextmanager
def doing(text: str, console: Console) -> Iterator[Callable[[str], None]]:
    """Say what is being done: beside a spinner in a terminal, in a line where there is none.

    Yields:
        What is told the next step.
    """
    if console.is_terminal:
        with console.status(text) as status:
            yield lambda step: status.update(Text(shown(step)))
        return

    def say(step: str) -> None:
        console.print(f"{step} ...", highlight=False, markup=False, soft_wrap=True)

    say(text)
    yield say
