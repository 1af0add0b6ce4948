"""Activations on disk: shards that are mapped into memory, checked, and made once.

A folder holds `index.json` and one safetensors file a block. The index names what the activations
are of; a store of anything else is refused, never mixed in. It is rewritten after each shard, so
that an interrupted collection goes on where it stopped. Shards are read through a memory map and
checked against their SHA-256 when they are first opened. In 8 bits every token and layer has a
scale of its own, and values are off by at most 1/254 of the largest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from circuit_tracer.errors import InputError, OutputError
from circuit_tracer.files import replacing, write_text
from circuit_tracer.shapes import Float, Tensor
from circuit_tracer.train.blocks import Blocks
from circuit_tracer.train.ranks import ALONE, Ranks
from circuit_tracer.train.sites import Activations

Progress = Callable[[float, str], None]
INDEX = "index.json"


@dataclass(eq=False)
class Store:
    """Blocks that are on disk; `fill` puts them there.

    Attributes:
        folder: where.
        sizes: tokens in each block.
        checksums: of each shard, in order.
        dtype: what activations are given in.
    """

    folder: Path
    sizes: tuple[int, ...]
    checksums: list[str]
    dtype: torch.dtype
    _checked: set[int] = field(default_factory=set)

    def block(self, number: int) -> Activations:
        """Activations of a block, (tokens, layers, d_model) each.

        Raises:
            InputError: the shard is not what was written.
        """
        path = _shard(self.folder, number)
        if number not in self._checked:
            if not path.is_file() or _checksum(path) != self.checksums[number]:
                raise InputError(
                    f"{path} is not what was written there: it was damaged or replaced. Delete it, "
                    "and the same command makes it again"
                )
            self._checked.add(number)
        tensors = load_file(path)  # mapped: pages are read as rows are taken
        return self._values(tensors, "inputs"), self._values(tensors, "outputs")

    def _values(self, tensors: dict[str, Tensor], name: str) -> Tensor:
        scale = tensors.get(f"{name}_scale")
        values = tensors[name]
        return values if scale is None else values.to(self.dtype) * scale[..., None]


def fill(
    blocks: Blocks,
    folder: Path,
    eight_bit: bool = False,
    progress: Progress = lambda done, message: None,
    ranks: Ranks = ALONE,
) -> Store:
    """A store of all blocks in a folder; those already there are kept.

    Args:
        eight_bit: a quarter of the bytes of float32.
        ranks: processes that see the same folder; each makes its share of the shards.

    Raises:
        InputError: the folder holds the activations of something else.
        OutputError: it cannot be written; what was there stays and is used the next time.
    """
    identity = _identity(blocks, eight_bit)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {folder}: {error.strerror or error}") from error
    sizes = blocks.sizes
    sums = ranks.told(_known(folder, identity) or [None] * len(sizes))
    missing = [n for n in range(len(sizes)) if sums[n] is None or not _shard(folder, n).is_file()]
    missing = ranks.told(missing)
    for start in range(0, len(missing), ranks.count):
        number = missing[start]
        progress(number / len(sizes), f"activations, shard {number + 1} of {len(sizes)}")
        group = missing[start : start + ranks.count]
        mine = group[ranks.number] if ranks.number < len(group) else None
        made = None if mine is None else _made(blocks, folder, mine, eight_bit)
        for number, checksum in zip(group, ranks.reports(made), strict=False):
            sums[number] = checksum
        if ranks.first:
            _write_index(folder, identity, sums)
    return Store(folder, sizes, [found or "" for found in sums], blocks.adapter.dtype)


def _made(blocks: Blocks, folder: Path, number: int, eight_bit: bool) -> str:
    """Write a shard; its checksum."""
    inputs, outputs = blocks.block(number)
    tensors = _packed("inputs", inputs, eight_bit) | _packed("outputs", outputs, eight_bit)
    with replacing(_shard(folder, number)) as path:
        save_file(tensors, path)
    return _checksum(_shard(folder, number))


def _identity(blocks: Blocks, eight_bit: bool) -> dict[str, Any]:
    """What the activations of a store are of."""
    adapter = blocks.adapter
    return {
        "model": adapter.name,
        "layers": adapter.n_layers,
        "d_model": adapter.d_model,
        "read": blocks.read,
        "write": blocks.write,
        "text": blocks.corpus.mark,
        "blocks": hashlib.sha256(json.dumps(blocks.groups).encode()).hexdigest(),
        "dtype": str(adapter.dtype).removeprefix("torch."),
        "eight_bit": eight_bit,
    }


def _known(folder: Path, identity: dict[str, Any]) -> list[str | None]:
    """Checksums of a store's shards, None for those not made yet; nothing for a new store."""
    path = folder / INDEX
    if not path.is_file():
        return []
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        found, sums = dict(index["of"]), list(index["shards"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no index of activations; name another --store") from error
    for name, wanted in identity.items():
        if found.get(name) != wanted:
            raise InputError(
                f"{folder} holds activations of something else: {name} is {found.get(name)!r} "
                f"there and {wanted!r} here. Name another --store, or delete it"
            )
    return sums


def _write_index(folder: Path, identity: dict[str, Any], sums: list[str | None]) -> None:
    write_text(folder / INDEX, json.dumps({"of": identity, "shards": sums}, indent=1) + "\n")


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard_{number:05}.safetensors"


def _checksum(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            found.update(chunk)
    return found.hexdigest()


def _packed(
    name: str, values: Float[Tensor, "token layer d_model"], eight_bit: bool
) -> dict[str, Tensor]:
    """A site's tensors as they are stored."""
    if not eight_bit:
        return {name: values.contiguous()}
    scale = values.abs().amax(-1).clamp(min=1e-30) / 127
    whole = (values / scale[..., None]).round().clamp(-127, 127).to(torch.int8)
    return {name: whole.contiguous(), f"{name}_scale": scale}
