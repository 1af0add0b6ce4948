"""What is written is what was trained: folding, the folder's layout, the threshold."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from circuit_tracer.bundled.folder import Folded, fold, round_off, write
from circuit_tracer.bundled.transcoders import Activations, recipe, train
from circuit_tracer.train.network import Network

LAYERS, WIDTH, FEATURES = 3, 8, 20


def random_net(kind: str) -> Network:
    torch.manual_seed(0)
    net = Network(kind, LAYERS, WIDTH, FEATURES, seed=1).requires_grad_(False)
    for tensor in [*net.parameters(), *net.buffers()]:
        tensor.copy_(torch.rand(tensor.shape) + 0.2 if tensor.ndim == 1 else tensor)
    for tensor in [*net.b_enc, net.b_dec, net.center, *net.w_dec]:
        tensor.add_(torch.randn(tensor.shape) * 0.3)
    return net


@pytest.fixture(params=["plt", "clt"])
def kind(request):
    return request.param


def test_folded_set_equals_the_training_network(kind, tmp_path):
    net = random_net(kind)
    write(fold(net), kind, tmp_path, "tiny")
    folded = Folded(tmp_path)
    inputs = torch.randn(LAYERS, 50, WIDTH)
    pre = net.encode(inputs * net.scale_in[:, None, None])
    active = [values * (values > net.threshold[layer]) for layer, values in enumerate(pre)]
    wanted = torch.stack(net.decode(active)) * net.scale_out[:, None, None] + net.center[:, None]
    got_active = [folded.encode(layer, inputs[layer]) for layer in range(LAYERS)]
    got = torch.stack([folded.decode(layer, got_active) for layer in range(LAYERS)])
    same = (torch.stack(got_active) > 0) == (torch.stack(active) > 0)
    assert same.float().mean() > 0.995  # bfloat16 may move a feature across its threshold
    rows = same.all(-1).all(0)
    torch.testing.assert_close(got[:, rows], wanted[:, rows], atol=0.05, rtol=0.05)


def test_folded_decoders_have_unit_norm(kind):
    for writes in fold(random_net(kind))["W_dec"]:
        norms = writes.double().flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(FEATURES).double(), atol=5e-3, rtol=0)


def test_rounding_off_keeps_what_ships(kind):
    net, inputs = random_net(kind), torch.randn(LAYERS, 50, WIDTH)
    folded = fold(net)
    again = fold(round_off(net, folded))
    for name, tensors in folded.items():
        for one, other in zip(tensors, again[name], strict=True):
            torch.testing.assert_close(one, other, atol=2e-2, rtol=1e-2)
    assert torch.isfinite(net.at(0, inputs[0], [])).all()


def test_the_spliced_network_is_the_training_network(kind):
    net, inputs = random_net(kind), torch.randn(LAYERS, 50, WIDTH)
    pre = net.encode(inputs * net.scale_in[:, None, None])
    kept = [values * (values > net.threshold[layer]) for layer, values in enumerate(pre)]
    wanted = torch.stack(net.decode(kept)) * net.scale_out[:, None, None] + net.center[:, None]
    active: list[torch.Tensor] = []
    got = torch.stack([net.at(layer, inputs[layer], active) for layer in range(LAYERS)])
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_layout_of_the_folder(kind, tmp_path):
    net = random_net(kind)
    write(fold(net), kind, tmp_path, "tiny")
    config = (tmp_path / "config.yaml").read_text()
    for layer in range(LAYERS):
        if kind == "plt":
            assert "model_kind: transcoder_set" in config
            found = load_file(tmp_path / f"layer_{layer}.safetensors")
            shapes = {name: tuple(t.shape) for name, t in found.items()}
            assert shapes == {
                "W_enc": (FEATURES, WIDTH),
                "W_dec": (FEATURES, WIDTH),
                "b_enc": (FEATURES,),
                "b_dec": (WIDTH,),
                "activation_function.threshold": (FEATURES,),
            }
        else:
            assert "model_kind: cross_layer_transcoder" in config
            found = load_file(tmp_path / f"W_enc_{layer}.safetensors")
            assert set(found) == {f"{n}_{layer}" for n in ("W_enc", "b_enc", "b_dec", "threshold")}
            writes = load_file(tmp_path / f"W_dec_{layer}.safetensors")[f"W_dec_{layer}"]
            assert writes.shape == (FEATURES, LAYERS - layer, WIDTH)
    assert {p.suffix for p in tmp_path.iterdir()} == {".yaml", ".safetensors"}


def test_threshold_is_strict(kind, tmp_path):
    net = random_net(kind)
    write(fold(net), kind, tmp_path, "tiny")
    folded = Folded(tmp_path)
    inputs = torch.zeros(1, WIDTH)
    folded.threshold[0] = folded.b_enc[0].clone()
    assert not folded.encode(0, inputs).any()


def test_training_lowers_the_error(kind):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(LAYERS, 600, WIDTH, generator=generator)
    mixing = torch.randn(LAYERS, WIDTH, WIDTH, generator=generator)
    data = Activations(inputs, (inputs @ mixing).relu(), torch.ones(600))
    settings = recipe(kind, FEATURES, steps=200, seed=0, k=6, batch=128, rate=1e-2)
    said = []

    def note(done, total, text):
        said.append(float(text.split()[-1]))

    net = train(data, settings, note)
    assert said[-1] < 0.6 * said[0]
    again = train(data, settings, lambda *_: None)
    assert torch.equal(net.w_enc[0], again.w_enc[0])
