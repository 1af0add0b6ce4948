"""The payload: what it refuses, what it keeps, where it puts it, and what it costs."""

from __future__ import annotations

import gzip
import json
from base64 import b64decode
from dataclasses import replace

import numpy as np
import pytest

from circuit_tracer.errors import InputError
from circuit_tracer.view import Drawing, DrawnNode, figure, render
from circuit_tracer.view.drawing import (
    DrawnGroup,
    carried,
    error_share,
    fitted,
    holding,
    start_share,
    strongest_edges,
)
from circuit_tracer.view.layout import layout, rows_of
from circuit_tracer.view.payload import encode, packed
from circuit_tracer.view.wording import literal, shortened, title, visible
from tests.view.conftest import synthetic

EMBEDDING = DrawnNode("E_1_0", "embedding", -1, 0, 1, "a", influence=0.5)
FEATURE = DrawnNode("0_7_0", "feature", 0, 0, 7, "a", influence=0.3, activation=2.0)
LOGIT = DrawnNode("3_9_0", "logit", 2, 0, 9, "b", influence=1.0, probability=1.0)


def tiny(nodes=(EMBEDDING, FEATURE, LOGIT), edges=((0, 1, 1.5), (1, 2, -0.5)), **changes):
    given = {"prompt": "a", "tokens": ("a",), "model": "m", "transcoders": "t", "n_layers": 2}
    return Drawing(nodes=tuple(nodes), edges=tuple(edges), **(given | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"edges": ((0, 3, 1.0),)}, "outside 0 to 2"),
        ({"edges": ((0, 1, float("nan")),)}, "has the weight nan"),
        ({"nodes": (EMBEDDING, EMBEDDING)}, "two nodes of the drawing have the id 'E_1_0'"),
        ({"nodes": (replace(FEATURE, kind="neuron"),)}, "kinds are feature, error, emb"),
        ({"nodes": (replace(FEATURE, position=1),)}, "the prompt has positions 0 to 0"),
        ({"nodes": (replace(FEATURE, layer=3),)}, "layers are -1 \\(embeddings\\) to 2"),
        ({"nodes": (replace(FEATURE, influence=float("inf")),)}, "has the influence inf"),
        ({"groups": (DrawnGroup("g", (0, 3), 0.1),)}, "members \\(0, 3\\); nodes are 0 to 2"),
        ({"groups": (DrawnGroup("g", (), 0.1),)}, "it needs one"),
    ],
)
def test_a_drawing_that_cannot_be_drawn_is_refused_with_its_reason(changes, says):
    with pytest.raises(InputError, match=says):
        tiny(**{"edges": ()} | changes)


def test_holding_keeps_the_smallest_set_that_reaches_the_share():
    features = [
        replace(FEATURE, id=f"f{i}", influence=value)
        for i, value in enumerate((0.1, 0.5, 0.1, 0.3))
    ]
    drawing = tiny(nodes=[*features, EMBEDDING, LOGIT], edges=())
    assert holding(drawing, 0.5) == [1, 4, 5]
    assert holding(drawing, 0.8) == [1, 3, 4, 5]
    assert holding(drawing, 0.81) == [0, 1, 3, 4, 5]
    assert holding(drawing, 1.0) == [0, 1, 2, 3, 4, 5]
    assert set(holding(drawing, 0.3)) <= set(holding(drawing, 0.9))


def test_a_small_drawing_opens_whole_and_a_large_one_does_not(drawing):
    assert start_share(tiny()) == 1.0
    assert start_share(drawing) == 0.8


