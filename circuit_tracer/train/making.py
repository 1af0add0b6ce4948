"""From a model and texts to a folder of transcoders, checked and described.

While a set is being made, everything lies in `NAME.unfinished` beside its destination: the last
checkpoint, and activations if no other store is named. The same call goes on from there. When the
set is trained, checked and described, the finished folder takes its name and the rest goes.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from circuit_tracer.agreement.measure import Agreement, measure
from circuit_tracer.errors import InputError, OutputError
from circuit_tracer.models.adapter import Adapter
from circuit_tracer.models.load import open_transcoders
from circuit_tracer.replacement import ReplacementModel
from circuit_tracer.train import checkpoint
from circuit_tracer.train.blocks import Stream, deal
from circuit_tracer.train.card import Record, write_all
from circuit_tracer.train.corpus import Corpus, split, tokenised
from circuit_tracer.train.folding import fold
from circuit_tracer.train.loop import Listener, Trainer
from circuit_tracer.train.network import Network
from circuit_tracer.train.ranks import ALONE, Ranks
from circuit_tracer.train.settings import Settings
from circuit_tracer.train.store import fill
from circuit_tracer.transcoders.base import READ_SITES, WRITE_SITES, ReadSite, WriteSite
from circuit_tracer.transcoders.formats.writing import (
    check_destination,
    unlike_reference,
    write_folder,
    write_saelens,
)

Progress = Callable[[float, str], None]
GIB = 2**30
GLIMPSE = 1000  # held-out tokens that the replacement model is tried on at every checkpoint


@dataclass(frozen=True)
class Plan:
    """What surrounds a training, none of which changes the mathematics but the sites.

    Attributes:
        read, write: sites, named as in `TranscoderSet`.
        store: keep activations on disk: a folder, True for one beside the destination, which goes
            when the set is made, or None to make them as they are needed.
        eight_bit: keep them in 8 bits.
        buffer: bytes of activations held in memory, and in a shard of the store.
        save_every: steps between checkpoints.
        note_every: steps between two notes of how it goes.
        check_tokens: tokens of held-out text that the result is measured on.
        dtype: what the weights are written in; None for what they were trained in.
        replace: put the result in the place of a folder of transcoders.
        saelens: put the set in SAELens' format too, in the folder `saelens` of the result.
    """

    read: ReadSite = "mlp.hook_in"
    write: WriteSite = "hook_mlp_out"
    store: Path | bool | None = None
    eight_bit: bool = False
    buffer: int = 2 * GIB
    save_every: int = 500
    note_every: int = 10
    check_tokens: int = 5000
    dtype: torch.dtype | None = None
    replace: bool = False
    saelens: bool = False

    def __post_init__(self) -> None:
        for name, among in (("read", READ_SITES), ("write", WRITE_SITES)):
            if (given := getattr(self, name)) not in among:
                raise InputError(f"{name} must be one of {', '.join(among)}, not {given!r}")
        if self.eight_bit and not self.store:
            raise InputError("8 bits are for activations on disk: name a store (--store)")


def make(
    adapter: Adapter,
    tokenizer: Any,
    texts: Sequence[str],
    destination: Path,
    settings: Settings,
    plan: Plan | None = None,
    listener: Listener | None = None,
    progress: Progress = lambda done, message: None,
    ranks: Ranks = ALONE,
) -> Agreement:
    """Train transcoders for a model, check them, and put them into a folder.

    Args:
        texts: what to train on; a tenth of the pieces is held out for the check.
        destination: the folder; `NAME.unfinished` beside it holds what is not done yet.
        listener: called with a `Moment` every `plan.note_every` steps.
        progress: called with (share done, message).
        ranks: the processes that train it together, all of which call this. The first one writes;
            they share activations through a store, which they must all see.

    Returns:
        The agreement of the folded set with the model, on the held-out text.

    Raises:
        InputError: texts too short, an unfinished training of something else.
        OutputError: the destination is taken, or cannot be written.
        TranscoderError: training diverged.
    """
    plan = plan or Plan()
    check_destination(destination, plan.replace)
    ranks.check(settings)
    if plan.saelens and (settings.kind == "clt" or settings.activation == "topk"):
        raise InputError("SAELens holds per-layer ReLU and JumpReLU transcoders: no clt, no topk")
    corpus, held_out = split(tokenised(tokenizer, texts, adapter.context), settings.seed)
    work = destination.resolve().with_name(f"{destination.name}.unfinished")
    try:
        work.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {work}: {error.strerror or error}") from error
    stream = _stream(adapter, corpus, settings, plan, work, progress, ranks)
    clock = time.perf_counter()
    look = partial(_glimpsed, adapter, tokenizer, held_out, plan)
    trainer = _trained(adapter, corpus, stream, settings, plan, work, listener, progress, look)
    seconds = time.perf_counter() - clock
    progress(1.0, "checking on held-out text")
    net = _whole(trainer, adapter, settings)
    if not ranks.first:
        found: Agreement = ranks.told(None)
        return found
    made = work / "result"
    shutil.rmtree(made, ignore_errors=True)
    name = f"{adapter.name}-{settings.kind}"
    folded = fold(net, plan.read, plan.write, name, plan.dtype)
    write_folder(folded, made, model_name=adapter.name, scan=name)
    if plan.saelens:
        write_saelens(folded, made / "saelens", model_name=adapter.name)
    agreement = _checked(adapter, tokenizer, made, destination.name, held_out, plan)
    record = Record(
        model=adapter.name,
        name=destination.name,
        settings=settings,
        tokens=settings.steps * settings.batch,
        epoch_tokens=stream.tokens,
        read=plan.read,
        write=plan.write,
        moments=trainer.moments,
        agreement=agreement,
        unlike=unlike_reference(folded),
        seconds=seconds,
    )
    write_all(record, made)
    put(made, destination)
    shutil.rmtree(work, ignore_errors=True)
    ranks.told(agreement)
    return agreement


def _whole(trainer: Trainer, adapter: Adapter, settings: Settings) -> Network:
    """The set as it is now; in the first process all of it."""
    if trainer.ranks.count == 1:
        return trainer.net
    weights = trainer.weights()
    if not trainer.ranks.first:
        return trainer.net
    net = network(adapter, settings)
    net.load_state_dict(weights)
    return net


def _stream(
    adapter: Adapter,
    corpus: Corpus,
    settings: Settings,
    plan: Plan,
    work: Path,
    progress: Progress,
    ranks: Ranks,
) -> Stream:
    """Batches from the model itself, or from a store of its activations."""
    blocks = deal(adapter, corpus, plan.read, plan.write, settings.seed, plan.buffer)
    sizes, block = blocks.sizes, blocks.block
    if plan.store or ranks.count > 1:
        folder = plan.store if isinstance(plan.store, Path) else work / "activations"
        block = fill(blocks, folder, plan.eight_bit, progress, ranks).block
    return Stream(sizes, block, settings.batch, settings.seed, ranks)


def _trained(
    adapter: Adapter,
    corpus: Corpus,
    stream: Stream,
    settings: Settings,
    plan: Plan,
    work: Path,
    listener: Listener | None,
    progress: Progress,
    look: Callable[[Network], Agreement],
) -> Trainer:
    """A finished training, gone on with where a checkpoint is found; `look` is taken at each."""
    net = network(adapter, settings, stream.ranks)
    trainer = Trainer(net, stream, settings, adapter.device)
    of = settings.plain() | {
        "model": adapter.name,
        "text": corpus.mark,
        "read": plan.read,
        "write": plan.write,
        "buffer": plan.buffer,
        "eight_bit": plan.eight_bit,
        "note_every": plan.note_every,
    }
    checkpoint.load(trainer, work, of)

    def tell(moment: Any) -> None:
        progress(moment.step / settings.steps, moment.said())
        if listener is not None:
            listener(moment)

    while trainer.step < settings.steps:
        until = min(settings.steps, (trainer.step // plan.save_every + 1) * plan.save_every)
        trainer.run(until, plan.note_every, tell)
        if until < settings.steps:
            net = _whole(trainer, adapter, settings)
            if trainer.ranks.first and trainer.moments:
                seen = look(net)
                last = dataclasses.replace(trainer.moments[-1], top1=seen.top1, kl=seen.kl)
                trainer.moments[-1] = last
        checkpoint.save(trainer, work, of)
    return trainer


def network(adapter: Adapter, settings: Settings, ranks: Ranks = ALONE) -> Network:
    """An untrained set for a model, in float32, or float64 where the model is; of features that
    are shared out, this process's."""
    net = Network(
        settings.kind,
        adapter.n_layers,
        adapter.d_model,
        settings.features,
        settings.seed,
        settings.activation,
        settings.k,
        settings.skip,
        settings.start,
        settings.bandwidth,
        ranks,
    )
    return net.to(torch.promote_types(adapter.dtype, torch.float32))


