"""Texts that a user names: a file, one text a line, or standard input."""

from __future__ import annotations

import sys
from pathlib import Path

from circuit_tracer.errors import InputError

STDIN = Path("-")


def read(path: Path) -> list[str]:
    """The lines of a file, or of standard input for `-`, that are not blank.

    Raises:
        InputError: it cannot be read, is not UTF-8, or has no such line.
    """
    said = "stdin" if path == STDIN else str(path)
    try:
        raw = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {said}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{said} is not UTF-8 text: {error.reason}") from error
    found = [line for line in text.splitlines() if line.strip()]
    if not found:
        raise InputError(f"{said} holds no text; write one text a line")
    return found
