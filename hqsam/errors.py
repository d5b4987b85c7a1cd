"""Errors that a caller can cause. All of them are ``ValueError``s, so one ``except ValueError`` is enough."""

from __future__ import annotations


class HqsamError(ValueError):
    """Base of the errors raised at the borders of the package: files, configurations and data."""


class CheckpointError(HqsamError):
    """A checkpoint cannot be read, is of another model, or lacks what the model needs."""


class ConfigError(HqsamError):
    """A training or evaluation configuration has an unknown key, a wrong type or a missing value."""


class OutputError(HqsamError, OSError):
    """A file cannot be written: a full disk, a read-only folder; the message names it. What was there stays."""


class DataError(HqsamError):
    """An image, a mask or a data set on disk is unusable; the message names the file."""


class ExportError(HqsamError):
    """A model cannot be exported, or the exported file computes something else than the model."""
