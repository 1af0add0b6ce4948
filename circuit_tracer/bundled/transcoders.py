"""The transcoders: sparse stand-ins for the MLPs, trained on what the MLPs do to the corpus.

They are trained by `circuit_tracer.train`, as anybody's are: BatchTopK, whose level becomes a
JumpReLU threshold.  What is particular stands here: the last token of a prompt, where its answer is
decided, is drawn more often than others, and a last, short phase trains the set in the MLPs' place.
`folder` writes it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from circuit_tracer.train.loop import Trainer
from circuit_tracer.train.moment import Moment
from circuit_tracer.train.network import Network
from circuit_tracer.train.settings import Settings

from .corpus import Sentence
from .language_model import LeanModel
from .pretrain import Progress, answer_span, pad
from .tokenizer import PAD

FINAL_WEIGHT = 4.0  # how often the last token of a prompt is drawn, against other tokens
LENGTHS = {"plt": {"steps": 1300}, "clt": {"steps": 900, "second_polish": 400}}


@dataclass(frozen=True)
class Recipe:
    """How a set is trained: by `circuit_tracer.train`, then in the MLPs' place.

    `settings` are those of the first phase; the others of the polishing.
    """

    settings: Settings
    polish_steps: int = 200
    polish_batch: int = 64
    polish_rate: float = 3e-4
    second_polish: int = 0
    second_rate: float = 8e-4


def recipe(kind: str, features: int, steps: int, seed: int, **changed) -> Settings:
    """The bundled sets' settings; `changed` ones by name."""
    fixed = {"k": 20, "batch": 1024, "rate": 3e-3, "clip": None, "revived": 64}
    return Settings(features, kind, steps=steps, seed=seed, **(fixed | changed))


@dataclass(frozen=True)
class Activations:
    """What the MLPs read and wrote: both (layers, tokens, d_model); `weights` (tokens)."""

    inputs: Tensor
    outputs: Tensor
    weights: Tensor


class Weighted:
    """Batches of collected activations, drawn by their weights with replacement, in sequence."""

    def __init__(self, data: Activations, size: int, seed: int) -> None:
        self.data, self.size = data, size
        self.generator = torch.Generator().manual_seed(seed)

    def sample(self) -> tuple[Tensor, Tensor]:
        """All of them: scales are measured on everything."""
        return self.data.inputs, self.data.outputs

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The next batch."""
        rows = torch.multinomial(
            self.data.weights, self.size, replacement=True, generator=self.generator
        )
        return self.data.inputs[:, rows], self.data.outputs[:, rows]


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


def train(data: Activations, settings: Settings, progress: Progress) -> Network:
    """Train a set on collected activations."""
    layers, _, d_model = data.inputs.shape
    net = Network(settings.kind, layers, d_model, settings.features, settings.seed, k=settings.k)
    source = Weighted(data, settings.batch, settings.seed)

    def note(moment: Moment) -> None:
        error = sum(moment.nmse) / len(moment.nmse)
        progress(moment.step, moment.steps, f"normalised error {error:.4f}")

    Trainer(net, source, settings).run(settings.steps, listener=note)
    return net.requires_grad_(False)


def polish(
    net: Network,
    model: LeanModel,
    tokenizer,
    sentences: list[Sentence],
    recipe: Recipe,
    seed: int,
    progress: Progress,
) -> Network:
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
    net: Network, model: LeanModel, ids: Tensor, last: Tensor
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
