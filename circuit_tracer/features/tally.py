"""What is counted of a layer's features while a corpus goes by.

Everything in a tally is an integer, a largest value, or the best few of a set under a fixed order,
so that the order of the texts, interruptions, and the way a corpus is dealt to shards change
nothing: adding is associative and commutative, bit for bit.

    sums        kept as whole units and a fraction in steps of 2^-40, both integers
    histogram   in bins that are the same for every feature, two an octave
    top         of every piece of text its strongest position; the strongest pieces are kept
    sample      of all positions where the feature fires those with the smallest random number,
                which is a hash of the piece and the position: a uniform sample

A piece that a corpus holds twice counts twice, and is shown once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

ENTRY = np.dtype([("feature", "<i4"), ("value", "<f8"), ("piece", "<i8"), ("position", "<i4")])
"""One place where a feature fires: piece is the number that names a piece of text."""

Entries = NDArray[np.void]
Counts = NDArray[np.int64]

LOWEST, BINS = -32, 64
"""The first bin begins at 2^(LOWEST/2) and also holds all that is smaller, the last all larger."""

FRACTION = 2.0**40


@dataclass
class Tally:
    """Counts of one layer.

    Args:
        features: how many features the layer has.
        top, sample: how many entries of each kind to keep of a feature.
        whole: all is counted; if not, only at how many positions each feature fires.
    """

    features: int
    top: int
    sample: int
    whole: bool = True
    count: Counts = field(init=False)
    units: Counts = field(init=False)
    fraction: Counts = field(init=False)
    largest: NDArray[np.float64] = field(init=False)
    bins: Counts = field(init=False)
    spoken: Counts = field(init=False)
    strongest: Entries = field(init=False)
    sampled: Entries = field(init=False)

    def __post_init__(self) -> None:
        rows = self.features if self.whole else 0
        self.count = np.zeros(self.features, np.int64)
        self.units = np.zeros(rows, np.int64)
        self.fraction = np.zeros(rows, np.int64)
        self.largest = np.full(rows, -np.inf)
        self.bins = np.zeros((rows, BINS), np.int64)
        self.spoken = np.zeros((rows, 0), np.int64)
        self.strongest = np.zeros(0, ENTRY)
        self.sampled = np.zeros(0, ENTRY)

    def add(self, entries: Entries, language: Counts) -> None:
        """Count places where features fire.

        Args:
            entries: any number, each once.
            language: of each of them, its place among the languages.
        """
        feature, value = entries["feature"].astype(np.int64), entries["value"].copy()
        np.add.at(self.count, feature, 1)
        if not self.whole:
            return
        units = np.floor(value)
        np.add.at(self.units, feature, units.astype(np.int64))
        np.add.at(self.fraction, feature, np.rint((value - units) * FRACTION).astype(np.int64))
        np.maximum.at(self.largest, feature, value)
        for table, column in ((self.bins, bin_of(value)), (self.spoken, language)):
            np.add.at(table.reshape(-1), feature * table.shape[1] + column, 1)
        self._keep(entries, entries)

    def merge(self, other: Tally, columns: Sequence[int]) -> None:
        """Count what another tally of the same layer has counted.

        Args:
            columns: the place here of each language there.
        """
        for name in ("count", "units", "fraction", "bins"):
            getattr(self, name).__iadd__(getattr(other, name))
        self.spoken[:, list(columns)] += other.spoken
        np.maximum(self.largest, other.largest, out=self.largest)
        self._keep(other.strongest, other.sampled)

    def add_language(self) -> None:
        """Make room for one more language."""
        self.spoken = np.pad(self.spoken, ((0, 0), (0, 1)))

    def mean(self) -> NDArray[np.float64]:
        """(F,) mean over the positions where a feature fires; 0 where it never does."""
        total = self.units + self.fraction / FRACTION
        return np.divide(total, self.count, out=np.zeros(self.features), where=self.count > 0)

    def _keep(self, strong: Entries, random: Entries) -> None:
        of = self.features, self.strongest, strong, self.top
        self.strongest = _chosen(*of, strongest, lambda entries: -entries["value"])
        of = self.features, self.sampled, random, self.sample
        self.sampled = _chosen(*of, sampled, _draw)
        self.units += self.fraction >> 40
        self.fraction &= (1 << 40) - 1


def strongest(entries: Entries, k: int) -> Entries:
    """Of each feature the k strongest pieces, each by its strongest position, strongest first."""
    columns = (entries["position"], -entries["value"], entries["piece"], entries["feature"])
    entries = entries[np.lexsort(columns)]
    entries = entries[_new(entries["feature"], entries["piece"])]
    entries = entries[np.lexsort((entries["piece"], -entries["value"], entries["feature"]))]
    return entries[_rank(entries["feature"]) < k]


def sampled(entries: Entries, k: int) -> Entries:
    """Of each feature k places drawn evenly, the same for the same texts, in random order."""
    columns = (entries["position"], entries["piece"], _draw(entries), entries["feature"])
    entries = entries[np.lexsort(columns)]
    entries = entries[_new(entries["feature"], entries["piece"], entries["position"])]
    return entries[_rank(entries["feature"]) < k]


def _chosen(
    features: int,
    kept: Entries,
    new: Entries,
    k: int,
    choose: Callable[[Entries, int], Entries],
    rank: Callable[[Entries], NDArray],
) -> Entries:
    """`choose` among all, where `kept` are its choice among those before: most of the new ones
    rank after the last kept of their feature and are not sorted, nor are features without new ones.
    """
    last = kept[_rank(kept["feature"]) == k - 1]
    worst, full = np.empty(features, rank(kept).dtype), np.zeros(features, bool)
    worst[last["feature"]], full[last["feature"]] = rank(last), True
    new = new[~full[new["feature"]] | (rank(new) <= worst[new["feature"]])]
    touched = np.zeros(features, bool)
    touched[new["feature"]] = True
    again = touched[kept["feature"]]
    both = choose(np.concatenate([kept[again], new]), k)
    both = np.concatenate([kept[~again], both])
    return both[np.argsort(both["feature"], kind="stable")]


def priority(piece: NDArray[np.int64], position: NDArray[np.int32]) -> NDArray[np.uint64]:
    """A random number of a place in a text (SplitMix64), the same everywhere and always.

    It does not depend on the feature: samples of different features meet in the same pieces, of
    which fewer have to be kept.
    """
    z = piece.astype(np.uint64) + (position.astype(np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _draw(entries: Entries) -> NDArray[np.uint64]:
    return priority(entries["piece"], entries["position"])


def bin_of(value: NDArray[np.float64]) -> NDArray[np.int64]:
    """The bin of each activation, exactly: no logarithm is taken."""
    mantissa, exponent = np.frexp(np.where(value > 0, value, 2.0**-60))
    place = 2 * (exponent.astype(np.int64) - 1) + (mantissa >= 0.5**0.5) - LOWEST
    return np.clip(place, 0, BINS - 1)


def bin_edges(place: int) -> tuple[float, float]:
    """Where a bin begins and ends, 0 and infinity at the ends.

    >>> bin_edges(32)
    (1.0, 1.4142135623730951)
    """
    low, high = (2.0 ** ((LOWEST + place + step) / 2) for step in (0, 1))
    return (0.0 if place == 0 else low), (float("inf") if place == BINS - 1 else high)


def _new(*keys: NDArray) -> NDArray[np.bool_]:
    """Where a row of sorted keys differs from the one before it."""
    new = np.ones(len(keys[0]), bool)
    new[1:] = np.logical_or.reduce([key[1:] != key[:-1] for key in keys])
    return new


def _rank(group: NDArray) -> NDArray[np.int64]:
    """The place of each row among its group, for groups that stand together."""
    starts = np.flatnonzero(_new(group)) if len(group) else np.zeros(0, np.int64)
    lengths = np.diff(np.append(starts, len(group)))
    return np.arange(len(group)) - np.repeat(starts, lengths)


def groups(entries: Entries, features: int) -> Sequence[Entries]:
    """The entries of each feature in turn, for entries that are sorted by feature."""
    ends = np.searchsorted(entries["feature"], np.arange(features), side="right")
    return np.split(entries, ends[:-1])
