"""Activations are the model's own, and a store holds what is otherwise made on the fly."""

from __future__ import annotations

import json

import pytest
import torch

from circuit_tracer.errors import InputError
from circuit_tracer.forward import run
from circuit_tracer.train.blocks import Stream, deal
from circuit_tracer.train.corpus import tokenised
from circuit_tracer.train.sites import activations
from circuit_tracer.train.store import fill
from circuit_tracer.transcoders.base import READ_SITES, WRITE_SITES
from tests import tiny
from tests.train.texts import adapter, texts

BUDGET = 200 * 2 * tiny.LAYERS * tiny.WIDTH * 8  # two hundred tokens a block


@pytest.fixture(scope="module")
def blocks():
    corpus = tokenised(tiny.tokenizer(), texts(), context=32)
    return deal(adapter(), corpus, "mlp.hook_in", "hook_mlp_out", seed=0, budget=BUDGET)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_padded_passes_give_what_each_piece_gives_alone(family):
    model = adapter(family)
    pieces = [torch.tensor([2, 9, 21, 5]), torch.tensor([2, 7, 7, 30, 11, 4])]
    for read, write in zip(READ_SITES, (*WRITE_SITES, WRITE_SITES[0]), strict=True):
        found = activations(model, read, write, pieces)
        sets = tiny.transcoders(read=read, write=write)
        alone = [activations(model, read, write, [piece]) for piece in pieces]
        traced = [run(model, sets, piece) for piece in pieces]
        for site, (padded, name) in enumerate(
            zip(found, ("mlp_inputs", "mlp_outputs"), strict=True)
        ):
            wanted = torch.cat([one[site] for one in alone])
            torch.testing.assert_close(padded, wanted, rtol=1e-10, atol=1e-10)
            # transformers' own attention takes its softmax in float32, whatever the model is in
            wanted = torch.cat([torch.stack(getattr(one, name), 1)[1:] for one in traced])
            torch.testing.assert_close(padded, wanted, rtol=1e-4, atol=1e-5)


def test_an_epoch_holds_every_token_once_and_epochs_differ(blocks):
    assert len(blocks.sizes) > 2 and max(blocks.sizes) <= 200
    stream = Stream(blocks.sizes, blocks.block, stream_size := sum(blocks.sizes), seed=0)
    first, second = stream.batch(0)[0], stream.batch(1)[0]
    assert first.shape[1] == stream_size
    assert not torch.equal(first, second)
    key = first.sum((0, 2)).sort().values
    torch.testing.assert_close(key, second.sum((0, 2)).sort().values)


def test_a_batch_is_known_without_those_before_it(blocks):
    one, other = (Stream(blocks.sizes, blocks.block, 130, seed=0) for _ in range(2))
    for step in range(5):
        last = one.batch(step)
    assert all(torch.equal(a, b) for a, b in zip(last, other.batch(4), strict=True))


def test_a_batch_larger_than_the_text_goes_round(blocks):
    stream = Stream(blocks.sizes, blocks.block, 2 * sum(blocks.sizes) + 5, seed=0)
    assert stream.batch(0)[0].shape[1] == 2 * sum(blocks.sizes) + 5


def test_a_store_gives_the_same_batches_bit_for_bit(blocks, tmp_path):
    store = fill(blocks, tmp_path)
    live = Stream(blocks.sizes, blocks.block, 130, seed=0)
    kept = Stream(store.sizes, store.block, 130, seed=0)
    for step in range(12):
        for a, b in zip(live.batch(step), kept.batch(step), strict=True):
            assert torch.equal(a, b)


def test_eight_bits_are_off_by_half_a_step_at_most(blocks, tmp_path):
    store = fill(blocks, tmp_path, eight_bit=True)
    for real, kept in zip(blocks.block(1), store.block(1), strict=True):
        assert ((real - kept).abs() <= real.abs().amax(-1, keepdim=True) / 253).all()
    size = (tmp_path / "shard_00001.safetensors").stat().st_size
    assert size < real.numel() * 2 * 2  # an eighth of float64, and the scales


def test_an_interrupted_store_goes_on(blocks, tmp_path, monkeypatch):
    made = []

    def failing(self, number):
        made.append(number)
        if len(made) == 3:
            raise KeyboardInterrupt
        return original(self, number)

    original = type(blocks).block
    monkeypatch.setattr(type(blocks), "block", failing)
    with pytest.raises(KeyboardInterrupt):
        fill(blocks, tmp_path)
    fill(blocks, tmp_path)
    assert made == [0, 1, 2, *range(2, len(blocks.sizes))]


def test_a_damaged_shard_is_found(blocks, tmp_path):
    store = fill(blocks, tmp_path)
    path = tmp_path / "shard_00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    store.block(0)
    with pytest.raises(InputError, match="damaged or replaced"):
        store.block(1)
    path.unlink()
    again = fill(blocks, tmp_path).block(1)
    assert all(torch.equal(a, b) for a, b in zip(again, blocks.block(1), strict=True))


def test_a_store_of_something_else_is_refused(blocks, tmp_path):
    fill(blocks, tmp_path)
    with pytest.raises(InputError, match="eight_bit is False there and True here"):
        fill(blocks, tmp_path, eight_bit=True)
    (tmp_path / "index.json").write_text(json.dumps([]))
    with pytest.raises(InputError, match="no index of activations"):
        fill(blocks, tmp_path)
