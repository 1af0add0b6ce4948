"""The comparison: the reference tool and ours on the same work, in turn, in one run.

    make bench
    make bench BENCH="--reference /path/to/reference/python"
    python tests/benchmarks/compare.py --reference PYTHON --work attribution pruning

Reference is a Python in which circuit-tracer 0.5.0 is installed; without one only our side is
measured. Every run is a process of its own; the tools take turns (A B A B ...), and what is
recorded are medians and ratios of CPU seconds (user + system) of the work alone, loading left out.
Wall seconds are recorded and not judged. Equality gates timing: results that differ are an error,
and nothing is recorded. Rows are appended to kernels/bench/results.jsonl; kernels/bench/table.py
turns them into the tables of docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import case

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "kernels" / "bench" / "results.jsonl"
TOLERANCE = 2e-5
SIZES = (2000, 4000, 8000)
SHARES = (1.0, 0.95, 0.9, 0.8)
PROMPT = "The opposite of small is"
SIDES = ("ours", "reference")
Figures = dict[str, float]

FORWARD = """
import torch, transformers
from circuit_tracer.bundled import model_dir
model = transformers.AutoModelForCausalLM.from_pretrained(model_dir(), dtype=torch.float32)
tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir())
with torch.no_grad():
    model(**tokenizer({prompt!r}, return_tensors="pt"))
