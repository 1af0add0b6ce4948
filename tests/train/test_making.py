"""From text to a folder: it learns, resumes bit for bit, warns, and what it writes is traced."""

from __future__ import annotations

import dataclasses
import json
import statistics

import pytest
import torch

import circuit_tracer as ct
from circuit_tracer.agreement.measure import measure
from circuit_tracer.errors import InputError, OutputError, TranscoderError
from circuit_tracer.models.load import open_transcoders
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.train import checkpoint
from circuit_tracer.train.blocks import Stream, deal
from circuit_tracer.train.corpus import tokenised
from circuit_tracer.train.folding import fold
from circuit_tracer.train.loop import Trainer
from circuit_tracer.train.making import Plan, make, network
from circuit_tracer.train.moment import Moment, worries
from circuit_tracer.train.settings import FUNCTIONS, Settings
from tests import tiny
from tests.train.texts import adapter, texts

SHORT = Settings(features=32, k=6, steps=6, batch=64)


def trainer(model, settings):
    corpus = tokenised(tiny.tokenizer(), texts(), context=32)
    blocks = deal(model, corpus, "mlp.hook_in", "hook_mlp_out", settings.seed, 2**18)
    stream = Stream(blocks.sizes, blocks.block, settings.batch, settings.seed)
    return Trainer(network(model, settings), stream, settings)


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("kind", ["plt", "clt"])
def test_every_kind_and_activation_makes_a_set_that_traces_and_closes(kind, activation, tmp_path):
    model = adapter("gemma2" if kind == "plt" else "gpt2")
    settings = dataclasses.replace(SHORT, kind=kind, activation=activation, skip=kind == "plt")
    found = make(model, tiny.tokenizer(), texts(), tmp_path / "set", settings)
    assert found.kind == kind and len(found.layers) == tiny.LAYERS
    opened = open_transcoders(str(tmp_path / "set"))
    wanted = {"batchtopk": "jump_relu", "jumprelu": "jump_relu"}.get(activation, activation)
    assert opened.layer(0).activation.kind == wanted
    graph = ct.trace(tiny.PROMPT, ReplacementModel(model, tiny.tokenizer(), opened))
    assert graph.closure_error < 1e-10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_training_brings_the_error_far_down(tmp_path):
    model = adapter()
    settings = Settings(features=64, k=8, steps=150, batch=128)
    before = fold(network(model, settings), "mlp.hook_in", "hook_mlp_out", "untrained")
    check = texts(20, seed=9)
    untrained = measure(ReplacementModel(model, tiny.tokenizer(), before), check)
    make(model, tiny.tokenizer(), texts(200), tmp_path / "set", settings)
    after = open_transcoders(str(tmp_path / "set"))
    trained = measure(ReplacementModel(model, tiny.tokenizer(), after), check)
    assert trained.nmse < 0.3 and trained.nmse < 0.3 * untrained.nmse
    assert all(6 < layer.l0 < 13 for layer in trained.layers)


@pytest.mark.parametrize("activation, error", [("relu", 0.7), ("jumprelu", 0.5)])
def test_a_penalty_holds_the_number_of_active_features(activation, error):
    settings = Settings(
        features=64, k=8, steps=150, batch=128, activation=activation, adapt=0.1, penalty=1e-2
    )
    under_way = trainer(adapter(), settings)
    under_way.run(150)
    assert 4 < statistics.fmean(under_way.moments[-1].l0) < 13
    assert statistics.fmean(under_way.moments[-1].nmse) < error


@pytest.mark.parametrize("activation", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resumed_is_uninterrupted_bit_for_bit(activation, dtype, tmp_path):
    settings = dataclasses.replace(SHORT, activation=activation, kind="clt", steps=14, skip=True)
    model = adapter(dtype=dtype)
    through = trainer(model, settings)
    through.run(14, note_every=5)
    first = trainer(model, settings)
    first.run(7, note_every=5)
    checkpoint.save(first, tmp_path, settings.plain())
    second = trainer(model, settings)
    assert checkpoint.load(second, tmp_path, settings.plain())
    second.run(14, note_every=5)
    for name, wanted in through.state().items():
        assert torch.equal(second.state()[name], wanted), name
    assert second.moments == through.moments


def test_a_killed_training_goes_on_to_the_same_files(tmp_path):
    model, plan = adapter(), Plan(save_every=2, note_every=1, store=True)
    make(model, tiny.tokenizer(), texts(), tmp_path / "through", SHORT, plan)

    def stop(moment):
        if moment.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(model, tiny.tokenizer(), texts(), tmp_path / "set", SHORT, plan, stop)
    assert not (tmp_path / "set").exists()
    seen = []
    make(model, tiny.tokenizer(), texts(), tmp_path / "set", SHORT, plan, seen.append)
    assert [moment.step for moment in seen] == [5, 6]
    for path in (tmp_path / "through").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "set" / path.name).read_bytes()


def test_an_unfinished_training_of_something_else_is_refused(tmp_path):
    one = trainer(adapter(), SHORT)
    one.run(2)
    checkpoint.save(one, tmp_path, SHORT.plain())
    other = dataclasses.replace(SHORT, k=5)
    with pytest.raises(InputError, match="another k: 6 there, 5 here"):
        checkpoint.load(trainer(adapter(), other), tmp_path, other.plain())
    (tmp_path / checkpoint.NAME).write_bytes(b"half")
    with pytest.raises(InputError, match="is damaged"):
        checkpoint.load(one, tmp_path, SHORT.plain())


