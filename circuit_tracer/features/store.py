"""A feature store, opened: look features up, search them, wander among them."""

from __future__ import annotations

import difflib
import os
import random
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from circuit_tracer.errors import InputError, OutputError
from circuit_tracer.features import labels
from circuit_tracer.features.feature import (
    Bin,
    Example,
    Feature,
    Group,
    Kin,
    Label,
    Spread,
    Tokens,
)
from circuit_tracer.features.file import Reading, key_of, numbers_in, of_key
from circuit_tracer.features.tally import bin_edges

BEFORE, AFTER = 24, 8
"""Tokens of an example that are shown around the one it was chosen for."""

COLUMNS = "key, count, largest, mean, words"

TRIES = 64
"""Draws until one finds a feature that fires, before the next that does is taken."""


@dataclass(frozen=True)
class Row:
    """A feature in a list: its figures and its label. None where the source does not say."""

    layer: int
    id: int
    label: Label
    count: int | None
    density: float | None
    largest: float | None
    mean: float | None

    @property
    def name(self) -> str:
        """`L2#417`, as nodes are called."""
        return f"L{self.layer}#{self.id}"


class Store:
    """A feature store. `open_store` opens one.

    Attributes:
        about: what it is of: model, transcoders, kind, widths, texts, positions, languages.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._open()

    def _open(self) -> None:
        self._reading = Reading(self.path)
        self.about: dict[str, Any] = self._reading.about
        self._given = self._labels()
        columns = "layer, features, first, last, firing"
        found = self._reading.select(f"SELECT {columns} FROM layer ORDER BY layer")
        self._layers = {layer: _Layer(*rest) for layer, *rest in found}
        self._called: dict[tuple[int, int], Label] = {}

    def __repr__(self) -> str:
        return f"<{len(self):,} features of {self.about.get('transcoders')}>"

    def __len__(self) -> int:
        return sum(layer.features for layer in self._layers.values())

    def close(self) -> None:
        """Let the file go."""
        self._reading.close()

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers it knows features of."""
        return tuple(self._layers)

    def width(self, layer: int) -> int:
        """How many features of a layer it knows."""
        return self._layers[layer].features if layer in self._layers else 0

    def known(self, layer: int, feature: int) -> bool:
        """Whether it knows a feature."""
        query = "SELECT 1 FROM feature WHERE key = ?"
        return bool(self._reading.select(query, (key_of(layer, feature),)))

    def feature(self, layer: int, feature: int) -> Feature:
        """All that is known of a feature.

        Raises:
            InputError: one that is not in the store.

        Example:
            >>> from circuit_tracer import features
            >>> features.open_store().feature(0, 248).name
            'L0#248'
        """
        return self.understood(self._row(layer, feature))

    def understood(self, row: Row) -> Feature:
        """All that is known of a feature, given its row."""
        layer, feature = row.layer, row.id
        detail = self._reading.detail(layer, feature)
        if "reference" in detail:
            from circuit_tracer.features.reference import understood

            return replace(understood(layer, feature, detail["reference"]), label=row.label)
        return Feature(
            **{name: getattr(row, name) for name in row.__dataclass_fields__},
            groups=tuple(self._group(detail, *group) for group in detail["groups"]),
            silent=tuple(self._silent(detail, place) for place in detail["silent"]),
            histogram=_histogram(*detail["bins"]),
            raised=_tokens(detail["raised"], detail["raised_by"]),
            lowered=_tokens(detail["lowered"], detail["lowered_by"]),
            spread=self._spread(detail["spoken"]),
            coactive=tuple(Kin(a, b, both / drawn) for a, b, both, drawn in detail["coactive"]),
            similar=tuple(Kin(*kin) for kin in detail["similar"]),
        )

    def row(self, layer: int, feature: int) -> Row:
        """Figures and label of a feature. Raises InputError for one that is not there."""
        return self._row(layer, feature)

    def found(self, keys: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Row]:
        """Figures and labels of those (layer, id) features that the store knows, ascending."""
        rows = self._among(key_of(*key) for key in keys)
        return {(row.layer, row.id): row for row in map(self._made, rows)}

    def detail(self, layer: int, feature: int) -> dict[str, Any]:
        """What the file holds of a feature, as it holds it."""
        self._row(layer, feature)
        return self._reading.detail(layer, feature)

    def rows(self, layer: int | None = None, start: int = 0, most: int = 100) -> list[Row]:
        """Features in order, of a layer or all, `most` from the `start`-th on."""
        out: list[Row] = []
        for one, size in self._layers.items():
            if layer is not None and one != layer:
                continue
            if start < size.features:
                query = (
                    f"SELECT {COLUMNS} FROM feature WHERE key BETWEEN ? AND ? ORDER BY key "
                    "LIMIT ? OFFSET ?"
                )
                ends = key_of(one, 0), key_of(one + 1, 0) - 1
                found = self._reading.select(query, (*ends, most - len(out), start))
                out += map(self._made, found)
            start = max(0, start - size.features)
            if len(out) >= most:
                break
        return out

    def worded(self, layer: int) -> Iterator[tuple[Row, tuple[str, ...], tuple[str, ...]]]:
        """Features of a layer in order, with the words they fire at and those they raise."""
        query = f"SELECT {COLUMNS} FROM feature WHERE key BETWEEN ? AND ? ORDER BY key"
        ends = key_of(layer, 0), key_of(layer + 1, 0) - 1
        for row in self._reading.select(query, ends):
            yield self._made(row), *self._reading.words(row[-1])

    def search(self, text: str, most: int = 20) -> list[Row]:
        """Features by a word of their label, that they fire at, or that they raise.

        Labels that were given come first, then what features fire at, whole words before parts of
        words; within these, those that fire most often.

        Raises:
            InputError: nothing to look for.
        """
        wanted = text.casefold().strip()
        if not wanted:
            raise InputError("say what to look for, e.g. search capital")
        given = [key for key, label in self._given.items() if wanted in label.text.casefold()]
        found = {key: self._row(*key) for key in sorted(given)[:most] if self.known(*key)}
        for kind, whole in (("fires", True), ("says", True), ("fires", False), ("says", False)):
            if len(found) >= most:
                break
            for row in self._under(kind, wanted, whole, most + len(found)):
                found.setdefault((row.layer, row.id), row)
        return list(found.values())[:most]

    def _under(self, kind: str, wanted: str, whole: bool, most: int) -> list[Row]:
        """The features that fire most often of those under a word, or under words with it."""
        where = "folded = ?" if whole else "instr(folded, ?)"
        query = f"SELECT {kind} FROM word WHERE {where} AND length({kind}) ORDER BY number"
        keys: set[int] = set()
        for (packed,) in self._reading.select(query, (wanted,)):
            parts = numbers_in(packed, 2 * most)
            keys.update(map(key_of, parts[::2], parts[1::2]))
        rows = sorted(self._among(keys), key=lambda row: (-(row[1] or 0), row[0]))
        return [self._made(row) for row in rows[:most]]

    def _among(self, keys: Iterable[int]) -> list[tuple]:
        """The rows of those keys that are there, ascending."""
        rows: list[tuple] = []
        ordered = sorted(set(keys))
        for start in range(0, len(ordered), 500):
            some = ordered[start : start + 500]
            marks = ", ".join("?" * len(some))
            query = f"SELECT {COLUMNS} FROM feature WHERE key IN ({marks}) ORDER BY key"
            rows += self._reading.select(query, some)
        return rows

    def lucky(self, seed: int | None = None) -> Feature:
        """Some feature that fires; the same one for the same seed."""
        return self.feature(*self.lucky_key(seed))

    def lucky_key(self, seed: int | None = None) -> tuple[int, int]:
        """(layer, id) of that feature."""
        alive = {layer: size for layer, size in self._layers.items() if size.firing}
        if not alive:
            raise InputError(f"no feature of {self.path} ever fires")
        draw = random.Random(seed)
        weights = [size.features for size in alive.values()]
        for _ in range(TRIES):
            (layer,) = draw.choices(list(alive), weights)
            one = draw.randint(alive[layer].first, alive[layer].last)
            query = "SELECT count FROM feature WHERE key = ?"
            if any(count != 0 for (count,) in self._reading.select(query, (key_of(layer, one),))):
                return layer, one
        query = "SELECT min(key) FROM feature WHERE key >= ? AND (count IS NULL OR count > 0)"
        for start in (key_of(layer, one), 0):
            ((found,),) = self._reading.select(query, (start,))
            if found is not None:
                return of_key(found)
        raise InputError(f"no feature of {self.path} ever fires")

    @property
    def alive(self) -> bool:
        """Whether any feature fires."""
        return any(size.firing for size in self._layers.values())

    def beside(
        self, layer: int, feature: int
    ) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
        """(layer, id) of the features before and after one; None at the ends."""
        here = key_of(layer, feature)
        query = "SELECT {}(key) FROM feature WHERE key {} ?"
        ends = query.format("max", "<"), query.format("min", ">")
        before, after = (self._reading.select(one, (here,))[0][0] for one in ends)
        return None if before is None else of_key(before), None if after is None else of_key(after)

    def similar(self, layer: int, feature: int) -> list[tuple[Row, float]]:
        """Features with the nearest decoders, and their cosines, nearest first."""
        kin = self.feature(layer, feature).similar
        return [(self._row(one.layer, one.feature), one.share) for one in kin]

    def label(self, layer: int, feature: int) -> Label | None:
        """What a feature is called; None where the store does not know it."""
        return self._row(layer, feature).label if self.known(layer, feature) else None

    def labels(self, keys: Iterable[tuple[int, int]]) -> dict[tuple[int, int], Label]:
        """What those (layer, id) features are called that the store knows, ascending.

        They are remembered as long as the store is open.
        """
        wanted = sorted(set(keys))
        new = [key for key in wanted if key not in self._called]
        self._called.update((key, row.label) for key, row in self.found(new).items())
        return {key: self._called[key] for key in wanted if key in self._called}

    @property
    def given(self) -> Mapping[tuple[int, int], Label]:
        """Labels that people or a language model gave, by (layer, id)."""
        return dict(self._given)

    def set_labels(self, given: Mapping[tuple[int, int], Label | None]) -> None:
        """Call features so, in the file; None takes a label away.

        Raises:
            InputError: a feature that is not there.
            OutputError: a file that cannot be written.
        """
        for key in given:
            self._row(*key)
        try:
            with closing(sqlite3.connect(self.path)) as file, file:
                for place, label in given.items():
                    file.execute("DELETE FROM label WHERE key = ?", (key_of(*place),))
                    if label is not None:
                        row = (key_of(*place), label.text, label.source, label.score)
                        file.execute("INSERT INTO label VALUES (?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise OutputError(f"cannot write {self.path}: {error}") from error
        self._reading.close()
        self._open()

    def _labels(self) -> labels.Labels:
        rows = self._reading.select("SELECT key, text, source, score FROM label ORDER BY key")
        return {of_key(one): Label(text, source, score) for one, text, source, score in rows}

    def _row(self, layer: int, feature: int) -> Row:
        query = f"SELECT {COLUMNS} FROM feature WHERE key = ?"
        rows = self._reading.select(query, (key_of(layer, feature),))
        if not rows:
            raise InputError(self._missing(layer, feature))
        return self._made(rows[0])

    def _made(self, row: tuple) -> Row:
        key, count, largest, mean, words = row
        layer, one = of_key(key)
        label = self._given.get((layer, one))
        if label is None:
            heard, said = self._reading.words(words)
            early = layer < len(self.about.get("widths", ())) / 2  # what it raises says little
            label = labels.automatic(heard, () if early and heard else said, count)
        positions = self.about.get("positions")
        density = None if count is None or not positions else count / positions
        return Row(layer, one, label, count, density, largest, mean)

    def _missing(self, layer: int, feature: int) -> str:
        size = self._layers.get(layer)
        if size is None:
            known = ", ".join(map(str, self.layers)) or "none"
            return f"{self.path} has no features of layer {layer}; it has layers {known}"
        query = "SELECT key FROM feature WHERE key BETWEEN ? AND ? LIMIT 5000"
        keys = self._reading.select(query, (key_of(layer, 0), key_of(layer + 1, 0) - 1))
        ids = [str(of_key(key)[1]) for (key,) in keys]
        near = difflib.get_close_matches(str(feature), ids, 3)
        nearest = f"; it has {', '.join(f'{layer}.{one}' for one in near)}" if near else ""
        return (
            f"{self.path} has no feature {feature} in layer {layer}, whose features are "
            f"{size.first} to {size.last}{nearest}"
        )

    def _group(self, detail: dict[str, Any], name: str, *places: int) -> Group:
        """A group of examples; places are (number among the feature's pieces, position) in turn."""
        examples = [
            self._example(detail["pieces"][piece], position, detail["flat"][piece])
            for piece, position in zip(places[::2], places[1::2], strict=True)
        ]
        ends = [example.activations[example.position] for example in examples]
        return Group(name, min(ends), max(ends), tuple(examples))

    def _silent(self, detail: dict[str, Any], place: int) -> Example:
        """The middle of a text in which a feature does not fire."""
        piece = detail["pieces"][place]
        tokens, _ = self._reading.piece(piece)
        return self._example(piece, len(tokens) // 2, detail["flat"][place])

    def _example(self, piece: int, position: int, flat: list[float]) -> Example:
        tokens, language = self._reading.piece(piece)
        start, end = max(0, position - BEFORE), min(len(tokens), position + AFTER + 1)
        values = dict(zip(flat[::2], flat[1::2], strict=True))
        return Example(
            tuple(tokens[start:end]),
            tuple(values.get(place, 0.0) for place in range(start, end)),
            position - start,
            language,
        )

    def _spread(self, spoken: list[int]) -> Spread:
        sizes: dict[str, int] = self.about.get("languages", {})
        if list(sizes) == [""]:
            return Spread.of({})
        counts = spoken or [0] * len(sizes)
        return Spread.of({
            name: count / size if size else 0.0
            for (name, size), count in zip(sizes.items(), counts, strict=True)
        })  # fmt: skip

    def __iter__(self) -> Iterator[Row]:
        query = f"SELECT {COLUMNS} FROM feature WHERE key > ? ORDER BY key LIMIT 1000"
        last = -1
        while rows := self._reading.select(query, (last,)):
            yield from map(self._made, rows)
            last = rows[-1][0]


@dataclass(frozen=True)
class _Layer:
    """Of a layer: how many features the store knows, the first and last, and how many fire."""

    features: int
    first: int
    last: int
    firing: int


def open_store(path: str | os.PathLike[str] = "plt") -> Store:
    """Open a feature store.

    Args:
        path: its file; "plt" or "clt" for those of the bundled model.

    Raises:
        InputError: no such file, or no store.
    """
    from circuit_tracer.bundled import features_file

    return Store(features_file(str(path)) if str(path) in ("plt", "clt") else path)


def _tokens(tokens: list[str], values: list[float]) -> Tokens:
    return tuple(zip(tokens, values, strict=True))


def _histogram(first: int = 0, *counts: int) -> tuple[Bin, ...]:
    return tuple(Bin(*bin_edges(place), n) for place, n in enumerate(counts, first) if n)
