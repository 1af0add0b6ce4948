"""Losses in closed form."""

from __future__ import annotations

import torch

from circuit_tracer.train.sparsity import Jump, activity, batch_level, revival, top


def test_the_level_keeps_k_a_token():
    values = torch.tensor([[5.0, 1.0, 3.0], [4.0, 2.0, -1.0]])
    assert batch_level(values, 2, rows=2) == 2.0
    assert batch_level(-values.abs(), 2, rows=2) == torch.tensor(1e-3)


def test_top_keeps_the_largest_positive_ones():
    values = torch.tensor([[5.0, 1.0, 3.0], [4.0, -2.0, -1.0]])
    assert top(values, 2).tolist() == [[5, 0, 3], [4, 0, 0]]
    assert top(values, 9).tolist() == [[5, 1, 3], [4, 0, 0]]


def test_jump_moves_thresholds_that_are_near():
    values = torch.tensor([[0.9, 1.1, 3.0]], requires_grad=True)
    threshold = torch.ones(3, requires_grad=True)
    out = Jump.apply(values, threshold, 0.5)
    assert out.tolist() == [[0.0, 1.100000023841858, 3.0]]
    out.sum().backward()
    assert values.grad.tolist() == [[0, 1, 1]]
    assert threshold.grad.tolist() == [-2, -2, 0]


def test_activity_is_tanh_of_what_a_feature_writes():
    decoder = torch.zeros(2, 2, 4)
    decoder[0, :, 0], decoder[1, 0, 0] = torch.tensor([3.0, 4.0]), 1.0
    active = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    wanted = (torch.tanh(torch.tensor(4 * 5 / 2 * 2)) + torch.tanh(torch.tensor(4 * 1 / 2))) / 2
    torch.testing.assert_close(activity(active, decoder, 4.0), wanted)


def test_revival_teaches_the_dead_only():
    values = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    decoder = torch.eye(3, requires_grad=True)
    wrong = torch.tensor([[0.0, 5.0, 0.0]], requires_grad=True)
    loss = revival(values, wrong, decoder, torch.tensor([1, 2]), revived=1)
    torch.testing.assert_close(loss, torch.tensor((5.0**2 + 3.0**2) / 3))  # the largest, 3, is kept
    loss.backward()
    assert wrong.grad is None and values.grad[0, 0] == 0 and values.grad[0, 1] == 0
    assert values.grad[0, 2] > 0
