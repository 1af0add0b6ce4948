"""Drawings to look at, and pages opened to look at them."""

from __future__ import annotations

import random

import pytest

from circuit_tracer.view import Drawing, DrawnNode, render
from circuit_tracer.view.drawing import DrawnGroup, fitted
from circuit_tracer.view.payload import encode, packed

FRENCH = (
    "<bos>",
    "Le",
    " contraire",
    " de",
    " «",
    " petit",
    " »",
    " est",
    " «",
    " le",
    " plus",
    " «",
)
OUTPUTS = ((" grand", 0.62), (" petit", 0.11), (" gros", 0.07), (" plus", 0.05), (" large", 0.03))
NAMES = (
    "antonym of",
    "petit / small",
    "quote opens",
    "comparative",
    "adjective slot",
    "French context",
    "size adjective",
    "determiner",
    "after « predict word",
    "opposite relation",
    "Romance function words",
    "large, scale words",
    "grand (FR)",
    "",
)


def synthetic(
    n_features=560,
    n_edges=8000,
    tokens=FRENCH,
    outputs=OUTPUTS,
    n_layers=26,
    seed=0,
    n_errors=None,
    negative=0.3,
    **changes,
) -> Drawing:
    """A random graph with the shape of a real one: a DAG, heavy tails, late positions busier."""
    rng = random.Random(seed)
    last = len(tokens) - 1
    weights = [1 + (4 if p == last else rng.random() * 2) for p in range(len(tokens))]
    nodes = [_embedding(tokens, p, rng) for p in range(len(tokens))]
    n_errors = n_features // 12 if n_errors is None else n_errors
    cells = [(layer, p) for layer in range(n_layers) for p in range(len(tokens))]
    nodes += [_error(cell, tokens, rng) for cell in rng.sample(cells, min(n_errors, len(cells)))]
    nodes += [_feature(number, tokens, weights, n_layers, rng) for number in range(n_features)]
    nodes += [
        DrawnNode(
            f"{n_layers + 1}_{k}_{last}",
            "logit",
            n_layers,
            last,
            k,
            token,
            influence=chance,
            probability=chance,
        )
        for k, (token, chance) in enumerate(outputs)
    ]
    rng.shuffle(nodes)
    given = {
        "prompt": "".join(tokens),
        "model": "synthetic-2b",
        "transcoders": "synthetic-plt",
        "scores": {"replacement": 0.612, "completeness": 0.804},
        "about": {"version": "0.1.0", "node threshold": 0.8, "closure residual": 2.1e-6},
    }
    return Drawing(
        tokens=tuple(tokens),
        n_layers=n_layers,
        nodes=tuple(nodes),
        edges=_edges(nodes, n_edges, negative, rng),
        groups=_groups(nodes),
        **(given | changes),
    )


def _groups(nodes):
    """For each of some labels its three most influential features, as a supernode to offer."""
    found = []
    for place, label in enumerate(NAMES[:9]):
        members = [i for i, node in enumerate(nodes) if node.label == label]
        members.sort(key=lambda i: -nodes[i].influence)
        if len(members) > 2:
            found.append(DrawnGroup(label, tuple(members[:3]), 0.3 / (place + 1)))
    return tuple(found)


def _embedding(tokens, position, rng):
    return DrawnNode(
        f"E_{position}_{position}",
        "embedding",
        -1,
        position,
        position,
        tokens[position],
        influence=rng.paretovariate(1.3) / 100,
    )


def _error(cell, tokens, rng):
    layer, position = cell
    return DrawnNode(
        f"{layer}_-1_{position}",
        "error",
        layer,
        position,
        -1,
        tokens[position],
        influence=rng.paretovariate(1.5) / 700,
    )


def _feature(number, tokens, weights, n_layers, rng):
    layer = rng.randrange(n_layers)
    position = rng.choices(range(len(tokens)), weights)[0]
    words = rng.sample([" grand", " large", " big", " énorme", " 大", " vaste", "\n", " plus"], 4)
    return DrawnNode(
        f"{layer}_{number}_{position}",
        "feature",
        layer,
        position,
        number,
        tokens[position],
        label=rng.choice(NAMES),
        activation=rng.paretovariate(1.2),
        influence=rng.paretovariate(1.1) / 600,
        promoted=tuple((word, 3.0 - k) for k, word in enumerate(words[:2])),
        suppressed=tuple((word, -1.0 - k) for k, word in enumerate(words[2:])),
    )


