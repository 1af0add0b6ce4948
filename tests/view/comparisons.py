"""Comparisons to look at: synthetic graphs that share a known part, more of it in middle layers."""

from __future__ import annotations

import math
import random
from itertools import combinations

from circuit_tracer.view import Drawing, DrawnNode
from circuit_tracer.view.compared import (
    ComparedEdge,
    ComparedFeature,
    ComparedGraph,
    ComparedRole,
    ComparedSupernode,
    ComparisonDrawing,
    LayerOverlaps,
)

PROMPTS = {
    "en": ("<bos>", "The", " opposite", " of", " small", " is"),
    "fr": ("<bos>", "Le", " contraire", " de", " petit", " est"),
    "zh": ("<bos>", "小", "的", "反义词", "是"),
    "es": ("<bos>", "Lo", " contrario", " de", " pequeño", " es"),
    "de": ("<bos>", "Das", " Gegenteil", " von", " klein", " ist"),
    "ar": ("<bos>", "عكس", " كلمة", " صغير", " هو"),
    "ja": ("<bos>", "小さい", "の", "反対", "は"),
    "he": ("<bos>", "ההפך", " של", " קטן", " הוא"),
}
ANSWERS = {
    "en": " big",
    "fr": " grand",
    "zh": "大",
    "es": " grande",
    "de": " groß",
    "ar": " كبير",
    "ja": "大きい",
    "he": " גדול",
}
NAMES = ("antonym", "size", "small", "large", "", "", "quotes", "language")


def compared(names=("en", "fr"), n_layers=12, n_features=180, seed=0, n_edges=300, **changes):
    """A random comparison of these graphs, each with about `n_edges`."""
    rng = random.Random(seed)
    features = [_feature(number, names, n_layers, rng) for number in range(n_features)]
    given = {
        "graphs": tuple(
            ComparedGraph(
                name,
                _drawing(place, name, features, n_layers, rng, n_edges),
                href=f"page%20{place}.html",
            )
            for place, name in enumerate(names)
        ),
        "features": tuple(features),
        "overlaps": tuple(
            _overlap(places, features, n_layers, rng)
            for size in sorted({2, len(names)})
            for places in combinations(range(len(names)), size)
        ),
        "counts": tuple(
            tuple(
                sum(one.layer == layer and place in one.owners for one in features)
                for layer in range(n_layers)
            )
            for place in range(len(names))
        ),
        "edges": _edges(features, len(names), rng),
        "roles": _roles(features, len(names)),
        "supernodes": _supernodes(features, len(names)),
        "summary": "Of these features, most are active in one graph only.",
        "about": {"version": "0.1.0", "corpus": "bundled"},
    }
    return ComparisonDrawing(**(given | changes))


def tokens_of(name):
    return PROMPTS.get(name, PROMPTS["en"])


def _feature(number, names, n_layers, rng):
    layer = rng.randrange(n_layers)
    shared = math.exp(-(((layer - n_layers * 0.55) / (n_layers * 0.22)) ** 2))
    alone = rng.randrange(len(names))
    owners = (
        set(range(len(names)))
        if rng.random() < shared * 0.8
        else {alone} | {k for k in range(len(names)) if rng.random() < 0.25}
    )
    ids = tuple(number * 7 if k in owners else None for k in range(len(names)))
    size = rng.paretovariate(1.2) / 600
    influence = tuple(size * rng.uniform(0.5, 1.5) if k in owners else 0.0 for k in range(len(ids)))
    positions = tuple(
        tuple(sorted(rng.sample(range(1, len(tokens_of(name))), rng.choice((1, 1, 2)))))
        if k in owners
        else ()
        for k, name in enumerate(names)
    )
    words = rng.sample([" grand", " large", " big", " énorme", " 大", " vaste", "\n", " plus"], 4)
    return ComparedFeature(
        layer,
        ids,
        influence,
        positions,
        label=rng.choice(NAMES),
        promoted=tuple((word, 3.0 - k) for k, word in enumerate(words[:2])),
        suppressed=tuple((word, -1.0 - k) for k, word in enumerate(words[2:])),
        spread={name: rng.random() for name in names},
        verdict=rng.choice(("agnostic", "specific", "mixed")),
    )


