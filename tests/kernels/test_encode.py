"""Encode in both forms against its definition in float64: what is active, in which order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from circuit_kernels import encode as encode_module
from circuit_kernels.encode import encode
from tests.kernels.both_forms import DEVICE, FORMS, ON_A_GPU, TOLERANCE, close, form, seeded

# positions, d_model, features
SHAPES = {
    "one": (1, 1, 1),
    "odd": (3, 37, 45),
    "several tiles": (20, 40, 70),
    "no positions": (0, 8, 10),
    "no features": (3, 8, 0),
}
ACTIVATIONS = ("relu", "one threshold", "a threshold each", "topk", "topk of all")


def inputs(shape, activation, dtype=torch.float32):
    positions, width, features = SHAPES[shape]
    threshold, k = None, None
    if activation == "one threshold":
        threshold = torch.tensor(0.4)
    elif activation == "a threshold each":
        threshold = seeded(features, seed=4) * 0.5  # some below zero
    elif activation.startswith("topk"):
        k = 5 if activation == "topk" else 1000
    tensors = (
        seeded(positions, width, seed=1, dtype=dtype),
        seeded(features, width, seed=2, dtype=dtype) / max(1, width) ** 0.5,
        seeded(features, seed=3, dtype=dtype) * 0.1,
        threshold,
    )
    return *(tensor if tensor is None else tensor.to(DEVICE) for tensor in tensors), k


def definition(x, weight, bias, threshold, k):
    """Dense (active, pre-activations), in float64; ties go to the lower id."""
    pre = (x.double() @ weight.double().T + bias.double()).cpu()
    level = torch.zeros(()) if threshold is None else threshold.cpu()
    active = (pre > level.double()) & (pre != 0)
    if k is not None:
        order = pre.masked_fill(~active, -torch.inf).sort(dim=1, descending=True, stable=True)
        largest = torch.zeros_like(active).scatter_(1, order.indices[:, :k], True)
        active &= largest
    return active, pre


def compare(kernel, tensors, tolerance, **options):
    """Equal, but for cells that rounding may put on either side of their threshold."""
    active, pre = definition(*tensors)
    found = kernel(*tensors, **options)
    cells, values = found.cells.cpu(), found.values.cpu()
    assert found.finite
    dense = torch.zeros_like(active)
    dense[cells[:, 0], cells[:, 1]] = True
    x, weight, bias, threshold, k = tensors
    margin = tolerance * max(1.0, float(pre.abs().max()) if pre.numel() else 1.0)
    level = 0.0 if threshold is None else threshold.cpu().double()
    doubtful = (pre - level).abs() < margin
    if k is not None and k < pre.shape[1]:
        kth = pre.masked_fill(pre <= 0, -torch.inf).topk(k).values[:, -1:]
        doubtful |= (pre - kth).abs() < margin
    assert torch.equal(dense | doubtful, active | doubtful)
    assert torch.equal(cells, dense.nonzero())  # in order, none twice
    close(values, pre[cells[:, 0], cells[:, 1]], tolerance)
    return found


@pytest.mark.parametrize("which", FORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_its_definition(shape, activation, which):
    compare(form("encode", which), inputs(shape, activation), 1e-5)


@pytest.mark.parametrize("activation", ["a threshold each", "topk"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, ON_A_GPU])
def test_other_dtypes_in_triton(dtype, activation):
    kernel, tensors = form("encode", "triton"), inputs("odd", activation, dtype)
    compare(kernel, tensors, TOLERANCE[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_tf32_is_close_enough_on_a_gpu(activation):
    kernel = form("encode", "triton")
    compare(kernel, inputs("several tiles", activation), TOLERANCE[torch.bfloat16], exact=False)


@pytest.mark.parametrize("block", [1, 40 * 7, 40 * 70])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_size_of_the_reference_blocks_changes_nothing(activation, block, monkeypatch):
    tensors = inputs("several tiles", activation, torch.float64)
    whole = encode(*tensors)
    monkeypatch.setattr(encode_module, "BLOCK_ELEMENTS", block)
    in_blocks = compare(encode, tensors, 1e-12)
    assert torch.equal(in_blocks.cells, whole.cells)


def test_the_reference_never_holds_all_pre_activations(monkeypatch):
    """The largest tensor it makes has a block's elements, whatever the number of features."""
    sizes, addmm = [], torch.addmm

    def watched(*args, out):
        sizes.append(out.numel())
        return addmm(*args, out=out)

    monkeypatch.setattr(torch, "addmm", watched)
    monkeypatch.setattr(encode_module, "BLOCK_ELEMENTS", 400)
    encode(*inputs("several tiles", "relu"))
    assert max(sizes) <= 400 < 20 * 70
    assert sum(sizes) == 20 * 70


