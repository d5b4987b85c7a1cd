"""The result of checking one or several sets, as plain values and as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from hqsam.data.check.cache import VerdictCache
from hqsam.data.check.findings import KINDS, Finding, Severity, Verdict
from hqsam.data.check.mask_files import ways_of_storing
from hqsam.data.check.photo_hash import same_photos
from hqsam.data.check.running import check_records
from hqsam.data.folders import FolderDefect
from hqsam.data.records import ImageRecord

_EXAMPLES = 3


@dataclass(frozen=True)
class OpenedSet:
    """Images to check.

    Attributes:
        name: what the user calls it.
        records: its images.
        folder_defects: what was collected while it was opened.
        use_alpha: mattes are the targets where there are some.
    """

    name: str
    records: Sequence[ImageRecord]
    folder_defects: Sequence[FolderDefect] = ()
    use_alpha: bool = False


@dataclass
class SetReport:
    """What was found in one set."""

    name: str
    images: int
    objects: int
    mask_files: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


@dataclass
class DataReport:
    """What was found in all sets.

    Attributes:
        sets: one by one; what concerns two of them is with the first.
        seconds: how long it took.
    """

    sets: list[SetReport]
    seconds: float = 0.0

    def findings(self, severity: Severity | None = None) -> list[Finding]:
        """All findings, or those of one severity."""
        return [one for part in self.sets for one in part.findings if severity in (None, one.severity)]

    def by_kind(self) -> dict[str, list[Finding]]:
        """Findings by kind, worst first; kinds that did not occur are left out."""
        found = self.findings()
        groups = {kind: [finding for finding in found if finding.kind == kind] for kind in KINDS}
        return {kind: findings for kind, findings in groups.items() if findings}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "version": 1,
            "seconds": round(self.seconds, 2),
            **{f"{severity}s": len(self.findings(severity)) for severity in ("error", "warning", "hint")},
            "kinds": {kind: len(findings) for kind, findings in self.by_kind().items()},
            "sets": [
                {
                    "name": part.name,
                    "images": part.images,
                    "objects": part.objects,
                    "mask_files": part.mask_files,
                    "findings": [{"severity": one.severity, **vars(one)} for one in part.findings],
                }
                for part in self.sets
            ],
        }

    def to_markdown(self) -> str:
        """A page with the counts and every finding."""
        lines = ["# Data check", "", "| set | images | objects | mask files |", "|---|---:|---:|---|"]
        for part in self.sets:
            lines.append(f"| {part.name} | {part.images} | {part.objects} | {describe_mask_files(part)} |")
        lines += ["", "| | kind | count |", "|---|---|---:|"]
        groups = self.by_kind()
        lines += [f"| {KINDS[kind].severity} | {KINDS[kind].title} | {len(found)} |" for kind, found in groups.items()]
        for kind, found in groups.items():
            lines += ["", f"## {KINDS[kind].severity}: {KINDS[kind].title}", "", *(f"- {one.text}" for one in found)]
        return "\n".join(lines) + "\n"


def check_sets(
    sets: Sequence[OpenedSet],
    *,
    workers: int = 0,
    cache: VerdictCache | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> DataReport:
    """Look at every image and mask of some sets, and for photographs that occur twice.

    Args:
        sets: what to check.
        workers: see `check_records`.
        cache: see `check_records`.
        advance: see `check_records`.
    """
    verdicts = [
        check_records(part.records, use_alpha=part.use_alpha, workers=workers, cache=cache, advance=advance)
        for part in sets
    ]
    reports = [_collect(part, found) for part, found in zip(sets, verdicts, strict=True)]
    hashes = [[verdict.hashes for verdict in found] for found in verdicts]
    for number, part in enumerate(sets):
        for first, second, distance, mirrored in same_photos(hashes[number]):
            pair = (part.records[first], part.records[second])
            reports[number].findings.append(_pair("duplicate", *pair, distance, mirrored=mirrored))
    for one, other in combinations(range(len(sets)), 2):
        for first, second, distance, mirrored in same_photos(hashes[one], hashes[other]):
            pair = (sets[one].records[first], sets[other].records[second])
            reports[one].findings.append(_pair("overlap", *pair, distance, mirrored=mirrored))
    return DataReport(reports)


def _collect(part: OpenedSet, verdicts: Sequence[Verdict]) -> SetReport:
    files: Counter[str] = Counter()
    of_source: dict[str, set[str]] = {}
    findings = [Finding(one.kind, str(one.path), one.text) for one in part.folder_defects]
    for record, verdict in zip(part.records, verdicts, strict=True):
        findings += verdict.findings
        files.update(verdict.mask_files)
        of_source.setdefault(record.source, set()).update(verdict.mask_files)
    for source, kinds in of_source.items():
        if len(ways_of_storing(kinds)) > 1:
            findings.append(
                Finding("mixed_masks", source, f"masks of {source} are stored as {', '.join(sorted(kinds))}")
            )
    objects = sum(len(record.objects) for record in part.records)
    # all objects of a label file share its defects
    unique = list({(one.kind, one.key, one.text): one for one in reversed(findings)}.values())[::-1]
    return SetReport(part.name, len(part.records), objects, dict(files.most_common()), unique)


def _pair(kind: str, first: ImageRecord, second: ImageRecord, distance: int, *, mirrored: bool) -> Finding:
    how = ", mirrored" if mirrored else ""
    text = f"{first.image} and {second.image} look the same ({distance} of 64 bits differ{how})"
    return Finding(kind, str(first.image), text, first.key, None, str(second.image))


def describe_mask_files(part: SetReport) -> str:
    """How many files store a mask in which way."""
    return ", ".join(f"{count} {kind}" for kind, count in part.mask_files.items()) or "label numbers or run lengths"


def first_examples(findings: Sequence[Finding]) -> str:
    """File names of the first findings, and how many more there are."""
    names = [
        f"{Path(one.file).name} = {Path(one.other).name}" if one.other else Path(one.file).name for one in findings
    ]
    names = list(dict.fromkeys(names))
    more = f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else ""
    return ", ".join(names[:_EXAMPLES]) + more
