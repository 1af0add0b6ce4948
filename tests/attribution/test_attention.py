"""Attention made visible: parts add up to edges and scores, and each part is what it says."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import replace

import pytest
import tiny
import torch
from frozen import Frozen

import circuit_tracer as ct
from circuit_tracer.attention import PARTS, heads, path_heads, qk
from circuit_tracer.attribute import attribute
from circuit_tracer.errors import InputError, ModelError
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.nodes import node_id
from circuit_tracer.targets import At, Difference, choose

CLOSES = 1e-12  # float64
SETS = [
    dict(kind="plt"),
    dict(kind="clt", activation="jump_relu"),
    dict(kind="plt", skip=True, write="mlp.hook_out"),
    dict(kind="clt", skip=True, read="hook_resid_mid"),
    dict(kind="plt", skip=True, read="ln2.hook_normalized"),
]
LAST = len(tiny.PROMPT) - 1
LOGIT = f"{tiny.LAYERS + 1}_7_{LAST}"


def name_of(given):
    return "-".join(map(str, given.values()))


def localised(family="llama", ignored=(0,), layers=tiny.LAYERS, **given):
    model = tiny.replacement(family, layers=layers, **given)
    return model, model.localise(model.run(tiny.PROMPT), ignored)


def names(local, directions=()):
    """Ids of all nodes, by row."""
    found = []
    for row in range(local.index.first_target):
        kind, layer, position, feature = local.index.locate(row)
        if kind == "embedding":
            feature = int(local.forward.token_ids[position])
        found.append(node_id(kind, layer, position, feature))
    return [*found, *(node_id("logit", local.n_layers, d.position, d.token_id) for d in directions)]


def some_edges(local):
    """One edge from every kind of source, to features and outputs by turns."""
    index = local.index
    low = index.feature_rows(0, 2, 3).start
    top = index.feature_rows(local.n_layers - 1, LAST, LAST + 1).start
    ids = names(local)
    sources = [low, index.error_row(0, 3), index.embedding_row(1), index.embedding_row(LAST)]
    for source, above in zip(sources, (True, False, True, False), strict=True):
        yield (source, ids[source], *((LOGIT, None) if above else (ids[top], top)))


# Head loadings.


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("given", SETS, ids=name_of)
def test_parts_add_up_to_the_edge_of_the_graph(family, given):
    model, local = localised(family, **given)
    directions = choose(model, local.forward, max_logits=2)
    matrix = attribute(local, directions, kernels="reference").dense()
    ids = names(local, directions)
    edges = matrix.nonzero().tolist()
    for row, column in edges[:: max(1, len(edges) // 20)]:
        found = heads(model, local, ids[column], ids[row])
        assert found.edge == pytest.approx(float(matrix[row, column]), abs=CLOSES)
        assert abs(found.error) < CLOSES
        assert found.residual + float(found.one_hop.sum()) + found.multi_hop == pytest.approx(
            found.edge, abs=CLOSES
        )
        torch.testing.assert_close(found.by_key.sum(-1), found.by_head, atol=CLOSES, rtol=0)


class Headless(Frozen):
    """The frozen modules with some heads taken away: `keep[layer]` is (heads,) of 0 and 1."""

    def effect(self, source, target, keep):
        patterns = self.local.forward.patterns
        self.forward = replace(
            self.local.forward,
            patterns=tuple(
                one * torch.as_tensor(kept).to(one).view(-1, 1, 1)
                for one, kept in zip(patterns, keep, strict=True)
            ),
        )
        change = self.change_of(self.local.index, source, 1.0)
        (sites, final), (clean_sites, clean_final) = self.reads(change), self.reads({})
        if target is None:
            columns = self.adapter.unembedding.weight
            return float((columns[7] - columns.mean(0)) @ (final - clean_final)[LAST])
        layer, position, feature = self.local.index.features[target].tolist()
        encoder = self.local.transcoders.layer(layer).encoder[feature]
        return float(encoder @ (sites - clean_sites)[layer, position])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_each_head_carries_what_the_model_itself_passes_through_it(family):
    """Read off runs of the real modules from which heads are missing."""
    given = SETS[tiny.FAMILIES.index(family) % len(SETS)]
    model, local = localised(family, **given)
    frozen = Headless(local)
    none, every = [0.0] * tiny.HEADS, [1.0] * tiny.HEADS
    for source, start, end, target in some_edges(local):
        found = heads(model, local, start, end)
        bare = frozen.effect(source, target, [none] * local.n_layers)
        assert found.residual == pytest.approx(bare, abs=1e-11)
        for layer, head in itertools.product(range(local.n_layers), (0, tiny.HEADS - 1)):
            one = [float(number == head) for number in range(tiny.HEADS)]
            above = [none] * (local.n_layers - layer - 1)
            if target is not None or layer == local.n_layers - 1:
                alone = frozen.effect(source, target, [none] * layer + [one] + above)
                assert float(found.one_hop[layer, head]) == pytest.approx(alone - bare, abs=1e-11)
            # The target reads one position; only its row of the heads above counts for a first
            # step, so paths that meet no head at its position are told apart by a difference.
            straight = frozen.effect(source, target, [every] * layer + [none] + above)
            through = frozen.effect(source, target, [every] * layer + [one] + above)
            assert float(found.by_head[layer, head]) == pytest.approx(through - straight, abs=1e-11)


def enumerated(local, start, target):
    """All paths of an edge, one by one: (last head before the target, heads met) → sum."""
    adapter, groups = local.adapter, local.adapter.heads // local.adapter.kv_heads
    parallel = adapter.parallel
    sums = {}

    def mlp(layer, position, gradient, first, hops):
        """At the residual stream after block `layer`."""
        if layer < 0:
            if start.layer == -1 and position == start.position:
                put(first, hops, start.writes[-1] @ gradient)
            return
        if position == start.position and layer in start.writes:
            put(first, hops, start.writes[layer] @ gradient)
        skip = local.skip_map(layer)
        through = 0
        if skip is not None:
            through = local.skip_scale(layer)[position] * (skip.T @ gradient)
        if parallel:
            attention(layer, position, gradient, first, hops, beside=through)
        else:
            attention(layer, position, gradient + through, first, hops)

    def attention(layer, position, gradient, first, hops, beside=0):
        mlp(layer - 1, position, gradient + beside, first, hops)
        block = adapter.blocks[layer]
        for head in range(adapter.heads):
            back = block.value[:, head // groups] @ (block.output[head] @ gradient)
            for key in range(position + 1):
                moved = local.patterns[layer][head, position, key] * back
                mlp(layer - 1, key, moved, first or (layer, head), hops + 1)

    def put(first, hops, value):
        sums[first, hops] = sums.get((first, hops), 0.0) + float(value)

    layer, position, reads = target
    if layer == local.n_layers or parallel:
        mlp(layer - 1, position, reads, None, 0)
    else:
        attention(layer, position, reads, None, 0)
    return sums


@pytest.mark.parametrize("family", ["llama", "neox"])
@pytest.mark.parametrize("given", SETS, ids=name_of)
def test_loadings_are_what_enumerating_all_paths_gives(family, given, monkeypatch):
    from circuit_tracer.attention.ends import find_source

    monkeypatch.setattr(tiny, "PROMPT", tiny.PROMPT[:3])
    monkeypatch.setitem(globals(), "LAST", 2)
    model, local = localised(family, ignored=(), **given)
    (direction,) = choose(model, local.forward, [7])
    logit = (local.n_layers, 2, direction.vector)
    row = local.index.feature_rows(2, 2, 3).start
    reads, _, _ = local.read_vectors(2, torch.tensor([row]))
    ids = names(local)
    low = local.index.feature_rows(0, 1, 2).start
    for start in (ids[low], ids[local.index.error_row(0, 2)], f"E_{tiny.PROMPT[0]}_0"):
        for end, target in (
            (f"{tiny.LAYERS + 1}_7_2", logit),
            (ids[row], (2, 2, reads[0])),
        ):
            sums = enumerated(local, find_source(local, start), target)
            found = heads(model, local, start, end)
            assert found.edge == pytest.approx(sum(sums.values()), abs=CLOSES)
            assert found.residual == pytest.approx(sums.pop((None, 0), 0.0), abs=CLOSES)
            by_head, one_hop = torch.zeros_like(found.by_head), torch.zeros_like(found.one_hop)
            for (first, hops), value in sums.items():
                by_head[first] += value
                one_hop[first] += value * (hops == 1)
            torch.testing.assert_close(found.by_head, by_head, atol=CLOSES, rtol=0)
            torch.testing.assert_close(found.one_hop, one_hop, atol=CLOSES, rtol=0)
            assert found.multi_hop == pytest.approx(
                sum(value for (_, hops), value in sums.items() if hops > 1), abs=CLOSES
            )


def test_a_difference_is_the_difference_of_two_loadings():
    model, local = localised("gemma2")
    apart = heads(model, local, "E_21_2", Difference(9, 12))
    nine, twelve = (heads(model, local, "E_21_2", f"4_{token}_{LAST}") for token in (9, 12))
    torch.testing.assert_close(apart.by_key, nine.by_key - twelve.by_key, atol=CLOSES, rtol=0)


def test_a_path_has_the_loadings_of_its_edges():
    model, local = localised("qwen3", kind="clt")
    ids = names(local)
    steps = [
        "E_9_1",
        ids[local.index.feature_rows(0, 2, 3).start],
        ids[local.index.feature_rows(2, 4, 5).start],
        LOGIT,
    ]
    path = path_heads(model, local, steps)
    assert [(edge.source, edge.target) for edge in path.edges] == list(itertools.pairwise(steps))
    for edge, carried, straight in zip(path.edges, path.by_layer, path.residual, strict=True):
        alone = heads(model, local, edge.source, edge.target)
        torch.testing.assert_close(edge.by_key, alone.by_key, atol=0, rtol=0)
        assert float(carried.sum() + straight) == pytest.approx(alone.edge, abs=CLOSES)
    assert str(path).count("→") == 3


def test_loadings_read_well_and_survive_json():
    model, local = localised("llama")
    found = heads(model, local, "E_21_2", LOGIT)
    text = found.table(2).splitlines()
    (layer, head), *_ = found.strongest(1)
    assert text[0] == f"E_21_2 → {LOGIT}: {found.edge:+.4g}"
    assert text[3].split()[0] == f"{layer}.{head}"
    assert text[3].endswith(f"{found.tokens[found.looks_at(layer, head)]!r}@2")
    assert text[-1].split()[0] == "rest"
    shown = found.to_plain(3)
    assert json.loads(json.dumps(shown)) == shown
    assert [(one["layer"], one["head"]) for one in shown["heads"]] == found.strongest(3)


# QK attribution.


class Scored(Frozen):
    """The frozen modules, norms of queries and keys frozen too, that keep what heads compare."""

    def __init__(self, local):
        super().__init__(local)
        self.compared, self.ratios, self.handles = {}, {}, []
        for block in self.adapter.blocks:
            for name in ("q_norm", "k_norm"):
                if norm := getattr(block.attention, name, None):
                    self.handles.append(norm.register_forward_hook(self._hold))

    def _hold(self, module, args, output):
        ratio = self.ratios.setdefault(module, output / args[0])
        return args[0] * ratio

    def _attend(self, module, query, key, value, mask, scaling=None, **rest):
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        keys = key[0].repeat_interleave(query.shape[1] // key.shape[1], dim=0)
        self.compared[self.order[id(module)]] = (query[0], keys, scaling)
        return super()._attend(module, query, key, value, mask, **rest)

    def vectors(self, change, found):
        """(scaled query, key) of the head and positions of a QK under a change."""
        self.reads(change)
        query, key, scaling = self.compared[found.layer]
        return query[found.head, found.query] * scaling, key[found.head, found.key]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


SITES = [(0, 1, 3, 3), (0, 0, 4, 1), (1, 3, 5, 2), (2, 2, 5, 0), (2, 0, 5, 5), (2, 1, 0, 0)]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("given", SETS, ids=name_of)
def test_terms_add_up_to_the_score_that_the_model_computed(family, given):
    model, local = localised(family, **given)
    with Scored(local) as scored:
        for site in SITES:
            found = qk(model, local, *site)
            query, key = scored.vectors({}, found)
            assert found.score == pytest.approx(float(query @ key), abs=CLOSES)
            assert abs(found.error) < CLOSES
            for total in (
                sum(term.value for term in found.query_side),
                sum(term.value for term in found.key_side),
                float(found.by_kind.sum()),
                float(found.pairs(3).values.sum()),
                float(found.pairs(10**6).values.sum()),
            ):
                assert total == pytest.approx(found.score, abs=CLOSES)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_each_term_is_what_its_source_adds_to_queries_and_keys(family):
    """Every source is doubled in the real modules, with norms and patterns frozen."""
    given = SETS[tiny.FAMILIES.index(family) % len(SETS)]
    model, local = localised(family, **given)
    found = qk(model, local, layer=2, head=1, query=5, key=3)
    rows = {name: row for row, name in enumerate(names(local))}
    with Scored(local) as scored:
        query, key = scored.vectors({}, found)
        sides = [(found.query_side, found.query_vectors), (found.key_side, found.key_vectors)]
        seen = {}
        for side, (terms, vectors) in enumerate(sides):
            for term, vector in zip(terms, vectors, strict=True):
                if term.id not in rows:
                    assert term.kind in ("positional", "bias", "ignored")
                    continue
                if term.id not in seen:
                    change = scored.change_of(local.index, rows[term.id], 1.0)
                    seen[term.id] = scored.vectors(change, found)
                moved = seen[term.id][side] - (query, key)[side]
                torch.testing.assert_close(vector, moved, atol=1e-11, rtol=0)
                assert term.value == pytest.approx(float(moved @ (key, query)[side]), abs=1e-11)
    assert {term.kind for term in found.key_side} >= {"feature", "error", "embedding"}


def test_kinds_are_sums_of_terms_and_lumps_appear_where_there_is_something():
    model, local = localised("gpt2")
    found = qk(model, local, 2, 0, 5, 3)
    for kind, value in zip(PARTS, found.by_kind.sum(1).tolist(), strict=True):
        terms = [term.value for term in found.query_side if term.kind == kind]
        assert value == pytest.approx(sum(terms), abs=CLOSES)
        assert terms, f"GPT-2 has {kind} terms"
    bare, local = localised("llama", ignored=())
    kinds = {term.kind for term in qk(bare, local, 2, 0, 5, 3).query_side}
    assert kinds == {"feature", "error", "embedding", "bias"}


def test_pairs_are_products_of_the_strongest_terms():
    model, local = localised("gemma3")
    found = qk(model, local, 2, 3, 5, 2)
    pairs = found.pairs(4)
    assert pairs.query == (*(term.id for term in found.query_side[:4]), "rest")
    torch.testing.assert_close(
        pairs.values[:4, :4], found.query_vectors[:4] @ found.key_vectors[:4].T, atol=0, rtol=0
    )
    sizes = [abs(term.value) for term in found.key_side]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("rows", [7, 1024])
def test_strongest_pairs_are_the_largest_of_all(rows, monkeypatch):
    monkeypatch.setattr("circuit_tracer.attention.scores.ROWS", rows)
    model, local = localised("qwen2", kind="clt")
    found = qk(model, local, 2, 3, 5, 2)
    every = {
        (one.id, other.id): float(found.query_vectors[i] @ found.key_vectors[j])
        for i, one in enumerate(found.query_side)
        for j, other in enumerate(found.key_side)
    }
    best = sorted(every.items(), key=lambda pair: -abs(pair[1]))[:12]
    strongest = found.strongest_pairs(12)
    assert [(one.id, other.id) for one, other, _ in strongest] == [ids for ids, _ in best]
    assert [value for *_, value in strongest] == pytest.approx([value for _, value in best])
    assert len(found.strongest_pairs(10**6)) == len(every)


def test_scores_give_the_pattern():
    """Softmax of the scores of one query over all keys is its row of the pattern."""
    for family in ("llama", "gpt2", "neox", "gemma2"):
        model, local = localised(family)
        row = [qk(model, local, 1, 2, 5, key) for key in range(6)]
        scores = torch.tensor([one.score for one in row], dtype=torch.float64)
        if family == "gemma2":  # soft cap 20
            assert {one.softcap for one in row} == {20.0}
            scores = 20.0 * torch.tanh(scores / 20.0)
        pattern = torch.tensor([one.pattern for one in row], dtype=torch.float64)
        torch.testing.assert_close(scores.softmax(0), pattern, atol=CLOSES, rtol=0)


def test_scores_read_well_and_survive_json():
    model, local = localised("gemma2")
    found = qk(model, local, 2, 3, -1, -3)
    assert (found.query, found.key) == (5, 3)
    text = found.table(3)
    assert "head 2.3, 'w9'@5 looks at 'w5'@3" in text and "soft-capped at 20" in text
    for side in (found.query_side, found.key_side):
        assert side[0].id in text and f"rest ({len(side) - 3} more)" in text
    shown = found.to_plain(3)
    assert json.loads(json.dumps(shown))["score"] == found.score


@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("qwen3", dict(query_norm=None)),
        ("olmo2", dict(key_norm=None)),
        ("neox", dict(fused="stacked")),
        ("gpt2", dict(fused="by_head")),
    ],
)
def test_a_family_described_wrongly_gets_an_error_and_no_numbers(family, wrong):
    model, local = localised(family)
    model.adapter.family = replace(model.adapter.family, **wrong)
    with pytest.raises(ModelError, match="cannot be taken apart"):
        qk(model, local, 1, 1, 4, 2)


def test_layers_that_leave_rotary_positions_aside():
    import transformers

    settings = transformers.SmolLM3Config(
        **{
            **tiny.config("llama").to_dict(),
            "num_hidden_layers": 3,
            "no_rope_layers": [1, 0, 1],
            "layer_types": None,
            "attention_bias": False,
            "model_type": "smollm3",
            "use_sliding_window": False,
        }
    )
    settings._attn_implementation = "eager"
    torch.manual_seed(3)
    net = tiny.exact(transformers.SmolLM3ForCausalLM(settings).double().eval())
    adapter = Adapter(net.requires_grad_(False), "tiny SmolLM3", torch.float64)
    model = ct.ReplacementModel(adapter, tiny.tokenizer(), tiny.transcoders())
    local = model.localise(model.run(tiny.PROMPT))
    assert [bool(layer.self_attn.use_rope) for layer in adapter.layers] == [True, False, True]
    for layer in range(3):
        assert abs(qk(model, local, layer, 1, 5, 3).error) < CLOSES


def test_rotary_positions_that_are_not_seen_are_missed(monkeypatch):
    monkeypatch.setattr("circuit_tracer.models.queries.Seen._positions", lambda *a: None)
    model, local = localised("llama")
    with pytest.raises(ModelError, match="is not what its projection, norm and rotary"):
        qk(model, local, 1, 1, 4, 2)


def test_the_model_is_as_it_was_also_after_an_error(monkeypatch):
    model, local = localised("qwen3")
    before = model.adapter.model.config._attn_implementation
    monkeypatch.setattr(model.adapter, "family", replace(model.adapter.family, query_norm=None))
    with pytest.raises(ModelError):
        qk(model, local, 1, 1, 4, 2)
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    modules = model.adapter.model.modules()
    assert not any(getattr(module, name) for module in modules for name in hooks)
    assert model.adapter.model.config._attn_implementation == before


# Prompts, graphs, and words that are wrong.


def test_a_graph_brings_its_prompt_and_its_ignored_positions():
    model = tiny.replacement("llama")
    for ignored in ("bos", [0, 2]):
        graph = ct.trace(tiny.PROMPT, model, ignore_positions=ignored)
        target, source = graph.nodes[graph.index.first_target], graph.nodes[3]
        edge = graph.dense()[graph.row(target.id), graph.row(source.id)]
        assert heads(model, graph, source, target).edge == pytest.approx(float(edge), abs=CLOSES)
        local = model.localise(model.run(tiny.PROMPT), graph.provenance.ignored_positions)
        assert qk(model, graph, 1, 1, 5, 2).by_kind.equal(qk(model, local, 1, 1, 5, 2).by_kind)
    layer, position, feature = graph.index.features[-1].tolist()
    wanted = (layer, position, feature)
    graph = ct.trace(tiny.PROMPT, model, [wanted, Difference(9, 12), At(7, 3)])
    matrix, (pre, apart, early) = graph.dense(), graph.nodes[graph.index.first_target :]
    node = node_id("feature", layer, position, feature)
    for target, name in ((pre, node), (early, "4_7_3")):
        found = heads(model, graph, "E_21_2", target)
        assert found.target == name
        edge = matrix[graph.row(target.id), graph.row("E_21_2")]
        assert found.edge == pytest.approx(float(edge), abs=CLOSES)
    assert heads(model, graph, "E_21_2", wanted).edge == heads(model, graph, "E_21_2", pre).edge
    edge = matrix[graph.row(apart.id), graph.row("E_21_2")]
    for name in (apart, Difference(9, 12)):
        found = heads(model, graph, "E_21_2", name)
        assert found.edge == pytest.approx(float(edge), abs=CLOSES)
    assert heads(model, "w9 w21 w5", "E_21_2", "4_7_3").tokens == ("<bos>", "w9", "w21", "w5")


def test_a_graph_of_another_model_is_refused():
    graph = ct.trace(tiny.PROMPT, tiny.replacement("llama"))
    other = tiny.replacement("qwen2")
    with pytest.raises(InputError, match="not active here; load the model"):
        heads(other, graph, "E_9_1", LOGIT)
    with pytest.raises(InputError, match="localised by another model"):
        heads(other, localised()[1], "E_9_1", LOGIT)
    with pytest.raises(InputError, match="not of this vocabulary"):
        qk(other, replace(graph, token_ids=(999,) * len(graph.token_ids)), 0, 0, 1, 1)


def test_unknown_nodes_name_what_is_there():
    model, local = localised()
    layer, position, feature = local.index.features[0].tolist()
    active = node_id("feature", layer, position, feature)
    cases = {
        "nonsense": "is not a node id; they look like",
        f"0_999_{position}": f"not active at position {position}; the nearest that are: .*0_",
        "7_1_1": "there is no layer 7; the model has layers 0 to 2",
        "0_1_99": "no position 99; the prompt has positions 0 to 5",
        "E_3_1": "the embedding there is 'E_9_1'",
        "0_1_0": "position 0 are ignored",
        "0_-1_0": "position 0 are ignored",
        LOGIT: "is a target; an edge starts at",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            heads(model, local, name, LOGIT)
    with pytest.raises(InputError, match="is a target"):
        heads(model, local, Difference(1, 2), LOGIT)
    targets = {
        "E_9_1": "is an embedding and reads nothing",
        "1_-1_3": "is an error and reads nothing",
        "4_-1_5": "is a direction, which its id does not describe",
        "4_999_5": "there is no token 999",
        (0, 3, 999): "layer 0 has no feature 999",
    }
    for name, message in targets.items():
        with pytest.raises(InputError, match=message):
            heads(model, local, active, name)
    with pytest.raises(InputError, match="at least two nodes; this one has 1"):
        path_heads(model, local, [active])


def test_a_feature_that_is_active_elsewhere_says_where():
    model, local = localised()
    for layer, position, feature in local.index.features.tolist():
        for other in range(1, local.n_positions):
            if local.index.feature_row(layer, other, feature) is None:
                with pytest.raises(InputError, match=rf"\(it is at .*{position}.*\)"):
                    heads(model, local, node_id("feature", layer, other, feature), LOGIT)
                return
    raise AssertionError("every feature is active everywhere")


def test_no_edge_leads_down_or_back():
    model, local = localised()
    rows = local.index.feature_rows
    ids = names(local)
    low, high = ids[rows(0, 4, 5).start], ids[rows(2, 3, 4).start]
    for pair in ((high, low), (low, high), (low, low)):
        with pytest.raises(InputError, match="no edge leads from .* a target reads from lower"):
            heads(model, local, *pair)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ((3, 0, 1, 1), "no layer 3: tiny llama has 0 to 2"),
        ((-1, 0, 1, 1), "no layer -1"),
        ((0, 4, 1, 1), "no head 4: tiny llama has 0 to 3"),
        ((0, 0, 6, 1), "query 6 is not a position: the prompt has 0 to 5"),
        ((0, 0, 1, -7), "key -7 is not a position"),
        ((0, 0, 1, 2), "position 1 cannot look ahead at 2"),
    ],
)
def test_heads_and_positions_that_are_not_there(site, message):
    model, local = localised()
    with pytest.raises(InputError, match=message):
        qk(model, local, *site)


def test_the_bundled_model_answers_within_a_second():
    model = ct.load()
    local = model.localise(model.run("The opposite of small is"))
    last = local.n_positions - 1
    started = time.perf_counter()
    target = f"{local.n_layers + 1}_{int(local.forward.logits[-1].argmax())}_{last}"
    found = heads(model, local, f"E_{int(local.forward.token_ids[last - 1])}_{last - 1}", target)
    taken = time.perf_counter() - started
    score = qk(model, local, local.n_layers - 1, 0, last, last - 1)
    assert taken < 1.0
    assert abs(found.error) < 1e-5 * max(1.0, float(found.by_head.abs().sum()))
    assert abs(score.error) < 1e-5 * max(1.0, abs(score.score))
