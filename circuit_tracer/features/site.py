"""A store as pages: every feature at an address of its own, `3/417.html`, and nothing that runs.

The same function draws what `export` writes into a folder and what `serving` answers with. Pages
hold no script and load nothing; a content security policy says so to the browser. Tokens and labels
are other people's text: whatever they hold is escaped, and control characters (those that turn
text around among them) are spelled out.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from circuit_tracer import files
from circuit_tracer.errors import InputError, OutputError
from circuit_tracer.features.feature import Bin, Example, Feature, Group, Kin, Tokens
from circuit_tracer.features.store import Row, Store

Progress = Callable[[float, str], None]
ROWS = 500
"""Features on one page of a list."""

STYLE = """
:root { color-scheme: light dark; --on: 224, 122, 31; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
nav, .dim { color: GrayText; } nav a { margin-right: 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.05rem; margin-top: 1.6rem; }
table { border-collapse: collapse; width: 100%; }
td, th { padding: .2rem .6rem; text-align: start; }
tr { border-bottom: 1px solid var(--line); } td { overflow-wrap: anywhere; }
td.n, th.n { text-align: end; white-space: nowrap; font-variant-numeric: tabular-nums; }
p.example { margin: .3rem 0; padding: .3rem .6rem; border-inline-start: 3px solid var(--line);
  white-space: pre-wrap; overflow-wrap: anywhere; }
p.example b { text-decoration: underline; font-weight: 600; }
a:focus-visible, input:focus-visible, button:focus-visible { outline: 3px solid Highlight; }
meter { width: 12rem; }
""" + "".join(f".a{k} {{ background: rgba(var(--on), {k / 12:.2f}); }}\n" for k in range(1, 10))
POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'self'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    + "'"
)


def page(store: Store, path: str, live: bool = False, query: str = "") -> str | None:
    """The page at an address (`index.html`, `3/index.html`, `3/2.list.html`, `3/417.html`).

    Args:
        live: somebody answers searches; `search.html` is a page too, of what `query` finds.

    Returns:
        HTML; None where there is no such page.
    """
    if path in ("", "index.html"):
        return _document(store, "Features", _front(store), "", live)
    if live and path == "search.html":
        rows = store.search(query, 100) if query.strip() else []
        body = _table(rows, "") if rows else "<p>Nothing found.</p>"
        return _document(store, f"Search: {query}", body, "", live)
    found = re.fullmatch(r"(\d{1,9})/(?:(\d{1,9})(\.list)?|index)\.html", path)
    if found is None:
        return None
    layer, number = int(found[1]), found[2]
    if number is None or found[3]:
        return _list(store, layer, int(number or 0), live)
    try:
        feature = store.feature(layer, int(number))
    except InputError:
        if not store.known(layer, int(number)):
            return None
        raise
    title = f"{feature.layer}.{feature.id} {feature.label.text}"
    return _document(store, title, _feature(store, feature), "../", live)


def export(store: Store, folder: str | os.PathLike[str], progress: Progress | None = None) -> None:
    """Write all pages into a folder.

    Raises:
        OutputError: a page could not be written.
    """
    place, total = Path(folder), len(store)
    for done, path in enumerate(_paths(store)):
        target = place / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {target.parent}: {error.strerror or error}") from error
        text = page(store, path)
        assert text is not None
        files.write_text(target, text)
        if progress is not None and done % 50 == 0:
            progress(min(1.0, done / max(1, total)), f"{done:,} pages")


def _paths(store: Store) -> Iterator[str]:
    yield "index.html"
    for layer in store.layers:
        yield f"{layer}/index.html"
        pages = -(-store.width(layer) // ROWS)
        yield from (f"{layer}/{number}.list.html" for number in range(1, pages))
    yield from (f"{row.layer}/{row.id}.html" for row in store)


def _document(store: Store, title: str, body: str, up: str, live: bool) -> str:
    name = _text(str(store.about.get("transcoders") or store.path.stem))
    form = (
        f'<form action="{up}search.html" role="search"><input type="search" name="q" '
        'aria-label="Search features"> <button>Search</button></form>'
        if live
        else ""
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_text(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body>"
        f'<nav aria-label="Site"><a href="{up}index.html">Features of {name}</a>'
        f'<a href="{up}{_lucky(store, title)}">I’m feeling lucky</a>{form}</nav>'
        f'<main><h1 dir="auto">{_text(title)}</h1>\n{body}</main></body></html>\n'
    )


def _front(store: Store) -> str:
    about = store.about
    rows = "".join(
        f'<tr><td><a href="{layer}/index.html">Layer {layer}</a></td>'
        f'<td class="n">{store.width(layer):,}</td></tr>'
        for layer in store.layers
    )
    said = [
        f"{len(store):,} features",
        f"{about['texts']:,} texts" if "texts" in about else "",
        f"{about['positions']:,} tokens" if "positions" in about else "",
        _text(f"model {about['model']}") if about.get("model") else "",
    ]
    return (
        f"<p>{', '.join(part for part in said if part)}. Labels that begin with ~ were made by "
        "machine, of what a feature fires at and what it raises.</p>"
        f'<table><tr><th>Layer</th><th class="n">Features</th></tr>{rows}</table>'
    )


def _list(store: Store, layer: int, number: int, live: bool) -> str | None:
    rows = store.rows(layer, number * ROWS, ROWS)
    if not rows:
        return None
    last = -(-store.width(layer) // ROWS) - 1
    around = [
        f'<a href="{_list_name(other)}">{word}</a>'
        for word, other in (("Before", number - 1), ("After", number + 1))
        if 0 <= other <= last
    ]
    body = _table(rows, "../") + f'<nav aria-label="Pages">{" ".join(around)}</nav>'
    return _document(store, f"Layer {layer}", body, "../", live)


def _list_name(number: int) -> str:
    return f"{number}.list.html" if number else "index.html"


def _table(rows: list[Row], up: str) -> str:
    cells = "".join(
        f'<tr><td><a href="{up}{row.layer}/{row.id}.html">{row.layer}.{row.id}</a></td>'
        f'<td dir="auto">{_text(row.label.text)}</td><td class="n">{_percent(row.density)}</td>'
        f'<td class="n">{_number(row.largest)}</td></tr>'
        for row in rows
    )
    return (
        '<table><tr><th>Feature</th><th>Label</th><th class="n">Fires at</th>'
        f'<th class="n">Largest</th></tr>{cells}</table>'
    )


def _feature(store: Store, feature: Feature) -> str:
    source = "made by machine" if feature.label.automatic else f"by {feature.label.source}"
    figures = (
        f'<p class="dim">Label {_text(source)}. Fires at {_percent(feature.density)} of tokens, '
        f"mean {_number(feature.mean)}, largest {_number(feature.largest)}.</p>"
    )
    parts = [figures]
    if feature.raised or feature.lowered:
        parts.append("<h2>Outputs</h2>")
        parts.append(_outputs("Raises", feature.raised) + _outputs("Lowers", feature.lowered))
    if feature.spread.rates:
        parts.append("<h2>Languages</h2>" + _languages(feature))
    if feature.histogram:
        parts.append("<h2>Activations</h2>" + _histogram(feature.histogram))
    for title, kin in (("Fires with", feature.coactive), ("Similar writing", feature.similar)):
        if kin:
            parts.append(f"<h2>{title}</h2>" + _kin(store, kin))
    largest = feature.largest or 0.0
    parts += [_group(group, largest) for group in feature.groups]
    return "\n".join(parts)


def _outputs(name: str, tokens: Tokens) -> str:
    said = ", ".join(f"“<bdi>{_text(token)}</bdi>”" for token, _ in tokens)
    return f"<p>{name} {said}</p>" if tokens else ""


def _languages(feature: Feature) -> str:
    most = max(feature.spread.rates.values()) or 1.0
    rows = "".join(
        f'<tr><td>{_text(name or "unknown")}</td><td><meter value="{rate / most:.3f}">'
        f'{_percent(rate)}</meter></td><td class="n">{_percent(rate)}</td></tr>'
        for name, rate in feature.spread.rates.items()
    )
    return f'<table><tr><th>Language</th><th></th><th class="n">Fires at</th></tr>{rows}</table>'


def _histogram(bins: tuple[Bin, ...]) -> str:
    most = max(1, *(bar.count for bar in bins))
    rows = "".join(
        f"<tr><td>{_number(bar.low)} to {_number(bar.high)}</td>"
        f'<td><meter value="{bar.count / most:.3f}">{bar.count}</meter></td>'
        f'<td class="n">{bar.count:,}</td></tr>'
        for bar in bins
    )
    return f'<table><tr><th>Activation</th><th></th><th class="n">Places</th></tr>{rows}</table>'


def _kin(store: Store, kin: tuple[Kin, ...]) -> str:
    rows = []
    for one in kin:
        label = store.label(one.layer, one.feature)
        rows.append(
            f'<tr><td><a href="../{one.layer}/{one.feature}.html">{one.layer}.{one.feature}</a>'
            f'</td><td dir="auto">{_text(label.text if label else "")}</td>'
            f'<td class="n">{one.share:.2f}</td></tr>'
        )
    return f"<table>{''.join(rows)}</table>"


def _group(group: Group, largest: float) -> str:
    examples = "\n".join(_example(example, largest) for example in group.examples)
    ends = f"{_number(group.low)} to {_number(group.high)}"
    return f'<h2>{_text(group.name)} <span class="dim">{ends}</span></h2>\n{examples}'


def _example(example: Example, largest: float) -> str:
    parts = []
    for place, (token, value) in enumerate(zip(example.tokens, example.activations, strict=True)):
        text = _text(token)
        if place == example.position:
            text = f"<b>{text}</b>"
        shade = min(9, max(1, round(9 * value / largest))) if value > 0 and largest > 0 else 0
        title = f' title="{_number(value)}"' if shade else ""
        parts.append(f'<span class="a{shade}"{title}>{text}</span>' if shade else text)
    language = f' lang="{_text(example.language)}"' if example.language else ""
    return f'<p class="example" dir="auto"{language}>{"".join(parts)}</p>'


def _lucky(store: Store, title: str) -> str:
    """Where luck leads from a page: elsewhere from every page, always the same from one."""
    seed = int.from_bytes(hashlib.blake2b(title.encode("utf-8", "replace"), digest_size=4).digest())
    layer, feature = store.lucky_key(seed)
    return f"{layer}/{feature}.html"


def _text(text: str) -> str:
    """Somebody's text as HTML that shows it and does nothing."""
    kept = "".join(
        char if char.isprintable() or char in "\u200c\u200d"
        else "⏎" if char == "\n"
        else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )  # fmt: skip
    return html.escape(kept)


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.3g} %"
