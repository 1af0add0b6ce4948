"""THE MATHS (1): edge rows of some targets, by carrying their read vectors down the layers.

Between the sites of a local replacement model everything is linear, so what a target reads at any
site below it is one tensor, its gradient there, and an edge is that gradient times what a source
writes. Nothing is differentiated: each step down is written out.

    MLP site of layer j    edges to the features that write at j, and to the error there;
                           bias and ignored-position terms; through the skip where there is one
    attention of layer j   g[k] += Σ_heads Σ_q pattern[q, k] · value^T output^T g[q]

The gradient is (position, d_model, target), and lies in memory target by target: what has joined is
contiguous, all positions of all targets are one matrix, and a step down is two wide products. Three
things make it cheap. A target reads at one position, so its first attention step costs one small
product, not one a position. A target at position p has a gradient at positions ≤ p only. And
gradients are met halfway: what lies below the attention of some layer, at least the embeddings
below layer 0's, is carried up through it once (`carried`), and no gradient goes down there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from circuit_kernels.choice import Choice, kernel
from circuit_kernels.precision import as_exact_as
from circuit_tracer import carried
from circuit_tracer.carried import Carried
from circuit_tracer.edges import RowBlock
from circuit_tracer.local import Local
from circuit_tracer.nodes import NodeIndex
from circuit_tracer.shapes import Float, Int, Tensor

CARRY_UP_ELEMENTS = 1 << 25


@dataclass(frozen=True, eq=False)
class Group:
    """Targets that share a site: rows of the graph, and how they read the residual stream there.

    Attributes:
        layer: their layer: they read before its MLP, the residual stream's end for `n_layers`.
        position: where they read.
        rows: (targets,) node rows.
        reads: (targets, d_model) read vectors.
        bias, value: (targets,) their own bias term, and the value the row must add up to.
        before_attention: they read before their layer's attention instead.
    """

    layer: int
    position: int
    rows: Int[Tensor, " target"]
    reads: Float[Tensor, "target d_model"]
    bias: Float[Tensor, " target"]
    value: Float[Tensor, " target"]
    before_attention: bool = False

    def part(self, which: slice) -> Group:
        """Some of these targets."""
        tensors = (self.rows, self.reads, self.bias, self.value)
        rows, reads, bias, value = (tensor[which] for tensor in tensors)
        return replace(self, rows=rows, reads=reads, bias=bias, value=value)


@dataclass(frozen=True, eq=False)
class Terms:
    """What closes some rows: (targets,) each, aligned with `rows`."""

    rows: Int[Tensor, " target"]
    bias: Float[Tensor, " target"]
    positional: Float[Tensor, " target"]
    ignored: Float[Tensor, " target"]
    value: Float[Tensor, " target"]

    def cpu(self) -> Terms:
        """The same in main memory."""
        return Terms(**{name: tensor.cpu() for name, tensor in vars(self).items()})


class Sweep:
    """Carries targets down one prompt's local replacement model.

    Args:
        local: the prompt.
        index: node order of the graph being made, targets included.
        kernels: "auto", "reference" or "triton".

    Raises:
        ValueError: kernels that cannot run here.
    """

    def __init__(self, local: Local, index: NodeIndex, kernels: Choice = "auto"):
        self.local, self.index = local, index
        device = local.errors.device
        self.edge_rows = kernel("edge_rows", kernels, device)
        self.attention_mix = kernel("attention_mix", kernels, device)
        self.adapter = local.adapter
        self.layers, self.width = local.n_layers, local.adapter.d_model
        self.groups = self.adapter.heads // self.adapter.kv_heads
        self._buffers: dict[str, Tensor] = {}
        self.skips = [local.skip_map(layer) for layer in range(self.layers)]
        # Without skips the gradient is the same before and after an MLP: one product serves both.
        self.fused = all(skip is None for skip in self.skips)
        self.starts = [index.starts(layer) for layer in range(self.layers)]
        # What every MLP site has one of a position: its error, and its bias and ignored terms.
        self.sites = torch.stack([local.errors, local.constants, local.ignored], dim=2)
        if self.fused:
            self.sites[:, :, 1] += local.attention_constants
        self.parallel = local.adapter.parallel
        elements = local.n_positions**2 * self.width
        self._carried: dict[int, Carried] = {}
        self._meetings: dict[int, int] = {}
        # A skip beside a parallel attention of layer 0 would be a second way up.
        self.carries_up = elements <= CARRY_UP_ELEMENTS and (self.fused or not self.parallel)

    def carried(self, layer: int) -> Carried:
        """What lies below the attention of a layer, carried up through it; made once."""
        if layer not in self._carried:
            with self.products():
                self._carried[layer] = carried.carry_up(self.local, self.index, layer)
        return self._carried[layer]

    def meeting(self, layer: int) -> int:
        """Where to meet when all features up to a layer are targets (`carried`)."""
        if not (self.fused and self.carries_up):
            return 0
        if layer not in self._meetings:
            starts = torch.tensor(self.starts[: layer + 1]).view(layer + 1, -1)
            cross_layer = self.local.transcoders.kind == "clt"
            counts = starts.diff(dim=1).double()
            self._meetings[layer] = carried.meeting(self.adapter, counts, cross_layer)
        return self._meetings[layer]

    def buffer(self, name: str, *shape: int) -> Tensor:
        """A reused buffer; its content is whatever was there."""
        size = int(torch.Size(shape).numel())
        if name not in self._buffers or self._buffers[name].numel() < size:
            # Main memory that is not touched is not taken: room to grow leaves no gaps behind.
            room = 2 if self.local.errors.device.type == "cpu" else 1
            self._buffers[name] = self.local.errors.new_empty(room * size)
        return self._buffers[name][:size].view(shape)

    def weights(self, layer: int) -> tuple[Tensor, Tensor]:
        """Attention weights as gradients meet them: (heads · head_dim, d_model) of the output,
        (d_model, kv_heads · head_dim) of the value."""
        block = self.adapter.blocks[layer]
        return block.output.view(-1, self.width), block.value.view(self.width, -1)

    def rows(self, groups: Sequence[Group]) -> tuple[list[RowBlock], Terms]:
        """Edge rows of some targets: by falling layer, rising position within a layer."""
        chunk = self.chunk(groups)
        blocks = [replace(block, values=block.values.cpu()) for block in chunk.blocks()]
        return blocks, chunk.terms().cpu()

    def chunk(self, groups: Sequence[Group], meet: int = 0) -> Chunk:
        """The same while still on the device; the next chunk overwrites it.

        Args:
            meet: the layer whose attention no gradient passes; what lies below comes up to it.
                No target may read below it, and only layer 0 will do where there are skips.
        """
        chunk = Chunk(self, groups, meet)
        with self.products():
            chunk.descend()
        return chunk

    def products(self) -> AbstractContextManager[None]:
        """Inside, float32 products are as exact as the model's own, or as torch was told."""
        return as_exact_as(self.adapter.model.dtype, self.local.errors.device)

    def entry(self, group: Group) -> tuple[int, bool]:
        """The first block whose attention lies below a group, and whether its MLP does too."""
        whole = self.parallel or group.before_attention or group.layer == self.layers
        return group.layer - whole, whole


