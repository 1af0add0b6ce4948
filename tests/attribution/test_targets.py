"""Targets of every kind, at every position: closed forms, interventions, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import tiny
import torch
from frozen import Frozen

import circuit_tracer as ct
from circuit_tracer.attribute import attribute
from circuit_tracer.errors import GraphFileError, InputError
from circuit_tracer.targets import answer_tokens, choose
from circuit_tracer.tracing import estimate_trace

CLOSES = 1e-12  # float64
FAMILIES = ("llama", "gemma2", "gpt2", "neox", "olmo2")
SETS = [
    dict(kind="clt", activation="jump_relu"),
    dict(kind="plt", skip=True),
    dict(read="hook_resid_mid", kind="clt"),
    dict(read="ln2.hook_normalized", activation="topk"),
]
DIRECTION = [(-1.0) ** k * (1 + k / 7) for k in range(tiny.WIDTH)]


def mixed(layer=1):
    """One target of every kind, at the last and at earlier positions."""
    return [
        "w9",
        ct.At(12, 2),
        ct.Difference("w9", 7),
        ct.At(ct.Difference(7, 8), -3),
        ct.Direction(DIRECTION, "zigzag"),
        ct.At(ct.Direction(torch.tensor(DIRECTION, dtype=torch.float64), "zigzag"), 1),
        (layer, 4, 3),
        (tiny.LAYERS - 1, -1, 5),
        (0, 2, 6),
        (0, 0, 6),
    ]


@pytest.fixture(scope="module")
def model():
    return tiny.replacement("gemma2", kind="clt", activation="jump_relu")


@pytest.fixture(scope="module")
def graph(model):
    return ct.trace(tiny.PROMPT, model, mixed())


def cases():
    for family in FAMILIES:
        yield family, SETS[0]
    for given in SETS[1:]:
        yield "gpt2", given
        yield "gemma2", given
        yield "neox", given


@pytest.mark.parametrize(("family", "given"), list(cases()))
def test_rows_close_and_every_edge_is_the_effect_of_an_intervention(family, given):
    model = tiny.replacement(family, **given)
    forward = model.run(tiny.PROMPT)
    local = model.localise(forward)
    readouts = choose(model, forward, mixed())
    rows = attribute(local, readouts, max_features=0)
    assert rows.residual.abs().max() < CLOSES
    index, found = rows.index, rows.dense()[rows.index.first_target :]
    frozen = Frozen(local)
    clean_sites, clean_final = frozen.reads({})
    unembedding = model.adapter.unembedding.weight
    demeaned = unembedding - unembedding.mean(0)
    zigzag = torch.tensor(DIRECTION, dtype=torch.float64)
    last = len(tiny.PROMPT) - 1
    for source in range(0, index.first_target, 3):
        sites, final = frozen.reads(frozen.change_of(index, source, 0.6))
        sites, final = (sites - clean_sites) / 0.6, (final - clean_final) / 0.6

        def pre(layer, position, feature, sites=sites):
            return model.transcoders.layer(layer).encoder[feature] @ sites[layer, position]

        truth = [
            demeaned[9] @ final[last],
            demeaned[12] @ final[2],
            (unembedding[9] - unembedding[7]) @ final[last],
            (unembedding[7] - unembedding[8]) @ final[last - 2],
            zigzag @ final[last],
            zigzag @ final[1],
            pre(1, 4, 3),
            pre(tiny.LAYERS - 1, last, 5),
            pre(0, 2, 6),
            pre(0, 0, 6),
        ]
        torch.testing.assert_close(found[:, source], torch.stack(truth), atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_what_the_model_computed(family):
    model = tiny.replacement(family)
    forward = model.run(tiny.PROMPT)
    values = [readout.value for readout in choose(model, forward, mixed())]
    final, head = forward.final, model.adapter.unembedding
    logits = head(final)  # before any soft cap
    last = len(tiny.PROMPT) - 1
    pre = [
        model.transcoders.pre_activations(layer, x) for layer, x in enumerate(forward.mlp_inputs)
    ]
    zigzag = torch.tensor(DIRECTION, dtype=torch.float64)
    truth = [
        logits[last, 9] - logits[last].mean(),
        logits[2, 12] - logits[2].mean(),
        logits[last, 9] - logits[last, 7],
        logits[last - 2, 7] - logits[last - 2, 8],
        zigzag @ final[last],
        zigzag @ final[1],
        pre[1][4, 3],
        pre[tiny.LAYERS - 1][last, 5],
        pre[0][2, 6],
        pre[0][0, 6],
    ]
    assert values == pytest.approx(torch.stack(truth).tolist(), abs=1e-11)


def test_a_feature_that_fires_has_the_row_of_its_node_and_one_that_does_not_has_one_too(model):
    local = model.localise(model.run(tiny.PROMPT))
    fires = tuple(local.features[len(local.features) // 2].tolist())
    layer, position, _ = fires
    row_of = local.index.feature_row
    silent = next((layer, position, k) for k in range(20) if row_of(layer, position, k) is None)
    graph = ct.trace(tiny.PROMPT, model, [fires, silent], max_features=None)
    matrix = graph.dense()
    torch.testing.assert_close(matrix[-2], matrix[row_of(*fires)], atol=1e-12, rtol=0)
    assert graph.edges.value[-2].item() == pytest.approx(graph.edges.value[row_of(*fires)].item())
    assert matrix[-1].any() and graph.edges.value[-1] < 0.9 and graph.closure_error < CLOSES
    assert [target.feature for target in graph.targets] == [(layer, fires[2]), (layer, silent[2])]
    assert graph.targets[1].label == f"L{layer}#{silent[2]}@{position} pre-activation"
    assert [target.weight for target in graph.targets] == [1.0, 1.0]


@pytest.mark.parametrize("limit", [0, 9, None])
def test_influence_is_exact_with_targets_at_any_layer(model, limit):
    graph = ct.trace(tiny.PROMPT, model, mixed(), max_features=limit)
    share = graph.dense().abs()
    share = share / share.sum(1, keepdim=True).clamp(min=1e-300)
    identity = torch.eye(len(share), dtype=torch.float64)
    through = torch.linalg.inv(identity - share) - identity
    wanted = graph.weights @ through[graph.index.first_target :]
    torch.testing.assert_close(graph.influence, wanted, atol=1e-12, rtol=0)
    assert graph.closure_error < CLOSES


def test_a_limit_is_spent_on_features_and_not_on_targets(model):
    graph = ct.trace(tiny.PROMPT, model, mixed(), max_features=9)
    assert int(graph.expanded[: graph.index.n_features].sum()) == 9
    whole = ct.trace(tiny.PROMPT, model, mixed(), max_features=None)
    rows = graph.edges.rows
    torch.testing.assert_close(graph.dense()[rows], whole.dense()[rows], atol=1e-12, rtol=0)


def test_a_direction_is_taken_as_it_is(model):
    """A difference of unembedding columns is the same as `Difference`, and twice it twice."""
    column = model.adapter.unembedding.weight
    apart = column[9] - column[7]
    targets = [
        ct.Difference(9, 7),
        ct.Direction(apart, "apart"),
        ct.Direction(2 * apart, "twice"),
        ct.Direction(column[9], "raw"),
        9,
    ]
    graph = ct.trace(tiny.PROMPT, model, targets)
    difference, same, twice, raw, token = graph.dense()[-5:]
    torch.testing.assert_close(difference, same, atol=1e-12, rtol=0)
    torch.testing.assert_close(2 * same, twice, atol=1e-12, rtol=0)
    assert (raw - token).abs().max() > 1e-3  # only tokens are demeaned
    assert [target.weight for target in graph.targets[:4]] == [1.0] * 4


def test_each_position_gets_its_own_likeliest_tokens(model):
    one_by_one = [ct.trace(tiny.PROMPT, model, positions=place, max_logits=3) for place in (3, -1)]
    both = ct.trace(tiny.PROMPT, model, positions=[3, -1, 5], max_logits=3)
    assert both.targets == tuple(t for graph in one_by_one for t in graph.targets)
    assert {target.position for target in both.targets} == {3, 5}
    assert len({node.id for node in both.nodes}) == len(both.nodes)
    rows = torch.cat([graph.dense()[graph.index.first_target :, :-3] for graph in one_by_one])
    found = both.dense()[both.index.first_target :, : both.index.first_target]
    torch.testing.assert_close(found, rows, atol=1e-12, rtol=0)
    assert both.provenance.settings["positions"] == [3, -1, 5]


def test_bare_targets_are_read_at_every_position_and_others_at_their_own(model):
    graph = ct.trace(tiny.PROMPT, model, ["w9", ct.At("w7", 0), (1, 4, 3)], positions=[1, -2])
    assert [t.position for t in graph.targets] == [1, 4, 0, 4]
    assert [t.token_id for t in graph.targets] == [9, 9, 7, None]


@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_an_answer_is_its_tokens_each_read_before_it(family):
    model = tiny.replacement(family, kind="clt")
    graph = ct.trace("w9 w21 w5", model, answer="w7 w8 w11", max_features=None)
    assert graph.token_ids == (2, 9, 21, 5, 7, 8)  # the last answer token is no input
    assert [(t.token_id, t.position, t.weight) for t in graph.targets] == [
        (7, 3, 1.0),
        (8, 4, 1.0),
        (11, 5, 1.0),
    ]
    assert graph.closure_error < CLOSES
    assert graph.provenance.settings["answer"] == "w7 w8 w11"
    assert graph.provenance.prompt == "w9 w21 w5"
    first = graph.index.first_target
    for number, (token, position) in enumerate(((7, 3), (8, 4), (11, 5))):
        ids = list(graph.token_ids[: position + 1])
        alone = ct.trace(ids, model, targets=[token], max_features=None)
        assert alone.targets[0].probability == pytest.approx(graph.targets[number].probability)
        row, rows = alone.dense()[-1], graph.dense()[first + number]
        for place, value in enumerate(row[: alone.index.first_target].tolist()):
            kind, layer, at, feature = alone.index.locate(place)
            if kind == "feature":
                same = graph.index.feature_row(layer, at, feature)
            elif kind == "error":
                same = graph.index.error_row(layer, at)
            else:
                same = graph.index.embedding_row(at)
            assert rows[same].item() == pytest.approx(value, abs=1e-11)
        assert rows.abs().sum().item() == pytest.approx(row.abs().sum().item(), abs=1e-9)


def test_an_answer_of_ids_is_the_same_as_its_text(model):
    text = ct.trace("w9 w21", model, answer="w7 w8")
    ids = ct.trace([2, 9, 21], model, answer=[7, 8])
    assert torch.equal(text.dense(), ids.dense()) and text.targets == ids.targets
    assert ids.provenance.settings["answer"] == [7, 8]


def test_an_answer_that_would_merge_with_the_prompt_is_tokenised_by_itself(model, monkeypatch):
    """White space separates words here, so `w1` + `2` is one other word, unless kept apart."""
    assert answer_tokens(model, "w9", " w12 w7") == [12, 7]
    monkeypatch.setattr(model, "tokenizer", Merging(model.tokenizer))
    assert answer_tokens(model, "w9", " w12 w7") == [12, 7]


class Merging:
    """A tokenizer that reads everything as one other token as soon as an answer follows."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, text, **given):
        return {"input_ids": [39, 12]} if text == "w9 w12 w7" else self.inner(text, **given)


