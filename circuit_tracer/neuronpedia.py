"""Graphs in the JSON of Neuronpedia, Anthropic's front end and circuit-tracer, both ways.

The schema lives here and nothing else does: what the fields are called, what is in an id, how a
feature is numbered. Coming in, a file (compressed or not) is checked by pydantic, and every node is
told by its `feature_type`, layer and position, not by its id: circuit-tracer once wrote the error
of layer 2 at position 5 as `0_2_5`, which is also feature 2 of layer 0.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from circuit_tracer.edges import EdgeRows
from circuit_tracer.errors import GraphFileError
from circuit_tracer.facts import FeatureNote, Provenance, Target
from circuit_tracer.file_kind import holds_instead, json_text
from circuit_tracer.nodes import Kind, Node, NodeIndex, Place
from circuit_tracer.reading import Named, Reading, link_ends
from circuit_tracer.shapes import Float, Tensor

FEATURE_TYPES: dict[str, Kind] = {
    "cross layer transcoder": "feature",
    "mlp reconstruction error": "error",
    "embedding": "embedding",
    "logit": "logit",
}
PROVENANCE: dict[str, type] = {
    "prompt": str,
    "model": str,
    "transcoders": str,
    "transcoder_kind": str,
    "ignored_positions": list,
    "settings": dict,
    "versions": dict,
    "dtype": str,
}
OUTPUT = re.compile(r'Output "(.*)" \(p=[0-9.e+-]+\)', re.DOTALL)


class _Model(BaseModel):
    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=True)


class Metadata(_Model):
    slug: str
    scan: str
    prompt_tokens: list[str] = Field(min_length=1)
    prompt: str
    transcoder_list: list[str] = []
    node_threshold: float | None = None
    schema_version: int | None = 1
    info: dict[str, Any] | None = None
    generation_settings: dict[str, Any] | None = None
    pruning_settings: dict[str, Any] | None = None


class QParams(_Model):
    pinnedIds: list[str] | None = []  # noqa: N815
    supernodes: list[list[str]] | None = []
    linkType: str = "both"  # noqa: N815
    clickedId: str = ""  # noqa: N815
    sg_pos: str = ""


class JsonNode(_Model):
    node_id: str
    feature: int | None
    layer: str
    ctx_idx: int = Field(ge=0)
    feature_type: str
    token_prob: FiniteFloat | None = 0.0
    is_target_logit: bool | None = False
    run_idx: int | None = 0
    reverse_ctx_idx: int | None = 0
    jsNodeId: str  # noqa: N815
    clerp: str | None = ""
    influence: FiniteFloat | None = None
    activation: FiniteFloat | None = None


class Link(_Model):
    source: str
    target: str
    weight: FiniteFloat


class Document(_Model):
    metadata: Metadata
    qParams: QParams = QParams()  # noqa: N815
    nodes: list[JsonNode] = Field(min_length=1)
    links: list[Link]


def feature_number(layer: int, feature: int) -> int:
    """The Cantor number by which front ends look a feature up.

    >>> feature_number(0, 47)
    1175
    """
    return (layer + feature) * (layer + feature + 1) // 2 + feature


def metadata(
    prompt: str,
    tokens: Sequence[str],
    slug: str | None,
    scan: str,
    thresholds: tuple[float, float],
    settings: dict[str, Any],
) -> Metadata:
    """Metadata of a graph; `settings` go under `generation_settings`."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60].strip("-")
    return Metadata(
        slug=slug or words or "graph",
        scan=scan,
        prompt_tokens=list(tokens),
        prompt=prompt,
        node_threshold=thresholds[0],
        pruning_settings={"node_threshold": thresholds[0], "edge_threshold": thresholds[1]},
        generation_settings=settings,
    )


def document(
    nodes: Iterable[Node],
    shares: Iterable[float],
    links: Iterable[tuple[str, str, float]],
    about: Metadata,
) -> str:
    """The JSON text of a graph.

    Args:
        shares: for every node the cumulative share of influence at its rank.
        links: (source id, target id, weight).
    """
    written, first = [], True
    for node, share in zip(nodes, shares, strict=True):
        written.append(_json_node(node, share, first and node.kind == "logit"))
        first = first and node.kind != "logit"
    edges = [Link(source=s, target=t, weight=w) for s, t, w in links]
    return Document(metadata=about, nodes=written, links=edges).model_dump_json(indent=2)


def read(path: str | os.PathLike[str]) -> Reading:
    """Read and check a file, compressed with gzip or not.

    Raises:
        InputError: there is no such file.
        GraphFileError: it does not follow the schema, or contradicts itself.
    """
    text = json_text(path)
    try:
        return _reading(Document.model_validate_json(text))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        said = f"{where}: {first['msg']}{holds_instead(text)}"
        raise GraphFileError(f"{path} is not a graph in Neuronpedia's schema: {said}") from error
    except ValueError as error:
        raise GraphFileError(f"{path} is not a graph in Neuronpedia's schema: {error}") from error


