"""Batches without end: shuffled activations, made as they are needed or read from a store.

Pieces of text are shuffled and dealt into blocks that fit a memory budget. A block's activations
are the same whenever it is made, so a store on disk (`store`) holds exactly what is otherwise made
on the fly, and the batch of any step is known without the steps before it: that is what makes
training resume bit for bit. Every epoch takes the blocks in a new order and shuffles the tokens of
each anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from circuit_tracer.models.adapter import Adapter
from circuit_tracer.shapes import Float, Tensor
from circuit_tracer.train.corpus import Corpus
from circuit_tracer.train.ranks import ALONE, Ranks
from circuit_tracer.train.sites import Activations, activations
from circuit_tracer.transcoders.base import ReadSite, WriteSite

FORWARD_TOKENS = 4096
"""Tokens in one forward pass, padding included."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """A corpus dealt into blocks, made by running the model.

    Attributes:
        groups: the pieces of each block.
    """

    adapter: Adapter
    corpus: Corpus
    read: ReadSite
    write: WriteSite
    groups: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Tokens in each block."""
        rows = self.corpus.rows
        return tuple(sum(rows[piece] for piece in group) for group in self.groups)

    def block(self, number: int) -> Activations:
        """Activations of a block, (tokens, layers, d_model) each, on the CPU."""
        found = [
            activations(self.adapter, self.read, self.write, [self.corpus.piece(p) for p in group])
            for group in self._passes(self.groups[number])
        ]
        return torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])

    def _passes(self, pieces: tuple[int, ...]) -> list[list[int]]:
        """Pieces of like lengths together, as many as one forward pass takes."""
        lengths = self.corpus.starts.diff().tolist()
        passes: list[list[int]] = [[]]
        for piece in sorted(pieces, key=lambda piece: (lengths[piece], piece)):
            if passes[-1] and (len(passes[-1]) + 1) * lengths[piece] > FORWARD_TOKENS:
                passes.append([])
            passes[-1].append(piece)
        return passes


def deal(
    adapter: Adapter,
    corpus: Corpus,
    read: ReadSite,
    write: WriteSite,
    seed: int,
    budget: int,
) -> Blocks:
    """Shuffle the pieces and deal them into blocks of at most `budget` bytes (or one piece)."""
    token = 2 * adapter.n_layers * adapter.d_model * torch.empty(0, dtype=adapter.dtype).itemsize
    most = max(1, budget // token)
    rows = corpus.rows
    groups: list[list[int]] = [[]]
    held = 0
    for piece in torch.randperm(len(corpus), generator=drawing(seed, "pieces")).tolist():
        if groups[-1] and held + rows[piece] > most:
            groups.append([])
            held = 0
        groups[-1].append(piece)
        held += rows[piece]
    return Blocks(adapter, corpus, read, write, tuple(tuple(group) for group in groups))


@dataclass(eq=False)
class Stream:
    """Batches of an endless run through blocks.

    Args:
        sizes: tokens in each block.
        block: gives a block's activations, (tokens, layers, d_model) each.
        size: tokens in a batch. A batch may reach over blocks and epochs.
        ranks: the processes of the training; where they share out tokens, a batch is this one's.
    """

    sizes: tuple[int, ...]
    block: Callable[[int], Activations]
    size: int
    seed: int
    ranks: Ranks = ALONE
    _open: int = -1
    _held: Activations | None = field(default=None, repr=False)

    @property
    def tokens(self) -> int:
        """Tokens in an epoch."""
        return sum(self.sizes)

    def sample(self) -> Activations:
        """A block to measure scales on, layers first."""
        inputs, outputs = self.block(0)
        return inputs.transpose(0, 1), outputs.transpose(0, 1)

    def batch(self, step: int) -> tuple[Float[Tensor, "layer token d_model"], ...]:
        """(inputs, outputs) of a step, whatever steps came before."""
        found, place, end = [], step * self.size, (step + 1) * self.size
        while place < end:
            epoch, within = divmod(place, self.tokens)
            order = torch.randperm(len(self.sizes), generator=drawing(self.seed, "order", epoch))
            for number in order.tolist():
                if within < self.sizes[number]:
                    break
                within -= self.sizes[number]
            rows = self._shuffled(epoch, number)[within : within + end - place]
            mine = self._share(rows, place - step * self.size)
            inputs, outputs = self._of(number)
            found.append((inputs[mine].transpose(0, 1), outputs[mine].transpose(0, 1)))
            place += len(rows)
        return torch.cat([x for x, _ in found], 1), torch.cat([y for _, y in found], 1)

    def _share(self, rows: Tensor, before: int) -> Tensor:
        """Of rows that come after so many of a batch, those dealt to this process."""
        if not self.ranks.by_tokens:
            return rows
        return rows[(self.ranks.number - before) % self.ranks.count :: self.ranks.count]

    def _shuffled(self, epoch: int, number: int) -> Tensor:
        draw = drawing(self.seed, "rows", epoch, number)
        return torch.randperm(self.sizes[number], generator=draw)

    def _of(self, number: int) -> Activations:
        if self._open != number:
            self._held = None  # before the next one is made: two would not fit the budget
            self._held, self._open = self.block(number), number
        assert self._held is not None
        return self._held


def drawing(*key: object) -> torch.Generator:
    """A generator of its own for every purpose, the same for the same key."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
