"""What is shown while something runs: one bar on stderr, and nothing where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[float, str], None]


@contextmanager
def bar(quiet: bool = False) -> Iterator[Report]:
    """Yield `report(done, message)`, done from 0 to 1; the bar is gone afterwards."""
    if quiet or sys.stderr is None or not sys.stderr.isatty():
        yield lambda done, message: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("starting", total=1.0)

        def report(done: float, message: str) -> None:
            shown.update(task, completed=done, description=message)

        yield report
