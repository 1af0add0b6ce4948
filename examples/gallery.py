"""The gallery: antonyms, capitals and two-step facts in five languages, compared.

    python gallery.py -o gallery            pages, pictures and an index, in one to two minutes
    python gallery.py --only antonyms --rows 4

Everything is made from the bundled model, and every number in the index comes from the comparison
beside it.
"""

import argparse
from html import escape
from pathlib import Path

import circuit_tracer as ct

PROMPTS = {
    "antonyms": {
        "en": "The opposite of small is",
        "fr": "Le contraire de petit est",
        "de": "Das Gegenteil von klein ist",
        "es": "Lo contrario de pequeño es",
        "zh": "小的反义词是",
    },
    "capitals": {
        "en": "The capital of Japan is",
        "fr": "La capitale de Japon est",
        "de": "Die Hauptstadt von Japan ist",
        "es": "La capital de Japón es",
        "zh": "日本的首都是",
    },
    "two-steps": {
        "en": "The capital of the state containing Dallas is",
        "fr": "La capitale de l'État qui contient Dallas est",
        "de": "Die Hauptstadt des Staates mit der Stadt Dallas ist",
        "es": "La capital del estado que contiene Dallas es",
        "zh": "包含达拉斯的州的首府是",
    },
}
TITLES = {
    "antonyms": "Antonyms: the opposite of small",
    "capitals": "Capitals: of Japan",
    "two-steps": "Two steps: from Dallas to Texas to its capital",
}
STYLE = (
    ":root { color-scheme: light dark } body { font: 16px/1.5 system-ui, sans-serif; "
    "max-width: 62rem; margin: 2rem auto; padding: 0 1rem } img { max-width: 100% } "
    "td { padding-right: 1rem }"
)


def answers(found: ct.Comparison) -> list[tuple[str, str, str, float]]:
    """(language, prompt, likeliest next token, its probability)."""
    rows = []
    for side, circuit in zip(found.sides, found.circuits, strict=True):
        best = max(circuit.find(kind="logit"), key=lambda node: node.probability or 0.0)
        rows.append((side.name, side.prompt, best.token, best.probability or 0.0))
    return rows


def section(name: str, found: ct.Comparison) -> str:
    """Prompts, answers, picture and summary of one comparison."""
    rows = "".join(
        f'<tr><td>{code}</td><td lang="{code}">{escape(prompt)}</td>'
        f'<td lang="{code}">{escape(token)}</td><td>{100 * probability:.1f} %</td></tr>'
        for code, prompt, token, probability in answers(found)
    )
    notes = "".join(f"<p>{escape(said)}</p>" for said in found.notices)
    return (
        f'<h2 id="{name}">{escape(TITLES[name])}</h2><table>{rows}</table>'
        f'<p><a href="{name}.html"><img src="{name}.svg" alt="{escape(TITLES[name])}"></a></p>'
        f'<p>{escape(found.summary())}</p>{notes}<p><a href="{name}.html">Open the page</a></p>'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("gallery"))
    parser.add_argument("--only", choices=PROMPTS, nargs="+", default=list(PROMPTS))
    parser.add_argument("--rows", type=int, default=30, help="of the corpus that are run")
    given = parser.parse_args()

    given.output.mkdir(parents=True, exist_ok=True)
    model, sections = ct.load(), []
    for name in given.only:
        found = ct.compare(PROMPTS[name], model, rows=given.rows)
        found.save_html(given.output / f"{name}.html")
        found.save_svg(given.output / f"{name}.svg")
        sections.append(section(name, found))
        print(f"{name}: {found.summary()}")
    index = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Gallery</title><style>{STYLE}</style><h1>Five languages, side by side</h1>"
        + "".join(sections)
    )
    (given.output / "index.html").write_text(index + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
