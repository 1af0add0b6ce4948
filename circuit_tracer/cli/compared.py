"""A comparison in the terminal: what each prompt says, counts by layer, overlap, and features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from circuit_tracer.cli.report import percent, shown, table

if TYPE_CHECKING:
    import circuit_tracer as ct
    from circuit_tracer.comparing.comparison import SharedFeature
    from circuit_tracer.comparing.overlap import LayerOverlap, SetOverlap

TARGETS = 3


def text(found: ct.Comparison, count: int) -> str:
    """The comparison in the terminal."""
    parts = [found.summary(), sides(found), classes(found), overlaps(found)]
    parts.append(features(found, count))
    if found.roles:
        parts.append(roles(found, count))
    if found.supernodes():
        parts.append(supernodes(found, count))
    parts += [f"note: {said}" for said in found.notices]
    return "\n\n".join(parts)


def sides(found: ct.Comparison) -> str:
    """The prompts, what is explained of each, and where they come from if that differs."""
    apart = [
        what
        for what in ("model", "transcoders")
        if len({getattr(side, what) for side in found.sides}) > 1
    ]
    rows = [("name", "prompt", "explained", *apart)]
    for side in found.sides:
        targets = [f"{shown(label.strip())} {percent(weight)}" for label, weight in side.targets]
        more = f", … ({len(targets)})" if len(targets) > TARGETS else ""
        origin = (getattr(side, what) for what in apart)
        rows.append((side.name, shown(side.prompt), ", ".join(targets[:TARGETS]) + more, *origin))
    return table(rows)


def classes(found: ct.Comparison) -> str:
    """Counts by layer and class, and the influence each class holds."""
    kinds = {k: one for k, one in found.classes.items() if k != "some" or len(found.names) > 2}
    rows = [["layer", *kinds]]
    rows += [[str(n), *(str(row[k]) for k in kinds)] for n, row in enumerate(found.by_layer())]
    rows.append(["all", *(str(each.count) for each in kinds.values())])
    for name in found.names:
        shares = (percent(each.influence[name]) for each in kinds.values())
        rows.append([f"influence in {name}", *shares])
    return "features in circuits\n" + table(rows, right=range(1, len(rows[0])))


def overlaps(found: ct.Comparison) -> str:
    """Overlap by layer of all texts, and of each pair where they are few."""
    pairs = found.overlap.pairs
    shown = pairs if len(pairs) <= 3 else ()
    whole = () if len(found.names) == 2 else (found.overlap.all,)
    return "\n\n".join(overlap(each) for each in (*shown, *whole))


def overlap(found: SetOverlap) -> str:
    head = ("layer", "shared", "weighted", "equal size", "random", "unrelated", "parallel")
    with_corpus = any(layer.baseline is not None for layer in found.layers)
    rows = [head, *map(row, found.layers)]
    rows = rows if with_corpus else [each[:5] for each in rows]
    title = f"overlap of {', '.join(found.names)} (% of the features active in any of them)"
    return f"{title}\n{table(rows, right=range(1, len(rows[0])))}"


def row(layer: LayerOverlap) -> tuple[str, ...]:
    shares = (layer.iou, layer.weighted, layer.equal, layer.expected)
    said = [number(share) for share in shares]
    for each in (layer.baseline.unrelated, layer.baseline.parallel) if layer.baseline else ():
        said.append(f"{number(each.mean)} ({number(each.low)}–{number(each.high)})")
    return (str(layer.layer), *said, *["–"] * (6 - len(said)))


def number(share: float | None) -> str:
    return "–" if share is None or share != share else f"{100 * share:.1f}"


def features(found: ct.Comparison, count: int) -> str:
    """The most influential features of each class."""
    kinds = {
        "shared by all": (found.shared, found.names),
        "shared by some": (found.some, found.names),
    }
    kinds |= {f"only in {name}": (found.only(name), (name,)) for name in found.names}
    return "\n\n".join(
        f"{kind}, with its share of the influence\n{listed(members[:count], names)}"
        for kind, (members, names) in kinds.items()
        if members
    )


def listed(members: Sequence[SharedFeature], names: Sequence[str]) -> str:
    """Features as a table, with their share in some of the graphs."""
    with_language = ("language",) if any(one.spread is not None for one in members) else ()
    rows = [("feature", "promotes", *names, *with_language)]
    for feature in members:
        held = (feature.influence.get(name) for name in names)
        said = ", ".join(shown(token.strip()) for token in feature.says)
        shares = ("–" if share is None else percent(share) for share in held)
        spoken = (language(feature),) if with_language else ()
        rows.append((shown(feature.label), said, *shares, *spoken))
    return table(rows, range(2, 2 + len(names)))


def language(feature: SharedFeature) -> str:
    """The language of a feature in a word or two."""
    spread = feature.spread
    if spread is None:
        return ""
    said = spread.verdict
    return f"{spread.language} {100 * spread.largest:.0f} %" if said == "specific" else said


def roles(found: ct.Comparison, count: int) -> str:
    """Features that differ and do the same job."""
    rows = [("similarity", *found.names)]
    for role in found.roles[:count]:
        keys = (role.members.get(name) for name in found.names)
        said = ("–" if key is None else f"L{key[0]}#{key[1]}" for key in keys)
        rows.append((f"{role.similarity:.2f}", *said))
    return f"different features in one role\n{table(rows)}"


def supernodes(found: ct.Comparison, count: int) -> str:
    """Groups of features that several circuits have, called as the first feature in common."""
    rows = [("supernode", "overlap", "in common", *(f"features in {name}" for name in found.names))]
    for one in found.supernodes()[:count]:
        counts = {name: str(len(node.members)) for name, node in one.members.items()}
        label = shown(found.features[one.common[0]].label)
        each = (counts.get(name, "–") for name in found.names)
        rows.append((label, percent(one.overlap), str(len(one.common)), *each))
    return f"supernodes of several circuits\n{table(rows, right=range(1, len(rows[0])))}"
