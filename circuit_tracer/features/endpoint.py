"""A language model behind an address: any server that speaks OpenAI's chat completions.

Only `explaining` asks it, and only where a user names the address. What goes wrong for a while (too
many requests, a server that is busy or slow) is tried again, after as long as the server says; what
stays wrong is told. The key goes to that address alone: no redirection is followed, and no message
holds it.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import math
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from circuit_tracer.errors import EndpointError, InputError

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses after which a request is tried again."""

LONGEST_WAIT, LONGEST_ANSWER = 120.0, 2**22


@dataclass(frozen=True)
class Answer:
    """What a model said, and how many tokens went each way (0 where the server does not say)."""

    text: str
    sent: int
    received: int


@dataclass
class Endpoint:
    """A server and one of its models.

    Args:
        url: up to `/v1`, or to `/v1/chat/completions`.
        model: its name there.
        key: sent as a bearer token, if there is one.
        timeout: seconds to wait for an answer.
        tries: of one request.
        per_minute: requests a minute at most, over all threads; None for no limit.
        sleep: waits some seconds.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    tries: int = 5
    per_minute: float | None = None
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(
                f"an endpoint is an address like http://localhost:8000/v1, not {self.url!r}"
            )
        if parts.username is not None or parts.query or parts.fragment:
            raise InputError("an endpoint's address holds no name, key or question: use --key-env")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise InputError("the key should be plain printable characters without line ends")
        tail = "/chat/completions"
        self.url = self.url.rstrip("/").removesuffix(tail) + tail
        self.host = parts.netloc
        self._opener = urllib.request.build_opener(_NoRedirection)
        self._lock, self._next = threading.Lock(), 0.0

    def ask(self, instructions: str, question: str) -> Answer:
        """What the model answers. Nothing is asked for but words: servers differ in the rest.

        Raises:
            EndpointError: no answer after all tries, or none that can be read.
        """
        messages = [
            {"role": "system", "content": instructions},
            {"role": "user", "content": question},
        ]
        body = json.dumps({"model": self.model, "messages": messages}).encode()
        for tried in range(1, self.tries + 1):
            self._turn()
            try:
                return _answer(self._post(body))
            except _PassingError as error:
                if tried == self.tries:
                    raise EndpointError(f"{self.host}: {error}, {tried} times") from error
                wait = 2.0 ** (tried - 1) if error.wait is None else error.wait
                self.sleep(min(wait, LONGEST_WAIT))
        raise AssertionError("a request is tried at least once")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "circuit-tracer"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url, body, headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as answer:
                return answer.read(LONGEST_ANSWER)
        except urllib.error.HTTPError as error:
            said = self._hidden(" ".join(error.read(2000).decode("utf-8", "replace").split())[:300])
            if error.code in AGAIN:
                wait = _seconds(error.headers.get("Retry-After"))
                raise _PassingError(f"it answers {error.code} {said}".strip(), wait) from error
            raise EndpointError(f"{self.host} answers {error.code}: {said}") from error
        except TimeoutError as error:
            raise _PassingError(f"no answer within {self.timeout:g} seconds") from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, TimeoutError):
                raise _PassingError(f"no answer within {self.timeout:g} seconds") from error
            raise _PassingError(f"it cannot be reached: {reason}") from error

    def _turn(self) -> None:
        """Wait until another request may be sent."""
        if self.per_minute is None:
            return
        with self._lock:
            now = time.monotonic()
            wait = max(0.0, self._next - now)
            self._next = max(now, self._next) + 60.0 / self.per_minute
        self.sleep(wait)

    def _hidden(self, said: str) -> str:
        """A server's words without the key, should it repeat it."""
        return said.replace(self.key, "…") if self.key else said


class _PassingError(Exception):
    """Something that may be better after a while: after `wait` seconds, where that is known."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """A server that points elsewhere is not followed: the key and the texts are not for others."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _answer(data: bytes) -> Answer:
    """The text in a completion."""
    try:
        whole = json.loads(data)
        text = whole["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise TypeError(f"the content is {text!r:.80}")
        usage = whole.get("usage") or {}
        sent, received = (usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens"))
        return Answer(text, int(sent), int(received))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        said = data[:200].decode("utf-8", "replace")
        raise _PassingError(f"it answers something that is no chat completion: {said!r}") from error


def _seconds(header: str | None) -> float | None:
    """How long a server asks to wait, given as seconds or as a date."""
    if not header:
        return None
    try:
        wait = float(header)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(header).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return max(0.0, wait) if math.isfinite(wait) else None
