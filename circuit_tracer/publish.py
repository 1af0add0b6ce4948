"""Publishing a graph on Neuronpedia: what its server accepts, checked here before anything is sent.

A graph goes there as JSON compressed with gzip, in three steps: ask the server for an address to
put the file at, put it there, tell the server that it is there. The key goes to the server alone,
never to where the file is put, and never over a connection that others can read.

Everything in the file becomes public. Folders of this machine that its provenance names are cut
down to their last part.
"""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuit_tracer import neuronpedia
from circuit_tracer.errors import InputError, PublishError
from circuit_tracer.file_kind import file_kind, json_text
from circuit_tracer.graph import Graph
from circuit_tracer.prune import EDGES, NODES

HOST = "https://www.neuronpedia.org"
LEAST, MOST = 1 << 10, 100 << 20
"""Bytes that a compressed file has at least and at most."""

NAME = re.compile(r"[A-Za-z0-9_-]{2,}")
CROWDED = 2 / 3
"""Front ends hide a feature that is active at more than this share of the tokens."""

LOCAL = re.compile(r"(?:~|[A-Za-z]:)?[/\\](?:[^\s]*[/\\])?([^\s/\\]+)[/\\]?")
TIMEOUT = 120.0
"""Seconds without a word after which a server counts as out of reach."""

# What Neuronpedia requires of each part: name → kinds of value. Everything else is optional there.
METADATA: dict[str, tuple[type, ...]] = {
    "slug": (str,), "scan": (str,), "prompt_tokens": (list,), "prompt": (str,),
}  # fmt: skip
NODE: dict[str, tuple[type, ...]] = {
    "node_id": (str,), "feature": (int, type(None)), "layer": (str, int), "ctx_idx": (int,),
    "feature_type": (str,), "jsNodeId": (str,), "clerp": (str,),
}  # fmt: skip
LINK: dict[str, tuple[type, ...]] = {"source": (str,), "target": (str,), "weight": (int, float)}


@dataclass(frozen=True)
class Publication:
    """A graph that is ready to be sent.

    Attributes:
        slug: its name there.
        scan: the model it is filed under there.
        prompt: its text, which will be public.
        data: the file, compressed.
        size: of the file before, in bytes.
        n_nodes, n_links: how many it has.
        remarks: what is not wrong and worth knowing, each a sentence.
    """

    slug: str
    scan: str
    prompt: str
    data: bytes
    size: int
    n_nodes: int
    n_links: int
    remarks: tuple[str, ...]


def prepare(
    path: str | os.PathLike[str],
    slug: str | None = None,
    scan: str | None = None,
    source_set: str | None = None,
    node_threshold: float = NODES,
    edge_threshold: float = EDGES,
) -> Publication:
    """Check a saved graph against everything that Neuronpedia asks of it, and compress it.

    Args:
        path: a graph in JSON, which goes as it is but for the names given here, or a complete one,
            which is pruned first.
        slug: another name than the file's.
        scan: the model as Neuronpedia calls it, `gemma-2-2b`; default what the file says.
        source_set: the features' name there, so that they can be looked up.
        node_threshold, edge_threshold: of the pruning of a complete graph.

    Raises:
        InputError: there is no such file, or a name that Neuronpedia does not allow.
        GraphFileError: it is no graph.
        PublishError: it would be refused; the message lists every reason.
    """
    document = _document(path, node_threshold, edge_threshold)
    about = document["metadata"]
    about |= {name: value for name, value in (("slug", slug), ("scan", scan)) if value is not None}
    if source_set is not None:
        about["feature_details"] = {"neuronpedia_source_set": source_set}
    remarks = _without_folders(about)
    for name in ("slug", "scan"):
        if isinstance(about[name], str):  # what is no text is a fault, said with the others
            _check_name(name, about[name])
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    data = gzip.compress(text, mtime=0)
    if wrong := _faults(document, len(data)):
        raise PublishError(f"{path} would be refused: " + "; ".join(wrong))
    return Publication(
        slug=about["slug"],
        scan=about["scan"],
        prompt=about["prompt"],
        data=data,
        size=len(text),
        n_nodes=len(document["nodes"]),
        n_links=len(document["links"]),
        remarks=tuple(remarks + _remarks(document)),
    )


