"""The loop: batches, gradients, steps, and the state that lets it go on as if never stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

from circuit_tracer.errors import TranscoderError
from circuit_tracer.shapes import Float, Tensor
from circuit_tracer.train.moment import Moment, worries
from circuit_tracer.train.network import Network
from circuit_tracer.train.ranks import clipped, dealt, wrapped
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
        source: batches; of several processes that share out tokens, this one's.
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
        self.ranks = net.ranks
        self.ranks.check(settings)
        self.idle = torch.zeros(net.layers, net.features, device=self.device)
        self.penalty = torch.full_like(net.scale_in, settings.penalty)
        self._norm = torch.zeros(())
        self._wrapped: Callable[..., tuple[list[Tensor], list[Tensor], Tensor]] | None = None

    def run(self, until: int, note_every: int = 10, listener: Listener | None = None) -> None:
        """Train up to a step; every `note_every` steps and at the last one, note how it goes.

        Raises:
            TranscoderError: the loss is not finite any more.
        """
        if self.step == 0:
            self._start()
        self._wrap()
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

    def _wrap(self) -> None:
        """Tie the processes together, and give the parameters that come of it an optimiser."""
        if self._wrapped is None:
            self._wrapped = wrapped(self.net, self._losses, self.ranks, self.device)
            settings, parameters = self.settings, self.net.parameters()
            self.optimiser = torch.optim.Adam(
                parameters, lr=settings.peak, betas=settings.betas, fused=True
            )

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
        assert self._wrapped is not None
        with self._arithmetic():
            errors, actives, loss = self._wrapped(inputs, wanted)
        said = self.ranks.mean(loss.detach())
        if not bool(torch.isfinite(said)):
            raise TranscoderError(
                f"the loss is {said.item()} at step {self.step:,}: training has diverged. Start "
                "again with a lower rate (--rate), or go on from a checkpoint with other text"
            )
        loss.backward()
        named = list(net.named_parameters())
        split = [p for name, p in named if net.feature_axis(name) is not None]
        shared = [p for name, p in named if net.feature_axis(name) is None]
        self._norm = clipped(shared, split, settings.clip, self.ranks)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return errors, actives, said

    def _arithmetic(self) -> torch.autocast:
        """What a step is computed in; weights, gradients and Adam's moments are not touched."""
        mixed = self.settings.mixed and self.device.type == "cuda"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=mixed)

    def _losses(self, inputs: Tensor, wanted: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
        net, settings = self.net, self.settings
        values, active = net.encode(inputs), []
        for layer, pre in enumerate(values):
            first = self.step == 0
            active.append(net.activate_training(layer, pre, settings.threshold_rows, first))
        self.idle += 1
        fired = net.fired(active)
        self.idle[self.ranks.anywhere(fired) if self.ranks.by_tokens else fired] = 0
        lost = self.idle > settings.dead_after
        some = self.ranks.anywhere(lost.any(1)).tolist()
        revived = settings.revived or max(1, wanted.shape[-1] // 2)
        errors, total = [], wanted.new_zeros(())
        for layer, output in enumerate(net.decode(active, inputs)):
            wrong = wanted[layer] - output
            errors.append(wrong.square().mean())
            total = total + errors[-1]
            if some[layer]:
                decoder, dead = net.w_dec[layer][:, 0], lost[layer].nonzero()[:, 0]
                aux = revival(values[layer], wrong, decoder, dead, revived, self.ranks)
                total = total + settings.revive * aux
        counts = [(values.detach() > 0).sum(-1).to(wanted).mean() for values in active]
        counts = list(self.ranks.per_token(torch.stack(counts)).unbind())
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
        return self.ranks.total((weight * torch.stack(costs)).sum())

    def _moment(self, errors: list[Tensor], counts: list[Tensor], loss: Tensor) -> Moment:
        settings = self.settings
        dead = self.ranks.reduced((self.idle > settings.dead_after).float().mean(1))
        dead /= self.ranks.count
        found = self.ranks.mean(torch.stack(errors))
        now = Moment(
            step=self.step,
            steps=settings.steps,
            loss=float(loss) / self.net.layers,
            rate=settings.rate_at(self.step - 1),
            norm=float(self._norm),
            nmse=tuple(found.tolist()),
            l0=tuple(torch.stack(counts).tolist()),
            dead=tuple(dead.tolist()),
            penalty=tuple(self.penalty.tolist()) if settings.penalised else (),
        )
        worried = worries(now, self.moments)
        return now if not worried else Moment(**(now.__dict__ | {"warnings": worried}))

    def state(self) -> dict[str, Tensor]:
        """Everything that later steps depend on, but for the source and the settings.

        All processes must ask for it; the first one gets it, whole, the others nothing.
        """
        found = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        found |= {"idle": self.idle, "penalty": self.penalty, "step": torch.tensor(self.step)}
        names = {id(parameter): name for name, parameter in self.net.named_parameters()}
        for parameter, moments in self.optimiser.state.items():
            for name, value in moments.items():
                found[f"adam.{name}.{names[id(parameter)]}"] = value
        return self._whole(found)

    def weights(self) -> dict[str, Tensor]:
        """The network's part of the state, likewise."""
        found = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        return {name.removeprefix("net."): v for name, v in self._whole(found).items()}

    def _whole(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        whole = {}
        for name, value in found.items():
            value = self.ranks.whole(value.detach(), _axis(name))
            if self.ranks.first:
                whole[name] = value.cpu().clone(memory_format=torch.contiguous_format)
        return whole

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a whole `state`, of however many processes, before any step."""
        here = {name: self._share(name, value) for name, value in state.items()}
        self.step = int(here["step"])
        self.idle, self.penalty = (here[name].to(self.device) for name in ("idle", "penalty"))
        net = {n.removeprefix("net."): t for n, t in here.items() if n.startswith("net.")}
        self.net.load_state_dict(net)
        self._wrap()
        for name, parameter in self.net.named_parameters():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = here[f"adam.{key}.{name}"].clone().to(self.device)
                whole = key == "step"  # it stays one number, however the parameter is split
                self.optimiser.state[parameter][key] = value if whole else dealt(value, parameter)

    def _share(self, name: str, value: Tensor) -> Tensor:
        axis = _axis(name)
        if axis is None:
            return value
        here = self.ranks.features(value.shape[axis])
        return value.narrow(axis, here.start, here.stop - here.start)


def _axis(name: str) -> int | None:
    """The axis of an entry of a state that features are counted along."""
    if name == "idle":
        return 1
    kind, _, rest = name.partition(".")
    if kind == "adam":
        moment, _, rest = rest.partition(".")
        return None if moment == "step" else Network.feature_axis(rest)
    return Network.feature_axis(rest)
