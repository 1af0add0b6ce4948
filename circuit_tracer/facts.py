"""What a graph knows besides numbers: what it explains, where it comes from, what features mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """One output that a graph explains.

    Attributes:
        label: text of the token, of the direction (`logit( big) − logit( tiny)`) or of the
            feature (`L3#417@5 pre-activation`).
        token_id: None for directions and features.
        position: where it is read.
        probability: of the token, None for directions and features.
        weight: how much it counts in influence and scores; usually the probability.
        feature: (layer, id) of a feature whose pre-activation it is; None for what is read after
            the last layer.
        difference: token ids a and b of a direction that is logit(a) − logit(b).
        direction: the vector of any other direction; None where unknown, in a graph that was read
            from JSON or from a file that does not hold it.
    """

    label: str
    token_id: int | None
    position: int
    probability: float | None
    weight: float
    feature: tuple[int, int] | None = None
    difference: tuple[int, int] | None = None
    direction: tuple[float, ...] | None = field(default=None, repr=False)

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Target:
        """From `dataclasses.asdict` after a journey through JSON. TypeError for unknown fields."""
        pairs = {name: values.get(name) for name in ("feature", "difference")}
        known = {name: None if pair is None else _pair(name, pair) for name, pair in pairs.items()}
        return cls(**{**values, **known})


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a graph comes from.

    Attributes:
        prompt: the text that was traced.
        model, transcoders: names (hub id or folder, with revision where there is one).
        transcoder_kind: "plt" (per layer) or "clt" (cross layer); "" where unknown.
        ignored_positions: positions whose features and errors were left out.
        settings: arguments of the run; plain JSON values.
        versions: of the packages that made it.
        dtype: that the model ran in.
    """

    prompt: str
    model: str = ""
    transcoders: str = ""
    transcoder_kind: str = ""
    ignored_positions: tuple[int, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    dtype: str = ""

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Provenance:
        """From `dataclasses.asdict` after a journey through JSON. TypeError for unknown fields."""
        ignored = tuple(values.get("ignored_positions", ()))
        return cls(**{**values, "ignored_positions": ignored})


@dataclass(frozen=True, slots=True)
class FeatureNote:
    """What is known of a feature: a label, and the tokens its writing raises and lowers most."""

    label: str = ""
    promoted: tuple[tuple[str, float], ...] = ()
    suppressed: tuple[tuple[str, float], ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """What `dataclasses.asdict` says, without its copies: a graph has a thousand of these."""
        return {"label": self.label, "promoted": self.promoted, "suppressed": self.suppressed}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> FeatureNote:
        """From `dataclasses.asdict` after a journey through JSON. KeyError for missing fields."""
        promoted, suppressed = (
            tuple((str(token), float(logit)) for token, logit in values[name])
            for name in ("promoted", "suppressed")
        )
        return cls(values["label"], promoted, suppressed)


@dataclass(frozen=True, slots=True)
class EdgeHeads:
    """Which attention heads carry an edge; `residual` and `by_layer` sum to its weight.

    Attributes:
        residual: the part that meets no head.
        by_layer: what all heads of each layer carry, from layer 0 up to the target's.
        heads: (layer, head, part, position it looks at) of the strongest heads, strongest first.
    """

    residual: float
    by_layer: tuple[float, ...]
    heads: tuple[tuple[int, int, float, int], ...]


@dataclass(frozen=True, slots=True)
class HeadScore:
    """Why a head looks from one position at another: its score before the softmax, taken apart.

    Attributes:
        score: sums all parts of either side.
        pattern: the attention that came of it.
        query_side, key_side: (node id or lump, part) of the strongest sources, strongest first.
        query_kinds, key_kinds: what all sources of a kind add, by kind; what adds nothing is left
            out.
        query_rest, key_rest: how many sources there are besides the strongest.
    """

    score: float
    pattern: float
    query_side: tuple[tuple[str, float], ...]
    key_side: tuple[tuple[str, float], ...]
    query_kinds: Mapping[str, float]
    key_kinds: Mapping[str, float]
    query_rest: int
    key_rest: int


Lookup = Callable[[Sequence[tuple[int, int]]], Mapping[tuple[int, int], Mapping[str, Any]]]
"""Says what it knows of features by (layer, id), as plain JSON values: examples, figures, kin."""


def _pair(name: str, pair: Any) -> tuple[int, int]:
    """Two numbers as JSON holds them. ValueError for anything else."""
    if not isinstance(pair, list | tuple) or [type(part) for part in pair] != [int, int]:
        what = "(layer, id)" if name == "feature" else "two token ids"
        raise ValueError(f"a target's {name} should be {what}, not {pair!r}")
    return pair[0], pair[1]
