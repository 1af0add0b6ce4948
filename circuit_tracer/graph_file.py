"""A graph on disk: one safetensors file, tensors and a JSON header, nothing that can run.

Edges are stored flat, block after block, with a table of the blocks:

    features  (n_features, 3)  layer, position, id        target_positions  (n_targets,)
    blocks    (n_blocks, 3)    layer, position, rows      rows    (n_rows,)  of all blocks
    values    (n_values,)      of all blocks, row-major   activations  (n_features,)
    bias, positional, ignored, value  (n_nodes,)          header  (n_bytes,)  JSON in UTF-8

Rows without their weakest edges (`sparse`) hold in `values` what was kept, and further

    mask  (n_bytes,)  of all blocks, which places are kept    remainder  (n_rows,)
    dropped  (n_rows, n_layers)                               keep  in the header

Where targets are directions, their vectors are there too, as they were given:

    directions  (n_directions, d_model)     directed  (n_directions,)  which targets they are

The safetensors metadata say `format` and `version`: 1, or 2 for such rows. A file is believed only
after everything in it was checked against everything else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file

from circuit_tracer import files
from circuit_tracer.edges import Block, EdgeRows, RowBlock
from circuit_tracer.errors import GraphFileError, InputError
from circuit_tracer.file_kind import check_there
from circuit_tracer.nodes import NodeIndex
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.sparse import COUNTS, SparseBlock

FORMAT = "circuit-graph"
VERSION, SPARSE_VERSION = 1, 2
"""Of files with all edges, which older readers read too, and of those without the weakest."""
TERMS = ("bias", "positional", "ignored", "value")
WHOLE = ("features", "target_positions", "blocks", "rows")
REAL = ("activations", "values", *TERMS)
SUMS = ("remainder", "dropped")
"""What sparse blocks know of the edges they dropped."""


def write(
    path: str | os.PathLike[str],
    edges: EdgeRows,
    activations: Float[Tensor, " active"],
    header: dict[str, Any],
) -> None:
    """Write a graph, whole or not at all.

    Args:
        header: plain JSON values; `read` gives them back. Its `targets` may have a `direction`
            each, which is kept as a tensor.

    Raises:
        InputError: the header is not plain JSON.
        OutputError: the file could not be written; an older one is untouched.
    """
    index, empty = edges.index, torch.empty(0)
    sizes: dict[str, float] = {"n_layers": index.n_layers, "n_positions": index.n_positions}
    sparse = [block for block in edges.blocks if isinstance(block, SparseBlock)]
    if sparse:
        sizes["keep"] = edges.keep
    targets, directions = _parted(header["targets"])
    try:
        text = json.dumps({**header, "targets": targets, **sizes}, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"the settings of this graph are not plain JSON values: {error}"
        ) from error
    table: list[list[int]] = []
    for block in edges.blocks:
        if not table or table[-1][:2] != [block.layer, block.position]:
            table.append([block.layer, block.position, 0])
        table[-1][2] += len(block.rows)
    tensors = {
        "features": index.features,
        "target_positions": index.target_positions,
        "blocks": torch.tensor(table, dtype=torch.long).reshape(-1, 3),
        "rows": torch.cat([empty.long(), *(block.rows for block in edges.blocks)]),
        "values": torch.cat([_stored(block) for block in edges.blocks] or [empty]),
        "activations": activations,
        **{name: getattr(edges, name) for name in TERMS},
        "header": torch.frombuffer(bytearray(text), dtype=torch.uint8),
    }
    if sparse:
        tensors["mask"] = torch.cat([block.mask.flatten() for block in sparse])
        for name in SUMS:
            tensors[name] = torch.cat([getattr(block, name) for block in sparse])
    if directions:
        tensors["directed"] = torch.tensor(list(directions))
        tensors["directions"] = torch.tensor(list(directions.values()), dtype=torch.float64)
    for name in (*TERMS, "activations", "features", "target_positions"):
        tensors[name] = tensors[name].detach().clone()  # what shares memory cannot be stored
    with files.replacing(path) as place:
        try:
            version = SPARSE_VERSION if sparse else VERSION
            save_file(tensors, place, {"format": FORMAT, "version": str(version)})
        except safetensors.SafetensorError as error:
            raise OSError(str(error)) from error


def _parted(
    targets: Sequence[dict[str, Any]],
) -> tuple[list[dict[str, Any]], dict[int, Sequence[float]]]:
    """(targets without their directions, the directions by the number of their target)."""
    plain = [dict(target) for target in targets]
    directions = {k: target.pop("direction", None) for k, target in enumerate(plain)}
    return plain, {k: vector for k, vector in directions.items() if vector is not None}


def _stored(block: Block) -> Tensor:
    return block.kept if isinstance(block, SparseBlock) else block.values.flatten()


def read(
    path: str | os.PathLike[str],
) -> tuple[EdgeRows, Float[Tensor, " active"], dict[str, Any]]:
    """The edges, activations and header that `write` was given.

    Raises:
        InputError: there is no such file.
        GraphFileError: it is damaged, newer than this version, or something else.
    """
    tensors = _tensors(Path(path))
    try:
        header = json.loads(tensors["header"].numpy().tobytes())
        _check_kinds(tensors)
        index = NodeIndex(
            tensors["features"],
            header.pop("n_layers"),
            header.pop("n_positions"),
            tensors["target_positions"],
        )
        _check_index(index)
        keep = float(header.pop("keep", 1.0))
        blocks = _blocks(index, tensors, keep)
        edges = EdgeRows(index, blocks, *(tensors[name] for name in TERMS), keep=keep)
        _check_numbers(edges, tensors)
        for k, vector in _directions(index, tensors).items():
            target = header["targets"][k]
            if target["token_id"] is not None or target["feature"] or target["difference"]:
                raise ValueError(f"target {k} is a direction and something else")
            target["direction"] = vector
    except (InputError, KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise damaged(path, error) from error
    return edges, tensors["activations"], header


def damaged(path: str | os.PathLike[str], error: Exception) -> GraphFileError:
    """What to raise for a graph file whose content does not hold together."""
    said = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
    return GraphFileError(f"{path} is damaged: {said}. Trace the prompt again, or use a copy.")


def _tensors(path: Path) -> dict[str, Tensor]:
    check_there(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise GraphFileError(
                    f"{path} is a safetensors file but not a graph; "
                    "give a file written by Graph.save"
                )
            version = about.get("version", "")
            if not version.isdigit() or int(version) > SPARSE_VERSION:
                raise GraphFileError(
                    f"{path} has format version {version or 'none'}, this package reads up to "
                    f"{SPARSE_VERSION}; install a newer version of it"
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise GraphFileError(f"{path} {_looks_like(path)} ({error})") from error


def _looks_like(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return "cannot be read"
    if start[:1] == b"\x80" or start[:2] == b"PK":
        return (
            "is a pickle, which could run code, and is not read here; "
            "a graph of the reference tool is read safely by Graph.read"
        )
    if start.lstrip()[:1] in (b"{", b"["):
        return "looks like JSON; read it with Graph.from_json"
    return "is damaged or cut short, or not a graph at all; trace the prompt again, or use a copy"


def _check_kinds(tensors: dict[str, Tensor]) -> None:
    for name in WHOLE:
        if tensors[name].dtype != torch.int64:
            raise ValueError(f"{name} should be int64, not {tensors[name].dtype}")
    for name in REAL:
        if not tensors[name].dtype.is_floating_point or tensors[name].ndim != 1:
            raise ValueError(f"{name} should be a list of real numbers")


def _check_index(index: NodeIndex) -> None:
    features, targets = index.features, index.target_positions
    if index.n_layers < 1 or index.n_positions < 1 or targets.ndim != 1 or len(targets) < 1:
        raise ValueError("it names no layers, no positions or no targets")
    if features.ndim != 2 or features.shape[1] != 3:
        raise ValueError(f"features have shape {tuple(features.shape)}, not (n, 3)")
    limit = torch.tensor([index.n_layers, index.n_positions, 2**62])
    if not bool(((features >= 0) & (features < limit)).all()):
        raise ValueError("a feature lies outside the model or the prompt")
    if not bool(((targets >= 0) & (targets < index.n_positions)).all()):
        raise ValueError("a target lies outside the prompt")
    earlier, later = features[:-1], features[1:]
    rises = later > earlier
    same = later == earlier
    if not bool((rises[:, 0] | same[:, 0] & (rises[:, 1] | same[:, 1] & rises[:, 2])).all()):
        raise ValueError("features are not in order, or one is there twice")


def _blocks(index: NodeIndex, tensors: dict[str, Tensor], keep: float) -> tuple[Block, ...]:
    table, rows = tensors["blocks"].tolist(), tensors["rows"]
    content = _Whole(tensors) if keep == 1 else _Sparse(tensors, index.n_layers, len(rows), keep)
    if len({(layer, position) for layer, position, _ in table}) != len(table):
        raise ValueError("two blocks hold the rows of one layer and position")
    counts = [count for _, _, count in table]
    if min(counts, default=1) < 1 or sum(counts) != len(rows):
        raise ValueError(f"the table of blocks speaks of {sum(counts)} rows, there are {len(rows)}")
    if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= len(index)):
        raise ValueError("a row lies outside the graph")
    blocks: list[Block] = []
    for (layer, position, _), mine in zip(table, rows.split(counts), strict=True):
        if not bool(
            0 <= layer <= index.n_layers
            and ((index.layers[mine] == layer) | (mine >= index.first_target)).all()
            and (index.positions[mine] == position).all()
            and (mine[1:] > mine[:-1]).all()
            and ((mine < index.first_error) | (mine >= index.first_target)).all()
        ):
            raise ValueError(f"rows of layer {layer}, position {position} do not belong there")
        blocks.append(content.block(layer, position, mine, len(index.cone(layer, position))))
    content.check_end()
    return tuple(blocks)


class _Run:
    """A flat tensor of a file, taken piece by piece."""

    def __init__(self, name: str, tensor: Tensor) -> None:
        self.name, self.left = name, tensor

    def take(self, *shape: int) -> Tensor:
        count = int(torch.Size(shape).numel())
        if count > len(self.left):
            raise ValueError(f"there are fewer {self.name} than the table of blocks needs")
        found, self.left = self.left[:count].view(shape), self.left[count:]
        return found

    def check_end(self) -> None:
        if len(self.left):
            raise ValueError(f"there are more {self.name} than the table of blocks needs")


class _Whole:
    """Blocks with all their edges."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.values = _Run("values", tensors["values"])

    def block(self, layer: int, position: int, rows: Int[Tensor, " target"], width: int) -> Block:
        return RowBlock(layer, position, rows, self.values.take(len(rows), width))

    def check_end(self) -> None:
        self.values.check_end()


