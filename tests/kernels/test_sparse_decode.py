"""Sparse decode in both forms against its definition in float64."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.both_forms import (
    DEVICE,
    FORMS,
    TOLERANCE,
    close,
    form,
    framed,
    offsets,
    seeded,
)

# d_model, features, active features by position
SHAPES = {
    "one": (1, 1, [1]),
    "odd": (37, 11, [7, 1, 12]),
    "ragged": (70, 50, [0, 35, 3, 64, 0]),
    "nothing active": (16, 5, [0, 0]),
    "no positions": (16, 5, []),
}


def inputs(shape, dtype=torch.float32, out_dtype=torch.float32):
    width, features, counts = SHAPES[shape]
    starts = offsets(counts)
    ids = torch.randint(features, (starts[-1],), generator=torch.Generator().manual_seed(3))
    return (
        seeded(features, width, seed=1, dtype=dtype).to(DEVICE),
        ids.to(DEVICE),
        seeded(starts[-1], seed=2, dtype=out_dtype).abs().to(DEVICE),
        starts,
        seeded(len(counts), width, seed=4, dtype=out_dtype).to(DEVICE),
    )


def definition(table, ids, activations, starts, out):
    result = out.double().clone()
    for position in range(len(out)):
        for row in range(starts[position], starts[position + 1]):
            result[position] += activations[row].double() * table[ids[row]].double()
    return result


@pytest.mark.parametrize("which", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_its_definition(shape, which):
    given = inputs(shape)
    truth = definition(*given)
    form("sparse_decode", which)(*given)
    close(given[-1], truth, 1e-5)


@pytest.mark.parametrize("which", FORMS)
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_sums_are_in_float32_whatever_the_table_is_stored_in(stored, which):
    given = inputs("ragged", stored)
    truth = definition(*given)
    form("sparse_decode", which)(*given)
    close(given[-1], truth, TOLERANCE[torch.float32])


def test_double_stays_double_in_triton():
    given = inputs("ragged", torch.float64, torch.float64)
    truth = definition(*given)
    form("sparse_decode", "triton")(*given)
    close(given[-1], truth, TOLERANCE[torch.float64])


@pytest.mark.parametrize("which", FORMS)
def test_what_lies_around_the_output_is_not_touched(which):
    table, ids, activations, starts, out = inputs("ragged")
    truth = definition(table, ids, activations, starts, out)
    buffer, window = framed(out)
    form("sparse_decode", which)(table, ids, activations, starts, window)
    close(window, truth, 1e-5)
    assert buffer.isnan().sum() == buffer.numel() - window.numel()


@pytest.mark.parametrize("which", FORMS)
def test_twice_the_same_is_the_same_bits(which):
    first, second = inputs("ragged"), inputs("ragged")
    form("sparse_decode", which)(*first)
    form("sparse_decode", which)(*second)
    assert torch.equal(first[-1], second[-1])


@pytest.mark.parametrize("which", FORMS)
def test_shapes_that_do_not_belong_together(which):
    kernel, (table, ids, activations, starts, out) = form("sparse_decode", which), inputs("odd")
    with pytest.raises(ValueError, match="table must"):
        kernel(table[:, 1:], ids, activations, starts, out)
    with pytest.raises(ValueError, match="ids must"):
        kernel(table, ids[1:], activations, starts, out)
    with pytest.raises(ValueError, match="activations must"):
        kernel(table, ids, activations[1:], starts, out)
    with pytest.raises(ValueError, match="starts must"):
        kernel(table, ids, activations, starts[:-1], out)
