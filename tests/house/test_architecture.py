"""The picture of the layers is the contract that import-linter checks."""

from __future__ import annotations

import importlib.util
import re

import pytest

from tests.house.repository import ROOT


@pytest.fixture(scope="module")
def draw():
    spec = importlib.util.spec_from_file_location("draw_layers", ROOT / "docs" / "draw_layers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_module_has_a_layer(draw):
    listed = {module for layer in draw.layers() for module in layer}
    there = {
        path.stem
        for path in (ROOT / "circuit_tracer").iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists()
    }
    assert there - listed == {"bundled"}
    assert listed - there == set()


def test_the_picture_shows_the_contract(draw):
    drawn = re.findall(r'<text x="[\d.]+" y="[\d.]+">(\w+)</text>', draw.PICTURE.read_text())
    assert drawn == [module for layer in draw.layers() for module in layer], "run: make docs"
