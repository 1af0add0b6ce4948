"""The transcoders: sparse stand-ins for the MLPs, trained on what the MLPs do to the corpus.

One class serves both kinds.  A per-layer transcoder (PLT) writes to its own layer; a cross-layer
transcoder (CLT) writes to its own layer and every later one.  Training keeps the `k` largest
activations a token on average over a batch (BatchTopK); afterwards the moving average of the
smallest kept activation becomes a JumpReLU threshold, so that a feature's state depends on its
own token alone.  A last, short phase trains the set in the MLPs' place.  `folder` writes it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .corpus import Sentence
from .language_model import LeanModel
from .pretrain import Progress, answer_span, pad
from .tokenizer import PAD

FINAL_WEIGHT = 4.0  # how often the last token of a prompt is drawn, against other tokens
LENGTHS = {"plt": {"steps": 1300}, "clt": {"steps": 900, "second_polish": 400}}


@dataclass(frozen=True)
class Recipe:
    """How a set is trained; `batch` tokens a step, `k` active features a token and layer."""

    features: int
    k: int = 20
    steps: int = 1300
    batch: int = 1024
    rate: float = 3e-3
    warm_up: int = 50
    hold: float = 0.3
    floor: float = 0.01
    threshold_rows: int = 256
    dead_after: int = 60
    revive: float = 1 / 32
    revived: int = 64
    polish_steps: int = 200
    polish_batch: int = 64
    polish_rate: float = 3e-4
    second_polish: int = 0
    second_rate: float = 8e-4

    def rate_at(self, step: int) -> float:
        """The learning rate at a step."""
        done = step / self.steps
        falling = 1.0 if done < self.hold else (1 - done) / (1 - self.hold)
        return self.rate * min(1.0, (step + 1) / self.warm_up) * max(self.floor, falling)


@dataclass(frozen=True)
class Activations:
    """What the MLPs read and wrote: both (layers, tokens, d_model); `weights` (tokens)."""

    inputs: Tensor
    outputs: Tensor
    weights: Tensor


class Transcoders(nn.Module):
    """A set in training, in scaled units: inputs have unit mean square, outputs unit variance."""

    def __init__(self, kind: str, layers: int, d_model: int, features: int, seed: int) -> None:
        super().__init__()
        self.kind, self.layers = kind, layers
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(layers, features, d_model, generator=generator)
        rows /= rows.norm(dim=-1, keepdim=True)
        self.w_enc = nn.ParameterList(nn.Parameter(row.clone()) for row in rows)
        self.b_enc = nn.ParameterList(nn.Parameter(torch.zeros(features)) for _ in rows)
        self.b_dec = nn.Parameter(torch.zeros(layers, d_model))
        self.w_dec = nn.ParameterList()
        for layer in range(layers):
            writes = torch.zeros(features, self.reach(layer), d_model)
            writes += torch.randn(writes.shape, generator=generator) * 0.1 / d_model**0.5
            self.w_dec.append(nn.Parameter(writes))
        self.register_buffer("threshold", torch.ones(layers, features))
        self.register_buffer("scale_in", torch.ones(layers))
        self.register_buffer("scale_out", torch.ones(layers))
        self.register_buffer("center", torch.zeros(layers, d_model))

    def reach(self, layer: int) -> int:
        """How many layers a feature of this layer writes to."""
        return self.layers - layer if self.kind == "clt" else 1

    def encode(self, inputs: Tensor) -> list[Tensor]:
        """Scaled inputs (layers, tokens, d_model) -> pre-activations (tokens, features)."""
        rows = zip(self.b_enc, inputs, self.w_enc, strict=True)
        return [torch.addmm(bias, x, weight.T) for bias, x, weight in rows]

    def decode(self, active: list[Tensor]) -> list[Tensor]:
        """Activations, (tokens, features) a layer -> scaled outputs, (tokens, d_model) a layer."""
        tokens = len(active[0])
        outputs = [self.b_dec[layer].expand(tokens, -1) for layer in range(self.layers)]
        for layer, writes in enumerate(self.w_dec):
            written = (active[layer] @ writes.flatten(1)).view(tokens, writes.shape[1], -1)
            for ahead, part in enumerate(written.unbind(1)):
                outputs[layer + ahead] = outputs[layer + ahead] + part
        return outputs

    def at(self, layer: int, inputs: Tensor, active: list[Tensor]) -> Tensor:
        """`mlp.hook_in` at one layer -> the reconstruction, in the model's own units.

        Appends the layer's activations to `active`, which holds those of the layers below.
        """
        pre = (inputs * self.scale_in[layer]) @ self.w_enc[layer].T + self.b_enc[layer]
        active.append(pre * (pre > self.threshold[layer]))
        scaled = self.b_dec[layer]
        for source, writes in enumerate(self.w_dec[: layer + 1]):
            if layer - source < writes.shape[1]:
                scaled = scaled + active[source] @ writes[:, layer - source]
        return scaled * self.scale_out[layer] + self.center[layer]


@torch.no_grad()
def collect(model: LeanModel, tokenizer, sentences: list[Sentence], final: float) -> Activations:
    """What the MLPs read and wrote at every token of the sentences but <bos>.

    The last token of a prompt, where its answer is decided, weighs `final`; what follows it weighs
    a half, everything else one.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for ids, last in prompts(tokenizer, sentences):
        inputs, outputs = model.sites(ids)
        place = torch.arange(ids.shape[1])
        weights = torch.where(place > last[:, None], 0.5, 1.0)
        weights[place == last[:, None]] = final
        kept = (ids != PAD) & (place > 0)
        found.append((inputs[:, kept], outputs[:, kept], weights[kept]))
    inputs, outputs, weights = zip(*found, strict=False)
    return Activations(torch.cat(inputs, 1), torch.cat(outputs, 1), torch.cat(weights))


