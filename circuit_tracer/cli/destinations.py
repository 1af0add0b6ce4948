"""Where results go, settled before the long work starts.

A run that takes minutes must not end in "permission denied": names are chosen and tried first.
Writing itself is atomic and lives with the things written (`circuit_tracer.files`).
"""

from __future__ import annotations

import json
import os
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import click

from circuit_tracer.errors import InputError, OutputError

STDOUT = Path("-")
LONGEST_SLUG = 120  # bytes; file systems allow 255 for a name


def slug(prompt: str) -> str:
    """A file name without its suffix from a prompt, in the prompt's own script.

    >>> slug("The opposite of small is")
    'the-opposite-of-small-is'
    >>> slug("小的反义词是")
    '小的反义词是'
    >>> slug("../..")
    'prompt'
    """
    text = unicodedata.normalize("NFC", prompt).lower()
    kept = (char if unicodedata.category(char)[0] in "LMN" else " " for char in text)
    words = "-".join("".join(kept).split())
    short = words.encode()[:LONGEST_SLUG].decode(errors="ignore").rstrip("-")
    return short or "prompt"


def page(output: Path | None, prompt: str) -> Path:
    """The page's path: as named, in a folder that was named, or after the prompt, here."""
    name = os.fsdecode(f"{slug(prompt)}.html".encode())  # UTF-8 on disk, whatever the locale
    if output is None:
        return Path(name)
    if output == STDOUT:
        raise InputError("a page is a file: give -o a name, not -")
    return output / name if output.is_dir() else output


def said(path: Path) -> str:
    """A path as text to print."""
    return os.fsencode(path).decode("utf-8", "replace")


def put_json(path: Path | None, plain: Any) -> bool:
    """Write plain values as JSON where that was asked for; whether it was standard output."""
    if path is None:
        return False
    as_json = json.dumps(plain, indent=2, ensure_ascii=False)
    if path == STDOUT:
        click.echo(as_json)
        return True
    from circuit_tracer.files import write_text

    write_text(path, as_json + "\n")
    return False


def check(*paths: Path | None) -> None:
    """Raise unless each path can be written and no two are the same. Leaves nothing behind."""
    wanted = [path for path in paths if path is not None and path != STDOUT]
    places = [path.resolve() for path in wanted]
    for number, path in enumerate(wanted):
        if places[number] in places[:number]:
            raise InputError(f"two outputs would both be written to {path}; name them apart")
        try_to_write(path)


def try_to_write(path: Path) -> None:
    """Raise OutputError unless a file could be put at `path`."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it")
    if path.exists() and not path.is_file():
        return  # a device or a pipe is written to directly
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"there is no folder {folder} to put {path.name} in; create it first")
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".trace-"):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write to {folder}: {reason}; name another place") from error
