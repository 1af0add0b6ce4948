"""The figures against brute force: modules swapped for dense reconstructions, loops for sums."""

from __future__ import annotations

import copy
import json

import pytest
import tiny
import torch

import circuit_tracer as ct
from circuit_tracer.agreement.measure import measure
from circuit_tracer.agreement.splicing import spliced
from circuit_tracer.bundled import transcoder_dir
from circuit_tracer.bundled.measure import unseen
from circuit_tracer.errors import InputError
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.models.attention import watched
from circuit_tracer.replacement import ReplacementModel

CASES = [
    ("llama", dict(kind="plt", read="mlp.hook_in", write="mlp.hook_out")),
    ("llama", dict(kind="clt", read="hook_resid_mid", write="hook_mlp_out", skip=True)),
    ("gpt2", dict(kind="clt", read="ln2.hook_normalized", write="mlp.hook_out")),
    ("neox", dict(kind="plt", read="mlp.hook_in", write="mlp.hook_out", activation="topk")),
    ("gemma2", dict(kind="plt", read="ln2.hook_normalized", write="hook_mlp_out")),
    ("gemma3", dict(kind="clt", read="hook_resid_mid", write="mlp.hook_out")),
    ("olmo2", dict(kind="plt", read="mlp.hook_in", write="hook_mlp_out", skip=True)),
    ("gpt_oss", dict(kind="plt", read="mlp.hook_in", write="mlp.hook_out")),
]
TEXTS = [tiny.PROMPT, [2, 30, 8], [2, 7, 7, 12, 39, 21, 4]]


class Swapped(torch.nn.Module):
    """A module that calls `look` on what comes in and gives what `answer` makes of the rest."""

    def __init__(self, inner, look=None, answer=None):
        super().__init__()
        self.inner, self.look, self.answer = inner, look, answer

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x, *rest, **named):
        if self.look is not None:
            self.look(x[0])
        output = self.inner(x, *rest, **named)
        if self.answer is None:
            return output
        if isinstance(output, tuple):
            return (self.answer(output[0]), *output[1:])
        return self.answer(output)


def dense(sets, layer, sites):
    """Reconstruction of a layer from all activations, written out."""
    weights = sets.layer(layer)
    total = weights.output_bias.expand(len(sites[layer]), -1).clone()
    if weights.skip is not None:
        total = total + sites[layer] @ weights.skip.T
    for source in range(layer + 1) if sets.kind == "clt" else [layer]:
        theirs = sets.layer(source)
        pre = sites[source] @ theirs.encoder.T + theirs.encoder_bias
        active = pre * theirs.activation.active(pre)
        total = total + active @ theirs.decoders[layer - source]
    return total


def swapped(model):
    """Logits of a copy of the network whose modules were swapped; position 0 keeps its MLPs."""
    sets = model.transcoders
    net = copy.deepcopy(model.adapter.model)
    tiny.exact(net)
    family, sites = model.adapter.family, {}
    for layer, block in enumerate(net.get_submodule(family.layers)):

        def answer(output, layer=layer):
            made = dense(sets, layer, sites)
            made[0] = output.reshape(made.shape)[0]
            return made.view_as(output)

        def keep(x, layer=layer):
            sites[layer] = x

        def normalised(x, layer=layer, norm=model.adapter.blocks[layer].mlp_norm):
            sites[layer] = norm.centre(x) * norm.scale(x)[:, None]

        look = normalised if sets.read == "ln2.hook_normalized" else keep
        read = family.mlp if sets.read == "mlp.hook_in" else family.mlp_norm
        write = family.post_mlp_norm if sets.write == "hook_mlp_out" else None
        setattr(block, read, Swapped(getattr(block, read), look=look))
        write = write or family.mlp
        setattr(block, write, Swapped(getattr(block, write), answer=answer))

    def logits(ids):
        with torch.no_grad(), watched(net):  # attention in float64
            return net(input_ids=torch.tensor([ids]), use_cache=False).logits[0]

    return logits


