"""Parallel corpora: rows that say the same thing in several languages.

A file is tab-separated, UTF-8, with a column a language and its name in the first line. A column
called `group` is optional: rows of one group are about the same kind of thing and are never taken
for unrelated (the bundled corpus groups by task). Without it every row is a group of its own.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from circuit_tracer.errors import InputError

GROUP = "group"
BUNDLED_TASKS = ("antonym", "synonym", "color", "category", "day_next", "month_previous")


@dataclass(frozen=True)
class Corpus:
    """Texts of which each row says the same in every language.

    Attributes:
        languages: names of the columns, ascending.
        rows: a row, one text a language, ascending: the order they came in does not matter.
        groups: of each row.
        name: where it comes from.

    Raises:
        InputError: rows that repeat, lack a text, or are too few to have unrelated ones.
    """

    languages: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    groups: tuple[str, ...]
    name: str = ""

    def __post_init__(self) -> None:
        if len(self.languages) != len(set(self.languages)) or not self.languages:
            raise InputError(f"{self.name}: two columns have one name: {list(self.languages)}")
        for number, row in enumerate(self.rows, 1):
            if len(row) != len(self.languages):
                raise InputError(
                    f"{self.name}: row {number} has {len(row)} texts for "
                    f"{len(self.languages)} languages; give one for each"
                )
            if not all(text.strip() for text in row):
                raise InputError(f"{self.name}: row {number} has an empty text; fill it or drop it")
        if len(set(self.rows)) < len(self.rows):
            raise InputError(f"{self.name}: a row occurs twice; name each once")
        if len(set(self.groups)) < 2:
            raise InputError(
                f"{self.name}: a baseline needs at least two unrelated rows; this corpus has "
                f"{len(self.rows)} in {len(set(self.groups))} group"
            )
        self._sort()

    def _sort(self) -> None:
        columns = sorted(range(len(self.languages)), key=lambda k: self.languages[k])
        rows = [tuple(row[k] for k in columns) for row in self.rows]
        pairs = sorted(zip(rows, self.groups, strict=True))
        object.__setattr__(self, "languages", tuple(self.languages[k] for k in columns))
        object.__setattr__(self, "rows", tuple(row for row, _ in pairs))
        object.__setattr__(self, "groups", tuple(group for _, group in pairs))

    def __len__(self) -> int:
        return len(self.rows)

    def texts(self, language: str) -> list[str]:
        column = self.languages.index(language)
        return [row[column] for row in self.rows]

    def only(self, languages: Sequence[str]) -> Corpus:
        """The same rows in some of the languages. Raises InputError for one it does not have."""
        missing = [language for language in languages if language not in self.languages]
        if missing:
            raise InputError(
                f"{self.name} has no column {missing[0]!r}; it has {', '.join(self.languages)}"
            )
        columns = [self.languages.index(language) for language in languages]
        rows = tuple(tuple(row[k] for k in columns) for row in self.rows)
        return Corpus(tuple(languages), rows, self.groups, self.name)

    def sample(self, count: int, seed: int = 0) -> Corpus:
        """At most `count` rows, drawn; the same ones for the same seed, group by group in turn."""
        if len(self) <= count:
            return self
        draw, waiting = random.Random(seed), dict[str, list[int]]()
        for number in draw.sample(range(len(self)), len(self)):
            waiting.setdefault(self.groups[number], []).append(number)
        turns = sorted(
            ((turn, group, number) for group, mine in waiting.items()
             for turn, number in enumerate(mine))
        )  # fmt: skip
        chosen = [number for _, _, number in turns[:count]]
        rows, groups = [self.rows[k] for k in chosen], [self.groups[k] for k in chosen]
        return Corpus(self.languages, tuple(rows), tuple(groups), self.name)


def read_corpus(path: str | Path) -> Corpus:
    """A corpus from a tab-separated file.

    Raises:
        InputError: no such file, no UTF-8, ragged rows, fewer than two languages or groups.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason}") from error
    lines = csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    table = [row for row in lines if any(cell.strip() for cell in row)]
    head = [cell.strip() for cell in table[0]] if table else []
    languages = [cell for cell in head if cell != GROUP]
    if len(languages) < 2:
        raise InputError(
            f"{path} should begin with a line of at least two languages parted by tabs, such as "
            f"en⇥fr⇥zh; it begins with {head}"
        )
    for number, row in enumerate(table[1:], 2):
        if len(row) != len(head):
            raise InputError(
                f"{path} is ragged: line {number} has {len(row)} cells, its first line {len(head)}"
            )
    place = head.index(GROUP) if GROUP in head else None
    rows = tuple(
        tuple(cell.strip() for k, cell in enumerate(row) if k != place) for row in table[1:]
    )
    groups = tuple(str(n) if place is None else row[place] for n, row in enumerate(table[1:]))
    return Corpus(tuple(languages), rows, groups, str(path))


def bundled_corpus() -> Corpus:
    """Prompts of the bundled model in its five languages, grouped by task.

    Only facts whose subject is spelled differently in every language, so that no word is shared.
    """
    from circuit_tracer.bundled.corpus import corpus
    from circuit_tracer.bundled.tables import LANGUAGES, facts

    subjects = {(fact.task, fact.key): fact.subject for fact in facts()}
    found: dict[tuple[str, str, int], dict[str, str]] = {}
    for sentence in corpus():
        names = subjects[sentence.task, sentence.key].values()
        apart = len({name.lower() for name in names}) == len(LANGUAGES)
        if sentence.task in BUNDLED_TASKS and apart:
            row = found.setdefault((sentence.task, sentence.key, sentence.template), {})
            row[sentence.language] = sentence.prompt
    whole = {key: row for key, row in found.items() if len(row) == len(LANGUAGES)}
    rows = {tuple(row[code] for code in LANGUAGES): key[0] for key, row in whole.items()}
    return Corpus(LANGUAGES, tuple(rows), tuple(rows.values()), "the bundled corpus")
