"""The tables of docs/performance.md and their picture, from results.jsonl beside this file.

    python kernels/bench/table.py            rewrites what stands between the page's two markers
    python kernels/bench/table.py --check    exits with status 1 where the page is out of date

Of every kind of work the newest row of each device and processor is shown; what a GPU has yet to
measure is listed as such. Nothing is measured here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gpu_tables
import picture

RESULTS = Path(__file__).with_name("results.jsonl")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
START, END = "<!-- figures: made by kernels/bench/table.py -->", "<!-- end of figures -->"
Row = dict[str, Any]

GOALS = {
    "attribution, complete": "12",
    "attribution, max_features=1000": "12",
    "pruning and scores, 8,000 nodes": "50",
}


def newest(lines: list[str]) -> list[Row]:
    """The last row of every work on every device, in the order the works first came."""
    rows: dict[tuple[object, ...], Row] = {}
    for line in lines:
        row = json.loads(line)
        key = (row["work"], row["device"], row["cpu"], row["threads"], row["shapes"].get("nodes"))
        rows[key] = row
    return list(rows.values())


def spread(figures: dict[str, float], digits: int = 2) -> str:
    """p50, and p20 to p80 in brackets."""
    low, middle, high = (number(figures[name], digits) for name in ("p20", "p50", "p80"))
    return middle if low == high else f"{middle} ({low}–{high})"


def number(value: float, digits: int) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{digits}f}"


def against_reference(rows: list[Row]) -> list[str]:
    """Work that both tools do."""
    lines = [
        "| work | ours, CPU s | reference, CPU s | ratio | goal | equality |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "reference" in row:
            nodes = row["shapes"].get("nodes")
            name = row["work"] + (f", {nodes:,} nodes" if nodes else "")
            sides = [spread(row[side]["cpu_s"]) for side in ("ours", "reference")]
            ratio = spread(row["ratios"]["reference"]["cpu_s"], 1)
            goal = f"≥ {GOALS[name]}" if name in GOALS else "–"
            same = equality(row["found"])
            lines.append(f"| {name} | {sides[0]} | {sides[1]} | {ratio} | {goal} | {same} |")
    return lines


def equality(found: Row) -> str:
    """How alike the two results were, in words."""
    if "largest_difference" in found:
        return f"to {found['largest_difference']:.1e} on {found['common_rows']:,} rows"
    ours, theirs = (
        [found[f"{who}kept_{what}"] for what in ("nodes", "edges")] for who in ("", "reference_")
    )
    same = f"{theirs[0]:,} nodes and {theirs[1]:,} edges kept"
    return same if ours == theirs else f"{same}, ours {ours[0]:,} and {ours[1]:,}"


def memory(rows: list[Row]) -> list[str]:
    """Resident memory of attribution."""
    lines = [
        "| work | tool | loaded, MiB | peak, MiB | above loading, MiB | of it mapped files |",
        "|---|---|---|---|---|---|",
    ]
    names = ("loaded_mib", "peak_mib", "above_loading_mib", "files_mapped_mib")
    for row in rows:
        if row["work"].startswith("attribution"):
            for side in ("ours", "reference"):
                if side in row:
                    cells = [number(row[side][name]["p50"], 0) for name in names]
                    lines.append(f"| {row['work']} | {side} | " + " | ".join(cells) + " |")
    return lines


def keeping(rows: list[Row]) -> list[str]:
    """Memory of attribution by the edges kept."""
    lines = [
        "| `keep_edges` | edges stored | rows, MiB | foretold, MiB | peak above loading, MiB | "
        "foretold, MiB | CPU s | influence, CPU s | influence that left along the others |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["work"].startswith("edges kept"):
            ours = row["ours"]
            names = ("rows_mib", "planned_rows_mib", "above_loading_mib", "planned_mib")
            sizes = [number(ours[name]["p50"], 0) for name in names]
            times = [spread(ours[name]) for name in ("cpu_s", "influence_s")]
            lost = f"{ours['left_along_others']['p50']:.1%}"
            cells = [row["work"].split()[-1], f"{ours['edges']['p50']:,.0f}", *sizes, *times, lost]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def alone(rows: list[Row]) -> list[str]:
    """Work that is measured against a floor."""
    lines = ["| work | ours | floor | ratio | goal |", "|---|---|---|---|---|"]
    for row in rows:
        ours = row["ours"]
        if "over_floor" in ours:
            rate = number(ours["gflop_per_s"]["p50"], 0)
            floor = f"{spread(ours['floor_s'])} CPU s at {rate} GFLOP/s"
            over = spread(ours["over_floor"])
            cpu = spread(ours["cpu_s"])
            lines.append(f"| the sweep, complete | {cpu} CPU s | {floor} | {over} | ≤ 2 |")
        if "forward" in row:
            over = [1 / value for value in row["ratios"]["forward"]["wall_s"].values()]
            over_words = f"{over[1]:.2f} ({over[2]:.2f}–{over[0]:.2f})"
            walls = [spread(row[side]["wall_s"]) for side in ("ours", "forward")]
            lines.append(
                f"| `trace`, whole process, {row['threads']} threads | {walls[0]} s | {walls[1]} s "
                f"for the imports and a forward pass | {over_words} | ≤ 3 |"
            )
    return lines


def circumstances(rows: list[Row]) -> list[str]:
    """Where and when the rows come from."""
    lines = []
    for row in rows:
        versions = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
        state = row["commit"] + (" with changes" if row["changed_files"] else "")
        words = row["work"] + (f" ({row['shapes']['nodes']:,})" if "nodes" in row["shapes"] else "")
        place = f"{row['cpu']} ({row['cores']} cores)"
        place = f"{row['device']}, {place}" if gpu_tables.is_gpu(row) else place
        lines.append(
            f"- {words}: {row['date']}, commit {state}, {place}, "
            f"{row['threads']} thread{'s' * (row['threads'] > 1)}, {row['rounds']} rounds, "
            f"load {row['load']}, {versions}"
        )
    return lines


def figures(rows: list[Row]) -> str:
    on_cpu = [row for row in rows if not gpu_tables.is_gpu(row)]
    parts = [
        "![Seconds of ours and of the reference tool](images/performance.svg)",
        "### Against the reference tool",
        "\n".join(against_reference(on_cpu)),
        "### Memory",
        "\n".join(memory(on_cpu)),
        "### Memory by the edges kept",
        "\n".join(keeping(on_cpu)),
        "### Against a floor",
        "\n".join(alone(on_cpu)),
        gpu_tables.tables(rows),
        "### Where these come from",
        "\n".join(circumstances(rows)),
    ]
    return "\n\n".join(parts)


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START, 1)
    after = rest.split(END, 1)[1]
    rows = newest(RESULTS.read_text(encoding="utf-8").splitlines())
    made = {
        PAGE: f"{before}{START}\n\n{figures(rows)}\n\n{END}{after}",
        picture.PICTURE: picture.drawing(rows),
    }
    for path, wanted in made.items():
        if "--check" not in sys.argv[1:]:
            path.write_text(wanted, encoding="utf-8")
        elif not path.exists() or wanted != path.read_text(encoding="utf-8"):
            sys.exit(f"{path.name} is out of date: python kernels/bench/table.py")


if __name__ == "__main__":
    main()
