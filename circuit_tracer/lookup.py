"""Finding nodes: by what they are, and by what people call them.

A node is named by its id (`3_417_5`), by layer, feature and position as reports print them
(`L3#417@5`, also `3.417@5`; `error L3@5`), or by its text (a token of the prompt, an output, a
label) where only one node has it. A wrong name is answered with the nearest right ones.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from circuit_tracer.errors import InputError
from circuit_tracer.facts import FeatureNote
from circuit_tracer.nodes import KINDS, Kind, Node, node_id

Numbers = int | Iterable[int] | None
FEATURE = re.compile(r"L?(\d+)[.#](\d+)@(-?\d+)")
ERROR = re.compile(r"error L?(\d+) ?@(-?\d+)")
SHOWN = 5


def find(
    nodes: Sequence[Node],
    n_positions: int,
    notes: Mapping[tuple[int, int], FeatureNote],
    kind: Kind | Iterable[Kind] | None,
    layer: Numbers,
    position: Numbers,
    token: str | None,
    label: str | None,
    feature: Numbers,
    text: str | None,
) -> list[Node]:
    """Nodes that fit everything given, in the order of `Circuit.find`, which says what is what."""
    kinds = None if kind is None else {kind} if isinstance(kind, str) else set(kind)
    for wrong in sorted((kinds or set()) - set(KINDS)):
        raise InputError(f"there are no {wrong!r} nodes; kinds are {', '.join(KINDS)}")
    layers, features = _numbers(layer), _numbers(feature)
    positions = _numbers(position)
    if positions is not None:
        positions = {check_position(place, n_positions) for place in positions}
    found = [
        node
        for node in nodes
        if (kinds is None or node.kind in kinds)
        and (layers is None or node.layer in layers)
        and (positions is None or node.position in positions)
        and (token is None or node.token.strip() == token.strip())
        and (label is None or label.casefold() in node.label.casefold())
        and (features is None or node.feature in features)
        and (text is None or _says(node, text.casefold(), notes))
    ]
    return sorted(found, key=lambda node: (node.kind == "logit", -node.influence))


def check_position(position: int, n_positions: int) -> int:
    """A position counted from the start. Raises InputError where the prompt has none such."""
    if not -n_positions <= position < n_positions:
        raise InputError(
            f"the prompt has {n_positions} tokens: position {position} is outside; give "
            f"0 to {n_positions - 1}, or -1 to {-n_positions} from the end"
        )
    return position % n_positions


def named(name: str, nodes: Sequence[Node], places: Mapping[str, int], n_positions: int) -> int:
    """Place of the node that is called so.

    Args:
        places: by id.

    Raises:
        InputError: no node is called so, or several are.
    """
    if name in places:
        return places[name]
    if not nodes:
        raise InputError(f"there is no node {name!r}: this circuit is empty")
    spelled = written(name, n_positions)
    if spelled is not None and spelled in places:
        return places[spelled]
    wanted = name.strip()
    texts = [place for place, node in enumerate(nodes) if wanted and wanted in _texts(node)]
    if len(texts) == 1:
        return texts[0]
    if texts:
        ids = ", ".join(nodes[place].id for place in texts[:SHOWN])
        more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
        raise InputError(f"{name!r} names {len(texts)} nodes; give an id: {ids}{more}")
    near = difflib.get_close_matches(spelled or name, list(places), n=SHOWN, cutoff=0.0)
    words = sorted({node.token.strip() for node in nodes if node.kind in ("embedding", "logit")})
    said = [repr(word) for word in difflib.get_close_matches(wanted, words, n=SHOWN, cutoff=0.6)]
    raise InputError(
        f"there is no node {name!r} in this circuit; the nearest are {', '.join(said + near)}"
    )


def written(name: str, n_positions: int) -> str | None:
    """The id of a node written as in reports; None for anything else."""
    if found := FEATURE.fullmatch(name):
        layer, feature, position = map(int, found.groups())
        return node_id("feature", layer, check_position(position, n_positions), feature)
    if found := ERROR.fullmatch(name):
        layer, position = map(int, found.groups())
        return node_id("error", layer, check_position(position, n_positions), -1)
    return None


def _texts(node: Node) -> tuple[str, ...]:
    """What one may call a node by."""
    if node.kind in ("embedding", "logit"):
        return node.token.strip(), node.label.strip()
    return (node.label.strip(),)


def _says(node: Node, text: str, notes: Mapping[tuple[int, int], FeatureNote]) -> bool:
    note = notes.get((node.layer, node.feature)) if node.kind == "feature" else None
    promoted = () if note is None else (token for token, _ in note.promoted)
    return any(text in said.casefold() for said in (node.id, node.label, node.token, *promoted))


def _numbers(wanted: Numbers) -> set[int] | None:
    if wanted is None or isinstance(wanted, int):
        return None if wanted is None else {wanted}
    return set(wanted)
