"""QK attribution: what made a head look where it looks.

A head scores a pair of positions by `scaling * query · key` before the softmax. Both vectors are
affine in the residual stream before the block (models/queries.py), and so are sums over everything
written below:

    query = sum over s of q_s        key = sum over s' of k_s'
    score = sum over s, s' of  scaling * q_s · k_s'

where s runs over the features, errors and embeddings in the causal cone of the query, and three
lumps: learned position embeddings, biases and other constants, features and errors at ignored
positions. The vectors q_s are edges: the sweep carries head_dim targets, one a row of the query's
map, and their closing terms are the lumps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch

from circuit_tracer.attention.ends import Prompt, localise
from circuit_tracer.errors import InputError
from circuit_tracer.local import Local
from circuit_tracer.models.queries import Reading, check, compare, watch
from circuit_tracer.nodes import Kind, node_id
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.rows import columns
from circuit_tracer.shapes import Float, Tensor
from circuit_tracer.sweep import Group, Sweep

Lump = Literal["positional", "bias", "ignored"]
LUMPS: tuple[Lump, ...] = get_args(Lump)
PARTS: tuple[Kind | Lump, ...] = ("feature", "error", "embedding", *LUMPS)
ROWS = 128
"""Query terms whose pairs are looked at together."""


@dataclass(frozen=True, slots=True)
class Term:
    """One source on one side of a score.

    Attributes:
        id: node id; "positional", "bias" or "ignored" for those lumps.
        kind: a node kind, or one of those three.
        layer, position: where it writes; None for lumps.
        value: its part of the score, against everything on the other side.
    """

    id: str
    kind: Kind | Lump
    layer: int | None
    position: int | None
    value: float


@dataclass(frozen=True, eq=False)
class Pairs:
    """The score over pairs of the strongest sources of both sides.

    Attributes:
        query, key: ids of rows and columns; the last of each is "rest", all others together.
        values: (rows, columns) float64; sums to the score.
    """

    query: tuple[str, ...]
    key: tuple[str, ...]
    values: Float[Tensor, "query key"]


@dataclass(frozen=True, eq=False)
class QK:
    """The score of a head at (query, key), taken apart.

    Attributes:
        layer, head, query, key: which head, from which position to which.
        score: as the model computed it, before any softcap, mask and softmax.
        pattern: the attention this pair got.
        softcap: squashes the score before the softmax; None for most families.
        query_side, key_side: every source with its part of the score, largest first. Either sums
            to the score.
        query_vectors, key_vectors: (terms, head_dim) float64, in the order of the sides and scaled
            so that their product is the score of each pair.
        tokens: the prompt, token by token.
    """

    layer: int
    head: int
    query: int
    key: int
    score: float
    pattern: float
    softcap: float | None
    query_side: tuple[Term, ...]
    key_side: tuple[Term, ...]
    query_vectors: Float[Tensor, "query head_dim"]
    key_vectors: Float[Tensor, "key head_dim"]
    tokens: tuple[str, ...]

    @property
    def error(self) -> float:
        """What rounding leaves between the score and the sum of all pairs."""
        return float(self.query_vectors.sum(0) @ self.key_vectors.sum(0)) - self.score

    @cached_property
    def by_kind(self) -> Float[Tensor, "query_kind key_kind"]:
        """(6, 6) the score over pairs of kinds, in the order of `PARTS`. Sums to the score."""
        vectors = []
        for side, of in ((self.query_side, self.query_vectors), (self.key_side, self.key_vectors)):
            kinds = torch.tensor([PARTS.index(term.kind) for term in side])
            vectors.append(of.new_zeros(len(PARTS), of.shape[1]).index_add_(0, kinds, of))
        return vectors[0] @ vectors[1].T

    def pairs(self, k: int = 10) -> Pairs:
        """The score over pairs of the k strongest sources of either side and the rest of each."""
        queries, keys = (_with_rest(of, k) for of in (self.query_vectors, self.key_vectors))
        query, key = (
            (*(term.id for term in side[:k]), "rest") for side in (self.query_side, self.key_side)
        )
        return Pairs(query, key, queries @ keys.T)

    def strongest_pairs(self, k: int = 10) -> list[tuple[Term, Term, float]]:
        """The k largest of all (query term, key term, their part of the score)."""
        width = len(self.key_side)
        values, places = self.query_vectors.new_empty(0), torch.empty(0, dtype=torch.long)
        for start in range(0, len(self.query_side), ROWS):
            block = (self.query_vectors[start : start + ROWS] @ self.key_vectors.T).flatten()
            values = torch.cat([values, block])
            places = torch.cat([places, torch.arange(len(block)) + start * width])
            best = values.abs().topk(min(k, len(values))).indices
            values, places = values[best], places[best]
        return [
            (self.query_side[place // width], self.key_side[place % width], value)
            for place, value in zip(places.tolist(), values.tolist(), strict=True)
        ]

    def to_plain(self, k: int = 10) -> dict[str, Any]:
        """The k strongest terms of either side and pairs, and all by kind, as JSON values."""
        names = ("layer", "head", "query", "key", "score", "pattern", "softcap", "error")
        return {name: getattr(self, name) for name in names} | {
            "query_side": [asdict(term) for term in self.query_side[:k]],
            "key_side": [asdict(term) for term in self.key_side[:k]],
            "kinds": {"order": PARTS, "values": self.by_kind.tolist()},
            "pairs": [
                {"query": one.id, "key": other.id, "value": value}
                for one, other, value in self.strongest_pairs(k)
            ],
        }

    def table(self, k: int = 10) -> str:
        """Both sides and the strongest pairs as text."""
        cap = "" if self.softcap is None else f", soft-capped at {self.softcap:g} after this"
        lines = [
            f"head {self.layer}.{self.head}, {self._at(self.query)} looks at {self._at(self.key)}:",
            f"  score {self.score:+.4g} before softmax{cap}; attention {100 * self.pattern:.1f} %",
        ]
        for name, side in (("query", self.query_side), ("key", self.key_side)):
            lines.append(f"  {name} side")
            lines += [f"  {term.value:>+11.4g}  {self._name(term)}" for term in side[:k]]
            if len(side) > k:
                rest = sum(term.value for term in side[k:])
                lines.append(f"  {rest:>+11.4g}  rest ({len(side) - k} more)")
        lines.append("  strongest pairs, query × key")
        for one, other, value in self.strongest_pairs(k):
            lines.append(f"  {value:>+11.4g}  {one.id} × {other.id}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()

    def _at(self, position: int) -> str:
        return f"{self.tokens[position]!r}@{position}"

    def _name(self, term: Term) -> str:
        return term.id if term.position is None else f"{term.id}  {self._at(term.position)}"


def _with_rest(vectors: Tensor, k: int) -> Tensor:
    return torch.cat([vectors[:k], vectors[k:].sum(0, keepdim=True)])


def qk(model: ReplacementModel, prompt: Prompt, layer: int, head: int, query: int, key: int) -> QK:
    """Take the score apart by which a head, at position `query`, looks at position `key`.

    Args:
        prompt: text or token ids, a `Graph` of this model (its prompt and ignored positions are
            taken), or a `Local`.
        layer, head: which head; of grouped heads, the query head.
        query, key: positions, key ≤ query; negative ones count from the end.

    Raises:
        InputError: a layer, head or position that is not there, or a key behind the query.
        ModelError: the model's queries and keys are not what its family is known to make.

    Example:
        >>> print(qk(model, "The opposite of small is", layer=2, head=1, query=5, key=4))
    """
    local = localise(model, prompt)
    query, key = _check(local, layer, head, query, key)
    with torch.no_grad():
        return _take_apart(model, local, layer, head, query, key)


def _check(local: Local, layer: int, head: int, query: int, key: int) -> tuple[int, int]:
    """Positions counted from the start."""
    counts = {"layer": (layer, local.n_layers), "head": (head, local.adapter.heads)}
    for name, (got, count) in counts.items():
        if not 0 <= got < count:
            raise InputError(f"there is no {name} {got}: {local.adapter.name} has 0 to {count - 1}")
    size = local.n_positions
    for name, got in (("query", query), ("key", key)):
        if not -size <= got < size:
            raise InputError(f"{name} {got} is not a position: the prompt has 0 to {size - 1}")
    query, key = query % size, key % size
    if key > query:
        raise InputError(
            f"position {query} cannot look ahead at {key}: the key must be at most {query}"
        )
    return query, key


def _take_apart(
    model: ReplacementModel, local: Local, layer: int, head: int, query: int, key: int
) -> QK:
    seen = watch(local.adapter, [layer], local.forward.token_ids)
    compared = compare(seen[layer], head, (query, key), attention_scales(local, layer))
    sweep = Sweep(local, local.index)
    (queries,) = parts_of(sweep, layer, query, [compared.query], "query")
    (keys,) = parts_of(sweep, layer, key, [compared.key], "key")
    queries = queries * compared.scaling
    query_side, query_vectors = _side(local, layer, query, queries, keys.sum(0))
    key_side, key_vectors = _side(local, layer, key, keys, queries.sum(0))
    return QK(
        layer=layer,
        head=head,
        query=query,
        key=key,
        score=compared.score,
        pattern=compared.pattern,
        softcap=compared.softcap,
        query_side=query_side,
        key_side=key_side,
        query_vectors=query_vectors,
        key_vectors=key_vectors,
        tokens=tuple(model.token_text(token) for token in local.forward.token_ids.tolist()),
    )


def attention_scales(local: Local, layer: int) -> Float[Tensor, " position"] | None:
    """Frozen scales of the norm before a layer's attention; None where it has none."""
    scales = local.forward.scales.get("attention_norm")
    return None if scales is None else scales[layer]