def _drawing(place, name, features, n_layers, rng, n_edges):
    tokens = tokens_of(name)
    last = len(tokens) - 1
    nodes = [
        DrawnNode(f"E_{k}_{k}", "embedding", -1, k, k, token, influence=0.1)
        for k, token in enumerate(tokens)
    ]
    for one in features:
        for position in one.positions[place]:
            nodes.append(
                DrawnNode(
                    f"{one.layer}_{one.ids[place]}_{position}",
                    "feature",
                    one.layer,
                    position,
                    one.ids[place],
                    tokens[position],
                    label=one.label,
                    influence=one.influence[place] / len(one.positions[place]),
                    activation=1.0,
                )
            )
    nodes.append(
        DrawnNode(
            "out",
            "logit",
            n_layers,
            last,
            9,
            ANSWERS.get(name, "?"),
            probability=0.71,
            influence=0.7,
        )
    )
    edges = {}
    for _ in range(4 * n_edges):
        s, t = rng.randrange(len(nodes)), rng.randrange(len(nodes))
        a, b = nodes[s], nodes[t]
        if a.layer < b.layer and a.position <= b.position and b.kind != "embedding":
            edges[s, t] = rng.paretovariate(1.2) / 100 * rng.choice((1, 1, -1))
    return Drawing(
        "".join(tokens[1:]),
        tokens,
        "synthetic",
        "synthetic-plt",
        n_layers,
        tuple(nodes),
        tuple((s, t, weight) for (s, t), weight in edges.items()),
    )


def _overlap(places, features, n_layers, rng):
    weighted, plain = [], []
    for layer in range(n_layers):
        here = [one for one in features if one.layer == layer and set(places) & set(one.owners)]
        each = [[one.influence[place] for place in places] for one in here]
        more = math.fsum(max(shares) for shares in each)
        weighted.append(math.fsum(min(shares) for shares in each) / more if more else None)
        both = sum(set(places) <= set(one.owners) for one in here)
        plain.append(both / len(here) if here else None)
    band = tuple((0.02, 0.06 + 0.02 * rng.random(), 0.12) for _ in range(n_layers))
    same = tuple((0.2, 0.3 + 0.1 * rng.random(), 0.5) for _ in range(n_layers))
    return LayerOverlaps(places, tuple(weighted), tuple(plain), band, band, same, same)


def _roles(features, size):
    """Of the first two features that two graphs have alone."""
    alone = [next(k for k, f in enumerate(features) if f.owners == (place,)) for place in (0, 1)]
    return (ComparedRole((*alone, *(None,) * (size - 2)), 0.91),)


def _supernodes(features, size):
    """Two: of features that all have and, in each graph, two more; of features of the first two."""
    found = []
    for places in (range(size), range(2)):
        rows = [k for k, one in enumerate(features) if set(one.owners) >= set(places)]
        if not rows:
            continue
        members = [
            [*rows[:3], *(k for k, one in enumerate(features) if one.owners == (place,))][:5]
            for place in places
        ]
        at = [[(k, features[k].positions[p][0]) for k in each] for p, each in enumerate(members)]
        found.append(
            ComparedSupernode(
                (*map(tuple, at), *((),) * (size - len(at))),
                tuple(rows[:3]),
                0.4,
                (*(0.1 + 0.01 * p for p in places), *(None,) * (size - len(at))),
            )
        )
    return tuple(found)


def _edges(features, size, rng):
    edges = {}
    for _ in range(400):
        s, t = rng.randrange(len(features)), rng.randrange(len(features))
        both = set(features[s].owners) & set(features[t].owners)
        if features[s].layer < features[t].layer and both:
            edges[s, t] = tuple(rng.random() / 50 if k in both else None for k in range(size))
    return tuple(ComparedEdge(s, t, shares) for (s, t), shares in edges.items())
