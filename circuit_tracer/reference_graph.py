"""The reference tool's own graph files, `.pt`, read without running anything in them.

They are pickles, which can hold code. torch's restricted reader takes plain values and tensors
only; the three classes such a file names are not imported but put in our own empty ones. Whatever
else a file names, it is refused.

A file holds the complete matrix and no text of the prompt's tokens, only their numbers: who has the
tokenizer gives the words.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from circuit_tracer.edges import EdgeRows
from circuit_tracer.errors import GraphFileError, InputError
from circuit_tracer.facts import Provenance, Target
from circuit_tracer.nodes import NodeIndex
from circuit_tracer.reading import Reading
from circuit_tracer.shapes import Float, Int, Tensor

REFUSED = "save the graph as JSON in the tool that made it, and read that"


class _Config:
    """Where the fields of the model's configuration are put."""


class _Output(NamedTuple):
    """A target: its text and its token id, or a number beyond the vocabulary."""

    token_str: str
    vocab_idx: int


ALLOWED: list[tuple[type, str]] = [
    (_Output, "circuit_tracer.attribution.targets.LogitTarget"),
    (_Config, "circuit_tracer.utils.tl_nnsight_mapping.UnifiedConfig"),
    (_Config, "transformer_lens.HookedTransformerConfig.HookedTransformerConfig"),
]
TENSORS = ("adjacency_matrix", "active_features", "selected_features", "activation_values",
           "logit_probabilities", "input_tokens")  # fmt: skip


def read(path: str | os.PathLike[str], tokens: Sequence[str] | None = None) -> Reading:
    """Read a file.

    Args:
        tokens: the prompt's tokens as text; default their numbers, `#1234`.

    Raises:
        InputError: there is no such file, or `tokens` are not as many as the prompt's.
        GraphFileError: it is damaged, names anything but plain values, or is no graph.
    """
    found = _unpickled(path)
    try:
        reading = _reading(found)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        said = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else error
        raise GraphFileError(
            f"{path} is not a graph of the reference tool: {said}; expected what its "
            f"Graph.to_pt writes"
        ) from error
    if tokens is None:
        return reading
    if len(tokens) != len(reading.tokens):
        raise InputError(
            f"the prompt of the graph has {len(reading.tokens)} tokens, {len(tokens)} were given"
        )
    return replace(reading, tokens=tuple(tokens))


def _unpickled(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(list(ALLOWED)):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except pickle.UnpicklingError as error:
        raise GraphFileError(
            f"{path} is a pickle that names more than plain values and tensors, so that reading "
            f"it could run code; it is not read. If you trust it, {REFUSED}."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise GraphFileError(f"{path} is damaged or cut short ({error}); use a copy") from error
    if not isinstance(found, dict) or "adjacency_matrix" not in found:
        keys = ", ".join(map(str, list(found)[:6])) if isinstance(found, dict) else ""
        raise GraphFileError(
            f"{path} is a file of torch but not a graph of the reference tool: it holds "
            f"{keys or type(found).__name__}"
        )
    return found


def _reading(found: dict[str, Any]) -> Reading:
    for name in TENSORS:
        if not isinstance(found[name], Tensor):
            raise ValueError(f"{name} is not a tensor")
    ids = [int(one) for one in found["input_tokens"].tolist()]
    selected = found["selected_features"].long()
    keys = found["active_features"].long().reshape(-1, 3)[selected]
    targets = _targets(found, len(ids) - 1)
    order = _sorted(keys)
    index = NodeIndex(
        keys[order],
        int(found["cfg"].n_layers),
        len(ids),
        torch.full((len(targets),), len(ids) - 1),
    )
    _check(index)
    scan = found.get("scan")
    return Reading(
        edges=_edges(index, found["adjacency_matrix"], order),
        activations=found["activation_values"][selected][order].float(),
        targets=targets,
        tokens=tuple(f"#{one}" for one in ids),
        token_ids=tuple(ids),
        notes={},
        provenance=Provenance(
            str(found["input_string"]),
            str(getattr(found["cfg"], "model_name", "") or ""),
            ", ".join(map(str, scan)) if isinstance(scan, list) else str(scan or ""),
        ),
    )


def _edges(
    index: NodeIndex, matrix: Float[Tensor, "node node"], order: Int[Tensor, " active"]
) -> EdgeRows:
    """Rows of the matrix, whose features stand in another order."""
    if matrix.shape != (len(index), len(index)):
        raise ValueError(f"a matrix of {len(index)} nodes has the shape {tuple(matrix.shape)}")
    places = torch.arange(len(index))
    places[order] = torch.arange(index.n_features)
    rows, columns = matrix.nonzero(as_tuple=True)
    values = matrix[rows, columns].float()
    known = torch.arange(index.n_features)
    return EdgeRows.from_edges(index, places[rows], places[columns], values, known)


def _targets(found: dict[str, Any], last: int) -> tuple[Target, ...]:
    """What is explained; a number beyond the vocabulary is a direction, not a token. The file's
    `vocab_size` is the tokenizer's, which leaves out added tokens; the model's has them all."""
    said, size = found["logit_targets"], int(found["vocab_size"])
    size = max(size, int(getattr(found["cfg"], "d_vocab", 0) or 0))
    if isinstance(said, Tensor):  # as older versions wrote them
        said = [_Output(f"#{int(one)}", int(one)) for one in said.tolist()]
    probabilities = [float(one) for one in found["logit_probabilities"].tolist()]
    if not said or len(said) != len(probabilities):
        raise ValueError(f"{len(said)} targets have {len(probabilities)} probabilities")
    return tuple(
        Target(str(text), number, last, weight, weight)
        if number < size
        else Target(str(text), None, last, None, weight)
        for (text, number), weight in zip(said, probabilities, strict=True)
    )


def _sorted(keys: Int[Tensor, "active 3"]) -> Int[Tensor, " active"]:
    """The order that sorts features by (layer, position, id)."""
    order = torch.arange(len(keys))
    for column in (2, 1, 0):
        order = order[keys[order, column].argsort(stable=True)]
    return order


def _check(index: NodeIndex) -> None:
    limit = torch.tensor([index.n_layers, index.n_positions, 2**62])
    if not bool(((index.features >= 0) & (index.features < limit)).all()):
        raise ValueError("a feature lies outside the model or the prompt")
    if len(index.features.unique(dim=0)) < index.n_features:
        raise ValueError("a feature is there twice")
