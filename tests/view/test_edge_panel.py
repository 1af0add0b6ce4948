"""The edge panel in a real browser: what an edge carries, and which heads carry it."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

import pytest

from circuit_tracer.facts import EdgeHeads, HeadScore
from circuit_tracer.view.drawing import fitted
from tests.view.conftest import synthetic

pytestmark = pytest.mark.browser

LAYERS = 26
SHARE = 0.125
SHOWN = {"abs": 6e-4, "rel": 5e-3}  # how a page rounds: three decimals, none from 100 on


def split(weight, crosses):
    """An edge over heads of three layers, and a rest that no listed head carries."""
    residual = 0.0 if crosses else 0.5 * weight
    left = weight - residual
    by_layer = [0.0] * (LAYERS - 2)
    by_layer[3], by_layer[9], by_layer[20] = 0.75 * left, -0.25 * left, 0.5 * left
    return EdgeHeads(
        residual=residual,
        by_layer=tuple(by_layer),
        heads=((3, 1, 0.75 * left, 0), (20, 7, 0.375 * left, 2), (9, 0, -0.25 * left, 1)),
    )


def taken_apart(drawing, edge):
    """The score of an edge's strongest head: a drawn node, a pruned one, a bias, and a rest."""
    ids = [node.id for node in drawing.nodes if node.kind == "feature"]
    side = ((ids[0], 0.75), ("3_424242_1", -0.5), ("bias", 0.25))
    kinds = {"feature": 0.25, "bias": 0.25, "error": 0.125}
    query = drawing.nodes[edge[1]].position
    look = HeadScore(0.625, 0.5, side, side[:2], kinds, {"feature": 0.625}, 7, 0)
    return {(3, 1, query, 0): replace(look, key_side=((ids[0], 0.875), ("E_9_1", -0.25)))}


