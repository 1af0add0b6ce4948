"""The whole recipe at toy size: it makes the folders it promises, and never half of one."""

from __future__ import annotations

import json

import pytest

from circuit_tracer.bundled import recipe
from circuit_tracer.bundled.folder import Folded

WORDS = """
--quiet --no-compile --threads 1 --layers 4 --steps 3 --plt-steps 3 --clt-steps 3
--plt-features 32 --clt-features 24 --sentences 300 --probes 3 --prompts 40 --polish-steps 2
--texts 12
"""
TOY = WORDS.split()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("weights")
    assert recipe.main([*TOY, "--out", str(out)]) == 0
    return out


def test_it_makes_every_folder(made):
    assert {path.name for path in made.iterdir()} == {
        "model",
        "plt",
        "clt",
        "features",
        "card.json",
        "README.md",
    }
    assert Folded(made / "clt").w_dec[0].shape == (24, 4, 128)


def test_the_card_tells_time_and_figures(made):
    card = json.loads((made / "card.json").read_text(encoding="utf-8"))
    assert set(card["minutes"]) == {"model", "plt", "clt"}
    assert card["replacement"]["plt"]["features"] == 32
    page = (made / "README.md").read_text(encoding="utf-8")
    assert "The opposite of small is" in page and "missed" in page


def test_an_interrupted_stage_leaves_the_old_folder(made):
    before = sorted((made / "plt").iterdir())
    with pytest.raises(KeyboardInterrupt), recipe.Whole(made / "plt") as folder:
        (folder / "layer_0.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt
    assert sorted((made / "plt").iterdir()) == before
    assert not (made / "plt.part").exists()
