"""A comparison: several graphs side by side, and what can be asked of them.

All that is asked is worked out from matched features (`SharedFeature`), matched edges and layer
overlaps; nothing in it holds a model. Names are those the caller gave, in the caller's order, and
no name stands before another: changing the order changes no number.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import fsum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from circuit_tracer import files
from circuit_tracer.circuit import Circuit
from circuit_tracer.comparing.activity import Spread
from circuit_tracer.comparing.overlap import Overlap
from circuit_tracer.comparing.profile import Key
from circuit_tracer.comparing.roles import Role
from circuit_tracer.errors import InputError

if TYPE_CHECKING:
    import networkx

    from circuit_tracer.comparing.shared_supernodes import SharedSupernode
    from circuit_tracer.view.compared import ComparisonDrawing
    from circuit_tracer.view.notebook import Shown


@dataclass(frozen=True)
class Side:
    """One of the graphs compared.

    Attributes:
        name: as the caller gave it.
        prompt, tokens: what was traced.
        targets: (label, weight) of what is explained.
        model, transcoders: where they come from.
        n_active: its active (layer, id).
        n_kept: those in its circuit.
        considered: share of the influence of its features that the features considered hold.
    """

    name: str
    prompt: str
    tokens: tuple[str, ...]
    targets: tuple[tuple[str, float], ...]
    model: str
    transcoders: str
    n_active: int
    n_kept: int
    considered: float


@dataclass(frozen=True)
class SharedFeature:
    """One feature, in all the graphs it is active in. Mappings have the names of these only.

    Attributes:
        layer: 0-based.
        ids: its id in each graph; they differ only where features were matched by their decoders.
        influence: its share of the influence of all features of that graph, over all positions.
        activation: its largest.
        positions: where it is active.
        kept: names of the graphs whose circuit has it.
        label: where it has one, else `L3#417`.
        says: tokens it promotes most, in one of the graphs.
        spread: how it spreads over the languages of the corpus, where there was one.
    """

    layer: int
    ids: dict[str, int]
    influence: dict[str, float]
    activation: dict[str, float]
    positions: dict[str, tuple[int, ...]]
    kept: tuple[str, ...]
    label: str
    says: tuple[str, ...] = ()
    spread: Spread | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the graphs it is active in."""
        return tuple(self.ids)

    @property
    def total(self) -> float:
        """Sum of its influence shares."""
        return fsum(self.influence.values())


@dataclass(frozen=True)
class SharedEdge:
    """What passes between two matched features in each graph.

    Attributes:
        source, target: places in `Comparison.features`.
        shares: by name, the influence passing over all edges between the two, at any positions, as
            a share of all target weight; only of graphs where something passes.
        kept: names of the graphs whose circuit has such an edge.
    """

    source: int
    target: int
    shares: dict[str, float]
    kept: tuple[str, ...]

    @property
    def total(self) -> float:
        return fsum(self.shares.values())


