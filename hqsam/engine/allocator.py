"""Memory of the C library: keep what was freed, instead of returning it to the system and fetching it page by page.

glibc maps every block above 32 MB anew and unmaps it when it is freed, so each large temporary costs a page fault for
every 4 KB. On a CPU that is as much time as the arithmetic of a step. The setting belongs to a whole process: programs
make it, the library never does.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform

import torch

logger = logging.getLogger(__name__)

SWITCH = "HQSAM_MALLOC"
"""Environment variable; "0" leaves the allocator alone."""

# malloc.h of glibc, with the values that mallopt(3) gives a meaning of "never"
_SETTINGS = ((-4, 0), (-1, -1))  # M_MMAP_MAX: map no block by itself; M_TRIM_THRESHOLD: never shrink the heap
_OWN_SETTINGS = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_freed_memory(device: torch.device) -> bool:
    """Let this process keep freed memory for its next large temporaries.

    Does nothing on another device than a CPU, with a C library other than glibc, where ``HQSAM_MALLOC=0``, and where
    the user set the allocator up through the environment. Memory that is allocated already is not touched.

    Args:
        device: where the program computes.

    Returns:
        Whether the setting was made.
    """
    if device.type != "cpu" or os.environ.get(SWITCH) == "0" or platform.libc_ver()[0] != "glibc":
        return False
    if any(name in os.environ for name in _OWN_SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    done = all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in _SETTINGS)
    logger.debug("freed memory is kept by the C library: %s", done)
    return done
