"""From a model and texts to a folder of transcoders, checked and described.

While a set is being made, everything lies in `NAME.unfinished` beside its destination: the last
checkpoint, and activations if no other store is named. The same call goes on from there. When the
set is trained, checked and described, the finished folder takes its name and the rest goes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from circuit_tracer.train.settings import Settings
from circuit_tracer.train.store import fill
from circuit_tracer.transcoders.base import READ_SITES, WRITE_SITES, ReadSite, WriteSite
from circuit_tracer.transcoders.formats.writing import (
    check_destination,
    unlike_reference,
    write_folder,
)

Progress = Callable[[float, str], None]
GIB = 2**30


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
) -> Agreement:
    """Train transcoders for a model, check them, and put them into a folder.

    Args:
        texts: what to train on; a tenth of the pieces is held out for the check.
        destination: the folder; `NAME.unfinished` beside it holds what is not done yet.
        listener: called with a `Moment` every `plan.note_every` steps.
        progress: called with (share done, message).

    Returns:
        The agreement of the folded set with the model, on the held-out text.

    Raises:
        InputError: texts too short, an unfinished training of something else.
        OutputError: the destination is taken, or cannot be written.
        TranscoderError: training diverged.
    """
    plan = plan or Plan()
    check_destination(destination, plan.replace)
    corpus, held_out = split(tokenised(tokenizer, texts, adapter.context), settings.seed)
    work = destination.resolve().with_name(f"{destination.name}.unfinished")
    try:
        work.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {work}: {error.strerror or error}") from error
    stream = _stream(adapter, corpus, settings, plan, work, progress)
    clock = time.perf_counter()
    trainer = _trained(adapter, corpus, stream, settings, plan, work, listener, progress)
    seconds = time.perf_counter() - clock
    progress(1.0, "checking on held-out text")
    made = work / "result"
    shutil.rmtree(made, ignore_errors=True)
    name = f"{adapter.name}-{settings.kind}"
    folded = fold(trainer.net, plan.read, plan.write, name, plan.dtype)
    write_folder(folded, made, model_name=adapter.name, scan=name)
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
    return agreement


def _stream(
    adapter: Adapter,
    corpus: Corpus,
    settings: Settings,
    plan: Plan,
    work: Path,
    progress: Progress,
) -> Stream:
    """Batches from the model itself, or from a store of its activations."""
    blocks = deal(adapter, corpus, plan.read, plan.write, settings.seed, plan.buffer)
    sizes, block = blocks.sizes, blocks.block
    if plan.store:
        folder = work / "activations" if plan.store is True else plan.store
        block = fill(blocks, folder, plan.eight_bit, progress).block
    return Stream(sizes, block, settings.batch, settings.seed)


def _trained(
    adapter: Adapter,
    corpus: Corpus,
    stream: Stream,
    settings: Settings,
    plan: Plan,
    work: Path,
    listener: Listener | None,
    progress: Progress,
) -> Trainer:
    """A finished training, gone on with where a checkpoint is found."""
    trainer = Trainer(network(adapter, settings), stream, settings, adapter.device)
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
        checkpoint.save(trainer, work, of)
    return trainer


def network(adapter: Adapter, settings: Settings) -> Network:
    """An untrained set for a model, in float32, or float64 where the model is."""
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
    )
    return net.to(torch.promote_types(adapter.dtype, torch.float32))


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
