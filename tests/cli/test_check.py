"""`circuit-tracer check`: a table, a verdict, JSON, a page, and what is refused."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

import circuit_tracer.agreement.measure as measuring
from circuit_tracer.agreement.measure import Agreement, LayerAgreement
from circuit_tracer.agreement.report import page, plain, rows, verdict
from circuit_tracer.cli.main import main


def run(*arguments, **extra):
    return CliRunner().invoke(main, ["check", *map(str, arguments)], **extra)


def made(top1=0.6, nmse=0.1, missing=False):
    layers = [LayerAgreement(0, 100, nmse, 12.0, 0.25)]
    layers.append(LayerAgreement(1, 0, None, 0.0, None) if missing else layers[0])
    return Agreement("m", "t<b>", "plt", 3, 40, tuple(layers), top1, 0.2, 2.0, 2.1)


def test_without_arguments_the_bundled_model_is_measured_and_said():
    result = run("--tokens", 60)
    assert result.exit_code == 0, result.output
    assert "bundled plt in place of the MLPs of bundled" in result.output
    assert re.search(r"^ +7 +1,024 +0\.0\d\d +\d\d\.\d", result.output, re.MULTILINE)
    assert "60 tokens of" in result.output and "good: at least as close" in result.output


def test_text_of_the_user_json_and_page(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The opposite of small is large.\n\nLe contraire de petit est grand.\n")
    out = tmp_path / "check.html"
    result = run("bundled", "clt", "--text", text, "--json", "-", "-o", out)
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["texts"] == 2 and found["kind"] == "clt" and len(found["layers"]) == 8
    increase = found["cross_entropy_replaced"] - found["cross_entropy"]
    assert found["cross_entropy_increase"] == pytest.approx(increase)
    html = out.read_text()
    assert "Plotly.newPlot" in html and "plotly.js v" in html
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", html)


def test_text_from_stdin_quietly():
    result = run("bundled", "neurons", "--text", "-", "-q", input="The opposite of small is large.")
    assert result.exit_code == 0 and result.output == ""


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--text", "gone.txt"], "cannot read gone.txt"),
        (["-o", "picture.gif"], "should end in .html"),
        (["--tokens", "0"], "0 is not in the range"),
        (["bundled", "neurons:x"], "neurons:N"),
        (["bundled", "./gone"], "no folder ./gone"),
    ],
)
def test_wrong_words(arguments, says, monkeypatch):
    monkeypatch.setattr(measuring, "measure", None)  # refused before anything is measured
    result = run(*arguments)
    assert result.exit_code == 2 and says in result.output


@pytest.mark.parametrize("text, says", [(b"\n \n", "no text"), (b"\xff\xfe", "not UTF-8")])
def test_files_without_text(tmp_path, text, says):
    (tmp_path / "text.txt").write_bytes(text)
    result = run("--text", tmp_path / "text.txt")
    assert result.exit_code == 2 and says in result.output


def test_another_suffix_than_html_is_refused_before_the_work():
    result = run("-o", "picture.svg")
    assert result.exit_code == 2 and ".html" in result.output


@pytest.mark.parametrize(
    "found, word",
    [
        (made(), "good"),
        (made(nmse=0.3), "fair"),
        (made(top1=0.4), "fair"),
        (made(top1=0.1), "poor"),
        (made(nmse=0.7), "poor"),
    ],
)
def test_verdicts(found, word):
    assert verdict(found).startswith(word) and "21.7" not in verdict(found)
    assert "0.217" in verdict(found) and "Only" not in verdict(found)


def test_layers_without_transcoders_are_said():
    found = made(missing=True)
    assert rows(found)[2] == ("1", "none", "–", "–", "–")
    assert "Only 1 of 2 layers" in verdict(found)
    assert plain(found)["layers"][1]["nmse"] is None and plain(found)["nmse"] == 0.1


def test_names_are_escaped_in_the_page():
    assert "t&lt;b&gt;" in page(made()) and "<h1>t<b>" not in page(made())
