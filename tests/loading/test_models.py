"""Models from folders and hub ids: what is read, and what is refused and how."""

from __future__ import annotations

import json
import pickle
import shutil
import struct

import pytest
import tiny
import torch
from click.testing import CliRunner

from circuit_tracer import doctor
from circuit_tracer.cli.main import main
from circuit_tracer.errors import InputError, ModelError, TranscoderError
from circuit_tracer.loading import load
from circuit_tracer.models.families import FAMILIES, family_of
from circuit_tracer.models.load import fetch, resolve_device, split_revision


@pytest.fixture(scope="module")
def saved(tmp_path_factory, oracle):
    """A copy of an oracle case to damage."""
    folder = tmp_path_factory.mktemp("case")
    shutil.copytree(oracle / "llama_relu_plt" / "model", folder / "model")
    shutil.copytree(oracle / "llama_relu_plt" / "transcoders", folder / "transcoders")
    return folder


@pytest.fixture
def case(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "case")
    return tmp_path / "case"


def test_a_folder_loads_in_float32_and_keeps_its_own_attention(case):
    model = load(case / "model", case / "transcoders")
    assert model.adapter.model.dtype == torch.float32
    before = model.adapter.model(torch.tensor([tiny.PROMPT])).logits
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model_modules(model))
    seen = model.run(tiny.PROMPT).logits
    assert torch.equal(seen, before[0])
    assert torch.equal(model.adapter.model(torch.tensor([tiny.PROMPT])).logits, before)
    assert model.adapter.model.config._attn_implementation == "eager"
    after = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model_modules(model))
    assert hooks == after == 0


def model_modules(model):
    return model.adapter.model.modules()


def test_an_error_in_the_forward_pass_leaves_no_hook_behind(case, monkeypatch):
    model = load(case / "model", case / "transcoders")
    broken = model.adapter.layers[2].mlp

    def fail(*_):
        raise RuntimeError("planted")

    monkeypatch.setattr(broken, "forward", fail)
    with pytest.raises(RuntimeError, match="planted"):
        model.run(tiny.PROMPT)
    monkeypatch.undo()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model_modules(model))
    assert model.adapter.model.config._attn_implementation == "eager"
    model.run(tiny.PROMPT)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_watched_pass_is_the_eager_pass_bit_for_bit(family):
    model = tiny.replacement(family, dtype=torch.float32)
    long = [2, *range(4, 16)]
    assert torch.equal(model.run(long).logits, model.adapter.model(torch.tensor([long])).logits[0])


def test_text_gets_a_beginning_and_ids_are_taken_as_they_are(case):
    model = load(case / "model", case / "transcoders")
    assert model.tokenize("w5 w6").tolist() == [2, 5, 6]
    assert model.tokenize("<bos> w5").tolist() == [2, 5]
    assert model.tokenize([5, 6]).tolist() == [5, 6]


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ([], "empty"),
        ([999], "outside the vocabulary"),
        ([-1], "outside the vocabulary"),
        ([5] * 200, "200 tokens, more than the 128"),
    ],
)
def test_prompts_that_cannot_be_traced(case, prompt, says):
    model = load(case / "model", case / "transcoders")
    with pytest.raises(InputError, match=says):
        model.run(prompt)


def test_a_folder_without_config(tmp_path, case):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(tmp_path / "empty", case / "transcoders")


def test_a_config_that_is_not_json(case):
    (case / "model" / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        load(case / "model", case / "transcoders")


def test_an_architecture_nobody_knows(case):
    path = case / "model" / "config.json"
    config = json.loads(path.read_text())
    config |= {"architectures": ["BloomForCausalLM"], "model_type": "bloom"}
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="lacks .* weights of Bloom|cannot be loaded"):
        load(case / "model", case / "transcoders")
    with pytest.raises(ModelError, match=r"knows Llama.*families\.py"):
        family_of("BloomForCausalLM")


def test_damaged_weights(case):
    path = case / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(case / "model", case / "transcoders")


def test_weights_that_are_missing_are_not_made_up(case):
    from safetensors.torch import load_file, save_file

    path = case / "model" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.self_attn.v_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights.*layers\.1\.self_attn\.v_proj\.weight"):
        load(case / "model", case / "transcoders")


def test_a_safetensors_header_larger_than_its_file(case):
    path = case / "model" / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + path.read_bytes()[8:])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(case / "model", case / "transcoders")


def test_a_link_that_leads_out_of_the_folder(case):
    path = case / "model" / "model.safetensors"
    path.rename(case / "elsewhere.safetensors")
    path.symlink_to(case / "elsewhere.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors is a link to .*outside its folder"):
        load(case / "model", case / "transcoders")


