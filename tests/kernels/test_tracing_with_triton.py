"""The kernel choice changes nothing in a graph beyond rounding."""

from __future__ import annotations

import pytest
import tiny
import torch

import circuit_tracer as ct
from circuit_kernels import choice


@pytest.mark.parametrize("given", [dict(kind="plt"), dict(kind="clt", activation="topk")])
def test_a_graph_by_either_kernel(given):
    problem = choice.triton_problem(torch.device("cpu"))
    if problem:
        pytest.skip(problem)
    model = tiny.replacement("gemma2", dtype=torch.float32, **given)
    by_torch = ct.trace(tiny.PROMPT, model, kernels="reference")
    by_triton = ct.trace(tiny.PROMPT, model, kernels="triton")
    torch.testing.assert_close(by_triton.dense(), by_torch.dense(), atol=2e-5, rtol=0)


def test_an_unknown_choice_names_the_choices():
    model = tiny.replacement("llama")
    with pytest.raises(ct.CircuitTracerError, match="auto, reference, triton"):
        ct.trace(tiny.PROMPT, model, kernels="fast")
