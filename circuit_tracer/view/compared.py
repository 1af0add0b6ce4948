"""A comparison as it is drawn: what several graphs share, as plain data.

Like a `Drawing`, a `ComparisonDrawing` is something that anything can fill, checked once. A row is
a feature, counted once wherever in the prompts it is active; a lane holds the rows that all graphs
have, that some have, or that only one has. Lanes and counts are worked out here, and again by
assets/compared.js in the page; a test holds the two together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from circuit_tracer.errors import InputError
from circuit_tracer.view.drawing import Drawing

LANGUAGE = re.compile(r"[a-z]{2}(-[A-Za-z0-9]{2,8})*")
"""Names that are taken for a language: BCP-47 with a language of two letters."""

Band = tuple[float, float, float]
"""(low, mean, high)"""


@dataclass(frozen=True, slots=True)
class ComparedGraph:
    """One of the graphs.

    Attributes:
        name: unique among them.
        drawing: what is shown of it.
        language: BCP-47 code of the prompt, "" for none; None takes it from the name.
        href: where the page of this graph alone is, "" for nowhere.
    """

    name: str
    drawing: Drawing
    language: str | None = None
    href: str = ""

    @property
    def lang(self) -> str:
        if self.language is not None:
            return self.language
        return self.name if LANGUAGE.fullmatch(self.name) else ""


@dataclass(frozen=True, slots=True)
class ComparedFeature:
    """One feature, at whatever positions; tuples have an entry a graph, in their order.

    Attributes:
        layer: 0-based.
        ids: its id where it is active, None where it is not. They differ only where features were
            matched otherwise than by id.
        influence: its share of the influence of all features of the graph, over all positions; 0
            where it is not active.
        positions: where it is active.
        label: what a person calls it; "" where nobody has.
        promoted: (token, logit) that it raises most, strongest first.
        suppressed: (token, logit) that it lowers most, strongest first.
        spread: mean activation by language over a corpus; empty where none was run.
        verdict: what the spread says in a word ("agnostic", "specific", ...).
        apart: equal ids of two graphs are not the same feature, as between transcoder sets.
    """

    layer: int
    ids: tuple[int | None, ...]
    influence: tuple[float, ...]
    positions: tuple[tuple[int, ...], ...]
    label: str = ""
    promoted: tuple[tuple[str, float], ...] = ()
    suppressed: tuple[tuple[str, float], ...] = ()
    spread: dict[str, float] = field(default_factory=dict)
    verdict: str = ""
    apart: bool = False

    @property
    def owners(self) -> tuple[int, ...]:
        """The graphs that have it, by place."""
        return tuple(place for place, one in enumerate(self.ids) if one is not None)

    @property
    def key(self) -> str:
        """What a link to it names: ``3_1204``, or ``3_1204~77`` where ids differ.

        Where they are `apart`, all of them: ``3_1204~-`` for one that the second graph lacks.
        """
        if self.apart:
            said = ("-" if one is None else str(one) for one in self.ids)
            return f"{self.layer}_{'~'.join(said)}"
        different = dict.fromkeys(one for one in self.ids if one is not None)
        return f"{self.layer}_{'~'.join(str(one) for one in different)}"


@dataclass(frozen=True, slots=True)
class LayerOverlaps:
    """How much some of the graphs share, by layer; all tuples have an entry a layer.

    Attributes:
        members: places of the graphs, ascending, at least two.
        weighted: influence-weighted Jaccard, 0 to 1; None where no feature is active.
        plain: intersection over union of the active features.
        weighted_unrelated: what unrelated texts of these languages share; None where unknown.
        plain_unrelated: likewise.
        weighted_parallel: what texts share that say the same in these languages.
        plain_parallel: likewise.
    """

    members: tuple[int, ...]
    weighted: tuple[float | None, ...]
    plain: tuple[float | None, ...]
    weighted_unrelated: tuple[Band | None, ...] = ()
    plain_unrelated: tuple[Band | None, ...] = ()
    weighted_parallel: tuple[Band | None, ...] = ()
    plain_parallel: tuple[Band | None, ...] = ()


@dataclass(frozen=True, slots=True)
class ComparedEdge:
    """What passes between two rows: `shares` of what is explained, None for a graph without it."""

    source: int
    target: int
    shares: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class ComparedRole:
    """Rows that differ and do the same job: `members` has one a graph, None where there is none."""

    members: tuple[int | None, ...]
    similarity: float


@dataclass(frozen=True, slots=True)
class ComparedSupernode:
    """A group of features that several graphs have, each in its own form.

    Attributes:
        members: by graph, (row, position) of its features; () for a graph without it.
        common: rows that all its graphs have in it, most influential first.
        overlap: the least share of common features of two of its graphs.
        shares: by graph, what passes it of all that drives the targets; None for one without it.
    """

    members: tuple[tuple[tuple[int, int], ...], ...]
    common: tuple[int, ...]
    overlap: float
    shares: tuple[float | None, ...]

    @property
    def rows(self) -> set[int]:
        """All rows in it."""
        return {row for each in self.members for row, _ in each}


@dataclass(frozen=True, slots=True)
class ComparisonDrawing:
    """Graphs side by side, ready to be shown.

    Attributes:
        graphs: at least two, in the order in which they are shown.
        features: the rows; their order decides nothing but ties.
        overlaps: of pairs, and of all graphs; the page opens with the one of most members.
        counts: by graph and layer, how many features are active in the whole graph.
        edges: between rows.
        roles: of rows, the most influential first.
        supernodes: of rows, the most widely shared first.
        summary: what the comparison says, in a few sentences; "" for nothing.
        about: whatever says where it comes from, by name.
        notices: sentences the reader must see before trusting the picture.
    """

    graphs: tuple[ComparedGraph, ...]
    features: tuple[ComparedFeature, ...]
    overlaps: tuple[LayerOverlaps, ...] = ()
    counts: tuple[tuple[int, ...], ...] = ()
    edges: tuple[ComparedEdge, ...] = ()
    roles: tuple[ComparedRole, ...] = ()
    supernodes: tuple[ComparedSupernode, ...] = ()
    summary: str = ""
    about: dict[str, str | float | int] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        size, names = len(self.graphs), [graph.name for graph in self.graphs]
        if size < 2:
            raise InputError(f"a comparison shows at least two graphs; this one has {size}")
        if len(set(names)) < size:
            raise InputError(f"two graphs of the comparison have one name: {names}")
        seen: set[str] = set()
        for feature in self.features:
            self._check_feature(feature)
            if feature.key in seen:
                raise InputError(f"two features of the comparison have the key {feature.key}")
            seen.add(feature.key)
        for overlap in self.overlaps:
            self._check_overlap(overlap)
        if self.counts and [len(row) for row in self.counts] != [self.n_layers] * size:
            raise InputError(f"counts need {size} rows of {self.n_layers} layers")
        for edge in self.edges:
            known = all(0 <= end < len(self.features) for end in (edge.source, edge.target))
            if not known or len(edge.shares) != size:
                raise InputError(f"{edge} does not fit {len(self.features)} features")
        for role in self.roles:
            rows = [row for row in role.members if row is not None]
            inside = all(0 <= row < len(self.features) for row in rows)
            if not inside or len(rows) < 2 or len(role.members) != size:
                raise InputError(f"{role} does not fit {len(self.features)} features")
        for supernode in self.supernodes:
            self._check_supernode(supernode)

    @property
    def n_layers(self) -> int:
        return max(graph.drawing.n_layers for graph in self.graphs)

    def lanes(self) -> dict[str, tuple[int, ...]]:
        """Rows by lane, most influential first: "all", "some" (of three or more), "only NAME"."""
        found: dict[str, list[int]] = {"all": []}
        if len(self.graphs) > 2:
            found["some"] = []
        found |= {f"only {graph.name}": [] for graph in self.graphs}
        for row in ranked(self.features):
            owners = self.features[row].owners
            whole = len(owners) == len(self.graphs)
            alone = f"only {self.graphs[owners[0]].name}" if len(owners) == 1 else "some"
            found["all" if whole else alone].append(row)
        return {name: tuple(rows) for name, rows in found.items()}

    def held(self, rows: Sequence[int]) -> tuple[float, ...]:
        """What some rows hold of the influence of all rows, by graph; NaN where that is 0."""

        def total(place: int, among: Sequence[int]) -> float:
            return math.fsum(self.features[row].influence[place] for row in among)

        places, whole = range(len(self.graphs)), range(len(self.features))
        return tuple(
            total(place, rows) / total(place, whole) if total(place, whole) > 0 else math.nan
            for place in places
        )

    def _check_feature(self, feature: ComparedFeature) -> None:
        size, key = len(self.graphs), feature.key
        if not len(feature.ids) == len(feature.influence) == len(feature.positions) == size:
            raise InputError(f"feature {key} needs an entry for each of the {size} graphs")
        if not feature.owners:
            raise InputError(f"feature {key} is active in none of the graphs")
        if not 0 <= feature.layer < self.n_layers:
            raise InputError(f"feature {key} is outside layers 0 to {self.n_layers - 1}")
        if not all(math.isfinite(value) and value >= 0 for value in feature.influence):
            raise InputError(f"feature {key} has the influence {feature.influence}")
        for graph, positions in zip(self.graphs, feature.positions, strict=True):
            if not all(0 <= position < len(graph.drawing.tokens) for position in positions):
                raise InputError(f"feature {key} stands outside the prompt of {graph.name!r}")

    def _check_supernode(self, supernode: ComparedSupernode) -> None:
        size = len(self.graphs)
        if len(supernode.members) != size or len(supernode.shares) != size or not supernode.common:
            raise InputError(f"{supernode} does not fit {size} graphs")
        if not all(0 <= row < len(self.features) for row in supernode.rows):
            raise InputError(f"{supernode} does not fit {len(self.features)} features")
        for graph, each in enumerate(supernode.members):
            known = all(at in self.features[row].positions[graph] for row, at in each)
            if not known or (each and not {row for row, _ in each} >= set(supernode.common)):
                raise InputError(f"{supernode} has features that {self.graphs[graph].name!r} lacks")

    def _check_overlap(self, overlap: LayerOverlaps) -> None:
        members = overlap.members
        inside = all(0 <= place < len(self.graphs) for place in members)
        if len(members) < 2 or not inside or list(members) != sorted(set(members)):
            raise InputError(f"overlap of {members}: members are places of graphs, ascending")
        for name in LayerOverlaps.__dataclass_fields__:
            values = getattr(overlap, name)
            needed = name in ("weighted", "plain") or (values and name != "members")
            if needed and len(values) != self.n_layers:
                raise InputError(f"{name} overlap of {members} needs {self.n_layers} layers")


def ranked(features: Sequence[ComparedFeature]) -> list[int]:
    """Rows by falling largest influence; ties by row."""
    return sorted(range(len(features)), key=lambda row: (-max(features[row].influence), row))
