"""Settings of single prompts: what `trace` is told for one prompt and not for another.

Languages answer with different tokens, and a chat model is asked otherwise than its base. So every
setting of `compare` is either one value for all prompts, or a mapping from name to value, and then
names that it leaves out get what `trace` does by itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from circuit_tracer.errors import InputError

OF_A_PROMPT = ("targets", "positions", "answer")
"""Arguments of `trace` that mean nothing on other texts."""


def of_each(
    names: Collection[str], traced: Collection[str], settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """By name of a prompt, its arguments of `trace`.

    Args:
        names: of all that is compared.
        traced: those that are prompts; the others are graphs already.
        settings: as `compare` got them.

    Raises:
        InputError: a setting of a name that is not there, or of a graph that is traced already.
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in traced}
    for setting, value in settings.items():
        if not isinstance(value, Mapping):
            if setting in OF_A_PROMPT and value is not None and not traced:
                raise InputError(f"{setting}= is for prompts, and all of these are traced already")
            value = dict.fromkeys(traced, value)
        for name in value:
            _check(name, names, traced, setting)
            found[name][setting] = value[name]
    return found


def of_all(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What holds for any text: settings that are not of one prompt."""
    return {
        name: value
        for name, value in settings.items()
        if name not in OF_A_PROMPT and not isinstance(value, Mapping)
    }


def _check(name: str, names: Collection[str], traced: Collection[str], setting: str) -> None:
    if name not in names:
        raise InputError(
            f"{setting}= is given for {name!r}, but no prompt has this name; names are "
            f"{', '.join(names)}"
        )
    if name not in traced:
        raise InputError(
            f"{setting}= is given for {name!r}, which is a graph, traced already; give its prompt "
            "instead"
        )
