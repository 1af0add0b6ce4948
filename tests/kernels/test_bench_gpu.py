"""The GPU benchmark, at toy sizes on a CPU: it runs to its end, and being wrong stops it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from circuit_kernels import choice
from tests.kernels.both_forms import form

BENCH = Path(__file__).resolve().parents[2] / "kernels" / "bench"


@pytest.fixture()
def script(monkeypatch):
    """Imports one of the benchmark's modules."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


@pytest.mark.slow
def test_all_of_it_runs_and_a_dry_run_records_nothing(tmp_path):
    if problem := choice.triton_problem(torch.device("cpu")):
        pytest.skip(problem)
    results = tmp_path / "results.jsonl"
    words = ["--dry-run", "--device", "cpu", "--tiny", "--results", str(results)]
    done = subprocess.run(
        [sys.executable, BENCH / "bench_gpu.py", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in choice.KERNELS:
        assert f"  kernel {name}, " in done.stdout
    for kind in ("complete", "max_features=5", "6 tokens", "clt"):
        assert f"  attribution, {kind}" in done.stdout
    assert not results.exists()


def test_a_cpu_is_not_measured(tmp_path):
    done = subprocess.run(
        [sys.executable, BENCH / "bench_gpu.py", "--device", "cpu"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--tiny --dry-run" in done.stderr


def test_every_kernel_has_a_case_and_what_is_wrong_is_told(script):
    """Each case finds the reference right, and a result that is off by a tenth wrong."""
    seen = set()
    for case in script("kernel_cases").cases(torch.device("cpu"), tiny=True):
        seen.add(case.kernel)
        reference = form(case.kernel, "reference", "cpu")
        truth, found = case.result(reference, double=True), case.result(reference)
        assert case.error(found, truth) < 1e-5
        assert case.error(spoiled(case, found), truth) > 5e-3
    assert seen == set(choice.KERNELS)


def spoiled(case, found):
    if case.outputs:
        last = found[case.outputs[-1]]
        return {**found, case.outputs[-1]: last + 0.1 * last.abs().max()}
    if case.kernel == "encode":
        return found._replace(values=found.values * 1.1)
    return found._replace(kept=found.kept + found.kept // 10 + 1)


def test_the_tables_list_what_waits_and_show_what_was_measured(script):
    tables, picture = script("gpu_tables"), script("picture")
    assert tables.tables([]).count(tables.WAITS) == len(tables.KERNELS) + len(tables.ATTRIBUTIONS)
    cuts = {"p20": 0.9, "p50": 1.0, "p80": 1.2}
    ours = {"wall_s": cuts, "over_floor": cuts, "share_of_gemm_rate": cuts, "peak_gib": cuts}
    row = {"device": "a card", "shapes": {}, "ours": ours}
    rows = [
        row | {"work": "gpu kernel edge_rows, plt, tf32", "ratios": {"torch": 2.5}},
        row | {"work": "gpu attribution, complete, triton, tf32"},
        row
        | {
            "work": "gpu attribution, max_features=7500, triton, tf32",
            "reference": {"wall_s": {name: 30 * value for name, value in cuts.items()}},
            "ratios": {"reference tool": 30.0},
        },
    ]
    text = tables.tables(rows)
    assert "| edge_rows, plt, tf32 | a card | 1e+03 (900–1.2e+03) |" in text
    assert "30; to the complete graph 30" in text
    assert text.count(tables.WAITS) == len(tables.KERNELS) + len(tables.ATTRIBUTIONS) - 3
    drawn = picture.drawing(rows)
    assert drawn.count('<rect class="ours"') == 2  # the legend and the one work with both
    assert "max_features=7500, triton, tf32, a card" in drawn


def test_percentiles(script):
    stopwatch = script("stopwatch")
    assert stopwatch.percentiles([3.0]) == {"p20": 3.0, "p50": 3.0, "p80": 3.0}
    assert stopwatch.percentiles([5, 1, 2, 4, 3, 6]) == {"p20": 2.0, "p50": 3.5, "p80": 5.0}


def test_work_that_fails_costs_its_own_row_only(script, monkeypatch, tmp_path):
    bench_gpu, cases = script("bench_gpu"), script("kernel_cases")
    results = tmp_path / "results.jsonl"
    words = ["--device", "cpu", "--tiny", "--dry-run", "--results", str(results)]
    monkeypatch.setattr(sys, "argv", ["bench_gpu.py", *words])
    bench = bench_gpu.Bench(bench_gpu.arguments())
    bench.given.dry_run = False
    bench.rates = dict.fromkeys(["ieee", "tf32", "copy"], 1e9)

    found = choice.kernel

    def kernel(name, _form, device):
        if name == "sparse_decode":
            return lambda **_given: [][0]
        return found(name, "reference", device)

    def some(device, tiny):
        draw = torch.Generator(device).manual_seed(0)
        yield cases.sparse_decode(cases.TINY, draw)
        yield cases.influence(cases.TINY, draw)

    monkeypatch.setattr(choice, "triton_problem", lambda device: None)
    monkeypatch.setattr(choice, "kernel", kernel)
    monkeypatch.setattr(cases, "cases", some)
    bench_gpu.kernels(bench)
    assert len(bench.failures) == 1
    assert bench.failures[0].startswith("kernel sparse_decode, plt, ieee: IndexError")
    works = [json.loads(line)["work"] for line in results.read_text().splitlines()]
    assert works == ["gpu kernel influence, one block"]
