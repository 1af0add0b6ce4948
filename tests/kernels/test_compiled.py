"""Kernels compile for cards that are not here, and fit them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: it is for Linux")
from circuit_kernels import launch  # noqa: E402

SCRIPT = Path(__file__).with_name("compiled.py")


@pytest.mark.slow
def test_what_each_class_of_card_runs_fits_its_registers_and_shared_memory(tmp_path):
    """What spills, or asks for more shared memory than there is, is slow or fails on the card."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, SCRIPT],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    seen = {(row["card"], row["kernel"]) for row in rows}
    assert len({kernel for _, kernel in seen}) == 7
    assert len(seen) == 3 * 7
    for row in rows:
        assert row["shared"] <= row["room"] * 1024, row
        assert row["stack"] <= 16, row  # a register or two around the edges
        assert row["registers"] * 32 * row["warps"] <= 65536, row


def test_tiles_are_those_of_the_card_and_of_the_products(monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr(launch, "card", lambda device: "consumer")
    assert launch.tiles("encode", device, exact=False) == launch.CANDIDATES["encode"][4]
    assert launch.tiles("edge_rows", device, exact=False) == launch.CANDIDATES["edge_rows"][0]
    assert launch.tiles("edge_rows", device) == launch.EXACT["edge_rows"][0]  # torch's default
    assert launch.tiles("edge_rows", device, torch.float64) == launch.DOUBLE["edge_rows"][0]
    bf16 = launch.tiles("edge_rows", device, torch.bfloat16)  # tensor cores in any case
    assert bf16 == launch.CANDIDATES["edge_rows"][0]
    assert launch.tiles("influence", device) == launch.CANDIDATES["influence"][0]
