"""Several prompts of one length, attributed side by side.

A small model on short prompts waits for its many small operations more than for arithmetic. Prompts
of one length can share them: position t of prompt b stands at place t · B + b of B prompts, so that
up to a position all of them are one slice, and a prompt is every B-th place. Encoders, norms and
attention weights see places and need not know; an attention pattern is that of one more head a
prompt. So the local replacement model is one (`Side`), kernels are those of the sweep, and what is
carried down is (place, d_model, column): column c is the c-th target of every prompt at a position,
and a source's edges are read off at its own prompt's targets (THE MATHS (1), as `sweep` has it).

Every feature gets its row. Numbers agree with those of one prompt alone to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from circuit_kernels.choice import Choice, kernel
from circuit_kernels.precision import as_exact_as
from circuit_tracer import carried, memory
from circuit_tracer.edges import EdgeRows, RowBlock
from circuit_tracer.estimate import AUTO_SECONDS, CERTAIN, matrix_rate
from circuit_tracer.forward import Forward
from circuit_tracer.local import Local
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.nodes import NodeIndex
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.targets import Readout
from circuit_tracer.transcoders.base import TranscoderSet

COLUMNS = {"cpu": 256, "cuda": 1 << 16}
"""Columns that travel together at most."""
ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 28}
"""Elements (places × d_model × columns) that a gradient never goes beyond."""
COPIES = 6
"""Gradients' worth of room that a step down takes: gradient, points, what heads read and mix."""


class Side(Local):
    """The local replacement models of several prompts, place by place.

    Args:
        forward: of all of them (`forward.run_abreast`), patterns (prompts · heads, P, P).
        prompts: how many there are.
        ignored: positions of each.

    Attributes:
        ignored_by: by prompt, ascending.
    """

    def __init__(
        self,
        adapter: Adapter,
        transcoders: TranscoderSet,
        forward: Forward,
        ignored: Sequence[Sequence[int]],
        kernels: Choice = "auto",
    ):
        self.prompts = len(ignored)
        self.ignored_by = [tuple(sorted(set(mine))) for mine in ignored]
        places = [at * self.prompts + b for b, mine in enumerate(ignored) for at in mine]
        super().__init__(adapter, transcoders, forward, places, owned=True, kernels=kernels)

    def own(self, prompt: int) -> Int[Tensor, " active"]:
        """Which of the features are those of a prompt, in its own order."""
        return (self.features[:, 1] % self.prompts == prompt).nonzero()[:, 0]

    def _freeze_attention(self, owned: bool) -> None:
        prompts, scales, adapter = self.prompts, self.forward.scales, self.adapter
        groups, patterns, constants = adapter.heads // adapter.kv_heads, [], []
        for layer, block in enumerate(adapter.blocks):
            pattern = self.forward.patterns[layer]
            pattern = pattern.view(prompts, adapter.heads, *pattern.shape[1:])
            read = block.value_constant.repeat_interleave(groups, dim=0)
            mixed = torch.einsum("bhqk,hc->qbhc", pattern, read)
            constant = torch.einsum("qbhc,hcd->qbd", mixed, block.output) + block.output_constant
            constant = constant.flatten(0, 1)
            if block.attention_norm is not None:
                read_scale = scales["attention_norm"][layer].view(-1, prompts).T
                pattern *= read_scale[:, None, None]
            if (post := block.post_attention_norm) is not None:
                after = scales["post_attention_norm"][layer]
                constant = constant * after[:, None] + (0 if post.bias is None else post.bias)
                pattern *= after.view(-1, prompts).T[:, None, :, None]
            patterns.append(pattern.flatten(0, 1))
            constants.append(constant)
        self.patterns = tuple(patterns)
        self.forward = replace(self.forward, patterns=())
        self.attention_constants = torch.stack(constants)


