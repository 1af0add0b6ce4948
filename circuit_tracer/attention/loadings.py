"""Head loadings: which attention heads carry an edge.

An edge is a sum over paths from what the source writes to what the target reads, each going
straight along the residual stream or through a head at every layer between. Sorted by the first
head they meet on the way down from the target, all paths fall into one part a head, and what meets
none, the residual part:

    edge = residual + sum over layers l, heads h of  loading[l, h]

    loading[l, h] = sum over k of  pattern_h[p_t, k] (g_l · O_h V_h x_l[k])

with g_l the target's gradient come straight down to layer l, and x_l[k] what the source causes in
the residual stream before layer l, by any path. The source is carried up once, the gradient down
once, and they meet in every head: no head needs a pass of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from circuit_tracer.attention.ends import (
    Prompt,
    Source,
    SourceName,
    Target,
    TargetName,
    find_source,
    find_target,
    localise,
)
from circuit_tracer.errors import InputError
from circuit_tracer.graph import Graph
from circuit_tracer.local import Local
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Float, Tensor


@dataclass(frozen=True, eq=False)
class HeadLoadings:
    """An edge, split over attention heads.

    Tensors are float64 and have one row a layer of the model, zero where the edge does not pass.
    `residual + by_head.sum()` is `edge`; `residual + one_hop.sum() + multi_hop` as well.

    Attributes:
        source, target: node ids.
        edge: the whole edge, carried from source to target in one piece.
        residual: the part that meets no head: along the residual stream, and through skips where
            the transcoders have them. Zero between different positions.
        by_head: (L, H) the part whose last head before the target is this one.
        by_key: (L, H, P) the same by the position that head looks at.
        one_hop: (L, H) of that, what meets no other head below.
        tokens: the prompt, token by token.
    """

    source: str
    target: str
    edge: float
    residual: float
    by_head: Float[Tensor, "layer head"]
    by_key: Float[Tensor, "layer head position"]
    one_hop: Float[Tensor, "layer head"]
    tokens: tuple[str, ...]

    @property
    def attention(self) -> float:
        """The part of the edge that heads carry."""
        return float(self.by_head.sum())

    @property
    def multi_hop(self) -> float:
        """The part that passes two heads or more."""
        return self.attention - float(self.one_hop.sum())

    @property
    def by_layer(self) -> Float[Tensor, " layer"]:
        """(L,) heads of each layer together."""
        return self.by_head.sum(1)

    @property
    def error(self) -> float:
        """What rounding leaves between the edge and the sum of its parts."""
        return self.residual + self.attention - self.edge

    def strongest(self, k: int = 10) -> list[tuple[int, int]]:
        """(layer, head) by size of their loading, largest first; none that carry nothing."""
        order = self.by_head.abs().flatten().argsort(descending=True, stable=True)[:k]
        pairs = [divmod(place, self.by_head.shape[1]) for place in order.tolist()]
        return [(layer, head) for layer, head in pairs if self.by_head[layer, head] != 0]

    def to_plain(self, k: int = 10) -> dict[str, Any]:
        """The edge and its k strongest heads as plain JSON values."""
        names = ("source", "target", "edge", "residual", "attention", "multi_hop", "error")
        return {name: getattr(self, name) for name in names} | {
            "heads": [
                {
                    "layer": layer,
                    "head": head,
                    "loading": float(self.by_head[layer, head]),
                    "one_hop": float(self.one_hop[layer, head]),
                    "looks_at": self.looks_at(layer, head),
                }
                for layer, head in self.strongest(k)
            ]
        }

    def looks_at(self, layer: int, head: int) -> int:
        """The position from which a head carries most of its loading."""
        return int(self.by_key[layer, head].abs().argmax())

    def table(self, k: int = 10) -> str:
        """The strongest k heads as text: loading, share of the edge, and where they look."""
        lines = [
            f"{self.source} → {self.target}: {self.edge:+.4g}",
            f"  residual {self._amount(self.residual)}, heads {self._amount(self.attention)}: "
            f"one hop {self.attention - self.multi_hop:+.4g}, more {self.multi_hop:+.4g}",
        ]
        shown = self.strongest(k)
        if shown:
            lines.append(f"  {'head':>7} {'loading':>11} {'of edge':>9} {'one hop':>11}  looks at")
        for layer, head in shown:
            value = float(self.by_head[layer, head])
            key = self.looks_at(layer, head)
            lines.append(
                f"  {f'{layer}.{head}':>7} {value:>+11.4g} {self._share(value):>9} "
                f"{float(self.one_hop[layer, head]):>+11.4g}  {self.tokens[key]!r}@{key}"
            )
        rest = self.attention - sum(float(self.by_head[place]) for place in shown)
        if len(shown) < int((self.by_head != 0).sum()):
            lines.append(f"  {'rest':>7} {rest:>+11.4g} {self._share(rest):>9}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def _amount(self, value: float) -> str:
        return f"{value:+.4g} ({self._share(value)})"

    def _share(self, value: float) -> str:
        return f"{100 * value / self.edge:.1f} %" if self.edge else "–"


@dataclass(frozen=True, eq=False)
class PathLoadings:
    """Head loadings of every edge of a path, in the direction of the flow."""

    edges: tuple[HeadLoadings, ...]

    @property
    def by_layer(self) -> Float[Tensor, "edge layer"]:
        """(edges, L) what the heads of each layer carry of each edge."""
        return torch.stack([edge.by_layer for edge in self.edges])

    @property
    def residual(self) -> Float[Tensor, " edge"]:
        """(edges,) what no head carries of each edge."""
        return torch.tensor([edge.residual for edge in self.edges], dtype=torch.float64)

    def table(self, k: int = 3) -> str:
        """The strongest k heads of every edge as text."""
        return "\n".join(edge.table(k) for edge in self.edges)

    def __str__(self) -> str:
        return self.table()


def heads(
    model: ReplacementModel, prompt: Prompt, source: SourceName, target: TargetName
) -> HeadLoadings:
    """Split one edge over the attention heads that carry it.

    Args:
        prompt: text or token ids, a `Graph` of this model (its prompt and ignored positions are
            taken), or a `Local`, which spares the forward pass.
        source: a feature, error or embedding, as a `Node` or its id.
        target: a feature or an output token (`"9_91_5"` in a model of 8 layers), or anything
            else that `trace` takes as a target.

    Raises:
        InputError: a node that is not there, with the nearest that are; or two between which no
            edge can be.

    Example:
        >>> loadings = heads(model, graph, "1_417_3", "4_29_5")
        >>> print(loadings.table(5))
    """
    local, graph = localise(model, prompt), prompt if isinstance(prompt, Graph) else None
    end = find_target(model, local, target, graph)
    return _loadings(model, local, find_source(local, source), end)


def path_heads(
    model: ReplacementModel, prompt: Prompt, nodes: Sequence[TargetName]
) -> PathLoadings:
    """Head loadings of every edge of a path.

    Args:
        prompt: as for `heads`.
        nodes: at least two, in the direction of the flow (`Path.nodes` of a circuit is).

    Raises:
        InputError: fewer than two nodes, or as for `heads`.
    """
    if len(nodes) < 2:
        raise InputError(f"a path has at least two nodes; this one has {len(nodes)}")
    local, graph = localise(model, prompt), prompt if isinstance(prompt, Graph) else None
    ends = [find_target(model, local, node, graph) for node in nodes[1:]]
    starts = [find_source(local, node) for node in nodes[:-1]]
    return PathLoadings(
        tuple(_loadings(model, local, *pair) for pair in zip(starts, ends, strict=True))
    )


def _loadings(model: ReplacementModel, local: Local, start: Source, end: Target) -> HeadLoadings:
    if end.layer <= start.layer or end.position < start.position:
        raise InputError(
            f"no edge leads from {start.id} to {end.id}: a target reads from lower layers at its "
            f"own and earlier positions; this one is at layer {end.layer}, position "
            f"{end.position}, the source at layer {start.layer}, position {start.position}"
        )
    with torch.no_grad():
        return _Meeting(local, start, end).loadings(
            tuple(model.token_text(token) for token in local.forward.token_ids.tolist())
        )


class _Meeting:
    """One source carried up, one target carried down.

    Only `span`, the positions from the source's to the target's, is carried: outside it there is
    nothing on one side or the other.
    """

    def __init__(self, local: Local, start: Source, end: Target):
        self.local, self.start, self.end = local, start, end
        self.adapter = local.adapter
        self.span = slice(start.position, end.position + 1)
        # A feature reads behind the attention of its block, in a parallel block before it.
        inside = end.layer < local.n_layers and not self.adapter.parallel
        self.layers = range(max(start.layer, 0), end.layer + inside)
        self.skips = {layer: local.skip_map(layer) for layer in self.layers if layer < end.layer}

    def loadings(self, tokens: tuple[str, ...]) -> HeadLoadings:
        """Let the two meet in every head."""
        local, end = self.local, self.end
        shape = (local.n_layers, self.adapter.heads, local.n_positions)
        by_key = torch.zeros(shape, dtype=torch.float64)
        one_hop = torch.zeros(shape[:2], dtype=torch.float64)
        gradients, residual = self.down()
        below, last = self.up(end.position + 1 - self.start.position, attend=True)
        straight, _ = self.up(1, attend=False)
        for layer in self.layers:
            read = self.adapter.blocks[layer].output @ gradients[layer]
            pattern = local.patterns[layer][:, end.position, self.span]
            loading = pattern * torch.einsum("khc,hc->hk", self.values(layer, below[layer]), read)
            by_key[layer, :, self.span] = loading.cpu().double()
            alone = torch.einsum("khc,hc->h", self.values(layer, straight[layer]), read)
            one_hop[layer] = (pattern[:, 0] * alone).cpu().double()
        return HeadLoadings(
            source=self.start.id,
            target=end.id,
            edge=_product(last[-1], end.reads),
            residual=residual,
            by_head=by_key.sum(-1),
            by_key=by_key,
            one_hop=one_hop,
            tokens=tokens,
        )

    def values(self, layer: int, x: Tensor) -> Float[Tensor, "key head head_dim"]:
        """What the heads of a layer read, norm scales aside (they are in the patterns)."""
        read = torch.einsum("kd,dgc->kgc", x, self.adapter.blocks[layer].value)
        return read.repeat_interleave(self.adapter.heads // self.adapter.kv_heads, dim=1)

    def up(self, size: int, attend: bool) -> tuple[dict[int, Tensor], Tensor]:
        """The source's effect on the residual stream at `size` positions from its own on.

        Returns:
            (layer → before its attention, where the target reads), each (size, d_model).
        """
        x = self.local.errors.new_zeros(size, self.adapter.d_model)
        x[0] += self.start.writes.get(-1, 0.0)
        before = {}
        for layer in self.layers:
            before[layer] = x
            mixed = x + self.attend(layer, x) if attend else x
            if layer == self.end.layer:
                return before, mixed
            through = self.skip(layer, x if self.adapter.parallel else mixed)
            x = mixed + through
            x[0] += self.start.writes.get(layer, 0.0)
        return before, x

    def attend(self, layer: int, x: Tensor) -> Float[Tensor, "query d_model"]:
        """All heads of a layer together."""
        pattern = self.local.patterns[layer][:, self.span, self.span]
        mixed = torch.einsum("hqk,khc->qhc", pattern, self.values(layer, x))
        return torch.einsum("qhc,hcd->qd", mixed, self.adapter.blocks[layer].output)

    def skip(self, layer: int, x: Tensor) -> Tensor | float:
        """What passes through the skip of a layer."""
        if (skip := self.skips[layer]) is None:
            return 0.0
        return self.local.skip_scale(layer)[self.span][: len(x), None] * (x @ skip.T)

    def down(self) -> tuple[dict[int, Tensor], float]:
        """The target's gradient on its way straight down.

        Returns:
            (layer → (d_model,) at its attention's output, the edge's residual part).
        """
        met, gradient, residual = {}, self.end.reads, 0.0
        writes = self.start.writes if self.start.position == self.end.position else {}
        for layer in reversed(self.layers):
            met[layer] = gradient
            if layer == self.end.layer:
                continue
            if layer in writes:
                residual += _product(writes[layer], gradient)
            if (skip := self.skips[layer]) is not None:
                scale = self.local.skip_scale(layer)[self.end.position]
                gradient = gradient + scale * (skip.T @ gradient)
            if not self.adapter.parallel:
                met[layer] = gradient
        if -1 in writes:
            residual += _product(writes[-1], gradient)
        return met, residual


def _product(a: Float[Tensor, " d_model"], b: Float[Tensor, " d_model"]) -> float:
    return float(a.cpu().double() @ b.cpu().double())