def _json_node(node: Node, share: float, first: bool) -> JsonNode:
    layer = {"embedding": "E", "logit": str(node.layer + 1)}.get(node.kind, str(node.layer))
    probability = node.probability
    common: dict[str, Any] = {
        "node_id": node.id,
        "layer": layer,
        "ctx_idx": node.position,
        "feature_type": next(name for name, kind in FEATURE_TYPES.items() if kind == node.kind),
        "influence": None if node.kind == "logit" else share,
    }
    if node.kind == "feature":
        named = "" if node.label == f"L{node.layer}#{node.feature}" else node.label
        return JsonNode(
            **common,
            feature=feature_number(node.layer, node.feature),
            jsNodeId=f"{layer}_{node.feature}-0",
            clerp=named,
            activation=node.activation,
        )
    if node.kind == "logit":
        output = f"{node.label} (p={0 if probability is None else probability:.3f})"
        return JsonNode(
            **common,
            feature=node.feature,
            jsNodeId=f"L_{node.feature}-{node.position}",
            clerp=node.label if node.feature < 0 else output,
            token_prob=probability or 0.0,
            is_target_logit=first,
        )
    return JsonNode(
        **common,
        feature=node.position if node.kind == "embedding" else -1,
        jsNodeId=f"{layer}_{node.feature}-{node.position}",
    )


def _reading(found: Document) -> Reading:
    about, length = found.metadata, len(found.metadata.prompt_tokens)
    settings = about.generation_settings or {}
    logits = [node for node in found.nodes if node.feature_type == "logit"]
    if not logits:
        raise ValueError("it has no logit nodes, so nothing is explained")
    layers = {_number(node.layer, node) for node in logits}
    if len(layers) > 1 or min(layers) < 2:
        raise ValueError(f"its logits are at layers {sorted(layers)}; one layer above 1 is needed")
    n_layers = layers.pop() - 1
    placed = _places(found.nodes, n_layers, length)
    features = sorted(
        (place[1:], float("nan") if node.activation is None else node.activation, node.clerp or "")
        for place, node in placed
        if place[0] == "feature"
    )
    token_ids = [-1] * length
    for place, node in placed:
        if place[0] == "embedding":
            token_ids[place[2]] = _id_part(node)
    targets = [_target(node) for node in logits]
    for name, known in TARGETS.items():
        values = settings.get(name)
        if isinstance(values, list) and len(values) == len(targets):
            targets = [known(target, value) for target, value in zip(targets, values, strict=True)]
    index = NodeIndex(
        torch.tensor([key for key, _, _ in features], dtype=torch.long).reshape(-1, 3),
        n_layers,
        length,
        torch.tensor([target.position for target in targets], dtype=torch.long),
    )
    origin = {"prompt": about.prompt, **_scanned(about)}
    named = _named(index, placed)
    labels = {(key[0], key[2]): label for key, _, label in features if label}
    labels |= _clerps(found.qParams, named)
    pinned, supernodes, lost = _marks(found.qParams, named)
    return Reading(
        edges=_edges(index, found.links, named),
        activations=_narrow([activation for _, activation, _ in features]),
        targets=tuple(targets),
        tokens=tuple(about.prompt_tokens),
        token_ids=tuple(token_ids),
        notes={key: FeatureNote(label) for key, label in labels.items()},
        provenance=Provenance.from_plain(origin | _known(settings.get("provenance"))),
        pinned=pinned,
        supernodes=supernodes,
        lost=lost,
    )


def _scanned(about: Metadata) -> dict[str, str]:
    """Model and transcoders: Neuronpedia's `scan` is a model, the reference tool's transcoders."""
    details = (about.model_extra or {}).get("feature_details")
    source = details.get("neuronpedia_source_set") if isinstance(details, dict) else None
    if isinstance(source, str):
        return {"model": about.scan, "transcoders": source}
    return {"transcoders": about.scan}


def _places(nodes: list[JsonNode], n_layers: int, length: int) -> list[tuple[Place, JsonNode]]:
    placed: dict[Place, JsonNode] = {}
    n_targets = 0
    for node in nodes:
        place = _place(node, n_layers, length, n_targets)
        n_targets += place[0] == "logit"
        if place in placed:
            raise ValueError(f"node {node.node_id!r} is there twice")
        placed[place] = node
    return list(placed.items())


def _named(index: NodeIndex, placed: list[tuple[Place, JsonNode]]) -> Named:
    """Places and rows of the nodes by id, of which the reference tool gives some to two nodes."""
    rows = {tuple(key): row for row, key in enumerate(index.features.tolist())}
    named: dict[str, list[tuple[Place, int]]] = {}
    for place, node in placed:
        kind, layer, position, number = place
        if kind == "feature":
            row = rows[layer, position, number]
        elif kind == "error":
            row = index.error_row(layer, position)
        else:
            row = index.target_row(number) if kind == "logit" else index.embedding_row(position)
        named.setdefault(node.node_id, []).append((place, row))
    return named