def _glimpsed(
    adapter: Adapter, tokenizer: Any, held_out: Corpus, plan: Plan, net: Network
) -> Agreement:
    """The agreement of a set in training, on some of the held-out text."""
    found = fold(net, plan.read, plan.write, "in training", plan.dtype)
    model = ReplacementModel(adapter, tokenizer, found)
    pieces = [held_out.piece(number).tolist() for number in range(len(held_out))]
    return measure(model, pieces, tokens=min(plan.check_tokens, GLIMPSE))


def _checked(
    adapter: Adapter, tokenizer: Any, made: Path, name: str, held_out: Corpus, plan: Plan
) -> Agreement:
    """The agreement of what was written, read back from its files."""
    found = open_transcoders(str(made)).named(name)
    model = ReplacementModel(adapter, tokenizer, found)
    pieces = [held_out.piece(number).tolist() for number in range(len(held_out))]
    return measure(model, pieces, tokens=plan.check_tokens)


def put(made: Path, target: Path) -> None:
    """Give a finished folder its name; a folder that had it goes when the new one is there.

    Raises:
        OutputError: it cannot be moved; what was there is there again.
    """
    target = target.resolve()
    old = target.with_name(f".{target.name}.old")
    try:
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        try:
            made.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    except OSError as error:
        raise OutputError(
            f"cannot put the finished folder at {target}: {error.strerror or error}; it is at "
            f"{made}"
        ) from error
    shutil.rmtree(old, ignore_errors=True)
