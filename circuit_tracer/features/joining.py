"""Stores of different layers as one: what a large model's features are built of, layer by layer.

Stores that were built of the same texts with `layers` hold the same figures as one store of all
layers would; joined, they are that store, byte for byte. Nothing is computed: rows are copied, and
the pieces of text that examples are taken from are kept once.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter

from circuit_tracer.errors import InputError
from circuit_tracer.features import file
from circuit_tracer.features.file import Piece, Reading, Record
from circuit_tracer.features.labels import Labels
from circuit_tracer.features.part import piece_number
from circuit_tracer.features.store import Store

Progress = Callable[[float, str], None]


def join(
    stores: Sequence[str | os.PathLike[str]],
    path: str | os.PathLike[str],
    progress: Progress | None = None,
) -> None:
    """Write one store of several that hold different layers of one model.

    Args:
        stores: built of the same texts; their order does not matter.

    Raises:
        InputError: stores that do not go together, or that hold the same layer.
        OutputError: the file could not be written.
    """
    if not stores:
        raise InputError("name the stores to join")
    opened = [Reading(store) for store in stores]
    try:
        _check(opened)
        about = {k: v for k, v in opened[0].about.items() if k not in ("format", "version")}
        order = _Pieces(opened)
        records = _records(opened, order, progress)
        file.write(path, about, records, order.merged(), order.tokens())
    finally:
        for reading in opened:
            reading.close()
    _copy_labels(stores, path)


class _Pieces:
    """The pieces of several stores as those of one, ascending by number as in each of them."""

    def __init__(self, opened: Sequence[Reading]):
        self.opened = opened
        self.numbers = [[piece_number(*piece) for piece in reading.pieces()] for reading in opened]
        every = sorted(set().union(*self.numbers))
        self.places = {number: place for place, number in enumerate(every)}

    def moved(self, store: int, place: int) -> int:
        """Where a piece of a store lies among all."""
        return self.places[self.numbers[store][place]]

    def merged(self) -> Iterator[Piece]:
        streams = (
            zip(numbers, reading.pieces(), strict=True)
            for numbers, reading in zip(self.numbers, self.opened, strict=True)
        )
        for _, same in groupby(heapq.merge(*streams, key=itemgetter(0)), itemgetter(0)):
            yield next(same)[1]

    def tokens(self) -> Iterator[tuple[int, str]]:
        streams = (reading.tokens() for reading in self.opened)
        for _, same in groupby(heapq.merge(*streams, key=itemgetter(0)), itemgetter(0)):
            yield next(same)


def _records(
    opened: Sequence[Reading], order: _Pieces, progress: Progress | None
) -> Iterator[Record]:
    layers = sorted(
        (layer, number)
        for number, reading in enumerate(opened)
        for (layer,) in reading.select("SELECT layer FROM layer")
    )
    for done, (layer, number) in enumerate(layers):
        if progress is not None:
            progress(done / len(layers), f"layer {layer}")
        for record in opened[number].records(layer):
            pieces = record.detail.get("pieces")
            if pieces is not None:
                record.detail["pieces"] = [order.moved(number, place) for place in pieces]
            yield record


def _check(opened: Sequence[Reading]) -> None:
    first, holders = opened[0], dict[int, Reading]()
    for reading in opened:
        for name in sorted(first.about.keys() | reading.about.keys()):
            mine, theirs = first.about.get(name), reading.about.get(name)
            if mine != theirs:
                raise InputError(
                    f"{reading.path} does not fit {first.path}: its {name} is {theirs}, and not "
                    f"{mine}. Stores to join are of one model and the same texts"
                )
        for (layer,) in reading.select("SELECT layer FROM layer"):
            if layer in holders:
                raise InputError(
                    f"{holders[layer].path} and {reading.path} both hold layer {layer}"
                )
            holders[layer] = reading


def _copy_labels(stores: Sequence[str | os.PathLike[str]], path: str | os.PathLike[str]) -> None:
    given: Labels = {}
    for one in map(Store, stores):
        given.update(one.given)
        one.close()
    if given:
        whole = Store(path)
        whole.set_labels(given)
        whole.close()
