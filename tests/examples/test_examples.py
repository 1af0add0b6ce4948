"""Every example runs, as a program, in an empty folder."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys

import pytest

from tests.house.repository import ROOT

SHORTER = {"gallery": ["--only", "antonyms", "--rows", "4"]}
"""Arguments with which an example takes seconds."""
OWN_TEST = {"bring_your_own_model"}
EXAMPLES = sorted(p for p in (ROOT / "examples").glob("*.py") if p.stem not in OWN_TEST)
GALLERY = runpy.run_path(str(ROOT / "examples" / "gallery.py"))["PROMPTS"]


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path):
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    ran = subprocess.run(
        [sys.executable, path, *SHORTER.get(path.stem, ())],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()


def test_the_gallery_of_the_docs_is_the_command_s():
    """The numbers of the page are those in its pictures, and its prompts the example's."""
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert set(GALLERY) == set(re.findall(r"images/gallery-([\w-]+)\.svg", page))
    for name, prompts in GALLERY.items():
        part = next(s for s in page.split("\n## ") if f"gallery-{name}.svg" in s)
        if name != "two-steps":
            assert all(f"`{prompt}`" in part for prompt in prompts.values())
        drawn = (ROOT / "docs" / "images" / f"gallery-{name}.svg").read_text(encoding="utf-8")
        counts = re.findall(r'class="quiet" x="[\d.]+" y="40" text-anchor="middle">(\d+)<', drawn)
        whole, shared = sum(map(int, counts)), counts[0]
        assert drawn.count("<circle") == whole
        assert re.search(rf"\b{whole}\b", part) and re.search(rf"\b{shared}\b", part)
