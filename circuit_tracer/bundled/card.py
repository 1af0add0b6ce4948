"""The model card: every figure of `measure`, `probes` and the tracer itself, as data and as a page.

`measure_all` returns what `card.json` holds; `describe` writes the page from it, so that the page
cannot say what was not measured.  Figures that miss their goal stand beside it like the others.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from . import measure, probes
from .corpus import corpus, glossaries, switched, translations
from .folder import INPUT_SITE, OUTPUT_SITE, Folded
from .language_model import read, shape_dict
from .tables import facts
from .tokenizer import entity_shares

GOALS = {
    "train": 0.98,
    "template": 0.90,
    "language": 0.90,
    "compose": 0.95,
    "agreement": 0.97,
    "patch": 0.90,
    "mean_path": 2.0,
}
_MEANING = {
    "train": "trained sentences (a sample)",
    "template": "fact unseen under this template in this language",
    "language": "fact unseen in any sentence of this language",
    "compose": "two-hop fact never stated in any language",
    "sum": "addition never stated in any language",
}


def measure_all(
    folder: Path, pairs: int, count: int, seed: int, progress: Callable[[int, int, str], None]
) -> dict[str, object]:
    """Measure the model and its sets as they stand in `folder`.

    `pairs` of prompts a patch, at most `count` prompts a figure.
    """
    from transformers import PreTrainedTokenizerFast

    from circuit_tracer.loading import load

    model = read(folder / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    sets = {kind: Folded(folder / kind) for kind in ("plt", "clt")}
    prompts = measure.unseen(min(count, 1500), seed)
    card: dict[str, object] = {"shape": shape_dict(model.shape), "seed": seed}
    steps = {
        "corpus": lambda: _counts(tokenizer),
        "accuracy": lambda: measure.accuracies(model, tokenizer, count),
        "shown": lambda: measure.shown(model, tokenizer, sets),
        "lens": lambda: measure.lens(model, tokenizer, prompts),
        "replacement": lambda: {
            kind: {
                "features": folded.w_enc[0].shape[0],
                **measure.replacement(
                    load(folder / "model", folder / kind), model, tokenizer, folded, prompts
                ),
            }
            for kind, folded in sets.items()
        },
        "patches": lambda: probes.patches(model, tokenizer, pairs, seed),
        "overlap": lambda: probes.overlap(model, tokenizer, sets["plt"], min(count, 250)),
        "graphs": lambda: {kind: graph_scores(folder / "model", folder / kind) for kind in sets},
    }
    for done, (name, run) in enumerate(steps.items(), start=1):
        card[name] = run()
        progress(done, len(steps), name)
    card["sharing"] = probes.sharing(card["overlap"])
    weights = [path for kind in ("model", "plt", "clt") for path in (folder / kind).iterdir()]
    card["bytes"] = sum(path.stat().st_size for path in weights)
    return card


def graph_scores(model: Path, transcoders: Path) -> dict[str, dict[str, float]]:
    """Scores of the whole graphs of the prompts in `measure.SHOWN`, by the tracer."""
    from circuit_tracer.loading import load
    from circuit_tracer.tracing import trace

    replaced, found = load(model, transcoders), {}
    for prompt in measure.SHOWN:
        graph = trace(prompt, replaced, max_features=None)
        found[prompt] = {
            "features": graph.index.n_features,
            "replacement": round(graph.scores.replacement, 4),
            "completeness": round(graph.scores.completeness, 4),
            "mean_path": round(graph.scores.mean_path_length, 3),
        }
    return found


def _counts(tokenizer) -> dict[str, object]:
    splits: dict[str, int] = {}
    for sentence in corpus():
        splits[sentence.split] = splits.get(sentence.split, 0) + 1
    return {
        "facts": len(facts()),
        "sentences": splits,
        "switched": len(switched()),
        "translations": len(translations()),
        "glossaries": len(glossaries()),
        "tokens": len(tokenizer),
        "one_token": {code: round(share, 4) for code, share in entity_shares(tokenizer).items()},
    }


def describe(card: dict) -> str:
    """The page, in Markdown."""
    parts = [_opening(card), _accuracy(card), _shown(card), _replacement(card), _depth(card)]
    return "\n\n".join([*parts, _sharing(card), _making(card)]) + "\n"


def _opening(card: dict) -> str:
    shape = card["shape"]
    counts = card["corpus"]
    return f"""# The bundled model

A language model of {shape["layers"]} layers (d_model {shape["d_model"]}, {shape["heads"]} heads, \
Gemma 2 architecture, {counts["tokens"]} tokens) that knows {counts["facts"]} facts in English, \
French, German, Spanish and Chinese, with per-layer transcoders (`plt/`) and a cross-layer \
transcoder (`clt/`), both `{INPUT_SITE}` → `{OUTPUT_SITE}`, JumpReLU. It exists to be traced: \
small enough to ship, yet it computes its answers over several layers and shares features between \
languages. It knows its tables and the sentences they are put in, nothing else: do not use it as a \
language model. Places, currencies and the like are simplified (a state has one time zone).

