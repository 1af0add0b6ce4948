"""Interventions: change features of a prompt and see what happens.

Three modes, from the graph's own account of the model to the model itself:

    direct        patterns, norms and all MLPs held: linear in the change. What a graph's edges say:
                  Δ pre-activation of t = (Δ activation of s / activation of s) · A[t, s].
    constrained   patterns held, and the MLP outputs of some layers at clean + change; the rest is
                  recomputed. Read out above those layers.
    free          everything downstream recomputed; patterns too, unless they are to be held.

An `Intervention` is what came of it, beside what was before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from circuit_tracer.changes import Changes, Clean, Edit, activations, resolve
from circuit_tracer.errors import InputError
from circuit_tracer.forward import Forward
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.patched import Hold, Seen, run_patched
from circuit_tracer.shapes import Float, Int, Tensor
from circuit_tracer.transcoders.base import TranscoderSet

Mode = Literal["direct", "constrained", "free"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class TokenChange:
    """One token of the vocabulary before and after: its probabilities, and its logits."""

    token: str
    token_id: int
    before: float
    after: float
    logit_before: float
    logit_after: float


@dataclass(frozen=True)
class FeatureChange:
    """The activation of one feature before and after, as the residual stream gives it: for a
    feature that was itself changed this is not what it was set to."""

    layer: int
    position: int
    feature: int
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Intervention:
    """What an intervention did.

    Attributes:
        edits: what was changed, feature by feature: `new = scale · old + offset`.
        mode: "direct", "constrained" or "free".
        held_layers: layers whose MLP outputs were held; activations there are of no meaning in
            the constrained mode.
        logits_before, logits_after: (P, V), soft-capped where the model does.
        features: (n, 3) rows (layer, position, id) active before or after, in node order.
        before, after: (n,) their activations, as the residual stream gives them.
        pre_before, pre_after: (n,) what they read, linearly: their pre-activations.
        token_text: text of a token id. As a model gives it, it holds the tokenizer and no model: an
            intervention can be pickled (multiprocessing, Ray).
    """

    edits: tuple[Edit, ...]
    mode: Mode
    held_layers: tuple[int, ...]
    logits_before: Float[Tensor, "position vocabulary"]
    logits_after: Float[Tensor, "position vocabulary"]
    features: Int[Tensor, "active 3"]
    before: Float[Tensor, " active"]
    after: Float[Tensor, " active"]
    pre_before: Float[Tensor, " active"]
    pre_after: Float[Tensor, " active"]
    token_text: Callable[[int], str]

    def __repr__(self) -> str:
        first, last = self.table(1)[0], max(self.table(1), key=lambda row: row.after)
        return (
            f"Intervention({len(self.edits)} edits, {self.mode}: "
            f"{first.token!r} {first.before:.1%} → {first.after:.1%}, "
            f"top after {last.token!r} {last.after:.1%})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: of tensors that are a part of a batch's, that part alone."""
        return {
            name: value.clone() if isinstance(value, torch.Tensor) else value
            for name, value in vars(self).items()
        }

    def table(
        self, k: int = 10, position: int = -1, tokens: Sequence[int] = ()
    ) -> list[TokenChange]:
        """Tokens before and after, the most probable before first.

        Args:
            k: the k most probable before, and the k most probable after.
            position: where they are predicted; negative counts from the end.
            tokens: ids of further tokens to list.

        Raises:
            InputError: k below 1, a position or token that is not there.
        """
        n_positions, vocabulary = self.logits_before.shape
        if k < 1:
            raise InputError(f"a table has at least one row, not {k}")
        if not -n_positions <= position < n_positions:
            raise InputError(
                f"there is no position {position}; the prompt has 0 to {n_positions - 1}"
            )
        wrong = [token for token in tokens if not 0 <= token < vocabulary]
        if wrong:
            raise InputError(f"there is no token {wrong[0]}; ids are 0 to {vocabulary - 1}")
        logits = (
            torch.stack([self.logits_before[position], self.logits_after[position]]).cpu().double()
        )
        shares = logits.softmax(-1)
        top = shares.topk(min(k, vocabulary)).indices.flatten().tolist()
        ids = sorted({*top, *tokens}, key=lambda token: -float(shares[0, token]))
        return [
            TokenChange(
                self.token_text(token),
                token,
                *shares[:, token].tolist(),
                *logits[:, token].tolist(),
            )
            for token in ids
        ]

    def changed(self, k: int | None = 20) -> list[FeatureChange]:
        """Features that moved, the largest change first; those in held layers are left out in the
        constrained mode, where they do not see the whole change."""
        features, before, after = self.features.cpu(), self.before.cpu(), self.after.cpu()
        moved = (after - before).abs()
        if self.mode == "constrained":
            held = torch.isin(features[:, 0], torch.tensor(self.held_layers))
            moved = moved.where(~held, 0)
        ranked = moved.argsort(descending=True)
        changes = []
        for row in ranked[moved[ranked] > 0][:k].tolist():
            layer, position, feature = features[row].tolist()
            was, became = float(before[row]), float(after[row])
            changes.append(FeatureChange(layer, position, feature, was, became))
        return changes

    def activations_of(self, features: Int[Tensor, "active 3"]) -> Float[Tensor, " active"]:
        """Activations afterwards of some (layer, position, id) rows, such as a graph's."""
        rows = {tuple(place): row for row, place in enumerate(self.features.tolist())}
        found = [rows.get(tuple(place)) for place in features.tolist()]
        return torch.stack(
            [self.after.new_zeros(()) if row is None else self.after[row] for row in found]
        )