@pytest.fixture(scope="session")
def headed(drawing):
    """The usual drawing with heads for the stronger half of its edges."""
    strong = sorted(drawing.edges, key=lambda edge: -abs(edge[2]))
    known = strong[: len(strong) // 2]
    at = [node.position for node in drawing.nodes]
    crossing = strongest(drawing)
    return replace(
        drawing,
        looks=taken_apart(drawing, crossing),
        names={"3_424242_1": "<b>pruned</b>"},
        totals={target: abs(weight) / SHARE for _, target, weight in reversed(strong)},
        heads={(s, t): split(weight, at[s] != at[t]) for s, t, weight in known},
    )


@pytest.fixture
def page(standing, drawing, headed):
    standing.tab.set_viewport_size({"width": 1280, "height": 800})
    standing.js("() => { location.hash = ''; }")
    standing.show(headed)
    standing.complaints.clear()
    yield standing
    standing.js("() => { location.hash = ''; }")
    standing.show(drawing)


def strongest(drawing, crosses=True):
    """The strongest edge between positions, or within one."""
    at = [node.position for node in drawing.nodes]
    fitting = [edge for edge in drawing.edges if (at[edge[0]] != at[edge[1]]) == crosses]
    return max(fitting, key=lambda edge: abs(edge[2]))


def address(drawing, edge):
    return "edge=" + ",".join(quote(drawing.nodes[end].id, safe="") for end in edge[:2])


def go(page, where):
    page.js("(where) => { location.hash = '#' + where; }", where)
    page.settle()


def read(text):
    return float(text.replace("−", "-"))


def parts(page):
    rows = page.js("""() => [...document.querySelectorAll("[data-side=heads] li")].map((row) =>
        [row.querySelector(".what > *").textContent, row.querySelector(".value").textContent])""")
    return [(name, read(value)) for name, value in rows]


def chosen(page):
    return page.js("""() => { const { state, drawing } = circuit, e = state.edge, d = drawing();
        return e < 0 ? null : [d.sources[e], d.targets[e]]; }""")


@pytest.mark.parametrize("crosses", [True, False])
def test_a_row_of_a_node_leads_to_its_edge_and_the_heads_sum_to_the_weight(page, headed, crosses):
    source, target, weight = edge = strongest(headed, crosses)
    go(page, f"node={quote(headed.nodes[target].id, safe='')}")
    row = page.tab.locator(f'[data-side=inputs] li:has([data-id="{headed.nodes[source].id}"])')
    row.locator("a.open").click()
    page.settle()
    assert chosen(page) == [source, target]
    assert address(headed, edge) in page.tab.url
    facts = page.tab.inner_text("#panel .facts")
    assert "12 %" in facts or "13 %" in facts
    found = split(weight, crosses)
    listed = parts(page)
    assert [name for name, _ in listed] == [
        "Residual stream",
        *(f"L{layer}·H{head}" for layer, head, _, _ in found.heads),
        "Other heads",
    ]
    wanted = [found.residual, *(part for _, _, part, _ in found.heads)]
    assert [value for _, value in listed[:-1]] == pytest.approx(wanted, **SHOWN)
    assert sum(value for _, value in listed) == pytest.approx(weight, rel=5e-3, abs=3e-3)
    assert read(page.tab.inner_text("#panel .sum .value")) == pytest.approx(weight, **SHOWN)
    held = page.js("""() => {
        const { residual, layers } = circuit.drawing().heads.get(circuit.state.edge);
        return layers.reduce((sum, part) => sum + part, residual); }""")
    assert held == pytest.approx(weight, rel=1e-3)
    assert page.tab.locator(".by-layer rect").count() == len(found.by_layer)
    token = headed.tokens[found.heads[0][3]]
    assert f"looks at “{token}” at 0" in page.tab.inner_text("[data-side=heads]")
    page.tab.locator("[data-side=heads] button").first.click()
    assert page.js("() => circuit.state.column") == found.heads[0][3]
    page.tab.locator("[data-side=heads] button").first.click()
    page.tab.get_by_role("button", name="Back to the node").click()
    assert page.tab.inner_text("#panel h2") != "Edge" and "edge=" not in page.tab.url
    assert page.complaints == []


def test_a_head_says_why_it_looks_there_and_either_side_is_the_score(page, headed):
    edge = strongest(headed)
    go(page, address(headed, edge))
    why = page.tab.locator("#panel [data-key='head 3.1']")
    why.focus()
    page.tab.keyboard.press("Enter")
    page.settle()
    assert "head=3.1" in page.tab.url and why.get_attribute("aria-expanded") == "true"
    assert page.js("() => document.activeElement.dataset.key") == "head 3.1"
    assert page.tab.locator("#panel .look .facts dd").all_inner_texts() == ["+0.625", "50 %"]
    ids = [node.id for node in headed.nodes if node.kind == "feature"]
    wanted = {"query": [0.75, -0.5, 0.25, 0.125], "key": [0.875, -0.25]}
    for side, parts_of_side in wanted.items():
        rows = page.js(
            """(side) => [...document.querySelectorAll(`[data-side=${side}] li`)].map((row) =>
            [row.querySelector(".what").firstChild.textContent,
             row.querySelector(".value").textContent,
             row.querySelector(".bar").classList.contains("negative")])""",
            side,
        )
        assert [read(value) for _, value, _ in rows] == parts_of_side
        assert sum(read(value) for _, value, _ in rows) == 0.625, "they add up to the score"
        assert [low for *_, low in rows] == [value < 0 for value in parts_of_side]
        if side == "query":
            assert [name for name, *_ in rows[1:]] == ["<b>pruned</b>", "Biases", "7 more"]
        else:
            assert rows[1][0] == f"Token “{headed.tokens[1].strip()}”"
    said = page.tab.locator("#panel .look .sum").first.inner_text()
    assert "features +0.250, biases +0.250, errors +0.125" in said and "+0.625" in said
    assert page.tab.locator("#panel .look b").count() == 0
    hash_ = page.js("() => location.hash")
    page.js("() => { location.hash = ''; }")
    page.settle()
    page.js("(hash) => { location.hash = hash; }", hash_)
    page.settle()
    assert page.tab.locator("#panel .look").count() == 1
    assert page.tab.locator(".notice").count() == 0
    page.tab.locator(f"#panel .look [data-id='{ids[0]}']").first.click()
    page.settle()
    assert page.js("() => circuit.drawing().nodes[circuit.state.selected].id") == ids[0]
    assert page.complaints == []


def test_a_score_that_was_not_taken_apart_says_what_to_run(page, headed):
    edge = strongest(headed)
    go(page, address(headed, edge) + "&head=20.7")
    query = headed.nodes[edge[1]].position
    command = f"circuit-tracer query FILE qk --layer 20 --head 7 --query {query} --key 2"
    assert page.tab.inner_text("#panel .look code.command") == command
    assert "--qk all" in page.tab.inner_text("#panel .look")
    go(page, address(headed, edge) + "&head=5.5")
    assert "does not have (head)" in page.tab.inner_text("#notices")


def test_the_address_names_the_edge_and_what_it_does_not_have_is_ignored_aloud(page, headed):
    edge = strongest(headed)
    go(page, address(headed, edge))
    assert chosen(page) == list(edge[:2])
    for wrong in ("edge=nobody,nothing", address(headed, (edge[1], edge[0])), "edge="):
        go(page, wrong)
        assert chosen(page) is None
        assert "does not have (edge)" in page.tab.inner_text("#notices")
    go(page, "")
    assert page.complaints == []


def test_a_click_on_a_curve_opens_the_edge_and_escape_closes_it(page):
    spot = page.js("""() => {
        const c = circuit, path = document.createElementNS("http://www.w3.org/2000/svg", "path");
        const box = document.getElementById("stage").getBoundingClientRect();
        const far = (x, y) => [...c.graph.shown].every((i) => {
            const [a, b] = c.project(i); return Math.hypot(a - x, b - y) > 30; });
        for (const e of c.graph.edges) {
            path.setAttribute("d", c.pathOf(e));
            const at = path.getPointAtLength(path.getTotalLength() / 2);
            if (at.x > 60 && at.x < c.graph.width - 60 && far(at.x, at.y))
                return [box.left + at.x, box.top + at.y];
        }
    }""")
    page.tab.mouse.click(*spot)
    page.settle()
    assert page.tab.inner_text("#panel h2") == "Edge"
    assert page.tab.locator("#overlay .selected-edges path").count() == 1
    page.tab.keyboard.press("Escape")
    page.settle()
    assert chosen(page) is None
    assert page.tab.locator("#overlay .selected-edges").count() == 0
    assert page.complaints == []


def test_an_edge_without_heads_says_what_to_run(page, headed):
    edge = next(edge for edge in headed.edges if edge[:2] not in headed.heads)
    go(page, address(headed, edge))
    said = page.tab.inner_text("#panel")
    ends = [headed.nodes[end].id for end in edge[:2]]
    assert "--heads all" in said
    assert f"circuit-tracer query FILE heads {ends[0]} {ends[1]}" in said
    page.show(replace(headed, heads={}))
    assert "This page was made without heads" in page.tab.inner_text("#panel")


def test_the_panel_fits_a_phone(page, headed):
    page.tab.set_viewport_size({"width": 390, "height": 844})
    for width, edge in ((390, strongest(headed, crosses=False)), (320, strongest(headed))):
        page.tab.set_viewport_size({"width": width, "height": 844})
        go(page, address(headed, edge) + "&head=3.1")
        assert page.tab.locator("#panel .look").count() == 1
        assert page.js("() => document.documentElement.scrollWidth") <= width
    sizes = page.js("""() => [...document.querySelectorAll("#panel button, #panel a")]
        .map((one) => one.getBoundingClientRect().height)""")
    assert min(sizes) >= 44
    assert page.complaints == []


def test_what_does_not_fit_takes_its_heads_along():
    whole = synthetic(n_features=60, n_edges=400)
    some = replace(
        whole,
        totals={target: 2.0 * target for _, target, _ in whole.edges},
        heads={(s, t): split(weight, True) for s, t, weight in whole.edges},
    )
    part = fitted(some, nodes=40, edges=50)
    assert len(part.edges) == len(part.heads) == 50
    old = {node.id: index for index, node in enumerate(some.nodes)}
    for source, target, _ in part.edges:
        ends = old[part.nodes[source].id], old[part.nodes[target].id]
        assert part.heads[source, target] is some.heads[ends]
        assert part.totals[target] == 2.0 * ends[1]


def test_a_saved_picture_shows_the_chosen_edge(page, headed):
    edge = strongest(headed)
    go(page, address(headed, edge))
    count, solid = page.js("""() => { const tree = new DOMParser().parseFromString(
        circuit.svgText(), "image/svg+xml"), nodes = [...tree.querySelectorAll("#nodes > *")];
        return [tree.querySelectorAll("#edges path").length,
                nodes.filter((node) => node.getAttribute("opacity") > 0.5).length]; }""")
    assert (count, solid) == (1, 2)
