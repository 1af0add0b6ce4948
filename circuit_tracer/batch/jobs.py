"""Jobs: the prompts of a batch, as a file says them."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuit_tracer.errors import InputError

NAMED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")


@dataclass(frozen=True)
class Job:
    """One prompt of a batch.

    Attributes:
        id: names its files.
        prompt: text, or token ids.
        answer, targets, chat: as in `trace`.
    """

    id: str
    prompt: str | list[int]
    answer: str | None = None
    targets: tuple[str | int, ...] | None = None
    chat: bool = False

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        found = dataclasses.asdict(self)
        return found | {"targets": None if self.targets is None else list(self.targets)}


def read_jobs(path: Path) -> list[Job]:
    """The prompts of a file: JSON lines (.jsonl), each an object with "prompt" and maybe "id",
    "answer", "targets" and "chat", or a string; otherwise a prompt a line.

    Raises:
        InputError: it cannot be read, or a line is none of these; the message names the line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason}") from error
    if path.suffix != ".jsonl" and (what := _instead(text)):
        raise InputError(
            f"{path} holds {what}, not a prompt a line; prompts in JSON stand in a .jsonl file, "
            "and `circuit-tracer open` shows graphs"
        )
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise InputError(f"{path} holds no prompts")
    jobs: dict[str, Job] = {}
    for number, line in lines:
        place = f"{path}, line {number}"
        job = _job(line, f"{number:05}", place, path.suffix == ".jsonl")
        if job.id.casefold() in jobs:  # one file each, also where names differ in case only
            raise InputError(f"{place}: the id {job.id!r} was used before; ids name files")
        jobs[job.id.casefold()] = job
    return list(jobs.values())


def _instead(text: str) -> str:
    """What a file holds that is one document and no list of prompts; "" for prompts."""
    text = text.lstrip()
    if text[:9].lower() == "<!doctype":
        return "a page"
    try:
        return "JSON" if text.startswith("{") and json.loads(text) else ""
    except ValueError:
        return ""


def _job(line: str, number: str, place: str, as_json: bool) -> Job:
    if not as_json:
        return Job(number, line.removesuffix("\r"))
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InputError(f"{place} is not JSON: {error}") from error
    if isinstance(found, str):
        return Job(number, found)
    names = [one.name for one in dataclasses.fields(Job)]
    if not isinstance(found, dict) or "prompt" not in found or not set(found) <= set(names):
        raise InputError(
            f'{place}: expected a string, or an object with "prompt" and nothing but '
            f"{', '.join(names)}; got {line.strip()[:80]}"
        )
    found = {name: value for name, value in found.items() if value is not None}
    job = Job(**({"id": number} | found))
    if "targets" in found and isinstance(found["targets"], list):
        job = dataclasses.replace(job, targets=tuple(found["targets"]))
    _check(job, place)
    return job


def _check(job: Job, place: str) -> None:
    ids = isinstance(job.prompt, list) and all(type(token) is int for token in job.prompt)
    targets = job.targets is None or isinstance(job.targets, tuple)
    wrong = {
        "prompt": not (isinstance(job.prompt, str) or ids),
        "answer": not (job.answer is None or isinstance(job.answer, str)),
        "targets": not targets,
        "chat": not isinstance(job.chat, bool),
        "id": not (isinstance(job.id, str) and NAMED.fullmatch(job.id)),
    }
    for name, bad in wrong.items():
        if bad:
            raise InputError(
                f"{place}: {name} cannot be {getattr(job, name)!r}; prompt is text or token ids, "
                "answer text, targets a list, chat true or false, and id letters, digits, . _ -"
            )
