"""The recipe: one command that makes the bundled model, its transcoders and its card from nothing.

    python -m circuit_tracer.bundled.recipe [--stage model|plt|clt|features|card|all] [--out DIR]

Stages are scheduled by steps, seeded, and independent: each reads what the ones before it wrote.
A stage writes into a temporary folder beside its target and renames it when it is whole, so that
an interrupted run leaves what was there.  Progress goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from circuit_tracer.files import write_text

STAGES = ("model", "plt", "clt", "features", "card")
MODEL_NAME = "trace-circuits/bundled-five-languages"
ALLOCATOR = {  # page faults of large temporaries halve the speed; these keep freed memory mapped
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "20000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the recipe; returns the exit status."""
    options = _parser().parse_args(arguments)
    if arguments is None and any(os.environ.get(k) != v for k, v in ALLOCATOR.items()):
        command = [sys.executable, "-m", "circuit_tracer.bundled.recipe", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | ALLOCATOR)
    import torch

    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    for stage in STAGES if options.stage == "all" else (options.stage,):
        started = time.perf_counter()
        with Bar(stage, options.quiet) as report:
            _STAGES[stage](options, report)
        if stage not in ("features", "card"):
            _note_time(options, stage, time.perf_counter() - started)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="recipe", description=__doc__.split("\n")[0])
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="steps of the language model")
    parser.add_argument("--plt-steps", type=int)
    parser.add_argument("--clt-steps", type=int)
    parser.add_argument("--polish-steps", type=int, help="steps of each polishing")
    parser.add_argument("--plt-features", type=int, default=1024)
    parser.add_argument("--clt-features", type=int, default=704)
    parser.add_argument("--sentences", type=int, default=16000, help="for the transcoders")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--texts", type=int, default=800, help="for the feature stores")
    parser.add_argument("--no-compile", action="store_true", help="never use torch.compile")
    parser.add_argument("--probes", type=int, default=80, help="pairs of prompts a patch")
    parser.add_argument("--prompts", type=int, default=4000, help="prompts a figure, at most")
    parser.add_argument("--quiet", action="store_true")
    return parser


