"""Every GPU figure of docs/performance.md, in one run of under ten minutes.

    make bench-gpu                                    needs a CUDA device and triton
    make bench-gpu BENCH="--reference PYTHON"         and the reference tool's, by its own Python;
                                                      not needed where its wheels, and those of what
                                                      it needs, are in kernels/bench/wheels
    make bench-gpu BENCH="--tune"                     and which tile sizes are fastest here
    python kernels/bench/bench_gpu.py --dry-run --device cpu --tiny
                                                      all of it at toy sizes; records nothing

Measured are what the machine does at best (matrix products, copies), then each kernel against its
torch reference, other torch forms and that floor, then the whole attribution at Gemma 2 2B's shape
with random weights made on the device. Being right gates timing: a kernel that differs from its
reference in float64, or a graph whose rows do not close, is an error, and its row is not recorded.
A work that fails is told at once and again at the end, and the others go on. Rows are appended to
results.jsonl as they come, so that what was measured stays whatever happens later; what no time is
left for is said. table.py makes the tables.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
Row = dict[str, Any]

PRECISIONS = {"ieee": "highest", "tf32": "high"}
"""Names of the rows, and what torch calls them."""
TOLERANCE = {"ieee": 1e-5, "tf32": 5e-3}
"""Largest error of a kernel against float64, relative to the largest entry."""
WHEELS = HERE / "wheels"
REFERENCE_SHARE = 0.5
"""Part of the time left that the reference tool may take; it is stopped after that."""
CLOSURE = 0.05
"""Largest closure residual relative to the largest value: the model runs in bfloat16."""


class Bench:
    """The run: its device, its clock, what it has recorded and what went wrong."""

    def __init__(self, given: argparse.Namespace):
        import torch

        self.given, self.device = given, torch.device(given.device)
        self.started, self.failures = time.perf_counter(), list[str]()
        self.rates: dict[str, float] = {}
        self.circumstances = circumstances(self.device)

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.given.budget - (time.perf_counter() - self.started)

    def time_left(self, work: str) -> bool:
        if self.left <= 0:
            say(f"{work}: left out, the {self.given.budget:.0f} s are over")
        return self.left > 0

    @contextlib.contextmanager
    def attempt(self, work: str) -> Iterator[None]:
        """What goes wrong inside costs this work its row, and no other."""
        import torch

        try:
            yield
        except Exception as error:  # no room, tiles that do not fit, whatever a driver may raise
            reason = (str(error).strip() or "?").splitlines()[0]
            self.failed(f"{work}: {type(error).__name__}: {reason}")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def record(self, work: str, shapes: Row, **figures: Any) -> None:
        row = {"work": f"gpu {work}", **self.circumstances, "shapes": shapes, **figures}
        ours = figures["ours"]
        middle = next(iter(ours.values()))["p50"]
        say(f"  {work}: {next(iter(ours))} {middle:.4g}" + _ratios(figures))
        if not self.given.dry_run:
            with self.given.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def failed(self, what: str) -> None:
        self.failures.append(what)
        say(f"  FAILED {what}")


def _ratios(figures: Row) -> str:
    parts = [f", {name} / ours {value:.3g}" for name, value in figures.get("ratios", {}).items()]
    over = figures["ours"].get("over_floor")
    return "".join(parts) + (f", {over['p50']:.3g} times the floor" if over else "")


def circumstances(device: Any) -> Row:
    """Where, when and with what."""
    import torch

    versions = {}
    for name in ("torch", "triton", "transformers"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    found = {"device": "cpu"}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        versions["cuda"] = torch.version.cuda or "none"
        found = {
            "device": properties.name,
            "capability": f"sm_{properties.major}{properties.minor}",
            "device_gib": round(properties.total_memory / 2**30, 1),
        }
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
        "commit": git("rev-parse", "--short", "HEAD"),
        "changed_files": git("status", "--porcelain", "--", "circuit_tracer", "kernels") != "",
        **found,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": sys.version.split()[0],
        "versions": versions,
    }


def git(*words: str) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    except OSError:  # no git here
        return ""
    return done.stdout.strip()


def cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return "unknown"


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """torch's float32 products, and with them the kernels', at one of `PRECISIONS`."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(PRECISIONS[name])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def machine(bench: Bench) -> None:
    """What the machine does at best: the floor of everything below."""
    import torch
    from stopwatch import copy_rate, gemm_rate, percentiles

    say("the machine at its best")
    device, tiny = bench.device, bench.given.tiny
    size, elements, rounds = (64, 2**12, 3) if tiny else (8192, 2**28, 10)
    for name in PRECISIONS:
        with precision(name):
            bench.rates[name] = gemm_rate(device, torch.float32, size, rounds)
    bench.rates["bf16"] = gemm_rate(device, torch.bfloat16, size, rounds)
    bench.rates["copy"] = copy_rate(device, elements, rounds)
    ours = {
        f"{name}_{'gb' if name == 'copy' else 'gflop'}_per_s": percentiles([rate / 1e9])
        for name, rate in bench.rates.items()
    }
    bench.record("machine", {"size": size, "elements": elements}, rounds=rounds, ours=ours)


