"""The merged graph: all circuits of a batch as one, with how sure each node and edge is.

It says of a batch what `Comparison.merged` says of a comparison, and by the same names, but is made
of a small file a prompt, so that its size does not grow with the graphs. A node is a feature that
any circuit holds, wherever in the prompt: `count` prompts of `n` have it active, `kept` of them in
their circuit; `influence` is its mean share of the influence of all features, 0 where it is not
active, with a 95 % bootstrap interval over the prompts (`low`, `high`; None for fewer than three).
An edge is between two such features: `kept` circuits hold it, and `share` is what passes along it
there, as a share of all target weight, its mean over all prompts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file

from circuit_tracer.circuit import Circuit
from circuit_tracer.comparing.merging import FEWEST
from circuit_tracer.comparing.profile import Profile
from circuit_tracer.comparing.resampling import INTERVAL, drawn_counts
from circuit_tracer.errors import GraphFileError
from circuit_tracer.files import replacing, write_text
from circuit_tracer.graph import Graph
from circuit_tracer.influence import LEAST
from circuit_tracer.shapes import Bool, Float, Int, Tensor

CHUNK = 4_096
"""Features whose intervals are drawn at a time."""


@dataclass(frozen=True, eq=False)
class Profiled:
    """One prompt's part in the merged graph.

    Attributes:
        features: (layer, id) of every active feature, ascending, once each.
        influence: share of the influence of all features, float64.
        kept: True where the circuit holds it.
        ends: (source, target) rows of `features`, of every edge between features in the circuit.
        shares: what passes along each, as a share of all target weight, float64.
        labels: of kept features, by row.
    """

    features: Int[Tensor, "feature 2"]
    influence: Float[Tensor, " feature"]
    kept: Bool[Tensor, " feature"]
    ends: Int[Tensor, "edge 2"]
    shares: Float[Tensor, " edge"]
    labels: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, circuit: Circuit) -> Profiled:
        """The part of a graph and its circuit."""
        profile = Profile("", graph, circuit)
        places, nodes = profile.places, circuit.nodes
        row = [places[n.layer, n.feature] if n.kind == "feature" else -1 for n in nodes]
        rows = torch.tensor(row, dtype=torch.long)
        between = (rows[circuit.sources] >= 0) & (rows[circuit.targets] >= 0)
        ends = torch.stack([rows[circuit.sources], rows[circuit.targets]], 1)[between]
        held = torch.tensor([float(node.influence) for node in nodes], dtype=torch.float64)
        passed = circuit.shares * held[circuit.targets] / graph.weights.sum().clamp(min=LEAST)
        joined, number = torch.unique(ends, dim=0, return_inverse=True)
        summed = torch.zeros(len(joined), dtype=torch.float64)
        notes = {places[key]: note.label for key, note in graph.notes.items() if key in places}
        return cls(
            features=profile.keys,
            influence=profile.influence,
            kept=profile.kept,
            ends=joined.reshape(-1, 2),
            shares=summed.index_add(0, number, passed[between]),
            labels={at: said for at, said in notes.items() if said and bool(profile.kept[at])},
        )

    def save(self, path: Path) -> None:
        """Write it, whole or not at all. Raises OutputError."""
        tensors = {
            "features": self.features,
            "influence": self.influence,
            "kept": self.kept,
            "ends": self.ends,
            "shares": self.shares,
        }
        whole = {name: value.contiguous().clone() for name, value in tensors.items()}
        said = json.dumps([[at, text] for at, text in sorted(self.labels.items())])
        with replacing(path) as place:
            try:
                save_file(whole, place, {"labels": said})
            except safetensors.SafetensorError as error:
                raise OSError(str(error)) from error

    @classmethod
    def load(cls, path: Path) -> Profiled:
        """Read what `save` wrote. Raises GraphFileError where it is damaged."""
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                labels = json.loads(file.metadata()["labels"])
                return cls(
                    features=file.get_tensor("features"),
                    influence=file.get_tensor("influence"),
                    kept=file.get_tensor("kept"),
                    ends=file.get_tensor("ends"),
                    shares=file.get_tensor("shares"),
                    labels=dict(labels),
                )
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise GraphFileError(f"{path} is damaged: {error}. Delete it and go on") from error


def merged(names: Sequence[str], parts: Iterable[Profiled]) -> dict[str, Any]:
    """All of them as one, in networkx's node-link form (`networkx.node_link_graph`, edges="edges").

    Args:
        names: of the prompts, one a part.

    Returns:
        nodes by falling `kept` and `influence`, edges by falling `kept` and `share`.
    """
    parts = list(parts)
    n = len(parts)
    keys, number = _joined([part.features for part in parts])
    rows = number.split([len(part.features) for part in parts])
    size = len(keys)
    count = torch.bincount(number, minlength=size)
    kept = torch.zeros(size, dtype=torch.long)
    total = torch.zeros(size, dtype=torch.float64)
    labels: dict[int, str] = {}
    inside: dict[int, list[str]] = {}
    for name, part, mine in zip(names, parts, rows, strict=True):
        kept[mine[part.kept]] += 1
        total[mine] += part.influence
        labels |= {int(mine[at]): text for at, text in part.labels.items()}
        for at in mine[part.kept].tolist():
            inside.setdefault(at, []).append(name)
    chosen = kept.nonzero()[:, 0].tolist()
    chosen.sort(key=lambda at: (-int(kept[at]), -float(total[at]), at))
    low, high = _intervals(parts, rows, chosen, size)
    nodes = [
        {
            "id": _name(keys[at]),
            "layer": int(keys[at, 0]),
            "feature": int(keys[at, 1]),
            "label": labels.get(at, ""),
            "count": int(count[at]),
            "kept": int(kept[at]),
            "n": n,
            "core": int(count[at]) == n,
            "influence": float(total[at]) / n,
            "low": low[place],
            "high": high[place],
            "names": inside[at],
        }
        for place, at in enumerate(chosen)
    ]
    return {
        "directed": True,
        "multigraph": False,
        "graph": {"n": n, "names": list(names)},
        "nodes": nodes,
        "edges": _edges(parts, rows, keys),
    }


def write_merged(folder: Path, whole: dict[str, Any]) -> None:
    """Write a merged graph as `merged.json`. Raises OutputError."""
    write_text(folder / "merged.json", json.dumps(whole, ensure_ascii=False) + "\n")


def _edges(
    parts: Sequence[Profiled], rows: Sequence[Tensor], keys: Int[Tensor, "feature 2"]
) -> list[dict[str, Any]]:
    ends = [mine[part.ends] for part, mine in zip(parts, rows, strict=True) if len(part.ends)]
    if not ends:
        return []
    codes = torch.cat([pair[:, 0] * len(keys) + pair[:, 1] for pair in ends])
    found, number, kept = torch.unique(codes, return_inverse=True, return_counts=True)
    share = torch.zeros(len(found), dtype=torch.float64)
    share.index_add_(0, number, torch.cat([part.shares for part in parts]))
    share /= len(parts)
    order = share.argsort(descending=True, stable=True)  # found is ascending: ties stay so
    order = order[kept[order].argsort(descending=True, stable=True)]
    names = {code: _name(keys[code]) for code in torch.cat(ends).unique().tolist()}
    columns = (found // len(keys), found % len(keys), kept, share)
    return [
        {"source": names[source], "target": names[target], "kept": count, "share": passed}
        for source, target, count, passed in zip(
            *(column[order].tolist() for column in columns), strict=True
        )
    ]


def _joined(
    keys: Sequence[Int[Tensor, "feature 2"]],
) -> tuple[Int[Tensor, "feature 2"], Int[Tensor, " active"]]:
    """All (layer, id) that occur, ascending, and which of them each row is."""
    whole = torch.cat([torch.empty(0, 2, dtype=torch.long), *keys])
    if not len(whole):
        return whole, whole[:, 0]
    width = int(whole[:, 1].max()) + 1
    codes, number = torch.unique(whole[:, 0] * width + whole[:, 1], return_inverse=True)
    return torch.stack([codes // width, codes % width], 1), number


def _intervals(
    parts: Sequence[Profiled], rows: Sequence[Tensor], chosen: Sequence[int], size: int
) -> tuple[list[float | None], list[float | None]]:
    """Ends of the bootstrap interval of the mean influence of each chosen feature."""
    n = len(parts)
    if n < FEWEST or not chosen:
        return [None] * len(chosen), [None] * len(chosen)
    counts, ends = drawn_counts(n).double(), torch.tensor(INTERVAL, dtype=torch.float64)
    bounds = []
    for start in range(0, len(chosen), CHUNK):
        asked = torch.tensor(chosen[start : start + CHUNK])
        place = torch.full((size,), -1)
        place[asked] = torch.arange(len(asked))
        values = torch.zeros(n, len(asked), dtype=torch.float64)
        for row, (part, mine) in enumerate(zip(parts, rows, strict=True)):
            at = place[mine]
            values[row, at[at >= 0]] = part.influence[at >= 0]
        bounds.append((counts @ values / n).quantile(ends, dim=0))
    low, high = torch.cat(bounds, 1).tolist()
    return low, high


def _name(key: Tensor) -> str:
    layer, feature = key.tolist()
    return f"L{layer}#{feature}"
