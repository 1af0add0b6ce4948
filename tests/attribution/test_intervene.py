"""Interventions: against the edges, against a brute force, against the reference tool."""

from __future__ import annotations

import json
import pickle

import pytest
import tiny
import torch
from safetensors.torch import load_file

import circuit_tracer as ct
from circuit_tracer.attribute import attribute
from circuit_tracer.changes import Clean, resolve, resolve_everywhere
from circuit_tracer.models.attention import watched
from circuit_tracer.patched import Hold, run_patched
from circuit_tracer.targets import choose

EXACT = 1e-12  # float64
ATOL = 2e-5  # float32
SETS = [
    dict(kind="plt", activation="relu"),
    dict(kind="plt", activation="jump_relu", skip=True, read="ln2.hook_normalized"),
    dict(kind="plt", activation="topk", read="hook_resid_mid"),
    dict(kind="clt", activation="jump_relu", write="mlp.hook_out"),
    dict(kind="clt", activation="relu", skip=True, read="hook_resid_mid"),
]
NAMES = ["-".join(map(str, given.values())) for given in SETS]
CASES = ("llama_relu_plt", "gemma2_jumprelu_plt", "llama_relu_clt")


def every():
    for family in tiny.FAMILIES:
        yield pytest.param(family, {}, id=family)
    for family in ("gemma2", "gpt2", "neox"):
        for name, given in zip(NAMES, SETS, strict=True):
            yield pytest.param(family, given, id=f"{family}-{name}")


def logits_of(model, ids=tiny.PROMPT):
    return model.adapter.model(torch.tensor([ids])).logits[0]


def some_feature(model, layer=0, position=3):
    """An active feature, as a key, and its activation."""
    activations = Clean(model.transcoders, model.run(tiny.PROMPT)).activations(layer)[position]
    feature = int(activations.argmax())
    return (layer, position, feature), float(activations[feature])


@pytest.mark.parametrize(("family", "given"), list(every()))
def test_direct_interventions_are_columns_of_the_matrix(family, given):
    """Δ pre-activation of t = (Δ activation of s / activation of s) · A[t, s], any sign and size;
    and likewise for the logits that are not soft-capped."""
    model = tiny.replacement(family, **given)
    forward = model.run(tiny.PROMPT)
    local = model.localise(forward)
    directions = choose(model, forward, max_logits=4)
    rows = attribute(local, directions, max_features=None)
    matrix, index = rows.dense(), rows.index
    sources = list(range(0, index.n_features, 3))
    factors = [(-1.0, 0.0, 2.5, -30.0)[number % 4] for number in range(len(sources))]
    batch = [
        {tuple(index.features[row].tolist()): ct.Scale(factor)}
        for row, factor in zip(sources, factors, strict=True)
    ]
    capped = getattr(model.adapter.model.config, "final_logit_softcapping", None)
    for row, factor, result in zip(
        sources, factors, model.intervene_each(tiny.PROMPT, batch, mode="direct"), strict=True
    ):
        places = {tuple(place): at for at, place in enumerate(result.features.tolist())}
        at = [places[tuple(place)] for place in index.features.tolist()]
        moved = (result.pre_after - result.pre_before)[at]
        wanted = (factor - 1) * matrix[: index.n_features, row]
        torch.testing.assert_close(moved, wanted, atol=EXACT * max(1, abs(factor)), rtol=1e-10)
        if capped is None:
            change = (result.logits_after - result.logits_before)[-1]
            change = change - change.mean()
            for direction, edges in zip(directions, matrix[index.first_target :], strict=True):
                assert float(change[direction.token_id]) == pytest.approx(
                    (factor - 1) * float(edges[row]), abs=1e-10, rel=1e-10
                )