def parts_of(
    sweep: Sweep, layer: int, position: int, readings: Sequence[Reading], what: str
) -> list[Float[Tensor, "source head_dim"]]:
    """What every source adds to each vector that heads of a layer read at a position: the cone,
    then positional, bias and ignored; float64.

    Raises:
        ModelError: the parts of one do not add up to what the model computed.
    """
    matrix, constant, value = (
        torch.cat([getattr(reading, name) for reading in readings])
        for name in ("matrix", "constant", "value")
    )
    _, size = columns(sweep, position + 1, joined=True)
    found = []
    for start in range(0, len(constant), size):
        part = slice(start, start + size)
        read = (torch.arange(len(constant))[part], matrix[part], constant[part], value[part])
        (block,), terms = sweep.rows([Group(layer, position, *read, before_attention=True)])
        lumps = torch.stack([terms.positional, terms.bias, terms.ignored])
        found.append(torch.cat([block.values.T, lumps]).double())
    vectors = torch.cat(found, dim=1).split([len(one.constant) for one in readings], dim=1)
    for reading, parts in zip(readings, vectors, strict=True):
        check(reading, parts.sum(0).to(reading.value), sweep.adapter, what)
    return list(vectors)


def _side(
    local: Local, layer: int, position: int, parts: Tensor, other: Tensor
) -> tuple[tuple[Term, ...], Float[Tensor, "term head_dim"]]:
    """(terms of one side by size, their vectors); what adds nothing at all is left out."""
    cone = local.index.cone(layer, position)
    nodes_below = len(cone)
    present = parts.any(1).nonzero()[:, 0]
    values = parts[present] @ other
    order = values.abs().argsort(descending=True, stable=True)
    places, terms = present[order], []
    nodes = iter(local.index.locate_all(cone[places[places < nodes_below]]))
    for place, value in zip(places.tolist(), values[order].tolist(), strict=True):
        if place >= nodes_below:
            lump = LUMPS[place - nodes_below]
            terms.append(Term(lump, lump, None, None, value))
            continue
        kind, at_layer, at, number = next(nodes)
        if kind == "embedding":
            number = int(local.forward.token_ids[at])
        terms.append(Term(node_id(kind, at_layer, at, number), kind, at_layer, at, value))
    return tuple(terms), parts[places]
