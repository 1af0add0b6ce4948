"""The swap experiments on the bundled model: operand, operation and language, five languages.

    python -m circuit_tracer.bundled.swaps [--count 6] [--seed 0] [--only operand …]

Facts are drawn among antonyms that have a synonym too and that the model knows in every prompt the
experiment uses. Each swap is `comparing.swap.swap`: strengths and end layers are swept, and the
table gives, at the best setting of all (chosen once for each experiment, over all languages), how
often the answer became the donor's, with the null of equal influence at its own best setting beside
it. docs/languages.md holds what came of it.
"""

from __future__ import annotations

import argparse
import random
from functools import cache
from typing import TYPE_CHECKING

from .corpus import fill, templates
from .tables import LANGUAGES, Fact, facts

TASKS = ("antonym", "synonym")
if TYPE_CHECKING:
    from circuit_tracer.comparing.profile import Key
    from circuit_tracer.comparing.swap import Swap
    from circuit_tracer.graph import Graph

ENDS = (1, 3, 5, 7)
EXPERIMENTS = ("operand", "operand_inner", "operand_abroad", "operation", "language")
INNER = range(2, 8)
"""Layers above those that see two tokens only, and so mostly name the word."""

Prompt = tuple[str, str, str]
"""(task, key of the fact, language)"""


class Experiment:
    """A loaded model with the graphs that have been traced."""

    def __init__(self, count: int, seed: int) -> None:
        from circuit_tracer.comparing.activity import activity
        from circuit_tracer.comparing.corpus import bundled_corpus
        from circuit_tracer.comparing.swap import language_features
        from circuit_tracer.loading import load
        from circuit_tracer.tracing import trace

        self.model, self.count, self.seed = load(), count, seed
        self.graph = cache(lambda text: trace(text, self.model, max_logits=3))
        found = activity(self.model, bundled_corpus().sample(30))
        self.specific = {code: language_features(found, code) for code in LANGUAGES}
        self.facts = {task: {f.key: f for f in facts() if f.task == task} for task in TASKS}
        self.known = cache(self._known)
        sizes = {layer: len(self.model.transcoders.layer(layer).encoder) for layer in INNER}
        self.inner = {(layer, one) for layer, size in sizes.items() for one in range(size)}

    def prompt(self, task: str, fact: Fact, code: str) -> str:
        return fill(templates()[task][code][0], code, a=fact.subject[code], b="", c="")[0]

    def keys(self, tasks: tuple[str, ...], codes: tuple[str, ...]) -> list[str]:
        """Subjects that the model knows in these tasks and languages, in drawn order."""
        both = [key for key in self.facts[tasks[0]] if all(key in self.facts[t] for t in tasks)]
        good = [k for k in both if all(self.known(t, k, c) for t in tasks for c in codes)]
        return random.Random(f"{self.seed} {tasks} {codes}").sample(good, len(good))

    def _known(self, task: str, key: str, code: str) -> bool:
        """Whether the model's likeliest token is the first of the answer."""
        fact = self.facts[task][key]
        text = self.prompt(task, fact, code)
        best = int(self.model.run(text).logits[-1].argmax())
        return best == self.first(text, fact.answer[code], code)

    def first(self, text: str, answer: str, code: str) -> int:
        from circuit_tracer.targets import answer_tokens

        return answer_tokens(self.model, text, self.spelled(answer, code))[0]

    def spelled(self, answer: str, code: str) -> str:
        return answer if code == "zh" else f" {answer}"

    def traced(self, task: str, key: str, code: str) -> Graph:
        return self.graph(self.prompt(task, self.facts[task][key], code))

    def run(
        self,
        one: Prompt,
        other: Prompt,
        wanted: str,
        among: set[Key] | None = None,
        contrasts: tuple[Prompt, Prompt] | None = None,
    ) -> Swap:
        """Swap two prompts."""
        from circuit_tracer.comparing.alignment import abroad, alignment
        from circuit_tracer.comparing.swap import swap

        receiver, donor = self.traced(*one), self.traced(*other)
        against = None
        if contrasts is not None:
            against = self.traced(*contrasts[0]), self.traced(*contrasts[1])
        places = alignment(receiver.token_ids, donor.token_ids)
        if one[2] != other[2]:
            here, there = (
                self.place(graph, *prompt) for graph, prompt in ((receiver, one), (donor, other))
            )
            places = abroad([here], [there], len(receiver.tokens), len(donor.tokens))
        return swap(receiver, donor, wanted, self.model, among, places, against, ends=ENDS)

    def place(self, graph: Graph, task: str, key: str, code: str) -> int:
        """Position of the subject's last token."""
        word = self.facts[task][key].subject[code]
        ids = self.model.tokenizer(self.spelled(word, code))["input_ids"]
        return max(k for k, token in enumerate(graph.token_ids) if token == ids[-1])

    def operands(self, *codes: str) -> list[tuple[str, str]]:
        """Pairs of subjects with different answers in every one of the languages."""
        keys, known = self.keys(("antonym",), codes), self.facts["antonym"]
        pairs = zip(keys[::2], keys[1::2], strict=False)
        good = [
            (one, other)
            for one, other in pairs
            if all(known[one].answer[code] != known[other].answer[code] for code in codes)
        ]
        return good[: self.count]

    def operand(self, code: str, among: set[Key] | None = None) -> list[Swap]:
        found = []
        for one, other in self.operands(code):
            wanted = self.spelled(self.facts["antonym"][other].answer[code], code)
            found.append(self.run(("antonym", one, code), ("antonym", other, code), wanted, among))
        return found

    def operand_inner(self, code: str) -> list[Swap]:
        """The same with features of inner layers alone."""
        return self.operand(code, self.inner)

    def operand_abroad(self, code: str) -> list[Swap]:
        """An operand found in each other language in turn, put into `code`; inner layers alone."""
        others, found = [other for other in LANGUAGES if other != code], []
        for number in range(self.count):
            other = others[number % len(others)]
            one, two = self.operands(code, other)[0]
            wanted = self.spelled(self.facts["antonym"][two].answer[code], code)
            prompts = ("antonym", one, code), ("antonym", two, other)
            contrasts = ("antonym", two, code), ("antonym", one, other)
            found.append(self.run(*prompts, wanted, self.inner, contrasts))
        return found

    def operation(self, code: str) -> list[Swap]:
        found = []
        for key in self.keys(TASKS, (code,))[: self.count]:
            wanted = self.spelled(self.facts["synonym"][key].answer[code], code)
            found.append(self.run(("antonym", key, code), ("synonym", key, code), wanted))
        return found

    def language(self, code: str) -> list[Swap]:
        """Into `code`, from every other language in turn."""
        others, found = [other for other in LANGUAGES if other != code], []
        for number in range(self.count):
            other = others[number % len(others)]
            good = [
                key
                for key in self.keys(("antonym",), (code, other))
                if self.facts["antonym"][key].answer[code]
                != self.facts["antonym"][key].answer[other]
            ]
            wanted = self.spelled(self.facts["antonym"][good[0]].answer[code], code)
            among = self.specific[code] | self.specific[other]
            prompts = ("antonym", good[0], other), ("antonym", good[0], code)
            found.append(self.run(*prompts, wanted, among))
        return found


