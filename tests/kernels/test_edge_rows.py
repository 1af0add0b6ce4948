"""The edge-rows kernel: torch reference against its definition, Triton against the reference."""

from __future__ import annotations

import pytest
import torch

from circuit_kernels import choice
from circuit_kernels.edge_rows import edge_rows
from tests.kernels.both_forms import DEVICE, FORMS, TOLERANCE, close, form, framed, laid_out

SHAPES = {
    "one": (1, 1, 1, [1]),
    "odd": (3, 37, 5, [7, 1, 12]),
    "ragged": (4, 64, 33, [0, 70, 3, 129]),
    "no sources": (3, 16, 4, [0, 0, 0]),
    "no targets": (2, 16, 0, [3, 4]),
    "wide": (2, 130, 70, [65, 64]),
}


def inputs(shape: str, dtype=torch.float32):
    positions, width, targets, counts = SHAPES[shape]
    draw = torch.Generator().manual_seed(len(shape))
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    gradient = torch.randn(positions, width, targets, generator=draw).to(dtype)
    vectors = torch.randn(starts[-1], width, generator=draw).to(dtype)
    out = torch.randn(starts[-1], targets, generator=draw)
    return gradient.to(DEVICE), vectors.to(DEVICE), starts, out.to(DEVICE)


def definition(gradient, vectors, starts, out):
    result = out.double().clone()
    for position in range(len(starts) - 1):
        part = slice(starts[position], starts[position + 1])
        result[part] += vectors[part].double() @ gradient[position].double()
    return result


def check(kernel, dtype, shape, tolerance=None, **options):
    gradient, vectors, starts, out = inputs(shape, dtype)
    truth = definition(gradient, vectors, starts, out)
    kernel(gradient, vectors, starts, out, **options)
    close(out, truth, tolerance or TOLERANCE[dtype])


@pytest.mark.parametrize("shape", SHAPES)
def test_reference(shape):
    check(edge_rows, torch.float32, shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_triton_in_the_interpreter_or_on_a_gpu(shape, dtype):
    check(form("edge_rows", "triton"), dtype, shape)


@pytest.mark.gpu
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_triton_on_a_gpu_in_bf16_and_tf32(shape, dtype, exact):
    tolerance = TOLERANCE[dtype if exact else torch.bfloat16]
    check(form("edge_rows", "triton"), dtype, shape, tolerance, exact=exact)


@pytest.mark.parametrize("which", FORMS)
def test_what_lies_around_the_output_is_not_touched(which):
    """The output is a strided slice of a buffer of NaN; only the slice may change."""
    gradient, vectors, starts, out = inputs("ragged")
    buffer, inside = framed(out)
    form("edge_rows", which)(gradient, vectors, starts, inside)
    close(inside, definition(gradient, vectors, starts, out), 1e-5)
    assert buffer.isnan().sum() == buffer.numel() - inside.numel()


@pytest.mark.parametrize("which", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_tensors_may_lie_in_memory_in_any_order(shape, which):
    """As the sweep has them: gradients and rows by target, write vectors by direction."""
    gradient, vectors, starts, out = inputs(shape)
    truth, turned = definition(gradient, vectors, starts, out), laid_out(out, 1, 0)
    form("edge_rows", which)(laid_out(gradient, 2, 0, 1), laid_out(vectors, 1, 0), starts, turned)
    close(turned, truth, 1e-5)


def test_twice_the_same_is_the_same_bits():
    results = []
    for _ in range(2):
        gradient, vectors, starts, out = inputs("ragged")
        form("edge_rows", "triton")(gradient, vectors, starts, out)
        results.append(out)
    assert torch.equal(*results)


@pytest.mark.parametrize("change", ["starts", "vectors", "out"])
def test_shapes_that_do_not_belong_together(change):
    gradient, vectors, starts, out = inputs("odd")
    wrong = {
        "starts": (gradient, vectors, starts[:-1], out),
        "vectors": (gradient, vectors[:, :-1], starts, out),
        "out": (gradient, vectors, starts, out[:, :-1]),
    }
    for which in FORMS:
        with pytest.raises(ValueError, match=f"{change} must"):
            form("edge_rows", which)(*wrong[change])


def test_the_choice_is_never_silent(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choice.edge_rows("auto", cpu) is edge_rows
    assert choice.edge_rows("reference", gpu) is edge_rows
    with pytest.raises(ValueError, match="one of auto, reference, triton"):
        choice.edge_rows("cuda", cpu)
    with pytest.raises(ValueError, match="there is no 'edges'"):
        choice.kernel("edges", "auto", cpu)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="cannot run"):
        choice.edge_rows("triton", cpu)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed"):
        choice.edge_rows("triton", gpu)
    assert choice.edge_rows("auto", gpu) is edge_rows
