"""The rules of the house, each a test: what may be where, and what may not be anywhere."""

from __future__ import annotations

import ast
import re
import statistics

import pytest

from tests.house.repository import ROOT, files, modules, texts

BIG = 4 * 2**20  # bytes; a weight file larger than this is split
VERBS = {
    "demo",
    "setup",
    "check",
    "test",
    "test-old",
    "bench",
    "bench-gpu",
    "docs",
    "bundled",
    "wheel",
    "clean",
}
NOUNS_ONLY = {"utils", "util", "common", "helpers", "helper", "misc"}
# Split so that this file does not find itself.
PLACES = ("/" + "work/", "/" + "root/", "/" + "opt/", "/" + "home/", "/" + "Users/")
HOSTS = ("pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "deb.debian" + ".org")


def imports(path):
    """Names of the modules a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


def test_kernels_is_a_plain_folder():
    assert (ROOT / "kernels" / "circuit_kernels" / "__init__.py").exists()
    assert not (ROOT / "kernels" / "__init__.py").exists(), (
        "kernels/__init__.py would shadow the distribution named kernels"
    )


def test_triton_is_imported_by_kernel_files_only():
    users = {
        path.relative_to(ROOT).as_posix()
        for path in modules("circuit_tracer", "kernels/circuit_kernels")
        if any(name.split(".")[0] == "triton" for name in imports(path))
    }
    elsewhere = [
        name for name in users if not re.fullmatch(r"kernels/circuit_kernels/\w+_triton\.py", name)
    ]
    assert not elsewhere


def test_kernels_do_not_know_the_package():
    for path in modules("kernels/circuit_kernels"):
        assert not [name for name in imports(path) if name.split(".")[0] == "circuit_tracer"], path


def test_plotly_is_drawn_with_by_the_view_only():
    users = {
        path.relative_to(ROOT / "circuit_tracer").parts[0]
        for path in modules("circuit_tracer")
        if any(name.split(".")[0] == "plotly" for name in imports(path))
    }
    assert users <= {"view"}


def test_the_library_does_not_print():
    allowed = {"cli", "bundled"}  # the recipe reports as it goes
    for path in modules("circuit_tracer", "kernels/circuit_kernels"):
        if path.relative_to(ROOT).parts[1] in allowed:
            continue
        calls = [
            node.lineno
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        ]
        assert not calls, f"{path.name}:{calls}"


def test_modules_are_nouns_and_open_with_what_they_are():
    for path in modules("circuit_tracer", "kernels/circuit_kernels"):
        assert path.stem not in NOUNS_ONLY, path
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), (
            f"{path}: no docstring"
        )


def test_modules_stay_small():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in modules("circuit_tracer", "kernels/circuit_kernels")
    }
    assert statistics.median(lengths.values()) <= 250
    assert {name: length for name, length in lengths.items() if length > 450} == {}


@pytest.mark.parametrize("needle", PLACES + HOSTS)
def test_no_file_names_a_machine_or_a_registry(needle):
    assert [path.relative_to(ROOT).as_posix() for path, text in texts() if needle in text] == []


def test_no_file_is_unexpectedly_large():
    large = {
        path.relative_to(ROOT).as_posix(): path.stat().st_size
        for path in files()
        if path.stat().st_size > BIG
    }
    assert {
        name for name in large if not name.startswith("circuit_tracer/bundled/weights/")
    } == set()
    weights = [path for path in files() if ROOT / "circuit_tracer/bundled/weights" in path.parents]
    assert sum(path.stat().st_size for path in weights) < 22 * 2**20


def test_make_has_its_verbs():
    makefile = (ROOT / "Makefile").read_text()
    defined = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    explained = set(re.findall(r"^#   make ([\w-]+)", makefile, re.MULTILINE))
    assert defined >= VERBS
    assert explained == VERBS


def test_ci_calls_the_same_verbs():
    script = (ROOT / ".ci" / "run").read_text()
    assert script.startswith("#!/usr/bin/env bash")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert set(re.findall(r"^step ([\w-]+)", script, re.MULTILINE)) == {"check", "test", "test-old"}