"""

VERSIONS = """
import json
from importlib.metadata import version
names = ("circuit-tracer", "torch", "transformers", "transformer-lens")
print(json.dumps({f"reference {name}": version(name) for name in names}))
"""


class Run:
    """How measured processes are started: threads, cores, and which Python is whose."""

    def __init__(self, given: argparse.Namespace):
        self.threads, self.reference = given.threads, given.reference
        self.cores, self.rounds, self.case = given.cores, given.rounds, given.case
        self.versions = {name: version(name) for name in ("torch", "transformers")}
        if self.reference:
            self.versions |= json.loads(self.process([self.reference, "-c", VERSIONS], 1, []))

    def ours(self, *words: object) -> Figures:
        paths = [ROOT, ROOT / "kernels", *filter(None, [os.environ.get("PYTHONPATH")])]
        return self._json(sys.executable, HERE / "our_run.py", words, paths)

    def theirs(self, *words: object) -> Figures:
        return self._json(self.reference, HERE / "reference_run.py", words, [])

    def _json(
        self, python: object, script: Path, words: Sequence[object], paths: Sequence[object]
    ) -> Figures:
        command = [python, script, *words, "--threads", self.threads]
        return json.loads(self.process(command, self.threads, paths).splitlines()[-1])

    def process(self, command: Sequence[object], threads: int, paths: Sequence[object]) -> str:
        """Standard output of a command; its error output where it fails."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = str(threads)
        done = subprocess.run(
            [str(word) for word in command],
            env=environment,
            capture_output=True,
            text=True,
            preexec_fn=self._stay if self.cores else None,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
        return done.stdout

    def _stay(self) -> None:
        os.sched_setaffinity(0, self.cores)

    def in_turn(
        self,
        ours: Sequence[object],
        theirs: Sequence[object] | None = None,
        keep: Path | None = None,
    ) -> tuple[list[Figures], list[Figures]]:
        """Rounds of theirs and ours, one after the other; the first may keep its matrices."""
        a: list[Figures] = []
        b: list[Figures] = []
        for number in range(self.rounds):
            kept = (
                [["--matrix", keep / name] for name in SIDES] if keep and not number else [[], []]
            )
            if theirs is not None and self.reference:
                b.append(self.theirs(*theirs, *kept[1]))
            a.append(self.ours(*ours, *kept[0]))
            sides = zip(SIDES, (a, b), strict=True)
            told = [f"{describe(side[-1])} {name}" for name, side in sides if side]
            say(f"  round {number + 1} of {self.rounds}: " + "; ".join(told))
        return a, b


def attribution(run: Run) -> Iterator[dict[str, Any]]:
    """The benchmark case: the complete matrix, then the thousand most influential features."""
    for limit in (None, 1000):
        name = "attribution, " + ("complete" if limit is None else f"max_features={limit}")
        say(name)
        words = ["attribute", run.case, *(["--max-features", limit] if limit else [])]
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = run.in_turn(words, words, keep=Path(folder))
            found = difference(*(Path(folder) / side for side in SIDES)) if theirs else {}
        if found and not found["largest_difference"] <= TOLERANCE:
            raise SystemExit(f"the matrices differ: {found}")
        yield row(name, run, {**case.SHAPES, "max_features": limit}, ours, theirs, found)


def pruning(run: Run) -> Iterator[dict[str, Any]]:
    """Pruning to 0.8 and 0.98, and scores, of random graphs."""
    for nodes in SIZES:
        say(f"pruning and scores, {nodes} nodes")
        ours, theirs = run.in_turn(["prune", nodes], ["prune", nodes])
        found = {"kept_nodes": ours[0]["kept_nodes"], "kept_edges": ours[0]["kept_edges"]}
        for other in theirs[:1]:
            if abs(other["replacement"] - ours[0]["replacement"]) > 1e-4:
                raise SystemExit(f"replacement scores differ: {ours[0]} and {other}")
            found |= {f"reference_{name}": other[name] for name in found}
            strays = [abs(other[name] / ours[0][name] - 1) for name in ("kept_nodes", "kept_edges")]
            if max(strays) > 1e-3:  # ties at the thresholds, in float32 there
                raise SystemExit(f"what is kept differs: {found}")
        yield row("pruning and scores", run, {"nodes": nodes}, ours, theirs, found)


def process(run: Run) -> Iterator[dict[str, Any]]:
    """All of `trace PROMPT` against importing torch and transformers and one forward pass."""
    import time

    say(f'whole process, trace "{PROMPT}"')
    paths = [ROOT, ROOT / "kernels", *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = min(2, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        ours = [sys.executable, "-m", "circuit_tracer.cli", "trace", PROMPT, "-o", page]
        floor = [sys.executable, "-c", FORWARD.format(prompt=PROMPT)]
        seconds: dict[str, list[Figures]] = {"ours": [], "forward": []}
        for number in range(-1, run.rounds):  # the first round warms the disk's cache
            for name, command in (("forward", floor), ("ours", ours)):
                usage = os.times()
                clock = time.perf_counter()
                run.process(command, threads, paths)
                wall, after = time.perf_counter() - clock, os.times()
                cpu = sum(after[2:4]) - sum(usage[2:4])
                if number >= 0:
                    seconds[name].append({"wall_s": wall, "cpu_s": cpu})
            if number >= 0:
                say(
                    f"  round {number + 1} of {run.rounds}: {describe(seconds['ours'][-1])} ours, "
                    f"{describe(seconds['forward'][-1])} torch, transformers and a forward pass"
                )
    yield row(
        "whole process",
        run,
        {"prompt": PROMPT},
        seconds["ours"],
        [],
        {},
        threads=threads,
        forward=seconds["forward"],
    )


def floor(run: Run) -> Iterator[dict[str, Any]]:
    """CPU seconds of the sweep over its operations at the measured matrix-product rate."""
    say("time over the floor")
    ours, _ = run.in_turn(["floor", run.case])
    yield row("time over the floor", run, case.SHAPES, ours, [], {})


def keeping(run: Run) -> Iterator[dict[str, Any]]:
    """Memory of a complete graph whose rows keep all their edges, or the strongest."""
    for share in SHARES:
        say(f"edges kept, {share}")
        ours, _ = run.in_turn(["keep", share])
        if ours[0]["closure"] > TOLERANCE:
            raise SystemExit(f"the rows do not close: {ours[0]}")
        shapes = {"features": ours[0]["active_features"], "keep_edges": share}
        yield row(f"edges kept, {share}", run, shapes, ours, [], {})


WORKS = {
    "attribution": attribution,
    "pruning": pruning,
    "process": process,
    "floor": floor,
    "keeping": keeping,
}


def difference(ours: Path, theirs: Path) -> Figures:
    """Largest difference of two matrices on the features and rows they share."""
    import torch
    from safetensors.torch import load_file

    a, b = load_file(ours), load_file(theirs)
    code = torch.tensor([case.TOKENS * case.FEATURES, case.FEATURES, 1])
    keys_a, keys_b = (found["features"] @ code for found in (a, b))
    shared = torch.isin(keys_b, keys_a).nonzero()[:, 0]
    place = torch.searchsorted(keys_a, keys_b[shared])
    rest = len(b["matrix"]) - len(keys_b)
    if rest != len(a["matrix"]) - len(keys_a):
        raise SystemExit("the graphs have different errors, embeddings or logits")
    in_a = torch.cat([place, torch.arange(len(keys_a), len(a["matrix"]))])
    in_b = torch.cat([shared, torch.arange(len(keys_b), len(b["matrix"]))])
    has_row = torch.isin(in_a, a["rows"])
    apart = a["matrix"][in_a[has_row][:, None], in_a] - b["matrix"][in_b[has_row][:, None], in_b]
    return {
        "largest_difference": float(apart.abs().max()),
        "common_rows": int(has_row.sum()),
    }


def row(
    work: str,
    run: Run,
    shapes: dict[str, Any],
    ours: list[Figures],
    theirs: list[Figures],
    found: dict[str, Any],
    threads: int | None = None,
    **others: list[Figures],
) -> dict[str, Any]:
    """One line of the results: percentiles of every figure, and of the ratios of each round."""
    sides = {"ours": ours, "reference": theirs, **others}
    ratios = {}
    for name, side in sides.items():
        if name != "ours" and side:
            pairs = list(zip(side, ours, strict=True))
            ratios[name] = {
                figure: percentiles([other[figure] / mine[figure] for other, mine in pairs])
                for figure in ("cpu_s", "wall_s", "above_loading_mib", "peak_mib")
                if all(pair[0].get(figure) and pair[1].get(figure) for pair in pairs)
            }
    return {
        "work": work,
        **circumstances(run, threads or run.threads),
        "shapes": shapes,
        "rounds": len(ours),
        **{
            name: {key: percentiles([one[key] for one in side]) for key in side[0]}
            for name, side in sides.items()
            if side
        },
        "ratios": ratios,
        "found": found,
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """p20, p50 and p80, linear between the values, to four digits."""
    ordered, result = sorted(values), {}
    for share in (20, 50, 80):
        place = (len(ordered) - 1) * share / 100
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        value = ordered[low] + (ordered[high] - ordered[low]) * (place - low)
        result[f"p{share}"] = float(f"{value:.4g}")
    return result


def circumstances(run: Run, threads: int) -> dict[str, Any]:
    """Where, when and with what."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
        "commit": git("rev-parse", "--short", "HEAD"),
        "changed_files": git("status", "--porcelain", "--", "circuit_tracer", "kernels") != "",
        "device": "cpu",
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": round(os.getloadavg()[0], 1),
        "python": sys.version.split()[0],
        "versions": run.versions,
    }


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "unknown"


def describe(figures: Figures) -> str:
    return f"{figures['cpu_s']:.2f} CPU s ({figures['wall_s']:.2f} wall)"


def say(text: str) -> None:
    print(text, flush=True)


def default_case() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "trace-circuits" / "benchmark"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", metavar="PYTHON", help="a Python with circuit-tracer 0.5.0")
    parser.add_argument("--case", type=Path, default=default_case(), help="built where missing")
    parser.add_argument("--work", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cores", type=int, nargs="+", help="stay on these cores (Linux)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    case.build(given.case)
    run = Run(given)
    if not run.reference:
        say("no --reference PYTHON: only our side is measured")
    given.results.parent.mkdir(parents=True, exist_ok=True)
    for name in given.work:
        for found in WORKS[name](run):
            with given.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found, ensure_ascii=False) + "\n")
            say("  " + summary(found))


def summary(found: dict[str, Any]) -> str:
    """A result in one line."""
    parts = [found["work"], f"{found['ours']['cpu_s']['p50']:.2f} CPU s"]
    for other, ratios in found["ratios"].items():
        parts += [f"{other} / ours {name} {value['p50']:.3g}" for name, value in ratios.items()]
    if "over_floor" in found["ours"]:
        parts.append(f"{found['ours']['over_floor']['p50']:.2f} times the floor")
    return ", ".join(parts)


if __name__ == "__main__":
    main()
