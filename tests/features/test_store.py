"""Looking features up, labels, pages: also where the text in them means harm."""

from __future__ import annotations

import html.parser
import json
import threading
import urllib.error
import urllib.request

import pytest

from circuit_tracer.errors import InputError, OutputError
from circuit_tracer.features import file, labels, open_store, search_page, site
from circuit_tracer.features.feature import Label
from circuit_tracer.features.serving import server

HOSTILE = '<script>alert(1)</script><img src=x onerror="x">\'&amp;\u202e\x00\x1b[31m\ud800'
NAME = HOSTILE.replace("\ud800", "")


def record(layer: int, one: int, fires=("w",), says=("x",), count: int = 3) -> file.Record:
    detail = {
        "bins": [32, count],
        "spoken": [2, 1],
        "groups": [["Top", 0, 1]],
        "pieces": [0, 0],
        "flat": [[1, 2.0, 2, 1.0], []],
        "silent": [1],
        "raised": list(says),
        "raised_by": [0.5] * len(says),
        "lowered": [HOSTILE],
        "lowered_by": [-0.5],
        "coactive": [[0, 0, 3, 4]] if layer else [],
        "similar": [[0, 1, 0.9], [1, 0, 0.8]],
    }
    return file.Record(layer, one, count, 2.0, 1.5, tuple(fires), tuple(says), detail)


@pytest.fixture
def store(tmp_path):
    records = [
        record(0, 0, ["capital"], [" Paris"]),
        record(0, 1, ["Hauptstadt"], [" capitals"]),
        record(0, 2, [HOSTILE], [HOSTILE], count=0),
        record(1, 0, ["小"], ["STRASSE"]),
    ]
    about = {"model": HOSTILE, "transcoders": HOSTILE, "kind": "plt", "texts": 2, "positions": 9}
    tokens = list(enumerate(["<bos>", HOSTILE, " a\nb", "ب"]))
    pieces = [file.Piece([0, 1, 2, 3], HOSTILE)]
    sizes = {NAME: 4, "fr": 5}
    file.write(tmp_path / "s.sqlite", {**about, "languages": sizes}, records, pieces, tokens)
    return open_store(tmp_path / "s.sqlite")


def test_a_feature_is_read_whole(store):
    feature = store.feature(1, 0)
    assert feature.density == 3 / 9
    assert feature.spread.rates == {NAME: 0.5, "fr": 0.2}
    assert feature.spread.language == NAME and 0 < feature.spread.evenness < 1
    assert feature.coactive[0].share == 0.75
    (example,) = feature.groups[0].examples
    assert example.activations == (0.0, 2.0, 1.0, 0.0) and example.position == 1
    assert [(bar.low, bar.count) for bar in feature.histogram] == [(1.0, 3)]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("capital", ["L0#0", "L0#1"]),
        ("CAPITAL", ["L0#0", "L0#1"]),
        ("haupt", ["L0#1"]),
        ("小", ["L1#0"]),
        ("straße", ["L1#0"]),
        ("nowhere", []),
        ("%", []),
        ("' OR 1=1 --", []),
    ],
)
def test_search_finds_words_in_any_case_and_script(store, words, wanted):
    assert [row.name for row in store.search(words)] == wanted


def test_search_for_nothing_is_refused(store):
    with pytest.raises(InputError, match="say what"):
        store.search("  ")


def test_luck_is_the_same_for_the_same_seed_and_never_a_dead_feature(store):
    found = {store.lucky(seed).name for seed in range(40)}
    assert found == {"L0#0", "L0#1", "L1#0"}
    assert store.lucky(7) == store.lucky(7)


def test_similar_features_come_with_their_labels(store):
    assert [(row.name, cosine) for row, cosine in store.similar(1, 0)] == [
        ("L0#1", 0.9),
        ("L1#0", 0.8),
    ]


def test_features_are_paged_in_order(store):
    names = [row.name for start in range(5) for row in store.rows(start=start, most=1)]
    assert names == ["L0#0", "L0#1", "L0#2", "L1#0"]
    assert [row.name for row in store.rows(layer=0, start=1)] == ["L0#1", "L0#2"]


