"""The causal mixing of gradients in both forms against its definition in float64."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.both_forms import (
    DEVICE,
    FORMS,
    ON_A_GPU,
    TOLERANCE,
    close,
    form,
    framed,
    laid_out,
    seeded,
)

# positions, positions of the prompt, heads, key-value heads, columns
SHAPES = {
    "one": (1, 1, 1, 1, 1),
    "odd": (5, 7, 6, 2, 11),
    "several tiles": (37, 40, 4, 2, 45),
    "a head each": (18, 18, 3, 3, 8),
    "all share one": (9, 9, 4, 1, 33),
    "no columns": (3, 3, 2, 1, 0),
}


def inputs(shape, dtype=torch.float32):
    positions, prompt, heads, kv, columns = SHAPES[shape]
    return (
        seeded(positions, heads, columns, seed=1, dtype=dtype).to(DEVICE),
        seeded(heads, prompt, prompt, seed=2, dtype=dtype).softmax(-1).tril().to(DEVICE),
        torch.full(
            (positions, kv, columns),
            torch.nan,
            dtype=torch.promote_types(dtype, torch.float32) if dtype.itemsize < 4 else dtype,
            device=DEVICE,
        ),
    )


def definition(read, pattern, out):
    positions, kv, columns = out.shape
    cut = pattern[:, :positions, :positions].double()
    mixed = torch.einsum("hqk,qhc->khc", cut, read.double())
    return mixed.unflatten(1, (kv, len(pattern) // kv)).sum(2)


@pytest.mark.parametrize("which", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_its_definition_whatever_was_in_the_output(shape, which):
    read, pattern, out = inputs(shape)
    form("attention_mix", which)(read, pattern, out)
    close(out, definition(read, pattern, out), 1e-5)


@pytest.mark.parametrize("which", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_positions_may_be_innermost_in_memory(shape, which):
    read, pattern, out = inputs(shape)
    turned = laid_out(out, 1, 2, 0)
    form("attention_mix", which)(laid_out(read, 1, 2, 0), pattern, turned)
    close(turned, definition(read, pattern, out), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, ON_A_GPU])
def test_other_dtypes_in_triton(dtype):
    read, pattern, out = inputs("odd", dtype)
    form("attention_mix", "triton")(read, pattern, out)
    close(out, definition(read, pattern, out), TOLERANCE[dtype])


@pytest.mark.gpu
def test_tf32_is_close_enough_on_a_gpu():
    read, pattern, out = inputs("several tiles")
    form("attention_mix", "triton")(read, pattern, out, exact=False)
    close(out, definition(read, pattern, out), TOLERANCE[torch.bfloat16])


def test_triton_never_reads_above_the_diagonal():
    read, pattern, out = inputs("several tiles")
    truth = definition(read, pattern, out)
    above = torch.ones_like(pattern, dtype=torch.bool).triu(1)
    form("attention_mix", "triton")(read, pattern.masked_fill(above, torch.nan), out)
    close(out, truth, 1e-5)


@pytest.mark.parametrize("which", FORMS)
def test_what_lies_around_the_output_is_not_touched(which):
    read, pattern, out = inputs("odd")
    buffer, window = framed(out)
    form("attention_mix", which)(read, pattern, window)
    close(window, definition(read, pattern, window), 1e-5)
    assert buffer.isnan().sum() == buffer.numel() - window.numel()


@pytest.mark.parametrize("which", FORMS)
def test_shapes_that_do_not_belong_together(which):
    kernel, (read, pattern, out) = form("attention_mix", which), inputs("odd")
    with pytest.raises(ValueError, match="read must"):
        kernel(read[1:], pattern, out)
    with pytest.raises(ValueError, match="out must"):
        kernel(read, pattern, out[:, :, 1:])
    with pytest.raises(ValueError, match="pattern must"):
        kernel(read, pattern[1:], out)