It was trained on sentences made from the tables and templates in `../data`, by the recipe beside \
it, and on nothing else. Every figure below was measured by the recipe on the files as they ship \
(bfloat16 weights, computed in float32), one seed, and says what it says: goals that were missed \
are marked. `card.json` holds the same figures and more, by task and language."""


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _against(value: float, name: str) -> str:
    """A share and whether it reaches its goal."""
    goal = GOALS.get(name)
    if goal is None:
        return f"{_percent(value)}"
    return f"{_percent(value)} (goal {100 * goal:.0f} %{'' if value >= goal else ', missed'})"


def _accuracy(card: dict) -> str:
    head = [_row("prompts", "number", "first token of the answer is right"), _row(*["---"] * 3)]
    rows = [
        _row(_MEANING[split], found["prompts"], _against(found["all"], split))
        for split, found in card["accuracy"].items()
    ]
    counts = card["corpus"]
    note = (
        f"Trained on {counts['sentences']['train']} sentences, {counts['switched']} code-switched "
        f"ones (the subject named in another language), {counts['translations']} translations and "
        f"{counts['glossaries']} glossary lines. A fact held out of a language may still be "
        "trained with its subject's name in that language inside a sentence of another one; its "
        "answer is never asked for in the held-out language."
    )
    return "\n".join(["## What it knows", "", *head, *rows, "", note])


def _shown(card: dict) -> str:
    head = [_row("prompt", "wanted", "model", "with PLT", "with CLT"), _row(*["---"] * 5)]
    rows = []
    for prompt, said in card["shown"].items():
        cells = [f"`{said[kind][0]}` {said[kind][1]:.2f}" for kind in ("model", "plt", "clt")]
        rows.append(_row(prompt, f"`{said['wanted']}`", *cells))
    return "\n".join(["## Four prompts", "", *head, *rows])


def _replacement(card: dict) -> str:
    lines = ["## How much the transcoders carry", ""]
    lines.append(
        "Every MLP replaced at every position but the first, on prompts held out of all training."
    )
    for kind, found in card["replacement"].items():
        layers = len(found["l0"])
        table = [_row("layer", *range(layers)), _row(*["---"] * (layers + 1))]
        for name in (
            "normalised_error",
            "normalised_error_last",
            "l0",
            "l0_last",
            "unused_share",
            "unused_share_last",
        ):
            table.append(_row(name.replace("_", " "), *found[name]))
        lines += [
            "",
            f"**{kind.upper()}**, {found['features']} features a layer: same top token "
            f"{_against(found['agreement'], 'agreement')}; cross-entropy of the answer "
            f"{found['cross_entropy']} → {found['cross_entropy_replaced']}, of every token "
            f"{found['cross_entropy_all']} → {found['cross_entropy_all_replaced']}; KL "
            f"{found['kl']}; accuracy {_percent(found['accuracy'])} → "
            f"{_percent(found['accuracy_replaced'])} ({found['prompts']} prompts).",
            "",
            *table,
        ]
    return "\n".join(lines)


def _depth(card: dict) -> str:
    layers = card["shape"]["layers"]
    table = [_row("after layer", *range(layers)), _row(*["---"] * (layers + 1))]
    table.append(_row("logit lens says the answer", *card["lens"]))
    names = {
        "city_to_city": "another city's residual: its capital",
        "state_to_city": "a state's residual in a city's place: its capital",
        "chinese_city_to_english": "a Chinese city's residual: its capital, in English",
        "chinese_word_to_english": "a Chinese word's residual: its antonym, in English",
    }
    table += [_row(names[name], *shares) for name, shares in card["patches"].items()]
    graphs = [
        _row("graph", "set", "features", "replacement", "completeness", "mean path"),
        _row(*["---"] * 6),
    ]
    for kind, found in card["graphs"].items():
        for prompt, scores in found.items():
            graphs.append(_row(prompt, kind.upper(), *scores.values()))
    text = (
        "Share of prompts by layer; patches go to the subject's last token (goal 0.9 in the layers "
        "before the answer forms). Graph scores are those of whole, unpruned graphs; a mean path "
        "of 1 would mean that everything goes straight from embeddings to logits (goal 2)."
    )
    return "\n".join(["## Depth", "", text, "", *table, "", *graphs])


def _sharing(card: dict) -> str:
    head = [
        _row("pair", "best inner layer", "same fact", "÷ same task", "÷ unrelated"),
        _row(*["---"] * 5),
    ]
    rows = [_row(pair, *found.values()) for pair, found in card["sharing"].items()]
    reached = [
        found["over_same_task"] >= 3 and found["over_unrelated"] >= 6
        for found in card["sharing"].values()
    ]
    layers = card["shape"]["layers"]
    whole = [_row("pair", "facts", *range(layers)), _row(*["---"] * (layers + 2))]
    for pair, kinds in card["overlap"].items():
        whole += [_row(pair, name.replace("_", " "), *values) for name, values in kinds.items()]
    text = (
        "Intersection over union of the PLT features active at the last token of one fact in two "
        "languages, against other facts of the same task and facts of other tasks. Goal: three "
        "times same-task and six times unrelated in some inner layer for every pair; "
        f"{sum(reached)} of {len(reached)} pairs reach it."
    )
    return "\n".join(["## Sharing between languages", "", text, "", *head, *rows, "", *whole])


def _making(card: dict) -> str:
    command = "`python -m circuit_tracer.bundled.recipe`"
    lines = ["## How it was made", "", f"{command}; minutes of wall clock:", ""]
    for stage, noted in card.get("minutes", {}).items():
        lines.append(f"- {stage}: {noted['minutes']} min, {noted['threads']} thread(s)")
    for remark in card.get("remarks", []):
        lines += ["", remark]
    lines += ["", f"Model and transcoders together are {card['bytes'] / 1e6:.1f} MB."]
    return "\n".join(lines)
