"""Grafts: features of one prompt, the donor, put into another, the receiver.

Features are taken with the activations they have in the donor, times a strength, and set in the
receiver; features of the receiver that stand in their way are scaled down. By default these are at
1 − strength: strength 1 replaces the one by the other, 1.5 and 6 are the −0.5 / +1.5 and −5 / +6 of
Lindsey et al. 2025. Strengths are swept, and so are end layers: up to an end layer MLP outputs are
held at clean + change and attention patterns too (`constrained`, see `intervene`); without one
everything is recomputed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from circuit_tracer.changes import Change, Clamp, Clean, Scale, resolve
from circuit_tracer.errors import InputError
from circuit_tracer.intervene import changed_logits
from circuit_tracer.view.curves import Panel, figure

if TYPE_CHECKING:
    from circuit_tracer.forward import Forward
    from circuit_tracer.intervene import Mode
    from circuit_tracer.replacement import ReplacementModel
    from circuit_tracer.shapes import Float, Tensor

Place = tuple[int, int, int]
"""(layer, position, id)"""
Positions = int | Mapping[int, int] | None


@dataclass(frozen=True)
class Exchange:
    """Features that go out of a prompt, and features that come in.

    Attributes:
        taken: places that are scaled down.
        put: places that are set, with the activation at strength 1; where a place is both, what is
            put counts.
    """

    taken: Collection[Place]
    put: Mapping[Place, float]

    def changes(
        self, strength: float, removal: float | None = None, last: int | None = None
    ) -> dict[Place, Change]:
        """What becomes of each place.

        Args:
            removal: what is taken is multiplied by; None for 1 − strength.
            last: layers above it are left alone; None for none.
        """
        factor = 1 - strength if removal is None else removal
        changes: dict[Place, Change] = {place: Scale(factor) for place in self.taken}
        changes |= {place: Clamp(strength * value) for place, value in self.put.items()}
        return {at: one for at, one in changes.items() if last is None or at[0] <= last}


def outcomes(
    model: ReplacementModel,
    receiver: Clean,
    batch: Sequence[Mapping[Place, Change]],
    end: int | None,
) -> Iterator[Float[Tensor, " vocabulary"]]:
    """The logits at the last position after each of some changes, in one forward pass.

    Args:
        receiver: the clean pass; one for all calls, so that no layer is encoded twice.
        batch: where nothing is changed, the logits are the clean ones.
        end: MLP outputs of layers 0 to this one are held at clean + change, and attention
            patterns; None recomputes everything.

    Raises:
        InputError: an end layer that is not there, or below a feature that is changed.
    """
    n_layers = model.adapter.n_layers
    if end is not None and not 0 <= end < n_layers:
        raise InputError(f"there is no end layer {end}; layers are 0 to {n_layers - 1}")
    mode: Mode = "free" if end is None else "constrained"
    layers = None if end is None else range(end + 1)
    changed = [changes for changes in batch if changes]
    results: Iterator[Float[Tensor, "position vocabulary"]] = iter(())
    if changed:
        results = iter(changed_logits(model.adapter, receiver, changed, mode, layers))
    for changes in batch:
        yield next(results)[-1] if changes else receiver.forward.logits[-1]


@dataclass(frozen=True)
class Taken:
    """A feature of the donor, where it was, where it is put, and its activation in the donor."""

    layer: int
    feature: int
    donor_position: int
    position: int
    activation: float


@dataclass(frozen=True)
class Trial:
    """One strength with one end layer.

    Attributes:
        strength: of what is taken, times its activation in the donor.
        removal: what the receiver's features were multiplied by.
        end_layer: the last held layer; None where nothing is held.
        top: the likeliest next token.
        top_probability: its probability.
        probabilities: of `Grafts.tokens`.
    """

    strength: float
    removal: float
    end_layer: int | None
    top: str
    top_probability: float
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Grafts:
    """What a donor's features did to a receiver.

    Attributes:
        receiver, donor: the prompts, token by token.
        taken: what was put in.
        removed: (layer, position, id) of what was scaled down.
        tokens: the receiver's and the donor's likeliest next token, then those asked for.
        before: their probabilities in the receiver when nothing is changed.
        trials: every end layer with every strength.
    """

    receiver: tuple[str, ...]
    donor: tuple[str, ...]
    taken: tuple[Taken, ...]
    removed: tuple[Place, ...]
    tokens: tuple[str, ...]
    before: tuple[float, ...]
    trials: tuple[Trial, ...]

    def rows(self) -> list[tuple[str, ...]]:
        """The trials as cells of text, the heading first, then the receiver as it is."""
        head = ("strength", "removal", "end layer", "next token", *map(repr, self.tokens))
        clean = ("nothing changed", "", "", "", *map(_percent, self.before))
        trials = [
            (
                f"{one.strength:g}",
                f"{one.removal:g}" if self.removed else "",
                _end(one.end_layer),
                f"{one.top!r} {_percent(one.top_probability)}",
                *map(_percent, one.probabilities),
            )
            for one in self.trials
        ]
        return [head, clean, *trials]

    def table(self) -> str:
        """The trials as text."""
        rows = self.rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        )
        return "\n".join(line.rstrip() for line in lines)

    def __str__(self) -> str:
        return self.table()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """In a notebook: as `print` shows it."""
        printer.text(str(self))

    def to_plain(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return asdict(self)

    def figure(self) -> Any:
        """A plotly figure: the probability of each token by strength, a curve an end layer."""
        ends = list(dict.fromkeys(one.end_layer for one in self.trials))
        strengths = {
            end: [one.strength for one in self.trials if one.end_layer == end] for end in ends
        }
        panels = []
        for place, token in enumerate(self.tokens):
            curves = {
                "free" if end is None else f"end layer {end}": (
                    strengths[end],
                    [one.probabilities[place] for one in self.trials if one.end_layer == end],
                )
                for end in ends
            }
            panels.append(Panel(repr(token), "strength", "probability", curves))
        drawn = figure(panels)
        drawn.update_traces(mode="lines+markers")
        for number, curve in enumerate(drawn.data):
            curve.update(legendgroup=curve.name, showlegend=number < len(ends))
        return drawn.update_layout(showlegend=True).update_yaxes(range=[0, 1.02])


def graft(
    model: ReplacementModel,
    receiver: str | Sequence[int] | Tensor,
    donor: str | Sequence[int] | Tensor,
    take: Sequence[Any],
    remove: Sequence[Any] = (),
    strengths: Sequence[float] = (1.0,),
    removal: float | None = None,
    end_layers: Sequence[int | None] = (None,),
    at: Positions = None,
    tokens: Sequence[int] = (),
) -> Grafts:
    """Put features of a donor into a receiver; arguments as in `ReplacementModel.graft`."""
    for name, given in (("take", take), ("strengths", strengths), ("end_layers", end_layers)):
        if not len(given):
            raise InputError(f"{name} is empty; give at least one")
    here, there = model.run(receiver), model.run(donor)
    taken = _taken(model, here, there, take, at)
    puts = {(one.layer, one.position, one.feature): one.activation for one in taken}
    if len(puts) < len(taken):
        raise InputError("two features that are taken go to one place; name positions with at=")
    clean = Clean(model.transcoders, here)
    active = _named(remove, clean)
    removed = [place for place in active if place not in puts]
    ids = _tokens(model, here, there, tokens)
    exchange = Exchange(removed, puts)
    batch = [exchange.changes(strength, removal) for strength in strengths]
    trials = [
        _trial(model, logits, strength, removal, end, ids)
        for end in end_layers
        for strength, logits in zip(strengths, outcomes(model, clean, batch, end), strict=True)
    ]
    shares = here.logits[-1].cpu().double().softmax(-1)
    return Grafts(
        receiver=tuple(model.token_text(token) for token in here.token_ids.tolist()),
        donor=tuple(model.token_text(token) for token in there.token_ids.tolist()),
        taken=tuple(taken),
        removed=tuple(removed),
        tokens=tuple(model.token_text(token) for token in ids),
        before=tuple(float(shares[token]) for token in ids),
        trials=tuple(trials),
    )


def _taken(
    model: ReplacementModel, here: Forward, there: Forward, take: Sequence[Any], at: Positions
) -> list[Taken]:
    """What is taken, with its activations and where it goes; inactive ones are left out."""
    clean, found = Clean(model.transcoders, there), []
    seen: dict[int, Tensor] = {}
    for layer, position, feature in _named(take, clean):
        if layer not in seen:
            seen[layer] = clean.activations(layer).cpu()
        value = float(seen[layer][position, feature])
        if value:  # zero at some positions of a range
            place = _place(position, len(here.token_ids), len(there.token_ids), at)
            found.append(Taken(layer, feature, position, place, value))
    return found


def _named(keys: Sequence[Any], clean: Clean) -> list[Place]:
    """The places that keys name. Raises InputError where one is not active."""
    edits = resolve([(key, Scale(1.0)) for key in keys], clean) if len(keys) else []
    found = ((edit.layer, edit.position, edit.feature) for edit in edits)
    return [(layer, at, feature) for layer, at, feature in found if at is not None]


def _place(position: int, n_here: int, n_there: int, at: Positions) -> int:
    """Where in the receiver something from a position of the donor goes."""
    if at is None:
        place = position - n_there + n_here
        said = f"position {position} of the donor, counted from the end,"
    elif isinstance(at, Mapping):
        if position not in at:
            raise InputError(f"at= does not say where position {position} of the donor goes")
        place, said = at[position], f"at= position {at[position]}"
    else:
        place, said = at, f"at= position {at}"
    if at is not None and -n_here <= place < 0:
        place += n_here
    if not 0 <= place < n_here:
        raise InputError(f"{said} is not in the receiver; it has positions 0 to {n_here - 1}")
    return place


def _tokens(
    model: ReplacementModel, here: Forward, there: Forward, tokens: Sequence[int]
) -> list[int]:
    """Ids of both prompts' likeliest tokens and of those asked for, each once."""
    wrong = [token for token in tokens if not 0 <= token < model.adapter.vocabulary]
    if wrong:
        raise InputError(
            f"there is no token {wrong[0]}; ids are 0 to {model.adapter.vocabulary - 1}"
        )
    best = [int(forward.logits[-1].argmax()) for forward in (here, there)]
    return list(dict.fromkeys([*best, *tokens]))


def _trial(
    model: ReplacementModel,
    logits: Float[Tensor, " vocabulary"],
    strength: float,
    removal: float | None,
    end: int | None,
    ids: Sequence[int],
) -> Trial:
    factor = 1 - strength if removal is None else removal
    shares = logits.cpu().double().softmax(-1)
    top = int(shares.argmax())
    chosen = tuple(float(shares[token]) for token in ids)
    said = model.token_text(top)
    return Trial(float(strength), float(factor), end, said, float(shares[top]), chosen)


def _end(layer: int | None) -> str:
    return "free" if layer is None else str(layer)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
