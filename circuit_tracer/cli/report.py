"""What the terminal says of a graph: predictions, strongest paths, scores, closure, what was kept.

Text only and the same everywhere: no colours, no box drawing, columns aligned by display width so
that Chinese lines up. Everything from a tokenizer is shown with its control characters escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len

if TYPE_CHECKING:
    import circuit_tracer as ct
    from circuit_tracer.circuit import Path
    from circuit_tracer.nodes import Node

PATHS, STRAIGHT, LOOKED_AT = 7, 2, 200


def text(graph: ct.Graph, circuit: ct.Circuit, verbose: bool = False) -> str:
    """The whole report."""
    parts = [
        heading(graph),
        predictions(graph, verbose),
        f"strongest paths, at most {STRAIGHT} of them straight\n{paths(circuit)}",
        figures(graph, circuit),
    ]
    if graph.faithfulness is not None:
        parts.append(f"is it true? {graph.faithfulness}")
    if verbose and graph.provenance.ignored_positions:
        parts.append(ignored(graph))
    return "\n\n".join(parts)


def heading(graph: ct.Graph) -> str:
    """The prompt, and the answer where a whole one is explained."""
    said = shown(graph.provenance.prompt)
    if graph.provenance.settings.get("answer") is None:
        return said
    answer = "".join(target.label for target in graph.targets)
    probability = math.prod(target.probability or 0.0 for target in graph.targets)
    return f"{said}\nanswer {quoted(answer)}, probability {probability:.2g}"


def shown(token: str) -> str:
    """A token with what would move the cursor or colour the screen made visible.

    >>> shown("a\\n\\x1b[31m")
    'a\\\\n\\\\x1b[31m'
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in token
    )


