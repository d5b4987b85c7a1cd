"""What a CPU process does with the memory of its temporaries."""

from __future__ import annotations

import functools

import torch

_BLOCK = 31 * 2**20


@functools.cache
def let_heap_keep() -> None:
    """Let glibc keep freed memory of up to 62 MB instead of handing it back after each prompt; once in a process.

    It hands back what is free at the end of the heap beyond twice the largest block that was mapped and freed, if that
    had less than 32 MB, and every page that is needed again costs a fault: 20 MB a prompt were counted without this.
    Programs that are ours alone go further (`hqsam.engine.allocator`). The block is not written to, so that it takes no
    memory itself; other allocators do not mind.
    """
    torch.empty(_BLOCK, dtype=torch.uint8, device="cpu")
