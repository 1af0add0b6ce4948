"""The edge-rows kernel: torch reference against its definition, Triton against the reference."""

from __future__ import annotations

import pytest
import torch

from circuit_kernels import choice
from circuit_kernels.edge_rows import edge_rows

# Largest error allowed against float64, relative to the largest entry.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SHAPES = {
    "one": (1, 1, 1, [1]),
    "odd": (3, 37, 5, [7, 1, 12]),
    "ragged": (4, 64, 33, [0, 70, 3, 129]),
    "no sources": (3, 16, 4, [0, 0, 0]),
    "no targets": (2, 16, 0, [3, 4]),
    "wide": (2, 130, 70, [65, 64]),
}


def inputs(shape: str, dtype=torch.float32, device="cpu"):
    positions, width, targets, counts = SHAPES[shape]
    draw = torch.Generator().manual_seed(len(shape))
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    gradient = torch.randn(positions, width, targets, generator=draw).to(dtype)
    vectors = torch.randn(starts[-1], width, generator=draw).to(dtype)
    out = torch.randn(starts[-1], targets, generator=draw)
    return gradient.to(device), vectors.to(device), starts, out.to(device)


def definition(gradient, vectors, starts, out):
    result = out.double().clone()
    for position in range(len(starts) - 1):
        part = slice(starts[position], starts[position + 1])
        result[part] += vectors[part].double() @ gradient[position].double()
    return result


def triton_form(device: str):
    problem = choice.triton_problem(torch.device(device))
    if problem:
        pytest.skip(problem)
    return choice.edge_rows("triton", torch.device(device))


def check(kernel, dtype, shape, device="cpu", **options):
    gradient, vectors, starts, out = inputs(shape, dtype, device)
    truth = definition(gradient, vectors, starts, out)
    kernel(gradient, vectors, starts, out, **options)
    scale = float(truth.abs().max()) if truth.numel() else 1.0
    assert not out.isnan().any()
    torch.testing.assert_close(out.double(), truth, atol=TOLERANCE[dtype] * scale, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_reference(shape):
    check(edge_rows, torch.float32, shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_triton_in_the_interpreter_or_on_a_gpu(shape, dtype):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    check(triton_form(device), dtype, shape, device)


@pytest.mark.gpu
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_triton_on_a_gpu_in_bf16_and_tf32(shape, dtype, exact):
    kernel = triton_form("cuda")
    wider = torch.bfloat16 if not exact else dtype
    gradient, vectors, starts, out = inputs(shape, dtype, "cuda")
    truth = definition(gradient, vectors, starts, out)
    kernel(gradient, vectors, starts, out, exact=exact)
    scale = float(truth.abs().max()) if truth.numel() else 1.0
    torch.testing.assert_close(out.double(), truth, atol=TOLERANCE[wider] * scale, rtol=0)


def test_what_lies_around_the_output_is_not_touched():
    """The output is a strided slice of a buffer of NaN; only the slice may change."""
    for kernel in (edge_rows, triton_form("cuda" if torch.cuda.is_available() else "cpu")):
        gradient, vectors, starts, out = inputs("ragged")
        buffer = torch.full((len(out) + 6, out.shape[1] + 5), torch.nan)
        inside = buffer[3:-3, 2:-3]
        inside.copy_(out)
        kernel(gradient, vectors, starts, inside)
        truth = definition(gradient, vectors, starts, out).float()
        torch.testing.assert_close(inside, truth, atol=1e-4, rtol=0)
        assert buffer.isnan().sum() == buffer.numel() - inside.numel()


def test_twice_the_same_is_the_same_bits():
    kernel = triton_form("cuda" if torch.cuda.is_available() else "cpu")
    results = []
    for _ in range(2):
        gradient, vectors, starts, out = inputs("ragged")
        kernel(gradient, vectors, starts, out)
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
    for kernel in (edge_rows, triton_form("cuda" if torch.cuda.is_available() else "cpu")):
        with pytest.raises(ValueError, match=f"{change} must"):
            kernel(*wrong[change])


def test_the_choice_is_never_silent(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choice.edge_rows("auto", cpu) is edge_rows
    assert choice.edge_rows("reference", gpu) is edge_rows
    with pytest.raises(ValueError, match="one of auto, reference, triton"):
        choice.edge_rows("cuda", cpu)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="cannot run"):
        choice.edge_rows("triton", cpu)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed"):
        choice.edge_rows("triton", gpu)
    assert choice.edge_rows("auto", gpu) is edge_rows
