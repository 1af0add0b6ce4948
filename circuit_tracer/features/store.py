"""A feature store, opened: look features up, search them, wander among them."""

from __future__ import annotations

import difflib
import json
import os
import random
import sqlite3
from collections.abc import Iterator, Mapping
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
from circuit_tracer.features.file import Reading
from circuit_tracer.features.tally import bin_edges

BEFORE, AFTER = 24, 8
"""Tokens of an example that are shown around the one it was chosen for."""

COLUMNS = "layer, id, count, largest, mean, fires, says"


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
        self._reading.function("folded", 1, _folded)
        self.about: dict[str, Any] = self._reading.about
        self._given = self._labels()
        self._firing: int | None = None

    def __repr__(self) -> str:
        return f"<{len(self):,} features of {self.about.get('transcoders')}>"

    def __len__(self) -> int:
        return int(self._reading.select("SELECT COUNT(*) FROM feature")[0][0])

    def close(self) -> None:
        """Let the file go."""
        self._reading.close()

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers it knows features of."""
        rows = self._reading.select("SELECT DISTINCT layer FROM feature ORDER BY layer")
        return tuple(layer for (layer,) in rows)

    def width(self, layer: int) -> int:
        """How many features of a layer it knows."""
        return int(
            self._reading.select("SELECT COUNT(*) FROM feature WHERE layer = ?", (layer,))[0][0]
        )

    def known(self, layer: int, feature: int) -> bool:
        """Whether it knows a feature."""
        query = "SELECT 1 FROM feature WHERE layer = ? AND id = ?"
        return bool(self._reading.select(query, (layer, feature)))

    def feature(self, layer: int, feature: int) -> Feature:
        """All that is known of a feature.

        Raises:
            InputError: one that is not in the store.

        Example:
            >>> from circuit_tracer import features
            >>> features.open_store().feature(0, 248).name
            'L0#248'
        """
        row = self._row(layer, feature)
        detail = self._reading.detail(layer, feature)
        if "reference" in detail:
            from circuit_tracer.features.reference import understood

            return replace(understood(layer, feature, detail["reference"]), label=row.label)
        return Feature(
            **{name: getattr(row, name) for name in row.__dataclass_fields__},
            groups=tuple(self._group(*group) for group in detail["examples"]),
            histogram=tuple(Bin(*bin_edges(place), n) for place, n in detail["bins"]),
            raised=_tokens(detail["raised"]),
            lowered=_tokens(detail["lowered"]),
            spread=self._spread(detail["spoken"]),
            coactive=tuple(Kin(a, b, both / drawn) for a, b, both, drawn in detail["coactive"]),
            similar=tuple(Kin(*kin) for kin in detail["similar"]),
        )

    def row(self, layer: int, feature: int) -> Row:
        """Figures and label of a feature. Raises InputError for one that is not there."""
        return self._row(layer, feature)

    def detail(self, layer: int, feature: int) -> dict[str, Any]:
        """What the file holds of a feature, as it holds it."""
        self._row(layer, feature)
        return self._reading.detail(layer, feature)

    def rows(self, layer: int | None = None, start: int = 0, most: int = 100) -> list[Row]:
        """Features in order, of a layer or all, `most` from the `start`-th on."""
        where = "" if layer is None else "WHERE layer = ?"
        query = f"SELECT {COLUMNS} FROM feature {where} ORDER BY layer, id LIMIT ? OFFSET ?"
        values = [] if layer is None else [layer]
        return [self._made(row) for row in self._reading.select(query, [*values, most, start])]

    def search(self, text: str, most: int = 20) -> list[Row]:
        """Features by a word of their label, that they fire at, or that they raise.

        Labels that people gave come first, then what features fire at, whole words before parts of
        words; within these, those that fire most often.

        Raises:
            InputError: nothing to look for.
        """
        wanted = _folded(text).strip()
        if not wanted:
            raise InputError("say what to look for, e.g. search capital")
        given = [key for key, label in self._given.items() if wanted in _folded(label.text)]
        found = [self._row(*key) for key in sorted(given) if self.known(*key)]
        whole = json.dumps(wanted, ensure_ascii=False)
        part = whole[1:-1]
        rows = self._reading.select(
            f"SELECT {COLUMNS} FROM feature WHERE instr(folded(fires || says), ?) ORDER BY "
            "instr(folded(fires), ?) = 0, instr(folded(says), ?) = 0, "
            "instr(folded(fires), ?) = 0, count DESC, layer, id LIMIT ?",
            (part, whole, whole, part, most + len(found)),
        )
        more = [self._made(row) for row in rows]
        keys = {(row.layer, row.id) for row in found}
        return [*found, *(row for row in more if (row.layer, row.id) not in keys)][:most]

    def lucky(self, seed: int | None = None) -> Feature:
        """Some feature that fires; the same one for the same seed."""
        return self.feature(*self.lucky_key(seed))

    def lucky_key(self, seed: int | None = None) -> tuple[int, int]:
        """(layer, id) of that feature."""
        fires = "FROM feature WHERE count IS NULL OR count > 0"
        if self._firing is None:
            self._firing = int(self._reading.select(f"SELECT COUNT(*) {fires}")[0][0])
        if not self._firing:
            raise InputError(f"no feature of {self.path} ever fires")
        query = f"SELECT layer, id {fires} ORDER BY layer, id LIMIT 1 OFFSET ?"
        place = random.Random(seed).randrange(self._firing)
        return self._reading.select(query, (place,))[0]

    def similar(self, layer: int, feature: int) -> list[tuple[Row, float]]:
        """Features with the nearest decoders, and their cosines, nearest first."""
        kin = self.feature(layer, feature).similar
        return [(self._row(one.layer, one.feature), one.share) for one in kin]

    def label(self, layer: int, feature: int) -> Label | None:
        """What a feature is called; None where the store does not know it."""
        return self._row(layer, feature).label if self.known(layer, feature) else None

    @property
    def given(self) -> Mapping[tuple[int, int], Label]:
        """Labels that people gave, by (layer, id)."""
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
                for (layer, one), label in given.items():
                    file.execute("DELETE FROM label WHERE layer = ? AND id = ?", (layer, one))
                    if label is not None:
                        row = (layer, one, label.text, label.source)
                        file.execute("INSERT INTO label VALUES (?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise OutputError(f"cannot write {self.path}: {error}") from error
        self._reading.close()
        self._open()

    def _labels(self) -> labels.Labels:
        rows = self._reading.select("SELECT layer, id, text, source FROM label")
        return {(layer, one): Label(text, source) for layer, one, text, source in rows}

    def _row(self, layer: int, feature: int) -> Row:
        query = f"SELECT {COLUMNS} FROM feature WHERE layer = ? AND id = ?"
        rows = self._reading.select(query, (layer, feature))
        if not rows:
            raise InputError(self._missing(layer, feature))
        return self._made(rows[0])

    def _made(self, row: tuple) -> Row:
        layer, one, count, largest, mean, fires, says = row
        label = self._given.get((layer, one))
        if label is None:
            heard, said = json.loads(fires), json.loads(says)
            early = layer < len(self.about.get("widths", ())) / 2  # what it raises says little
            label = labels.automatic(heard, [] if early and heard else said, count)
        positions = self.about.get("positions")
        density = None if count is None or not positions else count / positions
        return Row(layer, one, label, count, density, largest, mean)

    def _missing(self, layer: int, feature: int) -> str:
        ids = self._reading.select("SELECT id FROM feature WHERE layer = ?", (layer,))
        if not ids:
            known = ", ".join(map(str, self.layers)) or "none"
            return f"{self.path} has no features of layer {layer}; it has layers {known}"
        near = difflib.get_close_matches(str(feature), [str(one) for (one,) in ids[:5000]], 3)
        nearest = f"; it has {', '.join(f'{layer}.{one}' for one in near)}" if near else ""
        return (
            f"{self.path} has no feature {feature} in layer {layer}, whose features are "
            f"{ids[0][0]} to {ids[-1][0]}{nearest}"
        )

    def _group(self, name: str, low: float, high: float, examples: list) -> Group:
        return Group(name, low, high, tuple(self._example(*example) for example in examples))

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
        query = f"SELECT {COLUMNS} FROM feature WHERE (layer, id) > (?, ?) "
        last = -1, -1
        while rows := self._reading.select(f"{query} ORDER BY layer, id LIMIT 1000", last):
            yield from map(self._made, rows)
            last = rows[-1][:2]


def open_store(path: str | os.PathLike[str] = "plt") -> Store:
    """Open a feature store.

    Args:
        path: its file; "plt" or "clt" for those of the bundled model.

    Raises:
        InputError: no such file, or no store.
    """
    from circuit_tracer.bundled import features_file

    return Store(features_file(str(path)) if str(path) in ("plt", "clt") else path)


def _tokens(pairs: list) -> Tokens:
    return tuple((token, value) for token, value in pairs)


def _folded(text: str) -> str:
    return text.casefold()
