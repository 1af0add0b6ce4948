"""A feature as people read it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Tokens = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Label:
    """What a feature is called.

    Attributes:
        text: the words; those made by machine from the feature's own figures begin with "~".
        source: "automatic", or who or what called it that.
        score: how well a language model that knows only the label foretells where the feature
            fires: a correlation, 1 at best (`explaining`). None where nobody measured it.
    """

    text: str
    source: str
    score: float | None = None

    @property
    def automatic(self) -> bool:
        return self.source == AUTOMATIC


AUTOMATIC = "automatic"
MARK = "~ "
"""Automatic labels begin so, wherever they are shown."""


@dataclass(frozen=True)
class Example:
    """A piece of text in which a feature fires.

    Attributes:
        tokens: of the text.
        activations: of each of them.
        position: the token it was chosen for.
        language: "" where unknown.
    """

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    position: int
    language: str = ""


@dataclass(frozen=True)
class Group:
    """Examples that belong together: "Top", "Interval 1" (the strongest quarter) …, "Random".

    Attributes:
        low, high: activations at their positions.
    """

    name: str
    low: float
    high: float
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Bin:
    """One bar of a histogram: `count` activations from `low` up to `high`."""

    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Kin:
    """A related feature.

    Attributes:
        share: cosine of the decoders, or share of the places looked at where both fire.
    """

    layer: int
    feature: int
    share: float


@dataclass(frozen=True)
class Spread:
    """How a feature spreads over the languages of a corpus.

    Attributes:
        rates: share of the positions of each language where it fires.
        evenness: entropy of the rates over its greatest possible value: 1 where all languages are
            alike, 0 where one has it all; NaN where it never fires or there is one language.
        language: the one with the largest rate, None where it never fires.
    """

    rates: dict[str, float]
    evenness: float
    language: str | None

    @classmethod
    def of(cls, rates: dict[str, float]) -> Spread:
        total = sum(rates.values())
        shares = [rate / total for rate in rates.values() if rate > 0] if total else []
        entropy = -math.fsum(share * math.log(share) for share in shares)
        evenness = entropy / math.log(len(rates)) if shares and len(rates) > 1 else math.nan
        return cls(rates, evenness, max(rates, key=lambda k: rates[k]) if shares else None)


@dataclass(frozen=True)
class Feature:
    """What a store knows of a feature; None where its source does not say.

    Attributes:
        layer, id: which one.
        label: given, or automatic.
        count: positions where it fires, of those in the corpus.
        density: the same as a share.
        largest, mean: activation where it fires.
        groups: examples.
        silent: texts in which the feature does not fire, for comparison.
        histogram: of its activations; bins are half an octave wide.
        raised, lowered: tokens, and by how much its writing raises or lowers them (`notes`).
        spread: over the languages of the corpus.
        coactive: features of lower layers that fire at the same positions.
        similar: features with the nearest decoders.
    """

    layer: int
    id: int
    label: Label
    count: int | None
    density: float | None
    largest: float | None
    mean: float | None
    groups: tuple[Group, ...] = ()
    silent: tuple[Example, ...] = ()
    histogram: tuple[Bin, ...] = ()
    raised: Tokens = ()
    lowered: Tokens = ()
    spread: Spread = field(default_factory=lambda: Spread.of({}))
    coactive: tuple[Kin, ...] = ()
    similar: tuple[Kin, ...] = ()

    @property
    def name(self) -> str:
        """`L2#417`, as nodes are called."""
        return f"L{self.layer}#{self.id}"