def _edges(nodes, n_edges, negative, rng):
    """Random edges upward in layers and never backward in positions."""
    sources = [i for i, node in enumerate(nodes) if node.kind != "logit"]
    targets = [i for i, node in enumerate(nodes) if node.kind in ("feature", "logit")]
    edges = {}
    for _ in range(n_edges * 40 if sources and targets else 0):
        if len(edges) >= n_edges:
            break
        s, t = rng.choice(sources), rng.choice(targets)
        if nodes[s].layer < nodes[t].layer and nodes[s].position <= nodes[t].position:
            size = rng.paretovariate(1.15) / 100
            edges[s, t] = -size if rng.random() < negative else size
    return tuple((s, t, weight) for (s, t), weight in edges.items())


class Page:
    """An opened page with what it asked for and what it complained about."""

    def __init__(self, tab, path):
        self.tab, self.path = tab, path
        self.requests, self.complaints = [], []
        tab.on("request", lambda request: self.requests.append(request.url))
        tab.on("console", self._console)
        tab.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _console(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def open(self, address=""):
        self.tab.goto(f"{self.path.as_uri()}{address}")
        self.tab.wait_for_selector("html[data-ready=yes]", timeout=60_000)
        self.settle()
        return self

    def settle(self, wait=260):
        """Past the timers in which a change is drawn, however slow the machine, and two frames."""
        self.tab.wait_for_timeout(wait)
        self.js(
            """async () => {
            const frame = () => new Promise((done) => requestAnimationFrame(done));
            while (window.circuit?.busy()) await frame();
            await frame();
            await frame();
        }"""
        )

    def show(self, drawing):
        """Another drawing in the same page, as if it had been opened with it."""
        self.js("(packed) => circuit.open(packed)", packed(encode(fitted(drawing))))
        self.settle()
        return self

    def js(self, script, argument=None):
        return self.tab.evaluate(script, argument)

    def at(self, node_id):
        """Centre of a node in the window's pixels."""
        return self.js(
            """(id) => {
            const c = window.circuit, [x, y] = c.project(c.drawing().byId.get(id));
            const box = document.getElementById("stage").getBoundingClientRect();
            return [box.left + x, box.top + y];
        }""",
            node_id,
        )


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens a drawing in a fresh, offline window: ``open_page(drawing, width=390, ...)``."""
    contexts = []

    def opened(drawing, address="", width=1440, height=900, html=None, **options):
        context = browser.new_context(
            viewport={"width": width, "height": height}, offline=True, **options
        )
        contexts.append(context)
        path = tmp_path / f"page{len(contexts)}.html"
        path.write_text(html or render(drawing), encoding="utf-8")
        return Page(context.new_page(), path).open(address)

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def drawing() -> Drawing:
    return synthetic()


@pytest.fixture(scope="session")
def standing(browser, drawing, tmp_path_factory):
    """One window with the usual drawing, opened once; `page` puts it back before every test."""
    path = tmp_path_factory.mktemp("view") / "page.html"
    path.write_text(render(drawing), encoding="utf-8")
    context = browser.new_context(
        viewport={"width": 1280, "height": 800}, offline=True, has_touch=True
    )
    yield Page(context.new_page(), path).open()
    context.close()


@pytest.fixture
def page(standing, drawing):
    if standing.js("() => circuit.drawing().id[0]") != drawing.nodes[0].id:
        standing.show(drawing)
    standing.tab.set_viewport_size({"width": 1280, "height": 800})
    standing.js("""() => {
        document.body.style.transform = "";
        document.querySelectorAll(".notice").forEach((line) => line.remove());
        location.hash = "#theme=light";
        location.hash = "";
        document.activeElement?.blur();
    }""")
    standing.settle()
    standing.complaints.clear()
    return standing
