"""The transcoders: sparse stand-ins for the MLPs, trained on what the MLPs do to the corpus.

One class serves both kinds.  A per-layer transcoder (PLT) writes to its own layer; a cross-layer
transcoder (CLT) writes to its own layer and every later one.  Training keeps the `k` largest
activations a token on average over a batch (BatchTopK); afterwards the moving average of the
smallest kept activation becomes a JumpReLU threshold, so that a feature's state depends on its
own token alone.  Scales used in training are folded into the weights and thresholds when the
folders are written, in the layout of the circuit-tracer reference tool.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .corpus import Sentence
from .language_model import LeanModel
from .pretrain import Progress, answer_span, pad
from .tokenizer import PAD

KINDS = {"plt": "transcoder_set", "clt": "cross_layer_transcoder"}
INPUT_SITE, OUTPUT_SITE = "mlp.hook_in", "hook_mlp_out"
FINAL_WEIGHT = 4.0  # how often the last token of a prompt is drawn, against other tokens
LENGTHS = {"plt": {"steps": 1500}, "clt": {"steps": 1000}}


@dataclass(frozen=True)
class Recipe:
    """How a set is trained; `batch` tokens a step, `k` active features a token and layer."""

    features: int
    k: int = 20
    steps: int = 1500
    batch: int = 2048
    rate: float = 2e-3
    warm_up: int = 50
    hold: float = 0.3
    floor: float = 0.01
    threshold_rows: int = 256
    dead_after: int = 60
    revive: float = 1 / 32
    revived: int = 64
    polish_steps: int = 300
    polish_batch: int = 64
    polish_rate: float = 3e-4

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
        self.w_enc = nn.Parameter(rows.clone())
        self.b_enc = nn.Parameter(torch.zeros(layers, 1, features))
        self.b_dec = nn.Parameter(torch.zeros(layers, d_model))
        self.w_dec = nn.ParameterList()
        for layer in range(layers):
            writes = torch.zeros(features, self.reach(layer), d_model)
            writes += torch.randn(writes.shape, generator=generator) * 0.1 / d_model**0.5
            self.w_dec.append(nn.Parameter(writes))
        for name, size in (("threshold", layers), ("scale_in", layers), ("scale_out", layers)):
            self.register_buffer(name, torch.ones(size))
        self.register_buffer("center", torch.zeros(layers, d_model))

    def reach(self, layer: int) -> int:
        """How many layers a feature of this layer writes to."""
        return self.layers - layer if self.kind == "clt" else 1

    def encode(self, inputs: Tensor) -> Tensor:
        """Scaled inputs (layers, tokens, d_model) -> pre-activations (layers, tokens, features)."""
        return torch.baddbmm(self.b_enc, inputs, self.w_enc.transpose(1, 2))

    def decode(self, active: Tensor) -> Tensor:
        """Activations (layers, tokens, features) -> scaled outputs (layers, tokens, d_model)."""
        tokens = active.shape[1]
        outputs = [self.b_dec[layer].expand(tokens, -1) for layer in range(self.layers)]
        for layer, writes in enumerate(self.w_dec):
            written = (active[layer] @ writes.flatten(1)).view(tokens, writes.shape[1], -1)
            for ahead, part in enumerate(written.unbind(1)):
                outputs[layer + ahead] = outputs[layer + ahead] + part
        return torch.stack(outputs)

    def at(self, layer: int, inputs: Tensor, active: list[Tensor]) -> Tensor:
        """`mlp.hook_in` at one layer -> the reconstruction, in the model's own units.

        Appends the layer's activations to `active`, which holds those of the layers below.
        """
        pre = (inputs * self.scale_in[layer]) @ self.w_enc[layer].T + self.b_enc[layer, 0]
        active.append(pre * (pre > self.threshold[layer]))
        scaled = self.b_dec[layer]
        for source, writes in enumerate(self.w_dec[: layer + 1]):
            if layer - source < writes.shape[1]:
                scaled = scaled + active[source] @ writes[:, layer - source]
        return scaled * self.scale_out[layer] + self.center[layer]

    def batch_threshold(self, pre: Tensor, k: int, rows: int) -> Tensor:
        """The activation that `rows` × k of the first rows' features reach, (layers)."""
        rows = min(rows, pre.shape[1])
        some = pre.detach()[:, :rows].flatten(1)
        return some.topk(k * rows, dim=1, sorted=False).values.amin(1).clamp(min=1e-3)


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
    inputs, outputs, weights = zip(*found)
    return Activations(torch.cat(inputs, 1), torch.cat(outputs, 1), torch.cat(weights))


def prompts(tokenizer, sentences: list[Sentence], size: int = 256):
    """Batches (ids (batch, tokens), position of the prompt's last token (batch)), short ones first."""
    order = sorted(sentences, key=lambda sentence: len(sentence.text))
    for start in range(0, len(order), size):
        chunk = order[start : start + size]
        found = tokenizer([s.text for s in chunk], return_offsets_mapping=True)
        ids, _ = pad([(tokens, [0.0] * len(tokens)) for tokens in found["input_ids"]])
        last = [
            next(i for i, (_, end) in enumerate(offsets) if i and end > answer_span(sentence)[0]) - 1
            for sentence, offsets in zip(chunk, found["offset_mapping"])
        ]
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
    with torch.no_grad():
        level = net.batch_threshold(pre, recipe.k, recipe.threshold_rows)
        net.threshold.copy_(level) if first else net.threshold.lerp_(level, 0.02)
        kept = pre >= level[:, None, None]
        idle += 1
        idle[kept.any(1)] = 0
    active = pre * kept
    wrong = wanted - net.decode(active)
    error = wrong.square().mean((1, 2))
    loss = error.sum()
    for layer in range(net.layers):
        dead = (idle[layer] > recipe.dead_after).nonzero()[:, 0]
        if len(dead):
            loss = loss + recipe.revive * _revival(net, layer, dead, pre, wrong, recipe)
    loss.backward()
    return error.mean().item()


