"""The GPU part of the tables: every work that bench_gpu.py measures, whether it was or not.

What is expected is listed here, in the order shown; a work without a row waits for a GPU, and says
so. A kernel that no row shows to win over torch has no claim to be chosen.
"""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]

WAITS = "waits for a GPU"
PRODUCTS = ("edge_rows, plt", "gathered_edge_rows, plt", "gathered_edge_rows, clt",
            "encode, jump_relu", "encode, topk", "attention_mix, grouped heads")  # fmt: skip
OTHERS = ("sparse_decode, plt", "influence, one block", "threshold_selection, one block")
KERNELS = (*(f"{name}, {digits}" for name in PRODUCTS for digits in ("tf32", "ieee")), *OTHERS)
KERNEL_GOAL = {
    f"edge_rows, plt, {digits}": "≥ 60 % of GEMM rate, faster than torch"
    for digits in ("tf32", "ieee")
}
ATTRIBUTIONS = {
    "complete, triton, tf32": "≤ 3 s",
    "complete, reference, tf32": "–",
    "complete, triton, ieee": "–",
    "complete, reference, ieee": "–",
    "max_features=7500, triton, tf32": "reference / complete ≥ 20",
    "2000 tokens, max_features=8192, triton, tf32": "≤ 40 GiB",
    "clt, max_features=7500, triton, tf32": "–",
}


def is_gpu(row: Row) -> bool:
    return row["work"].startswith("gpu ")


def spread(figures: dict[str, float], scale: float = 1.0) -> str:
    """p50, and p20 to p80 in brackets, to three digits."""
    low, middle, high = (f"{figures[name] * scale:,.3g}" for name in ("p20", "p50", "p80"))
    return middle if low == high else f"{middle} ({low}–{high})"


def tables(rows: list[Row]) -> str:
    """Both tables and where their rows come from; all of them empty where nothing was measured."""
    found: dict[str, list[Row]] = {}
    for row in filter(is_gpu, rows):
        found.setdefault(row["work"].removeprefix("gpu "), []).append(row)
    parts = ["### On a GPU: the whole attribution", attributions(found)]
    parts += ["### On a GPU: kernel by kernel", kernels(found)]
    return "\n\n".join(parts)


def attributions(found: dict[str, list[Row]]) -> str:
    lines = [
        "Gemma 2 2B's shape, random weights: 26 layers, d_model 2304, 16,384 features a layer, "
        "L0 about 60, 64 tokens unless said.",
        "",
        "| work | device | seconds | over the floor | peak, GiB | reference, s | ratio | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    complete = {row["device"]: row for row in found.get("attribution, complete, triton, tf32", [])}
    for work, goal in ATTRIBUTIONS.items():
        measured = found.get(f"attribution, {work}", [])
        for row in measured:
            ours, theirs = row["ours"], row.get("reference")
            peak = spread(ours["peak_gib"]) if "peak_gib" in ours else "–"
            seconds = spread(theirs["wall_s"]) if theirs else "–"
            ratio = f"{row['ratios']['reference tool']:.3g}" if theirs else "–"
            if theirs and row["device"] in complete:
                whole = complete[row["device"]]["ours"]["wall_s"]["p50"]
                ratio += f"; to the complete graph {theirs['wall_s']['p50'] / whole:.3g}"
            lines.append(
                f"| {work} | {row['device']} | {spread(ours['wall_s'])} | "
                f"{spread(ours['over_floor'])} | {peak} | {seconds} | {ratio} | {goal} |"
            )
        if not measured:
            lines.append(f"| {work} | {WAITS} | – | – | – | – | – | {goal} |")
    return "\n".join(lines)


def kernels(found: dict[str, list[Row]]) -> str:
    lines = [
        "| kernel | device | ms | over the floor | share of GEMM rate | others / ours | goal |",
        "|---|---|---|---|---|---|---|",
    ]
    for work in KERNELS:
        goal = KERNEL_GOAL.get(work, "faster than torch")
        measured = found.get(f"kernel {work}", [])
        for row in measured:
            ours = row["ours"]
            share = "–"
            if "share_of_gemm_rate" in ours:
                share = f"{spread(ours['share_of_gemm_rate'], 100)} %"
            others = ", ".join(f"{name} {ratio:.3g}" for name, ratio in row["ratios"].items())
            lines.append(
                f"| {work} | {row['device']} | {spread(ours['wall_s'], 1e3)} | "
                f"{spread(ours['over_floor'])} | {share} | {others} | {goal} |"
            )
        if not measured:
            lines.append(f"| {work} | {WAITS} | – | – | – | – | {goal} |")
    return "\n".join(lines)