def _document(path: str | os.PathLike[str], nodes: float, edges: float) -> dict[str, Any]:
    """The JSON of a graph, known to be one."""
    if file_kind(path) == "json":
        neuronpedia.read(path)
        return dict(json.loads(json_text(path)))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "graph.json"
        Graph.read(path).to_json(copy, nodes, edges)
        return dict(json.loads(json_text(copy)))


def upload(
    publication: Publication,
    key: str,
    host: str = HOST,
    progress: Callable[[float, str], None] = lambda share, said: None,
) -> str:
    """Send a publication; the address it can be seen at.

    Args:
        key: the API key of a Neuronpedia account.
        host: the server, `https://…`; plain http only on this machine.

    Raises:
        InputError: a host that is none, or an empty key.
        PublishError: the server could not be reached, or refused. Nothing is changed here, and the
            same call can be made again.
    """
    base = _checked_host(host)
    if not key.strip():
        raise InputError("the key is empty; make one in your Neuronpedia account's settings")
    headers = {"x-api-key": key.strip(), "Content-Type": "application/json"}
    progress(0.1, "asking where to put it")
    asked = {"filename": f"{publication.slug}.json", "contentLength": len(publication.data),
             "contentType": "application/json"}  # fmt: skip
    place = _asked(f"{base}/api/graph/signed-put", asked, headers)
    where, number = place.get("url"), place.get("putRequestId")
    if not isinstance(where, str) or not isinstance(number, str):
        raise PublishError(f"{base} did not say where to put the file: it answered {place}")
    progress(0.3, "sending")
    packed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    _sent("PUT", _checked_host(where), publication.data, packed)
    progress(0.9, "registering")
    saved = _asked(f"{base}/api/graph/save-to-db", {"putRequestId": number}, headers)
    if not isinstance(saved.get("url"), str):
        raise PublishError(f"{base} did not say where the graph is: it answered {saved}")
    return str(saved["url"])


def _check_name(what: str, name: str) -> None:
    if not NAME.fullmatch(name):
        fitting = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")
        near = f", e.g. {fitting}" if what == "slug" and NAME.fullmatch(fitting) else ""
        model = " (the model as Neuronpedia calls it, gemma-2-2b)" if what == "scan" else ""
        raise InputError(
            f"the {what} {name!r}{model} should have two or more letters a-z, digits, - and _ and "
            f"nothing else: give another (--{what}){near}"
        )


def _faults(document: Mapping[str, Any], size: int) -> list[str]:
    """Every reason why the file would be refused, the first of a kind only."""
    wrong = [] if isinstance(document.get("qParams"), dict) else ["qParams is missing"]
    wrong += _unlike(document["metadata"], METADATA, "metadata")
    for name, wanted in (("nodes", NODE), ("links", LINK)):
        seen: Counter[str] = Counter()
        for number, one in enumerate(document[name]):
            for fault in _unlike(one, wanted, name):
                seen[fault] += 1
                if seen[fault] == 1:
                    wrong.append(f"{fault} (first in number {number})")
    ids = Counter(node["node_id"] for node in document["nodes"])
    if twice := [one for one, count in ids.items() if count > 1]:
        wrong.append(f"{len(twice)} ids belong to two nodes, {twice[0]!r} first")
    if size > MOST:
        wrong.append(
            f"it has {size / (1 << 20):.0f} MB compressed and may have {MOST >> 20}: prune further"
        )
    if size < LEAST:
        wrong.append(f"it has {size} bytes compressed and must have {LEAST}")
    return wrong


def _unlike(
    part: Mapping[str, Any], wanted: Mapping[str, tuple[type, ...]], where: str
) -> list[str]:
    """Fields that are missing or of another kind than required."""
    wrong = []
    for name, kinds in wanted.items():
        if name not in part:
            wrong.append(f"{where}: {name} is missing")
        elif not isinstance(part[name], kinds) or isinstance(part[name], bool):
            said = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            wrong.append(f"{where}: {name} should be {said}, not {type(part[name]).__name__}")
    return wrong


