"""How few tokens a text can have, without tokenising it.

Tokenising takes seconds a megabyte, far too long for a text that cannot fit the model anyway. Where
a tokenizer leaves no character out, a text has at least as many tokens as its length holds the
longest entry of the vocabulary. Three kinds of tokenizer leave something out, and nothing is said
of them: those with a token for whatever they do not know, those that drop spaces, and those whose
special tokens swallow the spaces beside them.
"""

from __future__ import annotations

import json
from typing import Any

KEEPING = ("ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "UnicodeScripts")
"""Steps that part a text and keep all of it, unless their behaviour is "Removed"."""


def longest_token(tokenizer: Any) -> int | None:
    """Characters that one token stands for at most; None where that may be any number.

    Args:
        tokenizer: of Hugging Face; None is the answer for one that is not "fast".
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    made = json.loads(backend.to_str())
    model, added, steps = made["model"], made["added_tokens"], _steps(made["pre_tokenizer"])
    if model["type"] not in ("BPE", "Unigram") or any(x["lstrip"] or x["rstrip"] for x in added):
        return None
    if any(x["type"] not in KEEPING or x.get("behavior") == "Removed" for x in steps):
        return None
    vocabulary = model["vocab"]
    pieces = {entry if isinstance(entry, str) else entry[0] for entry in vocabulary}
    if not _spells_everything(model, pieces, steps):
        return None
    return max(map(len, (*pieces, *(x["content"] for x in added))))


def least_tokens(tokenizer: Any, longest: int, text: str) -> int:
    """How many tokens a text has at least, special ones aside.

    Args:
        longest: from `longest_token`.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    return len(text if normalizer is None else normalizer.normalize_str(text)) // longest


def _steps(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a pre-tokenizer, one by one."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    return [found for inner in step["pretokenizers"] for found in _steps(inner)]


def _spells_everything(
    model: dict[str, Any], pieces: set[str], steps: list[dict[str, Any]]
) -> bool:
    """Whether any byte that has no better token has its own."""
    from tokenizers.pre_tokenizers import ByteLevel

    if any(step["type"] == "ByteLevel" for step in steps):
        return set(ByteLevel.alphabet()) <= pieces
    return bool(model.get("byte_fallback")) and {f"<0x{n:02X}>" for n in range(256)} <= pieces
