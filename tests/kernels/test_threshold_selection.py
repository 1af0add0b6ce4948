"""Threshold selection in both forms against sorting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from circuit_kernels.threshold_selection import Selection, selected, threshold_selection
from tests.kernels.both_forms import DEVICE, FORMS, form, seeded

SHARES = (0.0, 0.8, 1.0)


def by_sorting(blocks, share):
    """Mask over all entries in order: what the docstring says, with a sort."""
    scores = torch.cat([torch.empty(0), *((v.abs() * f[:, None]).flatten() for v, f in blocks)])
    scores = scores.double()
    falling, order = scores.sort(descending=True, stable=True)
    reached = falling.cumsum(0)
    mask = torch.zeros_like(scores, dtype=torch.bool)
    if share >= 1:
        return scores > 0
    if len(scores) and float(reached[-1]) > 0:
        mask[order[: int((reached < share * reached[-1]).sum()) + 1]] = True
    return mask & (scores > 0)


def compare(kernel, blocks, share):
    found = kernel([(v.to(DEVICE), f.to(DEVICE)) for v, f in blocks], share)
    masks = [mask.flatten() for mask in selected(blocks, found)]
    mask = torch.cat([torch.empty(0, dtype=torch.bool), *masks])
    wanted = by_sorting(blocks, share)
    assert torch.equal(mask, wanted)
    assert found.kept == int(wanted.sum())


def whole(rows, columns, seed=0, highest=4):
    """A block of small whole numbers: many ties, and sums that are exact in any order."""
    draw = torch.Generator().manual_seed(seed)
    values = torch.randint(-highest, highest + 1, (rows, columns), generator=draw).float()
    return values, torch.randint(0, 3, (rows,), generator=draw).float()


@pytest.mark.parametrize("which", FORMS)
@pytest.mark.parametrize("share", SHARES)
def test_ties_and_blocks(share, which):
    blocks = [
        whole(3, 5),
        (torch.empty(0, 4), torch.empty(0)),
        whole(1, 70, seed=1),
        whole(4, 3, 2),
    ]
    compare(form("threshold_selection", which), blocks, share)


@pytest.mark.parametrize("which", FORMS)
@pytest.mark.parametrize("share", SHARES)
def test_scores_of_every_size(share, which):
    """From 1e-38 to 1e30: all bits of a score are told apart."""
    values = 10 ** torch.linspace(-38, 30, 90, dtype=torch.float64)
    values = values[torch.randperm(90, generator=torch.Generator().manual_seed(0))].float()
    compare(form("threshold_selection", which), [(values[None], torch.ones(1))], share)


@pytest.mark.parametrize("which", FORMS)
def test_a_run_longer_than_a_program_goes_through(which):
    compare(form("threshold_selection", which), [(seeded(1, 1200), torch.ones(1))], 0.8)


@pytest.mark.parametrize("which", FORMS)
@pytest.mark.parametrize("share", SHARES)
def test_nothing_is_selected_of_nothing(share, which):
    kernel = form("threshold_selection", which)
    zero = (torch.zeros(2, 3, device=DEVICE), torch.ones(2, device=DEVICE))
    assert kernel([], share) == kernel([zero], share) == Selection(0.0, 0, 0)


@pytest.mark.parametrize("which", FORMS)
def test_a_strided_block(which):
    values, factors = whole(5, 20)
    compare(form("threshold_selection", which), [(values[::2, 3:12], factors[::2].clone())], 0.7)


@settings(deadline=None, max_examples=60)
@drawn(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=4),
    st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75, 0.875, 1.0]),
    st.integers(0, 999),
)
def test_the_reference_is_a_sort(shapes, share, seed):
    blocks = [whole(*shape, seed=seed + number) for number, shape in enumerate(shapes)]
    compare(threshold_selection, blocks, share)


def test_a_higher_share_selects_no_less():
    blocks = [(seeded(7, 11), seeded(7, seed=1).abs())]
    kept = [threshold_selection(blocks, share).kept for share in (0.1, 0.5, 0.8, 0.98, 1.0)]
    assert kept == sorted(kept)
    assert kept[-1] == 77


@pytest.mark.parametrize("which", FORMS)
def test_what_does_not_fit_is_said(which):
    kernel = form("threshold_selection", which)
    with pytest.raises(ValueError, match="share must"):
        kernel([], 1.5)
    with pytest.raises(ValueError, match="a block must"):
        kernel([(torch.ones(2, 3), torch.ones(3))], 0.5)
    with pytest.raises(ValueError, match="float32"):
        kernel([(torch.ones(2, 3).double(), torch.ones(2).double())], 0.5)
