"""The C library's allocator, told to keep the memory of large tensors instead of handing it back after every pass."""

import ctypes
import gc

# parameters of mallopt, from malloc.h of the GNU C library
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Let this process reuse freed memory; returns whether the C library understood.

    A forward pass on the CPU allocates and frees tensors of many megabytes. By default the GNU C library returns
    these to the system and asks for fresh pages, which the kernel zeroes, for the next pass: half of the time of a
    narrow VGG16. Numbers do not change. Elsewhere than on the GNU C library nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    # older versions accept at most 32 MiB as threshold
    mapped = mallopt(M_MMAP_THRESHOLD, 1 << 30) or mallopt(M_MMAP_THRESHOLD, 32 << 20)
    return bool(mapped and mallopt(M_TRIM_THRESHOLD, -1))  # never


def hand_back_freed_memory() -> bool:
    """Give the system what is kept, where something else will be needed next; returns whether there was anything."""
    gc.collect()
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False
