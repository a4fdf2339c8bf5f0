"""What can go wrong with a dataset, as sentences for the person who must act."""

from __future__ import annotations


class DatasetError(Exception):
    """A dataset cannot be had as asked; the message names it and the remedy."""


class UnknownDatasetError(DatasetError, LookupError):
    """No dataset has this name, or the distribution that installs it cannot be imported."""


class UnknownSplitError(DatasetError, ValueError):
    """The dataset has no split of this name."""


class DatasetUnavailableError(DatasetError):
    """A dataset's data can be reached neither on disk nor at its source."""


class DatasetFileError(DatasetError):
    """A file of rows cannot be read at all."""
