"""`circuit-tracer train` on a folder: the set it makes is opened by name and traced."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

import circuit_tracer as ct
from circuit_tracer.cli.main import main
from tests import tiny
from tests.train.texts import texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("model")
    tiny.model("qwen3", torch.float32).save_pretrained(made)
    tiny.tokenizer().save_pretrained(made)
    return made


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(texts(80)) + "\nw5\n")
    return path


def run(*arguments):
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


SMALL = ("--features", 32, "--k", 6, "--steps", 20, "--batch", 64)


def test_a_set_is_made_said_and_traced(folder, text, tmp_path):
    out = tmp_path / "set"
    result = run("--model", folder, "--text", text, "-o", out, *SMALL, "--store")
    assert result.exit_code == 0, result.output
    assert "top-1 agreement" in result.output and str(out) in result.output
    graph = ct.trace("w5 w6 w7", ct.load(folder, out))
    assert graph.closure_error < 1e-3 and graph.index.n_features > 0
    again = run("--model", folder, "--text", text, "-o", out, *SMALL)
    assert again.exit_code == 1 and "exists" in again.output
    forced = run("--model", folder, "--text", text, "-o", out, *SMALL, "--force", "--json")
    assert json.loads(forced.stdout)["kind"] == "plt"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_offloaded_model_makes_the_same_set(folder, text, tmp_path):
    made = []
    for more in ([], ["--offload", "disk"]):
        out = tmp_path / f"set{len(made)}"
        result = run("--model", folder, "--text", text, "-o", out, *SMALL, *more)
        assert result.exit_code == 0, result.output
        made.append([path.read_bytes() for path in sorted(out.glob("*.safetensors"))])
    assert made[0] and made[0] == made[1]


@pytest.mark.parametrize(
    "arguments, status, says",
    [
        (["--features", 4], 2, "more than the 4 features"),
        ([*SMALL, "--eight-bit"], 2, "name a store"),
        ([*SMALL, "--text", "gone.txt"], 2, "there is no text at gone.txt"),
        ([*SMALL, "--read", "hook_out"], 2, "hook_out"),
    ],
)
def test_what_cannot_be_is_refused(folder, text, tmp_path, arguments, status, says):
    result = run("--model", folder, "--text", text, "-o", tmp_path / "set", *arguments)
    assert result.exit_code == status and says in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_not_installed_is_said(folder, text, tmp_path, monkeypatch):
    import circuit_tracer.train.trackers as trackers

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(trackers, "import_module", missing)
    result = run(
        "--model", folder, "--text", text, "-o", tmp_path / "set", *SMALL, "--track", "wandb"
    )
    assert result.exit_code == 2 and "pip install wandb" in result.output


def test_a_tracker_gets_every_figure(monkeypatch, tmp_path):
    import circuit_tracer.train.trackers as trackers
    from circuit_tracer.train.moment import Moment

    written = {}

    class Writer:
        def __init__(self, folder):
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name, value, step):
            written[name] = value, step

        def flush(self):
            written["flushed"] = True

    monkeypatch.setattr(
        trackers, "import_module", lambda name: SimpleNamespace(SummaryWriter=Writer)
    )
    tell = trackers.tracker("tensorboard", tmp_path, {})
    tell(Moment(7, 9, 0.5, 0.1, 1.0, nmse=(0.3, 0.4), l0=(8.0, 9.0), dead=(0.1, 0.2)))
    assert written["nmse/layer_1"] == (0.4, 7) and written["loss"] == (0.5, 7)
    assert written["flushed"] and "penalty/layer_0" not in written
