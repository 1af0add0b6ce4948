"""The weights that ship are what the card says, recomputed here on small samples."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from circuit_tracer import bundled
from circuit_tracer.bundled import measure, model_dir, probes, transcoder_dir
from circuit_tracer.bundled.card import describe, graph_scores
from circuit_tracer.bundled.folder import Folded
from circuit_tracer.bundled.language_model import read
from circuit_tracer.loading import load

WEIGHTS = bundled.model_dir().parent


@pytest.fixture(scope="module")
def card():
    return json.loads((WEIGHTS / "card.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(bundled.model_dir())


@pytest.fixture(scope="module")
def model():
    return read(bundled.model_dir())


@pytest.fixture(scope="module")
def sets():
    return {kind: Folded(bundled.transcoder_dir(kind)) for kind in ("plt", "clt")}


def test_the_package_says_where_things_are_without_torch():
    code = (
        "import sys, circuit_tracer.bundled as b; "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; "
        "assert b.model_dir().is_dir()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match='"plt" or "clt"'):
        bundled.transcoder_dir("sae")


def test_small_and_safe():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 21.5e6
    assert max(path.stat().st_size for path in files) < 4e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".yaml", ".md", ".sqlite"}


def test_the_page_is_written_from_the_card(card):
    assert (WEIGHTS / "README.md").read_text(encoding="utf-8") == describe(card)


def test_the_four_prompts(model, tokenizer, sets, card):
    for prompt, said in measure.shown(model, tokenizer, sets).items():
        assert said["model"][0] == said["wanted"]
        for kind in ("model", "plt", "clt"):
            assert said[kind][0] == card["shown"][prompt][kind][0]


def test_hugging_face_agrees(model, tokenizer):
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(
        bundled.model_dir(), dtype=torch.float32, attn_implementation="eager"
    )
    for prompt in measure.SHOWN:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        with torch.no_grad():
            wanted = hf(ids).logits
        torch.testing.assert_close(model.logits(model(ids)), wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("split", ["template", "language", "compose"])
def test_accuracy_is_the_cards(model, tokenizer, card, split):
    results = measure.right(model, tokenizer, measure.sample(split, 150, seed=1))
    share = sum(hit for _, hit in results) / len(results)
    assert share == pytest.approx(card["accuracy"][split]["all"], abs=0.06)


@pytest.mark.parametrize("kind", ["plt", "clt"])
def test_agreement_is_the_cards(model, tokenizer, sets, card, kind):
    replaced, sentences = load(transcoders=kind), measure.unseen(200, seed=1)
    found = measure.replacement(replaced, model, tokenizer, sets[kind], sentences)
    assert found["agreement"] == pytest.approx(card["replacement"][kind]["agreement"], abs=0.05)
    wanted = card["replacement"][kind]["l0"]
    assert found["l0"] == pytest.approx(wanted, rel=0.15)


def test_patches_are_the_cards(model, tokenizer, card):
    found = probes.patches(model, tokenizer, pairs=15, seed=1)
    for name, shares in found.items():
        assert shares[1] == pytest.approx(card["patches"][name][1], abs=0.25)


@pytest.mark.parametrize("kind", ["plt", "clt"])
def test_the_graphs_are_the_cards(card, kind):
    found = graph_scores(model_dir(), transcoder_dir(kind))
    for prompt, scores in card["graphs"][kind].items():
        assert found[prompt] == pytest.approx(scores, abs=0.005)