class Chunk:
    """A few groups on their way down together: each joins where it reads.

    Columns of `out` and of the gradient are targets, in the order of the groups; those that have
    joined are always the first ones.
    """

    def __init__(self, sweep: Sweep, groups: Sequence[Group], meet: int):
        self.sweep, self.groups, self.meet = sweep, groups, meet
        self.local, self.adapter = sweep.local, sweep.adapter
        self.layer = max(group.layer for group in groups)
        self.span = max(group.position for group in groups) + 1
        sizes = torch.tensor([0, *(len(group.rows) for group in groups)]).cumsum(0).tolist()
        self.slices = [slice(a, b) for a, b in zip(sizes, sizes[1:], strict=False)]
        self.targets = 0
        self.columns = sweep.index.cone(self.layer, self.span - 1)
        below = [len(sweep.index.feature_rows(n, 0, self.span)) for n in range(self.layer)]
        self.offsets = list(accumulate(below, initial=0))
        self.all_out = sweep.buffer("out", sizes[-1], len(self.columns)).zero_().T
        self.all_gradients = sweep.buffer("gradient", sizes[-1], self.span, sweep.width)
        self.points = [group.reads for group in groups]
        self.past = [torch.zeros_like(point) for point in self.points] if sweep.parallel else []
        self.beside: Tensor | None = None
        self.all_sums = self.all_out.new_zeros(3, sizes[-1])  # bias, ignored, positional

    @property
    def out(self) -> Tensor:
        return self.all_out[:, : self.targets]

    @property
    def sums(self) -> Tensor:
        return self.all_sums[:, : self.targets]

    @property
    def gradient(self) -> Float[Tensor, "position d_model target"]:
        """Of the targets that have joined, above the site that comes next."""
        return self.joined.permute(1, 2, 0)

    @property
    def joined(self) -> Float[Tensor, "target position d_model"]:
        """The same as it lies in memory."""
        return self.all_gradients[: self.targets]

    def descend(self) -> None:
        """All the way down, block by block."""
        entries = [self.sweep.entry(group) for group in self.groups]
        up = self.sweep.carries_up
        for layer in reversed(range(entries[0][0] + 1)):
            joining = [number for number, entry in enumerate(entries) if entry[0] == layer]
            if self.targets:
                self.mlp(layer)
            for number in joining:
                if entries[number][1]:
                    self.mlp_at_point(layer, number)
                if not (entries[number][1] and self.sweep.fused):
                    self.attention_constant_at_point(layer, number)
            if layer == self.meet and up:
                break
            if self.targets:
                self.attention(layer)
            for number in joining:
                self.attention_from_point(layer, number)
        self.embeddings(entries)
        if up:
            self.met(entries)

    def _feature_slice(self, layer: int, first: int = 0, stop: int | None = None) -> slice:
        """Where the features of a layer stand in `out`."""
        rows = self.sweep.index.feature_rows(layer, first, self.span if stop is None else stop)
        offset = self.offsets[layer] - self.sweep.index.feature_rows(layer).start
        return slice(rows.start + offset, rows.stop + offset)

    def _error_slice(self, layer: int, stop: int | None = None) -> slice:
        """Where the errors of a layer stand in `out`."""
        start = self.offsets[-1] + layer * self.span
        return slice(start, start + (self.span if stop is None else stop))

    # At the points where the targets read.

    def mlp_at_point(self, layer: int, number: int) -> None:
        """Edges to the sources of one layer at a group's own position."""
        local, part = self.local, self.slices[number]
        p, point = self.groups[number].position, self.points[number]
        for source in local.transcoders.writers(layer):
            rows = self.sweep.index.feature_rows(source, p, p + 1)
            first = self.sweep.index.feature_rows(source).start
            writes = local.writes(source, layer)[rows.start - first : rows.stop - first]
            self.all_out[self._feature_slice(source, p, p + 1), part].addmm_(writes, point.T)
        found = self.sweep.sites[layer, p] @ point.T
        self.all_out[self._error_slice(layer)][p, part].add_(found[0])
        self.all_sums[:2, part].add_(found[1:])
        if (skip := self.sweep.skips[layer]) is not None:
            self.all_sums[0, part] += point @ local.skip_constant(layer)[p]
            through = local.skip_scale(layer)[p] * (point @ skip)
            if self.sweep.parallel:
                self.past[number] = through
            else:
                self.points[number] = point + through

    def attention_constant_at_point(self, layer: int, number: int) -> None:
        constant = self.local.attention_constants[layer, self.groups[number].position]
        self.all_sums[0, self.slices[number]] += self.points[number] @ constant

    def attention_from_point(self, layer: int, number: int) -> None:
        """First attention step: from one position a target to all positions up to it."""
        (output, value), pattern = self.sweep.weights(layer), self.local.patterns[layer]
        kv, size = self.adapter.kv_heads, self.adapter.head_dim
        p, point = self.groups[number].position, self.points[number]
        read = (point @ output.T).view(len(point), kv, self.sweep.groups, size).permute(1, 2, 0, 3)
        read = torch.matmul(read, value.view(-1, kv, 1, size).permute(1, 2, 3, 0)).flatten(0, 1)
        weights = pattern[:, p, : self.span].T.expand(len(point), -1, -1)
        into = self.all_gradients[self.slices[number]]
        torch.bmm(weights, read.transpose(0, 1), out=into)
        into[:, p].add_(point + self.past[number] if self.past else point)
        self.targets = self.slices[number].stop

    # At every position.

    def mlp(self, layer: int) -> None:
        """Edges to the sources of one layer, and through its skip."""
        local, gradient, out = self.local, self.gradient, self.out
        for source in local.transcoders.writers(layer):
            starts = self.sweep.starts[source][: self.span + 1]
            writes = local.writes(source, layer)[: starts[-1]]
            self.sweep.edge_rows(gradient, writes, starts, out[self._feature_slice(source)])
        found = torch.bmm(self.sweep.sites[layer, : self.span], gradient)
        out[self._error_slice(layer)].add_(found[:, 0])
        self.sums[:2].add_(found[:, 1:].sum(0))
        if (skip := self.sweep.skips[layer]) is not None:
            self._add_constant(local.skip_constant(layer))
            through = local.skip_scale(layer)[: self.span, None] * (self.joined @ skip)
            if self.sweep.parallel:
                self.beside = through
            else:
                self.joined.add_(through)
        if not self.sweep.fused:
            self._add_constant(local.attention_constants[layer])

    def _add_constant(self, vectors: Float[Tensor, "position d_model"]) -> None:
        """What these vectors add to every target, as part of its bias term."""
        self.sums[0] += torch.bmm(vectors[: self.span, None], self.gradient)[:, 0].sum(0)

    def attention(self, layer: int) -> None:
        """One frozen attention step, in place: three matrix products."""
        (output, value), pattern = self.sweep.weights(layer), self.local.patterns[layer]
        size, flat = self.adapter.head_dim, self.joined.flatten(0, 1)

        def by_position(heads: int, name: str) -> tuple[Tensor, Tensor]:
            """A matrix (heads · head_dim, target · position), and the same by position."""
            found = self.sweep.buffer(name, heads * size, len(flat))
            return found, found.view(heads, size * self.targets, self.span).permute(2, 0, 1)

        read, read_at = by_position(self.adapter.heads, "heads")
        mixed, mixed_at = by_position(self.adapter.kv_heads, "mixed")
        torch.mm(output, flat.T, out=read)
        self.sweep.attention_mix(read_at, pattern, mixed_at)
        flat.addmm_(mixed.T, value.T)
        if self.beside is not None:
            self.joined.add_(self.beside)
            self.beside = None

    def embeddings(self, entries: Sequence[tuple[int, bool]]) -> None:
        """Edges to embeddings, where nothing came up to meet the gradients."""
        below = self.all_out[len(self.all_out) - self.span :]
        tokens, placed = self.local.forward.tokens, self.local.forward.positional
        if self.targets and not self.sweep.carries_up:
            below[:, : self.targets] += torch.bmm(tokens[: self.span, None], self.gradient)[:, 0]
            self.sums[2] += torch.bmm(placed[: self.span, None], self.gradient)[:, 0].sum(0)
        for number, group in enumerate(self.groups):
            p, point, part = group.position, self.points[number], self.slices[number]
            if part.stop > self.targets and not self._meets(entries[number]):
                below[p, part] += point @ tokens[p]
                self.all_sums[2, part] += point @ placed[p]

    def _meets(self, entry: tuple[int, bool]) -> bool:
        """Whether a group comes in right where something came up to meet it."""
        return self.sweep.carries_up and entry[0] == self.meet

    def met(self, entries: Sequence[tuple[int, bool]]) -> None:
        """Edges to all that has been carried up to where gradients end, and its constants."""
        standing, rows = self.sweep.carried(self.meet)
        there = standing[self.span - 1]
        found = self.sweep.buffer("met", self.all_out.shape[1], len(there)).zero_().T
        if self.targets:
            for vectors, gradient in zip(standing, self.gradient, strict=False):
                found[: len(vectors), : self.targets].addmm_(vectors, gradient)
        for number, group in enumerate(self.groups):
            if self.slices[number].stop > self.targets and self._meets(entries[number]):
                vectors = standing[group.position]
                found[: len(vectors), self.slices[number]].addmm_(vectors, self.points[number].T)
        self.all_sums += found[:3]
        places = torch.searchsorted(self.columns, rows[: len(there) - 3])
        self.all_out.index_add_(0, places.to(found.device), found[3:])

    # What came of it.

    def blocks(self) -> Iterator[RowBlock]:
        """One block a group, each over its own cone, with values on the device."""
        positions = self.sweep.index.positions[self.columns]
        layers = self.sweep.index.layers[self.columns]
        for group, part in zip(self.groups, self.slices, strict=True):
            values = self.all_out[:, part].T
            if group.position + 1 < self.span or group.layer < self.layer:
                own = (positions <= group.position) & (layers < group.layer)
                values = values.index_select(1, own.nonzero()[:, 0].to(values.device))
            else:
                values = values.clone()
            yield RowBlock(group.layer, group.position, group.rows, values)

    def terms(self) -> Terms:
        bias = torch.cat([group.bias for group in self.groups]) + self.all_sums[0]
        return Terms(
            rows=torch.cat([group.rows for group in self.groups]),
            bias=bias,
            positional=self.all_sums[2],
            ignored=self.all_sums[1],
            value=torch.cat([group.value for group in self.groups]),
        )
