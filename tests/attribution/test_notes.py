"""What a feature promotes is worked out once, and does not depend on what else is asked for."""

from __future__ import annotations

import pytest
import torch

from circuit_tracer import notes
from tests import tiny

ASKED = [(layer, feature) for layer in range(3) for feature in range(20)]


@pytest.fixture
def model():
    return tiny.replacement("gemma2", torch.float32, kind="clt")


def test_a_note_is_the_same_alone_in_company_and_remembered(model):
    together = notes.describe(model, ASKED)
    assert list(together) == ASKED
    for one in ASKED[::7]:
        model.notes.clear()
        assert notes.describe(model, [one]) == {one: together[one]}
    assert notes.describe(model, ASKED[::-1]) == together
    assert len(notes.describe(model, ASKED[:2], k=3)[0, 0].promoted) == 3


def test_a_remembered_note_is_not_worked_out_again(model, monkeypatch):
    first = notes.describe(model, ASKED[:5])
    asked, original = [], notes.writes
    monkeypatch.setattr(
        notes, "writes", lambda m, at, ids: asked.append(ids.tolist()) or original(m, at, ids)
    )
    found = notes.describe(model, ASKED[:7])
    assert asked == [[5, 6]] and {one: found[one] for one in first} == first


def test_no_more_is_remembered_than_there_is_room_for(model, monkeypatch):
    monkeypatch.setattr(notes, "REMEMBERED", 8)
    whole = notes.describe(model, ASKED)
    assert len(whole) == 60 and [key[:2] for key in model.notes] == ASKED[-8:]