def part(forward: Forward, prompt: int, prompts: int) -> Forward:
    """What one prompt left behind, without its patterns."""
    mine = slice(prompt, None, prompts)
    return Forward(
        token_ids=forward.token_ids[mine],
        patterns=(),
        scales={name: scale[:, mine] for name, scale in forward.scales.items()},
        final_scale=forward.final_scale[mine],
        tokens=forward.tokens[mine],
        positional=forward.positional[mine],
        mlp_inputs=tuple(x[mine] for x in forward.mlp_inputs),
        mlp_outputs=tuple(x[mine] for x in forward.mlp_outputs),
        final=forward.final[mine],
        logits=forward.logits[mine],
    )


@dataclass(frozen=True, eq=False)
class _Targets:
    """All targets of all prompts: by (position, prompt, falling join, row), (target,) each.

    Attributes:
        prompt, position: whose, and where they read.
        layer, row: as in `RowBlock`, in their own prompt.
        join: when they do on the way down: 2j before the attention of layer j, after its MLP;
            2j + 1 before its MLP.
        column: their number among those of their prompt and position.
        reads, bias, value: as in `sweep.Group`.
    """

    prompt: Int[Tensor, " target"]
    position: Int[Tensor, " target"]
    layer: Int[Tensor, " target"]
    row: Int[Tensor, " target"]
    join: Int[Tensor, " target"]
    column: Int[Tensor, " target"]
    reads: Float[Tensor, "target d_model"]
    bias: Float[Tensor, " target"]
    value: Float[Tensor, " target"]


def fits(side: Side, readouts: Sequence[Sequence[Readout]]) -> bool:
    """Whether the rows of all features are certainly a matter of seconds a prompt, as `auto` has it
    (`estimate`), and fit into memory all at once."""
    adapter, device, item = side.adapter, side.errors.device, side.errors.element_size()
    work, entries, length = 0.0, 0, side.n_positions // side.prompts
    for prompt, wanted in enumerate(readouts):
        index = _index(side, side.own(prompt), wanted)
        starts = torch.tensor([index.starts(layer) for layer in range(side.n_layers)])
        active = starts.diff(dim=1).double()
        targets = torch.cat([active, torch.zeros(1, length)])
        targets[-1] = len(wanted)
        each = carried.operations_of_a_target(adapter, active, None, side.transcoders.kind == "clt")
        work += float((targets * each).sum())
        entries += (index.n_features + index.n_targets) * len(index)
    written = sum(len(side.transcoders.writers(layer)) for layer in range(side.n_layers))
    vectors = adapter.d_model * len(side.features) * (written / side.n_layers + 1)
    columns = _columns(adapter, side.n_positions)
    moved = columns * (2 * len(side.index) + COPIES * side.n_positions * adapter.d_model)
    there = item * (vectors + moved)
    rows = memory.free(torch.device("cpu")) - item * 2 * entries
    seconds = CERTAIN * work / matrix_rate(device)
    return (
        seconds <= AUTO_SECONDS * side.prompts
        and rows > (there if device.type == "cpu" else 0)
        and there < memory.free(device)
    )


