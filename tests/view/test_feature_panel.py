"""What a feature means, in a real browser: examples, figures and labels, true and harmless."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from circuit_tracer.features import labels
from circuit_tracer.view.drawing import by_influence
from tests.view.conftest import synthetic

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=alert(1)></script>&amp;\u202e\u2028"
BINS = [[0.5, 0.7071, 4], [0.7071, 1.0, 12], [1.0, 1.4142, 0], [1.4142, 2.0, 3]]
RATES = {"en": 0.02, "fr": 0.04, HOSTILE: 0.01}
LARGEST = 1.9


def example(language, tokens, fires):
    values = [fires.get(place, 0.0) for place in range(len(tokens))]
    peak = max(fires, key=fires.get)
    return {
        "language": language,
        "position": peak,
        "cut": [False, True],
        "tokens": tokens,
        "activations": values,
    }


TOP = example("fr", ["<bos>", "Le", " contraire", " de", HOSTILE], {2: 1.9, 3: 0.475, 4: 0.95})
WEAK = example("zh", ["小", "的", "反义词", "\n"], {1: 0.6})


def detail(kin):
    return {
        "store": "my store.sqlite",
        "label": "~ contraire",
        "source": "automatic",
        "count": 19,
        "density": 0.0123,
        "largest": LARGEST,
        "mean": 0.8,
        "bins": BINS,
        "groups": [
            {"name": "Top", "low": 1.9, "high": 1.9, "examples": [TOP]},
            {"name": "Interval 1", "low": 0.6, "high": 0.9, "examples": [WEAK, WEAK]},
        ],
        "raised": [["x", 1.0]],
        "lowered": [],
        "rates": RATES,
        "evenness": 0.87,
        "coactive": [],
        "similar": kin,
    }


@pytest.fixture(scope="session")
def known():
    """A drawing whose most influential feature stands at three positions, with what is known of
    it and of the next; of all others nothing."""
    whole = synthetic(n_features=80, n_edges=600)
    ranked = by_influence(whole.nodes, range(len(whole.nodes)))
    features = [i for i in ranked if whole.nodes[i].kind == "feature"]
    nodes = list(whole.nodes)
    first, second, third = (nodes[i] for i in features[:3])
    free = [p for p in range(len(whole.tokens)) if p != first.position]
    for i, position in zip(features[4:6], free[:2], strict=True):
        nodes[i] = replace(
            first,
            id=f"{first.layer}_{first.feature}_{position}",
            position=position,
            activation=0.6 + position,
            influence=nodes[i].influence,
        )
    nodes[features[0]] = replace(first, label="~ contraire", activation=0.85)
    nodes = [replace(n, label="~ contraire") if n.feature == first.feature else n for n in nodes]
    kin = [
        [second.layer, second.feature, 0.75, "elsewhere"],
        [3, 999_999, 0.5, HOSTILE],
    ]
    of = {(first.layer, first.feature): detail(kin), (second.layer, second.feature): detail([])}
    # Edges are kept as they are: none of the three is moved to another layer.
    return replace(whole, nodes=tuple(nodes), details=of), first, second, third


@pytest.fixture
def page(standing, drawing, known):
    standing.tab.set_viewport_size({"width": 1280, "height": 800})
    standing.js("() => { location.hash = ''; }")
    standing.show(known[0])
    standing.complaints.clear()
    yield standing
    standing.tab.set_viewport_size({"width": 1280, "height": 800})
    standing.js("() => { location.hash = ''; }")
    standing.show(drawing)


def go(page, node, more=""):
    page.js("(where) => { location.hash = where; }", f"#node={quote(node.id, safe='')}{more}")
    page.settle()


def texts(page, where):
    return [one.strip() for one in page.tab.locator(f"#panel {where}").all_text_contents()]


def selected(page):
    return page.js("() => circuit.drawing().nodes[circuit.state.selected]?.id ?? null")


def test_examples_show_the_text_with_the_heat_of_every_token(page, known):
    go(page, known[1])
    sections = page.tab.locator("#panel section.meaning")
    assert sections.count() == 2
    shown = sections.nth(0).locator(".examples p").inner_text()
    assert shown == "<bos>Le contraire de<img src=x onerror=alert(1)></script>&amp;\ufffd␤…"
    assert "1.2 % of tokens · largest 1.9 · mean 0.8" in sections.nth(0).inner_text()
    heat = page.js("""() => [...document.querySelectorAll("#panel .examples .heat")].slice(0, 3)
        .map((one) => [one.textContent, one.localName,
            parseFloat(one.style.getPropertyValue("--heat"))])""")
    assert [(text, tag) for text, tag, _ in heat[:2]] == [("contraire", "b"), ("de", "span")]
    shares = [(share - 14) / 56 for _, _, share in heat]
    wanted = [TOP["activations"][place] / LARGEST for place in (2, 3, 4)]
    assert shares == pytest.approx(wanted, abs=0.01)
    assert page.tab.get_attribute("#panel .examples p >> nth=0", "lang") == "fr"
    assert texts(page, ".lang") == ["fr", "zh", "zh"]
    assert sections.nth(1).locator(".examples p").first.inner_text() == "小的反义词⏎…"
    assert page.tab.locator("#panel img, #panel script").count() == 0
    assert page.complaints == []


def test_the_histogram_marks_this_activation_and_says_how_rare_it_is(page, known):
    go(page, known[1])
    heights = page.js("""() => [...document.querySelectorAll("#panel .histogram rect")]
        .map((bar) => Number(bar.getAttribute("height")))""")
    most = max(count for _, _, count in BINS)
    assert heights == pytest.approx([42 * count / most for _, _, count in BINS], abs=0.01)
    inside = math.log(0.85 / 0.7071) / math.log(1.0 / 0.7071)
    below = (4 + 12 * inside) / 19
    said = page.tab.get_attribute("#panel .histogram", "aria-label")
    assert f"stronger than {100 * below:.2g} % of them" in said and "19 activations" in said
    at = page.tab.get_attribute("#panel .histogram path.here", "d")
    assert float(at[1:].split()[0]) == pytest.approx(25 * (1 + inside), abs=0.01)
    assert "here 0.85" in page.tab.inner_text("#panel p.here")
    rates = page.js("""() => [...document.querySelectorAll("#panel .rates li")]
        .map((one) => [one.firstChild.textContent, one.querySelector("i").style.width])""")
    assert rates == [["fr", "100%"], ["en", "50%"], [HOSTILE, "25%"]]


def test_the_same_feature_elsewhere_and_related_ones_are_a_click_away(page, known):
    drawing, first, second, _ = known
    same = sorted(
        (n for n in drawing.nodes if n.feature == first.feature and n.layer == first.layer),
        key=lambda node: node.position,
    )
    go(page, first)
    places = page.tab.locator("#panel .places button")
    assert places.count() == len(same) == 3
    there = next(place for place, node in enumerate(same) if node.id != first.id)
    places.nth(there).press("Enter")
    page.settle()
    assert selected(page) == same[there].id
    assert page.tab.locator("#panel .places button[aria-current]").is_disabled()
    kin = page.tab.locator("#panel section.kin li")
    assert kin.count() == 2
    assert HOSTILE in kin.nth(1).text_content() and "not in this graph" in kin.nth(1).text_content()
    assert kin.nth(1).locator("button").count() == 0
    kin.nth(0).locator("button").click()
    page.settle()
    assert selected(page) == second.id
    assert page.complaints == []


def test_what_is_missing_says_what_to_run(page, known):
    drawing, _, _, third = known
    go(page, third)
    show = f"circuit-tracer features show {third.layer}.{third.feature}"
    assert texts(page, "code.command") == [f"{show} --store 'my store.sqlite'"]
    page.show(replace(drawing, details={}, transcoders="it's mine"))
    build, trace = texts(page, "code.command")
    named = "--model synthetic-2b --transcoders 'it'\\''s mine'"
    assert build == f"circuit-tracer features build {named} --text TEXTS -o features.sqlite"
    assert trace == f"trace PROMPT {named} --features features.sqlite"


def test_a_label_is_given_by_keyboard_kept_searched_and_saved(page, known, tmp_path):
    drawing, first, *_ = known
    go(page, first)
    assert "automatic label" in page.tab.inner_text("#panel .origin")
    page.tab.focus("#stage")
    page.tab.keyboard.press("e")
    assert page.js("() => document.activeElement.id") == "label"
    page.tab.keyboard.type("~ mine")
    page.tab.keyboard.press("Enter")
    assert "begins with ~" in page.tab.inner_text("#notices")
    page.tab.fill("#label", f"  opposite \t {HOSTILE} ")
    page.tab.keyboard.press("Enter")
    page.settle()
    label = f"opposite {HOSTILE.strip()}"
    assert page.tab.text_content("#panel h2") == label
    assert "kept until this page closes" in page.tab.inner_text("#panel .origin")
    assert page.js("() => document.activeElement.dataset.key") == "rename"
    given = page.js("() => circuit.drawing().nodes.map((node) => node.label)")
    assert given.count(label) == 3 and page.tab.locator("#panel img").count() == 0
    assert "label" not in page.tab.url, "the address keeps no text of labels"
    with page.tab.expect_download() as download:
        page.tab.get_by_role("button", name="Save labels").click()
    download.value.save_as(tmp_path / "labels.json")
    found = labels.read(tmp_path / "labels.json")
    assert {key: one.text for key, one in found.items()} == {(first.layer, first.feature): label}
    page.tab.fill("#search", "opposite <img")
    page.settle()
    assert page.tab.inner_text("#panel h3").split("\n")[0].endswith("3")
    page.tab.keyboard.press("Escape")
    go(page, first)
    page.tab.get_by_role("button", name="Label…").click()
    page.tab.fill("#label", "")
    page.tab.keyboard.press("Enter")
    assert page.tab.text_content("#panel h2") == "~ contraire"
    assert page.complaints == []


def test_labels_are_loaded_from_files_of_ours_and_of_neuronpedia(page, known, tmp_path):
    _, first, second, _ = known
    ours = {"labels": [
        {"layer": first.layer, "feature": first.feature, "label": "antonyms", "source": "me"},
        {"layer": 0, "feature": 123_456, "label": "nowhere", "source": "me"},
    ]}  # fmt: skip
    theirs = [
        {"layer": f"{second.layer}-mlp", "index": str(second.feature), "description": HOSTILE},
        {"layer": f"{second.layer}-mlp", "index": "77", "description": " "},
    ]
    (tmp_path / "ours.json").write_text(json.dumps(ours))
    (tmp_path / "theirs.jsonl").write_text("\n".join(map(json.dumps, theirs)))
    (tmp_path / "none.json").write_text('{"labels": [{"layer": 1}]}')
    for name, said in (
        ("ours.json", "1 of 2 labels of ours.json"),
        ("theirs.jsonl", "1 of 1 labels of theirs.jsonl"),
        ("none.json", "none.json holds no labels"),
    ):
        page.tab.set_input_files("#panel input[type=file]", tmp_path / name)
        page.settle()
        assert said in page.tab.inner_text("#notices .notice >> nth=-1")
    go(page, first)
    assert page.tab.text_content("#panel h2") == "antonyms"
    assert "label from me" in page.tab.inner_text("#panel .origin")
    go(page, second)
    assert page.tab.text_content("#panel h2") == HOSTILE.strip()
    assert "Neuronpedia" in page.tab.inner_text("#panel .origin")
    text = page.js("() => circuit.labelsText()")
    (tmp_path / "saved.json").write_text(text, encoding="utf-8")
    saved = {key: one.text for key, one in labels.read(tmp_path / "saved.json").items()}
    assert saved == {
        (first.layer, first.feature): "antonyms",
        (second.layer, second.feature): HOSTILE.strip(),
    }
    assert page.complaints == []


def test_luck_leads_to_features_with_examples(page, known):
    drawing = known[0]
    nodes = tuple(replace(node, label="") for node in drawing.nodes)
    page.show(replace(drawing, nodes=nodes))
    page.tab.get_by_role("button", name="I’m feeling lucky").click()
    page.settle()
    met = {selected(page)}
    page.tab.focus("#stage")
    page.tab.keyboard.press("l")
    page.settle()
    met.add(selected(page))
    keys = {tuple(map(int, one.split("_")[:2])) for one in met}
    assert keys == set(drawing.details), "two features have examples, and luck takes another"
    page.show(drawing)
    for _ in range(3):
        page.tab.keyboard.press("l")
    page.settle()
    node = next(node for node in drawing.nodes if node.id == selected(page))
    assert node.label and not node.label.startswith("~"), "those that people named come first"


def test_the_panel_fits_phones_and_every_part_can_be_touched(page, known):
    for width in (390, 320):
        page.tab.set_viewport_size({"width": width, "height": 800})
        go(page, known[1])
        page.tab.get_by_role("button", name="Label…").click()
        assert page.js("() => document.documentElement.scrollWidth") <= width
        small = page.js("""() =>
            [...document.querySelectorAll("#panel button, #panel input:not(.sr)")]
            .filter((one) => one.getBoundingClientRect().height < 43.5)
            .map((one) => one.textContent)""")
        assert small == []
    assert page.complaints == []


def test_axe_finds_nothing_serious_in_the_panel(page, known):
    script = Path(os.environ.get("CIRCUIT_TRACER_AXE", "axe-core/axe.min.js"))
    if not script.is_file():
        pytest.skip("axe-core is not here; CIRCUIT_TRACER_AXE may name its axe.min.js")
    for theme in ("light", "dark"):
        go(page, known[1], f"&theme={theme}")
        page.tab.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'")
        page.tab.get_by_role("button", name="Label…").click()
        page.js(script.read_text(encoding="utf-8") + "\n() => null")
        page.settle()
        found = page.js("() => axe.run('#side')")["violations"]
        serious = [
            (one["id"], [(node["html"][:160], node["failureSummary"]) for node in one["nodes"]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
        assert serious == []
