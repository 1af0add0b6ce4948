"""The search of an exported site: a page that holds an index and looks through it by itself.

An export has no server and may be opened from disk, where a page can fetch nothing. So the index
stands in the page, as JSON, and a script of some fifty lines reads it: labels, the words that
features fire at and those they raise. It finds what `Store.search` finds, in the same order.

A page holds at most `MOST` features, some five megabytes. A larger store has a page for every
layer, and a layer that is larger still has none: its page says so, and what to run instead.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from circuit_tracer.features.store import Row, Store

MOST = 50_000
"""Features that one page can search."""

Cells = Callable[[Row], tuple[str, str, str]]


def whole(store: Store) -> bool:
    """Whether one page can search all of a store."""
    return len(store) <= MOST


@cache
def script() -> str:
    """What the page runs."""
    return files("circuit_tracer.features").joinpath("search.js").read_text(encoding="utf-8")


@cache
def permission() -> str:
    """What a content security policy adds so that it may run."""
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    return f"; script-src 'sha256-{digest}'"


def body(store: Store, layers: Sequence[int], up: str, cells: Cells) -> str:
    """The page below its heading.

    Args:
        layers: that it searches.
        up: the way from the page to the top of the site.
        cells: of a row: label, how often it fires and how strongly, as the page shows them.
    """
    size = sum(store.width(layer) for layer in layers)
    if size > MOST:
        return _too_large(store, layers, size)
    packed = json.dumps(_index(store, layers, up, cells), separators=(",", ":"))
    # JSON in a script ends at "</" or turns odd at "<!--"; in JSON, < may be written as an escape.
    packed = packed.replace("<", "\\u003c")
    return (
        '<form role="search"><input type="search" name="q" id="q" aria-label="Search features" '
        'placeholder="a word" accesskey="s" autocomplete="off" autofocus> <button>Search</button>'
        "</form>"
        '<noscript><p>Searching needs a script, and scripts are off. <a href="index.html">All '
        'features</a>.</p></noscript><p id="said" role="status"></p><table id="found" hidden>'
        '<thead><tr><th>Feature</th><th>Label</th><th class="n">Fires at</th>'
        '<th class="n">Largest</th></tr></thead><tbody></tbody></table>'
        f'<script type="application/json" id="index">{packed}</script><script>{script()}</script>'
    )


def _too_large(store: Store, layers: Sequence[int], size: int) -> str:
    run = (
        "<p>Search them with <code>circuit-tracer features search</code>, or with "
        "<code>circuit-tracer features serve</code>, which shows this site with a search.</p>"
    )
    said = f"<p>These are {size:,} features; a page without a server can search {MOST:,}."
    if len(layers) < 2:
        return f"{said}</p>{run}"
    links = "".join(
        f'<li><a href="{layer}/search.html">Layer {layer}</a></li>'
        for layer in layers
        if store.width(layer) <= MOST
    )
    ways = f'</p><p>Search within a layer:</p><ul class="layers">{links}</ul>' if links else "</p>"
    return f"{said}{ways}{run}"


def _index(store: Store, layers: Sequence[int], up: str, cells: Cells) -> dict[str, Any]:
    """Features in columns; words are numbers in `words`, which holds them folded."""
    words: dict[str, int] = {}
    index: dict[str, Any] = {
        "up": up, "rows": [], "counts": [], "fires": [], "says": [], "given": {}
    }  # fmt: skip
    for layer in layers:
        for row, fires, says in store.worded(layer):
            if (row.layer, row.id) in store.given:
                index["given"][len(index["rows"])] = row.label.text.casefold()
            index["rows"].append([row.layer, row.id, *cells(row)])
            index["counts"].append(row.count or 0)
            for kind, some in (("fires", fires), ("says", says)):
                index[kind].append([words.setdefault(w.casefold(), len(words)) for w in some])
    return index | {"words": list(words)}