def _revival(
    net: Transcoders, layer: int, dead: Tensor, pre: Tensor, wrong: Tensor, recipe: Recipe
) -> Tensor:
    """AuxK: the error the unused features would leave if they explained what is left over."""
    hopeful = pre[layer][:, dead].relu()
    if len(dead) > recipe.revived:
        level = hopeful.detach().topk(recipe.revived, dim=-1, sorted=False).values.amin(-1)
        hopeful = hopeful * (hopeful >= level[:, None])
    guess = hopeful @ net.w_dec[layer][dead, 0]
    return (wrong[layer].detach() - guess).square().mean()


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
    """Normalised errors (layers) with the set spliced in, and the KL where the answer is decided."""
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


@torch.no_grad()
def fold(net: Transcoders) -> dict[str, list[Tensor]]:
    """The set in the model's own units, one tensor a layer, decoders of unit norm.

    W_enc (features, d_model), b_enc (features), threshold (features), b_dec (d_model) and W_dec
    (features, reach, d_model).  With h the scaled pre-activation, c the decoder's norm, the
    pre-activation becomes c·h and its threshold c·θ: what is active stays active.
    """
    out: dict[str, list[Tensor]] = {name: [] for name in ("W_enc", "b_enc", "threshold", "b_dec")}
    out["W_dec"] = []
    for layer in range(net.layers):
        reach = net.reach(layer)
        writes = net.w_dec[layer] * net.scale_out[layer : layer + reach, None]
        norm = writes.flatten(1).norm(dim=1).clamp(min=1e-8)
        out["W_dec"].append(writes / norm[:, None, None])
        out["W_enc"].append(net.w_enc[layer] * net.scale_in[layer] * norm[:, None])
        out["b_enc"].append(net.b_enc[layer, 0] * norm)
        out["threshold"].append(net.threshold[layer] * norm)
        out["b_dec"].append(net.b_dec[layer] * net.scale_out[layer] + net.center[layer])
    return {name: [t.to(torch.bfloat16).contiguous() for t in ts] for name, ts in out.items()}


def write(folded: dict[str, list[Tensor]], kind: str, folder: Path, model_name: str) -> None:
    """Write a folded set as a folder of the reference tool's layout."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for layer, writes in enumerate(folded["W_dec"]):
        one = {name: tensors[layer] for name, tensors in folded.items()}
        if kind == "plt":
            one["W_dec"] = writes[:, 0].contiguous()
            one["activation_function.threshold"] = one.pop("threshold")
            save_file(one, folder / f"layer_{layer}.safetensors")
        else:
            writes = one.pop("W_dec")
            named = {f"{name}_{layer}": tensor for name, tensor in one.items()}
            save_file(named, folder / f"W_enc_{layer}.safetensors")
            save_file({f"W_dec_{layer}": writes}, folder / f"W_dec_{layer}.safetensors")
    lines = {
        "model_name": model_name,
        "model_kind": KINDS[kind],
        "feature_input_hook": INPUT_SITE,
        "feature_output_hook": OUTPUT_SITE,
        "scan": f"{model_name}-{kind}",
    }
    text = "".join(f"{name}: {value}\n" for name, value in lines.items())
    (folder / "config.yaml").write_text(text, encoding="utf-8")


class Folded:
    """A set read back from its folder, computed in float32: what ships, and what is measured."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file

        found: dict[str, Tensor] = {}
        for path in sorted(folder.glob("*.safetensors")):
            for name, tensor in load_file(path).items():
                layer = path.stem.split("_")[-1]
                stem = name.removesuffix(f"_{layer}").removeprefix("activation_function.")
                found[f"{stem}_{layer}"] = tensor.float()
        self.layers = sum(name.startswith("W_enc_") for name in found)
        names = ("W_enc", "b_enc", "threshold", "b_dec", "W_dec")
        for name in names:
            setattr(self, name, [found[f"{name}_{layer}"] for layer in range(self.layers)])
        self.W_dec = [w[:, None] if w.ndim == 2 else w for w in self.W_dec]

    def encode(self, layer: int, inputs: Tensor) -> Tensor:
        """`mlp.hook_in` (…, d_model) -> activations (…, features); JumpReLU, strict."""
        pre = inputs @ self.W_enc[layer].T + self.b_enc[layer]
        return pre * (pre > self.threshold[layer])

    def decode(self, layer: int, active: list[Tensor]) -> Tensor:
        """Activations of layers 0..layer -> the reconstruction of `hook_mlp_out` at `layer`."""
        out = self.b_dec[layer]
        for source, writes in enumerate(self.W_dec[: layer + 1]):
            if layer - source < writes.shape[1]:
                out = out + active[source] @ writes[:, layer - source]
        return out