def make_model(options: argparse.Namespace, report: Callable) -> None:
    """Stage `model`: tokenizer, language model, `config.json`."""
    from .language_model import Shape, export
    from .pretrain import Schedule, pretrain
    from .tokenizer import build_tokenizer, save_tokenizer

    tokenizer = build_tokenizer()
    shape = Shape(vocab=-(-len(tokenizer) // 32) * 32, layers=options.layers)
    schedule = Schedule(steps=options.steps or Schedule.steps)
    compiled = not options.no_compile and shutil.which("g++") is not None
    model = pretrain(tokenizer, shape, schedule, options.seed, compiled, report)
    with Whole(options.out / "model") as folder:
        export(model, folder)
        save_tokenizer(tokenizer, folder)


def make_transcoders(kind: str) -> Callable[[argparse.Namespace, Callable], None]:
    """Stages `plt` and `clt`: one set, trained on the shipped model's activations."""

    def stage(options: argparse.Namespace, report: Callable) -> None:
        from . import transcoders
        from .folder import fold, round_off, write
        from .language_model import read

        model, tokenizer = read(options.out / "model"), load_tokenizer(options.out / "model")
        sentences = training_sentences(options.sentences, options.seed)
        data = transcoders.collect(model, tokenizer, sentences, final=transcoders.FINAL_WEIGHT)
        recipe = _set_recipe(kind, options)
        net = transcoders.train(data, recipe.settings, report)
        net = transcoders.polish(net, model, tokenizer, sentences, recipe, options.seed, report)
        if recipe.second_polish:
            again = replace(
                recipe, polish_steps=recipe.second_polish, polish_rate=recipe.second_rate
            )
            net = round_off(net, fold(net))
            net = transcoders.polish(
                net, model, tokenizer, sentences, again, options.seed + 1, report
            )
        with Whole(options.out / kind) as folder:
            write(fold(net), kind, folder, MODEL_NAME)

    return stage


def make_features(options: argparse.Namespace, report: Callable) -> None:
    """Stage `features`: stores that say what the features of both sets mean."""
    import random

    from circuit_tracer.features import Detail, build
    from circuit_tracer.features.corpus import Document
    from circuit_tracer.loading import load
    from circuit_tracer.replacement import ReplacementModel

    from .corpus import corpus

    every = corpus()
    told = random.Random(options.seed).sample(every, min(len(every), options.texts))
    texts = [Document(sentence.text, sentence.language) for sentence in told]
    detail = Detail(top=3, intervals=3, each=1, random=1, silent=2, tokens=3, coactive=3, similar=3)
    with Whole(options.out / "features") as folder:
        for number, kind in enumerate(("plt", "clt")):
            read = load(options.out / "model", options.out / kind, device="cpu", dtype="float32")
            read.adapter.name = "bundled"
            model = ReplacementModel(
                read.adapter, read.tokenizer, read.transcoders.named(f"bundled {kind}")
            )

            def tell(share: float, message: str, before: int = number) -> None:
                report(int(1000 * (share + before)), 2000, message)

            build(model, texts, folder / f"{kind}.sqlite", top=3, sample=12, detail=detail,
                  total=len(texts), progress=tell)  # fmt: skip


def _set_recipe(kind: str, options: argparse.Namespace):
    """How to train a set: the standing recipe of its kind, with what the command line changes."""
    from .transcoders import LENGTHS, Recipe, recipe

    lengths = dict(LENGTHS[kind])
    steps = getattr(options, f"{kind}_steps") or lengths["steps"]
    del lengths["steps"]
    if options.polish_steps:
        lengths["polish_steps"] = options.polish_steps
        lengths["second_polish"] = min(lengths.get("second_polish", 0), options.polish_steps)
    features = getattr(options, f"{kind}_features")
    return Recipe(recipe(kind, features, steps, options.seed), **lengths)


def training_sentences(count: int, seed: int) -> list:
    """What the transcoders see: every trained sentence, or a sample, then others up to `count`."""
    import random

    from .corpus import corpus, switched, translations

    generator = random.Random(seed)
    plain = [sentence for sentence in corpus() if sentence.split == "train"]
    if count <= len(plain):
        return generator.sample(plain, count)
    others = translations() + switched()
    return plain + generator.sample(others, min(len(others), count - len(plain)))


def load_tokenizer(folder: Path):
    """The tokenizer of a folder written by the recipe."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def make_card(options: argparse.Namespace, report: Callable) -> None:
    """Stage `card`: measure everything, write `card.json` and `README.md`."""
    from .card import describe, measure_all

    old = _card(options)
    card = measure_all(options.out, options.probes, options.prompts, options.seed, report)
    card["minutes"] = old.get("minutes", {})
    card["remarks"] = old.get("remarks", [])
    write_text(options.out / "card.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    write_text(options.out / "README.md", describe(card))


_STAGES = {
    "model": make_model,
    "plt": make_transcoders("plt"),
    "clt": make_transcoders("clt"),
    "features": make_features,
    "card": make_card,
}


def _card(options: argparse.Namespace) -> dict:
    path = options.out / "card.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _note_time(options: argparse.Namespace, stage: str, seconds: float) -> None:
    """Keep how long a stage took, and with how many threads, for the card."""
    card = _card(options)
    noted = {"minutes": round(seconds / 60, 1), "threads": options.threads}
    card.setdefault("minutes", {})[stage] = noted
    write_text(options.out / "card.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")


class Whole:
    """A context manager: a new folder that takes its target's place only when it is complete."""

    def __init__(self, target: Path) -> None:
        self.target, self.part = target, target.with_name(target.name + ".part")

    def __enter__(self) -> Path:
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir(parents=True)
        return self.part

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            shutil.rmtree(self.part, ignore_errors=True)
            return
        from circuit_tracer.train.making import put

        for path in self.part.iterdir():
            path.chmod(0o644)
        put(self.part, self.target)


class Bar:
    """A context manager: a rich progress bar on stderr, silent with `quiet` or off a terminal."""

    def __init__(self, stage: str, quiet: bool) -> None:
        self.stage, self.silent = stage, quiet or not sys.stderr.isatty()

    def __enter__(self) -> Callable[[int, int, str], None]:
        if self.silent:
            return lambda done, total, text: None
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = ("{task.description}", BarColumn(), TextColumn("{task.fields[text]}"))
        console = Console(stderr=True)
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console)
        self.bar.start()
        task = self.bar.add_task(self.stage, text="")
        return lambda done, total, text: self.bar.update(
            task, completed=done, total=total, text=text
        )

    def __exit__(self, *_: object) -> None:
        if not self.silent:
            self.bar.stop()


if __name__ == "__main__":
    sys.exit(main())
