"""What a notebook is given: a figure and a picture by themselves, the page where it is wanted."""

from __future__ import annotations

import json
import re
from html import unescape
from xml.etree import ElementTree

import pytest

from circuit_tracer.comparing.compare import compare
from circuit_tracer.view import Drawing, DrawnNode
from circuit_tracer.view.drawing import strongest_edges
from circuit_tracer.view.notebook import PLOTLY, Shown, circuit_bundle, rounded, table_bundle
from circuit_tracer.view.picture import EDGES, picture
from tests.compare.conftest import _random
from tests.graph.conftest import _toy
from tests.view.conftest import synthetic
from tests.view.test_page_extremes import HOSTILE

SVG = "{http://www.w3.org/2000/svg}"


def test_a_large_circuit_stays_small_in_a_saved_notebook():
    drawing = synthetic(n_features=1000, n_edges=9000)
    bundle = circuit_bundle(drawing, "said", "text")
    assert set(bundle) == {PLOTLY, "text/html", "text/plain"}
    sizes = {kind: len(json.dumps(value)) for kind, value in bundle.items()}
    assert sizes[PLOTLY] < 300_000 and sizes["text/html"] < 200_000, sizes
    assert "<script" not in bundle["text/html"] and "http" not in without_namespace(bundle)


def without_namespace(bundle):
    return bundle["text/html"].replace("http://www.w3.org/2000/svg", "")


def test_the_figure_is_valid_and_keeps_every_point(drawing):
    plotly = pytest.importorskip("plotly.graph_objects")
    from circuit_tracer.view import figure

    whole, plain = figure(drawing, EDGES), rounded(figure(drawing, EDGES))
    again = plotly.Figure(plain)
    assert len(again.data) == len(whole.data)
    for one, other in zip(again.data, whole.data, strict=True):
        assert len(one.x) == len(other.x) and one.name == other.name
        for a, b in zip(one.x, other.x, strict=True):
            assert (a is None) == (b is None) and (a is None or abs(a - b) < 5.01e-4)


def test_the_picture_has_every_shown_node_and_the_strongest_edges(drawing):
    root = ElementTree.fromstring(picture(drawing, edges=50, share=1.0))
    titles = [title for shape in root for title in shape.findall(f"{SVG}title")]
    assert len(titles) == len(drawing.nodes)
    curves = [path for path in root.findall(f"{SVG}path") if "C" in path.get("d")]
    assert len(curves) == 50
    chosen = strongest_edges(drawing, range(len(drawing.nodes)), 50)
    dashed = sum(path.get("stroke-dasharray") is not None for path in curves)
    assert dashed == sum(drawing.edges[i][2] < 0 for i in chosen)
    height = float(root.get("viewBox").split()[3])
    for shape in root.findall(f"{SVG}circle"):
        assert 0 <= float(shape.get("cx")) <= 960 and 0 <= float(shape.get("cy")) <= height


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_words_stay_words(words):
    node = DrawnNode("0_1_0", "feature", 0, 0, 1, words, label=words, influence=0.5)
    out = DrawnNode("2_1_0", "logit", 1, 0, 1, words, influence=1.0, probability=0.5)
    drawing = Drawing(words, (words,), words, words, 1, (node, out), ((0, 1, 1.0),))
    root = ElementTree.fromstring(picture(drawing))
    kinds = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert kinds <= {"svg", "title", "rect", "path", "text", "circle"}
    html = circuit_bundle(drawing, words, words)["text/html"]
    html += table_bundle(words, [words], [[words], [words]], "note", words)["text/html"]
    assert not re.search(
        r"<(?!/?(svg|title|rect|path|text|circle|div|p|code|table|thead|tbody|tr|t[dh]|strong)\b)",
        html,
    )
    frame = Shown(lambda: f"<b>{words}</b>", words, 300)._repr_html_()
    assert frame.count("<") == 2 and frame.count('"') == 8
    (html + frame).encode()  # a notebook is saved as UTF-8


def test_a_circuit_shows_itself(tmp_path):
    circuit = _toy(last_only=True).prune(1.0, 1.0)
    bundle = circuit._repr_mimebundle_(include=None, exclude=None)
    assert bundle["text/plain"] == repr(circuit)
    assert re.fullmatch(r"Circuit\('the prompt': [0-9]+ nodes, [0-9]+ edges\)", repr(circuit))
    assert "is explained towards" in bundle["text/html"]
    names = {name for trace in bundle[PLOTLY]["data"] for name in trace.get("customdata", ())}
    assert names == {node.id for node in circuit.nodes}
    assert "srcdoc=" in circuit.show(400)._repr_html_()
    circuit.save_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert unescape(circuit.show()._repr_html_()).count(page) == 1


def test_a_comparison_shows_itself():
    comparison = compare({"one": _random(1), "<b>": _random(2)})
    bundle = comparison._repr_mimebundle_()
    assert bundle["text/plain"] == repr(comparison)
    assert "<td style='text-align:left'>only &lt;b&gt;</td>" in bundle["text/html"]
    assert f"{100 * comparison.classes['shared'].influence['one']:.1f} %" in bundle["text/html"]
    assert "srcdoc=" in comparison.show()._repr_html_()


class Printer(list):
    """What IPython hands to `_repr_pretty_`."""

    text = list.append


def test_what_a_notebook_prints_can_be_read():
    circuit = _toy(last_only=True).prune(1.0, 1.0)
    printer = Printer()
    circuit.scores._repr_pretty_(printer, False)
    said = printer.pop()
    assert len(said) < 250 and f"replacement={circuit.scores.replacement:.4g}" in said
    for one in circuit.supernodes(min_size=1):
        one._repr_pretty_(printer, False)
        assert len(printer[-1]) < 120 and one.name in printer[-1]
    assert len(printer) >= 1


def test_an_empty_drawing_has_a_picture():
    drawing = Drawing("", ("a",), "m", "t", 2, (), ())
    ElementTree.fromstring(picture(drawing))


def test_the_page_is_made_only_where_it_is_shown():
    made = []
    shown = Shown(lambda: made.append(1) or "<p>page</p>", "small", 500)
    assert "save_html" in repr(shown) and made == []
    frame = shown._repr_html_()
    assert made == [1] and 'sandbox="allow-scripts allow-downloads"' in frame
    assert "allow-same-origin" not in frame and "height:500px" in frame


@pytest.mark.browser
def test_picture_and_page_show_in_a_notebook_without_a_network(browser, tmp_path):
    from circuit_tracer.view import render

    drawing = synthetic(n_features=80, n_edges=300)
    frame = Shown(lambda: render(drawing), drawing.prompt, 600)._repr_html_()
    html = circuit_bundle(drawing, "said", "text")["text/html"] + frame
    (tmp_path / "cell.html").write_text(f"<!doctype html><meta charset=utf-8>{html}")
    context = browser.new_context(viewport={"width": 1000, "height": 900}, offline=True)
    tab, complaints = context.new_page(), []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto((tmp_path / "cell.html").as_uri())
    inside = tab.frame_locator("iframe").locator("html[data-ready=yes]")
    inside.wait_for(timeout=60_000)
    assert tab.locator("svg circle").count() > 50
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1000
    assert [said for said in complaints if "error" in said.lower()] == []
    context.close()