@pytest.mark.parametrize("which", FORMS)
def test_ties_of_topk_go_to_the_lowest_id(which):
    """Equal pre-activations across tiles and blocks: features 0 and 1, not any others."""
    x = torch.ones(2, 4, device=DEVICE)
    weight = torch.ones(70, 4, device=DEVICE)
    found = form("encode", which)(x, weight, torch.zeros(70, device=DEVICE), k=2)
    assert found.cells.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


@pytest.mark.parametrize("which", FORMS)
def test_topk_keeps_positive_values_only(which):
    x, weight = torch.ones(1, 1, device=DEVICE), -torch.ones(6, 1, device=DEVICE)
    weight[4] = 1
    found = form("encode", which)(x, weight, torch.zeros(6, device=DEVICE), k=3)
    assert found.cells.tolist() == [[0, 4]]


@pytest.mark.parametrize("which", FORMS)
def test_a_threshold_below_zero_lets_negatives_through_but_no_zero(which):
    x, weight = torch.ones(1, 1, device=DEVICE), torch.tensor([[-0.5], [0.0], [0.5], [-2.0]])
    found = form("encode", which)(
        x, weight.to(DEVICE), torch.zeros(4, device=DEVICE), torch.tensor(-1.0, device=DEVICE)
    )
    assert found.cells[:, 1].tolist() == [0, 2]


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("which", FORMS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_are_told(bad, which):
    x, weight, bias, threshold, k = inputs("several tiles", "relu")
    weight[69, 3] = bad
    assert not form("encode", which)(x, weight, bias, threshold, k).finite


@pytest.mark.parametrize("which", FORMS)
@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_an_encoder_may_be_stored_in_less_and_transposed(stored, which):
    x, weight, bias, threshold, k = inputs("odd", "one threshold")
    weight = weight.T.contiguous().T.to(stored)
    compare(form("encode", which), (x, weight, bias.to(stored), threshold, k), 1e-5)


def test_twice_the_same_is_the_same_bits():
    kernel, tensors = form("encode", "triton"), inputs("odd", "topk")
    first, second = kernel(*tensors), kernel(*tensors)
    assert torch.equal(first.cells, second.cells)
    assert torch.equal(first.values, second.values)


@settings(deadline=None, max_examples=25)
@drawn(
    st.integers(0, 5), st.integers(1, 6), st.integers(0, 40), st.integers(1, 9), st.integers(0, 99)
)
def test_topk_of_small_whole_numbers_is_exact(positions, width, features, k, seed):
    """Whole numbers make ties, and are exact in any order of adding."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, (positions, width), generator=draw).float()
    weight = torch.randint(-2, 3, (features, width), generator=draw).float()
    bias = torch.randint(-2, 3, (features,), generator=draw).float()
    active, _ = definition(x, weight, bias, None, k)
    assert torch.equal(encode(x, weight, bias, k=k).cells, active.nonzero())


@pytest.mark.parametrize("which", FORMS)
def test_shapes_that_do_not_belong_together(which):
    kernel, (x, weight, bias, threshold, _) = form("encode", which), inputs("odd", "relu")
    with pytest.raises(ValueError, match="x must"):
        kernel(x[:, :-1], weight, bias, threshold)
    with pytest.raises(ValueError, match="bias must"):
        kernel(x, weight, bias[:-1], threshold)
    with pytest.raises(ValueError, match="threshold must"):
        kernel(x, weight, bias, bias[:-1])
    with pytest.raises(ValueError, match="k must"):
        kernel(x, weight, bias, k=0)
    with pytest.raises(ValueError, match="exclude"):
        kernel(x, weight, bias, bias, 3)
