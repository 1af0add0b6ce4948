"""The kernels as tracing uses them: chosen once, the same graph whichever runs."""

from __future__ import annotations

import importlib.util

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import circuit_tracer as ct
from circuit_kernels import encode as encode_module
from circuit_tracer.errors import InputError, TranscoderError
from circuit_tracer.transcoders.base import Activation, LayerWeights, TranscoderSet

FEATURES, WIDTH = 37, 6


def one_layer(activation, dtype=torch.float64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    encoder = torch.randn(FEATURES, WIDTH, generator=draw).to(dtype)
    bias = torch.randn(FEATURES, generator=draw).to(dtype)
    weights = LayerWeights(encoder, bias, (encoder,), torch.zeros(WIDTH), activation)
    return TranscoderSet("plt", "mlp.hook_in", "mlp.hook_out", 1, lambda _: weights, "random")


ACTIVATIONS = st.one_of(
    st.just(Activation("relu")),
    st.floats(-2, 2).map(lambda at: Activation("jump_relu", torch.tensor(at))),
    st.integers(0, 99).map(
        lambda seed: Activation(
            "jump_relu", torch.randn(FEATURES, generator=torch.Generator().manual_seed(seed))
        )
    ),
    st.integers(1, FEATURES + 2).map(lambda k: Activation("topk", k=k)),
)


@settings(deadline=None)
@given(
    activation=ACTIVATIONS,
    positions=st.integers(0, 5),
    stored=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    block=st.sampled_from([8, 64, 2**22]),
    seed=st.integers(0, 99),
)
def test_what_fires_is_what_the_activation_says(activation, positions, stored, block, seed):
    sets = one_layer(activation, stored, seed)
    x = torch.randn(positions, WIDTH, generator=torch.Generator().manual_seed(seed)).double()
    pre = sets.pre_activations(0, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_module, "BLOCK_ELEMENTS", block)
        cells, values = sets.encode(0, x)
    assert torch.equal(cells, activation.active(pre).nonzero())
    torch.testing.assert_close(values, pre[cells[:, 0], cells[:, 1]], atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_feature_that_is_not_finite_is_refused_though_it_does_not_fire(bad):
    sets = one_layer(Activation("jump_relu", torch.tensor(torch.inf)))
    sets.layer(0).encoder_bias[5] = bad
    with pytest.raises(TranscoderError, match=r"layer 0 of random gives NaN or infinite"):
        sets.encode(0, torch.ones(2, WIDTH, dtype=torch.float64))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
@pytest.mark.parametrize("kind", ["plt", "clt"])
def test_a_graph_is_the_same_by_either_form_of_the_kernels(kind):
    model = tiny.replacement("llama", kind=kind)
    graphs = [ct.trace(tiny.PROMPT, model, kernels=form) for form in ("reference", "triton")]
    assert torch.equal(graphs[0].index.features, graphs[1].index.features)
    torch.testing.assert_close(*(graph.dense() for graph in graphs), atol=1e-12, rtol=0)
    assert max(graph.closure_error for graph in graphs) < 1e-10


def test_kernels_that_cannot_run_are_refused_before_anything_is_encoded(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model = tiny.replacement("llama")
    with pytest.raises(InputError, match="kernels='triton' cannot run"):
        ct.trace(tiny.PROMPT, model, kernels="triton")