def _edges(index: NodeIndex, links: list[Link], named: Named) -> EdgeRows:
    """Rows of the links."""
    ends = link_ends([(link.source, link.target) for link in links], named)
    targets, sources = torch.tensor(ends, dtype=torch.long).reshape(-1, 2).T
    return EdgeRows.from_edges(index, targets, sources, _narrow([link.weight for link in links]))


def _clerps(given: QParams, named: Named) -> dict[tuple[int, int], str]:
    """Labels given beside the nodes, [[id, label]], of features that are there."""
    labels = {}
    pairs = (given.model_extra or {}).get("clerps")
    for pair in pairs if isinstance(pairs, list) else []:
        if isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair):
            for place, _ in named.get(pair[0], []):
                if place[0] == "feature" and pair[1]:
                    labels[place[1], place[3]] = pair[1]
    return labels


def _marks(
    given: QParams, named: Named
) -> tuple[tuple[int, ...], tuple[tuple[str, tuple[int, ...]], ...], tuple[str, ...]]:
    """Rows that are pinned, (name, rows) of the supernodes, and ids that are not there."""

    def rows(ids: Iterable[str]) -> tuple[int, ...]:
        # Of two nodes with one id the feature is meant: nobody pins an error.
        found = (min(named[one], key=lambda n: n[0][0] != "feature")[1] for one in ids)
        return tuple(dict.fromkeys(found))

    pinned, groups = given.pinnedIds or [], [group for group in given.supernodes or [] if group]
    asked = dict.fromkeys([*pinned, *(one for group in groups for one in group[1:])])
    there = [(name, rows(one for one in ids if one in named)) for name, *ids in groups]
    return (
        rows(one for one in pinned if one in named),
        tuple((name, found) for name, found in there if found),
        tuple(one for one in asked if one not in named),
    )


def _narrow(values: list[float]) -> Float[Tensor, " value"]:
    """float32 where that holds every value exactly, else float64."""
    wide = torch.tensor(values, dtype=torch.float64)
    narrow = wide.float()
    return narrow if torch.equal(narrow.double().nan_to_num(), wide.nan_to_num()) else wide


def _place(node: JsonNode, n_layers: int, length: int, n_targets: int) -> Place:
    kind = FEATURE_TYPES.get(node.feature_type)
    if kind is None:
        raise ValueError(
            f"node {node.node_id!r} has the feature_type {node.feature_type!r}; "
            f"known are {', '.join(FEATURE_TYPES)}"
        )
    if node.ctx_idx >= length:
        raise ValueError(f"node {node.node_id!r} is beyond the {length} tokens of the prompt")
    if kind == "embedding":
        return kind, -1, node.ctx_idx, -1
    if kind == "logit":
        return kind, n_layers, node.ctx_idx, n_targets
    layer = _number(node.layer, node)
    if not 0 <= layer < n_layers:
        raise ValueError(f"node {node.node_id!r} is at layer {layer} of {n_layers}")
    return kind, layer, node.ctx_idx, -1 if kind == "error" else _id_part(node)


def _id_part(node: JsonNode) -> int:
    """The feature or token id, in the middle of the node's id."""
    parts = node.node_id.split("_")
    return _number(parts[1] if len(parts) == 3 else "", node)


def _number(text: str, node: JsonNode) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"node {node.node_id!r} at layer {node.layer!r}: an id is layer_feature_position in "
            "whole numbers"
        ) from None


def _target(node: JsonNode) -> Target:
    match = OUTPUT.fullmatch(node.clerp or "")
    number = _id_part(node)
    probability = node.token_prob or 0.0
    label = match.group(1) if match else node.clerp or node.node_id
    if number < 0:
        return Target(label, None, node.ctx_idx, probability or None, probability)
    return Target(label, number, node.ctx_idx, probability, probability)


def _weighted(target: Target, weight: Any) -> Target:
    if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise ValueError(f"generation_settings.target_weights holds {weight!r}")
    return replace(target, weight=float(weight))


def _with(name: str) -> Callable[[Target, Any], Target]:
    return lambda target, value: Target.from_plain(asdict(target) | {name: value})


TARGETS = {
    "target_weights": _weighted,
    "target_features": _with("feature"),
    "target_differences": _with("difference"),
}
"""What our own files add to their outputs, in the settings."""


def _known(values: Any) -> dict[str, Any]:
    """Fields of a provenance that another tool may have written in its own way."""
    values = values if isinstance(values, dict) else {}
    return {
        name: values[name]
        for name, kind in PROVENANCE.items()
        if isinstance(values.get(name), kind)
    }