def test_what_is_not_there_is_named_with_what_is(store, tmp_path):
    with pytest.raises(InputError, match=r"whose features are 0 to 2"):
        store.feature(0, 99)
    with pytest.raises(InputError, match="it has layers 0, 1"):
        store.feature(7, 0)
    with pytest.raises(InputError, match="there is no feature store"):
        open_store(tmp_path / "nothing.sqlite")
    (tmp_path / "text").write_text("no database at all")
    with pytest.raises(InputError, match="not a feature store"):
        open_store(tmp_path / "text")


def test_a_newer_or_damaged_store_is_refused(store, tmp_path):
    import sqlite3

    with sqlite3.connect(store.path) as db:
        db.execute("UPDATE block SET data = x'00'")
    with pytest.raises(InputError, match="damaged"):
        open_store(store.path).feature(0, 0)
    with sqlite3.connect(store.path) as db:
        db.execute("UPDATE about SET value = '9' WHERE name = 'version'")
    with pytest.raises(InputError, match="version 2; it is circuit-tracer features, version 9"):
        open_store(store.path)


def test_a_store_that_cannot_be_written_leaves_the_old_one(store, tmp_path):
    before = store.path.read_bytes()

    def records():
        yield record(0, 0)
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        file.write(store.path, {}, records())
    assert store.path.read_bytes() == before
    with pytest.raises(OutputError):
        file.write(tmp_path / "no" / "folder", {}, [])


def test_labels_are_kept_searched_and_shared(store, tmp_path):
    assert store.label(0, 0) == Label("~ capital → Paris", "automatic")
    assert store.label(0, 2).text == "~ never fires"
    assert store.label(5, 5) is None
    store.set_labels({(0, 2): Label("cities of the world", "me")})
    assert [row.name for row in store.search("CITIES")] == ["L0#2"]
    (tmp_path / "l.json").write_text(labels.text(store.given), encoding="utf-8")
    assert labels.read(tmp_path / "l.json") == {(0, 2): Label("cities of the world", "me")}
    assert open_store(store.path).label(0, 2).text == "cities of the world"
    store.set_labels({(0, 2): None})
    assert store.label(0, 2).automatic and not store.given
    with pytest.raises(InputError, match="no feature 9"):
        store.set_labels({(0, 9): Label("x", "me")})


def test_labels_of_neuronpedia_are_read(tmp_path):
    export = [{"layer": "2-gemmascope-transcoder-16k", "index": "417", "description": " small  x"}]
    (tmp_path / "n.json").write_text(json.dumps(export))
    assert labels.read(tmp_path / "n.json") == {(2, 417): Label("small x", "Neuronpedia")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "not JSON"),
        ("{}", "list of labels"),
        ('[{"layer": 1}]', "entry 1 should have"),
        ('[{"layer": 1, "feature": 2, "label": "~ made up"}]', "automatic"),
        ('[{"layer": 1, "feature": 2, "label": "' + "x" * 500 + '"}]', "1 to 400"),
        ('[{"layer": 1, "feature": -2, "label": "x"}]', "entry 1 should have"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, text, message):
    (tmp_path / "l.json").write_text(text)
    with pytest.raises(InputError, match=message):
        labels.read(tmp_path / "l.json")


