"""Timing a call that may be too long to wait for: it is ended after a while, and the rest extrapolated.

Perturbation methods are uniform: after what happens before the first mask, every row costs the same. So the rate of
the passes that were seen and their number in the whole call give its time.
"""

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field

import torch

from camexp.explain import clock

MEBIBYTE = 1 << 20


class Enough(BaseException):
    """Ends a call; not an Exception, so that nothing in it takes it for an error."""


@dataclass(frozen=True)
class Course:
    """The passes of a call.

    Attributes
    ----------
    rows: images through the network in one repetition; 0 for a call that is never ended early.
    before: those of them that come before the uniform part.
    repeats: how often the call does all this, one after the other.
    least: rows of the uniform part after which it repeats itself; it is not left before.
    """

    rows: float = 0
    before: float = 0
    repeats: int = 1
    least: float = 1


@dataclass
class Watch:
    """Told of the rows of every pass as it begins; raises `Enough` when the time is over.

    The uniform part is timed from its first pass on, so that at least one pass of it is seen.
    """

    course: Course
    device: torch.device
    limit: float
    started: float = 0.0
    rows: float = 0
    begun: tuple[float, float] | None = None  # rows and seconds when the uniform part began
    ended: tuple[float, float] | None = None

    def __call__(self, rows: int) -> None:
        if self.course.rows:
            if self.begun is None:
                if self.rows >= self.course.before:
                    self.begun = self.rows, clock(self.device) - self.started
            elif self.rows - self.begun[0] >= self.course.least and time.perf_counter() - self.started >= self.limit:
                self.ended = self.rows, clock(self.device) - self.started
                raise Enough
        self.rows += rows

    def seconds(self) -> float:
        """Of the whole call, from the part that was seen."""
        assert self.begun is not None
        assert self.ended is not None
        total = self.course.rows * self.course.repeats
        if self.ended[0] >= self.course.rows:  # whole repetitions were seen
            return self.ended[1] * total / self.ended[0]
        rate = (self.ended[1] - self.begun[1]) / (self.ended[0] - self.begun[0])
        return self.course.repeats * (self.begun[1] + rate * (self.course.rows - self.begun[0]))


@dataclass(frozen=True)
class Trial:
    """Seconds of one call, and whether they are extrapolated."""

    seconds: float
    extrapolated: bool


@dataclass(frozen=True)
class Contender:
    """A way to make maps: camexp's or a library's.

    Attributes
    ----------
    call: makes the maps.
    listening: while the context lasts, a watch is told of every pass.
    """

    name: str
    call: Callable[[], object]
    listening: Callable[[Callable[[int], None]], AbstractContextManager[None]]
    course: Course = field(default=Course())


def timed(contender: Contender, device: torch.device, limit: float) -> Trial:
    """One call, ended after `limit` seconds if its course allows it."""
    watch = Watch(contender.course, device, limit)
    with contender.listening(watch):
        watch.started = clock(device)
        try:
            contender.call()
        except Enough:
            return Trial(watch.seconds(), True)
        return Trial(clock(device) - watch.started, False)


def rehearse(contender: Contender, device: torch.device, limit: float = 0.0) -> float:
    """A call that is not timed, so that nothing (libraries, memory) is asked for the first time later.

    Parameters
    ----------
    limit: as of `timed`; by default it is as little of the call as would be timed.

    Returns
    -------
    Peak memory in MiB beyond what was there before; NaN where it cannot be known.
    """
    with PeakMemory(device) as memory, contender.listening(Watch(contender.course, device, limit)), suppress(Enough):
        contender.call()
    return memory.peak()


# ---------------------------------------------------------------------------------------------- memory


MALLINFO2 = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class _Mallinfo2(ctypes.Structure):
    """`struct mallinfo2` of the GNU C library."""

    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO2]


def allocated() -> float | None:
    """Bytes that this process has allocated with malloc and not freed; None without the GNU C library >= 2.33.

    Not the resident set: what was freed stays there for the next pass (`camexp.memory`).
    """
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    mallinfo2.restype = _Mallinfo2
    info = mallinfo2()
    return float(info.uordblks + info.hblkhd)


class PeakMemory:
    """Most memory in use while the context lasts, beyond what was in use when it began.

    On a GPU the allocator's own record; on the CPU a thread looks fifty times a second, so that what is freed soon
    may escape it; calls take 2 to 7 % longer meanwhile (two cores), because malloc waits while it looks.
    """

    interval = 0.02

    def __init__(self, device: torch.device):
        self.device = device
        self._before: float | None = None
        self._peak = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = float(torch.cuda.memory_allocated(self.device))
            return self
        self._before = allocated()
        if self._before is not None:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _look(self) -> None:
        while True:
            self._peak = max(self._peak, allocated() or 0.0)
            if self._stop.wait(self.interval):
                return

    def peak(self) -> float:
        """MiB; NaN where it cannot be known."""
        if self._before is None:
            return float("nan")
        on_gpu = self.device.type == "cuda"
        peak = float(torch.cuda.max_memory_allocated(self.device)) if on_gpu else self._peak
        return max(0.0, peak - self._before) / MEBIBYTE


@contextmanager
def rows_of(network: torch.nn.Module, tell: Callable[[int], None]) -> Iterator[None]:
    """Tell of the rows of every pass of a network while the context lasts."""

    def before(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        tell(len(args[0]))

    handle = network.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()
