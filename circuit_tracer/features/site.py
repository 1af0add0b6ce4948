"""A store as pages: every feature at an address of its own, `3/417.html`, and nothing that loads.

The same function draws what `export` writes into a folder and what `serving` answers with. Pages
load nothing, and none but the search of an export (`search_page`) runs a script; a content
security policy says so to the browser. Tokens and labels
are other people's text: whatever they hold is escaped, and control characters (those that turn
text around among them) are spelled out.
"""

from __future__ import annotations

import base64
import hashlib
import html
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from circuit_tracer import files
from circuit_tracer.errors import InputError, OutputError
from circuit_tracer.features import search_page
from circuit_tracer.features.feature import Bin, Example, Feature, Group, Kin, Tokens
from circuit_tracer.features.store import Row, Store

Progress = Callable[[float, str], None]
ROWS = 500
"""Features on one page of a list."""

STYLE = (
    """
:root { color-scheme: light dark; --paper: #fbfbf9; --card: #fff; --ink: #1b1f24; --quiet: #57606a;
  --line: #d9d9d3; --soft: #efefea; --link: #005a8f; --on: 233, 140, 60; --bar: #0072b2;
  --down: #b1450a; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --card: #1a1e22; --ink: #eceff2;
  --quiet: #a2abb5; --line: #343a40; --soft: #262b30; --link: #7cc4f0; --on: 190, 88, 14;
  --bar: #56b4e9; --down: #f08a3c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", sans-serif; }
a { color: var(--link); text-underline-offset: 2px; }
.skip { position: absolute; left: -999px; } .skip:focus { left: 4px; top: 4px; }
header { background: var(--card); border-bottom: 1px solid var(--line); }
header nav { max-width: 76rem; margin: 0 auto; padding: .6rem 1rem; display: flex; flex-wrap: wrap;
  gap: .4rem 1.2rem; align-items: center; }
header form { margin-inline-start: auto; } form { display: flex; gap: .4rem; }
input, button { font: inherit; color: inherit; min-height: 2.1rem; padding: .1rem .7rem;
  border: 1px solid var(--line); border-radius: 7px; background: var(--paper); }
input { width: 13rem; max-width: 60vw; }
main { max-width: 76rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.45rem; line-height: 1.3; margin: .2rem 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 1.5rem 0 .4rem; } h2 span { font-weight: 400; }
.dim, .note { color: var(--quiet); } .note { margin: 0; font-size: .9rem; }
.id { color: var(--quiet); font-weight: 400; font-variant-numeric: tabular-nums; }
.steps { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .9rem; }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: .8rem 0; }
dt { color: var(--quiet); font-size: .85rem; }
dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.two { display: grid; gap: 0 2.5rem; grid-template-columns: minmax(0, 1fr); }
@media (min-width: 60rem) { .two { grid-template-columns: minmax(0, 1fr) 22rem; } }
table { border-collapse: collapse; width: 100%; }
td, th { padding: .25rem .5rem; text-align: start; vertical-align: baseline; }
td:first-child, th:first-child { padding-inline-start: 0; }
tr { border-bottom: 1px solid var(--line); } td { overflow-wrap: anywhere; }
.n { text-align: end; white-space: nowrap; font-variant-numeric: tabular-nums; }
.l { white-space: nowrap; }
.fill { width: 40%; }
.row { display: flex; gap: .7rem; padding: .3rem 0; border-bottom: 1px solid var(--line); }
.row > span { flex: 0 0 3.4rem; color: var(--quiet); font-size: .85rem; padding-top: .1rem;
  text-align: end; font-variant-numeric: tabular-nums; }
.row p { margin: 0; flex: 1; min-width: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.row b { font-weight: 650; box-shadow: 0 2px var(--down); }
.layers { display: flex; flex-wrap: wrap; gap: .5rem; padding: 0; list-style: none; }
.layers a { display: block; padding: .4rem .8rem; border: 1px solid var(--line);
  border-radius: 8px; background: var(--card); text-decoration: none; }
.bar { display: block; height: .6rem; border-radius: 2px; background: var(--bar); min-width: 2px; }
.down { background: var(--down); }
.bars { display: flex; align-items: flex-end; gap: 2px; height: 5rem;
  border-bottom: 1px solid var(--quiet); }
.bars i { flex: 1; background: var(--bar); min-height: 2px; border-radius: 2px 2px 0 0; }
.ends { display: flex; justify-content: space-between; color: var(--quiet); font-size: .85rem; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
@media print { header, .steps { display: none; } }
"""
    + "".join(f".a{k} {{ background: rgba(var(--on), {k / 12:.2f}); }}\n" for k in range(1, 10))
    + "".join(f".w{k} {{ width: {5 * k}%; }} .h{k} {{ height: {5 * k}%; }}\n" for k in range(21))
)
POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'self'; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    + "'"
)