class Tags(html.parser.HTMLParser):
    """Collects tags, attributes and text as a browser would."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.links, self.text = set(), set(), set(), ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links |= {value for name, value in attrs if name in ("href", "src", "action")}

    def handle_data(self, data):
        self.text += data


def test_hostile_text_never_becomes_markup(store, tmp_path):
    store.set_labels({(0, 0): Label(NAME, NAME)})
    site.export(store, tmp_path / "site")
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) == 1 + 1 + 2 + 4
    for page in pages:
        text = page.read_text(encoding="utf-8")
        tags = Tags()
        tags.feed(text)
        if page.name == "search.html":
            assert text.count("<script") == 2 and search_page.permission() in html.unescape(text)
            assert not any(char in text for char in "\u202e\x00\x1b")
            continue
        assert not tags.tags & {"script", "img", "iframe", "object", "svg", "link", "base"}
        assert not tags.attributes & {"style", "src", "onerror", "onclick", "onload"}
        assert not any(char in text for char in "\u202e\x00\x1b")
        for link in tags.links - {"#main"}:
            assert (page.parent / link).resolve() in pages
        assert "alert(1)" in tags.text and site.POLICY in html.unescape(text)


def test_every_feature_has_an_address_of_its_own(store, tmp_path):
    site.export(store, tmp_path)
    for row in store:
        assert f"{row.layer}.{row.id}" in (tmp_path / f"{row.layer}/{row.id}.html").read_text()


def test_a_page_searches_what_fits_it_and_else_says_so(store, tmp_path, monkeypatch):
    def page(path):
        return site.page(store, path)

    assert page("0/search.html") is None and "<form" in page("0/0.html")
    monkeypatch.setattr(search_page, "MOST", 3)
    assert "<form" not in page("0/0.html") and 'href="search.html">Search<' in page("0/0.html")
    said = page("search.html")
    assert "These are 4 features; a page without a server can search 3." in said
    assert 'href="0/search.html"' in said and "<script" not in said
    assert '"rows":[[0,' in page("0/search.html") and page("7/search.html") is None
    monkeypatch.setattr(search_page, "MOST", 1)
    assert "a page without a server can search 1" in page("0/search.html")
    site.export(store, tmp_path)
    assert len(list(tmp_path.rglob("search.html"))) == 1 + 2


def test_long_layers_are_paged(store, tmp_path, monkeypatch):
    monkeypatch.setattr(site, "ROWS", 2)
    site.export(store, tmp_path)
    assert (tmp_path / "0/1.list.html").exists() and not (tmp_path / "1/1.list.html").exists()
    assert 'href="1.list.html"' in (tmp_path / "0/index.html").read_text()


@pytest.fixture
def address(store):
    with server(store) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def fetch(url, **headers):
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer, answer.read().decode()


def test_the_server_answers_what_export_writes(store, address):
    answer, text = fetch(f"{address}/1/0.html")
    assert "L1" not in answer.headers["Server"]
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert "1.0" in text and 'action="../search.html"' in text
    _, found = fetch(f"{address}/search.html?q=capital")
    assert (
        "0/0.html" in found
        and "0/1.html" in found
        and "1/0.html" not in found.split('<main id="main">')[1]
    )
    tags = Tags()
    tags.feed(fetch(f"{address}/search.html?q=%3Cscript%3Ealert(1)")[1])
    assert "script" not in tags.tags


@pytest.mark.parametrize(
    "path", ["/9/9.html", "/../s.sqlite", "/%2e%2e/s.sqlite", "/0/99.html", "/etc/passwd", "/0/"]
)
def test_the_server_has_nothing_else(address, path):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(address + path)


def test_the_server_answers_only_to_this_machine_and_only_reads(address):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        fetch(address, Host="evil.example")
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(urllib.request.Request(address, data=b"x"), timeout=10)


def test_the_server_listens_at_this_machine_by_default(store):
    with server(store) as running:
        assert running.server_address[0] == "127.0.0.1"
        with pytest.raises(InputError, match="cannot listen"):
            server(store, port=running.server_address[1])


def test_labels_of_the_lower_half_do_not_say_what_is_raised(tmp_path):
    records = [record(0, 0, ["a"], ["b"]), record(0, 1, [], ["b"]), record(1, 0, ["a"], ["b"])]
    file.write(tmp_path / "s", {"widths": [2, 1]}, records)
    assert [row.label.text for row in open_store(tmp_path / "s")] == ["~ a", "~ → b", "~ a → b"]


@pytest.mark.parametrize("kind", ["plt", "clt"])
def test_the_bundled_stores_are_of_the_bundled_transcoders(kind):
    store = open_store(kind)
    assert store.about["transcoders"] == f"bundled {kind}"
    assert list(store.about["widths"]) == [store.width(layer) for layer in store.layers]
    assert list(store.about["languages"]) == ["de", "en", "es", "fr", "zh"]
    assert store.path.stat().st_size < 1_750_000
    assert store.search("capital")


def test_graphs_of_the_bundled_model_come_with_labels():
    import circuit_tracer as ct

    graph = ct.trace("The opposite of small is", max_features=5)
    store = open_store("plt")
    for node in (node for node in graph.nodes[:50] if node.kind == "feature"):
        assert node.label == store.label(node.layer, node.feature).text