def test_what_the_edges_of_a_node_carry_is_its_influence():
    """A chain with a fork: half of the output comes from each of two features, and so on up."""
    names = ("E_1_0", "0_1_0", "0_2_0", "1_3_0")
    features = [replace(FEATURE, id=name, layer=int(name[0])) for name in names[1:]]
    influence = dict(zip(names, (0.72, 0.38, 0.34, 0.42), strict=True))
    nodes = [replace(n, influence=influence[n.id]) for n in (EMBEDDING, *features)]
    nodes.append(replace(LOGIT, influence=0.0, probability=0.8))
    edges = ((0, 1, 9.0), (0, 2, -5.0), (1, 3, 1.0), (2, 3, 0.0), (1, 4, 1.7), (2, 4, -1.7),
             (3, 4, 2.1), (3, 4, -2.1))  # fmt: skip
    drawn = tiny(nodes, edges, totals={3: 0.42 / 0.04})
    passed = carried(drawn)
    assert sum(passed[4:]) == pytest.approx(0.8), "all that an output is worth enters it"
    assert passed[:2].tolist() == pytest.approx([0.38, 0.34])
    assert passed[2] == pytest.approx(0.04), "a share of all that enters, drawn or not"
    assert passed[2] + passed[4] == pytest.approx(0.04 + 0.8 * 1.7 / 7.6)
    assert strongest_edges(drawn, range(5), 4) == [0, 1, 6, 7], "not the largest weights"


def test_edges_of_a_graph_without_influence_go_by_weight():
    nodes = [replace(EMBEDDING, influence=0.0), replace(FEATURE, influence=0.0), LOGIT]
    nodes[2] = replace(LOGIT, probability=0.0)
    drawn = tiny(nodes, ((0, 1, 0.5), (1, 2, -2.0), (0, 2, 1.0)))
    assert strongest_edges(drawn, range(3), 3) == [1, 2, 0]


def test_strongest_edges_join_visible_nodes_only(drawing):
    shown = holding(drawing, 0.8)
    chosen = strongest_edges(drawing, shown, 50)
    parts = carried(drawing)[chosen].tolist()
    assert len(chosen) == 50 and parts == sorted(parts, reverse=True)
    assert all({drawing.edges[i][0], drawing.edges[i][1]} <= set(shown) for i in chosen)


def test_error_share_is_what_enters_through_errors():
    error = DrawnNode("0_-1_0", "error", 0, 0, -1, "a", influence=0.25)
    assert error_share(tiny(nodes=(EMBEDDING, error, LOGIT), edges=())) == pytest.approx(1 / 3)
    assert error_share(tiny(nodes=(LOGIT,), edges=())) is None


def test_what_does_not_fit_is_dropped_weakest_first_and_said():
    drawing = synthetic(n_features=300, n_edges=2000)
    kept = fitted(drawing, nodes=100, edges=60)
    assert len(kept.nodes) == 100 and len(kept.edges) == 60
    assert {n.id for n in drawing.nodes if n.kind in ("logit", "embedding")} <= {
        n.id for n in kept.nodes
    }
    weakest = min(n.influence for n in kept.nodes if n.kind == "feature")
    dropped = {n.id for n in drawing.nodes} - {n.id for n in kept.nodes}
    assert max(n.influence for n in drawing.nodes if n.id in dropped) <= weakest
    ids = {(drawing.nodes[s].id, drawing.nodes[t].id, w) for s, t, w in drawing.edges}
    assert all((kept.nodes[s].id, kept.nodes[t].id, w) in ids for s, t, w in kept.edges)
    assert kept.notices[-1] == (
        f"Only the strongest part is drawn: 100 of "
        f"{len(drawing.nodes):,} nodes and 60 of 2,000 edges."
    )
    assert fitted(drawing) is drawing
    names = {g.name: {drawing.nodes[i].id for i in g.members} for g in drawing.groups}
    left = {n.id for n in kept.nodes}
    assert {g.name: {kept.nodes[i].id for i in g.members} for g in kept.groups} == {
        name: members & left for name, members in names.items() if len(members & left) > 1
    }


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 1), (4, 2), (8, 2), (9, 3), (40, 3)])
def test_cells_fill_up_to_three_rows(count, rows):
    assert rows_of(count) == rows


def test_nodes_stand_in_their_column_at_their_layer_and_never_on_each_other(drawing):
    shown = holding(drawing, 1.0)
    places = layout(drawing, shown)
    for index in shown:
        node = drawing.nodes[index]
        left, right = places.columns[node.position]
        assert left < places.x[index] < right
        assert abs(places.y[index] - node.layer) < 0.5
    assert len({(places.x[i], places.y[i]) for i in shown}) == len(shown)
    assert all(a[1] == b[0] for a, b in zip(places.columns, places.columns[1:], strict=False))


