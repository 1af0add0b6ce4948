"""An error node taken apart.

An error is what the transcoders miss of an MLP's output at one layer and position. It has no
features, but it is a vector, and a vector can be asked: how large it is beside the output, where
its influence goes, which tokens it speaks for, what the model says without it, and how another set
of transcoders reads the same MLP.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from circuit_tracer.agreement.splicing import reconstruct
from circuit_tracer.errors import InputError
from circuit_tracer.graph import Graph
from circuit_tracer.intervene import TokenChange
from circuit_tracer.nodes import Node
from circuit_tracer.notes import spoken
from circuit_tracer.patched import Hold, Patch
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Float, Tensor
from circuit_tracer.targets import Wanted
from circuit_tracer.transcoders.base import TranscoderSet
from circuit_tracer.verify.subject import Subject


@dataclass(frozen=True)
class Heard:
    """Where influence of an error goes: the layer and position that read it, and the share of its
    influence; the layer is the number of layers for the targets."""

    layer: int
    position: int
    share: float


@dataclass(frozen=True)
class Speaker:
    """A feature of another set that writes along an error: `share` of it, (a · w_dec · e) / ‖e‖²,
    negative where it writes against it."""

    layer: int
    feature: int
    activation: float
    share: float


@dataclass(frozen=True)
class OtherReading:
    """How another set of transcoders reads the MLP that an error is of.

    Attributes:
        transcoders: its name.
        size: norm of its own error there over that of the MLP's output.
        explained: 1 − ‖its error‖² / ‖this error‖²; negative where it is further off.
        features: its features that write most along this error, the strongest first.
    """

    transcoders: str
    size: float
    explained: float
    features: tuple[Speaker, ...]


@dataclass(frozen=True)
class ErrorNode:
    """An error node taken apart.

    Attributes:
        node: the node, with its influence on the targets.
        size: ‖error‖ / ‖MLP output‖ at the write site.
        heard: where its influence goes, the largest share first; the shares sum to 1.
        promoted, suppressed: tokens that the vector itself raises and lowers most, by way of the
            residual stream alone; the numbers rank and are no logits of the prompt.
        tokens: the likeliest next tokens with the error and without it, everything downstream
            recomputed; read where the heaviest target is.
        before, after: weighted mean of the targets' values, with it and without.
        others: one for each set asked.
    """

    node: Node
    size: float
    heard: tuple[Heard, ...]
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    tokens: tuple[TokenChange, ...]
    before: float
    after: float
    others: tuple[OtherReading, ...]


def error_sizes(
    graph: Graph, model: ReplacementModel, targets: Sequence[Wanted] | None = None
) -> Float[Tensor, "layer position"]:
    """‖error‖ / ‖MLP output‖ at every layer and position, also at ignored ones.

    Raises:
        InputError: a graph of another model or other transcoders.
    """
    with torch.no_grad():
        subject = Subject.of(graph, model, targets)
        outputs = subject.forward.mlp_outputs
        sizes = [_size(*pair) for pair in zip(subject.errors, outputs, strict=True)]
        return torch.stack(sizes).cpu()


def explain_error(
    graph: Graph,
    model: ReplacementModel,
    node: Node | str,
    others: Sequence[TranscoderSet] = (),
    targets: Sequence[Wanted] | None = None,
    k: int = 8,
) -> ErrorNode:
    """Take an error node apart.

    Args:
        graph: from `trace`.
        model: what it was traced on.
        node: an error node, or its id (`"3_-1_5"` at layer 3, position 5).
        others: further sets for the same model that write to the same site.
        targets: as given to `trace`, where one is a difference or direction.
        k: how many tokens, and features of each other set.

    Raises:
        InputError: no error node; a graph of another model; a set that predicts another site.

    Example:
        >>> import circuit_tracer as ct
        >>> model, other = ct.load(), ct.load(transcoders="clt").transcoders
        >>> graph = ct.trace("The opposite of small is", model)
        >>> found = explain_error(graph, model, "7_-1_5", [other])
        >>> 0 < found.size < 1, [reading.transcoders for reading in found.others]
        (True, ['bundled clt'])
    """
    found = graph.node(node.id if isinstance(node, Node) else node)
    if found.kind != "error":
        raise InputError(
            f"{found.id} is of kind {found.kind!r}; ids of errors look like "
            f"{graph.nodes[graph.index.first_error].id!r}"
        )
    with torch.no_grad():
        subject = Subject.of(graph, model, targets)
        error = subject.errors[found.layer][found.position]
        output = subject.forward.mlp_outputs[found.layer][found.position]
        along = error
        post = model.adapter.blocks[found.layer].post_mlp_norm
        if model.transcoders.write == "mlp.hook_out" and post is not None:
            along = post.centre(error) * post.weight
        note = spoken(model, along[None], k)[0]
        tokens, before, after = _without(subject, found, error, k)
        return ErrorNode(
            node=found,
            size=float(_size(error, output)),
            heard=_heard(graph, graph.row(found.id)),
            promoted=note.promoted,
            suppressed=note.suppressed,
            tokens=tokens,
            before=before,
            after=after,
            others=tuple(_read_by(other, subject, found, error, k) for other in others),
        )


def _size(error: Float[Tensor, "... d_model"], output: Float[Tensor, "... d_model"]) -> Tensor:
    return error.norm(dim=-1) / output.norm(dim=-1).clamp(min=torch.finfo(output.dtype).tiny)


def _heard(graph: Graph, row: int) -> tuple[Heard, ...]:
    """Influence that leaves a node, by where it goes next."""
    mass = graph.influence.clone()
    mass[graph.index.first_target :] += graph.weights
    passed: dict[tuple[int, int], float] = defaultdict(float)
    for block in graph.edges.blocks:
        column = (graph.edges.columns(block) == row).nonzero()[:, 0]
        if not len(column):
            continue
        values = block.values[:, column[0]].double().abs()
        sums = graph.flow.absolute[block.rows].clamp(min=torch.finfo(torch.float64).tiny)
        passed[block.layer, block.position] += float((values / sums * mass[block.rows]).sum())
    whole = sum(passed.values())
    ranked = sorted(passed.items(), key=lambda pair: (-pair[1], pair[0]))
    return tuple(Heard(*place, share / whole) for place, share in ranked if share > 0)


def _without(
    subject: Subject, node: Node, error: Float[Tensor, " d_model"], k: int
) -> tuple[tuple[TokenChange, ...], float, float]:
    """(next tokens, targets' value before, and after) as the error is taken away."""
    model, forward = subject.model, subject.forward
    patch = Patch(model.adapter, model.transcoders, [()])
    change = error.new_zeros(1, len(forward.token_ids), len(error))
    change[0, node.position] = -error
    patch.pending[node.layer] = change
    ids = forward.token_ids[None].to(model.adapter.device)
    with patch.applied(forward, Hold()):
        logits, residual = subject.outputs(ids)
    sites = [patch.sites[layer] for layer in range(model.adapter.n_layers)]
    reading = subject.reading(logits, residual, sites)
    place = -1 if subject.answer is None else subject.answer.position
    both = torch.stack([forward.logits[place], logits[0, place]]).cpu().double()
    shares = both.softmax(-1)
    best = shares.topk(min(k, shares.shape[1])).indices.flatten().tolist()
    chosen = sorted(set(best), key=lambda token: -float(shares[0, token]))
    tokens = tuple(
        TokenChange(model.token_text(t), t, *shares[:, t].tolist(), *both[:, t].tolist())
        for t in chosen
    )
    return tokens, float(subject.mean(subject.before)), float(subject.mean(reading))


def _read_by(
    other: TranscoderSet, subject: Subject, node: Node, error: Float[Tensor, " d_model"], k: int
) -> OtherReading:
    """What another set makes of the same MLP."""
    own = subject.model.transcoders
    if other.write != own.write:
        raise InputError(
            f"{other.name} predicts {other.write} and {own.name} {own.write}: their errors are not "
            "of the same thing"
        )
    model = ReplacementModel(subject.model.adapter, subject.model.tokenizer, other)
    forward = model.run(subject.forward.token_ids)
    encoded = {at: other.encode(at, forward.mlp_inputs[at]) for at in other.writers(node.layer)}
    x, output = forward.mlp_inputs[node.layer], forward.mlp_outputs[node.layer]
    left = (output - reconstruct(other, node.layer, encoded, x))[node.position]
    speakers = []
    for source, (cells, values) in encoded.items():
        here = cells[:, 0] == node.position
        ids = cells[here, 1]
        rows = other.decoder_rows(source, node.layer, ids.cpu(), error.dtype).to(error.device)
        shares = values[here] * (rows @ error) / error.square().sum()
        columns = (ids.tolist(), values[here].tolist(), shares.tolist())
        speakers += [Speaker(source, *entry) for entry in zip(*columns, strict=True)]
    speakers.sort(key=lambda one: (-abs(one.share), one.layer, one.feature))
    return OtherReading(
        transcoders=other.name,
        size=float(_size(left, output[node.position])),
        explained=float(1 - left.square().sum() / error.square().sum()),
        features=tuple(speakers[:k]),
    )
