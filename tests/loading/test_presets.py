"""One word for a model and its transcoders, and the command that lists them."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from circuit_tracer import loading
from circuit_tracer.cli.main import main
from circuit_tracer.errors import InputError
from circuit_tracer.models.families import FAMILIES
from circuit_tracer.models.presets import PRESETS, preset, transcoders_of

WANTED = (
    "gemma",
    "gemma-clt",
    "llama",
    "llama-clt",
    "qwen3-0.6b",
    "qwen3-1.7b",
    "qwen3-4b",
    "qwen3-8b",
    "qwen3-14b",
    "gemma3-270m",
    "gemma3-1b",
    "gemma3-4b",
    "gemma3-12b",
    "gemma3-27b",
    "gpt-oss",
)


class AskedError(Exception):
    """What was asked for, before anything was opened."""


@pytest.fixture
def asked(monkeypatch):
    """Loading stops where it would open transcoders and model, and says with what names."""

    def names(*given, **more):
        sets = []
        monkeypatch.setattr(loading, "open_transcoders", lambda name, *_, **__: sets.append(name))

        def stop(name, *_, **__):
            raise AskedError(name, *sets)

        monkeypatch.setattr(loading, "open_model", stop)
        with pytest.raises(AskedError) as caught:
            loading.load(*given, **more)
        return caught.value.args

    return names


def test_names_are_single_words_and_unique():
    names = [entry.name for entry in PRESETS]
    assert len(set(names)) == len(names)
    assert set(WANTED) <= set(names)
    for entry in PRESETS:
        assert not set(entry.name) & set("/@ ")
        assert entry.model.count("/") == 1


def test_a_word_stands_for_a_model_and_its_transcoders(asked):
    assert asked("gemma") == ("google/gemma-2-2b", "mwhanna/gemma-scope-transcoders")
    assert asked("llama-clt")[1] == "mntss/clt-llama-3.2-1b-524k"


def test_other_transcoders_may_be_named_beside_a_word(asked):
    assert asked("gemma", "org/mine") == ("google/gemma-2-2b", "org/mine")


def test_a_known_hub_id_needs_no_transcoders(asked):
    assert asked("google/gemma-2-2b")[1] == "mwhanna/gemma-scope-transcoders"
    assert asked("Qwen/Qwen3-4B@main") == ("Qwen/Qwen3-4B@main", "mwhanna/qwen3-4b-transcoders")


def test_a_model_nobody_knows_needs_transcoders():
    with pytest.raises(InputError, match="--transcoders neurons.*circuit-tracer models"):
        loading.load("org/unheard-of")
    assert transcoders_of("org/unheard-of") is None


def test_a_folder_named_like_a_preset_is_written_as_a_path(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gemma").mkdir()
    with pytest.raises(InputError, match=r"a preset .*and a folder here: write \./gemma"):
        preset("gemma")
    assert asked("./gemma", "org/set") == ("./gemma", "org/set")
    assert asked(tmp_path / "gemma", "org/set")[0] == str(tmp_path / "gemma")


def test_the_command_lists_families_and_presets():
    result = CliRunner().invoke(main, ["models"])
    assert result.exit_code == 0, result.output
    for family in FAMILIES:
        assert family.name in result.stdout
    for entry in PRESETS:
        assert entry.model in result.stdout and entry.transcoders in result.stdout


def test_the_command_as_json_and_as_words(tmp_path):
    found = json.loads(CliRunner().invoke(main, ["models", "--json", "-"]).stdout)
    assert {entry["name"] for entry in found["presets"]} >= set(WANTED)
    assert found["families"][0] == {"name": "Llama", "architectures": ["LlamaForCausalLM"]}
    words = CliRunner().invoke(main, ["models", "-q", "--json", str(tmp_path / "m.json")]).stdout
    assert words.split() == [entry.name for entry in PRESETS]
    assert json.loads((tmp_path / "m.json").read_text()) == found
