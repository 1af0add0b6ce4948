"""Models: what tracing needs of a transformer, as data."""