def kernels(bench: Bench) -> None:
    """Each kernel against float64, then against its torch forms and the floor."""
    from kernel_cases import cases

    from circuit_kernels import choice

    problem = choice.triton_problem(bench.device)
    if problem:
        bench.failed(f"kernels: {problem}")
        return
    for case in cases(bench.device, bench.given.tiny):
        work = f"kernel {case.kernel}, {case.name}"
        if not bench.time_left(work):
            return
        say(work)
        ours = choice.kernel(case.kernel, "triton", bench.device)
        torch_form = choice.kernel(case.kernel, "reference", bench.device)
        products = "exact" in inspect.signature(ours).parameters
        for name in PRECISIONS if products else ("ieee",):
            with bench.attempt(f"{work}, {name}"), precision(name):
                truth = case.result(torch_form, double=True)
                worst = max(case.error(case.result(form), truth) for form in (ours, torch_form))
                del truth
                if not worst <= TOLERANCE[name]:
                    bench.failed(f"{work}, {name}: off by {worst:.1e}")
                    continue
                time_kernel(bench, case, name if products else "", ours, torch_form, worst)


def time_kernel(
    bench: Bench,
    case: Any,
    name: str,
    ours: Callable[..., Any],
    torch_form: Callable[..., Any],
    worst: float,
) -> None:
    """Time a kernel that was found right, beside everything it is compared with."""
    from stopwatch import percentiles, seconds

    rounds = 1 if bench.given.tiny else bench.given.rounds
    given = case.fresh()
    forms = {"ours": lambda: ours(**given), "torch": lambda: torch_form(**given)}
    for who, rival in case.rivals.items():
        forms[who] = lambda rival=rival: rival(given)
    walls = {who: seconds(call, bench.device, rounds) for who, call in forms.items()}
    middles = {who: percentiles(wall)["p50"] for who, wall in walls.items()}
    floor = max(case.flops / bench.rates[name or "ieee"], case.traffic / bench.rates["copy"])
    found = {
        "wall_s": percentiles(walls["ours"]),
        "over_floor": percentiles([wall / floor for wall in walls["ours"]]),
    }
    if case.flops:
        rate = bench.rates[name or "ieee"]
        found["share_of_gemm_rate"] = percentiles(
            [case.flops / wall / rate for wall in walls["ours"]]
        )
    bench.record(
        ", ".join(filter(None, (f"kernel {case.kernel}", case.name, name))),
        case.shapes,
        rounds=rounds,
        ours=found,
        ratios={who: middles[who] / middles["ours"] for who in forms if who != "ours"},
        others={who: {"wall_s": percentiles(walls[who])} for who in forms if who != "ours"},
        found={"largest_error": worst, "floor_s": floor},
        **({"tiles": tuned(bench, case, ours)} if bench.given.tune else {}),
    )


def tuned(bench: Bench, case: Any, ours: Callable[..., Any]) -> list[Row]:
    """Seconds with each candidate of tile sizes; None where the card has no room for it."""
    from stopwatch import percentiles, seconds

    from circuit_kernels import choice, launch

    times, given = [], case.fresh()
    for number, tiles in enumerate(launch.candidates(choice.KERNELS[case.kernel])):
        middle = None
        try:
            call = lambda tiles=tiles: ours(**given, tiles=tiles)  # noqa: E731
            middle = percentiles(seconds(call, bench.device, 5))["p50"]
        except Exception as error:
            if type(error).__name__ != "OutOfResources":
                raise
        times.append({"candidate": number, "tiles": dict(tiles), "wall_s": middle})
    best = min(times, key=lambda one: one["wall_s"] or float("inf"))
    say(
        f"    fastest tiles: candidate {best['candidate']}, {best['tiles']}, {best['wall_s']:.3g} s"
    )
    return times


def attribution(bench: Bench) -> None:
    """The whole attribution, complete and cut off, short and long, per-layer and cross-layer."""
    from gemma_shape import REAL, TINY, network, replacement

    shape = TINY if bench.given.tiny else REAL
    cut, long_cut, tokens = (5, 3, 6) if bench.given.tiny else (7500, 8192, 2000)
    net = network(shape, bench.device)
    long = replace(shape, tokens=tokens)
    cross = replace(shape, kind="clt")
    # What has a goal comes first, and what is on the same model together.
    plan: list[tuple[str, Any, int | None, str, str, int]] = [
        ("complete", shape, None, "triton", "tf32", 3),
        (f"max_features={cut}", shape, cut, "triton", "tf32", 3),
        (f"{tokens} tokens, max_features={long_cut}", long, long_cut, "triton", "tf32", 1),
        ("complete", shape, None, "reference", "tf32", 1),
        ("complete", shape, None, "triton", "ieee", 1),
        ("complete", shape, None, "reference", "ieee", 1),
        (f"clt, max_features={cut}", cross, cut, "triton", "tf32", 1),
    ]
    model, made = None, None
    for name, size, limit, form, digits, rounds in plan:
        work = f"attribution, {name}, {form}, {digits}"
        if not bench.time_left(work):
            continue
        say(work)
        with bench.attempt(work), precision(digits):
            if made != size:
                model, made = None, None
                model, made = replacement(size, bench.device, net)[0], size
            reference = by_reference(bench, cut) if limit == cut and size == shape else None
            measure(bench, work, model, size, limit, form, digits, rounds, reference)


