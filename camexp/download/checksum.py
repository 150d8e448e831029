"""Checksums: published ones, beginnings of them, and those recorded when a file without one was first used."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf
from tqdm import tqdm

from camexp.errors import CamexpError
from camexp.files import read_yaml, write_atomically

DIGITS = {"md5": 32, "sha256": 64}
BLOCK = 1 << 20


class WrongChecksum(CamexpError):
    """A file is not the one that was published."""


@dataclass(frozen=True)
class Checksum:
    """`digits` in hex of a digest, or its beginning (at least eight digits)."""

    algorithm: str
    digits: str

    @classmethod
    def parse(cls, text: str) -> "Checksum":
        """From "md5:..." or "sha256:..."; raises `CamexpError` for anything else."""
        algorithm, _, digits = text.strip().lower().partition(":")
        if not (8 <= len(digits) <= DIGITS.get(algorithm, 0) and set(digits) <= set("0123456789abcdef")):
            raise CamexpError(f"a checksum is md5: or sha256: and at least 8 hex digits, not {text!r}")
        return cls(algorithm, digits)

    def accepts(self, found: "Checksum") -> bool:
        """True when `found`, a whole digest, begins with this one."""
        return found.algorithm == self.algorithm and found.digits.startswith(self.digits)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digits}"


def digest(path: Path, algorithm: str = "sha256") -> Checksum:
    """The checksum of a file, with a progress bar for large ones."""
    summed = hashlib.new(algorithm)
    size = path.stat().st_size
    bar = tqdm(total=size, desc=f"checking {path.name}", unit="B", unit_scale=True, leave=False, disable=size < 1 << 27)
    with path.open("rb") as file, bar:
        while block := file.read(BLOCK):
            summed.update(block)
            bar.update(len(block))
    return Checksum(algorithm, summed.hexdigest())


class Recorded:
    """Checksums of files that have no published one, as YAML {name: checksum}."""

    def __init__(self, path: Path):
        self.path = path

    def _read(self) -> dict[str, str]:
        return read_yaml(self.path) if self.path.is_file() else {}

    def get(self, name: str) -> Checksum | None:
        """What was recorded for a file's name."""
        text = self._read().get(name)
        return Checksum.parse(text) if text else None

    def add(self, name: str, checksum: Checksum) -> None:
        """Record a file's checksum; the YAML file is replaced in one step."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, OmegaConf.to_yaml(OmegaConf.create(self._read() | {name: str(checksum)})))


def verify(path: Path, name: str, published: Checksum | None, recorded: Recorded) -> Checksum:
    """The checksum of `path`, after comparison with the published or else the recorded one of the file `name`.

    Raises
    ------
    WrongChecksum: with what was expected and found; a file of which nothing is known passes.
    """
    expected = published or recorded.get(name)
    found = digest(path, expected.algorithm if expected else "sha256")
    if expected is None or expected.accepts(found):
        return found
    source = "published" if published else f"recorded when it was first used; delete its line in {recorded.path}"
    note = "" if published else " if the publisher has replaced the file"
    raise WrongChecksum(
        f"wrong checksum of {path.absolute()}\n  expected {expected} ({source}{note})\n  found    {found}"
    )
