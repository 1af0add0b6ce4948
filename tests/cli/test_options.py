"""What options accept, and what they say to the rest."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

import circuit_tracer as ct
from circuit_tracer.bundled import transcoder_dir
from circuit_tracer.cli.main import main
from circuit_tracer.cli.options import FeatureLimit, Positions, Share
from circuit_tracer.errors import InputError


@pytest.mark.parametrize("given, value", [("0", 0.0), ("1", 1.0), ("0.8", 0.8), (0.98, 0.98)])
def test_shares(given, value):
    assert Share().convert(given, None, None) == value


@pytest.mark.parametrize("given", ["-0.1", "1.1", "nan", "inf", "", "eighty", "0,8"])
def test_what_is_no_share(given):
    with pytest.raises(click.BadParameter, match="between 0 and 1"):
        Share().convert(given, None, None)


@pytest.mark.parametrize("given, value", [("auto", "auto"), ("all", None), ("0", 0), ("500", 500)])
def test_limits(given, value):
    assert FeatureLimit().convert(given, None, None) == value


@pytest.mark.parametrize("given", ["-1", "many", "1.5", "", "٣"])
def test_what_is_no_limit(given):
    with pytest.raises(click.BadParameter, match="nor all, nor auto"):
        FeatureLimit().convert(given, None, None)


@pytest.mark.parametrize(
    "given, value", [("bos", "bos"), ("none", ()), ("0", (0,)), ("3, 0,3", (0, 3))]
)
def test_positions(given, value):
    assert Positions().convert(given, None, None) == value


@pytest.mark.parametrize("given", ["", "-1", "first", "0,,1"])
def test_what_are_no_positions(given):
    with pytest.raises(click.BadParameter, match="neither bos"):
        Positions().convert(given, None, None)


SMALL, HOT = "The opposite of small is", "The opposite of hot is"


@pytest.fixture(scope="module")
def saved_graph(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "small.safetensors"
    ct.trace(SMALL).save(path)
    return path


LOADING = [
    ["attribute", "-p", SMALL, "-t", "{set}", "-o", "a.safetensors"],
    ["batch", "prompts.txt", "-o", "out"],
    ["check"],
    ["compare", f"en={SMALL}", f"fr={HOT}"],
    ["features", "build", "--text", "prompts.txt", "-o", "store.sqlite"],
    ["features", "merge", "part", "-o", "store.sqlite"],
    ["features", "top", "--prompt", SMALL],
    ["graft", SMALL, "--donor", HOT, "--take", "2.949@4"],
    ["intervene", SMALL, "--clamp", "2.949@4=1"],
    ["query", "{graph}", "error", "L0@4"],
    ["query", "{graph}", "heads", "small", "large"],
    ["query", "{graph}", "qk", *["--layer", "2", "--head", "1", "--query", "5", "--key", "4"]],
    ["query", "{graph}", "supernodes", "--with-decoders"],
    ["query", "{graph}", "weights", "--of", "2.949"],
    ["steer", SMALL, "--clamp", "2.949=1"],
    ["swap", f"en={SMALL}", "--donor", f"en={HOT}"],
    ["trace", SMALL],
]


@pytest.mark.parametrize("words", LOADING, ids=lambda words: " ".join(words[:3:2]))
def test_every_command_that_loads_a_model_takes_where_its_weights_live(
    words, saved_graph, tmp_path, monkeypatch
):
    asked = []

    def load(*_names, offload=None, **_rest):
        asked.append(offload)
        raise InputError("enough")

    monkeypatch.setattr("circuit_tracer.loading.open_model", load)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text(SMALL)
    filled = [word.format(graph=saved_graph, set=transcoder_dir("plt")) for word in words]
    result = CliRunner().invoke(main, [*filled, "--offload", "cpu"])
    assert (result.exit_code, asked) == (2, ["cpu"]), result.output
    assert "enough" in result.output


def test_offloaded_commands_answer_what_they_answer_else(saved_graph):
    for words in (
        ["intervene", SMALL, "--scale", "0.248@1=-5", "-k", "3"],
        ["query", str(saved_graph), "heads", "small", "large"],
        ["steer", SMALL, "--clamp", "2.949=10", "--max-new-tokens", "2"],
    ):
        usual, offloaded = (
            CliRunner().invoke(main, [*words, *more]) for more in ((), ("--offload", "disk"))
        )
        assert offloaded.output == usual.output
        assert offloaded.exit_code == usual.exit_code == 0, offloaded.output