def table(found: dict[str, list[Swap]]) -> list[str]:
    """Success by language at the best setting, beside the null's at its own best."""
    from circuit_tracer.comparing.experiment import Experiment as Tally
    from circuit_tracer.comparing.experiment import Tried

    every = [each for swaps in found.values() for each in swaps]
    tried = (Tried(code, "", each) for code, swaps in found.items() for each in swaps)
    tally = Tally("", tuple(tried))
    lines = []
    for kind, (strength, end) in (("swap", tally.best), ("null", tally.null_best)):
        null, at = kind == "null", (strength, end)
        shares = [
            f"{code} {tally.successes(at, code, null)}/{len(swaps)}"
            for code, swaps in found.items()
        ]
        total = f"{tally.successes(at, null=null)}/{len(every)}"
        lines.append(
            f"  {kind}  strength {strength:g} to layer {end}: {total}   {'  '.join(shares)}"
        )
    for strength in sorted({strength for strength, _ in tally.settings}):
        by_end = {end: tally.successes((s, end)) for s, end in tally.settings if s == strength}
        lines.append(f"    strength {strength:g}, by end layer: {by_end}")
    mean = [sum(getattr(each, name) for each in every) / len(every)
            for name in ("taken", "put", "lost", "influence", "null_influence")]  # fmt: skip
    lines.append(
        "  mean: taken {:.0f}, put {:.0f}, lost {:.0f}; influence {:.2f}, null {:.2f}".format(*mean)
    )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=6, help="swaps a language and experiment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=EXPERIMENTS, nargs="+", default=EXPERIMENTS)
    given = parser.parse_args()
    experiment = Experiment(given.count, given.seed)
    for name in given.only:
        found = {code: getattr(experiment, name)(code) for code in LANGUAGES}
        print(name, *table(found), sep="\n", flush=True)


if __name__ == "__main__":
    main()
