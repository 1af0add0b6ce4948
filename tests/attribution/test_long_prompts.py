"""A long prompt, start to end, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
