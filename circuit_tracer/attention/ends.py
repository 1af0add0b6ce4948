"""The ends of an edge, by name: what a source writes and what a target reads.

Names are those of graphs: `"3_417_5"` for feature 417 of layer 3 at position 5, `"3_-1_5"` for the
error there, `"E_91_5"` for an embedding, `"9_91_5"` for a target of a model of 8 layers.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from circuit_tracer.errors import InputError
from circuit_tracer.graph import Graph
from circuit_tracer.local import Local
from circuit_tracer.nodes import Node, node_id
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Float, Tensor
from circuit_tracer.targets import At, Difference, Direction, Wanted, again, choose

Prompt = str | Sequence[int] | torch.Tensor | Local | Graph
SourceName = str | Node
TargetName = str | Node | int | Difference | Direction | At | tuple[int, int, int]
NAME = re.compile(r"(E|\d+)_(-?\d+)_(\d+)")
SHOWN = 5


@dataclass(frozen=True, eq=False)
class Source:
    """What writes.

    Attributes:
        id: its node id.
        layer: the lowest layer it writes at; -1 for embeddings.
        writes: layer → (d_model,) what it adds to the residual stream after that layer's MLP; for
            an embedding, layer -1 → what it is before the first block.
    """

    id: str
    layer: int
    position: int
    writes: dict[int, Float[Tensor, " d_model"]]


@dataclass(frozen=True, eq=False)
class Target:
    """What reads.

    Attributes:
        id: its node id.
        layer: the number of layers for targets of a graph.
        reads: (d_model,) read vector in the residual stream before its MLP, or at the end.
    """

    id: str
    layer: int
    position: int
    reads: Float[Tensor, " d_model"]


def localise(model: ReplacementModel, prompt: Prompt) -> Local:
    """The local replacement model of a prompt; of a graph, with the positions it ignores.

    Raises:
        InputError: an impossible prompt, or a graph of another model.
    """
    if isinstance(prompt, Local):
        if prompt.adapter is not model.adapter:
            raise InputError(f"this prompt was localised by another model than {model!r}")
        return prompt
    if not isinstance(prompt, Graph):
        return model.localise(model.run(prompt))
    origin = prompt.provenance
    fault = f"this graph is of {origin.model} with {origin.transcoders}, not of {model!r}: "
    mend = "load the model and the transcoders that it was traced with"
    if not all(0 <= token < model.adapter.vocabulary for token in prompt.token_ids):
        raise InputError(f"{fault}its tokens are not of this vocabulary; {mend}")
    local = model.localise(model.run(prompt.token_ids), origin.ignored_positions)
    here, there = ({tuple(row) for row in x.index.features.tolist()} for x in (local, prompt))
    # A feature at its threshold may come out either way on another machine; most do not.
    if len(there - here) > 0.01 * len(there) + 1:
        raise InputError(f"{fault}{len(there - here)} of its features are not active here; {mend}")
    return local


def find_source(local: Local, node: TargetName) -> Source:
    """A feature, error or embedding of a prompt. Raises InputError where there is none."""
    if not isinstance(node, str | Node):
        raise InputError(f"{node} is a target; an edge starts at a feature, error or embedding")
    name, layer, number, position = _parts(local, node)
    if layer > local.n_layers:
        raise InputError(f"{name} is a target; an edge starts at a feature, error or embedding")
    if layer == -1:
        token = int(local.forward.token_ids[position])
        if number != token:
            right = node_id("embedding", -1, position, token)
            raise InputError(f"there is no node {name!r}; the embedding there is {right!r}")
        return Source(name, -1, position, {-1: local.forward.tokens[position]})
    if number == -1:
        _check_kept(local, name, position)
        return Source(name, layer, position, {layer: local.errors[layer, position]})
    row = _feature_row(local, name, layer, position, number)
    within = row - local.index.feature_rows(layer).start
    above = range(layer, local.n_layers)
    reached = [to for to in above if layer in local.transcoders.writers(to)]
    writes = {to: local.writes(layer, to)[within] for to in reached}
    return Source(name, layer, position, writes)


def find_target(
    model: ReplacementModel, local: Local, node: TargetName, graph: Graph | None = None
) -> Target:
    """A feature, a token, or whatever else can be explained.

    Args:
        graph: the graph that a node id is of, where it is; then ids of its directions that are
            features' pre-activations are understood too.

    Raises:
        InputError: a node that is not there, or that reads nothing (errors, embeddings).
    """
    if not isinstance(node, str | Node):
        return _readout(model, local, node)
    name, layer, number, position = _parts(local, node)
    if layer == local.n_layers + 1:
        return _readout(model, local, _output(graph, name, number, position))
    if layer == -1 or number == -1:
        kind = "an embedding" if layer == -1 else "an error"
        raise InputError(f"{name} is {kind} and reads nothing; an edge ends at a feature or target")
    _feature_row(local, name, layer, position, number)
    return _readout(model, local, (layer, position, number))


def _output(graph: Graph | None, name: str, number: int, position: int) -> Wanted:
    """What a target of a graph reads; its number is a token, or -1 - k for the k-th target."""
    if number >= 0:
        return At(number, position)
    if graph is not None and -number <= len(graph.targets):
        wanted = again(graph.targets[-1 - number])
        if wanted is not None:
            return wanted
    raise InputError(
        f"{name} is a direction, which its id does not describe: pass it as it was passed to be "
        "traced, as Direction(vector) or At(Direction(vector), position)"
    )


def _readout(model: ReplacementModel, local: Local, wanted: Wanted) -> Target:
    (found,) = choose(model, local.forward, [wanted])
    name = found.label
    if found.feature is not None:
        name = node_id("feature", found.layer, found.position, found.feature)
    elif found.token_id is not None:
        name = node_id("logit", found.layer, found.position, found.token_id)
    return Target(name, found.layer, found.position, found.vector)


def _parts(local: Local, node: str | Node) -> tuple[str, int, int, int]:
    """(id, layer as written, number, position) of a node; layer -1 for embeddings."""
    name = node.id if isinstance(node, Node) else node
    found = NAME.fullmatch(name)
    if found is None:
        raise InputError(
            f"{name!r} is not a node id; they look like '3_417_5' (feature 417 of layer 3 at "
            "position 5), '3_-1_5' (its error), 'E_91_5' (embedding of token 91)"
        )
    layer = -1 if found[1] == "E" else int(found[1])
    number, position = int(found[2]), int(found[3])
    if not 0 <= position < local.n_positions:
        raise InputError(
            f"{name}: there is no position {position}; the prompt has positions 0 to "
            f"{local.n_positions - 1}"
        )
    if layer == local.n_layers or layer > local.n_layers + 1:
        raise InputError(
            f"{name}: there is no layer {layer}; the model has layers 0 to {local.n_layers - 1}, "
            f"and its targets are written {local.n_layers + 1}_…"
        )
    return name, layer, number, position


def _check_kept(local: Local, name: str, position: int) -> None:
    if position in local.ignored_positions:
        raise InputError(
            f"{name}: features and errors of position {position} are ignored here; localise with "
            "ignored=() to have them"
        )


def _feature_row(local: Local, name: str, layer: int, position: int, feature: int) -> int:
    """Row of an active feature; InputError with its neighbours where it is not active."""
    _check_kept(local, name, position)
    row = local.index.feature_row(layer, position, feature)
    if row is not None:
        return row
    rows = local.index.feature_rows(layer)
    part = local.index.features[rows.start : rows.stop]
    elsewhere = part[part[:, 2] == feature, 1].tolist()[:SHOWN]
    ids = [
        node_id("feature", layer, position, number)
        for number in part[part[:, 1] == position, 2].tolist()
    ]
    near = difflib.get_close_matches(name, ids, n=SHOWN, cutoff=0.0)
    raise InputError(
        f"{name}: feature {feature} of layer {layer} is not active at position {position}"
        + (f" (it is at {', '.join(map(str, elsewhere))})" if elsewhere else "")
        + (f"; the nearest that are: {', '.join(near)}" if near else "; no feature there is")
    )