class Brute:
    """The whole model replaced by hand: no hooks, no package code but the adapter's norms."""

    def __init__(self, model, changes):
        self.model, self.changes = model, changes

    def logits(self, ids=tiny.PROMPT, patterns=None):
        """Llama, layer by layer; `patterns` are used where given."""
        net, sets = self.model.adapter.model, self.model.transcoders
        config = net.config
        x = net.model.embed_tokens(torch.tensor([ids]))
        places = torch.arange(len(ids))[None]
        rotary = net.model.rotary_emb(x, places)
        future = torch.full((len(ids), len(ids)), -torch.inf, dtype=x.dtype).triu(1)
        added = [torch.zeros_like(x[0]) for _ in range(config.num_hidden_layers)]
        for number, layer in enumerate(net.model.layers):
            h = layer.input_layernorm(x)
            if patterns is None:
                x = x + layer.self_attn(h, rotary, future[None, None])[0]
            else:
                value = layer.self_attn.v_proj(h)[0].view(len(ids), config.num_key_value_heads, -1)
                value = value.repeat_interleave(
                    config.num_attention_heads // config.num_key_value_heads, dim=1
                )
                mixed = torch.einsum("hqk,khc->qhc", patterns[number], value)
                x = x + layer.self_attn.o_proj(mixed.flatten(1))[None]
            h = layer.post_attention_layernorm(x)
            weights = sets.layer(number)
            for (at, position, feature), change in self.changes.items():
                if at != number:
                    continue
                pre = h[0, position] @ weights.encoder[feature] + weights.encoder_bias[feature]
                old = pre.clamp(min=0)
                new = change.factor * old if isinstance(change, ct.Scale) else change.value
                for offset, decoder in enumerate(weights.decoders):
                    added[number + offset][position] += (new - old) * decoder[feature]
            x = x + layer.mlp(h) + added[number]
        return net.lm_head(net.model.norm(x))[0]


@pytest.mark.parametrize("kind", ["plt", "clt"])
@pytest.mark.parametrize("freeze", [False, True])
def test_free_interventions_agree_with_a_model_written_out_by_hand(kind, freeze):
    model = tiny.replacement("llama", kind=kind)
    first, _ = some_feature(model, 0, 2)
    second, _ = some_feature(model, 1, 4)
    off = next(f for f in range(20) if (0, 5, f) not in active_places(model))
    changes = {first: ct.Scale(-3), second: ct.Scale(2), (0, 5, off): ct.Clamp(4.0)}
    patterns = model.run(tiny.PROMPT).patterns if freeze else None
    result = model.intervene(tiny.PROMPT, changes, freeze_attention=freeze)
    with watched(model.adapter.model):  # transformers' own softmax is float32 in any model
        wanted = Brute(model, changes).logits(patterns=patterns)
    torch.testing.assert_close(result.logits_after, wanted, atol=1e-11, rtol=0)
    assert (result.logits_after - result.logits_before).abs().max() > 0.1


def active_places(model):
    forward = model.run(tiny.PROMPT)
    return set(map(tuple, model.localise(forward, ()).features.tolist()))


@pytest.fixture(scope="module", params=CASES)
def case(request, oracle):
    folder = oracle / request.param
    model = ct.load(folder / "model", folder / "transcoders")
    prompt = json.loads((folder / "prompt.json").read_text())["token_ids"]
    facts = json.loads((folder / "expected.json").read_text())["interventions"]
    return model, prompt, load_file(folder / "expected.safetensors"), facts


def how(wanted, n_layers):
    """The reference tool's words in ours."""
    held = wanted.get("constrained_layers")
    if held is None:
        return dict(mode="free", freeze_attention=wanted.get("freeze_attention", True))
    return dict(mode="direct") if len(held) == n_layers else dict(mode="constrained", layers=held)


def test_the_reference_tools_interventions(case):
    model, prompt, expected, facts = case
    assert len(facts) == 17
    for wanted in facts:
        if "list" in wanted:
            slices = {"slice(2,None)": slice(2, None)}
            changes = [
                ((layer, slices.get(at, at), feature), ct.Clamp(value))
                for layer, at, feature, value in wanted["list"]
            ]
        else:
            key = (wanted["layer"], wanted["pos"], wanted["feature"])
            changes = [(key, ct.Clamp(wanted["new_value"]))]
        result = model.intervene(prompt, changes, **how(wanted["kwargs"], model.adapter.n_layers))
        name = wanted["key"]
        logits = expected[f"{name}.last_logits"]
        torch.testing.assert_close(result.logits_after[-1], logits, atol=ATOL, rtol=0)
        if (activations := expected.get(f"{name}.active_feature_activations")) is not None:
            found = result.activations_of(expected["active_features"])
            torch.testing.assert_close(found, activations, atol=ATOL, rtol=0)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_doing_nothing_changes_nothing(family):
    model = tiny.replacement(family, kind="clt")
    key, _ = some_feature(model)
    free = model.intervene(tiny.PROMPT, {key: ct.Scale(1)})
    assert torch.equal(free.logits_after, free.logits_before)
    assert free.changed() == []
    for mode in ("direct", "constrained"):
        held = model.intervene(tiny.PROMPT, {key: ct.Scale(1)}, mode=mode)
        torch.testing.assert_close(held.logits_after, held.logits_before, atol=1e-11, rtol=0)


