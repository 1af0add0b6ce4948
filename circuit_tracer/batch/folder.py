"""The folder of a batch: what was done, and how it stays true whatever happens."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from circuit_tracer.batch.jobs import Job
from circuit_tracer.batch.merged import Profiled
from circuit_tracer.errors import InputError, OutputError
from circuit_tracer.files import write_text
from circuit_tracer.graph import Graph

IDENTITY = "batch.json"


@dataclass(frozen=True)
class Traced:
    """What tracing a prompt gave.

    Attributes:
        figures: of `statistics`.
        profile: what the merged graph needs.
        page: the graph's HTML page, where it is wanted.
    """

    graph: Graph
    figures: Mapping[str, Any]
    profile: Profiled
    page: str | None = None


@dataclass(frozen=True)
class Record:
    """What is known of one prompt.

    Attributes:
        job: what was asked.
        error: why there is no graph; None where there is one.
        figures: by name; empty where there is no graph.
    """

    job: Mapping[str, Any]
    error: str | None
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Folder:
    """Where a batch lies.

    Attributes:
        root: the folder.
        pages: whether every graph is to have a page.
    """

    root: Path
    pages: bool = False

    def open(self, identity: Mapping[str, Any]) -> None:
        """Make the folders, and note what batch this is.

        Raises:
            InputError: it holds another one.
            OutputError: it cannot be made.
        """
        try:
            for name in ("graphs", "profiles", "records", *(["pages"] if self.pages else [])):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {self.root}: {error.strerror or error}") from error
        path, here = self.root / IDENTITY, json.loads(json.dumps(identity))
        if path.is_file():
            try:
                before = dict(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError) as error:
                raise InputError(f"{path} is damaged; name another folder") from error
            for name in sorted({*before, *here}):
                if before.get(name) != here.get(name):
                    raise InputError(
                        f"{self.root} holds a batch with another {name}: {before.get(name)!r} "
                        f"there, {here.get(name)!r} here. Name another folder"
                    )
        write_text(path, json.dumps(here, indent=1, ensure_ascii=False) + "\n")

    def known(self, job: Job) -> Record | None:
        """The record of a job that was done before; a changed prompt is another job."""
        try:
            found = Record(**json.loads(self.record(job.id).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        wanted = [self.graph(job.id), self.profile(job.id)]
        wanted += [self.page(job.id)] if self.pages else []
        lacks = found.error is None and not all(path.is_file() for path in wanted)
        return None if lacks or found.job != job.plain() else found

    def keep(self, job: Job, found: Traced | str) -> Record:
        """Write what came of a job, its record last.

        Args:
            found: or the reason why there is nothing.

        Raises:
            OutputError: something cannot be written; there is no record then, and all others stay.
        """
        if isinstance(found, str):
            record = Record(job.plain(), found)
        else:
            found.graph.save(self.graph(job.id))
            found.profile.save(self.profile(job.id))
            if self.pages and found.page is not None:
                write_text(self.page(job.id), found.page)
            record = Record(job.plain(), None, found.figures)
        text = json.dumps(dataclasses.asdict(record), ensure_ascii=False, indent=1)
        write_text(self.record(job.id), text + "\n")
        return record

    def graph(self, name: str) -> Path:
        return self.root / "graphs" / f"{name}.safetensors"

    def profile(self, name: str) -> Path:
        return self.root / "profiles" / f"{name}.safetensors"

    def page(self, name: str) -> Path:
        return self.root / "pages" / f"{name}.html"

    def record(self, name: str) -> Path:
        return self.root / "records" / f"{name}.json"
