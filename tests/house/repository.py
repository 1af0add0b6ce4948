"""The repository's own files, as git sees them."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {".git", ".venv", ".venv-old", "build", "dist", "__pycache__"}


def files() -> list[Path]:
    """Every file that is or would be committed; without git, every file that is not a build's."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        names = [name for name in listed.stdout.decode().split("\0") if name]
        found = [ROOT / name for name in names]
    except (OSError, subprocess.CalledProcessError):
        found = [path for path in ROOT.rglob("*") if not SKIPPED & set(path.parts)]
    return sorted(path for path in found if path.is_file())


def texts() -> list[tuple[Path, str]]:
    """Every text file with its text."""
    read = []
    for path in files():
        try:
            read.append((path, path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return read


def modules(*folders: str) -> list[Path]:
    """Python files under `folders`."""
    wanted = [ROOT / folder for folder in folders]
    return [
        path
        for path in files()
        if path.suffix == ".py" and any(folder in path.parents for folder in wanted)
    ]
