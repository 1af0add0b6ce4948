"""Which file belongs to which layer, and which files may be read at all.

Sets come as folders of folders; a file's layer is part of its path. A layer has at most one file,
because a choice made silently is a choice nobody can reproduce; it may have none. A file that a
folder's config or a link in it points to must lie inside the folder (or be the hub cache's own copy
of it): a downloaded folder does not get to name files of its reader.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from circuit_tracer.errors import TranscoderError

SHOWN = 6
MOST_LAYERS = 10_000


def inside(folder: Path, entry: str | Path) -> Path:
    """The path of an entry of a folder. Raises TranscoderError if it leads out of it."""
    path = folder / entry
    try:
        target = path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in the name, a circle of links
        raise TranscoderError(
            f"{str(entry)!r} in {folder} is no name of a file: {error}"
        ) from error
    if any(root == target or root in target.parents for root in _roots(folder)):
        return path
    raise TranscoderError(
        f"{entry} in {folder} leads out of the folder, to {target}. Copy that file into the folder "
        "and name it there."
    )


def _roots(folder: Path) -> list[Path]:
    """The folder, and in the hub's cache the place where its files really are."""
    home = folder.resolve()
    snapshots = [path for path in home.parents if path.name == "snapshots"]
    return [home, *(path.parent / "blobs" for path in snapshots)]


def by_layer(folder: Path, paths: Iterable[Path], pattern: str) -> dict[int, list[Path]]:
    """Files whose path below `folder` has a layer in it, which is `pattern`'s first group."""
    found: dict[int, list[Path]] = {}
    for path in sorted(paths):
        match = re.search(pattern, path.relative_to(folder).as_posix())
        if match:
            found.setdefault(int(match[1]), []).append(inside(folder, path.relative_to(folder)))
    return found


def one_each(folder: Path, found: Mapping[int, list[Path]], what: str) -> dict[int, Path]:
    """The file of each layer that has one. Raises TranscoderError on choices and on none."""
    if not found:
        raise TranscoderError(f"{folder} should hold {what}, one a layer; it holds none.")
    if max(found) >= MOST_LAYERS:
        raise TranscoderError(
            f"{found[max(found)][0]} is named after layer {max(found)}, which no model has."
        )
    for layer in sorted(found):
        if len(found[layer]) > 1:
            raise TranscoderError(_choices(folder, layer, found[layer]))
    return {layer: found[layer][0] for layer in sorted(found)}


def _choices(folder: Path, layer: int, paths: list[Path]) -> str:
    names = [path.relative_to(folder).as_posix() for path in paths]
    more = f"\n  … {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (
        f"{folder} has {len(names)} transcoders for layer {layer}:\n  "
        + "\n  ".join(names[:SHOWN])
        + more
        + "\nName one a layer in a config.yaml in that folder:\n"
        "  model_kind: transcoder_set\n"
        "  feature_input_hook: ln2.hook_normalized   # or where these were trained to read\n"
        "  feature_output_hook: hook_mlp_out\n"
        f"  transcoders:\n  - {names[0]}\n  - …"
    )
