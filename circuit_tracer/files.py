"""Writing a file so that it is there whole or not at all.

Everything is written under another name in the same folder, flushed to the disk, and moved into
place. Whatever goes wrong on the way (a full disk, a folder that cannot be written, an interrupt),
the old file stands untouched and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from circuit_tracer.errors import OutputError


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to; on leaving the block what was written there becomes `path`.

    Devices and pipes (`/dev/stdout`) are written to directly.

    Raises:
        OutputError: the file could not be written; whatever stood at `path` is unchanged.
    """
    wanted = Path(path)
    target = wanted.resolve()
    if target.is_dir():
        raise OutputError(f"cannot write {wanted}: it is a folder; give the name of a file")
    try:
        if target.exists() and not target.is_file():
            yield target
            return
        temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.tmp")
        try:
            temporary.touch()
            mode = (target if target.exists() else temporary).stat().st_mode
            yield temporary
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(mode)  # some writers make files that only their owner can read
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"cannot write {wanted}: {error.strerror or error}. "
            "Choose another folder or make room; no file was changed."
        ) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, whole or not at all. Raises OutputError as `replacing` does."""
    with replacing(path) as place, open(place, "w", encoding="utf-8", newline="") as file:
        file.write(text)
