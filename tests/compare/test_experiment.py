"""Swap experiments: which prompts meet, what is counted, what is refused."""

from __future__ import annotations

import json

import pytest
import tiny

import circuit_tracer as ct
from circuit_tracer.comparing.corpus import Corpus
from circuit_tracer.comparing.experiment import Experiment, Tried, experiment
from circuit_tracer.comparing.swap import Swap, Trial, swap
from circuit_tracer.errors import InputError

RECEIVERS = {"en": "w9 w21 w5 w33", "fr": "w7 w9 w33 w12"}
DONORS = {"en": "w9 w12 w5 w33", "fr": "w7 w30 w33 w12"}
QUICK = {"strengths": (1.0, 3.0), "ends": (1,), "nodes": 1.0}


@pytest.fixture(scope="module")
def model():
    return tiny.replacement("llama")


@pytest.fixture(scope="module")
def graphs(model):
    return [{name: ct.trace(text, model) for name, text in each.items()}
            for each in (RECEIVERS, DONORS)]  # fmt: skip


@pytest.fixture(scope="module")
def wanted():
    return {"en": "w7", "fr": "w8"}


def test_here_is_one_swap_a_language(model, graphs, wanted):
    found = experiment(*graphs, model, wanted=wanted, **QUICK)
    assert [(one.into, one.origin) for one in found.tried] == [("en", "en"), ("fr", "fr")]
    for one in found.tried:
        receiver, donor = (each[one.into] for each in graphs)
        assert one.swap == swap(receiver, donor, wanted[one.into], model, **QUICK)
    assert json.loads(json.dumps(found.to_plain()))["tried"][0]["swap"]["before"] >= 0


def test_abroad_is_every_other_language(model, graphs, wanted):
    """Contrasts are of each prompt's own language, and the differing word goes to its like."""
    found = experiment(*graphs, model, "abroad", wanted, **QUICK)
    assert [(one.into, one.origin) for one in found.tried] == [("en", "fr"), ("fr", "en")]
    receivers, donors = graphs
    contrasts, places = (donors["en"], receivers["fr"]), {2: 2, 1: 1, 3: 3, 4: 4}
    again = swap(receivers["en"], donors["fr"], "w7", model, None, places, contrasts, **QUICK)
    assert found.tried[0].swap == again


def test_language_takes_features_of_one_language_alone(model, graphs, wanted):
    rows = tuple((f"w{k} w5 w6", f"w{k + 10} w18 w9") for k in range(8))
    corpus = Corpus(("en", "fr"), rows, tuple(map(str, range(8))))
    found = experiment(graphs[0], {}, model, "language", wanted, corpus=corpus, **QUICK)
    assert [(one.into, one.origin) for one in found.tried] == [("en", "fr"), ("fr", "en")]
    free = swap(graphs[0]["en"], graphs[0]["fr"], "w8", model, **QUICK)
    mine = found.tried[0].swap
    assert set(mine.own) < set(free.own) and set(mine.foreign) < set(free.foreign)


def made(into, hits, null_hits):
    """A swap with given successes at strengths 1 and 2."""
    trials = tuple(
        Trial(strength, 3, " x", 0.5 * hit, bool(hit), " y", 0.25 * null, bool(null))
        for strength, hit, null in zip((1.0, 2.0), hits, null_hits, strict=True)
    )
    return Tried(into, into, Swap("r", "d", " x", 0.0, 1, 1, 0, (), (), 0.1, 0.1, trials))


def test_the_table_counts_at_the_best_setting_of_all():
    tried = (made("en", (1, 1), (0, 0)), made("en", (0, 1), (1, 0)), made("fr", (1, 0), (1, 0)))
    found = Experiment("here", tried)
    assert found.best == (1.0, 3), "two succeed at either strength: the weaker one"
    assert found.rows()[1:] == [
        ("swap", "1", "3", "1/2", "1/1", "2/3"),
        ("null, there", "1", "3", "1/2", "1/1", "2/3"),
        ("null, at its best", "1", "3", "1/2", "1/1", "2/3"),
    ]
    curves = found.figure().data
    assert list(curves[0].y) == pytest.approx([1 / 3, 1 / 3])
    assert [list(curve.y) for curve in curves if curve.name == "swap"] == [[0.25, 0.5], [0.5, 0.0]]


def test_prompts_that_say_it_already_are_left_out(model, graphs):
    logits = model.run(RECEIVERS["en"]).logits[-1]
    said = {"en": model.token_text(int(logits.argmax())).strip(), "fr": "w8"}
    found = experiment(*graphs, model, wanted=said, **QUICK)
    assert found.left_out == (("en", "en"),) and found.names == ("fr",)
    with pytest.raises(InputError, match="says already what is wanted"):
        experiment(
            {"en": graphs[0]["en"]}, {"en": graphs[1]["en"]}, model, wanted={"en": said["en"]}
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            (RECEIVERS, {"en": "w1"}),
            "every receiver needs a donor: receivers are en, fr, donors en",
        ),
        (({"en": "w1"}, {"en": "w2"}, "abroad"), "takes 2 receivers"),
        ((RECEIVERS, DONORS, "sideways"), "kind must be one of 'here'"),
        ((RECEIVERS, {}, "language"), "there is none for en, fr"),
        ((RECEIVERS, DONORS, "here", {"de": "w1"}), "nothing is called 'de'; names are en, fr"),
    ],
)
def test_what_makes_no_sense_is_refused(model, arguments, said):
    receivers, donors, *rest = arguments
    with pytest.raises(InputError, match=said):
        experiment(receivers, donors, model, *rest)
