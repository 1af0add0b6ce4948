"""Alignment: which position of a donor goes where in a receiver, when one is put into the other.

Prompts of one language mostly differ in a word: they are aligned by their equal beginnings and
ends. Prompts of two languages share no tokens: there, what is swapped is aligned with what it is
swapped for, and the rest from the last position back. The first position is left out, as graphs
leave it out.
"""

from __future__ import annotations

from collections.abc import Sequence


def alignment(receiver: Sequence[int], donor: Sequence[int]) -> dict[int, int]:
    """Donor position → receiver position, by token ids.

    Equal beginnings and equal ends are aligned; what is between, from its end.

    >>> alignment([0, 7, 8, 5, 9], [0, 7, 6, 6, 5, 9])
    {1: 1, 3: 2, 4: 3, 5: 4}
    """
    start, _ = _equal(receiver, donor)
    found = {k: k for k in range(1, start)}
    for back in range(1, min(len(receiver), len(donor)) - start + 1):
        found[len(donor) - back] = len(receiver) - back
    return dict(sorted(found.items()))


def differing(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """Positions of one prompt that are in neither its equal beginning nor its equal end.

    >>> differing([0, 7, 8, 5, 9], [0, 7, 6, 6, 5, 9])
    [2]
    """
    start, back = _equal(one, other)
    return list(range(start, len(one) - back))


def abroad(
    here: Sequence[int], there: Sequence[int], n_receiver: int, n_donor: int
) -> dict[int, int]:
    """Donor position → receiver position, for prompts of two languages.

    Args:
        here, there: where what is swapped stands in the receiver and in the donor; these are
            aligned, and all other positions among themselves, from the last back.

    >>> abroad([4], [1], n_receiver=6, n_donor=5)
    {1: 4, 2: 2, 3: 3, 4: 5}
    """
    found = dict(zip(reversed(there), reversed(here), strict=False))
    rest = [k for k in range(1, n_receiver) if k not in here]
    others = [k for k in range(1, n_donor) if k not in there]
    found |= dict(zip(reversed(others), reversed(rest), strict=False))
    return dict(sorted(found.items()))


def _equal(one: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
    """How many tokens are equal at the beginning, and then how many at the end."""
    short, start, back = min(len(one), len(other)), 0, 0
    while start < short and one[start] == other[start]:
        start += 1
    while back < short - start and one[-1 - back] == other[-1 - back]:
        back += 1
    return start, back
