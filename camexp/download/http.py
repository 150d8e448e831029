"""One attempt to bring a file from one address, continued where an earlier attempt stopped.

What has come is in `<name>.part`; beside it `<name>.part.json` says from where, so that bytes of two different files
are never joined: a continuation asks for the rest only if the file is still the same (If-Range with a strong ETag or
the date of the last change), or, when the checksum will tell, only if its total size is the same.
"""

import json
import re
from dataclasses import asdict, dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from camexp.download.disk import require_free, writing
from camexp.errors import CamexpError

BLOCK = 1 << 16
PASSING = {408, 425, 429}
"""Statuses below 500 after which another try makes sense."""


class Interrupted(CamexpError):
    """The attempt failed in a way that another try may not."""


class Refused(CamexpError):
    """The address does not have the file; another try would not help."""


@dataclass(frozen=True)
class Origin:
    """Where the bytes of a part file came from. `validator` is "" and `total` None when the server gave none."""

    url: str
    validator: str
    total: int | None

    @classmethod
    def of(cls, part: Path) -> "Origin | None":
        """What is noted beside a part file, or None."""
        try:
            return cls(**json.loads(origin_path(part).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def note(self, part: Path) -> None:
        """Write it beside the part file."""
        origin_path(part).write_text(json.dumps(asdict(self)))


def origin_path(part: Path) -> Path:
    """The file beside a part file that says where it came from."""
    return part.with_name(part.name + ".json")


def discard(part: Path) -> None:
    """Delete a part file and the note beside it."""
    part.unlink(missing_ok=True)
    origin_path(part).unlink(missing_ok=True)


def size_of(part: Path) -> int:
    """Bytes that have come so far."""
    return part.stat().st_size if part.is_file() else 0


def download(url: str, part: Path, checked: bool, timeout: float) -> bool:
    """Bring `part` to its full length from `url`; True when bytes of an earlier attempt were kept.

    Parameters
    ----------
    checked: the file's checksum is known, so a wrong continuation will be noticed.
    timeout: seconds without an answer or a byte.

    Raises
    ------
    Interrupted: when another try may help.
    Refused: when it will not.
    DiskFull, CamexpError: when the part file cannot be written.
    """
    origin, offset = Origin.of(part), size_of(part)
    if checked and origin and origin.total == offset > 0:
        return True  # only the checksum was still to be compared
    headers = {"User-Agent": "camexp", "Accept-Encoding": "identity"} | _continuation(origin, offset, url, checked)
    try:
        with urlopen(Request(url, headers=headers), timeout=timeout) as response:
            kept = response.status == 206
            total = _total(response.headers, kept, offset, origin, part)
            if offset and not kept:
                print(
                    f"{part.stem}: cannot be continued (the server sends it whole, or it has changed); beginning anew"
                )
            require_free((total or 0) - offset, part)
            with writing(part):
                Origin(url, _validator(response.headers), total).note(part)
            _copy(response, part, kept, total)
            return kept
    except HTTPError as error:
        raise _explained(error, part) from error
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise Interrupted(f"{reason or type(error).__name__}") from error


def _continuation(origin: Origin | None, offset: int, url: str, checked: bool) -> dict[str, str]:
    """The headers that ask for the bytes from `offset` on; none when it must begin anew."""
    if origin is None or offset == 0:
        return {}
    if origin.url == url and origin.validator:
        return {"Range": f"bytes={offset}-", "If-Range": origin.validator}
    return {"Range": f"bytes={offset}-"} if checked and origin.total else {}


def _validator(headers: HTTPMessage) -> str:
    """A strong ETag or the date of the last change; weak ETags may not stand in If-Range."""
    etag = headers.get("ETag", "")
    return etag if etag.startswith('"') else headers.get("Last-Modified", "")


def _total(headers: HTTPMessage, kept: bool, offset: int, origin: Origin | None, part: Path) -> int | None:
    """Size of the whole file, if the server says it; a range that does not fit discards the part file."""
    if not kept:
        length = headers.get("Content-Length")
        return int(length) if length else None
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
    total = int(found[2]) if found and found[2] != "*" else None
    if found is None or int(found[1]) != offset or (origin and origin.total and total != origin.total):
        discard(part)
        raise Interrupted("the server's bytes do not continue those that are here; beginning anew")
    return total


def _copy(response: IO[bytes], part: Path, kept: bool, total: int | None) -> None:
    """Append the body to the part file, or begin the part file with it."""
    done = size_of(part) if kept else 0
    with writing(part):
        file = part.open("ab" if kept else "wb")
    bar = tqdm(total=total, initial=done, desc=part.stem, unit="B", unit_scale=True, dynamic_ncols=True)
    with file, bar:
        while block := response.read(BLOCK):
            with writing(part):
                file.write(block)
                file.flush()
            bar.update(len(block))
            done += len(block)
    if total is not None and done != total:
        raise Interrupted(f"the connection ended after {done} of {total} bytes")


def _explained(error: HTTPError, part: Path) -> CamexpError:
    """What an error status means for the next try."""
    error.close()
    if error.code == 416:
        discard(part)
        return Interrupted("the server has no bytes after those that are here; beginning anew")
    passing = error.code in PASSING or error.code >= 500
    return (Interrupted if passing else Refused)(f"HTTP status {error.code} {error.reason}")
