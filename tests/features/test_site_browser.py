"""The pages of a store in a browser: accessible, at any width, by keyboard, without a script."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from circuit_tracer.features import open_store, site
from circuit_tracer.features.serving import server

pytestmark = pytest.mark.browser

PAGES = ("index.html", "5/417.html", "search.html?q=capital")


@pytest.fixture(scope="module")
def address():
    with server(open_store("plt")) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/"
        running.shutdown()


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark"), (320, "light")])
def test_pages_fit_and_are_accessible(browser, address, width, scheme):
    checker = os.environ.get("CIRCUIT_TRACER_AXE", "")
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True
    )
    tab = context.new_page()
    for path in PAGES:
        tab.goto(address + path)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        if checker:
            tab.evaluate(Path(checker).read_text(encoding="utf-8"))
            found = tab.evaluate("axe.run().then((result) => result.violations)")
            assert not [(one["id"], one["nodes"][0]["html"]) for one in found], path
    context.close()


def test_search_is_reached_and_used_by_keyboard(browser, address):
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(address)
    seen = []
    for _ in range(4):
        tab.keyboard.press("Tab")
        seen.append(tab.evaluate("document.activeElement.textContent || 'field'"))
    assert seen[0] == "Skip to the page" and seen[2] == "I’m feeling lucky" and seen[3] == "field"
    tab.keyboard.type("capital")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/search.html?q=capital")
    tab.click("main table a >> nth=0")
    assert "capital" in tab.inner_text("h1")
    assert tab.locator(".row b").count() > 3 and tab.locator(".bars i").count() > 1
    context.close()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Some pages of an export, as they lie on a disk."""
    folder = tmp_path_factory.mktemp("site")
    store = open_store("plt")
    for path in ("index.html", "search.html", "5/417.html"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(site.page(store, path), encoding="utf-8")
    return folder, store


def found_by(tab):
    return tab.locator("#found td.l a").all_inner_texts()


def test_an_export_searches_from_disk_as_the_store_does(browser, exported):
    folder, store = exported
    context = browser.new_context(offline=True)
    tab = context.new_page()
    complaints = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.goto((folder / "5/417.html").as_uri())
    tab.fill("input[name=q]", "Capital")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/search.html?q=Capital")
    for words in ("Capital", "ital", "\u5c0f", '"', " groß ", "nowhere at all", ""):
        tab.fill("#q", words)
        expected = store.search(words, 100) if words.strip() else []
        assert found_by(tab) == [f"{row.layer}.{row.id}" for row in expected], words
    tab.fill("#q", "nowhere at all")
    assert tab.inner_text("#said") == "Nothing found."
    tab.fill("#q", "capital")
    assert tab.locator("#found a").first.get_attribute("href").endswith(".html")
    assert complaints == []
    context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1440, "dark"), (320, "light")])
def test_the_search_of_an_export_fits_and_is_accessible(browser, exported, width, scheme):
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True
    )
    tab = context.new_page()
    tab.goto((exported[0] / "search.html").as_uri() + "?q=capital")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert len(found_by(tab)) > 3
    if checker := os.environ.get("CIRCUIT_TRACER_AXE", ""):
        tab.evaluate(Path(checker).read_text(encoding="utf-8"))
        found = tab.evaluate("axe.run().then((result) => result.violations)")
        assert not [(one["id"], one["nodes"][0]["html"]) for one in found]
    context.close()
