"""Rows on their way from a GPU, played by a thread that takes its time."""

from __future__ import annotations

import time

import pytest
import torch

from circuit_tracer.attribute import attribute
from circuit_tracer.fetching import Fetching
from circuit_tracer.rows import Rows
from circuit_tracer.targets import choose
from tests import tiny


def slowly(values):
    time.sleep(0.001)
    return values.clone()


def test_blocks_arrive_in_order_and_no_more_are_on_their_way_than_may_be():
    blocks = [torch.full((2, size), float(size)) for size in (3, 1, 20, 2, 2, 2)]
    arrived, fetching = [], Fetching(waiting=60, copied=slowly)
    for number, block in enumerate(blocks):
        fetching.send(block, arrived.append)
        behind = blocks[len(arrived) : number]  # those that had not arrived when this one was sent
        assert sum(one.nbytes for one in behind) <= 60
    fetching.finish()
    assert all(torch.equal(*pair) for pair in zip(arrived, blocks, strict=True))
    fetching.finish()  # nothing is on its way


def test_what_goes_wrong_on_the_way_is_raised_where_it_is_waited_for():
    def broken(values):
        raise RuntimeError("out of memory")

    fetching = Fetching(copied=broken)
    fetching.send(torch.zeros(1, 1), lambda values: None)
    with pytest.raises(RuntimeError, match="out of memory"):
        fetching.finish()


@pytest.mark.parametrize("limit, keep", [(None, 1), (9, 1), (9, 0.8), (None, 0.8)])
@pytest.mark.parametrize("kind", ["plt", "clt"])
def test_rows_that_arrive_late_are_the_same_rows(kind, limit, keep, monkeypatch):
    model = tiny.replacement("gemma2", kind=kind)
    forward = model.run(tiny.PROMPT)
    local, directions = model.localise(forward), choose(model, forward)
    usual = attribute(local, directions, limit, keep_edges=keep)
    begin = Rows.__init__

    def late(self, *given):
        begin(self, *given)
        self.fetching = Fetching(waiting=2000, copied=slowly)

    monkeypatch.setattr(Rows, "__init__", late)
    found = attribute(local, directions, limit, keep_edges=keep)
    assert torch.equal(found.dense(), usual.dense())
    assert torch.equal(found.residual, usual.residual)


@pytest.mark.gpu
def test_blocks_leave_a_gpu_while_it_works_on():
    """As the sweep makes them: in a buffer that the next block overwrites, copied in its stream."""
    buffer, arrived = torch.empty(1 << 20, device="cuda"), []
    fetching = Fetching(waiting=3 << 22)
    for number in range(20):
        buffer.fill_(number)
        fetching.send(buffer[number:].clone()[None], arrived.append)
    fetching.finish()
    assert [len(block[0]) for block in arrived] == [(1 << 20) - number for number in range(20)]
    assert all((block == number).all() for number, block in enumerate(arrived))
    assert not any(block.is_cuda or block.is_pinned() for block in arrived)


@pytest.mark.parametrize("limit", [None, 15])
@pytest.mark.parametrize("late", [False, True])
def test_parts_of_a_site_are_written_where_it_lies_also_beside_targets(late, limit, monkeypatch):
    """Features that are targets read where features do, and are expanded while others arrive."""
    model = tiny.replacement("gemma2")
    forward = model.run(tiny.PROMPT)
    local = model.localise(forward)
    wanted = [tuple(feature) for feature in local.features[::3].tolist()]
    directions = choose(model, forward, targets=[*wanted, "w9", "w10", "w11", "w12"])
    usual = attribute(local, directions, limit)
    begin, end, pieces = Rows.__init__, Rows.edges, {}

    def played(self, *given):
        begin(self, *given)
        self.fetching = Fetching(copied=slowly) if late else None

    def watched(self):
        self.finish()
        for block in self.found:
            places = pieces.setdefault((block.layer, block.position), [])
            places.append((self._site(block)[2], block.values.untyped_storage().data_ptr()))
        return end(self)

    monkeypatch.setattr("circuit_tracer.rows.COLUMNS", {False: (2, 2), True: (2, 2)})
    monkeypatch.setattr(Rows, "__init__", played)
    monkeypatch.setattr(Rows, "edges", watched)
    found = attribute(local, directions, limit)
    torch.testing.assert_close(found.dense(), usual.dense(), atol=1e-12, rtol=0)
    assert found.residual.abs().max() < 1e-11
    alone = 0
    for block in found.blocks:
        parts = pieces[block.layer, block.position]
        if len(parts) > 1 and len({targets for targets, _ in parts}) == 1:
            alone += 1
            assert {place for _, place in parts} == {block.values.untyped_storage().data_ptr()}
    assert alone
    assert any(len({targets for targets, _ in parts}) == 2 for parts in pieces.values())
