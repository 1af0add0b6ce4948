"""THE MATHS (1): edge rows of some targets, by carrying their read vectors down the layers.

Between the sites of a local replacement model everything is linear, so what a target reads at any
site below it is one tensor, its gradient there, and an edge is that gradient times what a source
writes. Nothing is differentiated: each step down is written out.

    MLP site of layer j    edges to the features that write at j, and to the error there;
                           bias and ignored-position terms; through the skip where there is one
    attention of layer j   g[k] += Σ_heads Σ_q pattern[q, k] · value^T output^T g[q]

The gradient is kept as (position, d_model, target): every product then runs on contiguous memory,
per position, with the targets innermost. Three things make it cheap. A target reads at one
position, so its first attention step costs one small product, not one a position. A target at
position p has a gradient at positions ≤ p only. And the attention of layer 0 is never applied to
gradients: only embeddings lie below it, and those few are carried up through it instead, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from circuit_tracer.edges import RowBlock
from circuit_tracer.local import Local
from circuit_tracer.nodes import NodeIndex
from circuit_tracer.shapes import Float, Int, Tensor

CARRY_UP_ELEMENTS = 1 << 25


@dataclass(frozen=True, eq=False)
class Group:
    """Targets that share a site: rows of the graph, and how they read the residual stream there.

    Attributes:
        position: where they read.
        rows: (targets,) node rows.
        reads: (targets, d_model) read vectors.
        bias, value: (targets,) their own bias term, and the value the row must add up to.
    """

    position: int
    rows: Int[Tensor, " target"]
    reads: Float[Tensor, "target d_model"]
    bias: Float[Tensor, " target"]
    value: Float[Tensor, " target"]


@dataclass(frozen=True, eq=False)
class Terms:
    """What closes some rows: (targets,) each, aligned with `rows`."""

    rows: Int[Tensor, " target"]
    bias: Float[Tensor, " target"]
    positional: Float[Tensor, " target"]
    ignored: Float[Tensor, " target"]
    value: Float[Tensor, " target"]


class Sweep:
    """Carries targets down one prompt's local replacement model.

    Args:
        local: the prompt.
        index: node order of the graph being made, targets included.
        edge_rows: the edge-rows kernel.
    """

    def __init__(self, local: Local, index: NodeIndex, edge_rows: Callable[..., None]):
        self.local, self.index, self.edge_rows = local, index, edge_rows
        self.adapter = local.adapter
        self.layers, self.width = local.n_layers, local.adapter.d_model
        self.groups = self.adapter.heads // self.adapter.kv_heads
        self._buffers: dict[str, Tensor] = {}
        self.skips = [local.skip_map(layer) for layer in range(self.layers)]
        # Without skips the gradient is the same before and after an MLP: one product serves both.
        self.fused = all(skip is None for skip in self.skips)
        self.starts = [index.starts(layer) for layer in range(self.layers)]
        self.terms = torch.stack([local.constants, local.ignored], dim=1)
        if self.fused:
            self.terms[:, 0] += local.attention_constants
        self.parallel = local.adapter.parallel
        elements = local.n_positions**2 * self.width
        # A skip beside a parallel attention of layer 0 would be a second way up.
        self.carries_up = elements <= CARRY_UP_ELEMENTS and (self.fused or not self.parallel)
        if self.carries_up:
            self._carry_embeddings_up()

    def buffer(self, name: str, *shape: int) -> Tensor:
        """A reused buffer; its content is whatever was there."""
        size = int(torch.Size(shape).numel())
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = self.local.errors.new_empty(size)
        return self._buffers[name][:size].view(shape)

    def weights(self, layer: int) -> tuple[Tensor, Tensor]:
        """Attention weights as gradients meet them: (heads · head_dim, d_model) of the output,
        (d_model, kv_heads · head_dim) of the value."""
        block = self.adapter.blocks[layer]
        return block.output.view(-1, self.width), block.value.view(self.width, -1)

    def _carry_embeddings_up(self) -> None:
        """What each embedding (and position embedding) adds to each position after attention 0."""
        tokens, positional = self.local.forward.tokens, self.local.forward.positional
        heads = self._read_heads(0, torch.stack([tokens, positional]))
        pattern = self.local.patterns[0]
        output = self.adapter.blocks[0].output
        written = torch.einsum("skhc,hcd->shkd", heads, output)
        self.embedded = torch.einsum("hqk,hkd->qkd", pattern, written[0])
        self.embedded.diagonal(dim1=0, dim2=1).add_(tokens.T)
        self.placed = positional + torch.einsum("hqk,hkd->qd", pattern, written[1])

    def _read_heads(self, layer: int, x: Tensor) -> Float[Tensor, "stack key head head_dim"]:
        """What each head reads of residual vectors, without norm scales (those are in patterns)."""
        read = torch.einsum("skd,dhc->skhc", x, self.adapter.blocks[layer].value)
        return read.repeat_interleave(self.groups, dim=2)

    def rows(self, layer: int, groups: Sequence[Group]) -> tuple[list[RowBlock], Terms]:
        """Edge rows of the targets of one layer (`n_layers` for logits), positions ascending."""
        chunk = _Chunk(self, layer, groups)
        if layer == self.layers or self.parallel:
            chunk.from_above(layer - 1)
        else:
            chunk.attention_constant_at_points(layer)
            chunk.from_attention(layer)
        return chunk.blocks(), chunk.terms()


class _Chunk:
    """A few groups of one layer, on their way down together."""

    def __init__(self, sweep: Sweep, layer: int, groups: Sequence[Group]):
        self.sweep, self.layer, self.groups = sweep, layer, groups
        self.local, self.adapter = sweep.local, sweep.adapter
        self.span = groups[-1].position + 1
        sizes = torch.tensor([0, *(len(group.rows) for group in groups)]).cumsum(0).tolist()
        self.slices = [slice(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
        self.targets = sizes[-1]
        self.columns = sweep.index.cone(layer, groups[-1].position)
        self.out = sweep.buffer("out", len(self.columns), self.targets).zero_()
        self.points = [group.reads.T for group in groups]
        self.gradient: Tensor
        self.past = [torch.zeros_like(point) for point in self.points] if sweep.parallel else []
        self.beside: Tensor | None = None
        self.sums = self.out.new_zeros(3, self.targets)  # bias, ignored, positional

    def _feature_slice(self, layer: int, first: int = 0, stop: int | None = None) -> slice:
        """Where the features of a layer stand in `out`."""
        rows = self.sweep.index.feature_rows(layer, first, self.span if stop is None else stop)
        offset = self._offset(layer) - self.sweep.index.feature_rows(layer).start
        return slice(rows.start + offset, rows.stop + offset)

    def _offset(self, layer: int) -> int:
        rows = self.sweep.index.feature_rows
        return sum(len(rows(below, 0, self.span)) for below in range(layer))

    def _error_slice(self, layer: int) -> slice:
        start = self._offset(self.layer) + layer * self.span
        return slice(start, start + self.span)

    @property
    def _embedding_rows(self) -> Tensor:
        return self.out[len(self.out) - self.span :]

    def from_above(self, layer: int) -> None:
        """All the way down for targets that read the residual stream after block `layer`."""
        if layer < 0:
            self.embeddings_below_points()
            return
        self.mlp_at_points(layer)
        if not self.sweep.fused:
            self.attention_constant_at_points(layer)
        self.from_attention(layer)

    def from_attention(self, layer: int) -> None:
        """All the way down from above the attention of block `layer`."""
        up = self.sweep.carries_up
        if layer == 0 and up:
            self.embeddings_at_points()
            return
        self.attention_from_points(layer)
        for below in reversed(range(layer)):
            self.mlp(below)
            if below > 0 or not up:
                self.attention(below)
        if up:
            self.embeddings_through_attention()
        else:
            self.embeddings()

    # At the points where the targets read.

    def mlp_at_points(self, layer: int) -> None:
        """Edges to the sources of one layer at each target's own position."""
        local = self.local
        skip = self.sweep.skips[layer]
        for number, (group, part) in enumerate(zip(self.groups, self.slices, strict=True)):
            p, point = group.position, self.points[number]
            for source in local.transcoders.writers(layer):
                rows = self.sweep.index.feature_rows(source, p, p + 1)
                first = self.sweep.index.feature_rows(source).start
                writes = local.writes(source, layer)[rows.start - first : rows.stop - first]
                self.out[self._feature_slice(source, p, p + 1), part] += writes @ point
            self.out[self._error_slice(layer)][p, part] += local.errors[layer, p] @ point
            self.sums[:2, part] += self.sweep.terms[layer, :, p] @ point
            if skip is not None:
                self.sums[0, part] += local.skip_constant(layer)[p] @ point
                through = local.skip_scale(layer)[p] * (skip.T @ point)
                if self.sweep.parallel:
                    self.past[number] = through
                else:
                    self.points[number] = point + through

    def attention_constant_at_points(self, layer: int) -> None:
        for group, part, point in zip(self.groups, self.slices, self.points, strict=True):
            self.sums[0, part] += self.local.attention_constants[layer, group.position] @ point

    def attention_from_points(self, layer: int) -> None:
        """First attention step: from one position a target to all positions up to it."""
        (output, value), pattern = self.sweep.weights(layer), self.local.patterns[layer]
        heads, kv, size = self.adapter.heads, self.adapter.kv_heads, self.adapter.head_dim
        value = value.view(-1, kv, 1, size).permute(1, 2, 0, 3)
        shape = (self.span, self.sweep.width, self.targets)
        self.gradient = self.sweep.buffer("gradient", *shape)
        if len(self.groups) > 1:
            self.gradient.zero_()
        for number, (group, part) in enumerate(zip(self.groups, self.slices, strict=True)):
            p, point = group.position, self.points[number]
            read = (output @ point).view(kv, self.sweep.groups, size, -1)
            read = torch.matmul(value, read).view(heads, -1)
            weights = pattern[:, p, : p + 1].T
            if len(self.groups) == 1:
                torch.mm(weights, read, out=self.gradient.view(self.span, -1))
            else:
                spread = (weights @ read).view(p + 1, *point.shape)
                self.gradient[: p + 1, :, part] = spread
            self.gradient[p, :, part] += point + self.past[number] if self.past else point

    def embeddings_at_points(self) -> None:
        """Edges to embeddings of targets that sit right above the attention of layer 0."""
        for group, part, point in zip(self.groups, self.slices, self.points, strict=True):
            p = group.position
            self._embedding_rows[: p + 1, part] += self.sweep.embedded[p, : p + 1] @ point
            self.sums[2, part] += self.sweep.placed[p] @ point

    def embeddings_below_points(self) -> None:
        """Edges to embeddings of targets that read the embeddings themselves."""
        forward = self.local.forward
        for group, part, point in zip(self.groups, self.slices, self.points, strict=True):
            self._embedding_rows[group.position, part] += forward.tokens[group.position] @ point
            self.sums[2, part] += forward.positional[group.position] @ point

    # At every position.

    def mlp(self, layer: int) -> None:
        """Edges to the sources of one layer, and through its skip."""
        local, gradient = self.local, self.gradient
        for source in local.transcoders.writers(layer):
            starts = self.sweep.starts[source][: self.span + 1]
            writes = local.writes(source, layer)[: starts[-1]]
            self.sweep.edge_rows(gradient, writes, starts, self.out[self._feature_slice(source)])
        errors = local.errors[layer, : self.span, None]
        self.out[self._error_slice(layer)] += torch.bmm(errors, gradient)[:, 0]
        terms = self.sweep.terms[layer, :, : self.span].reshape(2, -1)
        self.sums[:2] += terms @ gradient.reshape(-1, self.targets)
        if (skip := self.sweep.skips[layer]) is not None:
            added = local.skip_constant(layer)[: self.span].reshape(-1)
            self.sums[0] += added @ gradient.reshape(-1, self.targets)
            scale = local.skip_scale(layer)[: self.span, None, None]
            through = scale * torch.matmul(skip.T, gradient)
            if self.sweep.parallel:
                self.beside = through
            else:
                gradient += through
        if not self.sweep.fused:
            constant = local.attention_constants[layer, : self.span].reshape(-1)
            self.sums[0] += constant @ gradient.reshape(-1, self.targets)

    def attention(self, layer: int) -> None:
        """One frozen attention step, in place: three matrix products."""
        (output, value), span, targets = self.sweep.weights(layer), self.span, self.targets
        heads, kv = self.adapter.heads, self.adapter.kv_heads
        size = self.adapter.head_dim
        read = self.sweep.buffer("heads", span, heads * size, targets)
        torch.bmm(output.expand(span, -1, -1), self.gradient, out=read)
        by_head = read.view(span, kv, self.sweep.groups, size * targets)
        mixed = self.sweep.buffer("mixed", span, kv, size * targets)
        pattern = self.local.patterns[layer][:, :span, :span].transpose(1, 2)
        pattern = pattern.view(kv, self.sweep.groups, *pattern.shape[1:])
        for member in range(self.sweep.groups):
            part = by_head[:, :, member].transpose(0, 1)
            into = mixed.transpose(0, 1)
            torch.baddbmm(into, pattern[:, member], part, beta=float(member > 0), out=into)
        flat = mixed.view(span, kv * size, targets)
        self.gradient.baddbmm_(value.expand(span, -1, -1), flat)
        if self.beside is not None:
            self.gradient += self.beside
            self.beside = None

    def embeddings_through_attention(self) -> None:
        """Edges to embeddings from above the attention of layer 0, which they were carried up."""
        below = self._embedding_rows
        for position in range(self.span):
            carried = self.sweep.embedded[position, : position + 1]
            below[: position + 1].addmm_(carried, self.gradient[position])
        placed = self.sweep.placed[: self.span].reshape(-1)
        self.sums[2] += placed @ self.gradient.reshape(-1, self.targets)

    def embeddings(self) -> None:
        """Edges to embeddings from below the attention of layer 0."""
        tokens = self.local.forward.tokens[: self.span, None]
        self._embedding_rows.add_(torch.bmm(tokens, self.gradient)[:, 0])
        positional = self.local.forward.positional[: self.span].reshape(-1)
        self.sums[2] += positional @ self.gradient.reshape(-1, self.targets)

    # What came of it.

    def blocks(self) -> list[RowBlock]:
        """One block a group, each over its own cone."""
        blocks = []
        positions = self.sweep.index.positions[self.columns]
        for group, part in zip(self.groups, self.slices, strict=True):
            values = self.out[:, part]
            if group.position + 1 < self.span:
                values = values[(positions <= group.position).to(values.device)]
            values = values.T.clone(memory_format=torch.contiguous_format).cpu()
            blocks.append(RowBlock(self.layer, group.position, group.rows, values))
        return blocks

    def terms(self) -> Terms:
        bias = torch.cat([group.bias for group in self.groups]) + self.sums[0]
        return Terms(
            rows=torch.cat([group.rows for group in self.groups]),
            bias=bias.cpu(),
            positional=self.sums[2].cpu(),
            ignored=self.sums[1].cpu(),
            value=torch.cat([group.value for group in self.groups]).cpu(),
        )
