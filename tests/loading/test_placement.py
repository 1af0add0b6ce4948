"""Where weights live and what they are made of: offloaded, split, half precision, quantised."""

from __future__ import annotations

import gc
import importlib.util
import json
import tempfile

import pytest
import tiny
import torch
from torch import nn

import circuit_tracer as ct
from circuit_tracer.attribute import attribute
from circuit_tracer.errors import InputError, ModelError
from circuit_tracer.local import Local
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.models.load import open_model, resolve_dtype
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.targets import choose

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved tiny models by family."""
    root, made = tmp_path_factory.mktemp("models"), {}

    def folder(family):
        if family not in made:
            made[family] = root / family
            tiny.model(family, torch.float32).save_pretrained(made[family])
            tiny.tokenizer().save_pretrained(made[family])
        return str(made[family])

    return folder


def opened(folder, **how):
    adapter, tokenizer = open_model(folder, CPU, torch.float32, **how)
    return ReplacementModel(adapter, tokenizer, tiny.transcoders(dtype=torch.float32))


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "neox", "qwen3_moe"])
def test_an_offloaded_model_gives_the_same_graph_and_stays_offloaded(folders, family, offload):
    whole = ct.trace(tiny.PROMPT, opened(folders(family)))
    model = opened(folders(family), offload=offload)
    graph = ct.trace(tiny.PROMPT, model)
    assert torch.equal(graph.dense(), whole.dense())
    adapter = model.adapter
    assert all(parameter.is_meta for parameter in adapter.layers.parameters())
    assert not adapter.unembedding.weight.is_meta
    assert len(adapter._folded) == 1


def test_an_unknown_architecture_can_be_offloaded_too(folders, tmp_path):
    import transformers

    config = transformers.Starcoder2Config(
        vocab_size=tiny.VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, bos_token_id=2, eos_token_id=1,
    )  # fmt: skip
    transformers.Starcoder2ForCausalLM(config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    model = opened(str(tmp_path), offload="disk")
    assert model.adapter.family.name == "inferred: Starcoder2ForCausalLM"
    whole = ct.trace(tiny.PROMPT, opened(str(tmp_path)))
    assert torch.equal(ct.trace(tiny.PROMPT, model).dense(), whole.dense())


def test_what_is_left_on_disk_goes_with_the_model(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = opened(folders("llama"), offload="disk")
    assert list(tmp_path.iterdir())
    del model
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_dispatched_model_is_traced_through_its_hooks(folders):
    from accelerate import dispatch_model

    model = opened(folders("gemma2"))
    whole = ct.trace(tiny.PROMPT, model)
    names = {name: "cpu" for name, _ in model.adapter.model.named_children()}
    net = dispatch_model(model.adapter.model, names, force_hooks=True)
    adapter = Adapter(net, "dispatched")
    split = ReplacementModel(adapter, model.tokenizer, model.transcoders)
    assert torch.equal(ct.trace(tiny.PROMPT, split).dense(), whole.dense())


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (dict(offload="gpu"), "offload must be one of cpu, disk"),
        (dict(device="balanced"), "needs several CUDA devices"),
        (dict(device="balanced", offload="cpu"), "leave offload out"),
    ],
)
def test_placements_that_cannot_be(how, says):
    if how.get("device") == "balanced" and torch.cuda.device_count() > 1 and "offload" not in how:
        pytest.skip("this machine has several CUDA devices")
    with pytest.raises(InputError, match=says):
        ct.load(**how)


def test_without_accelerate_offloading_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"trace-circuits\[large\]"):
        ct.load(offload="cpu")


def test_the_bundled_model_can_be_offloaded_from_the_command_line(tmp_path):
    from click.testing import CliRunner

    from circuit_tracer.cli.main import main

    given = ["trace", "The opposite of small is", "--max-features", "20", "--json", "-"]
    results = [CliRunner().invoke(main, [*given, *more]) for more in ([], ["--offload", "disk"])]
    assert [result.exit_code for result in results] == [0, 0]
    links = [json.loads(result.stdout)["links"] for result in results]
    assert links[0] == links[1]


def test_mps_has_no_float64():
    with pytest.raises(InputError, match="mps has no float64"):
        resolve_dtype("float64", torch.device("mps"))


def rows_of(model, forward):
    local = Local(model.adapter, model.transcoders, forward)
    return attribute(local, choose(model, forward, max_logits=3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "neox"])
def test_edges_of_half_precision_weights_are_worked_out_in_float32(family, dtype):
    """Frozen at what the half-precision pass gave, edges are those of the same weights widened."""
    half = tiny.model(family, dtype)
    sets = tiny.transcoders(dtype=torch.float32)
    narrow = ReplacementModel(Adapter(half, "half"), tiny.tokenizer(), sets)
    forward = narrow.run(tiny.PROMPT)
    rows = rows_of(narrow, forward)
    assert rows.dense().dtype == torch.float32
    wide = ReplacementModel(Adapter(half.float(), "wide"), tiny.tokenizer(), sets)
    same = rows_of(wide, forward)
    torch.testing.assert_close(rows.dense(), same.dense(), atol=1e-6, rtol=1e-5)
    assert torch.equal(rows.index.features, same.index.features)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "neox"])
def test_half_precision_rows_close_to_the_rounding_of_the_pass(family, dtype):
    half = tiny.model(family, dtype)
    sets = tiny.transcoders(dtype=torch.float32)
    model = ReplacementModel(Adapter(half, "half"), tiny.tokenizer(), sets)
    rows = rows_of(model, model.run(tiny.PROMPT))
    forward = model.run(tiny.PROMPT)
    length = max(float(x.norm(dim=1).max()) for x in (forward.tokens, forward.final))
    # Each block rounds the residual stream twice; 16 roundings of its length bound three blocks.
    assert rows.residual.abs().max() < 16 * torch.finfo(dtype).eps * length
    wide = ReplacementModel(Adapter(half.float(), "wide"), tiny.tokenizer(), sets)
    exact = rows_of(wide, wide.run(tiny.PROMPT))
    assert exact.residual.abs().max() < 1e-4
    assert rows.residual.abs().max() > exact.residual.abs().max()


class Quantised(nn.Module):
    """A linear layer that keeps int8 weights and a scale, as bitsandbytes does."""

    def __init__(self, linear, packed=False):
        super().__init__()
        self.scale = float(linear.weight.abs().max()) / 127
        weight = (linear.weight / self.scale).round().to(torch.int8)
        name = "qweight" if packed else "weight"
        setattr(self, name, nn.Parameter(weight, requires_grad=False))
        self.name, self.bias = name, linear.bias

    def forward(self, x):
        weight = getattr(self, self.name).to(x) * self.scale
        return nn.functional.linear(x, weight, self.bias)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("projection", ["v_proj", "o_proj"])
def test_quantised_models_run_and_are_refused_where_weights_are_needed(projection, packed):
    net = tiny.model("llama", torch.float32)
    for layer in net.model.layers:
        linear = getattr(layer.self_attn, projection)
        setattr(layer.self_attn, projection, Quantised(linear, packed))
    adapter = Adapter(net, "quantised llama")
    model = ReplacementModel(adapter, tiny.tokenizer(), tiny.transcoders(dtype=torch.float32))
    assert model.tokenize("w5 w6").tolist() == [2, 5, 6]
    assert torch.isfinite(model.run(tiny.PROMPT).logits).all()
    with pytest.raises(ModelError, match=r"quantised llama are quantised \(Quantised.*unquantised"):
        ct.trace(tiny.PROMPT, model)


def test_weights_in_eight_bit_floats_are_refused():
    net = tiny.model("llama", torch.float32)
    adapter = Adapter(net, "eight bits")
    linear = net.model.layers[2].self_attn.v_proj
    linear.weight = nn.Parameter(linear.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ModelError, match="float8_e4m3fn"):
        adapter.blocks[2].fold()
