"""What can be wrong with training data, how bad it is, and how it is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Severity = Literal["error", "warning", "hint"]


class Kind(NamedTuple):
    """One kind of finding."""

    severity: Severity
    title: str


KINDS: Mapping[str, Kind] = {
    "image_unreadable": Kind("error", "image missing, truncated or not an image"),
    "mask_unreadable": Kind("error", "mask missing, truncated or not an image"),
    "size_mismatch": Kind("error", "mask of another size than its image"),
    "mask_coloured": Kind("error", "mask is a colour picture"),
    "mask_in_alpha": Kind("error", "mask is drawn in its alpha channel"),
    "mask_unusable": Kind("error", "mask cannot be interpreted"),
    "empty_object": Kind("error", "object without a pixel"),
    "image_without_mask": Kind("error", "image without a mask"),
    "mask_without_image": Kind("error", "mask without an image"),
    "same_stem": Kind("error", "two files of one stem"),
    "overlap": Kind("warning", "photograph in two sets"),
    "duplicate": Kind("warning", "photograph twice in a set"),
    "tiny_object": Kind("warning", "object under 10 pixels, or under 0.01 % of the image"),
    "fills_image": Kind("warning", "object fills the image"),
    "soft_as_binary": Kind("warning", "soft mask read as binary"),
    "mixed_masks": Kind("warning", "masks stored in several ways"),
    "small_image": Kind("warning", "image with a side under 32 pixels"),
    "long_image": Kind("warning", "image more than 8 times as long as wide"),
    "zero_one": Kind("hint", "mask stored as 0/1"),
    "looks_inverted": Kind("hint", "mask looks inverted"),
    "many_parts": Kind("hint", "object of more than 100 parts"),
    "many_holes": Kind("hint", "object with more than 100 holes"),
}
"""Every kind, worst first. An error keeps an image or an object from being trained on; nothing else does."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: a key of `KINDS`.
        file: the file to look at.
        text: one sentence that names it.
        key: the image's key in its data set; empty where it has none.
        object: position in the record's objects; None: the whole image is concerned.
        other: the second photograph of a pair.
    """

    kind: str
    file: str
    text: str
    key: str = ""
    object: int | None = None
    other: str = ""

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return KINDS[self.kind].severity


@dataclass(frozen=True)
class Verdict:
    """What the check of one image and its masks says.

    Attributes:
        findings: in no order.
        mask_files: how each file that holds a single object stores it; see `hqsam.data.check.mask_files`.
        hashes: 64-bit perceptual hash of the image and of its mirror image; None: unreadable, or without any contrast.
    """

    findings: tuple[Finding, ...] = ()
    mask_files: Mapping[str, int] = field(default_factory=dict)
    hashes: tuple[int, int] | None = None

    @property
    def errors(self) -> list[Finding]:
        """Findings that keep the image or one of its objects from being trained on."""
        return [finding for finding in self.findings if finding.severity == "error"]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the cache."""
        return {
            "findings": [vars(finding) for finding in self.findings],
            "mask_files": dict(self.mask_files),
            "hashes": self.hashes,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Verdict:
        """Inverse of `to_json`."""
        hashes = values["hashes"]
        return cls(
            tuple(Finding(**finding) for finding in values["findings"]),
            values["mask_files"],
            None if hashes is None else (int(hashes[0]), int(hashes[1])),
        )
