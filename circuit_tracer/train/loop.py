"""The loop: batches, gradients, steps, and the state that lets it go on as if never stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from circuit_tracer.errors import TranscoderError
from circuit_tracer.shapes import Float, Tensor
from circuit_tracer.train.moment import Moment, worries
from circuit_tracer.train.network import Network
from circuit_tracer.train.settings import Settings
from circuit_tracer.train.sparsity import activity, revival

Listener = Callable[[Moment], None]
Pair = tuple[Float[Tensor, "layer token d_model"], ...]


class Source(Protocol):
    """Where batches come from: (inputs, outputs), layers first, in the model's own units."""

    def sample(self) -> Pair:
        """Something to measure scales on."""

    def batch(self, step: int) -> Pair:
        """The batch of a step."""


class Trainer:
    """A training under way.

    Args:
        net: the set; its scales are measured on `source` before the first step.
        source: batches.
        device: where it runs.

    Attributes:
        step: steps done.
        moments: what was noted so far.
    """

    def __init__(
        self, net: Network, source: Source, settings: Settings, device: torch.device | str = "cpu"
    ) -> None:
        self.net, self.source, self.settings = net, source, settings
        self.device = torch.device(device)
        self.step = 0
        self.moments: list[Moment] = []
        net.to(self.device)
        self.optimiser = torch.optim.Adam(
            net.parameters(), lr=settings.peak, betas=settings.betas, fused=True
        )
        self.idle = torch.zeros(net.layers, net.features, device=self.device)
        self.penalty = torch.full_like(net.scale_in, settings.penalty)
        self._norm = torch.zeros(())

    def run(self, until: int, note_every: int = 10, listener: Listener | None = None) -> None:
        """Train up to a step; every `note_every` steps and at the last one, note how it goes.

        Raises:
            TranscoderError: the loss is not finite any more.
        """
        if self.step == 0:
            self._start()
        while self.step < until:
            errors, actives, loss = self._one()
            self.step += 1
            if self.step % note_every == 0 or self.step == self.settings.steps:
                self.moments.append(self._moment(errors, actives, loss))
                if listener is not None:
                    listener(self.moments[-1])

    def _start(self) -> None:
        net, settings = self.net, self.settings
        inputs, outputs = (self._here(part) for part in self.source.sample())
        net.measure_scales(inputs, outputs)
        if settings.penalised:
            net.start_sparse(inputs * net.scale_in[:, None, None], settings.k)

    def _here(self, part: Tensor) -> Tensor:
        return part.to(self.device, self.net.b_dec.dtype)

    def _one(self) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """One step: (normalised errors, active features a token, by layer; loss)."""
        net, settings = self.net, self.settings
        for group in self.optimiser.param_groups:
            group["lr"] = settings.rate_at(self.step)
        inputs, outputs = (self._here(part) for part in self.source.batch(self.step))
        inputs = inputs * net.scale_in[:, None, None]
        wanted = (outputs - net.center[:, None]) / net.scale_out[:, None, None]
        with torch.autocast(
            self.device.type, torch.bfloat16, enabled=settings.mixed and self.device.type == "cuda"
        ):
            errors, actives, loss = self._losses(inputs, wanted)
        if not bool(torch.isfinite(loss.detach())):
            raise TranscoderError(
                f"the loss is {loss.item()} at step {self.step:,}: training has diverged. Start "
                "again with a lower rate (--rate), or go on from a checkpoint with other text"
            )
        loss.backward()
        if settings.clip is not None:
            self._norm = torch.nn.utils.clip_grad_norm_(net.parameters(), settings.clip)
        else:
            self._norm = torch.nn.utils.get_total_norm(
                [p.grad for p in net.parameters() if p.grad is not None]
            )
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return errors, actives, loss.detach()

    def _losses(self, inputs: Tensor, wanted: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        net, settings = self.net, self.settings
        values, active = net.encode(inputs), []
        for layer, pre in enumerate(values):
            first = self.step == 0
            active.append(net.activate_training(layer, pre, settings.threshold_rows, first))
        self.idle += 1
        self.idle[net.fired(active)] = 0
        revived = settings.revived or max(1, wanted.shape[-1] // 2)
        errors, total = [], wanted.new_zeros(())
        for layer, output in enumerate(net.decode(active, inputs)):
            wrong = wanted[layer] - output
            errors.append(wrong.square().mean())
            total = total + errors[-1]
            dead = (self.idle[layer] > settings.dead_after).nonzero()[:, 0]
            if len(dead):
                decoder = net.w_dec[layer][:, 0]
                aux = revival(values[layer], wrong, decoder, dead, revived)
                total = total + settings.revive * aux
        counts = [(values.detach() > 0).sum(-1).to(wanted).mean() for values in active]
        if settings.penalised:
            total = total + self._penalty(active, torch.stack(counts))
        return [error.detach() for error in errors], counts, total

    def _penalty(self, active: list[Tensor], counts: Tensor) -> Tensor:
        """λ Σ tanh(…) of all layers; λ moves towards the L0 that is aimed at, or rises."""
        settings = self.settings
        if settings.adapt:
            off = (counts / settings.k).clamp(min=1e-6).log().clamp(-1, 1)
            self.penalty = (self.penalty * (settings.adapt * off).exp()).clamp(1e-8, 1e3)
            weight = self.penalty
        else:
            weight = self.penalty * min(1.0, 3 * (self.step + 1) / settings.steps)
        costs = [
            activity(values, self.net.w_dec[layer], settings.sharpness)
            for layer, values in enumerate(active)
        ]
        return (weight * torch.stack(costs)).sum()

    def _moment(self, errors: list[Tensor], counts: list[Tensor], loss: Tensor) -> Moment:
        settings = self.settings
        dead = (self.idle > settings.dead_after).float().mean(1)
        now = Moment(
            step=self.step,
            steps=settings.steps,
            loss=float(loss) / self.net.layers,
            rate=settings.rate_at(self.step - 1),
            norm=float(self._norm),
            nmse=tuple(torch.stack(errors).tolist()),
            l0=tuple(torch.stack(counts).tolist()),
            dead=tuple(dead.tolist()),
            penalty=tuple(self.penalty.tolist()) if settings.penalised else (),
        )
        found = worries(now, self.moments)
        return now if not found else Moment(**(now.__dict__ | {"warnings": found}))

    def state(self) -> dict[str, Tensor]:
        """Everything that later steps depend on, but for the source and the settings."""
        found = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        names = {id(parameter): name for name, parameter in self.net.named_parameters()}
        for parameter, moments in self.optimiser.state.items():
            for name, value in moments.items():
                found[f"adam.{name}.{names[id(parameter)]}"] = value
        found |= {"idle": self.idle, "penalty": self.penalty, "step": torch.tensor(self.step)}
        return {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in found.items()
        }

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state`."""
        self.step = int(state["step"])
        self.idle, self.penalty = (state[name].to(self.device) for name in ("idle", "penalty"))
        net = {n.removeprefix("net."): t for n, t in state.items() if n.startswith("net.")}
        self.net.load_state_dict(net)
        for name, parameter in self.net.named_parameters():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = state[f"adam.{key}.{name}"].clone()
                self.optimiser.state[parameter][key] = value.to(self.device)