def test_to_scale_is_to_clamp_at_a_multiple():
    model = tiny.replacement("gemma2")
    key, value = some_feature(model)
    for mode in ("direct", "constrained", "free"):
        scaled = model.intervene(tiny.PROMPT, {key: ct.Scale(-2)}, mode=mode)
        clamped = model.intervene(tiny.PROMPT, {key: ct.Clamp(-2 * value)}, mode=mode)
        torch.testing.assert_close(scaled.logits_after, clamped.logits_after, atol=EXACT, rtol=0)


def test_a_batch_is_its_members_one_by_one():
    model = tiny.replacement("gpt2", kind="clt", activation="topk")
    keys = [some_feature(model, layer, position)[0] for layer in (0, 1) for position in (1, 4)]
    batch = [{key: ct.Scale(0)} for key in keys] + [{key: ct.Scale(-1) for key in keys}]
    for mode in ("direct", "constrained", "free"):
        together = model.intervene_each(tiny.PROMPT, batch, mode=mode, **held_up_to(mode))
        for changes, result in zip(batch, together, strict=True):
            alone = model.intervene(tiny.PROMPT, changes, mode=mode, **held_up_to(mode))
            torch.testing.assert_close(result.logits_after, alone.logits_after, atol=EXACT, rtol=0)
            torch.testing.assert_close(result.after, alone.after, atol=EXACT, rtol=0)


def held_up_to(mode):
    return {"layers": range(2)} if mode == "constrained" else {}


def test_keys_may_be_nodes_sets_slices_and_every_position():
    model = tiny.replacement("llama")
    graph = ct.trace(tiny.PROMPT, model, ignore_positions="none")
    nodes = tuple(node for node in graph.nodes if node.kind == "feature" and node.layer == 0)[:3]
    one_by_one = {(n.layer, n.position, n.feature): ct.Scale(0) for n in nodes}
    wanted = model.intervene(tiny.PROMPT, one_by_one).logits_after
    for changes in (
        {nodes: ct.Scale(0)},
        {node: ct.Scale(0) for node in nodes},
        [(list(nodes), ct.Scale(0))],
        {(nodes[0], tuple(one_by_one)[1:]): ct.Scale(0)},
    ):
        assert torch.equal(model.intervene(tiny.PROMPT, changes).logits_after, wanted)
    everywhere = [model.intervene(tiny.PROMPT, [((1, where, 4), ct.Clamp(2))]) for where in WHERE]
    for result in everywhere[1:]:
        assert torch.equal(result.logits_after, everywhere[0].logits_after)
    assert [edit.position for edit in everywhere[0].edits] == list(range(len(tiny.PROMPT)))
    last = model.intervene(tiny.PROMPT, {(1, -1, 4): ct.Clamp(2)}).logits_after
    named = model.intervene(tiny.PROMPT, {(1, len(tiny.PROMPT) - 1, 4): ct.Clamp(2)}).logits_after
    assert torch.equal(last, named)


WHERE = (None, "all", slice(None), slice(0, 100), range(6), (0, 1, 2, 3, 4, 5))


def test_what_comes_out_says_what_happened():
    model = tiny.replacement("llama")
    key, _ = some_feature(model)
    result = model.intervene(tiny.PROMPT, {key: ct.Scale(-4)})
    table = result.table(3, tokens=[7])
    before = result.logits_before[-1].softmax(-1)
    assert table[0].token_id == int(before.argmax())
    assert 7 in [row.token_id for row in table]
    for row in table:
        assert row.before == pytest.approx(float(before[row.token_id]))
        assert row.logit_after == pytest.approx(float(result.logits_after[-1, row.token_id]))
        assert row.token == model.token_text(row.token_id)
    assert {row.token_id for row in table} >= set(result.logits_after[-1].topk(3).indices.tolist())
    moved = result.changed(k=None)
    sizes = [abs(change.after - change.before) for change in moved]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] > 0
    assert min(change.position for change in moved) >= key[1]
    assert min(change.layer for change in moved) > key[0]
    assert table[0].token in repr(result)


def test_an_intervention_can_be_sent_to_another_process():
    model = tiny.replacement("gemma2")
    place, value = some_feature(model)
    changes = [{place: ct.Clamp(value * times)} for times in range(40)]
    found = model.intervene_each(tiny.PROMPT, changes)[3]
    sent = pickle.dumps(found)
    back = pickle.loads(sent)
    assert back.table(3, tokens=[7]) == found.table(3, tokens=[7])
    assert back.changed() == found.changed() and repr(back) == repr(found)
    assert back.token_text(39) == "w39"
    alone = pickle.dumps(model.intervene(tiny.PROMPT, changes[3]))
    assert len(sent) <= 1.1 * len(alone)  # not the logits of the batch it was part of


