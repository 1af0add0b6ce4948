"""The pinned subgraph in a real browser: supernodes made, named, moved and shared by address."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from circuit_tracer.view.drawing import by_influence

pytestmark = pytest.mark.browser

CARDS = """() => [...document.querySelectorAll(".subgraph [data-card]")].map((card) => {
    const box = card.querySelector("rect:last-of-type").getBoundingClientRect();
    return [card.dataset.card, box.left + box.width / 2, box.top + box.height / 2,
            box.left, box.right]; })"""

EDGES = """() => Object.fromEntries([...document.querySelectorAll(".card-edges path")].map((path) =>
    [`${path.dataset.from} → ${path.dataset.to}`, Number(path.dataset.weight)]))"""


def ids(drawing, members):
    return [drawing.nodes[i].id for i in members]


def address(drawing, groups, pins=(), **more):
    parts = ["tab=pinned"]
    if pins:
        parts.append("pins=" + ",".join(ids(drawing, pins)))
    written = [
        f"{quote(name, safe='')}:{','.join(ids(drawing, of))}" for name, of in groups.items()
    ]
    parts.append("groups=" + ";".join(written))
    return "#" + "&".join([*parts, *(f"{key}={value}" for key, value in more.items())])


def visit(page, hash):
    page.js("(hash) => { location.hash = hash; }", hash)
    page.settle()


def state(page):
    return page.js("""() => ({ pins: circuit.state.pins, groups: Object.fromEntries(
        circuit.state.groups.map((group) => [group.name, group.members])) })""")


def drag(page, key, dx, dy):
    cards = {card[0]: card for card in page.js(CARDS)}
    _, x, y, *_ = cards[key]
    page.tab.mouse.move(x, y)
    page.tab.mouse.down()
    page.tab.mouse.move(x + dx / 2, y + dy / 2)
    page.tab.mouse.move(x + dx, y + dy)
    page.tab.mouse.up()
    page.settle()


@pytest.fixture
def grouped(page, drawing):
    """Two supernodes, and the first output loose."""
    chosen = {group.name: group.members for group in drawing.groups[:2]}
    out = [i for i, node in enumerate(drawing.nodes) if node.kind == "logit"]
    visit(page, address(drawing, chosen, by_influence(drawing.nodes, out)[:1]))
    return page


def sums(drawing, cards):
    """Weights between cards, summed by hand."""
    found = {}
    for a, left in cards.items():
        for b, right in cards.items():
            weights = [w for s, t, w in drawing.edges if s in left and t in right and a != b]
            if weights:
                found[f"{a} → {b}"] = sum(weights)
    return found


def test_a_draft_shows_summed_edges(page, drawing):
    page.tab.click("#tab-pinned")
    page.tab.click("[data-key=draft]")
    page.settle()
    now = state(page)
    assert list(now["groups"]) == [group.name for group in drawing.groups[:8]]
    assert all(tuple(now["groups"][g.name]) == g.members for g in drawing.groups[:8])
    inside = {i for members in now["groups"].values() for i in members}
    loose = {drawing.nodes[i].id: [i] for i in now["pins"] if i not in inside}
    expected = sums(drawing, now["groups"] | loose)
    strongest = sorted(expected, key=lambda pair: -abs(expected[pair]))[:80]
    drawn = page.js(EDGES)
    assert drawn == {pair: pytest.approx(expected[pair], rel=1e-5) for pair in strongest}
    cards = page.js(CARDS)
    assert len(cards) == len(now["groups"]) + len(loose)
    for k, (_, _, y, left, right) in enumerate(cards):
        for _, _, other_y, other_left, other_right in cards[:k]:
            apart = abs(y - other_y) > 30 or right < other_left + 1 or other_right < left + 1
            assert apart, "cards stand beside each other"
    panel = page.js("() => document.getElementById('panel').getBoundingClientRect().right")
    assert max(card[4] for card in cards) <= panel


def test_ticked_cards_are_grouped_renamed_and_ungrouped(grouped, drawing):
    page = grouped
    for box in page.tab.locator("#panel .tick-box input").all()[:2]:
        box.check()
    page.tab.click("[data-key=group]")
    first, second = drawing.groups[:2]
    assert state(page)["groups"] == {first.name: [*first.members, *second.members]}
    name = page.tab.get_by_label("Name of the supernode")
    hostile = '<img src=x onerror=alert(1)>:;,&#%"'
    name.fill(hostile)
    name.press("Enter")
    page.settle()
    assert list(state(page)["groups"]) == [hostile]
    assert page.tab.locator("#panel img").count() == 0
    before = state(page)
    page.tab.reload()
    page.tab.wait_for_selector("html[data-ready=yes]")
    page.settle()
    assert state(page) == before, "the address keeps supernodes and pins"
    saved = json.loads(page.js("() => circuit.jsonText()"))["qParams"]
    assert saved["supernodes"] == [[hostile, *ids(drawing, before["groups"][hostile])]]
    assert set(saved["pinnedIds"]) == set(ids(drawing, before["pins"]))
    page.tab.get_by_role("button", name="Ungroup").click()
    assert state(page) == {"groups": {}, "pins": before["pins"]}
    assert page.complaints == []


def test_cards_are_dragged_to_move_and_onto_each_other_to_group(grouped, drawing):
    page = grouped
    first, second = (group.name for group in drawing.groups[:2])
    where = {card[0]: card[1:3] for card in page.js(CARDS)}
    drag(page, first, -40, -15)
    now = {card[0]: card[1:3] for card in page.js(CARDS)}
    assert now[first][1] == pytest.approx(where[first][1] - 15, abs=1.5)
    assert now[second] == pytest.approx(where[second], abs=0.5)
    assert f"moved={quote(first, safe='')}:" in page.tab.url
    hash = "#" + page.tab.url.partition("#")[2]
    visit(page, "")
    visit(page, hash)
    assert {card[0]: card[1:3] for card in page.js(CARDS)} == now, "the address keeps the place"
    drag(page, second, now[first][0] - now[second][0], now[first][1] - now[second][1])
    assert len(state(page)["groups"]) == 1
    assert len(page.js(CARDS)) == 2


def test_the_keyboard_moves_marks_and_unpins_cards(grouped, drawing):
    page, name = grouped, drawing.groups[0].name
    page.tab.locator(f'[data-card="{name}"]').focus()
    before = {card[0]: card[2] for card in page.js(CARDS)}
    page.tab.keyboard.press("ArrowUp")
    page.tab.keyboard.press("ArrowUp")
    page.settle()
    after = {card[0]: card[2] for card in page.js(CARDS)}
    assert after[name] == pytest.approx(before[name] - 24, abs=1.5)
    page.tab.keyboard.press("Enter")
    assert page.tab.locator(".rings .chosen").count() == 3, "its members are marked in the graph"
    page.tab.keyboard.press("Delete")
    assert name not in state(page)["groups"]
    page.tab.keyboard.press("s")
    page.settle()
    assert page.tab.is_visible("#subgraph svg") and page.tab.is_hidden("#stage")
    page.tab.locator("#subgraph .card.logit").click()
    page.settle()
    assert page.tab.is_visible("#stage") and page.js("() => circuit.state.selected >= 0")


def test_a_suggestion_is_pinned_once_and_leaves_the_list(page, drawing):
    visit(page, "#tab=pinned")
    offers = page.tab.locator(".offered button")
    assert offers.count() == len(drawing.groups)
    assert offers.nth(1).locator("bdi").inner_text() == drawing.groups[1].name
    offers.nth(1).click()
    assert state(page)["groups"] == {drawing.groups[1].name: list(drawing.groups[1].members)}
    assert offers.count() == len(drawing.groups) - 1
    page.tab.get_by_role("button", name=f"Unpin {drawing.groups[1].name}").click()
    assert state(page) == {"pins": [], "groups": {}}


def test_members_of_a_supernode_show_where_the_slider_shows_them(grouped, drawing):
    page, group = grouped, drawing.groups[0]
    visit(page, address(drawing, {group.name: group.members}, influence=10))
    seen = page.js("() => [...circuit.graph.shown]")
    assert not set(group.members) <= set(seen)
    page.tab.locator("[data-card]").first.click()
    page.settle()
    assert set(group.members) <= set(page.js("() => [...circuit.graph.shown]"))
