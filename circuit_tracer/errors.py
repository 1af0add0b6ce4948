"""Every exception the package raises on purpose.

    CircuitTracerError                 catch this one
    ├── InputError        (exit 2)     the words were wrong: a prompt, token, option, node name
    ├── ModelError        (exit 1)     a model that cannot be loaded or traced as it is
    ├── TranscoderError   (exit 1)     transcoder files that are damaged or belong to another model
    ├── GraphFileError    (exit 1)     a graph file that is damaged, too new, or not a graph
    ├── OutputError       (exit 1)     a result that could not be written; the old file is untouched
    ├── EndpointError     (exit 1)     a language model's server that does not answer, or nonsense
    ├── PublishError      (exit 1)     a graph that a server would not take, or did not
    └── MemoryBudgetError (exit 1)     a run that would not fit, refused before it starts

Each message says what was expected, what came, and how to mend it. `exit_status` is what the
command line returns for it.
"""

from __future__ import annotations


class CircuitTracerError(Exception):
    """Base of all errors raised on purpose by this package."""

    exit_status = 1


class InputError(CircuitTracerError, ValueError):
    """What the caller asked for is not possible as worded."""

    exit_status = 2


class ModelError(CircuitTracerError):
    """A model cannot be loaded, or is of a family that cannot be traced."""


class TranscoderError(CircuitTracerError):
    """Transcoder weights are missing, damaged, or do not fit the model."""


class GraphFileError(CircuitTracerError):
    """A file is not a graph this version can read."""


class OutputError(CircuitTracerError, OSError):
    """A result could not be written. Whatever stood at that name before is unchanged."""


class EndpointError(CircuitTracerError):
    """A language model's server cannot be reached, refuses, or answers something else."""


class PublishError(CircuitTracerError):
    """A server could not be reached, or refuses what it is given. Nothing here is changed."""


class MemoryBudgetError(CircuitTracerError, MemoryError):
    """The run would need more memory than there is. The message names a setting that fits."""
