"""One step of influence in both forms against its definition, and a pass against (I − N)⁻¹."""

from __future__ import annotations

import pytest
import torch

from circuit_kernels import influence as influence_module
from tests.kernels.both_forms import DEVICE, FORMS, close, form, framed, seeded

SHAPES = {
    "one": (1, 1),
    "odd": (5, 37),
    "several tiles": (11, 70),
    "no rows": (0, 5),
    "no columns": (3, 0),
}


def inputs(shape, dtype=torch.float32):
    rows, columns = SHAPES[shape]
    values = seeded(rows, columns, seed=1, dtype=dtype)
    values[rows // 2 :][:1] = 0  # a row of zeros passes nothing on
    nodes = torch.randperm(columns + 9, generator=torch.Generator().manual_seed(2))[:columns]
    mass = seeded(rows, seed=3, dtype=torch.float64).abs()
    out = seeded(columns + 9, seed=4, dtype=torch.float64)
    return [tensor.to(DEVICE) for tensor in (values, mass, nodes, out)]


def definition(values, mass, nodes, out):
    result = out.clone()
    for row, weight in zip(values.double().abs(), mass, strict=True):
        if row.sum() > 0:
            result[nodes] += weight * row / row.sum()
    return result


@pytest.mark.parametrize("which", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_its_definition(shape, dtype, which):
    given = inputs(shape, dtype)
    truth = definition(*given)
    form("influence", which)(*given)
    close(given[-1], truth, 1e-12)


@pytest.mark.parametrize("which", FORMS)
def test_sums_that_are_known_are_not_made_again(which):
    values, mass, nodes, out = inputs("several tiles")
    truth = definition(values, 2 * mass, nodes, out)
    half = values.double().abs().sum(1) / 2  # as if: twice as much is passed on
    form("influence", which)(values, mass, nodes, out, half)
    close(out, truth, 1e-12)


def test_the_size_of_the_reference_strips_changes_nothing(monkeypatch):
    given = inputs("several tiles")
    truth = definition(*given)
    monkeypatch.setattr(influence_module, "STRIP", 150)
    form("influence", "reference")(*given)
    close(given[-1], truth, 1e-12)


@pytest.mark.parametrize("which", FORMS)
def test_a_pass_over_all_blocks_is_the_inverse(which):
    """Three layers of nodes under two targets, in the order of the layers."""
    layers, kernel = [range(0, 3), range(3, 7), range(7, 9), range(9, 11)], form("influence", which)
    matrix = torch.zeros(11, 11, dtype=torch.float64)
    for upper in (1, 2, 3):
        below = seeded(len(layers[upper]), layers[upper].start, seed=upper).double()
        matrix[layers[upper].start : layers[upper].stop, : layers[upper].start] = below
    weights = torch.zeros(11, dtype=torch.float64)
    weights[9:] = torch.tensor([0.7, 0.3])
    arrived = torch.zeros(11, dtype=torch.float64, device=DEVICE)
    for layer in (3, 2, 1):
        rows, columns = torch.arange(11)[list(layers[layer])], torch.arange(layers[layer].start)
        block = matrix[rows[:, None], columns].float().to(DEVICE)
        mass = (arrived + weights.to(DEVICE))[rows.to(DEVICE)]
        kernel(block, mass, columns.to(DEVICE), arrived)
    absolute = matrix.abs()
    normal = absolute / absolute.sum(1, keepdim=True).clamp(min=1e-300)
    inverse = torch.linalg.inv(torch.eye(11, dtype=torch.float64) - normal)
    close(arrived.cpu(), weights @ inverse - weights, 1e-12)


@pytest.mark.parametrize("which", FORMS)
def test_what_lies_around_the_block_is_not_read(which):
    values, mass, nodes, out = inputs("odd")
    truth = definition(values, mass, nodes, out)
    _, window = framed(values)
    form("influence", which)(window, mass, nodes, out)
    close(out, truth, 1e-12)


@pytest.mark.parametrize("which", FORMS)
def test_shapes_that_do_not_belong_together(which):
    kernel, (values, mass, nodes, out) = form("influence", which), inputs("odd")
    with pytest.raises(ValueError, match="columns as many"):
        kernel(values, mass, nodes[1:], out)
    with pytest.raises(ValueError, match="mass must"):
        kernel(values, mass[1:], nodes, out)
    with pytest.raises(ValueError, match="float64"):
        kernel(values, mass, nodes, out.float())
