"""What a saved graph is, told by its first bytes and not by its name, and the text of one in JSON.

Graphs come as safetensors (ours), as JSON (Neuronpedia's, the reference tool's, ours), often
compressed with gzip, and as pickles (the reference tool's `.pt`).
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from pathlib import Path
from typing import Literal

from circuit_tracer.errors import GraphFileError, InputError

FileKind = Literal["safetensors", "json", "pickle"]

GZIP = b"\x1f\x8b"
PICKLES = (b"\x80", b"PK")
MARK = b"\xef\xbb\xbf"
"""The byte order mark that some editors put before UTF-8."""

LARGEST = 4 << 30
"""Bytes of JSON that are unpacked at most: a small file can be made to unpack to anything."""


def file_kind(path: str | os.PathLike[str]) -> FileKind:
    """What the file at `path` seems to be; "safetensors" for everything unknown.

    Raises:
        InputError: there is no such file.
        GraphFileError: it cannot be read, or is empty.
    """
    check_there(path)
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise GraphFileError(f"{path} cannot be read: {error.strerror or error}") from error
    if not start:
        raise GraphFileError(f"{path} is empty; trace the prompt again, or use a copy")
    if start.startswith(GZIP) or start.removeprefix(MARK).lstrip()[:1] in (b"{", b"["):
        return "json"
    return "pickle" if start.startswith(PICKLES) else "safetensors"


def check_there(path: str | os.PathLike[str]) -> None:
    """Raise InputError unless there is a file at `path`."""
    if Path(path).is_dir():
        raise InputError(f"{path} is a folder; name a file in it")
    if not Path(path).is_file():
        raise InputError(f"there is no file {path}")


def json_text(path: str | os.PathLike[str]) -> bytes:
    """The JSON text of a file, unpacked where it is compressed, without a byte order mark.

    Raises:
        InputError: there is no such file.
        GraphFileError: it cannot be read, is cut short, or unpacks to more than `LARGEST`.
    """
    check_there(path)
    try:
        with open(path, "rb") as file:
            packed = file.read(len(GZIP)) == GZIP
            file.seek(0)
            text = (gzip.GzipFile(fileobj=file) if packed else file).read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise GraphFileError(
            f"{path} cannot be read: {error}. It is damaged or cut short; use a copy."
        ) from error
    if len(text) > LARGEST:
        raise GraphFileError(f"{path} holds more than {LARGEST >> 30} GB of JSON; prune it first")
    return text.removeprefix(MARK)


def holds_instead(text: bytes) -> str:
    """What JSON that is no graph holds instead, as the end of a message; "" where it looks right.

    >>> holds_instead(b'{"labels": []}')
    '; a graph has metadata, qParams, nodes and links, and this file has labels'
    """
    try:
        found = json.loads(text)
    except ValueError:
        return "; it is damaged or cut short"
    keys = list(found) if isinstance(found, dict) else []
    if {"nodes", "links"} <= set(keys):
        return ""
    has = ", ".join(keys[:6]) or "none of them"
    return f"; a graph has metadata, qParams, nodes and links, and this file has {has}"
