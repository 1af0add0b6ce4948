"""Is the pruned circuit what the model needs, and is it enough?

Necessity: its features are taken out of the model, and the targets should fall further than when
as many other features go. Sufficiency: all other features are taken out, layer by layer as the
rest recomputes, and what the features do for the targets should remain. Every number stands beside
the same for random features, as many in each layer, drawn from all that are active.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from circuit_tracer.agreement.splicing import spliced
from circuit_tracer.card import Necessity, Sufficiency
from circuit_tracer.changes import Edit
from circuit_tracer.models.attention import watched
from circuit_tracer.patched import Hold, Patch
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.verify.subject import Reading, Subject

RANDOM, SEED = 5, 0


def like_it(subject: Subject, rows: Int[Tensor, " some"]) -> list[Int[Tensor, " some"]]:
    """Random sets of features, as many in each layer as there are among `rows`."""
    index, draw = subject.graph.index, torch.Generator().manual_seed(SEED)
    sets = []
    for _ in range(RANDOM):
        parts = []
        for layer in range(index.n_layers):
            run = index.feature_rows(layer)
            count = int(((rows >= run.start) & (rows < run.stop)).sum())
            parts.append(run.start + torch.randperm(len(run), generator=draw)[:count])
        sets.append(torch.cat(parts).sort().values)
    return sets


def necessity(subject: Subject, rows: Int[Tensor, " some"]) -> tuple[Necessity, ...]:
    """What is lost without some features: in the free mode, and in the constrained one."""
    sets = [rows, *like_it(subject, rows)]
    found = []
    for mode, reader in (("free", _freely), ("constrained", _constrained)):
        readings = [reader(subject, one) for one in sets]
        after, *other = (float(subject.mean(reading)) for reading in readings)
        chances = [_number(reading.probability[0]) for reading in readings]
        found.append(
            Necessity(
                mode=mode,
                before=float(subject.mean(subject.before)),
                after=after,
                random_after=tuple(other),
                probability_before=_number(subject.before.probability[0]),
                probability_after=chances[0],
                random_probability=_mean(chances[1:]),
            )
        )
    return tuple(found)


def _freely(subject: Subject, rows: Int[Tensor, " some"]) -> Reading:
    """Features gone wherever they fire in the changed pass, everything else recomputed."""
    edits = [
        Edit(layer, at, feature, 0.0, 0.0) for layer, at, feature in subject.features[rows].tolist()
    ]
    model = subject.model
    return subject.read(Patch(model.adapter, model.transcoders, [edits]), Hold())


def _constrained(subject: Subject, rows: Int[Tensor, " some"]) -> Reading:
    """Patterns, and MLP outputs up to the last of the features, held; these less their writing."""
    model = subject.model
    patch = Patch(model.adapter, model.transcoders, [()])
    subject.take(patch, 0, rows)
    last = int(subject.features[rows, 0].max()) if len(rows) else 0
    return subject.read(patch, Hold(frozenset(range(last + 1)), patterns=True))


def sufficiency(subject: Subject, rows: Int[Tensor, " some"]) -> tuple[Sufficiency, ...]:
    """What some features do alone: with the errors in place, and without them."""
    sets, found = [rows, *like_it(subject, rows)], []
    full = float(subject.mean(subject.before))
    for errors in (True, False):
        none = alone(subject, rows[:0], errors)
        readings = [alone(subject, one, errors) for one in sets]
        values = [float(subject.mean(reading)) for reading in readings]
        empty = float(subject.mean(none))
        found.append(
            Sufficiency(
                errors=errors,
                full=full,
                empty=empty,
                value=values[0],
                random=tuple(values[1:]),
                probability_before=_number(subject.before.probability[0]),
                probability=_number(readings[0].probability[0]),
            )
        )
    return tuple(found)


def alone(subject: Subject, rows: Int[Tensor, " some"], errors: bool) -> Reading:
    """The model with MLPs of some features only; attention is live.

    At the positions of the graph an MLP gives what these features, read anew, write, with biases,
    skips and (`errors`) the error of the clean pass. Ignored positions keep their MLPs.
    """
    model, index = subject.model, subject.graph.index
    allowed = [
        torch.zeros(index.n_positions, len(model.transcoders.layer(layer).encoder)).bool()
        for layer in range(index.n_layers)
    ]
    for layer, position, feature in subject.features[rows].tolist():
        allowed[layer][position, feature] = True
    added = subject.errors if errors else None
    ids = subject.forward.token_ids[None].to(model.adapter.device)
    with (
        watched(model.adapter.model),
        spliced(model.adapter, model.transcoders, ~subject.kept, allowed, added) as sites,
    ):
        logits, residual = subject.outputs(ids)
    return subject.reading(logits, residual, [sites[n][None] for n in range(index.n_layers)])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: Float[Tensor, ""]) -> float | None:
    """A number, None for NaN."""
    return None if bool(value.isnan()) else float(value)
