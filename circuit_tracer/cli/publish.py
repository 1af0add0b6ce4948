"""`circuit-tracer publish FILE`: a graph checked, compressed and, where that is wanted, sent."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuit_tracer.cli import destinations, options, progress
from circuit_tracer.cli.task import Task
from circuit_tracer.errors import InputError, PublishError

if TYPE_CHECKING:
    from circuit_tracer.publish import Publication

KEY = "NEURONPEDIA_API_KEY"
EPILOG = f"""\b
Examples:
  circuit-tracer publish small.json --scan gemma-2-2b
  {KEY}=… circuit-tracer publish small.json --scan gemma-2-2b --slug small-large --yes
"""


@click.command(
    cls=Task,
    name="publish",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.json.gz",
    help="What is, or would be, sent.  [default: the slug and .json.gz, here]",
)
@click.option("--slug", metavar="NAME", help="The graph's name there.  [default: the file's]")
@click.option(
    "--scan",
    metavar="MODEL",
    help="The model as Neuronpedia calls it, e.g. gemma-2-2b.  [default: the file's]",
)
@click.option(
    "--source-set",
    metavar="NAME",
    help="The transcoders as Neuronpedia calls them, where it has their features.",
)
@click.option(
    "--node-threshold",
    type=options.Share(),
    metavar="SHARE",
    default=0.8,
    help="For a graph that is not pruned: share of the influence that nodes hold.",
)
@click.option(
    "--edge-threshold",
    type=options.Share(),
    metavar="SHARE",
    default=0.98,
    help="And the share of it that the edges among them hold.",
)
@click.option(
    "--key",
    metavar="KEY",
    help="The API key of your account there; better given as "
    f"{KEY}, where other users of the machine do not see it.",
)
@click.option("--host", metavar="URL", help="The server.  [default: Neuronpedia's]")
@click.option("--yes", is_flag=True, help="Send it without asking again.")
@options.json_file("Write what was done as JSON; - prints it and nothing else.")
@click.option(
    "-q",
    "--quiet",
    is_flag=True,
    help="Print the graph's address, or where nothing was sent the file's path.",
)
@options.debug
def publish(**given: Any) -> None:
    """Check the graph in FILE against Neuronpedia's rules, and send it there if you say so.

    Nothing is sent without a key (--key or NEURONPEDIA_API_KEY) and a yes (--yes, or to the
    question that is asked on a terminal): it is checked, compressed and written, no more. What is
    sent is public.
    """
    from circuit_tracer.files import replacing
    from circuit_tracer.publish import HOST, prepare

    given["host"] = given["host"] or HOST
    key = given["key"] if given["key"] is not None else os.environ.get(KEY, "")
    if given["yes"] and not key:
        raise InputError(f"--yes sends the graph, which needs a key: set {KEY} or give --key")
    destinations.check(given["output"], given["json_path"])
    names = ("slug", "scan", "source_set", "node_threshold", "edge_threshold")
    with progress.bar(silent(given)) as report:
        report(0.0, "checking the graph")
        found = prepare(given["file"], **{name: given[name] for name in names})
    packed = place(given["output"], found)
    destinations.check(packed, given["json_path"])
    with replacing(packed) as temporary:
        temporary.write_bytes(found.data)
    if not silent(given):
        click.echo(described(found, packed, given["host"]))
    url = send(given, found, key, packed) if key and agreed(given, found) else None
    tell(given, found, packed, url, bool(key))


def silent(given: dict[str, Any]) -> bool:
    return bool(given["quiet"] or given["json_path"] == destinations.STDOUT)


def place(output: Path | None, found: Publication) -> Path:
    """Where the compressed file goes."""
    name = f"{found.slug}.json.gz"
    if output is None:
        return Path(name)
    if output == destinations.STDOUT:
        raise InputError("the compressed graph is a file: give -o a name, not -")
    return output / name if output.is_dir() else output


def described(found: Publication, packed: Path, host: str) -> str:
    """What is to be sent, and what to know before."""
    from circuit_tracer.cli.report import shown

    rows = [
        ("graph", f"{found.scan}/{found.slug}"),
        ("prompt", shown(found.prompt)),
        ("holds", f"{found.n_nodes:,} nodes, {found.n_links:,} links"),
        ("file", f"{destinations.said(packed)}, {len(found.data):,} bytes ({found.size:,} as "
                 "plain JSON)"),
        ("to", host),
        *(("note", remark) for remark in found.remarks),
    ]  # fmt: skip
    return "\n".join(f"{what:<10}{said}" for what, said in rows)


def agreed(given: dict[str, Any], found: Publication) -> bool:
    """Whether to send it: --yes, or a yes to the question on a terminal."""
    if given["yes"]:
        return True
    if sys.stdin is None or not sys.stdin.isatty():
        return False
    question = f"Send {found.scan}/{found.slug} to {given['host']}? It will be public."
    return click.confirm(question, default=False, err=True)


def send(given: dict[str, Any], found: Publication, key: str, packed: Path) -> str:
    """Upload it; where that fails, the file that was written is named."""
    from circuit_tracer.publish import upload

    with progress.bar(silent(given)) as report:
        try:
            return upload(found, key, given["host"], report)
        except PublishError as error:
            kept = f"the checked file is at {destinations.said(packed)}"
            raise PublishError(f"{error}; {kept}") from error


def tell(
    given: dict[str, Any], found: Publication, packed: Path, url: str | None, has_key: bool
) -> None:
    """What was done."""
    from circuit_tracer.files import write_text

    done = {
        "slug": found.slug,
        "scan": found.scan,
        "file": destinations.said(packed),
        "bytes": len(found.data),
        "nodes": found.n_nodes,
        "links": found.n_links,
        "remarks": list(found.remarks),
        "host": given["host"],
        "sent": url is not None,
        "url": url,
    }
    as_json = json.dumps(done, indent=2, ensure_ascii=False)
    if given["json_path"] == destinations.STDOUT:
        click.echo(as_json)
        return
    if given["json_path"] is not None:
        write_text(given["json_path"], as_json + "\n")
    if given["quiet"]:
        click.echo(url or destinations.said(packed))
    elif url is not None:
        click.echo(f"sent      {url}")
    else:
        needs = "--yes" if has_key else f"{KEY} (or --key) and --yes"
        click.echo(f"sent      nothing: that needs {needs}")
