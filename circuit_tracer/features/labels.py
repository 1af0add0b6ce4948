"""What features are called: by machine from their own figures, or by people.

An automatic label says what a feature fires at and which tokens it raises, `~ petit → grand`; the
tilde marks it wherever it stands. Labels that people give are passed on as small JSON files:

    {"labels": [{"layer": 2, "feature": 417, "label": "antonyms", "source": "me"}]}

An export of explanations from Neuronpedia is read too: objects with `layer` (its number begins the
name: "2-gemmascope-mlp-16k"), `index` and `description`, in a list or a line each, also compressed
with gzip. Descriptions that are empty are passed over, and long ones cut.
"""

from __future__ import annotations

import gzip
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
GZIP = b"\x1f\x8b"


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
        data = Path(path).read_bytes()
        text = (gzip.decompress(data) if data.startswith(GZIP) else data).decode("utf-8-sig")
        whole = _parsed(text)
    except (OSError, EOFError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if isinstance(whole, dict):
        whole = [whole] if "description" in whole else whole.get("labels")
    if not isinstance(whole, list):
        raise InputError(f'{path} should hold a list of labels, or {{"labels": [...]}}')
    found = (_entry(path, number, entry) for number, entry in enumerate(whole, 1))
    return dict(entry for entry in found if entry is not None)


def _parsed(text: str) -> Any:
    """JSON, whole or a line an entry. ValueError for neither."""
    try:
        return json.loads(text)
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2 or not lines[0].rstrip().endswith("}"):
            raise
        return [json.loads(line) for line in lines]


def text(labels: Mapping[tuple[int, int], Label]) -> str:
    """Labels as the JSON of a file that `read` reads, ascending."""
    rows = [
        {"layer": layer, "feature": one, "label": label.text, "source": label.source}
        | ({} if label.score is None else {"score": label.score})
        for (layer, one), label in sorted(labels.items())
    ]
    return json.dumps({"labels": rows}, ensure_ascii=False, indent=1) + "\n"


def _entry(path: Any, number: int, entry: Any) -> tuple[tuple[int, int], Label] | None:
    """(layer, id) and label of an entry; None for a description that says nothing."""
    if isinstance(entry, dict):
        layer = re.match(r"\d+", str(entry.get("layer", "")))
        feature = re.fullmatch(r"\d+", str(entry.get("feature", entry.get("index", ""))))
        text = entry.get("label", entry.get("description"))
        if layer and feature and "description" in entry:
            text = " ".join(str(text or "").split()).lstrip(MARK)[:LONGEST]
            if not text:
                return None
        if layer and feature and isinstance(text, str) and text.strip():
            theirs = "Neuronpedia" if "description" in entry else str(path)
            source = str(entry.get("source") or theirs)
            return (int(layer[0]), int(feature[0])), checked(text, source, _score(entry))
    raise InputError(
        f"{path}: entry {number} should have layer, feature and label, or layer, index and "
        f"description; it is {str(entry)[:200]}"
    )


def _score(entry: dict[str, Any]) -> float | None:
    """The score of an entry of ours; None where it has none, or somebody else's."""
    score = entry.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float):
        return None
    return float(score) if -1 <= score <= 1 else None


def checked(text: str, source: str, score: float | None = None) -> Label:
    """A label that a person gave. Raises InputError where it is empty, long, or looks automatic."""
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    if not text or len(text) > LONGEST:
        raise InputError(f"a label should have 1 to {LONGEST} characters; this has {len(text)}")
    if text.startswith(MARK.strip()) or source == AUTOMATIC:
        raise InputError(f"a label that begins with {MARK.strip()} is an automatic one: {text}")
    return Label(text, source, score)