def test_links_inside_the_hub_cache_are_how_it_is_laid_out(case):
    cache = case / "models--org--name"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in (case / "model").iterdir():
        path.rename(cache / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert load(snapshot, case / "transcoders").adapter.n_layers > 0


def test_pickles_are_refused_and_not_opened(case):
    weights = case / "model" / "model.safetensors"
    weights.unlink()
    with pytest.raises(ModelError, match=r"has no \*\.safetensors"):
        load(case / "model", case / "transcoders")
    (case / "model" / "pytorch_model.bin").write_bytes(Booby().dump(case / "ran"))
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, a pickle, which can run any code"):
        load(case / "model", case / "transcoders")
    assert not (case / "ran").exists()


class Booby:
    """A pickle that leaves a file behind when it is opened."""

    def dump(self, path):
        self.path = path
        return pickle.dumps(self)

    def __reduce__(self):
        return type(self.path).touch, (self.path,)


def test_code_in_a_model_folder_is_never_run(case):
    path = case / "model" / "config.json"
    ran = case / "ran"
    (case / "model" / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    own = {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Model"}
    config = json.loads(path.read_text())
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": own}
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(case / "model", case / "transcoders")
    assert not ran.exists()


def test_a_model_type_that_does_not_exist(case):
    path = case / "model" / "config.json"
    path.write_text(json.dumps({"model_type": "nonsense", "architectures": ["NoForCausalLM"]}))
    with pytest.raises(ModelError, match="cannot be loaded.*nonsense"):
        load(case / "model", case / "transcoders")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("RevisionNotFoundError", "org/name has no revision 'v9'"),
        ("RepositoryNotFoundError", "the hub has no repository org/name"),
        ("GatedRepoError", "accept its licence"),
    ],
)
def test_what_the_hub_refuses_is_said_by_name(monkeypatch, kind, says):
    import huggingface_hub

    def refuse(*_, **__):
        raise type(kind, (Exception,), {})("no")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=says):
        fetch("org/name@v9")


def test_weights_that_are_not_numbers(case):
    model = load(case / "model", case / "transcoders")
    model.adapter.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight is not finite"):
        model.run(tiny.PROMPT)


def test_names_that_are_not_there(case, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="no folder"):
        load("./nowhere", case / "transcoders")
    with pytest.raises(InputError, match="is a file"):
        load(case / "model" / "config.json", case / "transcoders")
    with pytest.raises(InputError, match="needs transcoders"):
        load(case / "model")
    with pytest.raises(InputError, match="no folder"):
        load("./nowhere")
    with pytest.raises(InputError, match=r"'abacus' cannot be used here \(torch knows no such"):
        resolve_device("abacus")
    with pytest.raises(InputError, match="dtype"):
        load(case / "model", case / "transcoders", dtype="float3")


def test_a_number_type_is_named_or_given(case):
    model = load(case / "model", case / "transcoders", dtype=torch.float64)
    assert model.adapter.dtype == torch.float64


def test_no_network_for_a_hub_id(monkeypatch, tmp_path):
    import huggingface_hub

    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ModelError, match="cannot be downloaded.*network"):
        fetch("google/gemma-2-2b")


def test_hub_ids_carry_revisions(monkeypatch, tmp_path):
    import huggingface_hub

    asked = {}

    def download(name, revision=None, allow_patterns=None):
        asked.update(name=name, revision=revision)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert fetch("org/repo@v2") == tmp_path
    assert asked == {"name": "org/repo", "revision": "v2"}
    assert split_revision("org/repo") == ("org/repo", None)


def test_transcoders_of_another_model(case):
    shutil.rmtree(case / "transcoders")
    sets = tiny.transcoders(layers=3, width=8)
    with pytest.raises(TranscoderError, match="belong to another model"):
        sets.check_fits(4, 64, "llama")
    with pytest.raises(InputError, match="no folder"):
        load(case / "model", case / "transcoders")


def test_every_family_names_itself_once():
    names = [name for family in FAMILIES for name in family.architectures]
    assert len(names) == len(set(names))


def test_the_doctor_holds_a_model_against_what_tracing_takes_it_to_be(case):
    good = CliRunner().invoke(main, ["doctor", "--model", str(case / "model")])
    assert good.exit_code == 0, good.output
    assert "residual = before + attention + MLP" in good.stdout
    (case / "model" / "config.json").unlink()
    bad = CliRunner().invoke(main, ["doctor", "--model", str(case / "model")])
    assert bad.exit_code == 1
    assert "cannot be traced" in bad.stdout and "no config.json" in bad.stdout


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_the_doctor_finds_the_same_of_an_offloaded_model(case, place):
    found = doctor.examine_model(str(case / "model"))
    assert len(found) > 5 and doctor.examine_model(str(case / "model"), place) == found


def test_the_doctor_does_not_offload_what_it_does_not_load():
    result = CliRunner().invoke(main, ["doctor", "--offload", "cpu"])
    assert result.exit_code == 2 and "give --model too" in result.output
