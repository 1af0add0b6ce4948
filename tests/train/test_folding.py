"""Folding changes the units and nothing else."""

from __future__ import annotations

import pytest
import torch

from circuit_tracer.agreement.splicing import reconstruct
from circuit_tracer.train.folding import fold
from circuit_tracer.train.network import Network
from circuit_tracer.train.settings import FUNCTIONS

LAYERS, WIDTH, FEATURES = 3, 8, 20


def random_net(kind: str, activation: str, skip: bool) -> Network:
    draw = torch.Generator().manual_seed(0)
    net = Network(kind, LAYERS, WIDTH, FEATURES, 1, activation, k=6, skip=skip).double()
    net.requires_grad_(False)
    for tensor in [*net.parameters(), *net.buffers()]:
        tensor.copy_(torch.randn(tensor.shape, generator=draw, dtype=torch.float64))
    for scale in (net.scale_in, net.scale_out, net.threshold):
        scale.copy_(scale.abs() + 0.2)
    return net


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("kind", ["plt", "clt"])
def test_the_folded_set_computes_what_was_trained(kind, activation, skip):
    net = random_net(kind, activation, skip)
    folded = fold(net, "mlp.hook_in", "hook_mlp_out", "folded")
    x = torch.randn(LAYERS, 40, WIDTH, dtype=torch.float64)
    active: list[torch.Tensor] = []
    encoded = {}
    for layer in range(LAYERS):
        wanted = net.at(layer, x[layer], active)
        encoded[layer] = folded.encode(layer, x[layer])
        here = torch.zeros(40, FEATURES, dtype=torch.bool)
        here[encoded[layer][0][:, 0], encoded[layer][0][:, 1]] = True
        assert torch.equal(here, active[layer] != 0)
        found = reconstruct(folded, layer, encoded, x[layer])
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu", "relu"])
def test_folded_decoders_have_unit_length(activation):
    folded = fold(random_net("clt", activation, False), "mlp.hook_in", "hook_mlp_out", "folded")
    for layer in range(LAYERS):
        norms = torch.stack(list(folded.layer(layer).decoders), 1).flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.ones_like(norms))
