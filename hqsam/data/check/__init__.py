"""Finding what is wrong with images and masks before anything is trained on them."""

from __future__ import annotations

from hqsam.data.check.cache import VerdictCache, default_cache_folder
from hqsam.data.check.findings import KINDS, Finding, Kind, Verdict
from hqsam.data.check.inspection import inspect_record
from hqsam.data.check.photo_hash import Hashes, photo_hashes, same_photos
from hqsam.data.check.report import DataReport, OpenedSet, SetReport, check_sets
from hqsam.data.check.running import check_records

__all__ = [
    "KINDS",
    "DataReport",
    "Finding",
    "Hashes",
    "Kind",
    "OpenedSet",
    "SetReport",
    "Verdict",
    "VerdictCache",
    "check_records",
    "check_sets",
    "default_cache_folder",
    "inspect_record",
    "photo_hashes",
    "same_photos",
]
