"""What options accept, and what they say to the rest."""

from __future__ import annotations

import click
import pytest

from circuit_tracer.cli.options import FeatureLimit, Positions, Share


@pytest.mark.parametrize("given, value", [("0", 0.0), ("1", 1.0), ("0.8", 0.8), (0.98, 0.98)])
def test_shares(given, value):
    assert Share().convert(given, None, None) == value


@pytest.mark.parametrize("given", ["-0.1", "1.1", "nan", "inf", "", "eighty", "0,8"])
def test_what_is_no_share(given):
    with pytest.raises(click.BadParameter, match="between 0 and 1"):
        Share().convert(given, None, None)


@pytest.mark.parametrize("given, value", [("auto", "auto"), ("all", None), ("0", 0), ("500", 500)])
def test_limits(given, value):
    assert FeatureLimit().convert(given, None, None) == value


@pytest.mark.parametrize("given", ["-1", "many", "1.5", "", "٣"])
def test_what_is_no_limit(given):
    with pytest.raises(click.BadParameter, match="nor all, nor auto"):
        FeatureLimit().convert(given, None, None)


@pytest.mark.parametrize(
    "given, value", [("bos", "bos"), ("none", ()), ("0", (0,)), ("3, 0,3", (0, 3))]
)
def test_positions(given, value):
    assert Positions().convert(given, None, None) == value


@pytest.mark.parametrize("given", ["", "-1", "first", "0,,1"])
def test_what_are_no_positions(given):
    with pytest.raises(click.BadParameter, match="neither bos"):
        Positions().convert(given, None, None)
