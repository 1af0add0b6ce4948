"""The reference tool's feature files, both ways: JSON a feature, and packed a layer.

A feature is a JSON object; alone it lies in a file named by its Cantor number. Packed, a file
`layer_i.bin` holds the features of a layer one after the other, each as four bytes of length
(little-endian) and the JSON compressed by zlib, and `features/index.json.gz` says by layer in which
file and at which offsets.

What is read is kept as it is, whatever fields it has, and written again byte for byte (packed by
zlib at its usual level).
"""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from math import isqrt
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from circuit_tracer import files
from circuit_tracer.errors import InputError, OutputError
from circuit_tracer.features import file
from circuit_tracer.features.feature import Bin, Example, Feature, Group
from circuit_tracer.features.labels import automatic
from circuit_tracer.features.store import Store
from circuit_tracer.neuronpedia import feature_number

Progress = Callable[[float, str], None]
INDEX = "index.json.gz"
LEVEL = 6
MOST = 64 * 2**20
"""Bytes that one feature, or an index, may have when it is unpacked."""


class _Loose(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Example(_Loose):
    tokens: list[str]
    tokens_acts_list: list[FiniteFloat]
    train_token_ind: int | None = None


class _Quantile(_Loose):
    quantile_name: str
    examples: list[_Example]


class _Reference(_Loose):
    index: int
    examples_quantiles: list[_Quantile]
    top_logits: list[str] = []
    bottom_logits: list[str] = []
    act_min: FiniteFloat | None = None
    act_max: FiniteFloat | None = None
    histogram: list[FiniteFloat] | None = Field(default=None)
    activation_frequency: FiniteFloat | None = None


class _Layer(BaseModel):
    filename: str
    offsets: list[int]


def import_features(
    source: str | os.PathLike[str],
    path: str | os.PathLike[str],
    progress: Progress | None = None,
) -> int:
    """Make a store of a folder of feature files, packed or not; how many features it has.

    Args:
        source: a folder with `features/index.json.gz` or `index.json.gz`, or with JSON files.
        path: of the store.

    Raises:
        InputError: no such files, or damaged ones.
        OutputError: the store could not be written.
    """
    folder = Path(source)
    index = next(
        (one for one in (folder / "features" / INDEX, folder / INDEX) if one.exists()), None
    )
    found = _packed(index) if index is not None else _loose(folder)
    count = 0

    def records() -> Iterator[file.Record]:
        nonlocal count
        for layer, one, text in found:
            count += 1
            if progress is not None and count % 100 == 0:
                progress(0.0, f"{count:,} features")
            yield _record(layer, one, text)

    name = folder.resolve().name
    file.write(path, {"model": "", "transcoders": name, "kind": "", "languages": {}}, records())
    return count


def export_features(
    store: Store,
    folder: str | os.PathLike[str],
    packed: bool = True,
    progress: Progress | None = None,
) -> int:
    """Write a store as feature files into a folder; how many features it wrote.

    Args:
        packed: one file a layer and an index, in `folder`/features; else a JSON file a feature.

    Raises:
        OutputError: a file could not be written.
    """
    place = Path(folder) / "features" if packed else Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {place}: {error.strerror or error}") from error
    index: dict[str, Any] = {}
    done, total = 0, len(store)
    for layer, rows in groupby(store, lambda row: row.layer):
        offsets, body = [0], io.BytesIO()
        for row in rows:
            text = _text(store, layer, row.id)
            if not packed:
                files.write_text(place / f"{feature_number(layer, row.id)}.json", text)
                continue
            offsets += [offsets[-1]] * (row.id + 1 - len(offsets))  # ids that are not there
            data = zlib.compress(text.encode(), LEVEL)
            body.write(struct.pack("<I", len(data)) + data)
            offsets.append(body.tell())
            done += 1
            if progress is not None and done % 100 == 0:
                progress(done / total, f"{done:,} features")
        if packed:
            name = f"layer_{layer}.bin"
            index[str(layer)] = {"filename": name, "offsets": offsets}
            with files.replacing(place / name) as at:
                at.write_bytes(body.getvalue())
    if packed:
        with files.replacing(place / INDEX) as at:
            at.write_bytes(gzip.compress(json.dumps(index).encode(), LEVEL, mtime=0))
    return total


def understood(layer: int, feature: int, text: str) -> Feature:
    """A feature file as a `Feature`. Raises InputError where it is none."""
    found = _checked(text, f"feature {feature} of layer {layer}")
    groups = []
    for quantile in found.examples_quantiles:
        examples = tuple(_example(example) for example in quantile.examples)
        if examples:
            ends = [example.activations[example.position] for example in examples]
            groups.append(Group(quantile.quantile_name, min(ends), max(ends), examples))
    counts = [int(count) for count in found.histogram or []]
    low, high = found.act_min or 0.0, found.act_max or 0.0
    step = (high - low) / max(1, len(counts))
    words = _words(found)
    return Feature(
        layer,
        feature,
        automatic(*words, None),
        count=None,
        density=found.activation_frequency,
        largest=found.act_max,
        mean=None,
        groups=tuple(groups),
        histogram=tuple(
            Bin(low + k * step, low + (k + 1) * step, n) for k, n in enumerate(counts) if n
        ),
        raised=tuple((token, float("nan")) for token in found.top_logits),
        lowered=tuple((token, float("nan")) for token in found.bottom_logits),
    )


def written(feature: Feature) -> dict[str, Any]:
    """A `Feature` as a feature file of the reference tool."""
    seen: set[tuple[str, ...]] = set()
    quantiles = []
    for group in feature.groups:
        examples = []
        for example in group.examples:
            examples.append({
                "tokens": list(example.tokens),
                "tokens_acts_list": list(example.activations),
                "train_token_ind": example.position,
                "is_repeated_datapoint": example.tokens in seen,
            })  # fmt: skip
            seen.add(example.tokens)
        quantiles.append({"quantile_name": group.name, "examples": examples})
    return {
        "index": feature_number(feature.layer, feature.id),
        "examples_quantiles": quantiles,
        "top_logits": [token for token, _ in feature.raised],
        "bottom_logits": [token for token, _ in feature.lowered],
        "act_min": min([0.0, *(group.low for group in feature.groups)]),
        "act_max": feature.largest or 0.0,
        "quantile_values": [group.high for group in feature.groups],
        "histogram": [bar.count for bar in feature.histogram],
        "activation_frequency": feature.density or 0.0,
    }


def _text(store: Store, layer: int, feature: int) -> str:
    """The JSON of a feature: as it was read, or written now."""
    detail = store.detail(layer, feature)
    if "reference" in detail:
        return detail["reference"]
    return json.dumps(written(store.feature(layer, feature)))


def _record(layer: int, feature: int, text: str) -> file.Record:
    found = _checked(text, f"feature {feature} of layer {layer}")
    fires, says = _words(found)
    detail = {"reference": text}
    return file.Record(layer, feature, None, found.act_max, None, fires, says, detail)


def _words(found: _Reference) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words it fires at in most examples, and words it raises."""
    weights: dict[str, float] = {}
    for quantile in found.examples_quantiles:
        for example in map(_example, quantile.examples):
            word = example.tokens[example.position].strip()
            weights[word] = weights.get(word, 0.0) + example.activations[example.position]
    ranked = sorted(weights, key=lambda word: (-weights[word], word))
    fires = tuple(w for w in ranked[:3] if w and weights[w] >= 0.15 * sum(weights.values()))
    return fires, tuple(token.strip() for token in found.top_logits[:3])


def _example(example: _Example) -> Example:
    acts = example.tokens_acts_list
    position = example.train_token_ind
    if position is None or not 0 <= position < len(acts):
        position = max(range(len(acts)), key=acts.__getitem__)
    return Example(tuple(example.tokens), tuple(acts), position)


def _checked(text: str, where: str) -> _Reference:
    try:
        found = _Reference.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        raise InputError(f"{where} is no feature file: {at}: {first['msg']}") from error
    for example in (e for quantile in found.examples_quantiles for e in quantile.examples):
        if len(example.tokens) != len(example.tokens_acts_list) or not example.tokens:
            raise InputError(
                f"{where} is no feature file: an example has {len(example.tokens)} tokens and "
                f"{len(example.tokens_acts_list)} activations"
            )
    return found


def _packed(index: Path) -> Iterator[tuple[int, int, str]]:
    """(layer, id, JSON) of packed features."""
    try:
        with gzip.open(index) as packed:
            text = packed.read(MOST + 1)
        if len(text) > MOST:
            raise InputError(f"{index} unpacks to more than {MOST:,} bytes")
        whole = {int(layer): _Layer.model_validate(one) for layer, one in json.loads(text).items()}
    except (OSError, EOFError, ValueError, AttributeError, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{index} is no index of features: {error}") from error
    for layer, one in sorted(whole.items()):
        if Path(one.filename).name != one.filename:
            raise InputError(f"{index}: {one.filename!r} is not a file beside it")
        path = index.parent / one.filename
        try:
            with open(path, "rb") as packed:
                for feature, (start, end) in enumerate(pairwise(one.offsets)):
                    if start != end:
                        yield layer, feature, _unpacked(packed, start, end, feature)
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _unpacked(packed: BinaryIO, start: int, end: int, feature: int) -> str:
    """The JSON of a feature that lies between two offsets."""
    where = f"{packed.name}, feature {feature}"
    if not 0 <= start <= end - 4 or end > os.fstat(packed.fileno()).st_size:
        raise InputError(f"{where}: bytes {start} to {end} are not in the file")
    packed.seek(start)
    (length,) = struct.unpack("<I", packed.read(4))
    if length != end - start - 4:
        raise InputError(f"{where}: says {length} bytes and has {end - start - 4}")
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(packed.read(length), MOST)
        if unpacker.unconsumed_tail or not unpacker.eof:
            raise InputError(f"{where} does not end, or unpacks to more than {MOST:,} bytes")
        return text.decode()
    except (UnicodeDecodeError, zlib.error) as error:
        raise InputError(f"{where} is damaged: {error}") from error


def _loose(folder: Path) -> Iterator[tuple[int, int, str]]:
    """(layer, id, JSON) of JSON files named by Cantor numbers."""
    paths = [path for path in folder.glob("*.json") if path.stem.isdecimal()]
    if not paths:
        raise InputError(
            f"{folder} holds neither features/{INDEX} nor files like 1175.json, named by number"
        )
    numbered = sorted((*layer_and_feature(int(path.stem)), path) for path in paths)
    for layer, feature, path in numbered:
        try:
            yield layer, feature, path.read_bytes().decode()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text: {error.reason}") from error


def layer_and_feature(number: int) -> tuple[int, int]:
    """What a Cantor number stands for.

    >>> layer_and_feature(1175)
    (0, 47)
    """
    diagonal = (isqrt(8 * number + 1) - 1) // 2
    feature = number - diagonal * (diagonal + 1) // 2
    return diagonal - feature, feature
