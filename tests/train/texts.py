"""Text in the tiny tokenizer's words, and a tiny model to train transcoders for."""

from __future__ import annotations

import random

import torch

from circuit_tracer.models.adapter import Adapter
from tests import tiny


def texts(count: int = 60, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [
        " ".join(f"w{draw.randint(4, 39)}" for _ in range(draw.randint(3, 25)))
        for _ in range(count)
    ]


def adapter(family: str = "llama", dtype: torch.dtype = torch.float64) -> Adapter:
    return Adapter(tiny.model(family, dtype), f"tiny {family}", dtype)
