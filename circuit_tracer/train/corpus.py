"""The text to train on: files read, tokenised, and cut into pieces that the model reads at once.

A file holds one text a line; in a folder each file is one text. `.jsonl` files, in either place,
hold one object a line with the text under "text". Empty texts are left out, and so are pieces of a
single token: the first token of a piece is never trained on, as graphs leave it out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.errors import InputError
from circuit_tracer.shapes import Int, Tensor

WINDOW = 256
"""Longer texts are cut into pieces of so many tokens, each with its own beginning."""

AT_ONCE = 1000
HELD_OUT_SHARE, HELD_OUT_PIECES = 0.1, 200


@dataclass(frozen=True, eq=False)
class Corpus:
    """Pieces of text as token ids.

    Attributes:
        ids: all pieces, one after another.
        starts: where each piece starts in `ids`, and where the last one ends.
    """

    ids: Int[Tensor, " token"]
    starts: Int[Tensor, " boundary"]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def piece(self, number: int) -> Int[Tensor, " position"]:
        """Token ids of one piece."""
        return self.ids[self.starts[number] : self.starts[number + 1]]

    def only(self, numbers: Sequence[int]) -> Corpus:
        """Some of the pieces."""
        return _joined([self.piece(number) for number in numbers])

    @property
    def rows(self) -> list[int]:
        """Tokens that are trained on, by piece: all but the first."""
        return [length - 1 for length in self.starts.diff().tolist()]

    @property
    def mark(self) -> str:
        """A checksum of the pieces."""
        found = hashlib.sha256(self.ids.numpy().tobytes())
        found.update(self.starts.numpy().tobytes())
        return found.hexdigest()


def read_texts(path: Path) -> list[str]:
    """The texts of a file or folder, in the order of its names.

    Raises:
        InputError: nothing there, not UTF-8, not JSON lines, or no text at all.
    """
    if not path.exists():
        raise InputError(f"there is no text at {path}; give a file or a folder")
    if path.is_dir():
        files = sorted(found for found in path.rglob("*") if found.is_file() and _seen(found, path))
        texts = [text for found in files for text in _texts(found, whole=True)]
    else:
        texts = _texts(path, whole=False)
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise InputError(f"{path} holds no text to train on: every line is empty")
    return texts


def _seen(found: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in found.relative_to(folder).parts)


def _texts(path: Path, whole: bool) -> list[str]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path} is not UTF-8 text: line {line} holds the byte 0x{raw[error.start]:02x} "
            f"({error.reason}). Convert it, e.g. iconv -f latin1 -t utf-8"
        ) from error
    if path.suffix == ".jsonl":
        return [_of_object(line, number, path) for number, line in _lines(text)]
    return [text] if whole else [line for _, line in _lines(text)]


def _lines(text: str) -> list[tuple[int, str]]:
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [(n, line) for n, line in enumerate(lines, start=1) if line.strip()]


def _of_object(line: str, number: int, path: Path) -> str:
    try:
        found = json.loads(line)
        text = found["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'{path}, line {number}: expected a JSON object with the text under "text"'
        ) from error
    if not isinstance(text, str):
        raise InputError(f'{path}, line {number}: "text" is {type(text).__name__}, not a string')
    return text


def tokenised(
    tokenizer: Any, texts: Sequence[str], context: int | None, window: int = WINDOW
) -> Corpus:
    """Texts as pieces of at most `window` tokens (or the model's `context`, if less).

    Every piece begins with the tokenizer's beginning-of-sequence token, or what stands in for it,
    as prompts do when they are traced.

    Raises:
        InputError: no piece has two tokens.
    """
    window = min(window, context or window)
    special = set(tokenizer.all_special_ids)
    names = ("bos_token_id", "pad_token_id", "eos_token_id")
    known = [token for name in names if (token := getattr(tokenizer, name, None)) is not None]
    pieces = []
    for start in range(0, len(texts), AT_ONCE):
        for ids in tokenizer(list(texts[start : start + AT_ONCE]))["input_ids"]:
            lead = ids[:1] if ids and ids[0] in special else known[:1]
            body = ids[1:] if ids[:1] == lead else ids
            step = max(1, window - len(lead))
            for place in range(0, len(body), step):
                piece = [*lead, *body[place : place + step]]
                if len(piece) > 1:
                    pieces.append(torch.tensor(piece, dtype=torch.int32))
    if not pieces:
        raise InputError(
            f"the {len(texts)} texts have one token each: nothing follows their first token, "
            "which is never trained on. Give longer texts"
        )
    return _joined(pieces)


def _joined(pieces: Sequence[Tensor]) -> Corpus:
    lengths = torch.tensor([0, *(len(piece) for piece in pieces)])
    return Corpus(torch.cat(list(pieces)), lengths.cumsum(0))


def split(corpus: Corpus, seed: int) -> tuple[Corpus, Corpus]:
    """(to train on, held out for the agreement check): a tenth of the pieces, at most 200.

    A corpus of one piece is cut in two.
    """
    if len(corpus) == 1:
        ids = corpus.piece(0)
        cut = max(2, len(ids) * 9 // 10)
        if len(ids) < 6:
            raise InputError(
                f"the text has {len(ids)} tokens; training and checking want at least 6, and "
                "thousands to be of use"
            )
        return _joined([ids[:cut]]), _joined([torch.cat([ids[:1], ids[cut - 1 :]])])
    order = torch.randperm(len(corpus), generator=torch.Generator().manual_seed(seed)).tolist()
    count = max(1, min(HELD_OUT_PIECES, int(len(corpus) * HELD_OUT_SHARE)))
    return corpus.only(sorted(order[count:])), corpus.only(sorted(order[:count]))
