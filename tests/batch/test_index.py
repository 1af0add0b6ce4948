"""The index page: links, sorting and filtering in a real browser, and nothing fetched."""

from __future__ import annotations

import pytest

from circuit_tracer.batch import Job, run
from tests import tiny

JOBS = [
    Job("b", [2, 9, 21, 5]),
    Job("a", "w5 w6 w7 w8 w9 w7"),
    Job("bad", [5] * 99),
    Job("c", [2, 30]),
]
HOSTILE = Job("x", "w5", targets=("<script>alert(1)</script>",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("batch")
    run([*JOBS, HOSTILE], tiny.replacement("llama"), made, pages=True)
    return made


def test_the_page_links_what_is_there_and_escapes_what_prompts_say(folder):
    page = (folder / "index.html").read_text()
    assert "3 of 5 prompts were traced" in page and "&lt;script&gt;alert" in page
    for name in ("a", "b", "c"):
        assert f'href="pages/{name}.html"' in page and (folder / "pages" / f"{name}.html").is_file()
    for name in ("table.csv", "table.jsonl", "merged.json"):
        assert f'href="{name}"' in page


@pytest.mark.browser
def test_the_table_sorts_and_filters_and_fetches_nothing(folder, browser):
    tab, complaints, asked = browser.new_page(), [], []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto((folder / "index.html").as_uri())

    def names():
        rows = tab.locator("#table tbody tr:visible th").all()
        return [row.inner_text() for row in rows]

    assert names() == ["b", "a", "bad", "c", "x"]
    tab.get_by_role("button", name="tokens").click()
    assert names() == ["c", "b", "a", "bad", "x"]  # what failed goes last either way
    tab.get_by_role("button", name="tokens").click()
    assert names() == ["a", "b", "c", "bad", "x"]
    sorted_by = tab.locator("#table [aria-sort]")
    assert sorted_by.count() == 1 and sorted_by.get_attribute("aria-sort") == "descending"
    tab.fill("#filter", "W8")
    assert names() == ["a"] and tab.inner_text("#count") == "1 of 5"
    tab.fill("#filter", "")
    with tab.expect_navigation():
        tab.get_by_role("link", name="a", exact=True).click()
    assert tab.url.endswith("/pages/a.html")
    assert not complaints and {url.partition(":")[0] for url in asked} <= {"file", "blob"}
    tab.close()
