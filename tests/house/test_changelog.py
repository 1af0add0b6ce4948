"""The changelog keeps its format, and its newest version is the package's."""

from __future__ import annotations

import re

from tests.house.repository import ROOT

TEXT = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
KINDS = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_versions_fall_and_unreleased_is_first():
    headings = re.findall(r"^## \[(.+?)\]", TEXT, re.MULTILINE)
    assert headings[0] == "Unreleased"
    versions = [tuple(int(part) for part in heading.split(".")) for heading in headings[1:]]
    assert versions == sorted(versions, reverse=True)
    assert all(len(version) == 3 for version in versions)


def test_sections_have_the_names_everyone_knows():
    assert set(re.findall(r"^### (.+)$", TEXT, re.MULTILINE)) <= KINDS


def test_the_newest_version_is_the_packages():
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version[1] == re.findall(r"^## \[(\d.+?)\]", TEXT, re.MULTILINE)[0]
