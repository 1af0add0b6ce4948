"""Work on a cluster: as many workers as there is room for, and nothing lost when some die."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections import Counter
from functools import partial

import psutil
import pytest

from circuit_tracer import cluster
from circuit_tracer.errors import CircuitTracerError, InputError

MACHINE = {"CPU": 8.0, "GPU": 2.0}


@pytest.fixture(scope="module")
def ray():
    found = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    room = 100 * 2**20
    quiet = {"logging_level": "ERROR", "log_to_driver": False, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # workers import this very module
        found.init(num_cpus=2, object_store_memory=room, **quiet)
        yield found
        found.shutdown()


def kill_a_worker():
    """Kill a process that has work or waits for it; none, where all are ending by themselves."""
    for process in psutil.Process().children(recursive=True):
        try:
            if process.name().startswith("ray::_Worker"):
                process.kill()
                return [process.pid]
        except psutil.NoSuchProcess:
            continue
    return []


def counted(folder, item):
    """Note that an item was worked on to its end."""
    (folder / f"{item}-{os.getpid()}").touch()
    return item * item


def deadly(folder, item):
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return counted(folder, item)


def deadly_once(folder, item):
    if item in (2, 5) and not (folder / f"died-{item}").exists():
        (folder / f"died-{item}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return counted(folder, item)


def refuse():
    raise InputError("no such model")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at_home(path):
    return path


@pytest.mark.parametrize(
    "machines, asked, gpu, wanted",
    [
        ([{"CPU": 8}], None, True, (1, {"num_cpus": 8, "num_gpus": 0})),
        ([{"CPU": 8}, {"CPU": 4}, {"CPU": 0}], None, True, (2, {"num_cpus": 4, "num_gpus": 0})),
        ([{"CPU": 8}, {"CPU": 4}], 6, True, (6, {"num_cpus": 1, "num_gpus": 0})),
        ([MACHINE, MACHINE], None, True, (4, {"num_cpus": 1, "num_gpus": 1.0})),
        ([MACHINE, MACHINE], None, False, (2, {"num_cpus": 8, "num_gpus": 0})),
        ([MACHINE], 6, True, (6, {"num_cpus": 1, "num_gpus": 0.3333})),
    ],
)
def test_there_is_a_worker_a_gpu_or_a_machine_or_as_many_as_are_asked_for(
    machines, asked, gpu, wanted
):
    assert cluster.shares(machines, asked, gpu) == wanted


def test_more_workers_than_cores_are_refused():
    with pytest.raises(InputError, match="9 workers need as many cores, and the cluster has 8"):
        cluster.shares([{"CPU": 8}], 9, True)
    with pytest.raises(InputError, match="the cluster has 0"):
        cluster.shares([], None, True)


def test_without_ray_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(InputError, match=r"pip install 'trace-circuits\[ray\]'"),
        cluster.connected("auto"),
    ):
        pass


@pytest.mark.parametrize("address", ["somewhere", "host:", ":6379", "host:port"])
def test_what_is_no_address_is_refused(address):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    with pytest.raises(InputError, match="is not the address"), cluster.connected(address):
        pass


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nothing_answers_is_named(form):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    with socket.socket() as free:  # bound and not listening: connections are refused
        free.bind(("127.0.0.1", 0))
        address = form.format(free.getsockname()[1])
        with (
            pytest.raises(InputError, match=f"nothing answers at {address}"),
            cluster.connected(address),
        ):
            pass


def test_an_item_is_done_once_also_where_workers_die(ray, tmp_path):
    make = partial(at_home, tmp_path)
    with cluster.connected("auto") as joined, cluster.Crew(joined, make, workers=2) as crew:
        found = list(crew.each(deadly_once, range(12)))
    assert sorted(found) == [(k, k * k) for k in range(12)]
    ended = Counter(path.name.split("-")[0] for path in tmp_path.glob("[0-9]*"))
    assert ended == {str(k): 1 for k in range(12)}
    pids = {path.name.split("-")[1] for path in tmp_path.glob("[0-9]*")}
    assert len(pids) >= 3  # two died, so others took their place


def test_an_item_that_every_worker_dies_of_is_given_up_and_the_rest_is_done(ray, tmp_path):
    with cluster.Crew(ray, partial(at_home, tmp_path), workers=2) as crew:
        found = dict(crew.each(deadly, range(6)))
    assert "3 workers died of it" in found.pop(3).reason
    assert found == {k: k * k for k in (0, 1, 2, 4, 5)}


def test_what_making_the_state_raises_is_raised_here(ray):
    with (
        cluster.Crew(ray, refuse, workers=1) as crew,
        pytest.raises(InputError, match="^no such model$"),
    ):
        crew.ask(str)


def test_workers_that_die_while_they_start_are_not_replaced_for_ever(ray):
    with (
        cluster.Crew(ray, die, workers=1) as crew,
        pytest.raises(CircuitTracerError, match="3 workers died while they were starting"),
    ):
        crew.ask(str)


@pytest.mark.parametrize("together", [1, 3])
def test_a_batch_on_a_cluster_is_that_of_one_process_though_a_worker_is_killed(
    ray, tmp_path, monkeypatch, together
):
    from circuit_tracer.batch import Job, run, run_on, running
    from tests import tiny

    jobs = [Job(f"p{k}", [2, 5 + k, 9, 21 - k]) for k in range(8)]
    run(jobs, tiny.replacement("llama"), tmp_path / "here", together=together)
    monkeypatch.setattr(running, "load", tiny.replacement)
    killed = []

    def kill_one(done, message):
        if done > 0.2 and not killed:
            killed.extend(kill_a_worker())

    how = {"workers": 2, "together": together, "progress": kill_one}
    records = run_on("auto", jobs, {"family": "llama"}, tmp_path / "there", **how)
    assert killed and [record.error for record in records] == [None] * len(jobs)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_a_store_built_on_a_cluster_is_that_of_one_process_though_a_worker_is_killed(ray, tmp_path):
    from circuit_tracer.features import building, spreading
    from tests import tiny

    texts = [" ".join(f"w{(7 * i + 3 * j) % 40}" for j in range(2 + i % 6)) for i in range(20)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    corpus = spreading.Corpus((str(tmp_path / "texts.txt"),), "en", total=20)
    building.build(tiny.replacement("llama"), corpus.read(), tmp_path / "here")
    done, killed = [], []

    def interrupt(share, message):
        done.append(share)
        if len(done) == 3:
            raise KeyboardInterrupt

    def kill_one(share, message):
        if not killed:
            killed.extend(kill_a_worker())

    on = partial(
        spreading.build_on, "auto", {"family": "llama"}, corpus, workers=1, make=tiny.replacement
    )
    with pytest.raises(KeyboardInterrupt):
        on(tmp_path / "there", progress=interrupt)
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "there.parts").glob("*.part")}
    assert len(parts) == 2

    def seen(share, message):
        kill_one(share, message)
        assert all(path.stat().st_mtime_ns == then for path, then in parts.items())

    on(tmp_path / "there", progress=seen)
    assert killed and (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    assert not (tmp_path / "there.parts").exists()


def test_parts_of_another_build_are_refused_and_shards_stay_as_many_as_they_were(tmp_path):
    from circuit_tracer.features.spreading import _open

    assert _open(tmp_path, {"top": 8}, 12) == 12
    assert _open(tmp_path, {"top": 8}, 40) == 12
    with pytest.raises(InputError, match="parts of a build with another top: 8 there, 5 here"):
        _open(tmp_path, {"top": 5}, 12)


def contents(folder):
    """All files, but for how long things took, and the order of a graph file's own header."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not name.startswith("table."):
            found[name] = path.read_bytes()
        if name.startswith("records/"):
            record = json.loads(found[name])
            del record["figures"]["seconds"]
            found[name] = record
        if name.startswith("graphs/"):
            start = 8 + int.from_bytes(found[name][:8], "little")
            found[name] = json.loads(found[name][8:start]), found[name][start:]
    return found
