"""The file of a feature store: an SQLite database that opens at once, however large it is.

    about     what it is of: JSON values by name
    feature   a row a feature, in order: its figures, and the words it can be found by
    block     what else is known of 64 features together, as compressed JSON
    piece     64 pieces of text together, token by token, likewise
    label     what people have called features

`write` makes one, whole or not at all; `Reading` is how `Store` reads it.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from circuit_tracer import files
from circuit_tracer.errors import InputError, OutputError

FORMAT, VERSION = "circuit-tracer features", 1
TOGETHER = 64
SCHEMA = """
    CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
    CREATE TABLE feature (layer INTEGER, id INTEGER, count INTEGER, largest REAL, mean REAL,
        fires TEXT, says TEXT, PRIMARY KEY (layer, id)) WITHOUT ROWID;
    CREATE TABLE block (layer INTEGER, number INTEGER, data BLOB, PRIMARY KEY (layer, number))
        WITHOUT ROWID;
    CREATE TABLE piece (number INTEGER PRIMARY KEY, data BLOB);
    CREATE TABLE label (layer INTEGER, id INTEGER, text TEXT, source TEXT,
        PRIMARY KEY (layer, id)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Record:
    """A feature as the file holds it.

    Attributes:
        count: positions where it fires; None where the source does not say.
        largest, mean: of its activation there.
        fires, says: words it fires at, and words it raises.
        detail: everything else, plain JSON.
    """

    layer: int
    id: int
    count: int | None
    largest: float | None
    mean: float | None
    fires: tuple[str, ...]
    says: tuple[str, ...]
    detail: dict[str, Any]


def write(
    path: str | os.PathLike[str],
    about: dict[str, Any],
    records: Iterable[Record],
    pieces: Iterable[tuple[list[str], str]] = (),
) -> None:
    """Write a store.

    Args:
        about: plain JSON values by name.
        records: by layer and id, ascending.
        pieces: (tokens, language); examples name them by their place here.

    Raises:
        OutputError: the file could not be written.
    """
    with files.replacing(path) as place:
        try:
            with closing(sqlite3.connect(place)) as file, file:
                file.execute("PRAGMA journal_mode = OFF")
                file.executescript(SCHEMA)
                plain = {"format": FORMAT, "version": VERSION, **about}
                rows = [(name, _column(value)) for name, value in plain.items()]
                file.executemany("INSERT INTO about VALUES (?, ?)", rows)
                for (layer, number), some in groupby(
                    records, lambda record: (record.layer, record.id // TOGETHER)
                ):
                    _block(file, layer, number, list(some))
                cells = enumerate(list(piece) for piece in pieces)
                for number, together in groupby(cells, lambda cell: cell[0] // TOGETHER):
                    packed = _packed([piece for _, piece in together])
                    file.execute("INSERT INTO piece VALUES (?, ?)", (number, packed))
        except sqlite3.Error as error:
            raise OutputError(f"cannot write {path}: {error}") from error


class Reading:
    """A store opened for reading. Raises InputError where the file is none."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"there is no feature store {self.path}")
        where = f"{self.path.resolve().as_uri()}?mode=ro&immutable=1"
        # One page at a time is read, by whichever thread serves it.
        self._file = sqlite3.connect(where, uri=True, check_same_thread=False)
        try:
            rows = self._file.execute("SELECT name, value FROM about").fetchall()
            self.about = {name: json.loads(value) for name, value in rows}
            found = self.about.get("format"), self.about.get("version")
        except (sqlite3.Error, ValueError, TypeError) as error:
            self._file.close()
            raise InputError(f"{self.path} is not a feature store: {error}") from error
        if found != (FORMAT, VERSION):
            self._file.close()
            raise InputError(
                f"{self.path} should be {FORMAT}, version {VERSION}; it is {found[0]}, version "
                f"{found[1]}"
            )
        self._block = lru_cache(maxsize=256)(self._read_block)
        self._piece = lru_cache(maxsize=256)(self._read_piece)

    def close(self) -> None:
        self._file.close()

    def select(self, query: str, values: Sequence[Any] = ()) -> list[tuple]:
        """Rows of a query. Raises InputError where the file is damaged."""
        try:
            return self._file.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise InputError(f"{self.path} is damaged: {error}; build it again") from error

    def function(self, name: str, count: int, function: Any) -> None:
        """Let queries call a function."""
        self._file.create_function(name, count, function, deterministic=True)

    def detail(self, layer: int, feature: int) -> dict[str, Any]:
        """The detail of a feature that is there."""
        return self._block(layer, feature // TOGETHER)[str(feature)]

    def piece(self, number: int) -> tuple[list[str], str]:
        """(tokens, language) of a piece of text."""
        tokens, language = self._piece(number // TOGETHER)[number % TOGETHER]
        return tokens, language

    def _read_block(self, layer: int, number: int) -> dict[str, Any]:
        query = "SELECT data FROM block WHERE layer = ? AND number = ?"
        return self._unpacked(self.select(query, (layer, number)))

    def _read_piece(self, number: int) -> list[Any]:
        return self._unpacked(self.select("SELECT data FROM piece WHERE number = ?", (number,)))

    def _unpacked(self, rows: list[tuple]) -> Any:
        try:
            return json.loads(zlib.decompress(rows[0][0]))
        except (IndexError, TypeError, ValueError, zlib.error) as error:
            raise InputError(f"{self.path} is damaged: {error}; build it again") from error


def _block(file: sqlite3.Connection, layer: int, number: int, records: list[Record]) -> None:
    rows = [
        (r.layer, r.id, r.count, r.largest, r.mean, _column(r.fires), _column(r.says))
        for r in records
    ]
    file.executemany("INSERT INTO feature VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    packed = _packed({str(record.id): record.detail for record in records})
    file.execute("INSERT INTO block VALUES (?, ?, ?)", (layer, number, packed))


def _packed(value: Any) -> bytes:
    return zlib.compress(_json(value).encode("utf-8", "surrogatepass"), 9)


def _column(value: Any) -> str:
    """JSON that SQLite takes as text: halves of characters are replaced."""
    return _json(value).encode("utf-8", "replace").decode()


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
