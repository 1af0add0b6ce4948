"""The tokenizer: a hand-made Unigram vocabulary in which every word of the tables is one piece.

Learnt subword vocabularies of this size split most names and glue Chinese templates together,
which makes graphs hard to read.  So the vocabulary is written down instead of learnt: the words
of all sentences, the characters they use, and the 256 bytes as a fallback for everything else.
A space belongs to the piece that follows it, and is written "▁".
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .corpus import Sentence, corpus, glossaries, switched, templates, translations
from .tables import LANGUAGES, concepts

SPECIAL = ("<unk>", "<bos>", "<eos>", "<pad>")
BOS, EOS, PAD = 1, 2, 3
_CJK = re.compile(r"[\u3000-\u9fff\uff00-\uffef]")
_WORD = re.compile(r"▁?[^\W_]+(?:[-’'](?=\w)[^\W_]+|')?|▁?[^\w▁]")
_WORD_SCORE, _CHARACTER_SCORE, _BYTE_SCORE = -8.0, -14.0, -20.0


def build_tokenizer() -> Any:
    """The fast tokenizer (`PreTrainedTokenizerFast`), which puts <bos> before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.Unigram(vocabulary(), unk_id=0, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer so that every transformers release since 4.50 reads it alike."""
    import json

    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def vocabulary() -> list[tuple[str, float]]:
    """Pieces with their Unigram scores, in id order; the same on every machine."""
    sentences = corpus() + switched() + translations() + glossaries()
    whole = sorted(_latin_words(sentences) | _chinese_words() | set("。：，？"))
    characters = {chr(code) for code in range(33, 127)} | {"▁"}
    characters |= {c for sentence in sentences for c in sentence.text} - {" "}
    pieces = {special: 0.0 for special in SPECIAL} | {"<unk>": -30.0}
    for piece in whole:
        pieces.setdefault(piece, _WORD_SCORE)
    for character in sorted(characters):
        pieces.setdefault(character, _CHARACTER_SCORE)
        if character.isalpha() and ord(character) < 0x2000:
            pieces.setdefault("▁" + character, _CHARACTER_SCORE - 0.5)
    pieces |= {f"<0x{byte:02X}>": _BYTE_SCORE for byte in range(256)}
    return list(pieces.items())


def _latin_words(sentences: list[Sentence]) -> set[str]:
    """Every word of the sentences that is not Chinese, with its leading space if it has one."""
    found: set[str] = set()
    for sentence in sentences:
        found.update(_WORD.findall(sentence.text.replace(" ", "▁")))
    return {word for word in found if not _CJK.search(word)}


def _chinese_words() -> set[str]:
    """The Chinese words of the tables, and those that the templates mark off by spaces."""
    found = {word["zh"] for word in concepts()}
    for task in templates().values():
        for template in task["zh"]:
            found.update(re.split(r"[ |\"，。：]|\{\w\}", template))
    return {word for word in found if word and _CJK.search(word)}


def entity_shares(tokenizer: Any) -> dict[str, float]:
    """Language -> share of the tables' words that are one token, as they stand in a sentence."""
    shares = {}
    for code in LANGUAGES:
        gap = "" if code == "zh" else " "
        texts = [gap + word[code] for word in concepts()]
        lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        shares[code] = sum(length == 1 for length in lengths) / len(lengths)
    return shares