def test_card_figures_and_curves_lie_beside_the_weights(tmp_path):
    settings = dataclasses.replace(SHORT, activation="topk")
    plan = Plan(save_every=2, note_every=2)
    make(adapter(), tiny.tokenizer(), texts(), tmp_path / "set", settings, plan)
    card = (tmp_path / "set" / "README.md").read_text()
    assert "top-1 agreement" in card and "would misread this folder: it reads TopK" in card
    figures = json.loads((tmp_path / "set" / "training.json").read_text())
    assert figures["settings"]["k"] == 6 and figures["tokens"] == 6 * 64
    assert figures["moments"][-1]["step"] == 6
    looked = [moment["step"] for moment in figures["moments"] if moment["kl"] is not None]
    assert looked == [2, 4]
    page = (tmp_path / "set" / "report.html").read_text()
    assert "Plotly.newPlot" in page and all(
        title in page for title in ("L0 against MSE", "top-1 agreement, held-out", "KL, nats, held")
    )
    assert "src=" not in page.split("<body>")[0]


def test_a_destination_that_is_taken_is_refused_before_any_work(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(OutputError, match="exists"):
        make(adapter(), tiny.tokenizer(), texts(), tmp_path / "set", SHORT)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_text_shorter_than_a_batch_is_gone_through_again(tmp_path):
    few = ["w4 w5 w6 w7 w8 w9 w10 w11", "", "w5"]
    make(adapter(), tiny.tokenizer(), few, tmp_path / "set", SHORT)
    figures = json.loads((tmp_path / "set" / "training.json").read_text())
    assert figures["epoch_tokens"] < SHORT.batch and figures["tokens"] == 6 * 64


def test_divergence_stops_with_the_reason():
    class Broken:
        def sample(self):
            return torch.randn(3, 9, 16), torch.randn(3, 9, 16)

        def batch(self, step):
            return torch.full((3, 9, 16), torch.inf), torch.randn(3, 9, 16)

    settings = dataclasses.replace(SHORT, k=2)
    with pytest.raises(TranscoderError, match="training has diverged"):
        Trainer(network(adapter(), settings), Broken(), settings).run(1)


def moment(**changed):
    usual = dict(
        step=50, steps=100, loss=1.0, rate=0.1, norm=1.0, nmse=(0.3,), l0=(8.0,), dead=(0.1,)
    )
    return Moment(**(usual | changed))


def test_worries_are_said_early_and_once():
    assert worries(moment(), []) == ()
    assert "layer 0 loses its features: 60 %" in worries(moment(dead=(0.6,)), [])[0]
    assert "layer 0 does not learn" in worries(moment(nmse=(0.99,)), [])[0]
    assert worries(moment(nmse=(0.99,), step=10), []) == ()
    usual = [moment() for _ in range(6)]
    assert "gradients explode" in worries(moment(norm=100.0), usual)[0]
    before = [moment(dead=(0.6,), warnings=("layer 0 loses its features: 60 %",))]
    assert worries(moment(dead=(0.7,)), before) == ()


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"k": 40}, "more than the 32 features"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"kind": "sae"}, "kind must be one of plt, clt"),
        ({"rate": float("nan")}, "rate must be a number above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changed, says):
    with pytest.raises(InputError, match=says):
        dataclasses.replace(SHORT, **changed)


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_in_bfloat16_arithmetic_weights_stay_float32_and_learn(activation, monkeypatch):
    mixed = torch.autocast("cpu", torch.bfloat16)
    monkeypatch.setattr(Trainer, "_arithmetic", lambda self: mixed)
    settings = Settings(features=32, k=6, steps=60, batch=64, activation=activation, seed=1)
    under_way = trainer(adapter(dtype=torch.float32), settings)
    seen = []
    under_way.net.w_dec[0].register_hook(lambda gradient: seen.append(gradient.dtype))
    values = {}

    def encode(inputs, original=under_way.net.encode):
        values["dtype"] = (found := original(inputs))[0].dtype
        return found

    monkeypatch.setattr(under_way.net, "encode", encode)
    under_way.run(60, note_every=20)
    assert values["dtype"] == torch.bfloat16 and set(seen) == {torch.float32}
    assert {value.dtype for value in under_way.weights().values()} == {torch.float32}
    first, *_, last = (statistics.fmean(moment.nmse) for moment in under_way.moments)
    assert last < 0.9 * first and last < 0.9


@pytest.mark.parametrize("kind, activation", [("clt", "relu"), ("plt", "topk")])
def test_what_saelens_cannot_hold_is_refused_before_any_work(kind, activation, tmp_path):
    settings = dataclasses.replace(SHORT, kind=kind, activation=activation)
    with pytest.raises(InputError, match="no clt, no topk"):
        make(adapter(), tiny.tokenizer(), texts(), tmp_path / "set", settings, Plan(saelens=True))
    assert list(tmp_path.iterdir()) == []


def test_a_set_is_written_for_saelens_too(tmp_path):
    make(adapter(), tiny.tokenizer(), texts(), tmp_path / "set", SHORT, Plan(saelens=True))
    here, there = (open_transcoders(str(tmp_path / name)) for name in ("set", "set/saelens"))
    x = torch.randn(50, tiny.WIDTH, dtype=torch.float64)
    for layer in range(tiny.LAYERS):
        for a, b in zip(here.encode(layer, x), there.encode(layer, x), strict=True):
            assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_mixed_precision_learns_as_float32_does(activation):
    settings = Settings(features=64, k=8, steps=150, batch=128, activation=activation)
    errors = []
    for mixed in (False, True):
        chosen = dataclasses.replace(settings, mixed=mixed)
        on_cpu = trainer(adapter(dtype=torch.float32), chosen)
        under_way = Trainer(on_cpu.net, on_cpu.source, chosen, "cuda")
        under_way.run(150)
        assert under_way.net.b_dec.dtype == torch.float32
        errors.append(statistics.fmean(under_way.moments[-1].nmse))
    assert errors[1] == pytest.approx(errors[0], abs=0.05)
