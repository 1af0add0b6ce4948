"""Swaps: take from one prompt what makes it different, put in what makes another so, and look.

The features are those of the comparison itself: in the receiver's circuit and not active in the
donor (or in another prompt named for contrast), and the other way round. At strength s the
receiver's own are set to 1 − s times what they are and the donor's to s times what they are in the
donor: 1 replaces one by the other, 1.5 and 6 are the −0.5 / +1.5 and −5 / +6 of Lindsey et al.
2025. MLP outputs up to an end layer are held at clean + change (`constrained`, see `intervene`),
and what the rest makes of it is read off.

Beside every trial stands a null: as much influence in features drawn among all others active in
each prompt, treated alike. A swap says something only where it succeeds and the null does not.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import fsum

from circuit_tracer.changes import Clean
from circuit_tracer.comparing.activity import Activity
from circuit_tracer.comparing.alignment import alignment
from circuit_tracer.comparing.profile import Key, Profile
from circuit_tracer.errors import InputError
from circuit_tracer.graft import Exchange, Place, outcomes
from circuit_tracer.graph import Graph
from circuit_tracer.prune import NODES
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.shapes import Float, Tensor
from circuit_tracer.targets import answer_tokens

STRENGTHS = (1.0, 1.5, 2.0, 3.0, 6.0)


@dataclass(frozen=True)
class Trial:
    """One strength and end layer.

    Attributes:
        strength, end: MLP outputs of layers 0 to `end` are held; None where nothing is.
        top: the likeliest token afterwards.
        probability: of the token wanted.
        success: whether that token is the likeliest.
        null_top, null_probability, null_success: the same with the null's features.
    """

    strength: float
    end: int | None
    top: str
    probability: float
    success: bool
    null_top: str
    null_probability: float
    null_success: bool


@dataclass(frozen=True)
class Swap:
    """What came of putting parts of one prompt into another.

    Attributes:
        receiver, donor: the prompts.
        wanted: the token that shows success.
        before: its probability in the receiver when nothing is changed.
        taken, put: how many features at a position are taken out and put in.
        lost: donor features at positions that have no counterpart in the receiver.
        own, foreign: (layer, id) of what is taken and put, the most influential first.
        influence, null_influence: influence of all that is taken and put, and of the null's, each
            summed as shares of their prompts.
        trials: every strength with every end layer.
    """

    receiver: str
    donor: str
    wanted: str
    before: float
    taken: int
    put: int
    lost: int
    own: tuple[Key, ...]
    foreign: tuple[Key, ...]
    influence: float
    null_influence: float
    trials: tuple[Trial, ...]


def swap(
    receiver: Graph,
    donor: Graph,
    wanted: str | int,
    model: ReplacementModel,
    among: Collection[Key] | None = None,
    places: Mapping[int, int] | None = None,
    contrasts: tuple[Graph, Graph] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    ends: Sequence[int | None] | None = None,
    nodes: float = NODES,
    seed: int = 0,
) -> Swap:
    """Put what the donor has alone into the receiver, in place of what that has alone.

    Args:
        receiver, donor: graphs of two prompts, traced with `model`.
        wanted: the answer that shows success, of which the first token counts, or a token id.
        among: only these (layer, id), such as `language_features`; None for all.
        places: donor position → receiver position; None aligns equal beginnings and ends, and what
            is between from its end.
        contrasts: graphs that say what is the receiver's own, and what the donor's: what is not
            active there. None takes the donor for the receiver, and the receiver for the donor.
            To put an operand from one language into another, each language's other operand.
        ends: last held layers, None among them for recomputing everything; None for every layer
            from the first that is changed.
        nodes: share of the influence that the circuits hold.
        seed: of the null's draw.

    Raises:
        InputError: nothing to take or put, strengths or layers that make no sense.
    """
    places = alignment(receiver.token_ids, donor.token_ids) if places is None else places
    sides = [Profile.of("receiver", receiver, nodes), Profile.of("donor", donor, nodes)]
    others = [Profile.of("contrast", graph, nodes) for graph in contrasts or (donor, receiver)]
    chosen = [_alone(one, other, among) for one, other in zip(sides, others, strict=True)]
    made = _exchange(sides, chosen, places)
    if not made.taken and not made.put:
        raise InputError("there is nothing to swap: neither prompt has features of its own there")
    null = [_drawn(side, keys, seed) for side, keys in zip(sides, chosen, strict=True)]
    exchanges = made, _exchange(sides, null, places)
    token = wanted if isinstance(wanted, int) else _first(model, receiver, wanted)
    if ends is None:
        ends = range(min(at[0] for at in (*made.taken, *made.put)), receiver.index.n_layers)
    clean = Clean(model.transcoders, model.run(list(receiver.token_ids)))
    trials = [
        trial for end in ends for trial in _trials(model, clean, exchanges, token, strengths, end)
    ]
    return Swap(
        receiver=receiver.provenance.prompt,
        donor=donor.provenance.prompt,
        wanted=model.token_text(token),
        before=float(clean.forward.logits[-1].cpu().double().softmax(-1)[token]),
        taken=len(made.taken),
        put=len(made.put),
        lost=len(_at(sides[1], chosen[1])) - len(made.put),
        own=tuple(chosen[0]),
        foreign=tuple(chosen[1]),
        influence=fsum(map(_influence, sides, chosen)),
        null_influence=fsum(map(_influence, sides, null)),
        trials=tuple(trials),
    )


def _exchange(
    sides: Sequence[Profile], keys: Sequence[Sequence[Key]], places: Mapping[int, int]
) -> Exchange:
    """Features of the receiver out, and those of the donor in, where they have a place."""
    put = _at(sides[1], keys[1]).items()
    moved = {(layer, places[at], one): value for (layer, at, one), value in put if at in places}
    return Exchange(_at(sides[0], keys[0]), moved)


def _trials(
    model: ReplacementModel,
    clean: Clean,
    exchanges: tuple[Exchange, Exchange],
    token: int,
    strengths: Sequence[float],
    end: int | None,
) -> list[Trial]:
    """All strengths at one end layer, each with its null, as one batch."""
    batch = [one.changes(strength, last=end) for strength in strengths for one in exchanges]
    found = [_read(model, logits, token) for logits in outcomes(model, clean, batch, end)]
    pairs = zip(strengths, found[::2], found[1::2], strict=True)
    return [Trial(float(strength), end, *one, *other) for strength, one, other in pairs]


def _first(model: ReplacementModel, receiver: Graph, wanted: str) -> int:
    return answer_tokens(model, receiver.provenance.prompt, wanted)[0]


def _read(
    model: ReplacementModel, logits: Float[Tensor, " vocabulary"], token: int
) -> tuple[str, float, bool]:
    """The likeliest token, the probability of the one wanted, and whether they are one."""
    best = int(logits.argmax())
    return model.token_text(best), float(logits.cpu().double().softmax(-1)[token]), best == token


def language_features(activity: Activity, language: str, least: int = 3) -> set[Key]:
    """(layer, id) of all features specific to a language on a corpus (`Spread.verdict`).

    Args:
        least: texts of that language in which they fire, at least.
    """
    place, found = activity.corpus.languages.index(language), set()
    for layer, (ids, values) in enumerate(zip(activity.ids, activity.values, strict=True)):
        often = ((values[place] > 0).sum(0) >= least).nonzero()[:, 0]
        for one in ids[often].tolist():
            spread = activity.spread((layer, one))
            if spread.verdict == "specific" and spread.language == language:
                found.add((layer, one))
    return found


def _alone(one: Profile, other: Profile, among: Collection[Key] | None) -> list[Key]:
    """Features in the circuit of one that are not active in the other, most influential first."""
    keys: list[Key] = [(layer, number) for layer, number in one.keys[one.kept].tolist()]
    good = [key for key in keys if key not in other.places and (among is None or key in among)]
    return sorted(good, key=lambda key: (-float(one.influence[one.places[key]]), key))


def _at(profile: Profile, keys: Sequence[Key]) -> dict[Place, float]:
    """Activations of features, wherever they are active."""
    wanted, index = set(keys), profile.graph.index
    pairs = zip(index.features.tolist(), profile.graph.activations.tolist(), strict=True)
    return {(layer, at, one): value for (layer, at, one), value in pairs if (layer, one) in wanted}


def _influence(profile: Profile, keys: Sequence[Key]) -> float:
    return fsum(float(profile.influence[profile.places[key]]) for key in keys)


def _drawn(profile: Profile, keys: Sequence[Key], seed: int) -> list[Key]:
    """Other active features, drawn until they hold as much influence."""
    goal, taken = _influence(profile, keys), set(keys)
    others = [key for key in profile.places if key not in taken]
    found, held = list[Key](), 0.0
    for key in random.Random(seed).sample(others, len(others)):
        if held >= goal:
            break
        found.append(key)
        held += float(profile.influence[profile.places[key]])
    return found
