"""What to do to features: multiply them, or set them.

`Scale(M)` makes an activation M times what it is: 1 does nothing, 0 ablates, −1 flips. `Clamp(v)`
makes it v, also where the feature was not active. Both are one line, `new = scale · old + offset`;
an `Edit` is that line at one place. Keys say which features: (layer, position, feature), a feature
node, or a whole set of either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from circuit_tracer.errors import InputError
from circuit_tracer.forward import Forward
from circuit_tracer.nodes import Node
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.transcoders.base import TranscoderSet

NEAREST = 5


@dataclass(frozen=True)
class Scale:
    """Make an activation `factor` times what it is: 1 does nothing, 0 ablates, −1 flips.

    Raises:
        InputError: the factor is not a finite number.
    """

    factor: float

    def __post_init__(self) -> None:
        _finite(self.factor, "Scale")


@dataclass(frozen=True)
class Clamp:
    """Set an activation to `value`, whatever it was.

    Raises:
        InputError: the value is not a finite number.
    """

    value: float

    def __post_init__(self) -> None:
        _finite(self.value, "Clamp")


Change: TypeAlias = Scale | Clamp
Changes: TypeAlias = "Mapping[Any, Change] | Sequence[tuple[Any, Change]]"


@dataclass(frozen=True)
class Edit:
    """`new = scale · old + offset` for one feature at one position, or (None) at every one."""

    layer: int
    position: int | None
    feature: int
    scale: float
    offset: float


@dataclass(frozen=True, eq=False)
class Clean:
    """What the features of a prompt do when nobody intervenes; each layer is encoded once."""

    transcoders: TranscoderSet
    forward: Forward
    _encoded: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    @property
    def n_positions(self) -> int:
        return len(self.forward.token_ids)

    def activations(self, layer: int) -> Float[Tensor, "position feature"]:
        """Activations of a layer, zero where a feature is not active."""
        x = self.forward.mlp_inputs[layer]
        # Kept sparse: dense, all layers of a long prompt would fill the memory.
        if layer not in self._encoded:
            self._encoded[layer] = self.transcoders.encode(layer, x)
        return _dense(self.transcoders, layer, len(x), *self._encoded[layer])


def activations(
    transcoders: TranscoderSet, layer: int, x: Float[Tensor, "position d_model"]
) -> Float[Tensor, "position feature"]:
    """Activations of a layer that reads x, zero where a feature is not active."""
    return _dense(transcoders, layer, len(x), *transcoders.encode(layer, x))


def _dense(
    transcoders: TranscoderSet, layer: int, n_positions: int, cells: Tensor, values: Tensor
) -> Float[Tensor, "position feature"]:
    dense = values.new_zeros(n_positions, len(transcoders.layer(layer).encoder))
    dense[cells[:, 0], cells[:, 1]] = values
    return dense


def resolve(changes: Changes, clean: Clean) -> list[Edit]:
    """The edits that changes come to on a prompt, each feature and position at most once.

    Raises:
        InputError: nothing to change; a layer, position or feature that does not exist; a feature
            scaled where it is not active; one place named twice; a value that is no Change.
    """
    edits: dict[tuple[int, int, int], Edit] = {}
    seen: dict[int, Tensor] = {}
    for key, change in _pairs(changes):
        for layer, where, feature in _flat(key):
            _check_feature(clean.transcoders, layer, feature)
            positions = _positions(where, clean.n_positions)
            if isinstance(change, Scale):
                if layer not in seen:
                    seen[layer] = clean.activations(layer).cpu()
                _check_active(seen[layer], layer, positions, feature)
            for position in positions:
                place = (layer, position, feature)
                if place in edits:
                    raise InputError(
                        f"feature {feature} of layer {layer} is changed twice at position "
                        f"{position}; name it once"
                    )
                edits[place] = _edit(layer, position, feature, change)
    return list(edits.values())


def resolve_everywhere(
    changes: Mapping[tuple[int, int], Change], transcoders: TranscoderSet
) -> list[Edit]:
    """The edits of changes at every position, keys (layer, feature).

    Raises:
        InputError: nothing to change, a layer or feature that does not exist.
    """
    edits = []
    for key, change in _pairs(changes):
        if not (isinstance(key, tuple) and len(key) == 2 and all(map(_whole, key))):
            raise InputError(f"steering names features as (layer, feature); got {key!r}")
        layer, feature = int(key[0]), int(key[1])
        _check_feature(transcoders, layer, feature)
        edits.append(_edit(layer, None, feature, change))
    return edits


def _edit(layer: int, position: int | None, feature: int, change: Change) -> Edit:
    if isinstance(change, Scale):
        return Edit(layer, position, feature, float(change.factor), 0.0)
    return Edit(layer, position, feature, 0.0, float(change.value))


def _finite(value: Any, name: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value)):
        raise InputError(f"{name} takes a finite number, not {value!r}")


def _pairs(changes: Changes) -> list[tuple[Any, Change]]:
    pairs = list(changes.items()) if isinstance(changes, Mapping) else list(changes)
    if not pairs:
        raise InputError(
            "there is nothing to change: give at least one feature and what to do to it, e.g. "
            "{(3, 5, 417): ct.Scale(-1)}"
        )
    for key, change in pairs:
        if not isinstance(change, Scale | Clamp):
            raise InputError(
                f"{key!r} is to become {change!r}; say ct.Scale(factor), times what it is, or "
                "ct.Clamp(value), whatever it was"
            )
    return pairs


def _flat(key: Any) -> list[tuple[int, Any, int]]:
    """The (layer, position, feature) triples that a key stands for."""
    if isinstance(key, Node):
        if key.kind != "feature":
            raise InputError(f"{key.id} is of kind {key.kind!r}; only features can be changed")
        return [(key.layer, key.position, key.feature)]
    if isinstance(key, tuple) and len(key) == 3 and _whole(key[0]) and _whole(key[2]):
        return [(int(key[0]), key[1], int(key[2]))]
    if isinstance(key, Iterable) and not isinstance(key, str):
        members = list(key)
        if members and not any(_whole(member) for member in members):
            return [triple for member in members for triple in _flat(member)]
        if not members:
            raise InputError("a set of features is empty; name at least one feature in it")
    raise InputError(
        f"{key!r} names no feature: give (layer, position, feature), where position may be a "
        "range or None for every one, a feature node, or a tuple of these"
    )


def _whole(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _check_feature(transcoders: TranscoderSet, layer: int, feature: int) -> None:
    if not 0 <= layer < transcoders.n_layers:
        raise InputError(
            f"there is no layer {layer}; {transcoders.name} has layers 0 to "
            f"{transcoders.n_layers - 1}"
        )
    size = len(transcoders.layer(layer).encoder)
    if not 0 <= feature < size:
        has = f"features 0 to {size - 1}" if size else "no features"
        raise InputError(f"there is no feature {feature} in layer {layer}, which has {has}")


def _positions(where: Any, n_positions: int) -> Sequence[int]:
    if where is None or where == "all":
        return range(n_positions)
    if isinstance(where, slice):
        chosen = range(n_positions)[where]
        if not chosen:
            raise InputError(f"{where} holds none of the prompt's positions 0 to {n_positions - 1}")
        return chosen
    several = list(where) if isinstance(where, range | tuple | list) else [where]
    if not several or not all(map(_whole, several)):
        raise InputError(
            "a position is a number, a slice, a range or tuple of numbers, or None for every one, "
            f"not {where!r}"
        )
    wrong = [position for position in several if not -n_positions <= position < n_positions]
    if wrong:
        raise InputError(
            f"there is no position {wrong[0]}; the prompt has positions 0 to {n_positions - 1}"
        )
    return [int(position) % n_positions for position in several]


def _check_active(
    activations: Float[Tensor, "position feature"],
    layer: int,
    positions: Sequence[int],
    feature: int,
) -> None:
    """Raise InputError where a feature is active at none of the positions."""
    if activations[list(positions), feature].any():
        return
    elsewhere: Int[Tensor, " position"] = activations[:, feature].nonzero()[:, 0]
    said = f"position {positions[0]}" if len(positions) == 1 else "these positions"
    message = f"feature {feature} of layer {layer} is not active at {said}, so scaling does nothing"
    if len(elsewhere):
        message += f"; it is active at {', '.join(map(str, elsewhere.tolist()))}"
    strongest = activations[list(positions)].max(0).values
    values, ids = strongest.topk(min(NEAREST, len(strongest)))
    near = [str(i) for i, v in zip(ids.tolist(), values.tolist(), strict=True) if v > 0]
    if near:
        message += f". Most active there in layer {layer}: {', '.join(near)}"
    raise InputError(f"{message}. To switch it on, use Clamp.")
