"""The drawing as the bytes that a page carries.

    4 bytes      length of the header, little-endian
    header       JSON in columns, padded with blanks to a multiple of four bytes
    n × 4 bytes  target of every edge, uint32      (edges sorted by target, then source)
    n × 4 bytes  source of every edge, uint32
    n × 4 bytes  weight of every edge, float32

compressed with gzip, no time stamp, so that the same drawing gives the same bytes. Base64 of it
stands in the page, where no string of a prompt can break out of it, whatever it holds.
assets/data.js reads it.
"""

from __future__ import annotations

import gzip
import json
import math
from base64 import b64encode
from collections.abc import Mapping
from operator import itemgetter
from typing import Any

import numpy as np

from circuit_tracer.view.drawing import (
    KINDS,
    START_EDGES,
    Drawing,
    error_share,
    start_share,
)

FORMAT = 1


def packed(data: bytes) -> str:
    """`data` compressed, as text that is safe anywhere in HTML."""
    # Level 9 makes a page 1 % smaller and takes four times as long.
    return b64encode(gzip.compress(data, compresslevel=6, mtime=0)).decode("ascii")


def encode(drawing: Drawing) -> bytes:
    """The drawing in the layout above, not yet compressed."""
    edges = sorted(drawing.edges, key=itemgetter(1, 0, 2))
    header_of = _header(drawing) | {
        "heads": _heads(drawing, edges),
        "looks": _looks(drawing),
        "names": dict(sorted(drawing.names.items())),
        "details": _details(drawing),
    }
    text = json.dumps(header_of, separators=(",", ":"), allow_nan=False)
    header = text.encode("ascii")
    header += b" " * (-len(header) % 4)
    columns = list(zip(*edges, strict=True)) or [(), (), ()]
    sources, targets, weights = columns
    return b"".join(
        [
            len(header).to_bytes(4, "little"),
            header,
            np.asarray(targets, dtype="<u4").tobytes(),
            np.asarray(sources, dtype="<u4").tobytes(),
            np.asarray(weights, dtype="<f4").tobytes(),
        ]
    )


def _header(drawing: Drawing) -> dict[str, Any]:
    nodes = drawing.nodes
    return {
        "format": FORMAT,
        "prompt": drawing.prompt,
        "tokens": list(drawing.tokens),
        "model": drawing.model,
        "transcoders": drawing.transcoders,
        "n_layers": drawing.n_layers,
        "id": [node.id for node in nodes],
        "kind": [KINDS.index(node.kind) for node in nodes],
        "layer": [node.layer for node in nodes],
        "position": [node.position for node in nodes],
        "feature": [node.feature for node in nodes],
        # What stands in the prompt is said once; only an output has a token of its own.
        "token": {i: node.token for i, node in enumerate(nodes) if node.kind == "logit"},
        "label": {i: node.label for i, node in enumerate(nodes) if node.label},
        "activation": [_rounded(node.activation) for node in nodes],
        "influence": [_rounded(node.influence) for node in nodes],
        "probability": {
            i: _rounded(node.probability)
            for i, node in enumerate(nodes)
            if node.probability is not None
        },
        "promoted": {i: _pairs(node.promoted) for i, node in enumerate(nodes) if node.promoted},
        "suppressed": {
            i: _pairs(node.suppressed) for i, node in enumerate(nodes) if node.suppressed
        },
        "total": {i: _rounded(total) for i, total in sorted(drawing.totals.items())},
        "groups": [[one.name, list(one.members), _rounded(one.share)] for one in drawing.groups],
        "scores": {name: _rounded(value) for name, value in drawing.scores.items()},
        "about": {name: _plain(value) for name, value in drawing.about.items()},
        "notices": list(drawing.notices),
        "checks": [list(pair) for pair in drawing.checks],
        "links": [list(pair) for pair in drawing.links],
        "error_share": _rounded(error_share(drawing)),
        "start": {"influence": round(start_share(drawing) * 100), "edges": START_EDGES},
        "n_edges": len(drawing.edges),
    }


def _heads(drawing: Drawing, edges: list[tuple[int, int, float]]) -> list[list[Any]]:
    """[number of the edge, residual part, by layer, [layer, head, part, key, layer, …]] each."""
    known = ((number, drawing.heads.get((s, t))) for number, (s, t, _) in enumerate(edges))
    return [
        [
            number,
            _brief(found.residual),
            [_brief(part) for part in found.by_layer],
            [value for a, b, part, key in found.heads for value in (a, b, _brief(part), key)],
        ]
        for number, found in known
        if found is not None
    ]


def _looks(drawing: Drawing) -> list[list[Any]]:
    """[layer, head, query, key, score, attention, then for either side: [source, part, …] of the
    strongest, how many more, {kind: part}]; a source is the number of its node where it is drawn,
    else its id."""
    places = {node.id: number for number, node in enumerate(drawing.nodes)}
    rows = []
    for key, look in sorted(drawing.looks.items()):
        row: list[Any] = [*key, _rounded(look.score), _brief(look.pattern)]
        for side, rest, kinds in (
            (look.query_side, look.query_rest, look.query_kinds),
            (look.key_side, look.key_rest, look.key_kinds),
        ):
            flat = [
                value for name, part in side for value in (places.get(name, name), _brief(part))
            ]
            row += [flat, rest, {kind: _brief(part) for kind, part in kinds.items()}]
        rows.append(row)
    return rows


def _details(drawing: Drawing) -> dict[str, Any]:
    """What is known of features by "layer.id"; tokens of examples are numbers in `words`, and
    activations [place, value, …] of those that are not zero."""
    words: dict[str, int] = {}

    def example(one: Mapping[str, Any]) -> list[Any]:
        tokens = [words.setdefault(token, len(words)) for token in one["tokens"]]
        values = enumerate(one["activations"])
        fires = [part for place, value in values if value for part in (place, _brief(value))]
        return [one["language"], one["position"], tokens, fires, [int(cut) for cut in one["cut"]]]

    of = {}
    for (layer, feature), known in sorted(drawing.details.items()):
        groups = [
            [group["name"], group["low"], group["high"], [*map(example, group["examples"])]]
            for group in known["groups"]
        ]
        numbers = {name: _rounded(known[name]) for name in ("density", "largest", "mean")}
        bins = [[_brief(low), _brief(high), count] for low, high, count in known["bins"]]
        rates = {name: _brief(rate) for name, rate in known["rates"].items()}
        shown = {**known, **numbers, "groups": groups, "bins": bins, "rates": rates}
        of[f"{layer}.{feature}"] = shown
    return {"words": list(words), "of": of}


def _brief(part: float) -> float | int:
    """Four significant digits, and a plain 0: parts of one edge are only read beside each other."""
    return float(f"{part:.4g}") if part else 0


def _rounded(value: float | None) -> float | None:
    """Six significant digits: more than anyone reads, fewer bytes than a float has."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")


def _pairs(tokens: tuple[tuple[str, float], ...]) -> list[list[Any]]:
    return [[token, _rounded(value)] for token, value in tokens]


def _plain(value: str | float | int) -> str | float | int | None:
    if isinstance(value, float):
        return _rounded(value)
    return value if isinstance(value, (str, int)) else str(value)