def test_what_is_ignored_is_a_source_of_each_target(model):
    targets = [9, ct.At(9, 3), (1, 4, 3)]
    none = ct.trace(tiny.PROMPT, model, targets, ignore_positions="none")
    some = ct.trace(tiny.PROMPT, model, targets, ignore_positions=[0, 2])
    assert list(some.ignored_sources) == [node.id for node in some.nodes if node.kind == "logit"]
    assert not any(none.ignored_sources.values())
    features = none.index.features
    left_out = (features[:, 1] == 0) | (features[:, 1] == 2)
    errors = none.index.positions[none.index.first_error : none.index.first_embedding]
    left_out = torch.cat([left_out, (errors == 0) | (errors == 2)])
    edges = none.dense()[none.index.first_target :, : none.index.first_embedding]
    wanted = edges[:, left_out].sum(1).tolist()
    assert list(some.ignored_sources.values()) == pytest.approx(wanted, abs=1e-11)
    assert torch.equal(some.ignored[some.index.first_target :], some.edges.ignored[-3:])
    assert some.closure_error < CLOSES


def test_special_positions_can_be_ignored(model):
    graph = ct.trace([2, 9, 1, 21, 5], model, ignore_positions="special")
    assert graph.provenance.ignored_positions == (0, 2)
    assert not set(graph.index.features[:, 1].tolist()) & {0, 2}
    assert graph.closure_error < CLOSES


