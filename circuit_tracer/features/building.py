"""Building a store: every text through the model once, what fires counted, and the best described.

Texts are cut into pieces that go through the model one at a time, so that no number depends on the
company it was computed in: an interrupted build that goes on, and shards that are merged, give what
one uninterrupted build gives.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from circuit_tracer.agreement.measure import pieces
from circuit_tracer.errors import InputError
from circuit_tracer.features.corpus import Document
from circuit_tracer.features.describing import Detail, describe
from circuit_tracer.features.firing import firing
from circuit_tracer.features.part import Part, Settings, chained, merged
from circuit_tracer.features.tally import Entries
from circuit_tracer.replacement import ReplacementModel

Progress = Callable[[float, str], None]

SAVED = 120.0
"""Seconds between two savings of an unfinished build."""

CELLS, PIECES = 4_000_000, 50_000
"""Places where features fire, and pieces of text, that may wait in memory."""

COUNTED = 0.6
"""Share of a build's time that counting takes, as progress is told."""


def build(
    model: ReplacementModel,
    texts: Iterable[Document | str],
    path: str | os.PathLike[str],
    top: int = 8,
    sample: int = 24,
    detail: Detail | None = None,
    layers: Collection[int] | None = None,
    total: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Build a feature store from texts.

    While it is built, what was counted lies in `path` + ".part"; where that is there already, a
    build of the same texts goes on from it.

    Args:
        model: whose transcoders' features are described.
        texts: `corpus.documents`, or plain texts.
        path: the store, an SQLite file.
        top, sample: examples of a feature that are looked at: the strongest pieces of text, and
            places drawn evenly among all where it fires.
        detail: how much of it is written down.
        layers: whose features are described; all where left out. Stores of other layers, built
            of the same texts, are joined by `join`.
        total: how many texts there are, for progress.
        progress: called with (share done, message).

    Raises:
        InputError: no text; a part of another model or other texts at `path`.
    """
    detail = detail or Detail()  # say what is wrong with it before the long work
    part = count(
        model, texts, _beside(path), top, sample, layers=layers, total=total, progress=progress
    )
    describe(model, part, path, detail, _after(progress))
    part.path.unlink()


def count(
    model: ReplacementModel,
    texts: Iterable[Document | str],
    path: str | os.PathLike[str],
    top: int = 8,
    sample: int = 24,
    shard: tuple[int, int] = (0, 1),
    layers: Collection[int] | None = None,
    total: int | None = None,
    progress: Progress | None = None,
) -> Part:
    """Count what fires in texts, or in one shard of them, into a part that can be merged.

    This is what one of several workers does: it needs the model, the texts and a path of its own,
    and `merge` needs only the files that the workers wrote.

    Args:
        shard: (k, n) takes documents k, k + n, k + 2n …
        layers: whose features are described; all where left out.

    Raises:
        InputError: no text; a part of another model or other texts at `path`.
    """
    settings = _settings(model, top, sample, shard, layers)
    part = _opened(Path(path), settings)
    counting = _Counting(model, part)
    clock = time.monotonic()
    for number, document in _remaining(texts, part):
        counting.add(document)
        if time.monotonic() - clock > SAVED or part.waiting() > PIECES:
            counting.save()
            clock = time.monotonic()
        if progress is not None:
            share = 0.0 if not total else min(1.0, (number + 1) / total)
            positions = sum(part.positions)
            progress(share * COUNTED, f"{part.done:,} texts, {positions:,} tokens")
    if not sum(part.positions):
        raise InputError("the texts hold no token to count (the first one of each is left out)")
    counting.save()
    return part


def merge(
    model: ReplacementModel,
    parts: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    detail: Detail | None = None,
    progress: Progress | None = None,
) -> None:
    """A store from parts that were counted apart, by `count`.

    Raises:
        InputError: parts of another model, or that do not go together.
    """
    if not parts:
        raise InputError("name the parts to merge")
    opened = [Part.open(Path(part)) for part in parts]
    first = opened[0].settings
    _check(opened[0], _settings(model, first.top, first.sample, first.shard, first.layers))
    beside = Path(path).with_name(f".{Path(path).name}.{secrets.token_hex(4)}.merging")
    try:
        describe(model, merged(beside, opened), path, detail or Detail(), progress)
    finally:
        beside.unlink(missing_ok=True)


@dataclass
class _Counting:
    """A part to which documents are added; what fires waits until there is much of it."""

    model: ReplacementModel
    part: Part
    waiting: int = 0
    entries: list[list[Entries]] = field(default_factory=list)
    said: list[list[np.ndarray]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._empty()

    def add(self, document: Document) -> None:
        language = self.part.add_language(document.language)
        for ids in pieces(self.model, [document.text]):
            ignored = self.model.ignored_by_default(ids)
            counted = len(ids) - len(ignored)
            if counted < 1:
                continue
            number = self.part.add_piece(ids.tolist(), document.language)
            self.part.positions[language] += counted
            for layer, found in enumerate(firing(self.model, ids, self.part.settings.read)):
                found = found[~np.isin(found["position"], ignored)]
                found["piece"] = number
                self.entries[layer].append(found)
                self.said[layer].append(np.full(len(found), language))
                self.waiting += len(found)
        self.part.follow(document)
        if self.waiting > CELLS:
            self._flush()

    def save(self) -> None:
        self._flush()
        self.part.save()

    def _flush(self) -> None:
        for tally, entries, said in zip(self.part.tallies, self.entries, self.said, strict=True):
            if entries:
                tally.add(np.concatenate(entries), np.concatenate(said))
        self._empty()

    def _empty(self) -> None:
        self.entries = [[] for _ in self.part.tallies]
        self.said = [[] for _ in self.part.tallies]
        self.waiting = 0


def _settings(
    model: ReplacementModel,
    top: int,
    sample: int,
    shard: tuple[int, int],
    layers: Collection[int] | None,
) -> Settings:
    every = range(model.adapter.n_layers)
    widths = tuple(len(model.transcoders.layer(layer).encoder) for layer in every)
    wanted = tuple(every if layers is None else sorted(set(layers)))
    transcoders = model.transcoders
    names = model.adapter.name, transcoders.name, transcoders.kind
    return Settings(*names, widths, wanted, top, sample, shard)


def _opened(path: Path, settings: Settings) -> Part:
    """The part at a path, or a new one."""
    if not path.exists():
        return Part(path, settings)
    part = Part.open(path)
    _check(part, settings)
    return part


def _check(part: Part, settings: Settings) -> None:
    if part.settings != settings:
        raise InputError(
            f"{part.path} is of {part.settings}, and this build of {settings}. Delete it to begin "
            "anew, or write elsewhere"
        )


def _remaining(texts: Iterable[Document | str], part: Part) -> Iterator[tuple[int, Document]]:
    """(number, document) of those a part has not counted yet."""
    shard, shards = part.settings.shard
    done, wanted = part.done, part.digest
    digest, seen = "", 0
    for number, text in enumerate(texts):
        if number % shards != shard:
            continue
        document = Document(text) if isinstance(text, str) else text
        if seen == done:
            yield number, document
            continue
        digest = chained(digest, document)
        seen += 1
        if seen == done and digest != wanted:
            break
    if digest == wanted:
        return
    raise InputError(
        f"{part.path} was counted from other texts, or these have changed since; delete it to "
        "begin anew"
    )


def _beside(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path.with_name(path.name + ".part")


def _after(progress: Progress | None) -> Progress | None:
    if progress is None:
        return None
    return lambda share, message: progress(COUNTED + (1 - COUNTED) * share, message)
