"""`circuit-tracer graft`: on the bundled model, with the figures of its page."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import circuit_tracer as ct
from circuit_tracer.cli.main import main
from tests.house.repository import ROOT

PROMPT, DONOR = "The opposite of small is", "The opposite of hot is"
PLACES = ("--take", "2.949@4", "--remove", "2.77@4")
PAGE = ROOT / "docs" / "interventions.md"


def run(*words: str, status: int = 0) -> str:
    result = CliRunner().invoke(main, ["graft", *words])
    assert result.exit_code == status, result.output
    return result.output if status else result.stdout


def test_a_graft_moves_the_answer():
    found = ct.load().graft(
        PROMPT, DONOR, [(2, 4, 949)], [(2, 4, 77)], strengths=[1, 3, 6], end_layers=[None, 2, 5]
    )
    assert found.tokens == (" large", " cold")
    assert [one.top for one in found.trials[:3]] == [" large", " large", " cold"]
    assert found.trials[2].removal == -5 and found.trials[2].top_probability > 0.8
    assert found.trials[-1].top == " large"


def test_the_table_is_that_of_the_page():
    words = (*PLACES, "--strength", "1,3,6", "--end-layer", "free,2,5")
    said = run(PROMPT, "--donor", DONOR, *words)
    assert said in PAGE.read_text(encoding="utf-8")


def test_a_page_json_and_a_line_for_scripts(tmp_path):
    page, document = tmp_path / "graft.html", tmp_path / "graft.json"
    words = ("--donor", DONOR, *PLACES, "--strength", "6", "--token", " grande")
    files = ("-o", str(page), "--json", str(document))
    assert run(PROMPT, *words, *files, "-q") == " cold\n"
    facts = json.loads(document.read_text(encoding="utf-8"))
    assert facts == json.loads(run(PROMPT, *words, "--json", "-"))
    assert facts["tokens"] == [" large", " cold", " grande"]
    assert facts["trials"][0]["removal"] == -5.0 and facts["trials"][0]["end_layer"] is None
    html = page.read_text(encoding="utf-8")
    assert '"free"' in html and "put at 4, 1.41 in the donor" in html
    assert "https://" not in html.split("<body>")[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--take", "2.949@4"), "Missing option '--donor'"),
        (("--donor", DONOR), "Missing option '--take'"),
        (("--donor", DONOR, "--take", "2.949"), "like 3.417@5"),
        (("--donor", DONOR, *PLACES, "--strength", "1,b"), "is not numbers, like 1,2,6"),
        (("--donor", DONOR, *PLACES, "--strength", "nan"), "finite"),
        (("--donor", DONOR, *PLACES, "--end-layer", "1.5"), "is not layers, like 3,5, or free"),
        (("--donor", DONOR, *PLACES, "--end-layer", "1"), "hold layer 2 as well"),
        (("--donor", DONOR, *PLACES, "--end-layer", "9"), "layers are 0 to 7"),
        (("--donor", DONOR, *PLACES, "--at", "17"), "positions 0 to 5"),
        (("--donor", DONOR, "--take", "2.77@4"), "not active at position 4"),
    ],
)
def test_wrong_words_are_refused(words, message):
    assert message in run(PROMPT, *words, status=2)