def test_every_kind_of_target_survives_a_file(graph, tmp_path):
    graph.save(tmp_path / "graph.safetensors")
    same = ct.Graph.load(tmp_path / "graph.safetensors")
    assert same.targets == graph.targets
    assert torch.equal(same.dense(), graph.dense())
    assert same.closure_error == graph.closure_error
    assert [node.id for node in same.nodes] == [node.id for node in graph.nodes]
    assert same.ignored_sources == graph.ignored_sources


def test_every_kind_of_target_survives_json(graph, tmp_path):
    graph.to_json(tmp_path / "graph.json", node_threshold=1, edge_threshold=1)
    same = ct.Graph.from_json(tmp_path / "graph.json")
    assert same.targets == tuple(replace(target, direction=None) for target in graph.targets)
    kept = {node.id for node in same.nodes if node.kind == "logit"}
    assert kept == {node.id for node in graph.nodes if node.kind == "logit"}
    circuit = graph.prune(1.0, 1.0)
    assert len(same.prune(1.0, 1.0).weights) == len(circuit.weights)
    for node in circuit.nodes:
        if node.kind == "feature":
            assert same.node(node.id).influence == pytest.approx(node.influence, rel=1e-6)


def test_a_json_file_that_lies_about_its_features_is_refused(graph, tmp_path):
    path = tmp_path / "graph.json"
    graph.to_json(path)
    document = json.loads(path.read_text())
    document["metadata"]["generation_settings"]["target_features"][0] = "3.417"
    path.write_text(json.dumps(document))
    with pytest.raises(GraphFileError, match=r"\(layer, id\)"):
        ct.Graph.from_json(path)


