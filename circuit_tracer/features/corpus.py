"""The texts a store is built from: files, folders, and Hugging Face datasets, one document at a
time.

A `.txt` file holds a document a line. `.tsv` and `.csv` files have a first line with names of
columns: one called `text`, and one called `language` if there are several languages; a `.jsonl`
file holds an object a line with the same names. Each may be compressed, with `.gz` after its name.
A folder stands for all such files in it, sorted by name. Anything else is taken for the name of a
dataset.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuit_tracer.errors import InputError

SUFFIXES = (".txt", ".tsv", ".csv", ".jsonl")
TEXT, LANGUAGE = "text", "language"


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and its language where the corpus says it ("" where not)."""

    text: str
    language: str = ""

    def digest(self) -> bytes:
        """Sixteen bytes that name it."""
        whole = json.dumps([self.text, self.language]).encode()
        return hashlib.blake2b(whole, digest_size=16).digest()


def documents(sources: Sequence[str], language: str = "") -> Iterator[Document]:
    """All documents of files, folders and datasets, in a fixed order; blank ones are left out.

    Args:
        sources: paths, or names of datasets (`org/name`, `org/name:split`).
        language: of the documents whose source does not say it.

    Raises:
        InputError: a source that is not there, holds no text, or is not UTF-8; a dataset without
            the `datasets` package.
    """
    if not sources:
        raise InputError("give texts to build from: a file, a folder or the name of a dataset")
    paths = [_paths(source) for source in sources]  # say what is missing before work begins
    return _documents(sources, paths, language)


def _documents(
    sources: Sequence[str], paths: list[list[Path] | None], language: str
) -> Iterator[Document]:
    for source, files in zip(sources, paths, strict=True):
        found = 0
        rows = _dataset(source) if files is None else (r for file in files for r in _rows(file))
        for row in rows:
            text = row.get(TEXT)
            if not isinstance(text, str):
                raise InputError(
                    f"{source}: a document should have a text under {TEXT!r}; one has "
                    f"{', '.join(map(repr, row)) or 'nothing'}"
                )
            if text.strip():
                found += 1
                yield Document(text, str(row.get(LANGUAGE) or language))
        if not found:
            raise InputError(f"{source} holds no text to build from")


def _paths(source: str) -> list[Path] | None:
    """The files of a source; None for a dataset."""
    path = Path(source).expanduser()
    if path.is_file():
        if _form(path) not in SUFFIXES:
            raise InputError(f"{path} should end in one of {', '.join(SUFFIXES)}, or these and .gz")
        return [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if _form(file) in SUFFIXES)
        if not files:
            raise InputError(f"{path} holds no files that end in {', '.join(SUFFIXES)}")
        return files
    if _form(path) in SUFFIXES or path.is_absolute() or source.startswith("."):
        raise InputError(f"there is no file or folder {source}")
    try:
        import datasets  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"there is no file or folder {source}; to read it as a dataset, install the "
            "`datasets` package (pip install datasets)"
        ) from error
    return None


def _form(path: Path) -> str:
    """How a file's name ends, apart from `.gz`."""
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            if _form(path) == ".txt":
                yield from ({TEXT: line.rstrip("\r\n")} for line in file)
            elif _form(path) == ".jsonl":
                yield from _objects(path, file)
            else:
                yield from _table(path, file)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason}") from error


def _objects(path: Path, lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}: line {number} should be an object with {TEXT!r}")
        yield row


def _table(path: Path, lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    tabs = _form(path) == ".tsv"
    rows = csv.DictReader(
        lines,
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
    )
    if TEXT not in (rows.fieldnames or ()):
        raise InputError(
            f"{path} should begin with names of columns, one of them {TEXT!r}; it begins with "
            f"{list(rows.fieldnames or ())}"
        )
    try:
        yield from ({name: row.get(name) or "" for name in (TEXT, LANGUAGE)} for row in rows)
    except csv.Error as error:
        raise InputError(f"{path}: line {rows.line_num}: {error}") from error


def _dataset(source: str) -> Iterator[Mapping[str, Any]]:
    """Rows of a dataset, streamed."""
    import datasets

    name, _, split = source.partition(":")
    try:
        yield from datasets.load_dataset(name, split=split or "train", streaming=True)
    except InputError:
        raise
    except Exception as error:  # the hub's client raises whatever it likes
        raise InputError(
            f"there is no file or folder {source}, and it cannot be read as a dataset: {error}"
        ) from error