def prompts(tokenizer, sentences: list[Sentence], size: int = 256):
    """Batches of ids (batch, tokens) and the position of the prompt's last token (batch).

    Short sentences come first.
    """
    order = sorted(sentences, key=lambda sentence: len(sentence.text))
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        found = tokenizer([s.text for s in chunk], return_offsets_mapping=True)
        ids, _ = pad([(tokens, [0.0] * len(tokens)) for tokens in found["input_ids"]])
        last = []
        for sentence, offsets in zip(chunk, found["offset_mapping"], strict=False):
            start_of_answer = answer_span(sentence)[0]
            ends = enumerate(end for _, end in offsets)
            last.append(next(i for i, end in ends if i and end > start_of_answer) - 1)
        yield ids, torch.tensor(last)


def train(
    kind: str, data: Activations, recipe: Recipe, seed: int, progress: Progress
) -> Transcoders:
    """Train a set of one kind on collected activations."""
    layers, tokens, d_model = data.inputs.shape
    net = Transcoders(kind, layers, d_model, recipe.features, seed)
    _measure_scales(net, data)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=recipe.rate, betas=(0.9, 0.99), fused=True)
    idle = torch.zeros(layers, recipe.features)
    for step in range(recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate_at(step)
        rows = torch.multinomial(data.weights, recipe.batch, replacement=True, generator=generator)
        inputs = data.inputs[:, rows] * net.scale_in[:, None, None]
        wanted = (data.outputs[:, rows] - net.center[:, None]) / net.scale_out[:, None, None]
        error = _step(net, inputs, wanted, idle, recipe, first=step == 0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step % 10 == 0:
            progress(step + 1, recipe.steps, f"normalised error {error:.4f}")
    return net.requires_grad_(False)


def _measure_scales(net: Transcoders, data: Activations) -> None:
    """Set the training units from the data."""
    width = data.inputs.shape[-1]
    net.center.copy_(data.outputs.mean(1))
    net.scale_in.copy_(data.inputs.square().mean((1, 2)).rsqrt())
    spread = (data.outputs - net.center[:, None]).square().sum(-1).mean(1)
    net.scale_out.copy_((spread / width).sqrt())


def _step(
    net: Transcoders, inputs: Tensor, wanted: Tensor, idle: Tensor, recipe: Recipe, first: bool
) -> float:
    """Gradients of one batch; returns the normalised error, the mean over layers."""
    pre = net.encode(inputs)
    active = []
    for layer, values in enumerate(pre):
        level = batch_level(values.detach(), recipe.k, recipe.threshold_rows)
        net.threshold[layer].lerp_(level.expand(recipe.features), 1.0 if first else 0.02)
        active.append(values * (values.detach() >= level))
        idle[layer] += 1
        idle[layer][active[-1].detach().sum(0) > 0] = 0
    losses, total = [], 0.0
    for layer, output in enumerate(net.decode(active)):
        wrong = wanted[layer] - output
        losses.append(wrong.square().mean())
        dead = (idle[layer] > recipe.dead_after).nonzero()[:, 0]
        total = total + losses[-1]
        if len(dead):
            total = total + recipe.revive * _revival(net, layer, dead, pre[layer], wrong, recipe)
    total.backward()
    return sum(loss.item() for loss in losses) / net.layers


def batch_level(values: Tensor, k: int, rows: int) -> Tensor:
    """The value that k a row of the first rows reach, at least 1e-3; values (tokens, features)."""
    some = values[:rows]
    kept = some.flatten().topk(k * len(some), sorted=False).values
    return kept.amin().clamp(min=1e-3)


def _revival(
    net: Transcoders, layer: int, dead: Tensor, pre: Tensor, wrong: Tensor, recipe: Recipe
) -> Tensor:
    """AuxK: the error the unused features would leave if they explained what is left over."""
    hopeful = pre[:, dead].relu()
    if len(dead) > recipe.revived:
        level = hopeful.detach().topk(recipe.revived, dim=-1, sorted=False).values.amin(-1)
        hopeful = hopeful * (hopeful >= level[:, None])
    guess = hopeful @ net.w_dec[layer][dead, 0]
    return (wrong.detach() - guess).square().mean()


def polish(
    net: Transcoders,
    model: LeanModel,
    tokenizer,
    sentences: list[Sentence],
    recipe: Recipe,
    seed: int,
    progress: Progress,
) -> Transcoders:
    """Train on with the set in place of the MLPs, its thresholds fixed.

    Until now every layer saw the model's own residual; spliced in, it sees what the layers below
    have made of it.  The loss is each layer's error against its MLP *on that input*, and the KL
    divergence from the model where the answer is decided.
    """
    generator = random.Random(seed)
    net.requires_grad_(True)
    optimiser = torch.optim.Adam(net.parameters(), lr=recipe.polish_rate, betas=(0.9, 0.99))
    for step in range(recipe.polish_steps):
        for group in optimiser.param_groups:
            group["lr"] = recipe.polish_rate * (1 - step / recipe.polish_steps)
        chosen = generator.sample(sentences, min(len(sentences), recipe.polish_batch))
        for ids, last in prompts(tokenizer, chosen, size=len(chosen)):
            errors, divergence = spliced_errors(net, model, ids, last)
            (errors.sum() + divergence).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if step % 10 == 0:
            progress(step + 1, recipe.polish_steps, f"polishing, KL {divergence.item():.4f}")
    return net.requires_grad_(False)


def spliced_errors(
    net: Transcoders, model: LeanModel, ids: Tensor, last: Tensor
) -> tuple[Tensor, Tensor]:
    """With the set in place: normalised errors (layers), and the KL at the prompts' last tokens."""
    rows, errors, active = torch.arange(len(ids)), [], []
    kept = ids != PAD
    kept[:, 0] = False

    def replace(layer: int, inputs: Tensor, out: Tensor) -> Tensor:
        new = net.at(layer, inputs, active)
        wrong = (new - out.detach())[kept] / net.scale_out[layer]
        errors.append(wrong.square().mean())
        return torch.cat((out[:, :1], new[:, 1:]), 1)

    with torch.no_grad():
        wanted = model.logits(model(ids)[rows, last]).log_softmax(-1)
    said = model.logits(model(ids, replace)[rows, last]).log_softmax(-1)
    divergence = F.kl_div(said, wanted, log_target=True, reduction="batchmean")
    return torch.stack(errors), divergence
