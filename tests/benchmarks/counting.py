"""What counting a corpus costs: a piece of text, and a place in it where a feature fires.

    PYTHONPATH=.:kernels python tests/benchmarks/counting.py

Texts for the bundled model, 400 short ones and 400 of eight run together; the two costs follow from
what the two kinds take. The model's own work is in them.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

import torch

import circuit_tracer as ct
from circuit_tracer.features import count

NAMES = ("small", "large", "hot", "cold", "wide", "old", "new", "Paris", "France", "Tokyo", "Japan")
TEXTS, JOINED = 400, 8


def main() -> None:
    torch.set_num_threads(1)
    draw, model = random.Random(0), ct.load()
    sentences = [
        f"The opposite of {draw.choice(NAMES)} is {draw.choice(NAMES)}."
        for _ in range(TEXTS * JOINED)
    ]
    joined = [" ".join(sentences[i : i + JOINED]) for i in range(0, len(sentences), JOINED)]
    counted(model, sentences[:20])
    (seconds, fired), (more_seconds, more_fired) = (
        counted(model, texts) for texts in (sentences[:TEXTS], joined)
    )
    each = (more_seconds - seconds) / (more_fired - fired)
    print(f"{each * 1e6:.2f} µs a firing, {(seconds - fired * each) / TEXTS * 1e3:.1f} ms a text")


def counted(model: ct.ReplacementModel, texts: list[str]) -> tuple[float, int]:
    """(CPU seconds, places where features fire)."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        part = count(model, texts, Path(folder) / "part")
        seconds = time.process_time() - start
    fired = sum(int(tally.count.sum()) for tally in part.tallies)
    positions = sum(part.positions)
    print(f"{len(texts)} texts, {positions:,} tokens, {fired:,} firings: {seconds:.2f} CPU s")
    return seconds, fired


if __name__ == "__main__":
    main()