@dataclass(frozen=True)
class Class:
    """Features of one kind: how many there are, and how much influence they hold.

    Attributes:
        count: how many.
        influence: by name, their share of the influence that the features considered hold there.
    """

    count: int
    influence: dict[str, float]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Graphs side by side.

    The features considered are those in the circuit of at least one graph. A feature is *shared* by
    the graphs it is active in, also where their circuits do not keep it, so that a share just
    under a threshold is not taken for absence.

    Attributes:
        sides: the graphs, in the caller's order.
        features: considered, the most influential first.
        edges: between them, in the circuit of at least one graph, the strongest first.
        roles: features that differ and do the same job, the most influential first.
        overlap: by layer, of all active features.
        n_layers: of the model.
        match: "id" or "decoder".
        notices: what to keep in mind, each a sentence.
        circuits: of the sides, for the page; () where there are none.
    """

    sides: tuple[Side, ...]
    features: tuple[SharedFeature, ...]
    edges: tuple[SharedEdge, ...]
    roles: tuple[Role, ...]
    overlap: Overlap
    n_layers: int
    match: str
    notices: tuple[str, ...] = field(default=())
    circuits: tuple[Circuit, ...] = ()

    def __repr__(self) -> str:
        counts = f"{len(self.shared)} shared by all, {len(self.some)} by some"
        return f"Comparison({', '.join(self.names)}: {len(self.features)} features, {counts})"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(side.name for side in self.sides)

    @cached_property
    def shared(self) -> tuple[SharedFeature, ...]:
        """Active in all graphs."""
        return tuple(f for f in self.features if len(f.ids) == len(self.sides))

    @cached_property
    def some(self) -> tuple[SharedFeature, ...]:
        """Active in at least two, but not in all."""
        return tuple(f for f in self.features if 1 < len(f.ids) < len(self.sides))

    def only(self, name: str) -> tuple[SharedFeature, ...]:
        """Active in one graph and no other. Raises InputError for a name that is not there."""
        self._check(name)
        return tuple(f for f in self.features if f.names == (name,))

    @cached_property
    def classes(self) -> dict[str, Class]:
        """Counts and influence of `shared`, `some`, and `only` each name."""
        return {name: self._class(found) for name, found in self._sorted_out().items()}

    def by_layer(self) -> list[dict[str, int]]:
        """A layer, how many features each class has there; names as in `classes`."""
        found = self._sorted_out()
        return [
            {name: sum(f.layer == layer for f in each) for name, each in found.items()}
            for layer in range(self.n_layers)
        ]

    @cached_property
    def kept_in_all(self) -> tuple[SharedFeature, ...]:
        """In the circuit of every graph."""
        return tuple(f for f in self.features if len(f.kept) == len(self.sides))

    def adds(self, name: str) -> dict[str, Class]:
        """What one graph alone has at the start, in the middle and at the end (thirds of layers).

        Raises InputError for a name that is not there.
        """
        mine, third = self.only(name), self.n_layers / 3
        parts = {"start": (0.0, third), "middle": (third, 2 * third), "end": (2 * third, 1e9)}
        return {
            part: self._class([f for f in mine if low <= f.layer < high])
            for part, (low, high) in parts.items()
        }

    def summary(self) -> str:
        """What the comparison says, in sentences that its numbers bear out."""
        from circuit_tracer.comparing.wording import sentences

        return " ".join(sentences(self))

    def merged(self) -> networkx.DiGraph:
        """All graphs as one, see `merging.merged`."""
        from circuit_tracer.comparing.merging import merged

        return merged(self)

    @cached_property
    def rows(self) -> dict[tuple[str, Key], int]:
        """(name of a graph, (layer, id)) → place in `features`."""
        return {
            (name, (feature.layer, one)): row
            for row, feature in enumerate(self.features)
            for name, one in feature.ids.items()
        }

    def supernodes(self) -> tuple[SharedSupernode, ...]:
        """Supernodes that several circuits have, see `shared_supernodes`; () without circuits."""
        return self._supernodes

    @cached_property
    def _supernodes(self) -> tuple[SharedSupernode, ...]:
        from circuit_tracer.comparing.shared_supernodes import shared_supernodes

        pairs = zip(self.names, self.circuits, strict=False)
        return shared_supernodes(dict(pairs), self.rows)

    def payload(self) -> dict[str, Any]:
        """Everything, as JSON values: what pages and `--json` hold. NaN becomes None."""
        spreads = (None if f.spread is None else _spread(f.spread) for f in self.features)
        plain = {
            "names": list(self.names),
            "match": self.match,
            "n_layers": self.n_layers,
            "sides": [asdict(side) for side in self.sides],
            "summary": self.summary(),
            "notices": list(self.notices),
            "classes": {name: asdict(found) for name, found in self.classes.items()},
            "by_layer": self.by_layer(),
            "adds": {
                name: {part: asdict(found) for part, found in self.adds(name).items()}
                for name in self.names
            },
            "features": [
                asdict(f) | {"spread": spread}
                for f, spread in zip(self.features, spreads, strict=True)
            ],
            "edges": [asdict(edge) for edge in self.edges],
            "roles": [asdict(role) for role in self.roles],
            "supernodes": [one.to_plain() for one in self.supernodes()],
            "overlap": asdict(self.overlap),
        }
        return _without_nan(plain)

    def drawing(self) -> ComparisonDrawing:
        """What the page is given to draw."""
        from circuit_tracer.comparing.drawing import drawing

        return drawing(self)

    def save_html(self, path: str | os.PathLike[str], pages: bool = False) -> None:
        """Write the comparison as one HTML page that needs no network.

        Args:
            pages: write the page of each graph beside it too (`languages-1-en.html`), which link
                to each other.

        Raises:
            OutputError: it could not be written; an older file is untouched.
        """
        from circuit_tracer.view import page as graph_page
        from circuit_tracer.view.comparison import render

        drawn = self.drawing()
        if pages and self.circuits:
            beside = [_beside(Path(path), *pair) for pair in enumerate(self.names, 1)]
            back = (("Comparison", quote(Path(path).name)),)
            for circuit, page in zip(self.circuits, beside, strict=True):
                files.write_text(page, graph_page.render(replace(circuit.drawing(), links=back)))
            graphs = (
                replace(graph, href=quote(page.name))
                for graph, page in zip(drawn.graphs, beside, strict=True)
            )
            drawn = replace(drawn, graphs=tuple(graphs))
        files.write_text(path, render(drawn))

    def save_svg(self, path: str | os.PathLike[str]) -> None:
        """Write lanes and overlap as one still picture, for documents.

        Raises OutputError: it could not be written; an older file is untouched.
        """
        from circuit_tracer.view.still import svg

        files.write_text(path, svg(self.drawing()))

    def show(self, height: int = 720) -> Shown:
        """The interactive page, in a notebook: about two megabytes of it are then saved there.

        Args:
            height: of its frame, in pixels.
        """
        from circuit_tracer.view.comparison import render
        from circuit_tracer.view.notebook import Shown

        return Shown(lambda: render(self.drawing()), " / ".join(self.names), height)

    def _repr_mimebundle_(self, **wanted: Any) -> dict[str, Any]:
        """What a notebook shows: the summary, and how many features each class has."""
        from circuit_tracer.view.notebook import table_bundle

        head = ["features", "number", *(f"influence in {name}" for name in self.names)]
        rows = [
            [name, f"{found.count:,}", *(f"{100 * x:.1f} %" for x in found.influence.values())]
            for name, found in self.classes.items()
        ]
        note = "<code>comparison.show()</code> opens the interactive page here."
        said = [self.summary(), *self.notices]
        return table_bundle(" / ".join(self.names), said, [head, *rows], note, repr(self))

    def _sorted_out(self) -> dict[str, Sequence[SharedFeature]]:
        alone = {f"only {name}": self.only(name) for name in self.names}
        return {"shared": self.shared, "some": self.some, **alone}

    def _class(self, found: Sequence[SharedFeature]) -> Class:
        influence = {}
        for side in self.sides:
            held = fsum(f.influence.get(side.name, 0.0) for f in found)
            influence[side.name] = held / side.considered if side.considered > 0 else 0.0
        return Class(len(found), influence)

    def _check(self, name: str) -> None:
        if name not in self.names:
            raise InputError(f"there is no graph {name!r} here; names are {', '.join(self.names)}")


def _beside(path: Path, number: int, name: str) -> Path:
    """Where the page of a graph goes."""
    slug = re.sub(r"[^\w-]+", "-", name).strip("-")[:40]
    return path.with_name(f"{path.stem}-{number}{'-' if slug else ''}{slug}.html")


def key_in(feature: SharedFeature, name: str) -> Key:
    """(layer, id) of a feature in one graph."""
    return feature.layer, feature.ids[name]


def _spread(spread: Spread) -> dict[str, Any]:
    return asdict(spread) | {"verdict": spread.verdict}


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and value != value else value
