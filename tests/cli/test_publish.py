"""`circuit-tracer publish` against a server of our own that keeps what it is sent."""

from __future__ import annotations

import gzip
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from circuit_tracer.cli.main import main
from circuit_tracer.errors import InputError, PublishError
from circuit_tracer.graph import Graph
from circuit_tracer.publish import LEAST, MOST, prepare, upload
from tests.cli.test_open import THEIRS

FINE = ("--scan", "tiny-llama")


class Server(BaseHTTPRequestHandler):
    """Answers as Neuronpedia does; `answers` replaces one by (status, body, headers)."""

    def answer(self, status, body, **headers):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def handle_any(self):
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.server.seen.append((self.command, self.path, dict(self.headers), data))
        if path in self.server.answers:
            status, body, *headers = self.server.answers[path]
            self.answer(status, body, **(headers[0] if headers else {}))
        elif path == "/api/graph/signed-put":
            put = f"{self.server.url}/bucket/{json.loads(data)['filename']}?signature=secret"
            self.answer(200, {"url": put, "putRequestId": "17"})
        elif path.startswith("/bucket/"):
            self.answer(200, b"")
        else:
            self.answer(200, {"url": "https://example.org/tiny-llama/graph"})

    do_POST = do_PUT = do_GET = handle_any  # noqa: N815

    def log_message(self, *words):
        pass


@pytest.fixture
def server():
    with HTTPServer(("127.0.0.1", 0), Server) as running:
        running.seen, running.answers = [], {}
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NEURONPEDIA_API_KEY", raising=False)
    return tmp_path


def run(*words, status=0, **more):
    result = CliRunner().invoke(main, ["publish", *map(str, words)], **more)
    assert result.exit_code == status, result.output
    return result


def changed(**changes):
    document = json.loads(THEIRS.read_text())
    document["metadata"] |= changes.pop("metadata", {})
    path = Path("changed.json")
    path.write_text(json.dumps(document | changes))
    return path


def test_nothing_is_sent_without_a_key_and_a_yes(server, folder):
    host = ("--host", server.url)
    output = run(THEIRS, *FINE, *host).stdout
    for said in (
        "tiny-llama/oracle",
        "38 nodes, 264 links",
        "oracle.json.gz",
        "NEURONPEDIA_API_KEY",
    ):
        assert said in output
    assert "--yes" in run(THEIRS, *FINE, *host, "--key", "k").stdout.splitlines()[-1]
    assert "needs a key" in run(THEIRS, *FINE, *host, "--yes", status=2).stderr
    assert server.seen == []
    sent = json.loads(gzip.decompress((folder / "oracle.json.gz").read_bytes()))
    wanted = json.loads(THEIRS.read_text())
    wanted["metadata"]["scan"] = "tiny-llama"
    assert sent == wanted


def test_it_is_sent_in_three_steps_and_the_key_to_the_server_alone(server, folder, monkeypatch):
    monkeypatch.setenv("NEURONPEDIA_API_KEY", "secret-key")
    result = run(THEIRS, *FINE, "--slug", "mine", "--yes", "--host", server.url)
    assert result.stdout.splitlines()[-1] == "sent      https://example.org/tiny-llama/graph"
    (a, ask, ask_headers, asked), (b, put, put_headers, data), (c, save, headers, saved) = (
        server.seen
    )
    assert (a, ask, b, c, save) == (
        "POST", "/api/graph/signed-put", "PUT", "POST", "/api/graph/save-to-db",
    )  # fmt: skip
    assert put == "/bucket/mine.json?signature=secret"
    assert json.loads(asked) == {
        "filename": "mine.json",
        "contentLength": len(data),
        "contentType": "application/json",
    }
    assert json.loads(saved) == {"putRequestId": "17"}
    assert data == (folder / "mine.json.gz").read_bytes()
    assert json.loads(gzip.decompress(data))["metadata"]["slug"] == "mine"
    assert put_headers["Content-Encoding"] == "gzip"
    assert ask_headers["X-Api-Key"] == headers["X-Api-Key"] == "secret-key"
    assert "X-Api-Key" not in put_headers
    assert "secret-key" not in result.output


@pytest.mark.parametrize("answer, count", [("y\n", 3), ("n\n", 0), ("\n", 0)])
def test_on_a_terminal_it_asks(server, monkeypatch, answer, count):
    monkeypatch.setattr("circuit_tracer.cli.publish.sys", Terminal())
    host = ("--key", "k", "--host", server.url)
    result = run(THEIRS, *FINE, *host, input=answer)
    assert "It will be public" in result.stderr
    assert len(server.seen) == count


class Terminal:
    """`sys` where standard input is a terminal."""

    def __getattr__(self, name):
        return self if name == "stdin" else getattr(sys, name)

    def isatty(self):
        return True


