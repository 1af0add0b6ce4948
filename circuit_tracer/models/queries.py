"""What one head compares, as affine maps of the residual stream.

Before the softmax a head scores a pair of positions by `scaling * query · key`. With the norms'
denominators frozen, either vector is affine in the residual stream before the block:

    query = R_q diag(s w) (W_Q x + b_Q)        key = R_k diag(s' w') (W_K x + b_K)

with R the rotary positions and s, w the norm on queries where there is one. R is what the model's
own rotary function makes of unit vectors, so any kind of it will do (partial, scaled, none). What
the maps give is checked against the vectors that the model computed: a family that does something
else gets an error and no numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from circuit_tracer.errors import ModelError
from circuit_tracer.models.adapter import Adapter, Projection
from circuit_tracer.models.attention import Compared, watched
from circuit_tracer.shapes import Float, Int, Tensor


@dataclass(frozen=True, eq=False)
class Reading:
    """How a head reads one position: `matrix @ x + constant`, x the residual before the block.

    Attributes:
        value: that vector as the model computed it.
    """

    matrix: Float[Tensor, "head_dim d_model"]
    constant: Float[Tensor, " head_dim"]
    value: Float[Tensor, " head_dim"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """One head at one pair of positions.

    Attributes:
        query, key: how it reads the two.
        scaling: multiplies their product.
        softcap: squashes the score before the softmax; None for most families.
        pattern: the attention this pair got.
    """

    query: Reading
    key: Reading
    scaling: float
    softcap: float | None
    pattern: float

    @property
    def score(self) -> float:
        """As the model computed it, before any softcap, mask and softmax."""
        query, key = (side.value.cpu().double() for side in (self.query, self.key))
        return self.scaling * float(query @ key)


def compare(
    seen: Seen,
    head: int,
    positions: tuple[int, int],
    scales: Float[Tensor, " position"] | None,
) -> Comparison:
    """What one head of a layer compares at (query, key).

    Whoever puts the vectors together from these maps has them `check`ed.

    Args:
        seen: the layer's attention, run on the prompt.
        head: of grouped heads, the query head.
        positions: (query, key).
        scales: (P,) of the attention norm, as the pass to be explained had them; None without one.
    """
    adapter, layer = seen.adapter, seen.layer
    compared, patterns = seen.compared, seen.patterns
    key_head = head // (adapter.heads // adapter.kv_heads)
    sides = (
        (seen.query, head, compared.query[head], positions[0], 0),
        (seen.key, key_head, compared.key[key_head], positions[1], 1),
    )
    readings: list[Reading] = []
    for projection, number, values, position, which in sides:
        raw = seen.outputs[projection.module][position].to(adapter.device, adapter.dtype)
        weight, bias, before = _normed(projection, number, raw[projection.outputs])
        if scales is not None:
            weight = weight * scales[position]
        value = values[position].to(weight)
        turn = _rotary(adapter, layer, seen.rotary, position, which)
        # Some models hand rotary positions to layers that leave them aside: see what came out.
        if turn is not None and (turn @ before - value).norm() < (before - value).norm():
            weight, bias = turn @ weight, turn @ bias
        readings.append(Reading(weight, bias, value))
    pattern = float(patterns[head, positions[0], positions[1]])
    return Comparison(readings[0], readings[1], compared.scaling, compared.softcap, pattern)


class Seen:
    """What the attention of one layer was given and computed in a prompt; `watch` makes it."""

    compared: Compared
    patterns: Float[Tensor, "head query key"]

    def __init__(self, adapter: Adapter, layer: int):
        self.adapter, self.layer = adapter, layer
        self.attention = adapter.blocks[layer].attention
        self.query, self.key = adapter.query(layer), adapter.key(layer)
        self.outputs: dict[Any, Tensor] = {}
        self.rotary: tuple[Tensor, Tensor] | None = None

    def listen(self, stack: ExitStack) -> None:
        """Look on until the stack is closed."""
        for module in {self.query.module, self.key.module}:
            stack.callback(module.register_forward_hook(self._keep).remove)
        before = self.attention.register_forward_pre_hook(self._positions, with_kwargs=True)
        stack.callback(before.remove)

    def _keep(self, module: Any, _args: tuple, output: Tensor) -> None:
        self.outputs[module] = output[0]

    def _positions(self, _module: Any, _args: tuple, kwargs: dict) -> None:
        self.rotary = kwargs.get("position_embeddings")


def watch(
    adapter: Adapter, layers: Iterable[int], token_ids: Int[Tensor, " position"]
) -> dict[int, Seen]:
    """What the attention of some layers does in a prompt, by layer. One forward pass."""
    seen = {layer: Seen(adapter, layer) for layer in layers}
    compared: dict[int, Compared] = {}
    with ExitStack() as stack, torch.no_grad():
        for one in seen.values():
            one.listen(stack)
        patterns = stack.enter_context(watched(adapter.model, compared))
        adapter.model(input_ids=token_ids[None].to(adapter.device), use_cache=False)
    for one in seen.values():
        one.compared, one.patterns = compared[id(one.attention)], patterns[id(one.attention)]
    return seen


def _normed(projection: Projection, head: int, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(weight, bias, value) of one head behind the norm on queries or keys, denominator frozen.

    `raw` is what the projection gave, (heads, head_dim).
    """
    weight, bias, norm = projection.weight[head], projection.bias[head], projection.norm
    if norm is None:
        return weight, bias, raw[head]
    wide = len(norm.weight) != len(bias)
    if wide:
        weight, bias = projection.weight.flatten(0, 1), projection.bias.flatten()
    value = raw.flatten() if wide else raw[head]
    scale = norm.weight * norm.scale(value).to(weight)
    added = 0 if norm.bias is None else norm.bias
    weight = norm.centre(weight.T).T * scale[:, None]
    bias, value = (norm.centre(x) * scale + added for x in (bias, value))
    if wide:
        weight = weight.view_as(projection.weight)[head]
        bias, value = (x.view_as(projection.bias)[head] for x in (bias, value))
    return weight, bias, value


def _rotary(
    adapter: Adapter, layer: int, rotary: tuple[Tensor, Tensor] | None, position: int, which: int
) -> Float[Tensor, "head_dim head_dim"] | None:
    """The turn of queries (`which` = 0) or keys (1) at a position; None where there is none."""
    module = sys.modules[type(adapter.blocks[layer].attention).__module__]
    apply = getattr(module, "apply_rotary_pos_emb", None)
    if rotary is None or apply is None:
        return None
    cos, sin = (x[:, position : position + 1] for x in rotary)
    units = torch.eye(adapter.head_dim, dtype=cos.dtype, device=cos.device)[None, :, None]
    return apply(units, units, cos, sin)[which][0, :, 0].T.to(adapter.device, adapter.dtype)


def check(reading: Reading, found: Float[Tensor, " head_dim"], adapter: Adapter, what: str) -> None:
    """Raise ModelError unless a vector put together from its parts is what the model computed."""
    allowed = torch.finfo(adapter.model.dtype).eps ** 0.5 * float(reading.value.norm())
    if not float((found - reading.value).norm()) <= allowed:
        raise ModelError(
            f"the {what} of a head of {adapter.name} is not what its projection, norm and rotary "
            f"positions give ({float((found - reading.value).norm()):.2g} off, of "
            f"{float(reading.value.norm()):.2g}), so its score cannot be taken apart. "
            f"The {adapter.family.name} entry in circuit_tracer/models/families.py lacks something."
        )