@pytest.mark.parametrize("family, sets", CASES)
def test_figures_are_those_of_swapped_modules(family, sets):
    model = tiny.replacement(family, **sets)
    brute = swapped(model)
    found = measure(model, TEXTS)
    same = kl = real_entropy = entropy = count = followed = 0
    outputs = {layer: [] for layer in range(tiny.LAYERS)}
    wrong, fired = copy.deepcopy(outputs), copy.deepcopy(outputs)
    for ids in TEXTS:
        forward = model.run(ids)
        with torch.no_grad():
            real, new = forward.logits.log_softmax(-1), brute(ids).log_softmax(-1)
        for p in range(1, len(ids)):
            same += int(real[p].argmax() == new[p].argmax())
            kl += float((real[p].exp() * (real[p] - new[p])).sum())
            count += 1
            if p + 1 < len(ids):
                real_entropy -= float(real[p, ids[p + 1]])
                entropy -= float(new[p, ids[p + 1]])
                followed += 1
        for layer in range(tiny.LAYERS):
            made = dense(model.transcoders, layer, forward.mlp_inputs)
            outputs[layer].append(forward.mlp_outputs[layer][1:])
            wrong[layer].append((forward.mlp_outputs[layer] - made)[1:])
            pre = model.transcoders.pre_activations(layer, forward.mlp_inputs[layer])
            fired[layer].append(model.transcoders.layer(layer).activation.active(pre)[1:])
    assert found.positions == count and found.texts == len(TEXTS)
    assert found.top1 == same / count
    assert found.kl == pytest.approx(kl / count, rel=1e-9)
    assert found.cross_entropy == pytest.approx(real_entropy / followed, rel=1e-9)
    assert found.cross_entropy_replaced == pytest.approx(entropy / followed, rel=1e-9)
    for layer, here in enumerate(found.layers):
        y, error, on = (torch.cat(parts[layer]) for parts in (outputs, wrong, fired))
        nmse = error.square().sum() / (y - y.mean(0)).square().sum()
        assert here.nmse == pytest.approx(float(nmse), rel=1e-9)
        assert here.l0 == pytest.approx(float(on.sum(1).double().mean()))
        assert here.dead == pytest.approx(float((~on.any(0)).double().mean()))


def test_all_neurons_are_the_model_itself():
    from circuit_tracer.neurons import neurons

    adapter = Adapter(tiny.model("gemma2"), "gemma2", torch.float64)
    model = ReplacementModel(adapter, tiny.tokenizer(), neurons(adapter, "neurons:all"))
    found = measure(model, TEXTS, keep_first=False)
    assert found.top1 == 1 and abs(found.kl) < 1e-12 and found.nmse < 1e-24
    assert abs(found.cross_entropy_increase) < 1e-12
    assert found.positions == sum(map(len, TEXTS))


@pytest.mark.parametrize("kind", ["plt", "clt"])
def test_the_bundled_sets_agree_as_their_card_says(kind):
    card = json.loads((transcoder_dir(kind).parent / "card.json").read_text())
    wanted = card["replacement"][kind]
    model = ct.load(transcoders=kind)
    sentences = unseen(120)
    last = measure(model, [s.prompt for s in sentences], positions="last")
    assert abs(last.top1 - wanted["agreement"]) < 0.04
    every = measure(model, [s.text for s in sentences], tokens=600)
    assert every.positions == 600
    for here, nmse, l0 in zip(every.layers, wanted["normalised_error"], wanted["l0"], strict=True):
        assert here.nmse == pytest.approx(nmse, rel=0.25)
        assert here.l0 == pytest.approx(l0, rel=0.1)


def test_hooks_are_gone_after_an_error():
    model = tiny.replacement("gemma2")
    real = model.run(tiny.PROMPT).logits
    with (
        pytest.raises(KeyboardInterrupt),
        spliced(model.adapter, model.transcoders, torch.zeros(6, dtype=torch.bool)),
    ):
        raise KeyboardInterrupt
    assert torch.equal(model.run(tiny.PROMPT).logits, real)
    assert not any(module._forward_hooks for module in model.adapter.model.modules())
    assert not any(module._forward_pre_hooks for module in model.adapter.model.modules())


def test_long_texts_are_cut_and_keep_their_beginning():
    model = tiny.replacement("llama")
    found = measure(model, [" ".join(["w9 w21 w5"] * 40)])
    assert found.texts == 4 and found.positions == 120
    assert measure(model, [" ".join(["w9"] * 200)], tokens=70).positions == 70


@pytest.mark.parametrize("texts", [[], [""], ["   "], [[2]], [[2, 9]]])
def test_too_little_to_measure(texts):
    with pytest.raises(InputError, match="too few"):
        measure(tiny.replacement("llama"), texts)
