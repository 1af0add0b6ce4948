"""Estimates against what the runs then took, a process a case; the rows of a Markdown table.

    python tests/benchmarks/estimate.py CASE [--only NAME]

CASE is the folder of the benchmark case (case.py). Time is that of attribution alone on one thread,
in CPU seconds, and the estimate reads the same clock instead of the wall's; the two take turns, and
the medians of three rounds are given.
Memory is the peak above loading, from token ids to rows, without the pages of mapped files.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CASES = ("complete", "1000 features", "bundled", "256 tokens", "2000 tokens, 2000 features")
ROUNDS = 3


def case_of(name: str, folder: Path) -> tuple[Any, Any, Any]:
    """(model, prompt, max_features)."""
    import case
    import long_prompt

    from circuit_tracer.loading import load

    if name == "bundled":
        return load(device="cpu"), "The opposite of small is", None
    if name.endswith("tokens"):
        return *long_prompt.replacement(256), None
    if name.endswith("2000 features"):
        return *long_prompt.replacement(2000), 2000
    model = load(str(folder / "model"), str(folder / "transcoders"), device="cpu")
    return model, case.prompt(folder), None if name == "complete" else 1000


def measured(name: str, folder: Path) -> dict[str, Any]:
    import torch
    from meter import Meter

    from circuit_tracer import estimate
    from circuit_tracer.attribute import attribute
    from circuit_tracer.estimate import rehearse
    from circuit_tracer.targets import choose

    torch.set_num_threads(1)
    estimate._clock = lambda device: time.process_time()
    model, prompt, limit = case_of(name, folder)

    def ready(prompt: Any) -> Any:
        forward = model.run(prompt)
        return choose(model, forward), model.localise(forward, owned=True)

    def traced(prompt: Any) -> Any:
        directions, local = ready(prompt)
        return attribute(local, directions, limit)

    with Meter() as meter:
        rows = traced(prompt)
    del rows
    directions, local = ready(prompt)
    rounds = []
    for _ in range(ROUNDS):
        clock = time.process_time()
        plan = rehearse(local, directions)
        planned = plan.estimate(plan.resolve(limit))
        planning = time.process_time() - clock
        clock = time.process_time()
        attribute(local, directions, limit)
        rounds.append((planned.seconds, planning, time.process_time() - clock))
        del plan
    seconds, planning, took = map(statistics.median, zip(*rounds, strict=True))
    return {
        "case": name,
        "seconds": took,
        "planned_seconds": seconds,
        "estimating": planning,
        "mib": meter.figures["above_loading_mib"] - max(0.0, meter.figures["files_mapped_mib"]),
        "planned_mib": planned.peak_bytes / 2**20,
    }


def row(found: dict[str, Any]) -> str:
    seconds, mib = (found[f"planned_{what}"] / found[what] for what in ("seconds", "mib"))
    return (
        f"| {found['case']} | {found['planned_seconds']:.2f} | {found['seconds']:.2f} | "
        f"{seconds:.2f} | {found['planned_mib']:,.0f} | {found['mib']:,.0f} | {mib:.2f} | "
        f"{found['estimating']:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", type=Path)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--here", action="store_true", help="measure in this process, print JSON")
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measured(given.only, given.case)))
        return
    print(
        "| case | predicted, s | took, CPU s | ratio | predicted, MiB | took, MiB | ratio | ",
        end="",
    )
    print("estimating, s |\n|---|---|---|---|---|---|---|---|")
    for name in [given.only] if given.only else CASES:
        command = [sys.executable, __file__, str(given.case), "--only", name, "--here"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(row(json.loads(done.stdout.splitlines()[-1])), flush=True)


if __name__ == "__main__":
    main()
