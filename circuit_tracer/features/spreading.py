"""Building a store on a cluster: workers count shards of the texts, one describes what was counted.

Parts come back as files that lie beside the store, in `path` + ".parts", each there whole or not at
all. A build that was interrupted counts what is not there yet; a worker that dies takes its
unfinished shard with it, and another counts that again. The store is that of a build in one
process, because parts that are merged are.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from circuit_tracer import cluster
from circuit_tracer.agreement.measure import pieces
from circuit_tracer.errors import CircuitTracerError, InputError
from circuit_tracer.features.building import COUNTED, Progress, count, merge
from circuit_tracer.features.corpus import Document, documents
from circuit_tracer.files import replacing, write_text
from circuit_tracer.loading import load
from circuit_tracer.replacement import ReplacementModel

SHARDS = 4
"""Shards a worker, in a build that starts: what is lost with a worker is at most one."""


@dataclass(frozen=True)
class Corpus:
    """Texts that every worker finds.

    Attributes:
        sources, language: as in `corpus.documents`; files must lie at these names everywhere.
        limit: read so many at most; None for all.
        total: how many there are; None where it is not known.
    """

    sources: tuple[str, ...]
    language: str = ""
    limit: int | None = None
    total: int | None = None

    def read(self) -> Iterator[Document]:
        """The documents, in order."""
        return islice(documents(self.sources, self.language), self.limit)


def build_on(
    address: str,
    loading: Mapping[str, Any],
    corpus: Corpus,
    path: Path,
    top: int = 8,
    sample: int = 24,
    layers: Sequence[int] | None = None,
    workers: int | None = None,
    progress: Progress = lambda done, message: None,
    make: Callable[..., ReplacementModel] = load,
) -> None:
    """`building.build` on a Ray cluster.

    Args:
        address, workers: as in `cluster.connected` and `cluster.Crew`.
        loading: arguments of `make`, which each worker calls once.
        path: the store to write.

    Raises:
        InputError: no text; parts of another build beside `path`; no cluster there.
        OutputError: a part or the store cannot be written.
        CircuitTracerError: no worker can be had, or every one dies of a shard.
    """
    gpu = not str(loading.get("device", "auto")).startswith("cpu")
    about = {**asdict(corpus), "loading": dict(loading), "top": top, "sample": sample}
    about["layers"] = None if layers is None else list(layers)
    counting = {"top": top, "sample": sample, "layers": layers}
    state = partial(make, **loading)
    with cluster.connected(address) as ray, cluster.Crew(ray, state, workers, gpu) as crew:
        folder = path.with_name(path.name + ".parts")
        n = _open(folder, about, SHARDS * crew.size)
        todo = [k for k in range(n) if not _part(folder, k, n).is_file()]
        done = n - len(todo)
        progress(COUNTED * done / n, f"{done} of {n} shards counted")
        for k, found in crew.each(partial(_counted, corpus, n, counting), todo):
            _write(_part(folder, k, n), _whole(found))
            done += 1
            progress(COUNTED * done / n, f"{done} of {n} shards counted")
        parts = [_part(folder, k, n) for k in range(n)]
        full = [part.read_bytes() for part in parts if part.stat().st_size]
        if not full:
            raise InputError("the texts hold no token to count (the first one of each is left out)")
        progress(COUNTED, "describing the features")
        for _, found in crew.each(_described, [full]):
            _write(path, _whole(found))
    shutil.rmtree(folder)


def _open(folder: Path, about: Mapping[str, Any], shards: int) -> int:
    """How many shards there are: as many as when the build began."""
    note, here = folder / "build.json", json.loads(json.dumps(about))
    if note.is_file():
        before = json.loads(note.read_text(encoding="utf-8"))
        shards = int(before.pop("shards"))
        for name in sorted({*before, *here}):
            if before.get(name) != here.get(name):
                raise InputError(
                    f"{folder} holds parts of a build with another {name}: {before.get(name)!r} "
                    f"there, {here.get(name)!r} here. Delete it, or name another store"
                )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps({**here, "shards": shards}, indent=1) + "\n")
    return shards


def _part(folder: Path, k: int, n: int) -> Path:
    return folder / f"{k}-of-{n}.part"


def _write(path: Path, whole: bytes) -> None:
    with replacing(path) as place:
        place.write_bytes(whole)


def _whole(found: bytes | cluster.Lost) -> bytes:
    if isinstance(found, cluster.Lost):
        raise CircuitTracerError(f"a shard could not be counted: {found.reason}")
    return found


def _counted(
    corpus: Corpus, n: int, counting: Mapping[str, Any], model: ReplacementModel, k: int
) -> bytes:
    """The part of a shard, as the bytes of its file; empty where there is nothing to count."""
    if not any(_countable(model, text) for text in islice(corpus.read(), k, None, n)):
        return b""
    with tempfile.TemporaryDirectory() as here:
        part = Path(here) / "part"
        count(model, corpus.read(), part, shard=(k, n), **counting)
        return part.read_bytes()


def _countable(model: ReplacementModel, text: Document) -> bool:
    return any(len(ids) > len(model.ignored_by_default(ids)) for ids in pieces(model, [text.text]))


def _described(model: ReplacementModel, parts: Sequence[bytes]) -> bytes:
    """The store of all parts, as the bytes of its file."""
    with tempfile.TemporaryDirectory() as here:
        paths = [Path(here) / f"{k}.part" for k in range(len(parts))]
        for place, whole in zip(paths, parts, strict=True):
            place.write_bytes(whole)
        merge(model, paths, Path(here) / "store")
        return (Path(here) / "store").read_bytes()
