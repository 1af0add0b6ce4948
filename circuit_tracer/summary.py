"""A circuit in words: sentences and figures, each true to the numbers it is made of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from circuit_tracer.nodes import KINDS

if TYPE_CHECKING:
    from circuit_tracer.circuit import Circuit

UNKNOWN = "Whether the rows of the full graph add up is not known: its file holds only edges."


def percent(share: float) -> str:
    """A share as text, with at least two digits that say something.

    >>> percent(0.1234), percent(0.00012)
    ('12.3 %', '0.012 %')
    """
    return f"{100 * share:.{'1f' if abs(share) >= 0.001 or share == 0 else '2g'}} %"


def sentences(circuit: Circuit) -> list[str]:
    """What the circuit says, a few plain sentences."""
    said = [_about_targets(circuit), _about_size(circuit)]
    said += _about_between(circuit) if circuit.part_of else _about_scores(circuit)
    if not circuit.part_of and (best := circuit.paths(k=1)):
        said.append(f"The strongest path is {best[0]}.")
        said.append(_about_waist(circuit))
    said.append(_about_unseen(circuit))
    said.append(
        UNKNOWN
        if math.isnan(circuit.closure_error)
        else f"Every row of the full graph adds up to within {circuit.closure_error:.1g}."
    )
    return [sentence for sentence in said if sentence]


def figures(circuit: Circuit) -> dict[str, float]:
    """Scores by name: of the full graph, and after pruning with `circuit_` before the name."""
    full, pruned = circuit.graph_scores, circuit.scores
    return {
        "replacement": full.replacement,
        "completeness": full.completeness,
        "completeness_ct": full.completeness_ct,
        "unexpanded_share": full.unexpanded_share,
        "mean_path_length": full.mean_path_length,
        "circuit_replacement": pruned.replacement,
        "circuit_completeness": pruned.completeness,
        "pruned_share": pruned.pruned_share,
    }


def about(circuit: Circuit) -> dict[str, str | float | int]:
    """Where the circuit comes from, by name; what is unknown or empty is left out."""
    origin = circuit.provenance
    said: dict[str, str | float | int | None] = {
        "transcoder kind": origin.transcoder_kind,
        "dtype": origin.dtype,
        "ignored positions": ", ".join(map(str, origin.ignored_positions)),
        "ignored positions add": _about_ignored(circuit),
        "nodes": f"{len(circuit.nodes):,} of {circuit.n_all_nodes:,}",
        "edges": f"{len(circuit.weights):,} of {circuit.n_all_edges:,}",
        "closure error": None if math.isnan(circuit.closure_error) else circuit.closure_error,
        **{name.replace("_", " "): value for name, value in circuit.thresholds.items()},
        **{f"{name} version": version for name, version in origin.versions.items()},
    }
    return {name: value for name, value in said.items() if value is not None and value != ""}


def _about_ignored(circuit: Circuit) -> str:
    """What ignored positions add to the value of each target that is shown."""
    shown = [node for node in circuit.nodes if node.kind == "logit" and node.id in circuit.ignored]
    if not circuit.provenance.ignored_positions or math.isnan(circuit.closure_error):
        return ""
    return ", ".join(
        f"{circuit.ignored[node.id]:+.3g} to {node.label} at {node.position}" for node in shown
    )


def notices(circuit: Circuit) -> tuple[str, ...]:
    """What a reader must know before trusting the picture."""
    found = [UNKNOWN] if math.isnan(circuit.closure_error) else []
    stopped = circuit.graph_scores.unexpanded_share
    if stopped > 0.01:
        found.append(
            f"{percent(stopped)} of the influence stops in features that were not expanded; "
            "the scores count it as error."
        )
    return tuple(found)


def _about_targets(circuit: Circuit) -> str:
    targets = [node for node in circuit.nodes if node.kind == "logit"]
    several = len({node.position for node in targets}) > 1
    listed = ", ".join(
        node.label
        + (f" at {node.position}" if several else "")
        + ("" if node.probability is None else f" ({percent(node.probability)})")
        for node in targets[:3]
    )
    more = f" and {len(targets) - 3} more" if len(targets) > 3 else ""
    return f"The prompt {circuit.prompt!r} is explained towards {listed}{more}." if targets else ""


def _about_size(circuit: Circuit) -> str:
    counts = {kind: sum(node.kind == kind for node in circuit.nodes) for kind in KINDS}
    parts = ", ".join(
        f"{count} {kind}{'' if count == 1 else 's'}" for kind, count in counts.items()
    )
    return (
        f"Of the graph's {circuit.n_all_nodes:,} nodes and {circuit.n_all_edges:,} edges, "
        f"{len(circuit.nodes):,} nodes ({parts}) and {len(circuit.weights):,} edges are kept."
    )


def _about_scores(circuit: Circuit) -> list[str]:
    full, pruned = circuit.graph_scores, circuit.scores
    return [
        f"Of the influence on the targets {percent(pruned.replacement)} starts at the tokens of "
        f"the prompt and runs along edges kept, {percent(pruned.pruned_share)} left along what was "
        "pruned and counts as error.",
        f"In the full graph {percent(full.replacement)} starts at the tokens, and the completeness "
        f"is {full.completeness:.2f}.",
    ]


def _about_between(circuit: Circuit) -> list[str]:
    starts, ends = circuit.part_of or ((), ())
    start, end = _either(starts), _either(ends)
    if not circuit.nodes:
        return [f"No path leads from {start} to {end}."]
    best = circuit.paths(k=1)
    strongest = f"; the strongest is {best[0]}" if best else ""
    return [
        f"They are all that lies between {start} and {end}: paths between the two carry "
        f"{percent(circuit.flow())} of what drives {end}{strongest}."
    ]


def _either(names: tuple[str, ...]) -> str:
    more = f" or {len(names) - 3} more" if len(names) > 3 else ""
    return " or ".join(names[:3]) + more


def _about_waist(circuit: Circuit) -> str:
    """The feature that most passes."""
    through = circuit.bottlenecks(k=1)
    if not through or through[0][1] == 0:
        return ""
    node, share = through[0]
    return (
        f"Of what runs from the tokens to the targets, {percent(share)} passes {node.label} "
        f"at {node.position}, more than any other feature."
    )


def _about_unseen(circuit: Circuit) -> str:
    """What ignored positions add, which no share says anything of."""
    added = _about_ignored(circuit)
    if not added or not any(circuit.ignored.values()):
        return ""
    places = ", ".join(map(str, circuit.provenance.ignored_positions))
    return f"Features and errors at ignored positions ({places}) are in no share; they add {added}."
