"""A long prompt, start to end, in a process of its own, and what is not kept of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import circuit_tracer as ct
from circuit_tracer import local, memory
from tests import tiny

ROOT = Path(__file__).parents[2]
GIB = 1024  # MiB


@pytest.mark.slow
def test_two_thousand_tokens_are_traced_pruned_and_drawn_in_a_few_gib():
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "benchmarks" / "long_prompt.py"],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout)
    assert figures["rows"] >= figures["max_features"] == figures["tokens"] == 2000
    assert figures["closure"] < 2e-5
    assert figures["page_bytes"] > 1e5
    assert figures["page_peak_mib"] < 2 * GIB


@pytest.mark.parametrize("room", [0, 1000])
def test_write_vectors_that_are_not_kept_give_the_same_rows(monkeypatch, room):
    model = tiny.replacement("gemma2", kind="clt")
    kept = ct.trace(tiny.PROMPT, model, max_features=None)
    monkeypatch.setitem(local.KEPT, "cpu", room)
    again = ct.trace(tiny.PROMPT, model, max_features=None)
    assert torch.equal(again.edges.dense(), kept.edges.dense())
    one = model.localise(model.run(tiny.PROMPT))
    held = sum(one.writes(0, layer).nbytes for layer in range(3))
    assert memory.tensors([one._writes]) <= room < held
