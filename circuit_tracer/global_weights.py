"""Weights between features that hold for every prompt.

What a feature writes stays in the residual stream and is read again above. That part of every edge
is the same whatever the prompt, but for norm denominators:

    V[t, s] = Σ over the layers s writes to below t   w_dec(s) · diag(norm weights) w_enc(t)

It is the *virtual weight*: what a unit of s adds to t's pre-activation at the same position, along
the residual identity alone, with every norm's denominator taken as 1. Attention, and MLPs between,
are left out, so V is comparable within one target layer, and is not an edge.

Most virtual weights are interference: two directions are never quite orthogonal, and features that
never fire together leave each other alone however large V is. Two guards come with each weight:
the share of random pairs of the same layers that reach it, and, after a pass over texts, the
*target-weighted expected residual attribution* (Ameisen et al. 2025),

    TWERA[t, s] = E[a_s a_t] / E[a_t] · V[t, s]

the mean of a_s V where t is active, weighted by how active: about 0 for pairs that never meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from circuit_tracer.changes import activations
from circuit_tracer.errors import InputError
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Float, Int, Tensor

Feature = tuple[int, int]
Progress = Callable[[float, str], None]
Side = Literal["inputs", "outputs"]

PAIRS, SEED = 2_000, 0
"""Random pairs of two layers that a weight is compared with."""
COMMON = 0.01
"""A weight that more than this share of random pairs reach is most likely interference."""


@dataclass(frozen=True)
class GlobalWeight:
    """What one feature does to another whatever the prompt.

    Attributes:
        source, target: (layer, id).
        weight: V, by the residual identity alone.
        chance: share of random pairs of the two layers with |V| at least as large. Of a thousand
            features the strongest is always among the first thousandth: TWERA tells more.
        twera: E[a_s a_t] / E[a_t] · V; None without texts, or where the target never fired.
        together: share of the target's active positions at which the source was active too; None
            as above.
    """

    source: Feature
    target: Feature
    weight: float
    chance: float
    twera: float | None = None
    together: float | None = None

    @property
    def warning(self) -> str | None:
        """Why the weight may be interference; None where nothing speaks for that."""
        if self.together == 0:
            return "interference: the two were never active together"
        if self.chance > COMMON:
            return f"perhaps interference: {self.chance:.1%} of random pairs reach this weight"
        if self.together is None:
            return "not known to be active together: no texts, or the target is silent in them"
        return None


@dataclass(frozen=True, eq=False)
class Coactivation:
    """How one feature fires together with all others, over texts.

    Attributes:
        feature: (layer, id).
        positions: how many were looked at; the first of each text is left out.
        products: a layer, (F,) Σ a_feature · a.
        sums: a layer, (F,) Σ a.
        both: a layer, (F,) positions where both were active.
        active: a layer, (F,) positions where each was active.
    """

    feature: Feature
    positions: int
    products: tuple[Float[Tensor, " feature"], ...]
    sums: tuple[Float[Tensor, " feature"], ...]
    both: tuple[Int[Tensor, " feature"], ...]
    active: tuple[Int[Tensor, " feature"], ...]


def virtual_weight(model: ReplacementModel, source: Feature, target: Feature) -> float:
    """V of one pair.

    Raises:
        InputError: a feature that is not there; a source that is not below its target.

    Example:
        >>> import circuit_tracer as ct
        >>> model = ct.load()
        >>> virtual_weight(model, (2, 17), (5, 4)) == virtual_weight(model, (2, 17), (5, 4))
        True
    """
    _check_below(source, target)
    with torch.no_grad():
        rows = _writes(model, source[0], target[0], torch.tensor([_id(model, source)]))
        return float(rows[0] @ _reads(model, target[0], torch.tensor([_id(model, target)]))[0])


def coactivation(
    model: ReplacementModel,
    feature: Feature,
    texts: Iterable[str | Sequence[int]],
    progress: Progress | None = None,
) -> Coactivation:
    """One pass over texts for one feature.

    Raises:
        InputError: a feature that is not there; no text with two tokens.
    """
    layer, number = feature[0], _id(model, feature)
    sizes = [len(model.transcoders.layer(at).encoder) for at in range(model.adapter.n_layers)]
    products, sums = ([torch.zeros(size).double() for size in sizes] for _ in range(2))
    both, active = ([torch.zeros(size).long() for size in sizes] for _ in range(2))
    positions, all_texts = 0, list(texts)
    for done, text in enumerate(all_texts):
        with torch.no_grad():
            sites = model.run(text).mlp_inputs
            own = activations(model.transcoders, layer, sites[layer])[1:, number].cpu().double()
            for at, x in enumerate(sites):
                found = activations(model.transcoders, at, x)[1:].cpu().double()
                products[at] += own @ found
                sums[at] += found.sum(0)
                both[at] += ((own != 0)[:, None] & (found != 0)).sum(0)
                active[at] += (found != 0).sum(0)
        positions += len(own)
        if progress is not None:
            progress((done + 1) / len(all_texts), f"{positions:,} tokens")
    if not positions:
        raise InputError("give texts of at least two tokens; the first of each is left out")
    return Coactivation(feature, positions, *map(tuple, (products, sums, both, active)))


def global_weights(
    model: ReplacementModel,
    feature: Feature,
    side: Side = "inputs",
    k: int = 10,
    seen: Coactivation | None = None,
) -> list[GlobalWeight]:
    """The strongest global weights of a feature, by |TWERA| where texts were seen, else by |V|.

    Args:
        side: "inputs" for features below that drive it, "outputs" for those above that it drives.
        seen: from `coactivation` of this feature.

    Raises:
        InputError: a feature that is not there, `seen` of another feature, k below 1.
    """
    if side not in ("inputs", "outputs"):
        raise InputError(f'side must be "inputs" or "outputs", not {side!r}')
    if k < 1:
        raise InputError(f"k={k} asks for no weight: give at least 1")
    _id(model, feature)
    if seen is not None and seen.feature != feature:
        raise InputError(f"these texts were seen for feature {seen.feature}, not {feature}")
    own = feature[0]
    layers = range(own) if side == "inputs" else range(own + 1, model.adapter.n_layers)
    found = []
    with torch.no_grad():
        for layer in layers:
            found += _of_layer(model, feature, side, layer, k, seen)
    found.sort(key=lambda one: -abs(one.weight if one.twera is None else one.twera))
    return found[:k]


def _of_layer(
    model: ReplacementModel,
    feature: Feature,
    side: Side,
    layer: int,
    k: int,
    seen: Coactivation | None,
) -> list[GlobalWeight]:
    """The strongest of one other layer."""
    own, number = feature
    every, mine = torch.arange(_size(model, layer)), torch.tensor([number])
    if not len(every):
        return []
    if side == "inputs":
        weights = _writes(model, layer, own, every) @ _reads(model, own, mine)[0]
    else:
        weights = _reads(model, layer, every) @ _writes(model, own, layer, mine)[0]
    weights = weights.cpu().double()
    strength, twera, together = weights, None, None
    if seen is not None:
        twera, together = _met(seen, side, layer)
        strength = twera = twera * weights
    lower, upper = (layer, own) if side == "inputs" else (own, layer)
    chance = _random_pairs(model, lower, upper)
    chosen = strength.nan_to_num().abs().topk(min(k, len(every))).indices.tolist()
    return [
        GlobalWeight(
            source=(layer, other) if side == "inputs" else feature,
            target=feature if side == "inputs" else (layer, other),
            weight=float(weights[other]),
            chance=float((chance >= weights[other].abs()).double().mean()),
            twera=_known(twera, other),
            together=_known(together, other),
        )
        for other in chosen
    ]


def _met(
    seen: Coactivation, side: Side, layer: int
) -> tuple[Float[Tensor, " feature"], Float[Tensor, " feature"]]:
    """(E[a_s a_t] / E[a_t], share of t's positions where s is active); NaN where t is silent."""
    own, number = seen.feature
    if side == "inputs":
        total, positions = seen.sums[own][number], seen.active[own][number]
    else:
        total, positions = seen.sums[layer], seen.active[layer]
    return seen.products[layer] / total, seen.both[layer].double() / positions


def _random_pairs(model: ReplacementModel, lower: int, upper: int) -> Float[Tensor, " pair"]:
    """|V| of random pairs of two layers."""
    draw = torch.Generator().manual_seed(SEED)
    sources = torch.randint(_size(model, lower), (PAIRS,), generator=draw)
    targets = torch.randint(_size(model, upper), (PAIRS,), generator=draw)
    product = _writes(model, lower, upper, sources) * _reads(model, upper, targets)
    return product.sum(1).abs().cpu().double()


def _writes(
    model: ReplacementModel, layer: int, below: int, ids: Int[Tensor, " feature"]
) -> Float[Tensor, "feature d_model"]:
    """What features add to the residual stream before the MLP of layer `below`, a unit of each."""
    adapter, sets = model.adapter, model.transcoders
    reach = layer + len(sets.layer(layer).decoders)
    total = torch.zeros(len(ids), adapter.d_model, dtype=adapter.dtype, device=adapter.device)
    for written in range(layer, min(reach, below)):
        rows = sets.decoder_rows(layer, written, ids, adapter.dtype).to(adapter.device)
        norm = adapter.blocks[written].post_mlp_norm
        if sets.write == "mlp.hook_out" and norm is not None:
            rows = norm.centre(rows) * norm.weight
        total += rows
    return total


def _reads(
    model: ReplacementModel, layer: int, ids: Int[Tensor, " feature"]
) -> Float[Tensor, "feature d_model"]:
    """How features read the residual stream, the norm's weight folded in and its denominator 1."""
    adapter, sets = model.adapter, model.transcoders
    rows = sets.encoder_rows(layer, ids, adapter.dtype)[0].to(adapter.device)
    norm = adapter.blocks[layer].mlp_norm
    if sets.read == "hook_resid_mid" or norm is None:
        return rows
    return norm.centre(rows * norm.weight if sets.read == "mlp.hook_in" else rows)


def _known(values: Float[Tensor, " feature"] | None, place: int) -> float | None:
    return None if values is None or bool(values[place].isnan()) else float(values[place])


def _size(model: ReplacementModel, layer: int) -> int:
    return len(model.transcoders.layer(layer).encoder)


def _id(model: ReplacementModel, feature: Feature) -> int:
    """The id of a feature. Raises InputError where there is none."""
    layer, number = feature
    if not 0 <= layer < model.adapter.n_layers:
        raise InputError(f"there is no layer {layer}; layers are 0 to {model.adapter.n_layers - 1}")
    if not 0 <= number < _size(model, layer):
        raise InputError(
            f"layer {layer} has no feature {number}; they are 0 to {_size(model, layer) - 1}"
        )
    return number


def _check_below(source: Feature, target: Feature) -> None:
    if source[0] >= target[0]:
        raise InputError(
            f"a feature of layer {source[0]} does nothing to one of layer {target[0]}: the source "
            "must be in a lower layer than the target"
        )
