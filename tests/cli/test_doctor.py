"""The doctor: findings on this machine, and on machines with something missing."""

from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner

from circuit_tracer import bundled, doctor
from circuit_tracer.cli.main import main


def findings(check):
    return {finding.name: finding for finding in check()}


def test_this_machine_can_trace():
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0, result.output
    for name in ("python", "torch", "transformers", "triton", "bundled model", "memory", "disk"):
        assert name in result.stdout


def test_as_json():
    result = CliRunner().invoke(main, ["doctor", "--json", "-"])
    found = json.loads(result.stdout)
    assert {"name", "ok", "found", "remedy", "needed"} == set(found[0])
    assert all(entry["remedy"] for entry in found if not entry["ok"])


def test_json_in_a_file(tmp_path):
    result = CliRunner().invoke(main, ["doctor", "-q", "--json", str(tmp_path / "d.json")])
    assert result.output == ""
    assert json.loads((tmp_path / "d.json").read_text())


@pytest.mark.parametrize(
    "module, check, needed",
    [("torch", "torch", True), ("transformers", "transformers", True), ("triton", "triton", False)],
)
def test_a_missing_library_has_a_remedy(module, check, needed, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    finding = findings(getattr(doctor, check))[module]
    assert not finding.ok and finding.needed is needed and "pip install" in finding.remedy


def test_something_needed_that_is_missing_is_status_1(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "✗ transformers" in result.stdout and "→ pip install" in result.stdout


def test_an_old_library_is_told_from_a_new_one(monkeypatch):
    import transformers

    monkeypatch.setattr(transformers, "__version__", "4.40.0")
    assert not findings(doctor.transformers)["transformers"].ok
    monkeypatch.setattr(transformers, "__version__", "6.0.0")
    assert not findings(doctor.transformers)["transformers"].ok


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A stand-in for the bundled weights: one whole file in each folder."""
    import torch
    from safetensors.torch import save_file

    for name in ("model", "plt", "clt"):
        (tmp_path / name).mkdir()
        save_file({"a": torch.ones(3), "b": torch.ones(2)}, tmp_path / name / "x.safetensors")
    monkeypatch.setattr(bundled, "model_dir", lambda: tmp_path / "model")
    monkeypatch.setattr(bundled, "transcoder_dir", lambda kind: tmp_path / kind)
    return tmp_path


def test_whole_weights_are_fine(weights):
    assert all(finding.ok for finding in doctor.bundled_model())


@pytest.mark.parametrize("cut", [3, 20, -4])
def test_a_truncated_weight_file_is_named(weights, cut):
    path = weights / "model" / "x.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    finding = findings(doctor.bundled_model)["bundled model"]
    assert not finding.ok and "x.safetensors" in finding.found and finding.remedy


def test_missing_weights_are_said_to_be_missing(weights):
    (weights / "clt" / "x.safetensors").unlink()
    finding = findings(doctor.bundled_model)["bundled clt"]
    assert not finding.ok and finding.found == "no weights found"
