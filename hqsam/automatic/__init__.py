"""Automatic generation: masks and boundaries of everything in an image, without prompts."""

from __future__ import annotations

from hqsam.automatic.edges import SamEdgeDetector
from hqsam.automatic.generator import SamAutomaticMaskGenerator
from hqsam.automatic.presets import Preset
from hqsam.automatic.records import MaskRecord, OutputMode
from hqsam.automatic.search import Progress

__all__ = ["MaskRecord", "OutputMode", "Preset", "Progress", "SamAutomaticMaskGenerator", "SamEdgeDetector"]