def test_circuits_hold_every_target(graph):
    circuit = graph.prune(0.8, 0.98)
    logits = circuit.find(kind="logit")
    assert len(logits) == len(graph.targets)
    assert len({node.id for node in circuit.nodes}) == len(circuit.nodes)
    assert sum(circuit.scores.error_share_by_layer) + circuit.scores.replacement == pytest.approx(1)
    for node in logits:
        for edge in circuit.inputs(node):
            assert edge.source.position <= node.position
    assert len(circuit.drawing().nodes) == len(circuit.nodes)
    assert circuit.flow() == pytest.approx(circuit.scores.replacement)
    whole = graph.prune(1.0, 1.0)
    assert whole.flow() == pytest.approx(whole.scores.replacement)
    assert set(graph.row(node.id) for node in circuit.nodes) == kept_by_hand(graph, 0.8, 0.98)


def kept_by_hand(graph, node_share, edge_share):
    """Rows that pruning should keep, from the dense matrix and the definitions alone."""
    matrix, index = graph.dense().abs(), graph.index
    weights = torch.zeros(len(matrix), dtype=torch.float64)
    weights[index.first_target :] = graph.weights

    def flow(cut):
        share = cut / cut.sum(1, keepdim=True).clamp(min=1e-300)
        identity = torch.eye(len(share), dtype=torch.float64)
        return share, weights @ torch.linalg.inv(identity - share)

    def strongest(scores, share):
        falling = scores.sort(descending=True).values
        place = int((falling.cumsum(0) < share * falling.sum()).sum())
        return scores >= falling[min(place, len(falling) - 1)]

    alive = strongest(graph.influence, node_share) & (graph.influence > 0)
    alive[index.first_embedding :] = True
    cut = matrix * alive * alive[:, None]
    share, mass = flow(cut)
    scores = share * mass[:, None]
    edges = (strongest(scores.flatten(), edge_share).view_as(scores)) & (scores > 0)
    while True:
        gives, takes = edges.any(0), edges.any(1)
        gives[index.first_embedding :] = takes[index.first_error :] = True
        left = alive & gives & takes
        if torch.equal(left, alive):
            return set(alive.nonzero()[:, 0].tolist())
        alive = left
        edges &= alive & alive[:, None]


def test_a_file_whose_rows_sit_elsewhere_is_refused(graph):
    """A feature of layer 1 cannot have its row at layer 2."""
    other = replace(graph.targets[6], feature=(2, 3))
    targets = (*graph.targets[:6], other, *graph.targets[7:])
    with pytest.raises(InputError, match="other layers than their rows"):
        replace(graph, targets=targets)


def test_only_a_feature_of_the_first_layer(model):
    """Nothing but embeddings and constants lie below."""
    graph = ct.trace(tiny.PROMPT, model, [(0, 3, 1)])
    sources = graph.dense()[-1].nonzero()[:, 0]
    assert {graph.index.locate(row)[0] for row in sources.tolist()} == {"embedding"}
    assert graph.closure_error < CLOSES
    assert float(graph.influence.sum()) == pytest.approx(1)


@pytest.mark.parametrize("tokens", [[2], [7]])
def test_one_token(model, tokens):
    graph = ct.trace(tokens, model, max_logits=10**6, logit_probability=1)
    assert len(graph.targets) == tiny.VOCABULARY
    mixed = [3, ct.At(4, 0), ct.Direction(DIRECTION, "d"), (2, 0, 1)]
    assert ct.trace(tokens, model, mixed, ignore_positions=()).closure_error < CLOSES
    assert ct.trace(tokens, model, answer=[5]).token_ids == tuple(tokens)


