"""A part of a store in the making: tallies, the pieces of text they refer to, and how far one is.

A part is an SQLite file that is written in transactions: whatever interrupts a build, the file
holds what a build that stopped there on purpose would hold. Parts of one model merge into one, and
only when a part is complete are its features described (`describing`) and the part thrown away.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from circuit_tracer.errors import InputError
from circuit_tracer.features.corpus import Document
from circuit_tracer.features.tally import ENTRY, Counts, Entries, Tally

FORMAT, VERSION = "circuit-tracer features, a part", 2
SCHEMA = """
    CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
    CREATE TABLE tally (layer INTEGER, name TEXT, data BLOB, PRIMARY KEY (layer, name))
        WITHOUT ROWID;
    CREATE TABLE piece (number INTEGER PRIMARY KEY, tokens TEXT, language TEXT);
"""
ARRAYS = ("count", "units", "fraction", "largest", "bins", "spoken", "strongest", "sampled")


@dataclass(frozen=True)
class Settings:
    """What a part is made of; parts merge only where all of it is the same but the shard.

    Attributes:
        model, transcoders, kind: names, "plt" or "clt".
        widths: features of each layer.
        layers: those that are described; of the layers below them it is only counted how often
            features fire, and nothing is known of those above.
        top, sample: examples kept of a feature: the strongest, and drawn evenly.
        shard: (k, n): documents k, k + n, k + 2n … of the corpus; (0, 1) for all.
    """

    model: str
    transcoders: str
    kind: str
    widths: tuple[int, ...]
    layers: tuple[int, ...]
    top: int = 8
    sample: int = 24
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if self.top < 1 or self.sample < 1:
            raise InputError("keep at least one strongest and one drawn example of a feature")
        known = range(len(self.widths))
        if not self.layers or not set(self.layers) <= set(known):
            raise InputError(
                f"the layers to describe are some of 0 to {len(known) - 1}, not {self.layers}"
            )
        if not 0 <= self.shard[0] < self.shard[1]:
            raise InputError(f"a shard is one of n, 0/n to (n-1)/n, not {self.shard}")

    @classmethod
    def from_plain(cls, values: dict) -> Settings:
        """From `dataclasses.asdict` after a journey through JSON."""
        tuples = {name: tuple(values[name]) for name in ("widths", "layers", "shard")}
        return cls(**{**values, **tuples})

    @property
    def read(self) -> int:
        """How many layers are looked at, from the first on."""
        return max(self.layers) + 1

    def apart(self) -> dict:
        """All that parts must share in order to merge."""
        return {**asdict(self), "shard": None}


@dataclass
class Part:
    """A part, in memory but for the pieces.

    Attributes:
        path: its file.
        tallies: by layer, as far up as layers are described.
        languages: in the order they were met.
        positions: how many positions were counted, by language.
        done: documents that were counted.
        digest: of these, in their order; a build that goes on checks it.
        merged: digests of the parts this one was merged from.
    """

    path: Path
    settings: Settings
    tallies: list[Tally] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    done: int = 0
    digest: str = ""
    merged: list[str] = field(default_factory=list)
    _fresh: dict[int, tuple[list[int], str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keep = self.settings.top, self.settings.sample
        self.tallies = self.tallies or [
            Tally(self.settings.widths[layer], *keep, layer in self.settings.layers)
            for layer in range(self.settings.read)
        ]

    @classmethod
    def open(cls, path: Path) -> Part:
        """Read a part. Raises InputError where the file is none."""
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as file:
                rows = file.execute("SELECT name, value FROM about").fetchall()
                about = {name: json.loads(value) for name, value in rows}
                if (about.get("format"), about.get("version")) != (FORMAT, VERSION):
                    raise InputError(
                        f"{path} should be {FORMAT}, version {VERSION}; it is "
                        f"{about.get('format')}, version {about.get('version')}"
                    )
                names = ("languages", "positions", "done", "digest", "merged")
                part = cls(
                    path,
                    Settings.from_plain(about["settings"]),
                    **{name: about[name] for name in names},
                )
                for layer, tally in enumerate(part.tallies):
                    _fill(tally, file, layer, len(part.languages))
                return part
        except (sqlite3.Error, KeyError, TypeError, ValueError, zlib.error) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is not a part of a feature store: {error}") from error

    def add_language(self, language: str) -> int:
        """The place of a language, a new one where it was not met before."""
        if language not in self.languages:
            self.languages.append(language)
            self.positions.append(0)
            for tally in self.tallies:
                tally.add_language()
        return self.languages.index(language)

    def add_piece(self, ids: list[int], language: str) -> int:
        """The number that names a piece of text; the piece is kept while an example needs it."""
        number = piece_number(ids, language)
        self._fresh[number] = ids, language
        return number

    def follow(self, document: Document) -> None:
        """Note that a document was counted."""
        self.digest = chained(self.digest, document)
        self.done += 1

    def merge(self, other: Part) -> None:
        """Add another part. Raises InputError for one of another model, or in it already."""
        if self.settings.apart() != other.settings.apart():
            wrong = {
                name: (mine, other.settings.apart()[name])
                for name, mine in self.settings.apart().items()
                if mine != other.settings.apart()[name]
            }
            raise InputError(f"{other.path} does not fit the other parts: {wrong}")
        if other.digest in self.merged:
            raise InputError(f"{other.path} holds texts that another part holds; name it once")
        columns = [self.add_language(language) for language in other.languages]
        for mine, theirs in zip(self.tallies, other.tallies, strict=True):
            mine.merge(theirs, columns)
        for column, positions in zip(columns, other.positions, strict=True):
            self.positions[column] += positions
        self.done += other.done
        self.merged.append(other.digest)
        self._fresh.update({number: (ids, said) for number, ids, said in other.pieces()})

    def save(self) -> None:
        """Write all of it in one transaction; pieces that no example needs are dropped."""
        needed = self.needed()
        new = not self.path.exists()
        with closing(sqlite3.connect(self.path)) as file, file:
            if new:
                file.executescript(SCHEMA)
            file.execute("CREATE TEMP TABLE needed (number INTEGER PRIMARY KEY)")
            file.executemany("INSERT INTO needed VALUES (?)", ((one,) for one in needed.tolist()))
            file.executemany(
                "INSERT OR IGNORE INTO piece VALUES (?, ?, ?)",
                (
                    (number, json.dumps(self._fresh[number][0]), self._fresh[number][1])
                    for number in sorted(self._fresh.keys() & set(needed.tolist()))
                ),
            )
            file.execute("DELETE FROM piece WHERE number NOT IN (SELECT number FROM needed)")
            file.executemany("REPLACE INTO about VALUES (?, ?)", self._about())
            for layer, tally in enumerate(self.tallies):
                arrays = ((name, getattr(tally, name)) for name in ARRAYS)
                rows = ((layer, name, zlib.compress(a.tobytes(), 1)) for name, a in arrays)
                file.executemany("REPLACE INTO tally VALUES (?, ?, ?)", rows)
        self._fresh.clear()

    def needed(self) -> Counts:
        """Numbers of the pieces that examples are taken from, ascending."""
        kept = [e["piece"] for t in self.tallies for e in (t.strongest, t.sampled)]
        return np.unique(np.concatenate(kept))

    def waiting(self) -> int:
        """Pieces in memory that are not on disk."""
        return len(self._fresh)

    def pieces(self) -> Iterator[tuple[int, list[int], str]]:
        """(number, token ids, language) of the pieces on disk, ascending."""
        with closing(sqlite3.connect(self.path)) as file:
            for number, ids, language in file.execute("SELECT * FROM piece ORDER BY number"):
                yield number, json.loads(ids), language

    def _about(self) -> list[tuple[str, str]]:
        plain = {
            "format": FORMAT,
            "version": VERSION,
            "settings": asdict(self.settings),
            "languages": self.languages,
            "positions": self.positions,
            "done": self.done,
            "digest": self.digest,
            "merged": self.merged,
        }
        return [(name, json.dumps(value)) for name, value in plain.items()]


def piece_number(ids: list[int], language: str) -> int:
    """The number that names a piece of text, the same in every part and store."""
    whole = json.dumps([ids, language]).encode()
    return int.from_bytes(hashlib.blake2b(whole, digest_size=8).digest(), "big") >> 1


def chained(digest: str, document: Document) -> str:
    """The digest of documents that were counted, and one more."""
    return hashlib.blake2b(bytes.fromhex(digest) + document.digest(), digest_size=16).hexdigest()


def merged(path: Path, parts: Sequence[Part]) -> Part:
    """Several parts as one, at `path`. Raises InputError where they do not go together."""
    whole = Part(path, Settings.from_plain(asdict(parts[0].settings)))
    for part in parts:
        whole.merge(part)
    whole.save()
    return whole


def _fill(tally: Tally, file: sqlite3.Connection, layer: int, languages: int) -> None:
    """Put the arrays of a layer back into an empty tally."""
    for _ in range(languages):
        tally.add_language()
    rows = file.execute("SELECT name, data FROM tally WHERE layer = ?", (layer,))
    for name, data in rows:
        empty: Entries | Counts = getattr(tally, name)
        found = np.frombuffer(zlib.decompress(data), empty.dtype).copy()
        setattr(tally, name, found if empty.dtype == ENTRY else found.reshape(empty.shape))