def test_held_layers_do_not_count_as_changed():
    model = tiny.replacement("llama")
    key, _ = some_feature(model)
    moved = model.intervene(
        tiny.PROMPT, {key: ct.Scale(-4)}, mode="constrained", layers=range(2)
    ).changed()
    assert moved and {change.layer for change in moved} == {2}


@pytest.mark.parametrize("mode", ["direct", "constrained", "free"])
@pytest.mark.parametrize("family", ["gemma2", "gpt2", "qwen3_moe"])
def test_nothing_stays_on_the_model_even_after_an_error(family, mode, monkeypatch):
    model = tiny.replacement(family, kind="clt")
    net = model.adapter.model
    clean, used = logits_of(model), net.config._attn_implementation
    key, _ = some_feature(model)
    model.intervene(tiny.PROMPT, {key: ct.Scale(-4)}, mode=mode)
    assert torch.equal(logits_of(model), clean)
    model.generate(tiny.PROMPT, {(0, 3): ct.Clamp(3.0)}, max_new_tokens=3)
    assert torch.equal(logits_of(model), clean)

    def fails(*_args, **_kwargs):
        raise RuntimeError("in the middle of the pass")

    changes = {key: ct.Scale(-4)}
    forward = model.run(tiny.PROMPT)
    monkeypatch.setattr(type(model), "run", lambda *_: forward)
    monkeypatch.setattr(type(model.adapter.layers[1]), "forward", fails)
    with pytest.raises(RuntimeError, match="in the middle"):
        model.intervene(tiny.PROMPT, changes, mode=mode)
    with pytest.raises(RuntimeError, match="in the middle"):
        model.generate(tiny.PROMPT, {(0, 3): ct.Clamp(3.0)})
    monkeypatch.undo()
    assert torch.equal(logits_of(model), clean)
    assert net.config._attn_implementation == used
    hooks = [h for m in net.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert hooks == []


def test_a_listener_that_raises_leaves_no_hooks():
    model = tiny.replacement("llama")
    clean = logits_of(model)

    def listener(_step, steered):
        if steered:
            assert torch.equal(logits_of(model), clean)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as kept:
        model.generate(tiny.PROMPT, {(0, 3): ct.Clamp(9.0)}, listener=listener)
    assert kept.tb is not None and torch.equal(logits_of(model), clean)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "neox"])
def test_steered_text_is_that_of_whole_passes_changed_everywhere(family):
    """Token by token with a cache = greedy decoding by passes over all of the text."""
    model = tiny.replacement(family, kind="clt")
    steer = {(0, 3): ct.Clamp(5.0), (1, 6): ct.Scale(-2)}
    with watched(model.adapter.model):  # transformers' own softmax is float32 in any model
        found = model.generate(tiny.PROMPT, steer, max_new_tokens=5)
    ids = list(tiny.PROMPT)
    for step in found.steered_steps:
        clean = Clean(model.transcoders, model.run(ids))
        edits = resolve_everywhere(steer, model.transcoders)
        whole = run_patched(model.adapter, clean, [edits], Hold()).logits[0]
        shares = whole[-1].softmax(-1)
        assert step.token_id == int(shares.argmax())
        assert step.probability == pytest.approx(float(shares[step.token_id]), rel=1e-9)
        plain = clean.forward.logits[-1].softmax(-1)
        assert step.unsteered == pytest.approx(float(plain[step.token_id]), rel=1e-9)
        ids.append(step.token_id)


def test_drawing_follows_its_seed_and_top_k():
    model = tiny.replacement("llama")
    steer = {(0, 3): ct.Clamp(2.0)}

    def text(**given):
        return model.generate(tiny.PROMPT, steer, max_new_tokens=8, **given).steered

    assert text(temperature=1.5, seed=1) == text(temperature=1.5, seed=1)
    assert len({text(temperature=1.5, seed=seed) for seed in range(6)}) > 1
    assert text(temperature=2.0, top_k=1) == text()


def test_maxima_are_over_all_positions_but_the_first():
    model = tiny.replacement("llama")
    texts = [tiny.PROMPT, [2, 8, 30, 11]]
    found = model.maxima([(0, 3), (2, 5)], texts)
    for (layer, feature), value in found.items():
        dense = [Clean(model.transcoders, model.run(text)).activations(layer) for text in texts]
        assert value == pytest.approx(max(float(part[1:, feature].max()) for part in dense))


