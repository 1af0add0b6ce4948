"""Other seeds' sets stand beside the card's, figure by figure."""

from __future__ import annotations

import json

from circuit_tracer.bundled import seeds


def test_the_table_has_the_cards_figures_and_those_of_every_seed(tmp_path, monkeypatch, capsys):
    card = json.loads((seeds.HOME / "card.json").read_text(encoding="utf-8"))["replacement"]["clt"]
    wanted = []
    monkeypatch.setattr(seeds, "made", lambda folder, kind, seed, threads: wanted.append(folder))
    monkeypatch.setattr(
        seeds, "measured", lambda folder, kind, prompts: card | {"agreement": 0.5, "l0": [1, 2]}
    )
    words = ["--kind", "clt", "--seeds", "4", "7", "--out", str(tmp_path)]
    assert seeds.main(words) == 0
    assert wanted == [tmp_path / "seed_4", tmp_path / "seed_7"]
    head, _, first, *rows = capsys.readouterr().out.splitlines()
    assert head == "|  | card | seed 4 | seed 7 |"
    assert first == f"| same top token | {card['agreement']:.4f} | 0.5000 | 0.5000 |"
    assert any(row.startswith("| L0") and row.endswith("| 1.5000 | 1.5000 |") for row in rows)
    assert json.loads((tmp_path / "clt.json").read_text())["seed 7"]["agreement"] == 0.5


def test_a_set_that_is_there_is_not_made_again(tmp_path, monkeypatch):
    from circuit_tracer.bundled import recipe

    (tmp_path / "plt").mkdir()
    (tmp_path / "plt" / "config.yaml").write_text("made")
    monkeypatch.setattr(recipe, "main", lambda words: 1 / 0)
    seeds.made(tmp_path, "plt", 1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plt"]