def test_an_estimate_takes_the_same_targets(model):
    given = dict(targets=mixed(), positions=[2, -1])
    planned = estimate_trace(tiny.PROMPT, model, **given)
    graph = ct.trace(tiny.PROMPT, model, **given)
    assert planned.n_targets == len(graph.edges.rows)
    assert estimate_trace([2, 9], model, answer=[5, 6]).n_positions == 3


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (dict(targets=[ct.At("w9", 6)]), r"no position 6: .*0 to 5 \(or -6 to -1"),
        (dict(targets=[ct.At("w9", -7)]), "no position -7"),
        (dict(targets=[ct.At("w9", "last")]), "whole number, not 'last'"),
        (dict(targets=[ct.At(ct.At("w9", 1), 2)]), "can be read at another position"),
        (dict(targets=[ct.At((1, 2, 3), 2)]), "named with its own"),
        (dict(targets=[(3, 2, 1)]), "no layer 3; layers are 0 to 2"),
        (dict(targets=[(-1, 2, 1)]), "no layer -1"),
        (dict(targets=[(1, 6, 1)]), "position 6: the prompt has positions 0 to 5"),
        (dict(targets=[(1, 2, 20)]), "layer 1 has no feature 20; they are 0 to 19"),
        (dict(targets=[(1, 2, -1)]), "no feature -1"),
        (dict(targets=[(1, 2)]), "three whole numbers"),
        (dict(targets=[(1, 2, 0.5)]), "three whole numbers"),
        (dict(targets=[ct.Direction([1.0, 2.0], "two")]), r"'two' has shape \(2,\).*\(16,\)"),
        (dict(targets=[ct.Direction([0.0] * 16, "nought")]), "'nought' is zero"),
        (dict(targets=[ct.Direction([float("nan")] * 16, "gone")]), "'gone' is zero, or holds NaN"),
        (dict(targets=[ct.Direction("abc", "text")]), "'text' is not a vector"),
        (dict(targets="w9"), r"list: give \['w9'\]"),
        (dict(targets=5), r"list: give \[5\]"),
        (dict(targets=[1.5]), "1.5 is no target: give a token by text or id"),
        (dict(targets=[None]), "None is no target"),
        (dict(positions=6), "no position 6"),
        (dict(positions=[]), "positions is empty"),
        (dict(positions=[0, "x"]), "whole number"),
        (dict(positions="last"), "whole number, not 'last'"),
        (dict(max_features="all"), "0 or more, None or auto, not 'all'"),
        (dict(max_features=1.5), "is 0 or more, None or auto, not 1.5"),
        (dict(ignore_positions=0), r"list of positions: give \[0\]"),
        (dict(ignore_positions=[-7]), "no position -7"),
        (dict(ignore_positions="eos"), '"bos", "special", "none"'),
        (dict(answer=""), "answer is empty"),
        (dict(answer="  "), "answer is empty"),
        (dict(answer=[]), "answer is empty"),
        (dict(answer=[99]), "no token 99"),
        (dict(answer="Paris"), "cannot write the answer 'Paris'"),
        (dict(answer="w9", targets=["w9"]), "leave out targets"),
        (dict(answer="w9", positions=2), "leave out targets, positions"),
    ],
)
def test_requests_that_cannot_be_met(model, given, says):
    with pytest.raises(InputError, match=says):
        ct.trace(tiny.PROMPT, model, **given)


def test_an_answer_longer_than_the_context_is_refused(model):
    with pytest.raises(InputError, match="tokens, more than"):
        ct.trace([2] + [9] * 30, model, answer=[5] * 3)


@pytest.mark.parametrize("prompt", [None, 5, ["a", "b"], [1.5], b"text", "\ud800"])
def test_what_is_no_prompt_is_refused_in_words(model, prompt):
    with pytest.raises(InputError, match="prompt is (text or|not valid Unicode)"):
        ct.trace(prompt, model)


def test_what_is_no_model_is_refused_in_words(model):
    with pytest.raises(InputError, match=r"what load\(\) gives, not 'gemma'"):
        ct.trace(tiny.PROMPT, "gemma")
    graph = ct.trace(tiny.PROMPT, model)
    with pytest.raises(InputError, match="takes a graph and a model"):
        ct.faithfulness(graph.prune(), model)
    with pytest.raises(InputError, match="takes a graph and a model"):
        ct.faithfulness(model, graph)
