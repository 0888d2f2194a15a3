"""Exceptions. Each subclasses the built-in that callers already catch."""


class GnncyError(Exception):
    """Base of every error that gnncy raises on its own account."""


class GraphFormatError(GnncyError, ValueError):
    """A graph, or an array that belongs to one, does not have the form that is needed."""


class StorageError(GnncyError, OSError):
    """A file on disk is damaged, truncated, foreign, locked or could not be read or written."""


class MemoryLimitError(GnncyError, MemoryError):
    """The memory limit is too small for the work; the message names the least that would do."""


class NotFittedError(GnncyError, ValueError, AttributeError):
    """A result was asked of an estimator before ``fit``."""
