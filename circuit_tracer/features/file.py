"""The file of a feature store: an SQLite database that opens at once, however large it is.

    about     what it is of: JSON values by name
    layer     a row a layer: how many features, the first and last of them, how many fire
    feature   a row a feature: its figures, and the numbers of the words it can be found by
    word      every such word once, and the features that fire at it or raise it, busiest first
    block     what else is known of 256 features together, field by field, as compressed JSON
    piece     64 pieces of text together, as numbers of tokens, likewise
    token     the text of every such token
    label     what people and machines have called features

A feature's key is its layer times 2^32 plus its number. `write` makes a file, whole or not at all;
`Reading` is how `Store` reads it; what it gives, `write` takes, so that stores can be joined.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from circuit_tracer import files
from circuit_tracer.errors import InputError, OutputError

FORMAT, VERSION = "circuit-tracer features", 2
TOGETHER, PIECES = 256, 64
SCHEMA = """
    CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
    CREATE TABLE layer (layer INTEGER PRIMARY KEY, features INTEGER, first INTEGER, last INTEGER,
        firing INTEGER);
    CREATE TABLE feature (key INTEGER PRIMARY KEY, count INTEGER, largest REAL, mean REAL,
        words BLOB);
    CREATE TABLE word (number INTEGER PRIMARY KEY, text TEXT, folded TEXT, fires BLOB, says BLOB);
    CREATE TABLE block (key INTEGER PRIMARY KEY, data BLOB);
    CREATE TABLE piece (number INTEGER PRIMARY KEY, data BLOB);
    CREATE TABLE token (id INTEGER PRIMARY KEY, text BLOB);
    CREATE TABLE label (key INTEGER PRIMARY KEY, text TEXT, source TEXT, score REAL);
"""


class Piece(NamedTuple):
    """A piece of text: the numbers of its tokens, and its language ("" where unknown)."""

    ids: list[int]
    language: str


@dataclass(frozen=True)
class Record:
    """A feature as the file holds it.

    Attributes:
        count: positions where it fires; None where the source does not say.
        largest, mean: of its activation there.
        fires, says: words it fires at, and words it raises.
        detail: everything else, plain JSON; the same fields in all features of a file.
    """

    layer: int
    id: int
    count: int | None
    largest: float | None
    mean: float | None
    fires: tuple[str, ...]
    says: tuple[str, ...]
    detail: dict[str, Any]


@dataclass
class _Words:
    """The words of a file, numbered as they come, and the features under each."""

    numbers: dict[str, int] = field(default_factory=dict)
    under: list[tuple[array, array]] = field(default_factory=list)

    def packed(self, record: Record) -> bytes:
        """A record's words as bytes; the record is noted under each."""
        place = key_of(record.layer, record.id)
        found = []
        for kind, words in enumerate((record.fires, record.says)):
            for word in words:
                number = self.numbers.setdefault(text(word), len(self.numbers))
                if number == len(self.under):
                    self.under.append((array("q"), array("q")))
                self.under[number][kind].extend((-(record.count or 0), place))
                found.append(number)
        return varints([len(record.fires), *found])

    def rows(self) -> Iterator[tuple[int, str, str, bytes, bytes]]:
        for word, number in self.numbers.items():
            fires, says = map(_postings, self.under[number])
            yield number, word, word.casefold(), fires, says


