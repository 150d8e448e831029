"""The allocator keeps what was freed."""

import ctypes
import platform
import resource
import subprocess
import sys

import pytest

from camexp.memory import hand_back_freed_memory, keep_freed_memory

FAULTS = """
import resource, numpy
from camexp.memory import keep_freed_memory
if {keep}: keep_freed_memory()
def work(): return sum(numpy.ones(6 << 20).sum() for _ in range(8))  # 48 MiB each
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library has mallopt")
def test_freed_memory_is_used_again() -> None:
    def faults(keep: bool) -> int:
        code = FAULTS.format(keep=keep)
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    assert faults(keep=True) < faults(keep=False) / 2


HANDED_BACK = """
import numpy
from camexp.memory import hand_back_freed_memory, keep_freed_memory
def resident(): return int(open("/proc/self/statm").read().split()[1])
keep_freed_memory()
arrays = [numpy.ones(1 << 20) for _ in range(16)]  # 8 MiB each
last = numpy.ones(1 << 20)  # what is freed below it cannot simply be cut off
del arrays
kept = resident()
hand_back_freed_memory()
print(kept - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library has malloc_trim")
def test_freed_memory_is_handed_back_when_asked() -> None:
    done = subprocess.run([sys.executable, "-c", HANDED_BACK], capture_output=True, text=True, check=True)
    assert int(done.stdout) * resource.getpagesize() > 100 << 20


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False
    assert hand_back_freed_memory() is False
