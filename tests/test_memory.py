"""The allocator keeps what was freed."""

import ctypes
import platform
import subprocess
import sys

import pytest

from camexp.memory import keep_freed_memory

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


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert keep_freed_memory() is False
