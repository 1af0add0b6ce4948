"""`circuit-tracer swap`: on the bundled model."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from circuit_tracer.cli.main import main

WORDS = ("en=The opposite of small is", "--donor", "en=The opposite of hot is")
QUICK = ("--strength", "1,3", "--end-layer", "5")


def run(*words: str, status: int = 0) -> str:
    result = CliRunner().invoke(main, ["swap", *words])
    assert result.exit_code == status, result.output
    return result.output if status else result.stdout


def test_an_operand_is_swapped_and_its_null_is_not(tmp_path):
    page, document = tmp_path / "swap.html", tmp_path / "swap.json"
    said = run(*WORDS, *QUICK, "-o", str(page), "--json", str(document))
    assert "1 of 1 succeed" in said and "' cold'" in said and "success by language" in said
    found = json.loads(document.read_text(encoding="utf-8"))
    assert found["tried"][0]["swap"]["wanted"] == " cold"
    assert found["success"][0]["en"] == "1/1" and found["success"][1]["en"] == "0/1"
    assert "Swaps" in page.read_text(encoding="utf-8")


def test_features_can_be_named_and_json_printed():
    words = ("--feature", "2.77", "--feature", "2.949", "--json", "-", "--want", "en= cold")
    found = json.loads(run(*WORDS, "--strength", "3", "--end-layer", "free", *words))
    made = found["tried"][0]["swap"]
    assert (made["own"], made["foreign"]) == ([[2, 77]], [[2, 949]])
    assert [trial["end"] for trial in made["trials"]] == [None]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("small",), "should be a name and a prompt"),
        (("en=a", "en=b", "--donor", "en=c"), "'en' names two prompts"),
        (("en=a", "--donor", "en=b", "--donor", "en=c"), "'en' names two donors"),
        (("en=a",), "every receiver needs a donor"),
        (("en=a", "--donor", "en=b", "--feature", "2"), "LAYER.ID"),
        (("en=a", "--donor", "en=b", "--layers", "5-2"), "--layers 5-2 should be like 2-7"),
    ],
)
def test_wrong_words_end_with_what_to_do(words, message):
    assert message in run(*words, status=2)
