"""Generated scenes with exact masks: `generate_scene` from a seed alone, `paste_cutout` from real photographs."""

from __future__ import annotations

from hqsam.data.synthetic.cutout import paste_cutout
from hqsam.data.synthetic.pack import write_scenes
from hqsam.data.synthetic.scene import HELD_OUT_KINDS, OBJECT_KINDS, Scene, generate_scene

__all__ = ["HELD_OUT_KINDS", "OBJECT_KINDS", "Scene", "generate_scene", "paste_cutout", "write_scenes"]
