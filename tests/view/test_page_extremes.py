"""Pages that are opened for one purpose: phones, strange graphs, hostile words, missing powers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from circuit_tracer.view import Drawing, DrawnNode, render
from circuit_tracer.view.drawing import DrawnGroup
from tests.view.conftest import synthetic

pytestmark = pytest.mark.browser

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!--",
    "\"quoted' `${x}`",
    "a\u2028b",
    "👩\u200d🔬",
    "שלום עולם",
    "语言模型",
    "<0xE5>",
    "<b>bold</b>",
    '<a href="x">',
    "%{x}",
    "$\\alpha$",
    "\\u003c",
    "{{payload}}",
    "&amp;",
    "\ud83d",
    "\0",
)


def test_phones_scroll_down_but_never_sideways(open_page, drawing):
    page = open_page(drawing, width=390, height=844, has_touch=True, is_mobile=True)
    for width in (390, 320):
        page.tab.set_viewport_size({"width": width, "height": 700})
        page.settle()
        for tab in ("node", "pinned", "search", "about"):
            page.tab.click(f"#tab-{tab}")
            if tab == "pinned" and width == 390:
                page.tab.click("[data-key=draft]")
                page.settle()
            assert page.js("() => document.documentElement.scrollWidth") <= width, tab
            assert too_small(page) == [], tab
        page.js("() => { location.hash += '&show=subgraph'; }")
        page.settle()
        assert page.tab.locator("#subgraph .card").count() > 8
        assert page.js("() => document.documentElement.scrollWidth") <= width
        page.js("() => { location.hash = location.hash.replace('&show=subgraph', ''); }")
        page.settle()
        page.tab.click("#tab-node")
        page.tab.locator("#panel .row").nth(2).click()
        page.settle()
        assert page.js("() => document.documentElement.scrollWidth") <= width
        assert too_small(page) == []
        page.tab.keyboard.press("Escape")
        page.settle()


def too_small(page):
    """What a finger would miss; a box to tick is as large as the label around it."""
    return page.js("""() => [...document.querySelectorAll("button, summary, input, #app a")]
        .map((e) => e.closest("label.tick-box") ?? e)
        .filter((e) => e.offsetParent && !e.matches(".skip, .sr"))
        .map((e) => [e.id || e.className || e.textContent, e.offsetHeight])
        .filter(([, high]) => high < 43.5)""")


def test_hostile_words_are_shown_literally(open_page):
    drawing = hostile()
    page = open_page(drawing)
    assert page.complaints == []
    assert page.tab.locator("img, #app script, .notice b").count() == 0
    assert page.js("() => circuit.drawing().tokens") == list(HOSTILE)
    assert page.tab.inner_text(".notice span") == "<img src=x onerror=alert(1)>"
    names = page.tab.locator("#panel .row .what > bdi").all_text_contents()
    assert set(HOSTILE[:11]) <= set(names)
    ticks = page.tab.locator(".tokens-axis text").all_text_contents()
    assert "<b>bold</b>" in ticks and "</script><s…" in ticks
    for tab in ("about", "search", "pinned"):
        page.tab.click(f"#tab-{tab}")
    page.tab.click(".offered button")
    assert page.tab.get_by_label("Name of the supernode").input_value() == HOSTILE[0]
    assert HOSTILE[0] in page.tab.locator(".card title").all_text_contents()[0]
    assert page.tab.locator("img, #app script").count() == 0
    assert (
        page.js("""() => new DOMParser().parseFromString(circuit.svgText(), "image/svg+xml")
        .querySelector("parsererror")?.textContent ?? null""")
        is None
    )
    assert page.complaints == []


def hostile():
    nodes = [
        DrawnNode(
            f"0_{k}_{k}",
            "feature",
            0,
            k,
            k,
            word,
            label=word,
            influence=1 / (k + 1),
            activation=1.0,
            promoted=((word, 1.0),),
            suppressed=((word, -1.0),),
        )
        for k, word in enumerate(HOSTILE)
    ]
    nodes += [DrawnNode("2_9_0", "logit", 1, 0, 9, HOSTILE[0], probability=0.5, influence=0.5)]
    edges = tuple((k, len(HOSTILE), 0.1 * (k + 1)) for k in range(len(HOSTILE)))
    return Drawing(
        "".join(HOSTILE),
        HOSTILE,
        "<i>m</i>",
        "t</style>",
        1,
        tuple(nodes),
        edges,
        groups=(DrawnGroup(HOSTILE[0], (0, 1), 0.5),),
        about={"<b>": "</script>"},
        notices=("<img src=x onerror=alert(1)>",),
    )


def bare(node_kinds=("embedding",), tokens=("one",)):
    made = {
        "embedding": DrawnNode("E_1_0", "embedding", -1, 0, 1, "one"),
        "logit": DrawnNode("5_1_0", "logit", 4, 0, 1, "two", probability=0.9, influence=0.9),
    }
    return Drawing("one", tokens, "m", "", 4, tuple(made[kind] for kind in node_kinds), ())


STRANGE = {
    "one node": bare,
    "no nodes": lambda: bare(()),
    "no edges": lambda: bare(("embedding", "logit")),
    "one token, all negative": lambda: synthetic(60, 200, tokens=("seul",), negative=1.1),
    "200 tokens": lambda: synthetic(300, 2000, tokens=tuple(f" mot{k}" for k in range(200))),
    "no influence": lambda: replace(
        (d := synthetic(30, 60)), nodes=tuple(replace(n, influence=0.0) for n in d.nodes)
    ),
}


@pytest.mark.parametrize("which", STRANGE)
def test_strange_graphs_are_drawn_without_complaint(page, which):
    drawing = STRANGE[which]()
    page.show(drawing)
    drawn = page.tab.locator("#plot path.point").count()
    assert page.js("() => circuit.graph.shown.size") == drawn
    page.tab.focus("#stage")
    for key in ("ArrowUp", "[", "]", "ArrowLeft", "p", "+", "0"):
        page.tab.keyboard.press(key)
    page.settle()
    assert (page.js("() => circuit.state.selected") >= 0) == bool(drawing.nodes)
    assert page.complaints == []


def test_a_long_prompt_pans_instead_of_shrinking(page):
    page.show(synthetic(300, 2000, tokens=tuple(f" mot{k}" for k in range(200))))
    view, width, frame = page.js("""() => { const g = circuit.graph;
        return [circuit.state.view.x, g.layout.width, g.frame.w]; }""")
    assert frame / (view[1] - view[0]) * width / 200 >= 27.9
    assert view[1] == pytest.approx(width), "it opens at its end, where the outputs are"
    assert page.js("() => document.documentElement.scrollWidth") <= 1280
    page.tab.locator("#prompt .chip").first.click()
    page.settle()
    assert page.js("() => circuit.state.view.x[0]") == 0


def test_a_graph_that_only_inhibits_is_drawn_dashed(page):
    page.show(STRANGE["one token, all negative"]())
    assert page.js("() => circuit.drawing().weights.every((weight) => weight < 0)")
    assert page.js("() => circuit.svgText().match(/stroke-dasharray/g).length") == page.js(
        "() => circuit.graph.edges.length"
    )


def test_what_was_dropped_is_said(page):
    page.show(synthetic(5200, 3000, n_layers=12))
    assert page.tab.inner_text(".notice span").startswith("Only the strongest part is drawn: 5,000")
    assert page.js("() => circuit.drawing().nodes.length") == 5000


@pytest.mark.parametrize("missing", ["javascript", "DecompressionStream"])
def test_what_cannot_be_drawn_can_be_read(browser, tmp_path, drawing, missing):
    path = tmp_path / "page.html"
    path.write_text(render(drawing), encoding="utf-8")
    context = browser.new_context(java_script_enabled=missing != "javascript", offline=True)
    tab = context.new_page()
    if missing != "javascript":
        tab.add_init_script("delete window.DecompressionStream")
    tab.goto(path.as_uri())
    text = tab.locator("#plain").inner_text()
    assert drawing.prompt in text and "grand 62.0%" in text and "Most influential features" in text
    assert ("scripts are off" if missing == "javascript" else "cannot unpack") in text
    assert tab.locator("#app").is_hidden()
    context.close()
