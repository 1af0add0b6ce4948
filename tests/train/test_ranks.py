"""Two processes on gloo give what one gives, however they split the work."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from click.testing import CliRunner
from safetensors.torch import load_file

import circuit_tracer as ct
from circuit_tracer.cli.main import main
from circuit_tracer.errors import InputError
from circuit_tracer.train.blocks import Stream, deal
from circuit_tracer.train.corpus import tokenised
from circuit_tracer.train.loop import Trainer
from circuit_tracer.train.network import Network
from circuit_tracer.train.ranks import ALONE, Ranks, joined
from circuit_tracer.train.settings import FUNCTIONS, KINDS, Settings
from circuit_tracer.train.store import fill
from tests import tiny
from tests.train.texts import adapter, texts

LAYERS, WIDTH, SIZES = 3, 8, (90, 70, 101)
STEPS, HALF = 8, 4
CASES = [
    *[("plt", function, "batch") for function in FUNCTIONS],
    *[("clt", function, "features") for function in FUNCTIONS],
    *[("clt", "batchtopk", "batch"), ("plt", "relu", "features")],
    *[("plt", "batchtopk", "fsdp"), ("clt", "jumprelu", "fsdp")],
]
ROOT = Path(__file__).parents[2]


def block(number):
    draw = torch.Generator().manual_seed(number)
    inputs = torch.randn(SIZES[number], LAYERS, WIDTH, generator=draw, dtype=torch.float64)
    return inputs, inputs.roll(1, -1).relu() + 0.3 * inputs.square()


def trainer(kind, function, ranks=ALONE):
    """A short training in which features die, are revived, and gradients are clipped."""
    settings = Settings(
        24, kind, function, k=3, skip=kind == "plt", steps=STEPS, batch=52, dead_after=2,
        clip=0.5, adapt=0.2, threshold_rows=33,
    )  # fmt: skip
    net = Network(
        kind, LAYERS, WIDTH, 24, 0, function, 3, settings.skip, settings.start, ranks=ranks
    ).double()
    with torch.no_grad():
        for bias in net.b_enc:
            bias -= 2.0 * (torch.arange(24) % 4 == 0)[ranks.features(24)]
    return Trainer(net, Stream(SIZES, block, settings.batch, 0, ranks), settings)


def one_of_two(number, folder, ports):
    """What each process does."""
    torch.set_num_threads(1)
    leaves_no_thread(number, ports)
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=number, world_size=2)
    for kind, function, split in CASES:
        ranks = Ranks(number, 2, split)
        through = trainer(kind, function, ranks)
        through.run(HALF, note_every=2)
        half = through.state()
        through.run(STEPS, note_every=2)
        whole, moments = through.state(), through.moments
        resumed = trainer(kind, function, ranks)
        resumed.restore(torch.load(folder / f"{kind} {function}"))
        resumed.run(STEPS)
        again = resumed.state()
        assert bool(whole) == ranks.first
        if ranks.first:
            found = half, whole, again, [moment.plain() for moment in moments]
            torch.save(found, folder / f"{kind} {function} {split}")
    fill(blocks(), folder / "store", ranks=Ranks(number, 2))
    dist.destroy_process_group()


def leaves_no_thread(number, ports):
    """A thread of a group that outlives it may abort the process when Python shuts down."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for split, port in zip(("batch", "features"), ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        with joined(split, torch.device("cpu")) as (ranks, _):
            trainer("clt", "batchtopk", ranks).run(1)
        names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
        assert not [name for name in names if "gloo" in name], split


def blocks():
    corpus = tokenised(tiny.tokenizer(), texts(), context=32)
    return deal(adapter(), corpus, "mlp.hook_in", "hook_mlp_out", seed=0, budget=2**17)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes made, and one before them."""
    folder = tmp_path_factory.mktemp("ranks")
    for kind in KINDS:
        for function in FUNCTIONS:
            alone = trainer(kind, function)
            alone.run(HALF)
            torch.save(alone.state(), folder / f"{kind} {function}")
    here = ("127.0.0.1", 0)
    with socket.create_server(here) as one, socket.create_server(here) as other:
        ports = one.getsockname()[1], other.getsockname()[1]
    processes.start_processes(one_of_two, (folder, ports), nprocs=2, start_method="spawn")
    return folder


def close(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize("kind, function, split", CASES)
def test_two_processes_train_as_one(folder, kind, function, split):
    half, whole, again, moments = torch.load(folder / f"{kind} {function} {split}")
    one = trainer(kind, function)
    one.run(STEPS, note_every=2)
    assert sum(map(sum, (moment.dead for moment in one.moments))) > 0  # some were to be revived
    close(whole, one.state())
    close(again, one.state())  # gone on with from one process's checkpoint
    for found, wanted in zip(moments, one.moments, strict=True):
        for name in ("step", "loss", "norm", "nmse", "l0", "dead", "penalty"):
            assert found[name] == pytest.approx(getattr(wanted, name), rel=1e-6), name
        assert len(found["warnings"]) == len(wanted.warnings)
    other = trainer(kind, function)
    other.restore(half)
    other.run(STEPS)
    close(other.state(), one.state())


def test_processes_share_out_a_store(folder, tmp_path):
    alone = fill(blocks(), tmp_path)
    assert len(alone.sizes) > 2
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (folder / "store" / path.name).read_bytes()


def test_shares_of_a_batch_are_the_batch():
    wanted = Stream(SIZES, block, 130, 0).batch(3)
    parts = [Stream(SIZES, block, 130, 0, Ranks(n, 3)).batch(3) for n in range(3)]
    for site in range(2):
        dealt = torch.empty_like(wanted[site])
        for number, part in enumerate(parts):
            dealt[:, number::3] = part[site]
        assert torch.equal(dealt, wanted[site])


@pytest.mark.parametrize("split, says", [("batch", "--batch 66"), ("features", "--features 33")])
def test_what_cannot_be_shared_out_is_refused(split, says):
    settings = Settings(features=32, k=6, batch=64)
    with pytest.raises(InputError, match=says):
        Ranks(0, 3, split).check(settings)
    Ranks(0, 4, split).check(settings)
    ALONE.check(dataclasses.replace(settings, features=31))


def test_torchrun_makes_the_folder_that_one_process_makes(tmp_path):
    tiny.model("qwen3", torch.float32).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text("\n".join(texts(80)))
    words = ["train", "--model", tmp_path / "model", "--text", tmp_path / "text.txt",
             "--features", 32, "--k", 6, "--steps", 12, "--save-every", 5, "--batch", 64,
             "--kind", "clt", "--device", "cpu", "--dtype", "float64", "-q", "-o"]  # fmt: skip
    words = [str(word) for word in words]
    assert CliRunner().invoke(main, [*words, str(tmp_path / "one")]).exit_code == 0
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*start, "-m", "circuit_tracer.cli", *words, str(tmp_path / "two")]
    places = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": places}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for path in (tmp_path / "one").glob("*.safetensors"):
        found, wanted = load_file(tmp_path / "two" / path.name), load_file(path)
        for name in wanted:
            torch.testing.assert_close(found[name], wanted[name], rtol=1e-6, atol=1e-7)
    assert not (tmp_path / "two.unfinished").exists()
    graph = ct.trace("w5 w6 w7", ct.load(tmp_path / "model", tmp_path / "two"))
    assert graph.index.n_features > 0
