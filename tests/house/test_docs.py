"""The documentation is true: links lead somewhere, code runs, pages are reachable."""

from __future__ import annotations

import re
import shlex

import pytest
from click.testing import CliRunner

from tests.house.repository import ROOT, texts

PAGES = [
    (path, text)
    for path, text in texts()
    if path.suffix == ".md" and ROOT / "tests" not in path.parents
]
RUN = [
    "README.md",
    "docs/quickstart.md",
    "docs/bundled_model.md",
    "docs/queries.md",
    "docs/interventions.md",
    "docs/faithfulness.md",
    "docs/notebooks.md",
    "docs/sharing.md",
]


def anchors(text: str) -> set[str]:
    """The anchors that headings of a Markdown page get."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def links(text: str) -> list[str]:
    """Targets of links and images, those inside code left out."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize(
    "path, text", PAGES, ids=[p.relative_to(ROOT).as_posix() for p, _ in PAGES]
)
def test_links_lead_somewhere(path, text):
    for link in links(text):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{link} in {path.name}"
        assert ROOT in target.parents, f"{link} in {path.name} leaves the repository"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_is_reachable_from_the_readme():
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md" or not page.exists():
            continue
        seen.add(page)
        for link in links(page.read_text(encoding="utf-8")):
            if "://" not in link:
                waiting.append((page.parent / link.partition("#")[0]).resolve())
    lost = [path.relative_to(ROOT).as_posix() for path, _ in PAGES if path not in seen]
    assert lost == []


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_python_blocks_run(name, tmp_path, monkeypatch):
    """All blocks of a page, in order, as one program in an empty folder."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "docs"}
    found = blocks(name, "python")
    assert found
    for block in found:
        exec(compile(block, name, "exec"), namespace)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUN if blocks(name, "bash")])
def test_commands_run(name, tmp_path, monkeypatch):
    """Every `trace` and `circuit-tracer` line of the pages' bash blocks."""
    from circuit_tracer.cli.main import main, trace

    monkeypatch.chdir(tmp_path)
    programs = {"trace": trace, "circuit-tracer": main}
    lines = [line for block in blocks(name, "bash") for line in block.splitlines()]
    commands = [words for line in lines if (words := shlex.split(line, comments=True))]
    ours = [words for words in commands if words[0] in programs]
    assert ours
    for program, *arguments in ours:
        result = CliRunner().invoke(programs[program], arguments)
        assert result.exit_code == 0, f"{program} {arguments}\n{result.output}"
