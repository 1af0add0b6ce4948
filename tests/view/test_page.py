"""The page in a real browser: what it shows is true, stays aligned, and answers every hand."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import pytest

from circuit_tracer.view.drawing import by_influence, holding, strongest_edges
from circuit_tracer.view.layout import layout
from circuit_tracer.view.wording import shortened, title
from tests.view.conftest import synthetic

pytestmark = pytest.mark.browser

MARKERS = """() => {
    const c = window.circuit, stage = document.getElementById("stage").getBoundingClientRect();
    const zoom = stage.width / c.graph.width, far = [];
    const traces = [...document.querySelectorAll("#plot .scatterlayer .trace")];
    for (const [kind, trace] of traces.entries()) {
        const name = ["feature", "error", "embedding", "logit"][kind];
        const members = [...c.graph.shown].filter((i) => c.drawing().nodes[i].kind === name);
        const points = trace.querySelectorAll("path.point");
        if (points.length !== members.length)
            return `${name}: ${points.length} markers, ${members.length} nodes`;
        if (name === "logit") continue;
        points.forEach((point, k) => {
            const box = point.getBoundingClientRect(), [x, y] = c.project(members[k]);
            far.push(Math.hypot((box.left + box.right) / 2 - stage.left - x * zoom,
                                (box.top + box.bottom) / 2 - stage.top - y * zoom) / zoom);
        });
    }
    return Math.max(...far);
}"""

INK = """(count) => {
    const c = window.circuit, canvas = document.getElementById("canvas");
    const pen = canvas.getContext("2d");
    const ratio = canvas.width / c.graph.width, { l, t, w, h } = c.graph.frame;
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    let seen = 0, inked = 0;
    for (const e of c.graph.edges) {
        if (seen >= count) break;
        if (c.drawing().weights[e] < 0) continue;  // a dash may be open just there
        path.setAttribute("d", c.pathOf(e));
        const at = path.getPointAtLength(path.getTotalLength() / 2);
        if (at.x < l + 2 || at.x > l + w - 2 || at.y < t + 2 || at.y > t + h - 2) continue;
        seen++;
        if (pen.getImageData(at.x * ratio, at.y * ratio, 1, 1).data[3] > 15) inked++;
    }
    return [seen, inked];
}"""


def aligned(page):
    """Markers stand where the page says that nodes are, and the strongest edges pass there."""
    off = page.js(MARKERS)
    assert not isinstance(off, str), off
    assert off < 0.75
    seen, inked = page.js(INK, 12)
    assert seen == inked > 0


def node_of(drawing, rank):
    features = [i for i, node in enumerate(drawing.nodes) if node.kind == "feature"]
    return by_influence(drawing.nodes, features)[rank]


def choose(page, node):
    page.js("(id) => { location.hash = '#node=' + encodeURIComponent(id); }", node.id)
    page.settle()


def selected(page):
    return page.js("() => circuit.drawing().nodes[circuit.state.selected]?.id ?? null")


def test_nothing_is_fetched_and_nothing_complains(standing):
    assert {url.split(":")[0] for url in standing.requests} <= {"file", "data", "blob"}
    assert standing.complaints == []


def test_counts_are_those_of_the_drawing(page, drawing):
    shown = holding(drawing, 0.8)
    total = len(drawing.nodes)
    facts = page.tab.inner_text("#facts")
    assert f"{total:,} nodes · {len(drawing.edges):,} edges" in facts
    assert page.tab.inner_text("#influence-says") == f"80 %, {len(shown)} of {total} nodes"
    inside = len(strongest_edges(drawing, shown, len(drawing.edges)))
    assert page.tab.inner_text("#edges-says") == f"600 of {inside:,}"
    assert page.js("() => circuit.graph.edges.length") == 600
    chips = page.tab.locator("#prompt .chip").all_inner_texts()
    assert chips == [f"·{t[1:]}" if t.startswith(" ") else t for t in drawing.tokens]


def test_the_edges_first_drawn_are_those_that_carry_most(page, drawing):
    chosen = strongest_edges(drawing, holding(drawing, 0.8), 600)
    ids = [node.id for node in drawing.nodes]
    expected = [(ids[s], ids[t]) for s, t, _ in (drawing.edges[i] for i in chosen)]
    drawn = page.js("""() => { const { nodes, sources, targets } = circuit.drawing();
        return circuit.graph.edges.map((e) => [nodes[sources[e]].id, nodes[targets[e]].id]); }""")
    assert [tuple(pair) for pair in drawn] == expected


@pytest.mark.parametrize("rank", [0, 7, 40])
def test_the_strongest_inputs_and_outputs_are_those_of_the_drawing(page, drawing, rank):
    index = node_of(drawing, rank)
    choose(page, drawing.nodes[index])
    assert page.tab.inner_text("#panel h2") == title(drawing.nodes[index])
    for side, here, there in (("inputs", 1, 0), ("outputs", 0, 1)):
        edges = sorted((e for e in drawing.edges if e[here] == index), key=lambda e: -abs(e[2]))[:5]
        rows = page.js(
            """(side) => [...document.querySelectorAll(`[data-side=${side}] li button`)]
            .slice(0, 5).map((row) => [row.dataset.id, row.lastChild.textContent])""",
            side,
        )
        assert [row[0] for row in rows] == [drawing.nodes[e[there]].id for e in edges]
        assert [float(row[1].replace("−", "-")) for row in rows] == pytest.approx(
            [e[2] for e in edges], abs=6e-4
        )


def test_python_and_the_page_lay_nodes_out_alike(page, drawing):
    for share in (80, 40):
        page.js("(share) => { location.hash = '#influence=' + share; }", share)
        page.settle()
        shown = holding(drawing, share / 100)
        places = layout(drawing, shown)
        x, y = page.js("() => [[...circuit.graph.layout.x], [...circuit.graph.layout.y]]")
        assert [x[i] for i in shown] == pytest.approx([places.x[i] for i in shown])
        assert [y[i] for i in shown] == pytest.approx([places.y[i] for i in shown])


def test_markers_and_edges_stay_together(page):
    aligned(page)
    page.tab.mouse.move(500, 400)
    for _ in range(4):
        page.tab.mouse.wheel(0, -120)
    page.settle()
    assert "view=" in page.tab.url
    aligned(page)
    page.tab.mouse.down()
    page.tab.mouse.move(430, 470, steps=4)
    page.tab.mouse.up()
    page.settle()
    aligned(page)
    assert selected(page) is None, "a drag is not a click"
    page.tab.set_viewport_size({"width": 1000, "height": 640})
    page.settle()
    aligned(page)
    page.tab.click("#theme")
    page.settle()
    aligned(page)


MOVING = """async (steps) => {
    const stage = document.getElementById("stage"), far = [], c = window.circuit;
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    for (const [deltaX, deltaY] of steps) {
        stage.dispatchEvent(new WheelEvent("wheel", { deltaX, deltaY, clientX: 500, clientY: 400,
            bubbles: true, cancelable: true }));
        await frame();
        await frame();
        const box = stage.getBoundingClientRect(), kinds = ["feature", "error", "embedding"];
        const nodes = kinds.flatMap((kind) =>
            [...c.graph.shown].filter((i) => c.drawing().nodes[i].kind === kind));
        const points = [...document.querySelectorAll("#plot path.point")];
        far.push(Math.max(...nodes.map((i, k) => {
            const at = points[k].getBoundingClientRect(), [x, y] = c.project(i);
            return Math.hypot((at.left + at.right) / 2 - box.left - x,
                              (at.top + at.bottom) / 2 - box.top - y);
        })));
    }
    return [Math.max(...far), c.busy()]; }"""


@pytest.mark.parametrize("errors", [None, 0])
def test_markers_follow_while_the_picture_moves(page, errors):
    if errors is not None:
        page.show(synthetic(120, 900, n_errors=errors))
    off, moving = page.js(MOVING, [[0, -300], [40, 0], [25, 0], [0, -90], [-30, 0], [0, 50]])
    assert off < 0.75 and moving, "before plotly has heard of it"
    page.settle()
    assert page.js(MOVING, [[20, 0]])[0] < 0.75


def test_a_scaled_parent_does_not_scale_the_canvas(page):
    page.js("() => { document.body.style.transform = 'scale(0.5)'; }")
    page.tab.set_viewport_size({"width": 1100, "height": 700})
    page.settle()
    width, client, ratio = page.js("""() => { const c = document.getElementById("canvas");
        return [c.width, c.clientWidth, devicePixelRatio]; }""")
    assert width == round(client * ratio)
    aligned(page)


def test_pruned_nodes_leave_no_markers(page, drawing):
    page.js("() => { location.hash = '#influence=30'; }")
    page.settle()
    assert page.tab.locator("#plot path.point").count() == len(holding(drawing, 0.3))


def test_output_names_keep_their_distance_and_stay_inside(page):
    for size in ((1280, 800), (390, 800)):
        page.tab.set_viewport_size({"width": size[0], "height": size[1]})
        page.settle()
        places = page.js("""() => [...document.querySelectorAll(".outputs text")].map((text) =>
            [Number(text.dataset.x), text.getBoundingClientRect().right])""")
        xs = sorted(x for x, _ in places)
        assert len(xs) == 5
        assert all(b - a >= 15.9 for a, b in zip(xs, xs[1:], strict=False))
        assert max(right for _, right in places) <= size[0]


def test_names_of_nodes_do_not_overlap(page):
    boxes = page.js("""() => [...document.querySelectorAll(".names text")].map((text) => {
        const b = text.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; })""")
    assert len(boxes) >= 8
    for k, a in enumerate(boxes):
        for b in boxes[:k]:
            assert not (a[0] < b[2] - 1 and b[0] < a[2] - 1 and a[1] < b[3] - 4 and b[1] < a[3] - 4)


def test_neither_wheel_nor_pinch_leaves_the_data(page):
    home = page.js("() => circuit.state.view")
    page.tab.mouse.move(600, 400)
    for _ in range(3):
        page.tab.mouse.wheel(0, 3000)
    page.settle()
    assert page.js("() => circuit.state.view.y") == pytest.approx(home["y"])
    assert page.js("() => circuit.state.view.x") == pytest.approx(home["x"])
    for _ in range(4):
        page.tab.mouse.wheel(0, -2000)
    page.settle()
    view = page.js("() => circuit.state.view")
    assert 0.02 < (view["x"][1] - view["x"][0]) / (home["x"][1] - home["x"][0]) < 0.03
    page.tab.keyboard.press("0")
    page.settle()
    assert page.js("() => circuit.state.view.x") == pytest.approx(home["x"])


def fingers(page):
    """A function that puts fingers on the screen as the browser would hand them over."""
    client = page.tab.context.new_cdp_session(page.tab)

    def put(kind, *points):
        touches = [{"x": x, "y": y, "id": k} for k, (x, y) in enumerate(points)]
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    return put


def test_pinch_zooms_and_long_press_pins(page, drawing):
    node = drawing.nodes[node_of(drawing, 0)]
    put = fingers(page)
    put("touchStart", page.at(node.id))
    page.settle(800)
    put("touchEnd")
    page.settle()
    assert f"pins={quote(node.id, safe='')}" in page.tab.url
    before = page.js("() => circuit.state.view.x")
    put("touchStart", (400, 400), (500, 400))
    for reach in (20, 60, 100):
        put("touchMove", (400 - reach, 400), (500 + reach, 400))
        page.settle(60)
    put("touchEnd")
    page.settle()
    after = page.js("() => circuit.state.view.x")
    assert after[1] - after[0] < 0.6 * (before[1] - before[0])
    aligned(page)


def test_mouse_touch_and_list_select_the_same_node(page, drawing):
    node = drawing.nodes[node_of(drawing, 1)]
    page.tab.mouse.click(*page.at(node.id))
    page.settle()
    assert selected(page) == node.id
    assert page.tab.url.endswith(f"#node={quote(node.id, safe='')}")
    page.tab.keyboard.press("Escape")
    page.settle()
    assert selected(page) is None
    page.tab.touchscreen.tap(*page.at(node.id))
    page.settle()
    assert selected(page) == node.id
    page.tab.keyboard.press("Escape")
    page.tab.locator(f'#panel [data-id="{node.id}"]').click()
    page.settle()
    assert selected(page) == node.id
    drawn = page.js("""() => [document.querySelectorAll("[data-edge]").length,
        document.getElementById("stage").classList.contains("focus")]""")
    assert 0 < drawn[0] <= 120 and drawn[1] is True


def test_walking_on_and_back(page, drawing):
    first = drawing.nodes[node_of(drawing, 0)]
    choose(page, first)
    page.tab.locator("[data-side=outputs] .rows button").first.click()
    page.settle()
    second = selected(page)
    assert second not in (None, first.id)
    page.tab.get_by_role("button", name="Back").click()
    page.settle()
    assert selected(page) == first.id
    page.tab.get_by_role("button", name="Forward").click()
    assert selected(page) == second
    page.tab.keyboard.press("b")
    assert selected(page) == first.id
    page.settle()
    page.tab.go_back()
    page.settle()
    assert selected(page) == second, "the browser's own Back works too"
    assert not page.tab.get_by_role("button", name="Forward").is_enabled()
    page.tab.keyboard.press("Escape")
    page.tab.keyboard.press("b")
    assert selected(page) == second, "after Clear, Back leads to what was cleared"


def best_steps(drawing, index):
    """Nodes of the strongest path from a token through a node to an output, by all sums at hand."""
    nodes, into = drawing.nodes, defaultdict(float)
    for _, target, weight in drawing.edges:
        into[target] += abs(weight)
    share = {(s, t): abs(w) / into[t] for s, t, w in drawing.edges}
    after = {i: (n.probability, [i]) for i, n in enumerate(nodes) if n.kind == "logit"}
    before = {i: (1.0, [i]) for i, n in enumerate(nodes) if n.kind == "embedding"}
    rising = sorted(share, key=lambda edge: nodes[edge[1]].layer)
    for s, t in rising:
        if s in before and before[s][0] * share[s, t] > before.get(t, (0.0,))[0]:
            before[t] = before[s][0] * share[s, t], [*before[s][1], t]
    for s, t in sorted(share, key=lambda edge: -nodes[edge[0]].layer):
        if t in after and after[t][0] * share[s, t] > after.get(s, (0.0,))[0]:
            after[s] = after[t][0] * share[s, t], [s, *after[t][1]]
    return [*before.get(index, (0, [index]))[1], *after.get(index, (0, [index]))[1][1:]]


@pytest.mark.parametrize("rank", [0, 11])
def test_the_strongest_path_is_that_of_the_drawing(page, drawing, rank):
    index = node_of(drawing, rank)
    choose(page, drawing.nodes[index])
    steps = best_steps(drawing, index)
    assert len(steps) > 2
    shown = page.tab.locator("#panel .way .step").all_inner_texts()
    assert shown == [shortened(title(drawing.nodes[i]), 22) for i in steps]
    drawn = page.js("() => document.querySelectorAll('#overlay .way').length")
    seen = set(page.js("() => [...circuit.graph.shown]"))
    assert drawn == sum({a, b} <= seen for a, b in pairwise(steps))


def test_keyboard_alone_is_enough(page, drawing):
    page.tab.focus("#stage")
    page.tab.keyboard.press("ArrowUp")
    page.settle()
    top = drawing.nodes[
        by_influence(drawing.nodes, [i for i, n in enumerate(drawing.nodes) if n.kind == "logit"])[
            0
        ]
    ]
    assert selected(page) == top.id
    assert page.tab.is_visible("#tip")
    page.tab.keyboard.press("[")
    page.settle()
    index = drawing.nodes.index(top)
    strongest = max((e for e in drawing.edges if e[1] == index), key=lambda e: abs(e[2]))
    assert selected(page) == drawing.nodes[strongest[0]].id
    assert "inputs" in page.tab.inner_text("#live")
    page.tab.keyboard.press("p")
    page.tab.keyboard.press("ArrowLeft")
    page.settle()
    assert page.tab.inner_text("#tab-pinned") == "Pinned 1"
    page.tab.keyboard.press("/")
    page.tab.keyboard.type("ANTONYM")
    page.settle()
    matches = [n for n in drawing.nodes if "antonym" in n.label]
    assert page.tab.inner_text("#panel h3") == f"“ANTONYM” {len(matches)}"
    page.tab.keyboard.press("Escape")
    page.tab.keyboard.press("?")
    assert page.tab.is_visible("#keys")
    page.tab.keyboard.press("Escape")
    assert not page.tab.is_visible("#keys")


def test_hover_names_the_node(page, drawing):
    node = drawing.nodes[node_of(drawing, 2)]
    page.tab.mouse.move(*page.at(node.id))
    page.settle()
    assert page.tab.inner_text("#tip strong") == title(node)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("influence", "55"),
        ("edges", "120"),
        ("tab", "about"),
        ("theme", "dark"),
        ("q", "petit%20%2F"),
        ("show", "table"),
        ("view", "5,30,2,12.5"),
        ("show", "table&sort=-layer"),
        ("show", "subgraph"),
        ("column", "3"),
    ],
)
def test_every_key_of_the_address_goes_round(page, name, value):
    page.js("(hash) => { location.hash = hash; }", f"#{name}={value}")
    page.settle()
    assert page.tab.locator(".notice").count() == 0
    page.js("() => document.querySelector('#influence').dispatchEvent(new Event('input'))")
    page.settle(400)
    assert f"{name}={value}" in page.tab.url, "written again from the state"


def test_node_and_pins_go_round(page, drawing):
    a, b, c = (drawing.nodes[node_of(drawing, k)].id for k in (3, 4, 200))
    page.js("(hash) => { location.hash = hash; }", f"#node={a}&pins={b},{c}")
    page.settle()
    assert selected(page) == a
    assert page.js("() => circuit.state.pins.map((i) => circuit.drawing().nodes[i].id)") == [b, c]
    assert page.js("() => circuit.graph.shown.has(circuit.state.pins[1])"), "pins are always shown"
    page.tab.click("#tab-about")
    page.settle()
    assert f"node={a}&pins={b},{c}&tab=about" in page.tab.url


@pytest.mark.parametrize(
    "hash",
    [
        "#node=nobody",
        "#influence=900",
        "#edges=-1",
        "#view=1,0,NaN,2",
        "#tab=<b>",
        "#%E0%A4%A",
        "#q=%E0",
        "#theme=pink&__proto__=1",
        "#pins=a,b",
        "#groups=name",
        "#groups=name:nobody",
        "#moved=x:1,2000",
        "#feature=3",
        "#column=99",
        "#show=table&sort=colour",
        "#section=%3Cb%3E",
        "#section=nowhere",
    ],
)
def test_a_malformed_address_is_ignored_with_a_notice(page, hash):
    page.js("(hash) => { location.hash = hash; }", hash)
    page.settle()
    assert page.tab.locator(".notice").count() == 1
    state = page.js("() => circuit.state")
    assert (state["influence"], state["edges"], state["selected"]) == (80, 600, -1)
    assert page.complaints == []


def test_the_table_holds_the_same_nodes(page, drawing):
    page.tab.click("#as-table")
    assert page.tab.is_hidden("#stage")
    shown = by_influence(drawing.nodes, holding(drawing, 0.8))
    names = page.tab.locator("#table tbody th").all_inner_texts()
    assert [name.strip() for name in names] == [title(drawing.nodes[i]) for i in shown[:200]]
    page.tab.click("[data-sort=layer]")
    layers = [drawing.nodes[i].layer for i in shown]
    cells = page.tab.locator("#table tbody td:nth-child(3)").all_inner_texts()
    assert cells == [f"L{n}" if n < 26 else "Out" for n in sorted(layers, reverse=True)[:200]]
    page.tab.click("[data-sort=layer]")
    assert page.tab.locator("#table tbody td:nth-child(3)").first.inner_text() == "Emb"
    assert page.tab.locator("[aria-sort]").get_attribute("aria-sort") == "ascending"
    page.tab.click("[data-sort=influence]")
    page.tab.locator("#table tbody button").nth(3).click()
    assert selected(page) == drawing.nodes[shown[3]].id
    page.tab.click("#as-table")
    page.settle()
    aligned(page)


def test_the_svg_parses_and_has_every_edge_and_node(page, drawing):
    tree = ElementTree.fromstring(page.js("() => circuit.svgText()"))
    space = {"s": "http://www.w3.org/2000/svg"}
    paths = tree.findall(".//s:g[@id='edges']/s:path", space)
    assert len(paths) == 600 and all(p.get("d").startswith("M") for p in paths)
    chosen = strongest_edges(drawing, holding(drawing, 0.8), 600)
    negative = sum(drawing.edges[i][2] < 0 for i in chosen)
    assert sum(p.get("stroke-dasharray") is not None for p in paths) == negative
    assert len(list(tree.find(".//s:g[@id='nodes']", space))) == len(holding(drawing, 0.8))


def test_saved_edges_and_graph_are_those_of_the_drawing(page, drawing):
    rows = list(csv.DictReader(io.StringIO(page.js("() => circuit.csvText()"))))
    weight = {(drawing.nodes[s].id, drawing.nodes[t].id): w for s, t, w in drawing.edges}
    assert {(r["source"], r["target"]): float(r["weight"]) for r in rows} == {
        pair: pytest.approx(w, rel=1e-6) for pair, w in weight.items()
    }
    graph = json.loads(page.js("() => circuit.jsonText()"))
    assert len(graph["links"]) == len(drawing.edges) and len(graph["nodes"]) == len(drawing.nodes)
    assert graph["metadata"]["prompt_tokens"] == list(drawing.tokens)
    outputs = [n["clerp"] for n in graph["nodes"] if n["feature_type"] == "logit"]
    assert 'Output " grand" (p=0.620)' in outputs
    with page.tab.expect_download() as download:
        page.tab.click("#save summary")
        page.tab.click("[data-save=svg]")
    assert download.value.suggested_filename == "bos-Le-contraire-de-petit-est-le-plus.svg"


def test_the_png_is_the_picture_in_double_size(page):
    page.tab.click("#save summary")
    with page.tab.expect_download() as download:
        page.tab.click("[data-save=png]")
    data = Path(download.value.path()).read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    size = [int.from_bytes(data[at : at + 4], "big") for at in (16, 20)]
    assert size == [2 * n for n in page.js("() => [circuit.graph.width, circuit.graph.height]")]


def test_a_feature_and_a_section_have_links_of_their_own(page, drawing):
    node = drawing.nodes[node_of(drawing, 5)]
    page.js("(hash) => { location.hash = hash; }", f"#feature={node.layer}.{node.feature}")
    page.settle()
    assert selected(page) == node.id
    link = page.tab.locator("#panel h3 .link").last
    link.click()
    page.settle()
    section = page.tab.url.rpartition("&section=")[2]
    assert page.js("() => document.getElementById('section') !== null") and section
    assert page.tab.locator(".notice").count() == 0
    assert page.js("""() => { const box = document.getElementById("section");
        const at = box.getBoundingClientRect(), panel = document.getElementById("panel");
        return at.top < innerHeight && at.bottom > panel.getBoundingClientRect().top; }""")


def test_it_prints_on_a4_landscape(page):
    page.tab.emulate_media(media="print")
    hidden = page.js("""() => ["#tools", "#sliders", "#zoom", "#tabs"].filter(
        (name) => getComputedStyle(document.querySelector(name)).display !== "none")""")
    sizes = re.findall(
        rb"/MediaBox ?\[0 0 ([\d.]+) ([\d.]+)\]", page.tab.pdf(prefer_css_page_size=True)
    )
    page.tab.emulate_media(media="screen")
    assert hidden == []
    assert {(round(float(w)), round(float(h))) for w, h in sizes} == {(842, 595)}


def test_wishes_of_the_system_are_heard(open_page, drawing):
    page = open_page(drawing, reduced_motion="reduce", forced_colors="active", color_scheme="dark")
    found = page.js("""() => [
        getComputedStyle(document.getElementById("canvas")).transitionDuration,
        getComputedStyle(document.querySelector("#tabs [aria-selected=true]")).outlineStyle,
        document.documentElement.dataset.theme]""")
    assert found == ["0s", "solid", "dark"]


def test_axe_finds_nothing_serious(page, drawing):
    script = Path(os.environ.get("CIRCUIT_TRACER_AXE", "axe-core/axe.min.js"))
    if not script.is_file():
        pytest.skip("axe-core is not here; CIRCUIT_TRACER_AXE may name its axe.min.js")
    page.tab.evaluate(script.read_text(encoding="utf-8"))
    members = [",".join(drawing.nodes[i].id for i in group.members) for group in drawing.groups[:2]]
    pinned = f"#tab=pinned&groups=a:{members[0]};b:{members[1]}&show="
    addresses = ("#theme=dark", "#q=petit", "#tab=about", "#show=table", pinned + "graph")
    for address in ("", *addresses, pinned + "subgraph&theme=dark"):
        page.js("(hash) => { location.hash = hash; }", address)
        page.settle()
        found = page.js("() => axe.run()")["violations"]
        serious = [
            (v["id"], [n["target"] for n in v["nodes"]][:4])
            for v in found
            if v["impact"] in ("serious", "critical")
        ]
        assert serious == [], address


def test_everything_that_acts_has_a_name(page):
    unnamed = page.js("""() => [...document.querySelectorAll("#app :is(button, input, a, section)")]
        .filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length || e.title))
        .map((e) => e.outerHTML)""")
    assert unnamed == []
    assert page.tab.locator("[role=tab][aria-selected=true]").all_inner_texts() == ["Node"]
    page.tab.focus("#tab-node")
    page.tab.keyboard.press("ArrowLeft")
    assert page.js("() => document.activeElement.id") == "tab-about"
