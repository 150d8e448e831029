"""A file from the first of its addresses that gives the right one."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from camexp.download.checksum import Checksum, WrongChecksum
from camexp.download.http import Interrupted, Refused, discard, download, origin_path, size_of
from camexp.download.manifest import File
from camexp.errors import CamexpError

LONGEST_PAUSE = 60.0


@dataclass(frozen=True)
class Network:
    """How patient to be: seconds without an answer, tries in a row without a new byte, first pause (it doubles)."""

    timeout: float = 30.0
    retries: int = 4
    pause: float = 1.0


def fetch(file: File, destination: Path, check: Callable[[Path], Checksum], network: Network) -> Checksum:
    """Bring `file` to `destination`, which appears complete and checked or not at all.

    Parameters
    ----------
    check: returns a file's checksum, or raises `WrongChecksum`.

    Returns
    -------
    The file's checksum.

    Raises
    ------
    CamexpError: with the reason for each address when none gave the file; what has come stays as `.part`.
    """
    with_suffix = destination.with_name
    part, bad = with_suffix(destination.name + ".part"), with_suffix(destination.name + ".bad")
    reasons = []
    for url in file.urls:
        print(f"{file.name}: from {url}", flush=True)
        try:
            found = _from_address(url, part, bad, file.checksum is not None, check, network)
        except (Interrupted, Refused, WrongChecksum) as error:
            print(f"{file.name}: {error}", flush=True)
            reasons.append(f"  {url}: {str(error).splitlines()[0]}")
            continue
        os.replace(part, destination)
        for left in (origin_path(part), bad):
            left.unlink(missing_ok=True)
        return found
    raise CamexpError(
        f"{file.name} could not be fetched:\n" + "\n".join(reasons) + "\nTry again later (what has come stays), "
        "or fetch it by hand and pass --from FILE"
    )


def _from_address(
    url: str, part: Path, bad: Path, checked: bool, check: Callable[[Path], Checksum], network: Network
) -> Checksum:
    """The checksum of the part file after it has come from `url`; a wrong file is kept as `bad`."""
    while True:
        continued = _persist(url, part, checked, network)
        try:
            return check(part)
        except WrongChecksum as error:
            os.replace(part, bad)
            discard(part)
            if not continued:
                raise WrongChecksum(f"{error}\n  the wrong file is kept as {bad}") from None
            print(f"{part.stem}: wrong checksum after a continuation; once more from the beginning", flush=True)


def _persist(url: str, part: Path, checked: bool, network: Network) -> bool:
    """`download` until it succeeds, or until `network.retries` tries in a row have brought nothing new."""
    most, idle = size_of(part), 0
    while True:
        try:
            return download(url, part, checked, network.timeout)
        except Interrupted as error:
            idle = 0 if size_of(part) > most else idle + 1
            most = max(most, size_of(part))
            if idle > network.retries:
                raise Interrupted(f"{error} (given up after {idle} tries)") from error
            pause = min(network.pause * 2 ** max(idle - 1, 0), LONGEST_PAUSE)
            print(f"{part.stem}: {error}; trying again in {pause:g} s", flush=True)
            time.sleep(pause)