BAD = [
    ({}, "nothing to change"),
    ({(): ct.Scale(0)}, "set of features is empty"),
    ({(9, 1, 0): ct.Scale(0)}, "no layer 9.* layers 0 to 2"),
    ({(0, 1, 99): ct.Scale(0)}, "no feature 99 in layer 0.* 0 to 19"),
    ({(0, 17, 0): ct.Clamp(1)}, "no position 17.* 0 to 5"),
    ({(0, -7, 0): ct.Clamp(1)}, "no position -7"),
    ([((0, slice(9, None), 0), ct.Clamp(1))], "none of the prompt's positions"),
    ({(0, range(2, 9), 0): ct.Clamp(1)}, "no position 6"),
    ({(0, (), 0): ct.Clamp(1)}, "a position is"),
    ({(0, 1.5, 0): ct.Clamp(1)}, "a position is"),
    ({"3_1_2": ct.Scale(0)}, "names no feature"),
    ({(0, 1, 0): 3.0}, "ct.Scale"),
    ([((0, 1, 0), ct.Clamp(1)), ((0, slice(3), 0), ct.Clamp(2))], "changed twice at position 1"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_changes_are_refused_with_what_would_do(changes, message):
    with pytest.raises(ct.CircuitTracerError, match=message) as caught:
        tiny.replacement("llama").intervene(tiny.PROMPT, changes)
    assert caught.value.exit_status == 2


def test_scaling_what_is_not_active_names_what_is():
    model = tiny.replacement("llama")
    active = active_places(model)
    off = next(f for f in range(20) if (0, 3, f) not in active and (0, 1, f) in active)
    near = str(some_feature(model, 0, 3)[0][2])
    with pytest.raises(ct.CircuitTracerError, match="not active at position 3") as caught:
        model.intervene(tiny.PROMPT, {(0, 3, off): ct.Scale(0)})
    assert near in str(caught.value) and "active at 1" in str(caught.value)
    clean = Clean(model.transcoders, model.run(tiny.PROMPT))
    assert len(resolve({(0, None, off): ct.Scale(0)}, clean)) == len(tiny.PROMPT)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "2", None, True])
def test_values_are_finite_numbers(value):
    for change in (ct.Scale, ct.Clamp):
        with pytest.raises(ct.CircuitTracerError, match="finite number"):
            change(value)


def test_options_that_do_not_go_together_are_refused():
    model, changes = tiny.replacement("llama"), {(1, 2, 3): ct.Clamp(1)}
    for given, message in (
        (dict(mode="frozen"), "must be one of"),
        (dict(mode="free", layers=[1]), "takes none"),
        (dict(mode="direct", freeze_attention=True), "always"),
        (dict(mode="constrained", layers=[7]), "no layer 7"),
        (dict(mode="constrained", layers=[]), "empty"),
        (dict(mode="constrained", layers=[0]), "writes to none of the held layers"),
    ):
        with pytest.raises(ct.CircuitTracerError, match=message):
            model.intervene(tiny.PROMPT, changes, **given)
    for steer, given, message in (
        ({}, {}, "nothing to change"),
        ({(0, 1, 2): ct.Clamp(1)}, {}, r"\(layer, feature\)"),
        ({(0, 99): ct.Clamp(1)}, {}, "no feature 99"),
        ({(0, 1): ct.Clamp(1)}, dict(max_new_tokens=0), "at least 1"),
        ({(0, 1): ct.Clamp(1)}, dict(temperature=-1), "temperature"),
        ({(0, 1): ct.Clamp(1)}, dict(top_k=0), "top_k"),
    ):
        with pytest.raises(ct.CircuitTracerError, match=message):
            model.generate(tiny.PROMPT, steer, **given)
    with pytest.raises(ct.CircuitTracerError, match="fills all 32"):
        model.generate([2] * 32, {(0, 1): ct.Clamp(1)})
    assert len(model.generate([2] * 30, {(0, 1): ct.Clamp(1)}).steered_steps) <= 2


def test_the_clean_pass_is_encoded_once_a_layer(monkeypatch):
    model = tiny.replacement("llama")
    clean = Clean(model.transcoders, model.run([3, 1, 4, 1]))
    first = [clean.activations(layer) for layer in range(tiny.LAYERS)]
    monkeypatch.setattr(type(model.transcoders), "encode", None)
    assert all(torch.equal(one, clean.activations(layer)) for layer, one in enumerate(first))
