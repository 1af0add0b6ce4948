"""The tables: every fact the bundled model is asked to learn, in five languages.

A *fact* is a relation (its `task`), a subject and an answer, each given once per language.  Facts
are read from the tab-separated files in `data/`, so that adding one means adding one line.  The
tables know nothing of sentences, splits or tokens; `corpus` turns facts into text.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources

LANGUAGES = ("en", "fr", "de", "es", "zh")

Words = dict[str, str]


@dataclass(frozen=True)
class Fact:
    """One fact: `subject` and `answer` map a language to a word; `operand` is a second subject.

    `key` names the fact within its task, the same in every language.
    """

    task: str
    key: str
    subject: Words
    answer: Words
    operand: Words | None = None


@cache
def table(name: str) -> list[dict[str, str]]:
    """The rows of `data/{name}.tsv`, one dictionary a row, keyed by the header."""
    path = resources.files(__package__) / "data" / f"{name}.tsv"
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t"))


def words(row: dict[str, str], prefix: str = "", suffix: str = "") -> Words:
    """The word of each language in `row`, from the columns `{prefix}{language}{suffix}`."""
    named = {code: row.get(f"{prefix}{code}{suffix}") for code in LANGUAGES}
    return {code: word for code, word in named.items() if word}


def index(name: str) -> dict[str, Words]:
    """A table keyed by its `key` column."""
    return {row["key"]: words(row) for row in table(name)}


def facts() -> list[Fact]:
    """Every fact of every task, in a fixed order."""
    return [
        *_word_facts(),
        *_country_facts(),
        *_state_facts(),
        *_cycle_facts(),
        *_number_facts(),
    ]


def concepts() -> list[Words]:
    """Every word with its names in all five languages: what translation sentences are made from."""
    found: dict[tuple[str, ...], Words] = {}
    for fact in facts():
        for word in (fact.subject, fact.answer):
            if len(word) == len(LANGUAGES):
                found.setdefault(tuple(word.values()), word)
    for word in index("languages").values():
        found.setdefault(tuple(word.values()), word)
    return list(found.values())


def _word_facts() -> list[Fact]:
    """Antonyms in both directions, synonyms, colours, categories and plurals."""
    out = []
    for row in table("antonyms"):
        one, other = words(row), words(row, suffix="_opposite")
        out += [Fact("antonym", one["en"], one, other), Fact("antonym", other["en"], other, one)]
        out += [Fact("antonym_in", one["en"], one, other)]
        out += [Fact("antonym_in", other["en"], other, one)]
    for row in table("synonyms"):
        out.append(Fact("synonym", row["en"], words(row), words(row, suffix="_synonym")))
    colors, categories = index("colors"), index("categories")
    for row in table("things"):
        out.append(Fact("color", row["key"], words(row), colors[row["color"]]))
    for row in table("members"):
        out.append(Fact("category", row["key"], words(row), categories[row["category"]]))
    for row in table("plurals"):
        out.append(Fact("plural", row["en"], words(row), words(row, suffix="_plural")))
    return out


def _country_facts() -> list[Fact]:
    """What is known of a country, of the cities in it, and of a city by way of its country."""
    out, known = [], {}
    for row in table("countries"):
        key, name, capital = row["key"], words(row), words(row, prefix="capital_")
        known[key] = {
            "capital": capital,
            "language": index("languages")[row["language"]],
            "currency": index("currencies")[row["currency"]],
            "continent": index("continents")[row["continent"]],
        }
        out += [Fact(task, key, name, answer) for task, answer in known[key].items()]
        out.append(Fact("capital_in", key, name, capital))
        out.append(Fact("city_country", capital["en"], capital, name))
    countries = index("countries")
    for row in table("country_cities"):
        city = words(row)
        out.append(Fact("city_country", row["key"], city, countries[row["country"]]))
        for task, answer in known[row["country"]].items():
            out.append(Fact(f"hop_country_{task}", row["key"], city, answer))
    return out


def _state_facts() -> list[Fact]:
    """What is known of a state, of the cities in it, and of a city by way of its state."""
    out, known = [], {}
    for row in table("states"):
        key, name, capital = row["key"], words(row), words(row, prefix="capital_")
        known[key] = {
            "capital": capital,
            "region": index("regions")[row["region"]],
            "timezone": index("timezones")[row["timezone"]],
        }
        out += [Fact(f"state_{task}", key, name, answer) for task, answer in known[key].items()]
        out.append(Fact("city_state", capital["en"], capital, name))
    states = index("states")
    for row in table("state_cities"):
        city = words(row)
        out.append(Fact("city_state", row["key"], city, states[row["state"]]))
        for task, answer in known[row["state"]].items():
            out.append(Fact(f"hop_state_{task}", row["key"], city, answer))
    return out


def _cycle_facts() -> list[Fact]:
    """The next and the previous day and month."""
    out = []
    for task, name in (("day", "days"), ("month", "months")):
        keys, cycle = list(index(name)), list(index(name).values())
        for i, key in enumerate(keys):
            out.append(Fact(f"{task}_next", key, cycle[i], cycle[(i + 1) % len(cycle)]))
            out.append(Fact(f"{task}_previous", key, cycle[i], cycle[i - 1]))
    return out


def _number_facts() -> list[Fact]:
    """The next and the previous number, and the sums up to ten and ten."""
    numbers = list(index("numbers").items())
    out = []
    for (low_key, low), (high_key, high) in zip(numbers, numbers[1:], strict=False):
        out.append(Fact("number_next", low_key, low, high))
        out.append(Fact("number_previous", high_key, high, low))
    for i, (first_key, first) in enumerate(numbers[:11]):
        for j, (second_key, second) in enumerate(numbers[:11]):
            key = f"{first_key}+{second_key}"
            out.append(Fact("sum", key, first, numbers[i + j][1], operand=second))
    return out