def table(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Rows of cells in columns as wide as they need; columns in `right` are right-aligned."""
    right = set(right)
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = []
        for column, cell in enumerate(row):
            space = " " * (widths[column] - cell_len(cell))
            cells.append(space + cell if column in right else cell + space)
        lines.append(("  " + "  ".join(cells)).rstrip())
    return "\n".join(lines)


def predictions(graph: ct.Graph, verbose: bool) -> str:
    """The targets, position by position where there are several."""
    places = {target.position for target in graph.targets}
    order = sorted(range(len(graph.targets)), key=lambda k: graph.targets[k].position)
    valued = any(target.probability is None for target in graph.targets)
    valued &= not math.isnan(graph.closure_error)
    values = graph.edges.value[graph.index.first_target :].tolist()
    tokens = [target for target in graph.targets if target.token_id is not None]
    columns = {
        "after": len(places) > 1,
        "next token" if len(tokens) == len(graph.targets) else "target": True,
        "probability": bool(tokens),
        "value": valued,
        "id": verbose,
    }
    rows, before = [list(columns)], -1
    for k in order:
        target = graph.targets[k]
        after = f"@{target.position} {quoted(graph.tokens[target.position])}"
        rows.append(
            [
                "" if target.position == before else after,
                shown(target.label) if target.token_id is None else quoted(target.label),
                "" if target.probability is None else percent(target.probability),
                f"{values[k]:.3g}",
                "" if target.token_id is None else str(target.token_id),
            ]
        )
        before = target.position
    used = [k for k, wanted in enumerate(columns.values()) if wanted]
    right = [place for place, k in enumerate(used) if k >= 2]
    return table([[row[k] for k in used] for row in rows], right)


def ignored(graph: ct.Graph) -> str:
    """How much of each target's value comes from ignored positions, which are no nodes."""
    places = graph.provenance.ignored_positions
    said = f"position{'' if len(places) == 1 else 's'} {', '.join(map(str, places))}"
    rows = [[f"ignored: features and errors at {said}", "add", "of"]]
    values = graph.edges.value[graph.index.first_target :].tolist()
    added = graph.ignored_sources.values()
    for target, part, value in zip(graph.targets, added, values, strict=True):
        label = shown(target.label) if target.token_id is None else quoted(target.label)
        rows.append([at(label, target.position), f"{part:+.3g}", f"{value:.3g}"])
    return table(rows, right=(1, 2))


def paths(circuit: ct.Circuit) -> str:
    """The strongest ways from a word to an output, one a line, with their shares.

    Those straight from a word to an output are many and say little, so only the first few count.
    An arrow → raises what it leads to, ⊣ lowers it.
    """
    found = circuit.paths(k=LOOKED_AT)
    if not found:
        return "  none: no path of kept edges joins a word to an output"
    straight = [path for path in found if len(path.nodes) == 2][:STRAIGHT]
    through = [path for path in found if len(path.nodes) > 2][: PATHS - len(straight)]
    chosen = sorted(straight + through, key=lambda path: -path.share)
    return table([(steps(path, circuit), percent(path.share)) for path in chosen], right=(1,))


def steps(path: Path, circuit: ct.Circuit) -> str:
    """A path as a line of text: `" small" → L2#417@4 (little) → " large"`."""
    said = name(path.nodes[0], circuit)
    for node, weight in zip(path.nodes[1:], path.weights, strict=True):
        said += f" {'→' if weight >= 0 else '⊣'} {name(node, circuit)}"
    return said


def name(node: Node, circuit: ct.Circuit) -> str:
    """A node in a line of text.

    A feature comes with its label, or else, in the upper half of the model where it means
    something, with the token that it promotes most.
    """
    if node.kind == "embedding":
        return quoted(node.token)
    if node.kind == "logit":
        places = {other.position for other in circuit.nodes if other.kind == "logit"}
        said = shown(node.label) if node.feature < 0 else quoted(node.token or node.label)
        return at(said, node.position) if len(places) > 1 else said
    if node.kind == "error":
        return f"error L{node.layer}@{node.position}"
    place = f"L{node.layer}#{node.feature}@{node.position}"
    note = circuit.notes.get((node.layer, node.feature))
    if note is not None and note.label:
        return f"{place} ({shown(note.label)})"
    if note is not None and note.promoted and node.layer >= circuit.n_layers / 2:
        return f"{place} (says {quoted(note.promoted[0][0].strip())})"
    return place


def at(said: str, position: int) -> str:
    """A target with its position, unless its name (a feature's) has it already."""
    return said if f"@{position} " in said else f"{said} @{position}"


def figures(graph: ct.Graph, circuit: ct.Circuit) -> str:
    """Scores, closure and counts."""
    scores = graph.scores
    expanded = int(graph.expanded[: graph.index.n_features].sum())
    rows = [
        (
            "scores",
            f"replacement {scores.replacement:.2f}, completeness {scores.completeness:.2f}, "
            f"mean path length {scores.mean_path_length:.1f}, "
            f"errors {percent(sum(scores.error_share_by_layer))} of the influence",
        ),
        ("closure", closure(graph)),
        ("expanded", f"{expanded:,} of {graph.index.n_features:,} active features"),
        (
            "kept",
            f"{len(circuit.nodes):,} of {circuit.n_all_nodes:,} nodes, "
            f"{len(circuit.weights):,} of {circuit.n_all_edges:,} edges",
        ),
    ]
    return "\n".join(f"{what:<10}{said}" for what, said in rows)


def closure(graph: ct.Graph) -> str:
    """Whether the rows add up; unknown of a graph that comes from a file of edges only."""
    if math.isnan(graph.closure_error):
        return "unknown: the file holds edges and not what their rows should add up to"
    return f"every row adds up to within {graph.closure_error:.1e}"


def phases(program: dict[str, float], graph: dict[str, float]) -> str:
    """Seconds by phase: the program's, then those of the tracing itself."""
    rows = [(phase, f"{seconds:.2f} s") for phase, seconds in program.items()]
    rows += [(f"tracing: {phase}", f"{seconds:.2f} s") for phase, seconds in graph.items()]
    rows.append(("all", f"{sum(program.values()):.2f} s"))
    return table(rows, right=(1,))


def quoted(token: str) -> str:
    """A token between quotation marks, so that its spaces can be seen."""
    return f'"{shown(token)}"'


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