def intervene(
    adapter: Adapter,
    transcoders: TranscoderSet,
    forward: Forward,
    batch: Sequence[Changes],
    token_text: Callable[[int], str],
    mode: Mode = "free",
    layers: Sequence[int] | None = None,
    freeze_attention: bool = False,
) -> list[Intervention]:
    """Several interventions on one prompt, in one forward pass.

    Args:
        forward: the clean pass.
        batch: for each intervention, features and what becomes of them (`changes.resolve`).
        mode, layers, freeze_attention: as in `ReplacementModel.intervene`.
    """
    clean = Clean(transcoders, forward)
    edits, hold, seen = _passed(adapter, clean, batch, mode, layers, freeze_attention)
    before = [clean.activations(layer) for layer in range(adapter.n_layers)]
    return [
        Intervention(
            edits=tuple(edits[number]),
            mode=mode,
            held_layers=tuple(sorted(hold.mlps)),
            logits_before=forward.logits,
            logits_after=seen.logits[number],
            **_features(clean, before, [site[number] for site in seen.sites]),
            token_text=token_text,
        )
        for number in range(len(batch))
    ]


def changed_logits(
    adapter: Adapter,
    clean: Clean,
    batch: Sequence[Changes],
    mode: Mode = "free",
    layers: Sequence[int] | None = None,
) -> Float[Tensor, "batch position vocabulary"]:
    """The logits of several interventions, without the features, which take most of the time.

    Arguments are those of `intervene`; `clean` may serve many batches.
    """
    return _passed(adapter, clean, batch, mode, layers, False)[2].logits


def _passed(
    adapter: Adapter,
    clean: Clean,
    batch: Sequence[Changes],
    mode: Mode,
    layers: Sequence[int] | None,
    freeze_attention: bool,
) -> tuple[list[list[Edit]], Hold, Seen]:
    """What changes come to, what is held, and the pass."""
    if not batch:
        raise InputError("there is no intervention to make; give at least one")
    edits = [resolve(changes, clean) for changes in batch]
    hold = held_by(mode, adapter.n_layers, layers, freeze_attention, edits)
    if hold.mlps:
        _check_written(edits, hold.mlps, clean.transcoders)
    return edits, hold, run_patched(adapter, clean, edits, hold)


def held_by(
    mode: Mode,
    n_layers: int,
    layers: Sequence[int] | None,
    freeze_attention: bool,
    edits: Sequence[Sequence[Edit]],
) -> Hold:
    """What a mode holds.

    Raises:
        InputError: an unknown mode, a layer that is not there, an option the mode has no use for.
    """
    if mode not in MODES:
        raise InputError(f"mode must be one of {', '.join(map(repr, MODES))}, not {mode!r}")
    if layers is not None and mode != "constrained":
        raise InputError(f"layers= says what the constrained mode holds; {mode!r} takes none")
    if freeze_attention and mode != "free":
        raise InputError(f"freeze_attention= belongs to the free mode; {mode!r} always freezes it")
    if mode == "free":
        return Hold(patterns=freeze_attention)
    if mode == "direct":
        return Hold(frozenset(range(n_layers)), patterns=True, norms=True)
    if layers is None:
        layers = range(1 + max(edit.layer for one in edits for edit in one))
    wrong = [layer for layer in layers if not 0 <= layer < n_layers]
    if wrong or not len(layers):
        said = f"there is no layer {wrong[0]}" if wrong else "layers is empty"
        raise InputError(f"{said}: name layers to hold among 0 to {n_layers - 1}")
    return Hold(frozenset(layers), patterns=True)


def _check_written(
    batch: Sequence[Sequence[Edit]], held: frozenset[int], transcoders: TranscoderSet
) -> None:
    """Raise InputError where a change would be written to no held layer, and so do nothing."""
    for edit in (edit for edits in batch for edit in edits):
        reach = len(transcoders.layer(edit.layer).decoders)
        if not held & set(range(edit.layer, edit.layer + reach)):
            raise InputError(
                f"feature {edit.feature} of layer {edit.layer} writes to none of the held layers "
                f"{sorted(held)}, so changing it would do nothing; hold layer {edit.layer} as well"
            )


def _features(clean: Clean, before: Sequence[Tensor], sites: Sequence[Tensor]) -> dict[str, Tensor]:
    """The fields of an `Intervention` about features."""
    parts = []
    for layer, (old, site) in enumerate(zip(before, sites, strict=True)):
        new = activations(clean.transcoders, layer, site)
        positions, ids = ((old != 0) | (new != 0)).nonzero().T
        x = clean.forward.mlp_inputs[layer][positions]
        rows, bias = clean.transcoders.read_rows(layer, ids, x)
        place = torch.stack([torch.full_like(ids, layer), positions, ids], dim=1)
        pre_before, pre_after = ((rows * at).sum(1) + bias for at in (x, site[positions]))
        parts.append((place, old[positions, ids], new[positions, ids], pre_before, pre_after))
    names = ("features", "before", "after", "pre_before", "pre_after")
    joined = (torch.cat(column) for column in zip(*parts, strict=True))
    return dict(zip(names, joined, strict=True))