@pytest.mark.parametrize(
    "path, answer, said",
    [
        ("/api/graph/signed-put", (401, {"message": "no such key"}), "401: no such key (check"),
        ("/api/graph/signed-put", (429, {"error": "Too many"}), "tomorrow"),
        ("/api/graph/signed-put", (200, b"<html>"), "not JSON"),
        ("/api/graph/signed-put", (200, {"url": 3}), "did not say where"),
        ("/bucket/oracle.json", (403, b"<Error>late</Error>"), "403: <Error>late"),
        ("/api/graph/save-to-db", (400, {"error": "bad", "details": ["/nodes: x"]}), "/nodes: x"),
        ("/api/graph/save-to-db", (200, []), "answered"),
    ],
)
def test_what_the_server_refuses_is_said_and_the_file_stays(server, folder, path, answer, said):
    server.answers[path] = answer
    result = run(THEIRS, *FINE, "--key", "k", "--yes", "--host", server.url, status=1)
    assert said in result.stderr and "the checked file is at oracle.json.gz" in result.stderr
    assert "signature" not in result.stderr and "Traceback" not in result.stderr
    assert (folder / "oracle.json.gz").stat().st_size > LEAST


def test_the_key_does_not_follow_a_redirect(server):
    server.answers["/api/graph/signed-put"] = 302, b"", {"Location": f"{server.url}/elsewhere"}
    found = prepare(THEIRS, scan="tiny-llama")
    with pytest.raises(PublishError, match="302"):
        upload(found, "k", server.url)
    assert len(server.seen) == 1


def test_a_server_that_is_not_there():
    found = prepare(THEIRS, scan="tiny-llama")
    with pytest.raises(PublishError, match="could not be reached"):
        upload(found, "k", "http://127.0.0.1:9")
    for host in ("http://example.org", "ftp://example.org", "neuronpedia.org", ""):
        with pytest.raises(InputError, match="https"):
            upload(found, "k", host)
    with pytest.raises(InputError, match="key is empty"):
        upload(found, " ")


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(metadata={"slug": "a b"}), "e.g. a-b"),
        (dict(metadata={"slug": "x"}), "two or more"),
        (dict(metadata={"scan": "org/model"}), "--scan"),
    ],
)
def test_names_that_are_not_allowed(changes, said):
    words = () if "scan" in changes["metadata"] else FINE
    assert said in run(changed(**changes), *words, status=2).stderr


def test_every_reason_is_said_at_once():
    nodes = json.loads(THEIRS.read_text())["nodes"]
    nodes[3].pop("clerp")
    nodes[5]["clerp"] = nodes[6]["clerp"] = None
    message = run(changed(nodes=nodes), *FINE, status=1).stderr
    assert "nodes: clerp is missing (first in number 3)" in message
    assert (
        "slug should be str, not int" in run(changed(metadata={"slug": 7}), *FINE, status=1).stderr
    )
    assert "nodes: clerp should be str, not NoneType (first in number 5)" in message
    assert not Path("oracle.json.gz").exists()


def test_size_is_checked(monkeypatch):
    assert (LEAST, MOST) == (1024, 100 * 1024**2)
    monkeypatch.setattr("circuit_tracer.publish.MOST", 2000)
    assert "prune further" in run(THEIRS, *FINE, status=1).stderr
    monkeypatch.setattr("circuit_tracer.publish.LEAST", 1 << 20)
    assert "must have" in run(THEIRS, *FINE, status=1).stderr


def test_a_complete_graph_is_pruned_first(folder):
    Graph.read(THEIRS).save(folder / "g.safetensors")
    shares = ("--node-threshold", 0.5, "--edge-threshold", 0.9)
    done = json.loads(run("g.safetensors", *FINE, *shares, "--json", "-").output)
    assert not done["sent"] and done["nodes"] < 38
    sent = Graph.read(done["file"])
    circuit = Graph.read("g.safetensors").prune(0.5, 0.9)
    assert [node.id for node in sent.prune(1.0, 1.0).nodes] == [node.id for node in circuit.nodes]


def test_folders_of_this_machine_are_left_out():
    origin = {"model": "/data/me/models/tiny", "transcoders": "google/gemma C:\\sets\\plt",
              "prompt": "cd /usr/bin"}  # fmt: skip
    path = changed(metadata={"generation_settings": {"provenance": origin}})
    assert "folders of this machine" in run(path, *FINE).stdout
    about = json.loads(gzip.decompress(Path("oracle.json.gz").read_bytes()))["metadata"]
    assert about["generation_settings"]["provenance"] == {
        "model": "tiny",
        "transcoders": "google/gemma plt",
        "prompt": "cd /usr/bin",
    }


def test_a_source_set_and_crowded_features():
    document = json.loads(THEIRS.read_text())
    first = next(n for n in document["nodes"] if n["feature_type"] == "cross layer transcoder")
    layer, feature, _ = first["node_id"].split("_")
    others = {node["node_id"] for node in document["nodes"]}
    more = [first | {"node_id": f"{layer}_{feature}_{place}", "ctx_idx": place}
            for place in range(9) if f"{layer}_{feature}_{place}" not in others]  # fmt: skip
    output = run(changed(nodes=document["nodes"] + more), *FINE, "--source-set", "plt").stdout
    assert "1 features at more than two thirds" in output and "--source-set" not in output
    about = json.loads(gzip.decompress(Path("oracle.json.gz").read_bytes()))["metadata"]
    assert about["feature_details"] == {"neuronpedia_source_set": "plt"}
