"""How float32 products are made follows torch, and what nobody said follows the model."""

from __future__ import annotations

import pytest
import torch

import circuit_tracer as ct
from circuit_kernels import launch
from circuit_kernels.precision import as_exact_as, is_exact
from circuit_tracer import abreast, sweep
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.question import Question
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.tracing import trace_abreast
from tests import tiny

MATMUL = torch.backends.cuda.matmul
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
told = pytest.mark.skipif(
    not hasattr(MATMUL, "fp32_precision"), reason="torch before 2.9 cannot tell what it was told"
)


@pytest.fixture(autouse=True)
def nobody_said():
    def forget():
        torch.set_float32_matmul_precision("highest")
        if hasattr(MATMUL, "fp32_precision"):
            MATMUL.fp32_precision = "none"

    forget()
    yield
    forget()


@told
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_multiplied_in_tf32_where_nobody_said(dtype):
    assert is_exact()
    with as_exact_as(dtype, CUDA):
        assert not is_exact()
        assert launch.precision(None) == "tf32"
        with as_exact_as(dtype, CUDA):
            pass
        assert not is_exact()
    assert MATMUL.fp32_precision == "none"
    with pytest.raises(KeyError), as_exact_as(dtype, CUDA):
        raise KeyError
    assert is_exact()


@pytest.mark.parametrize("dtype, device", [(torch.float32, CUDA), (torch.bfloat16, CPU)])
def test_nothing_else_is(dtype, device):
    with as_exact_as(dtype, device):
        assert is_exact()
        assert launch.precision(None) == "ieee"


def test_what_torch_was_told_counts():
    torch.set_float32_matmul_precision("highest")
    with as_exact_as(torch.bfloat16, CUDA):
        assert is_exact()
    torch.set_float32_matmul_precision("high")
    assert not is_exact()
    with as_exact_as(torch.float32, CUDA):
        assert launch.precision(None) == "tf32"
    assert not is_exact()
    assert launch.precision(True) == "ieee"


@told
def test_the_newer_way_of_telling_counts_too():
    """torch's own older question refuses to answer once the newer way was used."""
    MATMUL.fp32_precision = "tf32"
    assert launch.precision(None) == "tf32"
    MATMUL.fp32_precision = "ieee"
    with as_exact_as(torch.bfloat16, CUDA):
        assert launch.precision(None) == "ieee"


@told
def test_the_sweep_multiplies_as_exactly_as_the_model_computes(monkeypatch):
    """Played on a CPU, where it changes nothing that is computed."""
    seen = []

    def played(dtype, _device):
        seen.append(dtype)
        return as_exact_as(dtype, CUDA)

    def watched(self):
        assert not is_exact()
        return descend(self)

    descend = sweep.Chunk.descend
    monkeypatch.setattr(sweep.Chunk, "descend", watched)
    for module in (sweep, abreast):
        monkeypatch.setattr(module, "as_exact_as", played)
    adapter = Adapter(tiny.model("qwen3", torch.bfloat16), "tiny")
    model = ReplacementModel(adapter, tiny.tokenizer(), tiny.transcoders())
    graph = ct.trace([2, 5, 9, 4, 11], model)
    assert len(graph.index.features) > 0
    assert set(seen) == {torch.bfloat16}
    assert is_exact()
    seen.clear()
    trace_abreast([Question([2, 5, 9]), Question([2, 4, 9])], model)
    assert torch.bfloat16 in seen