def _remarks(document: Mapping[str, Any]) -> list[str]:
    said = []
    places: dict[Any, set[int]] = {}
    for node in document["nodes"]:
        if node["feature_type"] == "cross layer transcoder":
            places.setdefault((node["layer"], node["feature"]), set()).add(node["ctx_idx"])
    length = len(document["metadata"]["prompt_tokens"])
    crowded = sum(len(found) > CROWDED * length for found in places.values())
    if crowded:
        said.append(f"{crowded} features at more than two thirds of the tokens will be hidden")
    if "node_threshold" not in document["metadata"] or not any(
        isinstance(node.get("influence"), int | float) for node in document["nodes"]
    ):
        said.append("without node_threshold and influence the page there has no pruning slider")
    if "feature_details" not in document["metadata"]:
        said.append("without a source set (--source-set) its features may have no examples there")
    return said


def _without_folders(about: dict[str, Any]) -> list[str]:
    """Cut folders of this machine out of the metadata; what was cut, as sentences."""
    settings = about.get("generation_settings")
    origin = settings.get("provenance") if isinstance(settings, dict) else None
    cut = 0
    for holder, name in ((origin, "model"), (origin, "transcoders"), (about, "scan")):
        if isinstance(holder, dict) and isinstance(holder.get(name), str):
            before, holder[name] = holder[name], LOCAL.sub(_last, holder[name])
            cut += before != holder[name]
    listed = about.get("transcoder_list")
    if isinstance(listed, list):
        short = [LOCAL.sub(_last, one) if isinstance(one, str) else one for one in listed]
        cut, about["transcoder_list"] = cut + (short != listed), short
    return ["folders of this machine are left out of where it comes from"] if cut else []


def _last(found: re.Match[str]) -> str:
    """The last part of a path; what stands amid a word (org/repo) is no path."""
    start = found.start()
    return found[0] if start and not found.string[start - 1].isspace() else found[1]


def _checked_host(host: str) -> str:
    parts = urllib.parse.urlsplit(host)
    here = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if not parts.hostname or parts.scheme not in ("https", "http"):
        raise InputError(f"{host!r} is no server; it should look like {HOST}")
    if parts.scheme == "http" and not here:
        raise InputError(f"{host} would send the key where others can read it; use https")
    return host.rstrip("/")


def _asked(url: str, question: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    answer = _sent("POST", url, json.dumps(question).encode(), headers)
    try:
        found = json.loads(answer)
    except ValueError as error:
        raise PublishError(
            f"{url} answered something that is not JSON: {answer[:200]!r}"
        ) from error
    if not isinstance(found, dict):
        raise PublishError(f"{url} answered {answer[:200]!r}")
    return found


class _Straight(urllib.request.HTTPRedirectHandler):
    """Follows nothing: a key must not travel on to another server."""

    def redirect_request(self, *args: Any, **more: Any) -> None:
        return None


def _sent(method: str, url: str, data: bytes, headers: Mapping[str, str]) -> bytes:
    where = url.partition("?")[0]  # what follows is a signature
    request = urllib.request.Request(url, data, dict(headers), method=method)
    try:
        with urllib.request.build_opener(_Straight).open(request, timeout=TIMEOUT) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        raise PublishError(f"{where} answered {error.code}: {_reason(error)}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise PublishError(f"{where} could not be reached: {reason}; try again later") from error


def _reason(error: urllib.error.HTTPError) -> str:
    """What the server says is wrong, and what helps."""
    text = error.read(10_000).decode("utf-8", "replace")
    try:
        said = json.loads(text)
        details = said.get("details") or []
        words = [said.get("error") or said.get("message"), *details[:5]]
        text = "; ".join(str(word) for word in words if word) or text
    except (ValueError, AttributeError, TypeError):
        text = " ".join(text.split())[:200]
    help_of = {401: "check the key", 403: "check the key", 413: "prune further",
               429: "too many uploads today; try again tomorrow"}  # fmt: skip
    known = help_of.get(error.code)
    return f"{text or error.reason}" + (f" ({known})" if known else "")