def _index(side: Side, mine: Int[Tensor, " active"], wanted: Sequence[Readout]) -> NodeIndex:
    """Node order of one prompt."""
    features = side.features[mine]
    features[:, 1] //= side.prompts
    at = torch.tensor([readout.position for readout in wanted])
    return NodeIndex(features, side.n_layers, side.n_positions // side.prompts, at)


def _columns(adapter: Adapter, places: int) -> int:
    """How many columns travel together over so many places."""
    kind = "cuda" if adapter.device.type == "cuda" else "cpu"
    return max(1, min(COLUMNS[kind], ELEMENTS[kind] // (places * adapter.d_model)))


def attribute_abreast(
    side: Side, readouts: Sequence[Sequence[Readout]], kernels: Choice = "auto"
) -> list[EdgeRows]:
    """Edge rows of every feature and target of each prompt.

    Args:
        readouts: what to explain of each.
    """
    with torch.no_grad(), as_exact_as(side.adapter.model.dtype, side.errors.device):
        return _Abreast(side, readouts, kernels).rows()


class _Abreast:
    def __init__(self, side: Side, readouts: Sequence[Sequence[Readout]], kernels: Choice):
        self.side, self.readouts, self.prompts = side, readouts, side.prompts
        self.layers, self.adapter = side.n_layers, side.adapter
        device = side.errors.device
        self.edge_rows = kernel("edge_rows", kernels, device)
        self.attention_mix = kernel("attention_mix", kernels, device)
        self.starts = [side.index.starts(layer) for layer in range(self.layers)]
        self.skips = [side.skip_map(layer) for layer in range(self.layers)]
        self.sites = torch.stack([side.errors, side.constants, side.ignored], dim=2)
        self.mine = [side.own(prompt) for prompt in range(self.prompts)]
        self.indices = [_index(side, *one) for one in zip(self.mine, readouts, strict=True)]
        self.targets = self._ordered()

    def _ordered(self) -> _Targets:
        key, read = self._keys(), self._read()
        order = torch.arange(key.shape[1])
        for name in (3, 4, 1, 0):  # the last one counts most
            order = order[key[name][order].argsort(descending=name == 4, stable=True)]
        position, prompt, layer, row, join = key[:, order]
        cell = position * self.prompts + prompt
        column = torch.arange(len(cell)) - torch.searchsorted(cell, cell)
        taken = order.to(self.side.errors.device)
        vectors = (torch.cat(parts)[taken] for parts in read)
        return _Targets(prompt, position, layer, row, join, column, *vectors)

    def _keys(self) -> Int[Tensor, "5 target"]:
        """Position, prompt, layer, row and join of every feature and then of what was asked for."""
        features, prompts = self.side.features, self.prompts
        whole = 1 if self.adapter.parallel else 0
        rows = torch.empty(len(features), dtype=torch.long)
        for mine in self.mine:
            rows[mine] = torch.arange(len(mine))
        layer, place = features[:, 0], features[:, 1]
        keys = [torch.stack([place // prompts, place % prompts, layer, rows, 2 * layer - whole])]
        for prompt, wanted in enumerate(self.readouts):
            for number, one in enumerate(wanted):
                apart = 1 if one.layer == self.layers else whole
                row = self.indices[prompt].target_row(number)
                key = [one.position, prompt, one.layer, row, 2 * one.layer - apart]
                keys.append(torch.tensor(key)[:, None])
        return torch.cat(keys, dim=1)

    def _read(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Read vectors, bias terms and values, in the order of `_keys`."""
        reads: list[Tensor] = []
        bias: list[Tensor] = []
        value: list[Tensor] = []
        for layer in range(self.layers):
            rows = torch.tensor(self.side.index.feature_rows(layer), dtype=torch.long)
            new = self.side.read_vectors(layer, rows)
            for found, one in zip((reads, bias, value), new, strict=True):
                found.append(one)
        for wanted in self.readouts:
            reads.append(torch.stack([one.vector for one in wanted]))
            bias.append(reads[-1].new_tensor([one.bias for one in wanted]))
            value.append(reads[-1].new_tensor([one.value for one in wanted]))
        return reads, bias, value

    def rows(self) -> list[EdgeRows]:
        """Rows of all prompts."""
        blocks: list[list[RowBlock]] = [[] for _ in self.indices]
        like = self.targets.bias.cpu()
        terms = [like.new_zeros(4, len(index)) for index in self.indices]
        for position in self.targets.position.unique().tolist():
            here = (self.targets.position == position).nonzero()[:, 0]
            span = (position + 1) * self.prompts
            step = _columns(self.adapter, span)
            for start in range(0, int(self.targets.column[here].max()) + 1, step):
                column = self.targets.column[here]
                chosen = here[(column >= start) & (column < start + step)]
                for prompt, found, sums in _Chunk(self, position, start, chosen).found():
                    blocks[prompt] += found
                    at = self.targets.row[chosen[self.targets.prompt[chosen] == prompt]]
                    terms[prompt][:, at] = sums
        return [
            EdgeRows(index, tuple(_joined(found)), *closing)
            for index, found, closing in zip(self.indices, blocks, terms, strict=True)
        ]


class _Chunk:
    """Targets of one position on their way down, as many columns as the prompt with most has."""

    def __init__(self, whole: _Abreast, position: int, start: int, chosen: Int[Tensor, " target"]):
        self.whole, self.position, self.chosen = whole, position, chosen
        self.side, targets, prompts = whole.side, whole.targets, whole.prompts
        self.span = (position + 1) * prompts
        self.column = targets.column[chosen] - start
        self.join, self.prompt = targets.join[chosen], targets.prompt[chosen]
        self.columns = int(self.column.max()) + 1
        taken = chosen.to(targets.reads.device)
        slots = (self.prompt * self.columns + self.column).to(taken.device)
        width = targets.reads.shape[1]
        points = targets.reads.new_zeros(prompts * self.columns, width)
        points.index_copy_(0, slots, targets.reads[taken])
        self.points = points.view(prompts, self.columns, width).transpose(1, 2)
        joins = torch.full((prompts * self.columns,), -2)
        joins[self.prompt * self.columns + self.column] = self.join
        self.joins = joins.view(prompts, 1, self.columns)
        self.all_gradients = points.new_empty(self.span, width, self.columns)
        self.top = int(self.join.max())
        self.height = (self.top + 1) // 2  # layers that sources can have
        self.joined = 0
        self.beside: Tensor | None = None  # through a skip beside a parallel attention
        self.features = [
            points.new_zeros(whole.starts[layer][self.span], self.columns)
            for layer in range(self.height)
        ]
        self.errors = points.new_zeros(self.height, self.span, self.columns)
        self.sums = points.new_zeros(3, prompts, self.columns)  # bias, ignored, positional

    @property
    def gradient(self) -> Float[Tensor, "place d_model column"]:
        return self.all_gradients[:, :, : self.joined]

    def descend(self) -> None:
        for step in range(self.top, -1, -1):
            self.widen(step)
            if self.joined:
                (self.mlp if step % 2 else self.attention)(step // 2)
        self.widen(-1)

    def widen(self, step: int) -> None:
        """Let those in that join here: at their own position, and nowhere else."""
        joining = self.joins == step
        if not joining.any():
            return
        inside = joining.any(0)[0].nonzero()
        first, stop = int(inside[0]), int(inside[-1]) + 1
        if stop > self.joined:
            self.all_gradients[:, :, self.joined : stop] = 0
            self.joined = stop
        part = slice(first, stop)
        mask = joining[:, :, part].to(self.points)
        own = self.all_gradients[self.span - self.whole.prompts :, :, part]
        own.addcmul_(self.points[:, :, part], mask)

    def mlp(self, layer: int) -> None:
        side, gradient, joined = self.side, self.gradient, self.joined
        for source in side.transcoders.writers(layer):
            starts = self.whole.starts[source][: self.span + 1]
            writes = side.writes(source, layer)[: starts[-1]]
            self.whole.edge_rows(gradient, writes, starts, self.features[source][:, :joined])
        found = torch.bmm(self.whole.sites[layer, : self.span], gradient)
        self.errors[layer, :, :joined] = found[:, 0]
        self.add(found[:, 1:].transpose(0, 1), slice(0, 2))
        if (skip := self.whole.skips[layer]) is not None:
            self.constant(side.skip_constant(layer))
            scale = side.skip_scale(layer)[: self.span, None, None]
            through = scale * torch.matmul(skip.T, gradient)
            if self.side.adapter.parallel:
                self.beside = through
            else:
                gradient.add_(through)

    def attention(self, layer: int) -> None:
        block, adapter, gradient = self.side.adapter.blocks[layer], self.side.adapter, self.gradient
        self.constant(self.side.attention_constants[layer])
        width, prompts, length = adapter.d_model, self.whole.prompts, self.position + 1
        output = block.output.view(-1, width).expand(self.span, -1, -1)
        read = torch.bmm(output, gradient).view(length, prompts * adapter.heads, -1)
        mixed = read.new_empty(length, prompts * adapter.kv_heads, read.shape[2])
        self.whole.attention_mix(read, self.side.patterns[layer], mixed)
        value = block.value.view(width, -1).expand(self.span, -1, -1)
        gradient.baddbmm_(value, mixed.view(self.span, -1, self.joined))
        if self.beside is not None:
            gradient.add_(self.beside)
            self.beside = None

    def constant(self, vectors: Float[Tensor, "place d_model"]) -> None:
        """What these vectors add to every target, as part of its bias term."""
        found = torch.bmm(vectors[: self.span, None], self.gradient)
        self.add(found.transpose(0, 1), slice(0, 1))

    def add(self, found: Float[Tensor, "term place column"], terms: slice) -> None:
        """Sum over positions, prompt by prompt."""
        by_prompt = found.reshape(len(found), -1, self.whole.prompts, found.shape[2])
        self.sums[terms, :, : self.joined] += by_prompt.sum(1)

    def found(self) -> Iterator[tuple[int, list[RowBlock], Float[Tensor, "4 target"]]]:
        """(prompt, blocks, closing terms) of every prompt that has targets here."""
        self.descend()
        forward = self.side.forward
        ends = torch.stack([forward.tokens, forward.positional], dim=1)[: self.span]
        found = torch.bmm(ends, self.gradient)
        self.add(found[:, 1:].transpose(0, 1), slice(2, 3))
        sources = [*self.features, self.errors.flatten(0, 1), found[:, 0]]
        matrix, sums = torch.cat(sources).cpu(), self.sums.cpu()
        targets = self.whole.targets
        bias, value = targets.bias.cpu(), targets.value.cpu()
        for prompt in self.prompt.unique().tolist():
            mine = self.chosen[self.prompt == prompt]
            own = matrix.index_select(0, self._sources(prompt))
            terms = sums[:, prompt, : len(mine)]
            closing = torch.stack([bias[mine] + terms[0], terms[2], terms[1], value[mine]])
            yield prompt, list(self._blocks(prompt, mine, own)), closing

    def _sources(self, prompt: int) -> Int[Tensor, " source"]:
        """Which rows of the matrix are a prompt's: features, errors, embeddings, as in a cone."""
        rows, offset = [], 0
        for layer in range(self.height):
            count = self.whole.starts[layer][self.span]
            first = self.side.index.feature_rows(layer).start
            at = self.side.features[first : first + count, 1] % self.whole.prompts
            rows.append((at == prompt).nonzero()[:, 0] + offset)
            offset += count
        rest = torch.arange(prompt, (self.height + 1) * self.span, self.whole.prompts)
        return torch.cat([*rows, rest + offset])

    def _blocks(
        self, prompt: int, mine: Int[Tensor, " target"], own: Float[Tensor, "source column"]
    ) -> Iterator[RowBlock]:
        targets, index = self.whole.targets, self.whole.indices[prompt]
        layers, counts = targets.layer[mine].unique_consecutive(return_counts=True)
        length, stop = self.position + 1, 0
        below = [len(index.feature_rows(layer, 0, length)) for layer in range(self.height)]
        features = sum(below)
        for layer, count in zip(layers.tolist(), counts.tolist(), strict=True):
            part = slice(stop, stop + count)
            stop += count
            known = own[:, part]
            values = torch.cat(
                [
                    known[: sum(below[:layer])],
                    known[features : features + layer * length],
                    known[len(known) - length :],
                ]
            )
            rows = targets.row[mine[part]]
            yield RowBlock(layer, self.position, rows, values.T.contiguous())


def _joined(blocks: list[RowBlock]) -> Iterator[RowBlock]:
    """One block a site."""
    sites: dict[tuple[int, int], list[RowBlock]] = {}
    for block in blocks:
        sites.setdefault((block.layer, block.position), []).append(block)
    for layer, position in sorted(sites):
        here = sites[layer, position]
        rows, values = torch.cat([b.rows for b in here]), torch.cat([b.values for b in here])
        yield RowBlock(layer, position, rows, values) if len(here) > 1 else here[0]