def write(
    path: str | os.PathLike[str],
    about: dict[str, Any],
    records: Iterable[Record],
    pieces: Iterable[Piece] = (),
    tokens: Iterable[tuple[int, str]] = (),
) -> None:
    """Write a store.

    Args:
        about: plain JSON values by name.
        records: by layer and id, ascending.
        pieces: examples name them by their place here.
        tokens: (number, text) of those in pieces, ascending; read last.

    Raises:
        OutputError: the file could not be written.
    """
    words = _Words()
    with files.replacing(path) as place:
        try:
            with closing(sqlite3.connect(place)) as file, file:
                file.execute("PRAGMA page_size = 1024")
                file.execute("PRAGMA journal_mode = OFF")
                file.executescript(SCHEMA)
                plain = {"format": FORMAT, "version": VERSION, **about}
                rows = [(name, text(_json(value))) for name, value in sorted(plain.items())]
                file.executemany("INSERT INTO about VALUES (?, ?)", rows)
                for layer, some in groupby(records, lambda record: record.layer):
                    _layer(file, words, layer, some)
                file.executemany("INSERT INTO word VALUES (?, ?, ?, ?, ?)", words.rows())
                cells = enumerate(pieces)
                for number, together in groupby(cells, lambda cell: cell[0] // PIECES):
                    packed = _packed([piece for _, piece in together])
                    file.execute("INSERT INTO piece VALUES (?, ?)", (number, packed))
                file.executemany(
                    "INSERT INTO token VALUES (?, ?)",
                    ((one, said.encode("utf-8", "surrogatepass")) for one, said in tokens),
                )
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
                f"{found[1]}; build it again"
            )
        self._block = lru_cache(maxsize=64)(self._read_block)
        self._some_pieces = lru_cache(maxsize=64)(self._read_pieces)
        self.word = lru_cache(maxsize=4096)(self._read_word)
        self._token = lru_cache(maxsize=65536)(self._read_token)

    def close(self) -> None:
        self._file.close()

    def select(self, query: str, values: Sequence[Any] = ()) -> list[tuple]:
        """Rows of a query. Raises InputError where the file is damaged."""
        try:
            return self._file.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._damaged(error) from error

    def detail(self, layer: int, feature: int) -> dict[str, Any]:
        """The detail of a feature that is there."""
        ids, names, columns = self._block(layer, feature // TOGETHER)
        place = ids[feature]
        return {name: column[place] for name, column in zip(names, columns, strict=True)}

    def piece(self, number: int) -> tuple[list[str], str]:
        """(tokens, language) of a piece of text."""
        ids, language = self._some_pieces(number // PIECES)[number % PIECES]
        return [self._token(one) for one in ids], language

    def pieces(self) -> Iterator[Piece]:
        """All pieces of text, in order."""
        for (number,) in self.select("SELECT number FROM piece ORDER BY number"):
            yield from (Piece(*piece) for piece in self._read_pieces(number))

    def tokens(self) -> Iterator[tuple[int, str]]:
        """The texts of all tokens in pieces, ascending."""
        for one, said in self.select("SELECT id, text FROM token ORDER BY id"):
            yield one, said.decode("utf-8", "surrogatepass")

    def records(self, layer: int) -> Iterator[Record]:
        """All that the file holds of a layer's features, in order, as `write` takes it."""
        columns = "key, count, largest, mean, words"
        query = f"SELECT {columns} FROM feature WHERE key > ? AND key < ? ORDER BY key LIMIT 1000"
        last = key_of(layer, 0) - 1
        while rows := self.select(query, (last, key_of(layer + 1, 0))):
            for key, count, largest, mean, words in rows:
                _, one = of_key(key)
                fires, says = self.words(words)
                detail = self.detail(layer, one)
                yield Record(layer, one, count, largest, mean, fires, says, detail)
            last = rows[-1][0]

    def words(self, packed: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(words a feature fires at, words it raises) from its row."""
        fires, *numbers = numbers_in(packed)
        found = tuple(self.word(number) for number in numbers)
        return found[:fires], found[fires:]

    def _read_word(self, number: int) -> str:
        rows = self.select("SELECT text FROM word WHERE number = ?", (number,))
        return rows[0][0] if rows else "?"

    def _read_token(self, one: int) -> str:
        rows = self.select("SELECT text FROM token WHERE id = ?", (one,))
        return rows[0][0].decode("utf-8", "surrogatepass") if rows else "?"

    def _read_block(self, layer: int, number: int) -> tuple[dict[int, int], list, list]:
        rows = self.select("SELECT data FROM block WHERE key = ?", (key_of(layer, number),))
        ids, names, columns = self._unpacked(rows)
        return {one: place for place, one in enumerate(ids)}, names, columns

    def _read_pieces(self, number: int) -> list[Any]:
        return self._unpacked(self.select("SELECT data FROM piece WHERE number = ?", (number,)))

    def _unpacked(self, rows: list[tuple]) -> Any:
        try:
            return json.loads(zlib.decompress(rows[0][0]))
        except (IndexError, TypeError, ValueError, zlib.error) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> InputError:
        return InputError(f"{self.path} is damaged: {error}; build it again")


def key_of(layer: int, number: int) -> int:
    """The key of a feature, or of a block of features."""
    return (layer << 32) | number


def of_key(key: int) -> tuple[int, int]:
    """(layer, number) of a key."""
    return key >> 32, key & 0xFFFFFFFF


def text(said: str) -> str:
    """Text that SQLite takes: halves of characters are replaced."""
    return said.encode("utf-8", "replace").decode()


def varints(numbers: Iterable[int]) -> bytes:
    """Numbers of 0 and more as bytes, small ones short: seven bits a byte, the lowest first."""
    out = bytearray()
    for number in numbers:
        while number > 127:
            out.append(number & 127 | 128)
            number >>= 7
        out.append(number)
    return bytes(out)


def numbers_in(data: bytes, most: int = -1) -> list[int]:
    """The numbers that `varints` wrote, or the first `most` of them.

    >>> numbers_in(varints([3, 200, 0]))
    [3, 200, 0]
    """
    out: list[int] = []
    number = shift = 0
    for byte in data:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            out.append(number)
            if len(out) == most:
                break
            number = shift = 0
    return out


def _layer(file: sqlite3.Connection, words: _Words, layer: int, records: Iterable[Record]) -> None:
    features, first, last, firing = 0, None, None, 0
    for number, together in groupby(records, lambda record: record.id // TOGETHER):
        some = list(together)
        rows = [(key_of(layer, r.id), r.count, r.largest, r.mean, words.packed(r)) for r in some]
        file.executemany("INSERT INTO feature VALUES (?, ?, ?, ?, ?)", rows)
        names = list(some[0].detail)
        columns = [[record.detail[name] for record in some] for name in names]
        packed = _packed([[record.id for record in some], names, columns])
        file.execute("INSERT INTO block VALUES (?, ?)", (key_of(layer, number), packed))
        features += len(some)
        first, last = some[0].id if first is None else first, some[-1].id
        firing += sum(record.count != 0 for record in some)
    row = (layer, features, first, last, firing)
    file.execute("INSERT INTO layer VALUES (?, ?, ?, ?, ?)", row)


def _postings(under: array) -> bytes:
    """The features of a word, those that fire most often first."""
    pairs = sorted(zip(under[::2], under[1::2], strict=True))
    return varints(part for _, one in pairs for part in of_key(one))


def _packed(value: Any) -> bytes:
    return zlib.compress(_json(value).encode("utf-8", "surrogatepass"), 9)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