def page(store: Store, path: str, live: bool = False, query: str = "") -> str | None:
    """The page at an address (`index.html`, `search.html`, `3/index.html`, `3/2.list.html`,
    `3/417.html`; of a store too large for one search, `3/search.html`).

    Args:
        live: somebody answers searches, and `search.html` is what `query` finds.

    Returns:
        HTML; None where there is no such page.
    """
    if path in ("", "index.html"):
        return _still(store, "Features", _front(store), "", live)
    if live and path == "search.html":
        rows = store.search(query, 100) if query.strip() else []
        body = _table(rows, "") if rows else "<p>Nothing found.</p>"
        title = f"Search: {query}"
        return _still(store, title, _heading(title) + body, "", live)
    if path == "search.html":
        return _search(store, store.layers, "")
    found = re.fullmatch(r"(\d{1,9})/(?:(\d{1,9})(\.list)?|index|search)\.html", path)
    if found is None:
        return None
    layer, number = int(found[1]), found[2]
    if path.endswith("/search.html"):
        known = layer in store.layers and not live and not search_page.whole(store)
        return _search(store, [layer], "../") if known else None
    if number is None or found[3]:
        return _list(store, layer, int(number or 0), live)
    try:
        feature = store.feature(layer, int(number))
    except InputError:
        if not store.known(layer, int(number)):
            return None
        raise
    title = f"{feature.layer}.{feature.id} {feature.label.text}"
    return _still(store, title, _feature(store, feature), "../", live)


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
    yield "search.html"
    for layer in store.layers:
        yield f"{layer}/index.html"
        if not search_page.whole(store):
            yield f"{layer}/search.html"
        pages = -(-store.width(layer) // ROWS)
        yield from (f"{layer}/{number}.list.html" for number in range(1, pages))
    yield from (f"{row.layer}/{row.id}.html" for row in store)


def _still(store: Store, title: str, body: str, up: str, live: bool) -> str:
    """A page that runs nothing."""
    return _document(store, title, body, up, POLICY, _form(store, up, live))


def _document(store: Store, title: str, body: str, up: str, policy: str, form: str) -> str:
    name = _text(str(store.about.get("transcoders") or store.path.stem))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_text(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head><body>"
        f'<a class="skip" href="#main">Skip to the page</a><header><nav aria-label="Site">'
        f'<a href="{up}index.html">Features of {name}</a>'
        f'<a href="{up}{_lucky(store, title)}" accesskey="l">I’m feeling lucky</a>'
        f"{form}</nav>"
        f'</header><main id="main">{body}</main></body></html>\n'
    )


def _form(store: Store, up: str, live: bool) -> str:
    """The search of all features; in the export of a large store, the way to that of the layer."""
    if not (live or search_page.whole(store)):
        return '<a href="search.html">Search</a>'
    return (
        f'<form action="{up}search.html" role="search"><input type="search" name="q" '
        'aria-label="Search features" placeholder="a word" accesskey="s"> '
        "<button>Search</button></form>"
    )


def _search(store: Store, layers: Sequence[int], up: str) -> str:
    """The page that searches by itself; the field stands in it, not above."""

    def cells(row: Row) -> tuple[str, str, str]:
        return _shown(row.label.text), _percent(row.density), _number(row.largest)

    title = f"Search layer {layers[0]}" if up else "Search"
    body = _heading(title) + search_page.body(store, layers, up, cells)
    return _document(store, title, body, up, POLICY + search_page.permission(), "")


def _heading(title: str) -> str:
    return f'<h1 dir="auto">{_text(title)}</h1>\n'


def _front(store: Store) -> str:
    about = store.about
    layers = "".join(
        f'<li><a href="{layer}/index.html">Layer {layer}<br><span class="note">'
        f"{store.width(layer):,} features</span></a></li>"
        for layer in store.layers
    )
    said = [
        f"{len(store):,} features",
        f"{about['texts']:,} texts" if "texts" in about else "",
        f"{about['positions']:,} tokens" if "positions" in about else "",
        _text(f"model {about['model']}") if about.get("model") else "",
    ]
    some = dict.fromkeys(store.lucky_key(seed) for seed in range(12)) if store.alive else {}
    return (
        f"{_heading('Features')}<p>{', '.join(part for part in said if part)}. Labels that begin "
        "with ~ were made by machine, of what a feature fires at and what it raises.</p>"
        f'<h2>Layers</h2><ul class="layers">{layers}</ul>'
        f"<h2>Some features</h2>{_table([store.row(*key) for key in some], '')}"
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
    pages = f'<nav class="steps" aria-label="Pages">{" ".join(around)}</nav>' if around else ""
    title = f"Layer {layer}"
    body = f"{_heading(title)}{pages}{_table(rows, '../')}"
    return _still(store, title, body, "../", live)


def _list_name(number: int) -> str:
    return f"{number}.list.html" if number else "index.html"


def _table(rows: list[Row], up: str) -> str:
    cells = "".join(
        f'<tr><td class="l"><a href="{up}{row.layer}/{row.id}.html">{row.layer}.{row.id}</a></td>'
        f'<td dir="auto">{_text(row.label.text)}</td><td class="n">{_percent(row.density)}</td>'
        f'<td class="n">{_number(row.largest)}</td></tr>'
        for row in rows
    )
    return (
        '<table><tr><th>Feature</th><th>Label</th><th class="n">Fires at</th>'
        f'<th class="n">Largest</th></tr>{cells}</table>'
    )


def _feature(store: Store, feature: Feature) -> str:
    largest = feature.largest or 0.0
    groups = [_group(group, largest) for group in feature.groups]
    if feature.silent:
        groups.append('<h2>Silent <span class="dim">for comparison</span></h2>')
        groups += [_example(example, largest) for example in feature.silent]
    aside = [
        _outputs("Raises", feature.raised, "bar"),
        _outputs("Lowers", feature.lowered, "bar down"),
        _histogram(feature.histogram),
        _languages(feature),
        _kin(store, "Fires with", "of the places where it fires", feature.coactive),
        _kin(store, "Similar writing", "cosine of the decoders", feature.similar),
    ]
    main = "\n".join(groups) or "<p>It has no examples: it fires nowhere in the texts.</p>"
    return (
        f'<h1 dir="auto"><span class="id">{feature.layer}.{feature.id}</span> '
        f"{_text(feature.label.text)}</h1>\n{_steps(store, feature)}{_figures(feature)}"
        f'<div class="two"><section aria-label="Examples">{main}</section>'
        f'<aside aria-label="Figures">{"".join(aside)}</aside></div>'
    )


def _steps(store: Store, feature: Feature) -> str:
    """Links to the features before and after, and the layer."""
    before, after = store.beside(feature.layer, feature.id)
    links = [
        f'<a rel="{word}" href="../{key[0]}/{key[1]}.html">{sign} {key[0]}.{key[1]}</a>'
        for word, sign, key in (("prev", "←", before), ("next", "→", after))
        if key is not None
    ]
    links.insert(1 if before else 0, f'<a href="index.html">Layer {feature.layer}</a>')
    return f'<nav class="steps" aria-label="Beside it">{"".join(links)}</nav>'


def _figures(feature: Feature) -> str:
    label = feature.label
    source = "made by machine" if label.automatic else f"by {label.source}"
    figures = [("Fires at", f"{_percent(feature.density)} of tokens"),
               ("Mean", _number(feature.mean)), ("Largest", _number(feature.largest))]  # fmt: skip
    if label.score is not None:
        figures.append(("Label’s score", f"{label.score:.2f}"))
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures)
    return f'<dl>{cells}</dl><p class="note">Label {_text(source)}.</p>'


def _outputs(name: str, tokens: Tokens, look: str) -> str:
    if not tokens:
        return ""
    most = max((abs(value) for _, value in tokens if value == value), default=0.0)
    rows = "".join(
        f"<tr><td><bdi>{_text(token.strip(' ') or token)}</bdi></td>{_bar(abs(value), most, look)}"
        f'<td class="n">{_number(value)}</td></tr>'
        for token, value in tokens
    )
    return f"<h2>{name}</h2><table>{rows}</table>"


def _bar(value: float, most: float, look: str = "bar") -> str:
    width = round(20 * value / most) if most > 0 and value == value else 0
    return f'<td class="fill"><span class="{look} w{width}"></span></td>' if width else "<td></td>"


def _languages(feature: Feature) -> str:
    rates = feature.spread.rates
    if not rates:
        return ""
    most = max(rates.values())
    rows = "".join(
        f"<tr><td>{_text(name or 'unknown')}</td>{_bar(rate, most)}"
        f'<td class="n">{_percent(rate)}</td></tr>'
        for name, rate in rates.items()
    )
    even = feature.spread.evenness
    said = f' <span class="dim">evenness {even:.2f}</span>' if even == even else ""
    return f"<h2>Languages{said}</h2><table>{rows}</table>"


def _histogram(bins: tuple[Bin, ...]) -> str:
    if not bins:
        return ""
    most = max(bar.count for bar in bins)
    bars = "".join(
        f'<i class="h{max(1, round(20 * bar.count / most))}" '
        f'title="{_number(bar.low)} to {_number(bar.high)}: {bar.count:,}"></i>'
        for bar in bins
    )
    said = ", ".join(f"{bar.count:,} from {_number(bar.low)}" for bar in bins)
    return (
        f'<h2>Activations</h2><div class="bars" role="img" aria-label="Places: {said}">'
        f'{bars}</div><div class="ends"><span>{_number(bins[0].low)}</span>'
        f"<span>{_number(bins[-1].high)}</span></div>"
    )


def _kin(store: Store, title: str, share: str, kin: tuple[Kin, ...]) -> str:
    if not kin:
        return ""
    rows = []
    for one in kin:
        label = store.label(one.layer, one.feature)
        name = f"{one.layer}.{one.feature}"
        link = f'<a href="../{one.layer}/{one.feature}.html">{name}</a>' if label else name
        rows.append(
            f'<tr><td class="l">{link}</td><td dir="auto">{_text(label.text if label else "")}</td>'
            f'<td class="n">{one.share:.2f}</td></tr>'
        )
    head = f'<h2>{title} <span class="dim">{share}</span></h2>'
    return f"{head}<table>{''.join(rows)}</table>"


def _group(group: Group, largest: float) -> str:
    examples = "\n".join(_example(example, largest) for example in group.examples)
    return f"<h2>{_text(group.name)}</h2>\n{examples}"


def _example(example: Example, largest: float) -> str:
    parts = []
    fires = example.activations[example.position] > 0
    for place, (token, value) in enumerate(zip(example.tokens, example.activations, strict=True)):
        text = _text(token)
        if fires and place == example.position:
            text = f"<b>{text}</b>"
        shade = min(9, max(1, round(9 * value / largest))) if value > 0 and largest > 0 else 0
        title = f' title="{_number(value)}"' if shade else ""
        parts.append(f'<span class="a{shade}"{title}>{text}</span>' if shade else text)
    language = f' lang="{_text(example.language)}"' if example.language else ""
    shown = _number(example.activations[example.position]) if fires else ""
    text = "".join(parts)
    return f'<div class="row"><span>{shown}</span><p dir="auto"{language}>{text}</p></div>'


def _lucky(store: Store, title: str) -> str:
    """Where luck leads from a page: elsewhere from every page, always the same from one."""
    seed = int.from_bytes(hashlib.blake2b(title.encode("utf-8", "replace"), digest_size=4).digest())
    layer, feature = store.lucky_key(seed)
    return f"{layer}/{feature}.html"


def _text(text: str) -> str:
    """Somebody's text as HTML that shows it and does nothing."""
    return html.escape(_shown(text))


def _shown(text: str) -> str:
    """Somebody's text with what cannot be seen spelled out."""
    return "".join(
        char if char.isprintable() or char in "\u200c\u200d"
        else "⏎" if char == "\n"
        else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )  # fmt: skip


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.3g}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.3g} %"
