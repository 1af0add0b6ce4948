"""A plain dict of tensors: read as a folder would be, and checked as strictly."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch

import circuit_tracer as ct
from circuit_tracer.bundled import model_dir, transcoder_dir
from circuit_tracer.errors import TranscoderError
from circuit_tracer.transcoders.formats.memory import from_tensors
from circuit_tracer.transcoders.formats.opening import open_set


def plain(found, key="layer_{}"):
    """A set as a dict."""
    made = {"read": found.read, "write": found.write}
    for layer in found.present:
        weights = found.layer(layer)
        across = found.kind == "clt"
        one = {
            "W_enc": weights.encoder,
            "W_dec": torch.stack(list(weights.decoders), 1) if across else weights.decoders[0],
            "b_enc": weights.encoder_bias,
            "b_dec": weights.output_bias,
        }
        if weights.activation.threshold is not None:
            one["threshold"] = weights.activation.threshold
        if weights.activation.k:
            one["k"] = weights.activation.k
        if weights.skip is not None:
            one["W_skip"] = weights.skip
        made[key.format(layer) if key else layer] = one
    return made


@pytest.mark.parametrize("kind", ["plt", "clt"])
@pytest.mark.parametrize("activation", ["relu", "jump_relu", "topk"])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("key", ["layer_{}", "{}", None])
def test_a_dict_is_the_set_it_holds(kind, activation, skip, key):
    wanted = tiny.transcoders(kind, activation, "ln2.hook_normalized", "hook_mlp_out", skip)
    found = from_tensors(plain(wanted, key))
    assert (found.kind, found.read, found.write) == (wanted.kind, wanted.read, wanted.write)
    x = torch.randn(5, tiny.WIDTH, dtype=torch.float64)
    for layer in range(tiny.LAYERS):
        ours, theirs = found.layer(layer), wanted.layer(layer)
        assert all(map(torch.equal, found.encode(layer, x), wanted.encode(layer, x)))
        assert all(map(torch.equal, ours.decoders, theirs.decoders))
        assert (ours.skip is None) == (theirs.skip is None)


def test_it_is_given_to_load_and_traced():
    folder = transcoder_dir("plt")
    graphs = [
        ct.trace("The opposite of small is", ct.load(model_dir(), given), max_features=20)
        for given in (folder, plain(open_set(folder)), open_set(folder))
    ]
    assert torch.equal(graphs[0].dense(), graphs[1].dense())
    assert torch.equal(graphs[0].dense(), graphs[2].dense())
    assert graphs[1].provenance.transcoders == "tensors in memory"


def test_layers_may_be_left_out_anywhere():
    whole = plain(open_set(transcoder_dir("plt")), None)
    few = {layer: whole[layer] for layer in (1, 4)} | {"write": "hook_mlp_out"}
    graph = ct.trace("The opposite of small is", ct.load(transcoders=few), max_features=20)
    assert set(graph.index.features[:, 0].tolist()) == {1, 4}
    assert graph.closure_error < 1e-3


def test_sites_have_defaults():
    made = plain(tiny.transcoders())
    del made["read"], made["write"]
    found = from_tensors(made, "mine")
    assert (found.read, found.write, found.name) == ("mlp.hook_in", "mlp.hook_out", "mine")


def change(**tensors):
    def edit(made):
        made["layer_1"] = {
            name: value for name, value in (made["layer_1"] | tensors).items() if value is not None
        }

    return edit


@pytest.mark.parametrize(
    "edit, says",
    [
        (change(W_enc=None), "no tensor 'W_enc'"),
        (change(W_dec=torch.ones(16, 20)), r"W_dec .*'layer_1'.*\(16, 20\); expected \(20, 16\)"),
        (change(b_enc=torch.ones(3)), "b_enc"),
        (change(b_dec=torch.ones(20)), "b_dec"),
        (change(W_skip=torch.ones(20, 16)), "W_skip"),
        (change(W_enc=torch.ones(20, 16, dtype=torch.int64)), "expected a float"),
        (change(W_enc=np.ones((20, 16))), "ndarray; expected a torch tensor"),
        (change(W_dec=torch.full((20, 16), torch.nan)), "W_dec .*NaN"),
        (change(W_enc=torch.full((20, 16), torch.inf)), "W_enc .*infinite"),
        (change(threshold=torch.full((20,), torch.nan)), "NaN"),
        (change(threshold=torch.ones(7)), "threshold"),
        (change(k=0), "above 0"),
        (change(k=2.5), "above 0"),
        (change(k=True), "above 0"),
        (change(k=3, threshold=torch.ones(20)), "k and threshold"),
        (change(W_gate=torch.ones(3)), "W_gate, which this tool does not know"),
        (change(W_dec=torch.ones(20, 2, 16)), "mix per-layer"),
        (lambda made: made.update(layer_x={}), "key 'layer_x'"),
        (lambda made: made.update(layer_1=torch.ones(3)), "should be a dict"),
        (lambda made: made.update({1: made["layer_1"]}), "one entry a layer"),
        (lambda made: made.update(read="hook_z"), "'hook_z' is read"),
        (lambda made: made.clear(), "one entry a layer"),
    ],
)
def test_dicts_that_lie(edit, says):
    made = plain(tiny.transcoders())
    edit(made)
    with pytest.raises(TranscoderError, match=says):
        from_tensors(made)
