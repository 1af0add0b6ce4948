"""`circuit-tracer intervene` and `steer`: on the bundled model, with the figures of their page."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

import circuit_tracer as ct
from circuit_tracer.cli.main import main
from tests.house.repository import ROOT

PROMPT = "The opposite of small is"
PAGE = ROOT / "docs" / "interventions.md"


def run(*words: str, status: int = 0):
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(scope="module")
def model():
    return ct.load()


def test_flipping_a_language_moves_the_answer_to_another_as_the_page_says(model):
    said = PAGE.read_text(encoding="utf-8")
    for feature, answer in ((248, " grande"), (424, " grand")):
        rows = model.intervene(PROMPT, {(0, 1, feature): ct.Scale(-5)}).table(3)
        assert rows[0].token == " large" and rows[0].before > 0.95
        top = max(rows, key=lambda row: row.after)
        assert top.token == answer
        assert f"{rows[0].before:.0%} → {rows[0].after:.0%}" in said
        assert f"{top.before:.0%} → {top.after:.0%}" in said


def test_steering_moves_the_answer_as_the_page_says(model):
    found = model.generate(PROMPT, {(2, 949): ct.Clamp(10.0)}, max_new_tokens=6)
    assert (found.unsteered, found.steered) == (" large.", " cold.")
    step = found.steered_steps[0]
    said = PAGE.read_text(encoding="utf-8")
    assert f"{step.probability:.0%}" in said and step.unsteered < 0.01


def test_intervening_from_the_command_line():
    result = run("intervene", PROMPT, "--scale", "0.248@1=-5", "-k", "3")
    assert re.search(r'" grande" +0\.\d % +\d\d\.\d %', result.stdout)
    assert "features that moved most" in result.stdout
    quiet = run("intervene", PROMPT, "--scale", "L0#248@-5=-5", "-q")
    assert quiet.stdout == " grande\n"


def test_the_result_as_json(tmp_path):
    words = ("intervene", PROMPT, "--clamp", "2.10@*=3", "--scale", "0.248@1=0.5")
    held = ("--mode", "constrained", "--layers", "0", "4")
    facts = json.loads(run(*words, *held, "--json", "-").stdout)
    assert facts["mode"] == "constrained" and facts["held_layers"] == [0, 1, 2, 3, 4]
    assert len(facts["edits"]) == 1 + 6
    assert {row["layer"] for row in facts["features"]} <= {5, 6, 7}
    run(*words, *held, "--json", str(tmp_path / "out.json"), "-q")
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == facts


def test_steering_from_the_command_line(tmp_path):
    result = run("steer", PROMPT, "--clamp", "2.949=10", "--max-new-tokens", "4")
    assert f"{PROMPT} large." in result.stdout and f"{PROMPT} cold." in result.stdout
    (tmp_path / "texts.txt").write_text("The opposite of hot is cold.\n", encoding="utf-8")
    texts = ("--texts", str(tmp_path / "texts.txt"), "--max-new-tokens", "4")
    words = ("steer", PROMPT, "--clamp", "2.949=7x", *texts)
    assert run(*words, "-q").stdout == " cold.\n"
    facts = json.loads(run(*words, "--json", "-").stdout)
    assert facts["held"][0]["value"] == pytest.approx(7 * 1.41, abs=0.1)
    assert facts["unsteered"] == " large."


BAD = [
    (("intervene", PROMPT), "nothing to change"),
    (("intervene", PROMPT, "--scale", "3.417"), "like 3.417@5=-1"),
    (("intervene", PROMPT, "--scale", "3.417@5=much"), "like 3.417@5=-1"),
    (("intervene", PROMPT, "--scale", "3.417@5=nan"), "finite"),
    (("intervene", PROMPT, "--scale", "99.1@1=0"), "layers 0 to 7"),
    (("intervene", PROMPT, "--clamp", "1.1@77=0"), "positions 0 to 5"),
    (("intervene", PROMPT, "--clamp", "1.99999@1=0"), "features 0 to"),
    (("intervene", PROMPT, "--clamp", "1.1@1=0", "--layers", "0", "2"), "takes none"),
    (("intervene", "", "--clamp", "1.1@1=0"), "empty"),
    (("steer", PROMPT), "--clamp"),
    (("steer", PROMPT, "--clamp", "2.949@3=1"), "like 4.1023=8.0"),
    (("steer", PROMPT, "--clamp", "2.949=x"), "like 4.1023=8.0"),
    (("steer", PROMPT, "--clamp", "2.949=1", "--clamp", "2.949=2"), "held twice"),
    (("steer", PROMPT, "--clamp", "2.949=inf"), "finite"),
    (("steer", PROMPT, "--clamp", "77.1=2x"), "layers 0 to 7"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_wrong_words_are_refused(words, message):
    assert message in run(*words, status=2).output


def test_a_multiple_of_nothing_is_refused(tmp_path):
    (tmp_path / "texts.txt").write_text("The\n", encoding="utf-8")
    words = ("steer", PROMPT, "--clamp", "2.949=7x", "--texts", str(tmp_path / "texts.txt"))
    assert "never fires" in run(*words, status=2).output
    (tmp_path / "texts.txt").write_text("\n", encoding="utf-8")
    assert "holds no text" in run(*words, status=2).output
    (tmp_path / "texts.txt").write_bytes("é".encode("latin-1"))
    assert "texts.txt is not UTF-8 text" in run(*words, status=2).output


def test_a_line_longer_than_the_context_is_read_in_pieces(tmp_path):
    (tmp_path / "texts.txt").write_text("The opposite of hot is cold. " * 30, encoding="utf-8-sig")
    words = ("steer", PROMPT, "--clamp", "2.949=7x", "--texts", str(tmp_path / "texts.txt"))
    assert run(*words, "-q", "--max-new-tokens", "2").stdout.startswith(" cold")