def measure(
    bench: Bench, work: str, model: Any, shape: Any, limit: int | None, form: str, digits: str,
    rounds: int, reference: Row | None,
) -> None:  # fmt: skip
    """Run one kind of attribution some times, and record it if its rows close."""
    from gemma_shape import attribution as run
    from stopwatch import percentiles

    rounds = 1 if bench.given.tiny else rounds
    # Kernels are compiled and memory is taken before anything is timed.
    run(model, shape, bench.device, limit if rounds > 1 else 64, form)
    runs = [run(model, shape, bench.device, limit, form)]
    while len(runs) < rounds and bench.left > 0:
        runs.append(run(model, shape, bench.device, limit, form))
    worst = max(one["closure"] / max(one["largest_value"], 1e-30) for one in runs)
    if not worst <= CLOSURE:
        bench.failed(f"{work}: rows are off by {worst:.1e} of the largest value")
        return
    rate = bench.rates[digits]
    for one in runs:
        one["over_floor"] = one["wall_s"] * rate / (one["gflop"] * 1e9)
    ours = {name: percentiles([one[name] for one in runs]) for name in runs[0]}
    more: Row = {}
    if reference:
        theirs = {name: percentiles(values) for name, values in reference["figures"].items()}
        versions = bench.circumstances["versions"] | reference["versions"]
        ratio = theirs["wall_s"]["p50"] / ours["wall_s"]["p50"]
        ratios = {"reference tool": ratio}
        more = {"reference": theirs, "ratios": ratios, "versions": versions}
    sizes = {**vars(shape), "max_features": limit}
    bench.record(work, sizes, rounds=len(runs), ours=ours, found={"closure_share": worst}, **more)


def by_reference(bench: Bench, cut: int) -> Row | None:
    """Seconds of the reference tool on the same shape, where its Python or its wheels are given."""
    wheels = sorted(WHEELS.glob("*.whl"))
    if not (bench.given.reference or wheels):
        say(f"  no --reference PYTHON, no wheels in {WHEELS}: only our side is measured")
        return None
    left = max(60.0, REFERENCE_SHARE * bench.left)
    words = ["--device", bench.given.device, "--max-features", str(cut)]
    words += ["--tiny"] if bench.given.tiny else []
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory() as site:
        try:
            if not bench.given.reference:
                pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
                _run([*pip, "--target", site, *wheels], environment, left)
                environment["PYTHONPATH"] = site
            python = bench.given.reference or sys.executable
            said = _run([python, HERE / "reference_gpu.py", *words], environment, left)
            return json.loads(said.splitlines()[-1])
        except subprocess.TimeoutExpired:
            bench.failed(f"the reference tool took more than {left:.0f} s")
        except subprocess.CalledProcessError as error:
            bench.failed("the reference tool: " + (error.stderr.strip().splitlines() or ["?"])[-1])
        except (OSError, ValueError, IndexError) as error:
            bench.failed(f"the reference tool: {error}")
    return None


def _run(words: list[Any], environment: dict[str, str], limit: float) -> str:
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, timeout=limit, check=True
    )
    return done.stdout


WORKS = {"kernels": kernels, "attribution": attribution}


def say(text: str) -> None:
    print(text, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--reference", metavar="PYTHON", help="a Python with circuit-tracer 0.5.0")
    parser.add_argument("--work", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--rounds", type=int, default=20, help="of each kernel")
    parser.add_argument("--budget", type=float, default=540, help="seconds; the rest is left out")
    parser.add_argument("--tune", action="store_true", help="time all tile sizes of each kernel")
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--dry-run", action="store_true", help="record nothing")
    parser.add_argument("--results", type=Path, default=HERE / "results.jsonl")
    given = parser.parse_args()
    if not given.device.startswith("cuda") and not (given.tiny and given.dry_run):
        parser.error("on a CPU there is nothing to measure here: only --tiny --dry-run")
    return given


def main() -> None:
    given = arguments()
    if not given.device.startswith("cuda"):
        os.environ["TRITON_INTERPRET"] = "1"  # before torch is imported, which imports triton
    sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]
    import torch

    if given.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --dry-run --device cpu --tiny shows what would run")
    bench = Bench(given)
    machine(bench)
    for name in given.work:
        with bench.attempt(name):
            WORKS[name](bench)
    say(f"{time.perf_counter() - bench.started:.0f} s; python kernels/bench/table.py next")
    if bench.failures:
        listed = "\n  ".join(bench.failures)
        raise SystemExit(f"{len(bench.failures)} failed, and have no row:\n  {listed}")


if __name__ == "__main__":
    main()