class _Sparse:
    """Blocks without their weakest edges."""

    def __init__(self, tensors: dict[str, Tensor], n_layers: int, n_rows: int, keep: float) -> None:
        remainder, dropped = (tensors[name] for name in SUMS)
        if not 0 < keep < 1:
            raise ValueError(f"rows that keep a share of {keep} are no rows")
        if tensors["mask"].dtype != torch.uint8 or tensors["mask"].ndim != 1:
            raise ValueError("mask should be a list of bytes")
        if remainder.shape != (n_rows,) or dropped.shape != (n_rows, n_layers):
            raise ValueError("what was dropped is not given for every row and layer")
        for sums in (remainder, dropped):
            if sums.dtype != torch.float64 or not bool(sums.isfinite().all()):
                raise ValueError("what was dropped is not all finite numbers of float64")
        if not bool((dropped >= 0).all()):
            raise ValueError("an absolute sum is below zero")
        self.values, self.mask = _Run("values", tensors["values"]), _Run("mask", tensors["mask"])
        self.remainder, self.dropped, self.row = remainder, dropped, 0

    def block(self, layer: int, position: int, rows: Int[Tensor, " target"], width: int) -> Block:
        span = slice(self.row, self.row + len(rows))
        self.row = span.stop
        mask = self.mask.take(len(rows), -(-width // 8))
        if width % 8 and bool((mask[:, -1] & (0xFF >> width % 8)).any()):
            raise ValueError(f"rows of layer {layer}, position {position} end beyond their sources")
        values = self.values.take(int(COUNTS[mask.numpy()].sum()))
        sums = (self.remainder[span], self.dropped[span])
        return SparseBlock(layer, position, rows, width, values, mask, *sums)

    def check_end(self) -> None:
        self.values.check_end()
        self.mask.check_end()


def _directions(index: NodeIndex, tensors: dict[str, Tensor]) -> dict[int, tuple[float, ...]]:
    """The vectors of the targets that are directions, by their numbers."""
    if not {"directed", "directions"} & set(tensors):
        return {}
    targets, vectors = tensors["directed"], tensors["directions"]
    if targets.dtype != torch.int64 or vectors.dtype != torch.float64:
        raise ValueError("directions are not numbers of float64 for targets of int64")
    if targets.ndim != 1 or vectors.ndim != 2 or len(vectors) != len(targets):
        raise ValueError("there are not as many directions as targets for them")
    if not bool(((targets >= 0) & (targets < index.n_targets)).all()):
        raise ValueError("a direction belongs to no target")
    if not bool(vectors.isfinite().all()):
        raise ValueError("directions are not all finite numbers")
    return dict(zip(targets.tolist(), map(tuple, vectors.tolist()), strict=True))


def _check_numbers(edges: EdgeRows, tensors: dict[str, Tensor]) -> None:
    index = edges.index
    if len(tensors["activations"]) != index.n_features:
        raise ValueError("there are not as many activations as features")
    for name in TERMS:
        if len(tensors[name]) != len(index):
            raise ValueError(f"{name} should have {len(index)} numbers, not {len(tensors[name])}")
    if not bool(torch.isin(torch.arange(index.first_target, len(index)), edges.rows).all()):
        raise ValueError("a target has no row")
    for name in ("values", "bias", "positional", "ignored"):
        if not bool(tensors[name].isfinite().all()):
            raise ValueError(f"{name} are not all finite numbers")
    unknown = tensors["value"].isnan()  # all of them in a graph that was read from JSON
    if bool(tensors["value"].isinf().any()) or bool(unknown.any()) and not bool(unknown.all()):
        raise ValueError("value is not all finite numbers")
    if bool(tensors["activations"].isinf().any()):
        raise ValueError("activations are not all finite numbers")
