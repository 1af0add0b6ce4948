"""A feature as the page of a graph shows it: the part of a store that fits beside a picture.

A page holds the examples of hundreds of features, so each is cut short: the strongest few of every
group, with the words around them. Everything here is plain JSON values; `Panel` is what a graph is
given to ask (`Graph.lookups`), and holds no more than the path of the store until it is asked.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuit_tracer.features.feature import Example, Feature, Kin
from circuit_tracer.features.labels import Labels
from circuit_tracer.features.store import Store

TOP, OTHERS = 6, 3
"""Examples of a feature: of the strongest, and of every other group."""

BEFORE, AFTER = 16, 6
"""Tokens around the one that an example was chosen for."""

KIN = 6


@dataclass(frozen=True)
class Panel:
    """Looks features up in a store, for a page.

    Attributes:
        path: of the store; opened when it is asked, and closed again.
        name: what `--store` calls it.
        labels: that stand above the store's own.
    """

    path: Path
    name: str
    labels: tuple[tuple[tuple[int, int], str], ...] = ()

    def __call__(self, keys: Sequence[tuple[int, int]]) -> dict[tuple[int, int], dict[str, Any]]:
        """What a page shows of these (layer, id) features; those that are not there are left out.

        Raises:
            InputError: the store has gone, or is damaged.
        """
        store = Store(self.path)
        try:
            with _uncollected():
                # By layer and id, so that what lies together in the store is read once.
                known = [store.understood(row) for row in store.found(keys).values()]
                near = {key for one in known for key, _ in _kin(one.coactive) + _kin(one.similar)}
                names = {key: row.label.text for key, row in store.found(near).items()}
                names |= dict(self.labels)
                return {(one.layer, one.id): self._shown(one, names) for one in known}
        finally:
            store.close()

    def _shown(self, feature: Feature, names: Mapping[tuple[int, int], str]) -> dict[str, Any]:
        def kin(found: Sequence[Kin]) -> list[list[Any]]:
            return [[*key, share, names.get(key, "")] for key, share in _kin(found)]

        spread = feature.spread
        return {
            "store": self.name,
            "label": feature.label.text,
            "source": feature.label.source,
            "count": feature.count,
            "density": _known(feature.density),
            "largest": _known(feature.largest),
            "mean": _known(feature.mean),
            "bins": [[one.low, one.high, one.count] for one in feature.histogram],
            "groups": [
                {
                    "name": group.name,
                    "low": _known(group.low),
                    "high": _known(group.high),
                    "examples": [
                        _cut(one) for one in group.examples[: OTHERS if place else TOP]
                    ],
                }
                for place, group in enumerate(feature.groups)
                if group.examples
            ],
            "raised": [list(pair) for pair in feature.raised],
            "lowered": [list(pair) for pair in feature.lowered],
            "rates": spread.rates,
            "evenness": _known(spread.evenness),
            "coactive": kin(feature.coactive),
            "similar": kin(feature.similar),
        }  # fmt: skip


def panel(store: Store, labels: Labels | None = None) -> Panel:
    """The panel of an opened store, with labels that stand above its own."""
    from circuit_tracer.bundled import features_file

    bundled = {features_file(kind).resolve(): kind for kind in ("plt", "clt")}
    path = store.path.resolve()
    texts = tuple((key, label.text) for key, label in (labels or {}).items())
    return Panel(path, bundled.get(path, store.path.name), texts)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without looking for cycles: reading makes none, and of its many small lists and all that a
    model has in memory, the search would take most of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _kin(found: Sequence[Kin]) -> list[tuple[tuple[int, int], float]]:
    """((layer, id), share) of the nearest."""
    return [((one.layer, one.feature), round(one.share, 3)) for one in found[:KIN]]


def _cut(example: Example) -> dict[str, Any]:
    start = max(0, example.position - BEFORE)
    end = min(len(example.tokens), example.position + AFTER + 1)
    values = example.activations[start:end]
    return {
        "language": example.language,
        "position": example.position - start,
        "cut": [start > 0, end < len(example.tokens)],
        "tokens": list(example.tokens[start:end]),
        "activations": [value if math.isfinite(value) else 0.0 for value in values],
    }


def _known(value: float | None) -> float | None:
    """None also for what is no number: JSON has none of those."""
    return None if value is None or not math.isfinite(value) else value
