"""What features are called: by machine from their own figures, or by people.

An automatic label says what a feature fires at and which tokens it raises, `~ petit → grand`; the
tilde marks it wherever it stands. Labels that people give are passed on as small JSON files:

    {"labels": [{"layer": 2, "feature": 417, "label": "antonyms", "source": "me"}]}

An export of explanations from Neuronpedia is read too: objects with `layer` (its number begins the
name: "2-gemmascope-mlp-16k"), `index` and `description`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from circuit_tracer.errors import InputError
from circuit_tracer.features.feature import AUTOMATIC, MARK, Label

Labels = dict[tuple[int, int], Label]
LONGEST = 400


def automatic(fires: Iterable[str], says: Iterable[str], count: int | None) -> Label:
    """A label made of words a feature fires at and words it raises.

    >>> automatic(["petit"], ["grand", "large"], 12).text
    '~ petit → grand, large'
    """
    if count == 0:
        return Label(f"{MARK}never fires", AUTOMATIC)
    heard, said = (", ".join(shown(word.strip()) for word in words) for words in (fires, says))
    words = f"{heard} → {said}" if heard and said else heard or f"→ {said}"
    return Label(f"{MARK}{words}" if heard or said else f"{MARK}unknown", AUTOMATIC)


def shown(word: str) -> str:
    """A word with blanks and control characters visible, and cut where it is long."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in word)
    return text if len(text) <= 24 else text[:23] + "…"


def read(path: str | os.PathLike[str]) -> Labels:
    """Labels from a file of ours or an export from Neuronpedia.

    Raises:
        InputError: no such file, or entries that are no labels.
    """
    try:
        whole = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    entries = whole.get("labels") if isinstance(whole, dict) else whole
    if not isinstance(entries, list):
        raise InputError(f'{path} should hold a list of labels, or {{"labels": [...]}}')
    return dict(_entry(path, number, entry) for number, entry in enumerate(entries, 1))


def text(labels: Mapping[tuple[int, int], Label]) -> str:
    """Labels as the JSON of a file that `read` reads, ascending."""
    rows = [
        {"layer": layer, "feature": one, "label": label.text, "source": label.source}
        for (layer, one), label in sorted(labels.items())
    ]
    return json.dumps({"labels": rows}, ensure_ascii=False, indent=1) + "\n"


def _entry(path: Any, number: int, entry: Any) -> tuple[tuple[int, int], Label]:
    if isinstance(entry, dict):
        layer = re.match(r"\d+", str(entry.get("layer", "")))
        feature = re.fullmatch(r"\d+", str(entry.get("feature", entry.get("index", ""))))
        text = entry.get("label", entry.get("description"))
        if layer and feature and isinstance(text, str) and text.strip():
            theirs = "Neuronpedia" if "description" in entry else str(path)
            source = str(entry.get("source") or theirs)
            return (int(layer[0]), int(feature[0])), checked(text, source)
    raise InputError(
        f"{path}: entry {number} should have layer, feature and label, or layer, index and "
        f"description; it is {str(entry)[:200]}"
    )


def checked(text: str, source: str) -> Label:
    """A label that a person gave. Raises InputError where it is empty, long, or looks automatic."""
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    if not text or len(text) > LONGEST:
        raise InputError(f"a label should have 1 to {LONGEST} characters; this has {len(text)}")
    if text.startswith(MARK.strip()) or source == AUTOMATIC:
        raise InputError(f"a label that begins with {MARK.strip()} is an automatic one: {text}")
    return Label(text, source)