def test_a_column_is_as_wide_as_its_fullest_visible_cell_needs(drawing):
    everything = layout(drawing, holding(drawing, 1.0))
    strongest = layout(drawing, holding(drawing, 0.3))
    assert strongest.width < everything.width


def test_the_payload_reads_back_as_the_drawing():
    drawing = synthetic(n_features=40, n_edges=120)
    data = gzip.decompress(b64decode(packed(encode(drawing))))
    length = int.from_bytes(data[:4], "little")
    head, numbers = json.loads(data[4 : 4 + length]), data[4 + length :]
    n = head["n_edges"]
    targets, sources = np.frombuffer(numbers[: 8 * n], "<u4").reshape(2, n)
    weights = np.frombuffer(numbers[8 * n :], "<f4")
    assert head["id"] == [node.id for node in drawing.nodes]
    assert head["groups"] == [
        [g.name, [*g.members], pytest.approx(g.share)] for g in drawing.groups
    ]
    back = {(s, t): w for s, t, w in zip(sources, targets, weights, strict=True)}
    assert back == {(s, t): pytest.approx(w, rel=1e-6) for s, t, w in drawing.edges}


@pytest.mark.parametrize(("features", "edges", "most"), [(540, 8000, 2.6e6), (1830, 40000, 3.4e6)])
def test_the_page_keeps_its_budget(features, edges, most):
    page = render(synthetic(n_features=features, n_edges=edges)).encode()
    assert len(page) <= most


def test_the_same_drawing_gives_the_same_bytes():
    assert render(synthetic(seed=4)) == render(synthetic(seed=4))


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" grand", "grand"),
        ("  ", "␣␣"),
        ("\n\n", "⏎⏎"),
        ("", "∅"),
        ("\u2028", "␤"),
        ("<b>", "<b>"),
        ("\u200b", "∅"),
        ("שלום", "שלום"),
        ("<0xE5>", "<0xE5>"),
        ("\t", "⇥"),
    ],
)
def test_tokens_are_made_visible(token, shown):
    assert visible(token) == shown


def test_words_survive_markup_and_length():
    assert literal("<b>&amp;</b>") == "&lt;b&gt;&amp;amp;&lt;/b&gt;"
    assert shortened("abcdefgh", 5) == "abcd…"
    assert title(replace(FEATURE, promoted=((" big", 1.0), ("\n", 0.5)))) == "says “big”, “⏎”"


def test_the_figure_is_a_complete_picture(drawing):
    drawn = figure(drawing, edges=200)
    shown = holding(drawing, 0.8)
    markers = {t.name: len(t.x) for t in drawn.data if t.mode == "markers"}
    assert sum(markers.values()) == len(shown) and set(markers) == {
        "feature",
        "error",
        "token",
        "output",
    }
    lines = [t for t in drawn.data if t.mode == "lines"]
    assert sum(list(t.x).count(None) for t in lines) == 200
    assert {t.line.dash for t in lines if t.name == "inhibits"} == {"dash"}
    assert {t.line.dash for t in lines if t.name == "excites"} == {"solid"}
    assert sum(bool(t.showlegend) for t in lines) == 2


def test_the_figure_shows_markup_in_tokens_literally():
    hostile = replace(FEATURE, label='<a href="x">go</a>', token="<b>")
    drawn = figure(tiny(nodes=(replace(EMBEDDING, token="<b>"), hostile, LOGIT), tokens=("<b>",)))
    texts = [*drawn.layout.xaxis.ticktext, *(t for d in drawn.data for t in d.text or ())]
    assert drawn.layout.xaxis.ticktext == ("&lt;b&gt;",)
    assert not any("<a" in text for text in texts)


@pytest.mark.parametrize("edges", [0, 600])
def test_the_figure_survives_an_empty_graph(edges):
    figure(tiny(nodes=(), edges=()), edges=edges)
    figure(tiny(edges=()), edges=edges)
