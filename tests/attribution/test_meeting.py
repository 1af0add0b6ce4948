"""Meeting halfway: rows are the same wherever gradients stop and what lies below comes up."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from circuit_tracer import carried
from circuit_tracer.attribute import attribute
from circuit_tracer.sweep import Sweep
from circuit_tracer.targets import choose
from tests import tiny

LAYERS = 4


def rows(model, forward, local):
    return attribute(local, choose(model, forward), None)


@pytest.mark.parametrize("meet", range(1, LAYERS))
@pytest.mark.parametrize("kind", ["plt", "clt"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "neox"])
def test_where_they_meet_changes_nothing(family, kind, meet, monkeypatch):
    model = tiny.replacement(family, kind=kind, layers=LAYERS)
    forward = model.run(tiny.PROMPT)
    local = model.localise(forward, (0,))
    monkeypatch.setattr(Sweep, "meeting", lambda sweep, layer: 0)
    straight = rows(model, forward, local)
    met = []
    monkeypatch.setattr(Sweep, "meeting", lambda sweep, layer: met.append(layer) or meet)
    halfway = rows(model, forward, local)
    assert met
    torch.testing.assert_close(halfway.dense(), straight.dense(), rtol=1e-10, atol=1e-12)
    assert halfway.residual.abs().max() < 1e-10
    for name in ("bias", "positional", "ignored"):
        ours, theirs = getattr(halfway, name), getattr(straight, name)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_many_features_meet_halfway_and_few_or_long_do_not(monkeypatch):
    shape = dict(d_model=512, heads=8, kv_heads=8, head_dim=64, device=torch.device("cpu"))
    adapter = SimpleNamespace(**shape)
    many = torch.full((8, 12), 20.0, dtype=torch.float64)
    assert 0 < carried.meeting(adapter, many) < 7
    assert carried.meeting(adapter, torch.full((8, 600), 20.0, dtype=torch.float64)) == 0
    assert carried.meeting(adapter, torch.zeros(1, 5, dtype=torch.float64)) == 0
    monkeypatch.setitem(carried.ELEMENTS, "cpu", 0)
    assert carried.meeting(adapter, many) == 0


def test_operations_are_those_of_a_straight_run_plus_what_is_carried():
    adapter = tiny.replacement("llama").adapter
    features = torch.tensor([[0.0, 2.0, 1.0], [0.0, 1.0, 3.0], [0.0, 4.0, 0.0]]).double()
    own = carried.operations_of_a_target(adapter, features, 0)
    # One target of layer 2 at position 2: one full attention step, then edges to the features and
    # errors of layers 0 and 1, and to the embeddings as they stand at each of three positions.
    step = carried.attention_operations(adapter, torch.tensor(3))
    sources = (3 + 3) + (4 + 3) + (1 + 2 + 3)
    assert own[2, 2] == step + 2 * adapter.d_model * sources
    assert carried.operations_of_carrying(adapter, features, 0) == 0
    # With nothing carried up there is one step more, and every embedding is met once.
    bare = carried.operations_of_a_target(adapter, features, None)
    assert bare[2, 2] == 2 * step + 2 * adapter.d_model * ((3 + 3) + (4 + 3) + 3)
    at_one = carried.operations_of_a_target(adapter, features, 1)
    # Met at layer 1, no full step is left; features, errors and embeddings of layer 0 stand at
    # every later position.
    standing = (0 + 2) + (2 + 4) + (3 + 6)
    assert at_one[2, 2] == 2 * adapter.d_model * ((4 + 3) + standing)
    assert carried.elements(adapter, features, 1) == adapter.d_model * standing
