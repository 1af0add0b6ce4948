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
from typing import Any

import torch

from circuit_tracer.changes import Change, Clamp, Scale
from circuit_tracer.comparing.activity import Activity
from circuit_tracer.comparing.profile import Key, Profile
from circuit_tracer.errors import InputError
from circuit_tracer.graph import Graph
from circuit_tracer.prune import NODES
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.targets import answer_tokens

STRENGTHS = (1.0, 1.5, 2.0, 3.0, 6.0)

Place = tuple[int, int, int]
"""(layer, position, id)"""


@dataclass(frozen=True)
class Trial:
    """One strength and end layer.

    Attributes:
        strength, end: MLP outputs of layers 0 to `end` are held.
        top: the likeliest token afterwards.
        probability: of the token wanted.
        success: whether that token is the likeliest.
        null_top, null_probability, null_success: the same with the null's features.
    """

    strength: float
    end: int
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
    influence: float
    null_influence: float
    trials: tuple[Trial, ...]


def swap(
    receiver: Graph,
    donor: Graph,
    wanted: str,
    model: ReplacementModel,
    among: Collection[Key] | None = None,
    places: Mapping[int, int] | None = None,
    contrasts: tuple[Graph, Graph] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    ends: Sequence[int] | None = None,
    nodes: float = NODES,
    seed: int = 0,
) -> Swap:
    """Put what the donor has alone into the receiver, in place of what that has alone.

    Args:
        receiver, donor: graphs of two prompts, traced with `model`.
        wanted: the answer that shows success; its first token counts.
        among: only these (layer, id), such as `language_features`; None for all.
        places: donor position → receiver position; None aligns equal beginnings and ends, and what
            is between from its end.
        contrasts: graphs that say what is the receiver's own, and what the donor's: what is not
            active there. None takes the donor for the receiver, and the receiver for the donor.
            To put an operand from one language into another, each language's other operand.
        ends: last held layers; None for every layer from the first that is changed.
        nodes: share of the influence that the circuits hold.
        seed: of the null's draw.

    Raises:
        InputError: nothing to take or put, strengths or layers that make no sense.
    """
    places = alignment(receiver.token_ids, donor.token_ids) if places is None else places
    sides = [Profile.of("receiver", receiver, nodes), Profile.of("donor", donor, nodes)]
    others = [Profile.of("contrast", graph, nodes) for graph in contrasts or (donor, receiver)]
    chosen = [_alone(one, other, among) for one, other in zip(sides, others, strict=True)]
    taken, put = _at(sides[0], chosen[0]), _at(sides[1], chosen[1])
    moved = {
        (layer, places[at], one): value for (layer, at, one), value in put.items() if at in places
    }
    if not taken and not moved:
        raise InputError("there is nothing to swap: neither prompt has features of its own there")
    held = sum(_influence(side, keys) for side, keys in zip(sides, chosen, strict=True))
    null = [_drawn(side, keys, seed) for side, keys in zip(sides, chosen, strict=True)]
    null_held = sum(_influence(side, keys) for side, keys in zip(sides, null, strict=True))
    null_put = {
        (layer, places[at], one): value
        for (layer, at, one), value in _at(sides[1], null[1]).items()
        if at in places
    }
    plans = [(taken, moved), (_at(sides[0], null[0]), null_put)]
    token = answer_tokens(model, receiver.provenance.prompt, wanted)[0]
    first = min(layer for layer, _, _ in (*taken, *moved))
    last = receiver.index.n_layers - 1
    trials: list[Trial] = []
    for end in range(first, last + 1) if ends is None else ends:
        if not 0 <= end <= last:
            raise InputError(f"there is no end layer {end}; layers are 0 to {last}")
        trials += _trials(model, receiver, plans, token, strengths, end)
    clean = model.run(list(receiver.token_ids)).logits[-1].double().softmax(-1)
    return Swap(
        receiver.provenance.prompt,
        donor.provenance.prompt,
        model.token_text(token),
        float(clean[token]),
        len(taken),
        len(moved),
        len(put) - len(moved),
        held,
        null_held,
        tuple(trials),
    )


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


def alignment(receiver: Sequence[int], donor: Sequence[int]) -> dict[int, int]:
    """Donor position → receiver position, by token ids.

    Equal beginnings and equal ends are aligned; what is between, from its end. The first position
    is left out, as graphs leave it out.

    >>> alignment([0, 7, 8, 5, 9], [0, 7, 6, 6, 5, 9])
    {1: 1, 3: 2, 4: 3, 5: 4}
    """
    short = min(len(receiver), len(donor))
    start = 0
    while start < short and receiver[start] == donor[start]:
        start += 1
    found = {k: k for k in range(1, start)}
    for back in range(1, short - start + 1):
        found[len(donor) - back] = len(receiver) - back
    return dict(sorted(found.items()))


def _alone(one: Profile, other: Profile, among: Collection[Key] | None) -> list[Key]:
    """Features in the circuit of one that are not active in the other."""
    keys: list[Key] = [(layer, number) for layer, number in one.keys[one.kept].tolist()]
    return [key for key in keys if key not in other.places and (among is None or key in among)]


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


def _trials(
    model: ReplacementModel,
    receiver: Graph,
    plans: Sequence[tuple[dict[Place, float], dict[Place, float]]],
    token: int,
    strengths: Sequence[float],
    end: int,
) -> list[Trial]:
    """All strengths at one end layer, each with its null, as one batch."""
    batch = [_changes(*plan, strength, end) for strength in strengths for plan in plans]
    ids, layers = list(receiver.token_ids), range(end + 1)
    run = [changes for changes in batch if changes]
    made = iter(model.intervene_each(ids, run, "constrained", layers) if run else [])
    clean = model.run(ids).logits[-1] if len(run) < len(batch) else torch.empty(0)
    found = []
    for changes in batch:
        logits = next(made).logits_after[-1] if changes else clean
        best, shares = int(logits.argmax()), logits.double().softmax(-1)
        found.append((model.token_text(best), float(shares[token]), best == token))
    return [
        Trial(strength, end, *found[2 * k], *found[2 * k + 1])
        for k, strength in enumerate(strengths)
    ]


def _changes(
    taken: dict[Place, float], put: dict[Place, float], strength: float, end: int
) -> dict[Any, Change]:
    """Of the layers up to the end; where a place is both taken and put, what is put counts."""
    changes: dict[Any, Change] = {place: Scale(1 - strength) for place in taken}
    changes |= {place: Clamp(strength * value) for place, value in put.items()}
    return {place: change for place, change in changes.items() if place[0] <= end}
