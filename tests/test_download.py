"""Fetching from a server on the loopback interface: resuming, checking, mirrors, unpacking, hostile archives."""

import errno
import hashlib
import importlib.util
import io
import json
import socket
import stat
import struct
import tarfile
import threading
import zipfile
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from camexp import files
from camexp.download import bring, disk, extract, http
from camexp.download.archive import UnsafeArchive
from camexp.download.bring import Store
from camexp.download.checksum import Checksum, WrongChecksum, digest
from camexp.download.fetch import Network, fetch
from camexp.download.manifest import MANIFEST, Count, File, load_manifest
from camexp.errors import CamexpError
from camexp.models import convert

QUICK = Network(timeout=5, retries=1, pause=0)
IMPATIENT = Network(timeout=5, retries=0, pause=0)
BODY = bytes(range(256)) * 2000  # 512 000 bytes, several blocks
SHA = Checksum("sha256", hashlib.sha256(BODY).hexdigest())


class Site:
    """What the server offers and how it misbehaves; `log` has (path, Range, If-Range) of every request."""

    def __init__(self, address: str):
        self.address = address
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.validator = ("ETag", '"one"')
        self.cuts: list[int] = []  # after so many bytes of the body the connection is reset, once each
        self.statuses: dict[str, list[int]] = {}  # answered before the file is, once each
        self.log: list[tuple[str, str | None, str | None]] = []

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"


class Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site, name = self.site, self.path.lstrip("/")
        wanted, condition = self.headers["Range"], self.headers["If-Range"]
        site.log.append((name, wanted, condition))
        if site.statuses.get(name):
            return self.send_error(site.statuses[name].pop(0))
        if name not in site.files:
            return self.send_error(404)
        body = site.files[name]
        start = 0
        if wanted and site.ranges and condition in (None, site.validator[1]):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if site.validator[0]:
            self.send_header(*site.validator)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if not site.cuts:
            self.wfile.write(body[start:])
            return None
        self.wfile.write(body[start : start + site.cuts.pop(0)])
        return None

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(monkeypatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {}))
    server.RequestHandlerClass.site = Site(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.RequestHandlerClass.site
    server.shutdown()
    server.server_close()
    thread.join()


def checker(expected: Checksum | None = SHA):
    def check(path: Path) -> Checksum:
        found = digest(path, expected.algorithm if expected else "sha256")
        if expected and not expected.accepts(found):
            raise WrongChecksum(f"expected {expected}, found {found}")
        return found

    return check


def bring_body(site: Site, folder: Path, urls=("a.bin",), known: bool = True, network: Network = QUICK) -> Checksum:
    first, *mirrors = map(site.url, urls)
    file = File("a.bin", first, tuple(mirrors), checksum=SHA if known else None)
    return fetch(file, folder / "a.bin", checker(file.checksum), network)


# one file over the network


def test_fetched_whole_and_nothing_left_over(site, tmp_path):
    site.files["a.bin"] = BODY
    assert bring_body(site, tmp_path) == SHA
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("validator", [("ETag", '"one"'), ("Last-Modified", "Tue, 06 Nov 2007 08:00:00 GMT")])
def test_cut_and_continued_by_the_next_call(site, tmp_path, monkeypatch, known, validator):
    site.files["a.bin"], site.cuts, site.validator = BODY, [200_000], validator
    with monkeypatch.context() as patch:
        # after the cut the server answers 503 once, so the first call gives up
        patch.setattr("camexp.download.fetch.time.sleep", lambda _: site.statuses.update({"a.bin": [503]}))
        with pytest.raises(CamexpError, match=r"503.*\n.*what has come stays"):
            bring_body(site, tmp_path, known=known, network=IMPATIENT)
    assert (tmp_path / "a.bin.part").read_bytes() == BODY[:200_000]
    assert not (tmp_path / "a.bin").exists()
    assert bring_body(site, tmp_path, known=known) == SHA
    assert site.log[-1] == ("a.bin", "bytes=200000-", validator[1])


def test_cuts_within_one_call_are_continued(site, tmp_path, capsys):
    site.files["a.bin"], site.cuts = BODY, [100_000, 100_000, 100_000, 100_000]
    bring_body(site, tmp_path, network=IMPATIENT)  # progress is no idle try
    assert [wanted for _, wanted, _ in site.log] == [None, *(f"bytes={n}00000-" for n in (1, 2, 3, 4))]
    assert "the connection ended after 100000 of 512000 bytes" in capsys.readouterr().out


def test_server_without_ranges_begins_anew(site, tmp_path, capsys):
    site.files["a.bin"], site.cuts, site.ranges = BODY, [100_000], False
    bring_body(site, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert "beginning anew" in capsys.readouterr().out


def test_file_that_changed_between_two_calls_is_not_joined(site, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"old" * 1000)
    http.Origin(site.url("a.bin"), '"old"', len(BODY)).note(tmp_path / "a.bin.part")
    site.files["a.bin"] = BODY
    assert bring_body(site, tmp_path, known=False) == SHA
    assert site.log == [("a.bin", "bytes=3000-", '"old"')]


@pytest.mark.parametrize("validator", [("", ""), ("ETag", 'W/"weak"')])
def test_without_validator_only_a_known_checksum_allows_continuing(site, tmp_path, validator):
    site.files["a.bin"], site.validator = BODY, validator
    for known, wanted in ((True, "bytes=100000-"), (False, None)):
        site.cuts = [100_000]
        assert bring_body(site, tmp_path, known=known) == SHA
        assert site.log[-1] == ("a.bin", wanted, None)


def test_wrong_continuation_is_noticed_and_begun_anew(site, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 1000)
    http.Origin("http://elsewhere/a.bin", '"x"', len(BODY)).note(tmp_path / "a.bin.part")
    site.files["a.bin"] = BODY
    assert bring_body(site, tmp_path) == SHA
    assert [wanted for _, wanted, _ in site.log] == ["bytes=1000-", None]


def test_other_total_size_is_not_continued(site, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY[:1000])
    http.Origin(site.url("a.bin"), '"one"', len(BODY) + 1).note(tmp_path / "a.bin.part")
    site.files["a.bin"] = BODY
    assert bring_body(site, tmp_path) == SHA
    assert [wanted for _, wanted, _ in site.log] == ["bytes=1000-", None]


def test_complete_part_is_only_checked(site, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY)
    http.Origin(site.url("a.bin"), "", len(BODY)).note(tmp_path / "a.bin.part")
    assert bring_body(site, tmp_path) == SHA
    assert site.log == []


def test_range_beyond_the_end_begins_anew(site, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY + b"more")
    http.Origin(site.url("a.bin"), '"one"', None).note(tmp_path / "a.bin.part")
    site.files["a.bin"] = BODY
    assert bring_body(site, tmp_path) == SHA
    assert [wanted for _, wanted, _ in site.log] == ["bytes=512004-", None]


def test_wrong_checksum_keeps_the_bad_file_and_tries_the_mirror(site, tmp_path, capsys):
    site.files |= {"a.bin": b"an error page", "mirror": BODY, "other": BODY}
    assert bring_body(site, tmp_path, ["a.bin", "mirror", "other"]) == SHA
    assert [name for name, _, _ in site.log] == ["a.bin", "mirror"]
    assert f"expected {SHA}, found sha256:" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_wrong_checksum_everywhere(site, tmp_path):
    site.files["a.bin"] = b"an error page"
    with pytest.raises(CamexpError, match=r"expected sha256:.*\n.*--from FILE"):
        bring_body(site, tmp_path)
    assert (tmp_path / "a.bin.bad").read_bytes() == b"an error page"
    assert not (tmp_path / "a.bin").exists()
    assert not (tmp_path / "a.bin.part").exists()


def test_missing_file_is_not_tried_again_but_a_failing_server_is(site, tmp_path, capsys):
    site.files["third"] = BODY
    site.statuses = {"second": [500, 500, 500]}
    bring_body(site, tmp_path, ["first", "second", "third"])
    assert [name for name, _, _ in site.log] == ["first", "second", "second", "third"]
    said = capsys.readouterr().out
    assert "HTTP status 404 Not Found" in said
    assert "HTTP status 500 Internal Server Error; trying again in 0 s" in said


def test_every_address_fails_with_its_reason(site, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}/a.bin"
    file = File("a.bin", site.url("a.bin"), (dead,), checksum=SHA)
    with pytest.raises(CamexpError) as caught:
        fetch(file, tmp_path / "a.bin", checker(), QUICK)
    assert "HTTP status 404" in str(caught.value)
    assert "refused" in str(caught.value)
    assert dead in str(caught.value)


def test_silent_server_times_out(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        file = File("a.bin", f"http://127.0.0.1:{silent.getsockname()[1]}/a.bin", checksum=SHA)
        with pytest.raises(CamexpError, match="timed out"):
            fetch(file, tmp_path / "a.bin", checker(), Network(timeout=0.1, retries=1, pause=0))


def test_full_disk_keeps_what_has_come(site, tmp_path, monkeypatch):
    site.files["a.bin"] = BODY
    plain = Path.open

    class Full(io.FileIO):
        """A file on a disk with room for 150 000 bytes."""

        def write(self, block):
            if self.tell() + len(block) > 150_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(block)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda p, *a, **k: Full(p, *a) if p.suffix == ".part" else plain(p, *a, **k))
        with pytest.raises(disk.DiskFull, match=r"the disk is full: writing .*a\.bin.part failed"):
            bring_body(site, tmp_path)
    size = (tmp_path / "a.bin.part").stat().st_size
    assert 0 < size <= 150_000
    bring_body(site, tmp_path)
    assert site.log[-1][1] == f"bytes={size}-"


def test_size_that_the_server_says_must_fit(site, tmp_path, monkeypatch):
    site.files["a.bin"] = BODY
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(511_999))
    with pytest.raises(disk.DiskFull, match="512 kB are needed and 512 kB are free"):
        bring_body(site, tmp_path)


# archives


def tar_of(path: Path, files: dict[str, bytes], *links: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w") as tar:
        for info in links:
            tar.addfile(info)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def zip_of(path: Path, files: dict[str, bytes], kind: int = stat.S_IFREG) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            info = zipfile.ZipInfo("placeholder")
            info.filename = info.orig_filename = name  # the constructor would make it harmless
            info.external_attr = (kind | 0o644) << 16
            packed.writestr(info, content)
    return path


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


ANY = (Count("files", ("*",), 1),)
SET = File("set.tar", unpack={"set": "."}, unpacked=1000, counts=ANY)


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_unpacks_what_the_layout_names(tmp_path, pack):
    content = {"./set/images/a.jpg": b"a", "set/list.txt": b"l", "elsewhere/b.jpg": b"b", "settings": b"s"}
    archive = pack(tmp_path / "set.tar", content)
    folder = tmp_path / "data"
    assert extract.unpack(archive, SET, folder) == 2
    assert {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} == {"images/a.jpg", "list.txt"}
    assert (folder / "images/a.jpg").read_bytes() == b"a"


NAMES = ["../out", "set/../../out", "/out", "C:/out", "C:out", "..\\out", "set\\..\\..\\out", "set/a\nb"]


@pytest.mark.parametrize(
    ("pack", "name"),
    [*((tar_of, name) for name in NAMES), *((zip_of, name) for name in NAMES), (zip_of, "set/a\x00b")],
)
def test_hostile_names(tmp_path, pack, name):
    archive = pack(tmp_path / "set.tar", {"set/good": b"g", name: b"bad"})
    with pytest.raises(UnsafeArchive, match="nothing was unpacked"):
        extract.unpack(archive, SET, tmp_path / "data" / "set")
    assert list((tmp_path / "data" / "set").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"set.tar", "data"}


@pytest.mark.parametrize(
    ("kind", "target", "said"),
    [
        (tarfile.SYMTYPE, "../../outside", "a symbolic link"),
        (tarfile.SYMTYPE, "good", "a symbolic link"),
        (tarfile.LNKTYPE, "../outside", "a hard link"),
        (tarfile.CHRTYPE, "", "a device"),
        (tarfile.FIFOTYPE, "", "a device"),
    ],
)
def test_links_and_devices_in_tar(tmp_path, kind, target, said):
    (tmp_path / "outside").mkdir()
    archive = tar_of(tmp_path / "set.tar", {"set/link/file": b"bad"}, link("set/link", target, kind))
    with pytest.raises(UnsafeArchive, match=said):
        extract.unpack(archive, SET, tmp_path / "data")
    assert list((tmp_path / "outside").iterdir()) == []


@pytest.mark.parametrize("entry", [*NAMES, link("set/link", "../out", tarfile.SYMTYPE)])
def test_hostile_tar_on_a_python_without_data_filter(tmp_path, monkeypatch, entry):
    monkeypatch.delattr(tarfile, "data_filter")
    hostile = ({entry: b"bad"},) if isinstance(entry, str) else ({}, entry)
    archive = tar_of(tmp_path / "set.tar", *hostile)
    with pytest.raises(UnsafeArchive, match="nothing was unpacked"):
        extract.unpack(archive, SET, tmp_path / "data")


@pytest.mark.parametrize(("kind", "said"), [(stat.S_IFLNK, "a symbolic link"), (stat.S_IFCHR, "a device")])
def test_links_and_devices_in_zip(tmp_path, kind, said):
    archive = zip_of(tmp_path / "set.tar", {"set/link": b"/etc"}, kind)
    with pytest.raises(UnsafeArchive, match=said):
        extract.unpack(archive, SET, tmp_path / "data")


@pytest.mark.parametrize("pack", [tar_of, zip_of])
def test_absurd_size(tmp_path, pack):
    archive = pack(tmp_path / "set.tar", {"set/a": bytes(1500), "other": bytes(501)})
    with pytest.raises(UnsafeArchive, match="would unpack to 2 kB, 2 kB at most"):
        extract.unpack(archive, SET, tmp_path / "data")


def test_zip_that_lies_about_a_size_is_damaged(tmp_path):
    archive = zip_of(tmp_path / "set.tar", {"set/a": bytes(100_000)})
    content = archive.read_bytes().replace(struct.pack("<L", 100_000), struct.pack("<L", 10))
    archive.write_bytes(content)
    with pytest.raises(CamexpError, match="damaged"):
        extract.unpack(archive, SET, tmp_path / "data")
    assert not (tmp_path / "data" / "a").exists()


@pytest.mark.parametrize("content", [b"", b"<html>no such file</html>", None])
def test_no_archive_or_a_damaged_one(tmp_path, content):
    path = tmp_path / "set.tar"
    path.write_bytes(tar_of(path, {"set/a": bytes(900)}).read_bytes()[:800] if content is None else content)
    with pytest.raises(CamexpError, match=r"fetch it again"):
        extract.unpack(path, SET, tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_other_layout_is_named(tmp_path):
    archive = zip_of(tmp_path / "set.tar", {"train_images.zip": b"z", "train.csv": b"t"})
    with pytest.raises(CamexpError, match=r"holds no 'set'; at its top are: train.csv, train_images.zip"):
        extract.unpack(archive, SET, tmp_path / "data")


def test_files_of_the_user_are_not_overwritten(tmp_path):
    archive = tar_of(tmp_path / "set.tar", {"set/same": b"s", "set/mine": b"theirs", "set/new": b"n"})
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "same").write_bytes(b"s")
    (folder / "mine").write_bytes(b"mine")
    with pytest.raises(CamexpError, match=r"1 files in .* differ from those in the archive: mine; nothing was changed"):
        extract.unpack(archive, SET, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["mine", "same"]
    assert (folder / "mine").read_bytes() == b"mine"
    extract.unpack(archive, SET, folder, overwrite=True)
    assert (folder / "mine").read_bytes() == b"theirs"


@pytest.mark.parametrize("function", ["copyfileobj", "move"])
def test_interrupted_unpacking_begins_again(tmp_path, monkeypatch, function):
    archive = tar_of(tmp_path / "set.tar", {f"set/{i}": bytes([i]) for i in range(5)})
    folder = tmp_path / "data"
    real = getattr(extract.shutil, function)
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(extract.shutil, function, interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract.unpack(archive, SET, folder)
    assert not list(folder.glob(".unpacking*"))
    killed = folder / ".unpacking-set.tar" / "rest"  # what a killed process leaves
    killed.parent.mkdir()
    killed.write_bytes(b"rest")
    assert extract.unpack(archive, SET, folder) == 5
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {str(i): bytes([i]) for i in range(5)}


def test_full_disk_while_unpacking(tmp_path, monkeypatch):
    archive = tar_of(tmp_path / "set.tar", {"set/a": b"a"})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(extract.shutil, "copyfileobj", full)
    with pytest.raises(disk.DiskFull, match="the disk is full"):
        extract.unpack(archive, SET, tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


# whole items, through the command line


def load_script():
    path = MANIFEST.parents[1] / "scripts" / "download.py"
    spec = importlib.util.spec_from_file_location("download_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class World:
    """A manifest in a folder, a server, and the command line on both."""

    def __init__(self, site: Site, folder: Path):
        self.site, self.folder, self.data = site, folder, folder / "data"
        self.items: dict[str, dict] = {}
        self.main = load_script().main

    def __call__(self, *arguments: object) -> int:
        path = self.folder / "manifest.yaml"
        path.write_text(yaml.safe_dump(self.items))
        options = ["--manifest", path, "--data-dir", self.data, "--retries", 0, "--timeout", 5]
        return self.main([str(argument) for argument in (*arguments, *options)])

    def add(self, item: str, **file) -> None:
        about = {"title": "A set", "licence": "for tests only", "folder": f"sets/{item}"}
        self.items[item] = about | {"files": [file]}

    def add_archive(self, name: str, images: int = 3, checksum: bool = True, **more) -> Path:
        content = {f"set/{i}.jpg": bytes([i]) * 10 for i in range(images)} | {"set/list.txt": b"0\n1\n2\n"}
        archive = zip_of(self.folder / f"{name}.zip", content)
        self.site.files[archive.name] = archive.read_bytes()
        counts = [
            {"what": "images", "files": ["*.jpg"], "expected": 3},
            {"what": "listed images", "files": ["{}.jpg"], "listed_in": "list.txt", "expected": 3},
        ]
        known = {"checksum": f"md5:{digest(archive, 'md5').digits}"} if checksum else {"checksum": None}
        url = {"url": self.site.url(archive.name)}
        self.add(name, name=archive.name, unpack={"set": "."}, unpacked=100, counts=counts, **known | url | more)
        return archive


@pytest.fixture
def world(site, tmp_path) -> World:
    return World(site, tmp_path)


def test_item_is_fetched_unpacked_stamped_and_counted(world, capsys):
    world.add_archive("voc")
    assert world("voc") == 0
    said = capsys.readouterr().out
    for part in ("for tests only", world.site.url("voc.zip"), "sets/voc", "free", "3 of 3 images", "3 of 3 listed"):
        assert part in said
    assert said.index("for tests only") < said.index("4 files unpacked")
    assert (world.data / "sets/voc/2.jpg").read_bytes() == b"\2" * 10
    assert (world.data / "archives/voc.zip").is_file()
    stamp = json.loads((world.data / "sets/voc/.voc.zip.stamp.json").read_text())
    assert stamp["checksum"] == world.items["voc"]["files"][0]["checksum"]


def test_nothing_is_done_again(world, monkeypatch, capsys):
    world.add_archive("voc")
    assert world("voc", "--delete-archives") == 0
    assert not (world.data / "archives/voc.zip").exists()
    monkeypatch.setattr(bring, "unpack", lambda *_: pytest.fail("unpacked again"))
    assert world("voc") == 0
    assert len(world.site.log) == 1
    assert "nothing to do" in capsys.readouterr().out


def test_kept_archive_is_unpacked_again_when_files_are_gone(world):
    world.add_archive("voc")
    world("voc")
    (world.data / "sets/voc/1.jpg").unlink()
    assert world("voc") == 0
    assert (world.data / "sets/voc/1.jpg").exists()
    assert len(world.site.log) == 1


def test_another_published_archive_is_fetched(world, capsys):
    world.add_archive("voc")
    world("voc", "--delete-archives")
    world.add_archive("voc", images=4)
    assert world("voc") == 0  # one more image, the others the same
    assert (world.data / "sets/voc/3.jpg").exists()
    assert "4 of 3 images; 1 more than published" in capsys.readouterr().out
    assert len(world.site.log) == 2


def test_data_that_the_user_unpacked_are_taken_as_they_are(world):
    archive = world.add_archive("voc")
    extract.unpack(archive, File("voc.zip", unpack={"set": "."}, unpacked=100), world.data / "sets/voc")
    assert world("voc") == 0
    assert world.site.log == []


def test_spoiled_archive_of_ours_is_set_aside(world):
    archive = world.add_archive("voc")
    (world.data / "archives").mkdir(parents=True)
    (world.data / "archives/voc.zip").write_bytes(b"spoiled")
    assert world("voc") == 0
    assert (world.data / "archives/voc.zip").read_bytes() == archive.read_bytes()
    assert (world.data / "archives/voc.zip.old").read_bytes() == b"spoiled"


def test_from_file_fetches_nothing(world, tmp_path):
    archive = world.add_archive("voc").rename(tmp_path / "by hand.zip")
    assert world("voc", "--from", archive, "--delete-archives") == 0
    assert world.site.log == []
    assert archive.exists()  # the user's own file stays
    assert (world.data / "sets/voc/0.jpg").exists()


def test_from_several_files_by_name_and_by_checksum(world, tmp_path):
    for name in ("one", "two"):
        world.add_archive(name, images=3)
    second = world.items.pop("two")["files"][0] | {"unpack": {"set": "two"}, "counts": [
        {"what": "images", "files": ["two/*.jpg"], "expected": 3}
    ]}  # fmt: skip
    other = zip_of(tmp_path / "two.zip", {f"set/{i}.jpg": b"two" for i in range(3)})
    world.items["one"]["files"].append(second | {"checksum": f"sha256:{digest(other).digits[:8]}"})
    assert world("one", "--from", tmp_path / "one.zip", "--from", other.rename(tmp_path / "renamed")) == 0
    assert world.site.log == []
    assert (world.data / "sets/one/two/2.jpg").read_bytes() == b"two"


def test_from_file_that_is_wrong_is_left_alone(world, tmp_path, capsys):
    world.add_archive("voc")
    wrong = tmp_path / "voc.zip"
    wrong.write_bytes(b"half")
    assert world("voc", "--from", wrong) == 2
    said = capsys.readouterr().err
    assert "expected md5:" in said
    assert "found    md5:" in said
    assert wrong.read_bytes() == b"half"
    assert world("voc", "--from", tmp_path / "absent.zip") == 2
    assert "no file" in capsys.readouterr().err


def test_unknown_checksum_is_said_recorded_and_then_enforced(world, tmp_path, capsys):
    archive = world.add_archive("steel", checksum=False)
    assert world("steel") == 0
    said = capsys.readouterr().out
    assert "checksum unknown" in said
    assert f"recorded {digest(archive)}" in said
    assert digest(archive).digits in (world.data / "archives/checksums.yaml").read_text()
    other = zip_of(tmp_path / "other.zip", {"set/0.jpg": b"?"})
    (world.data / "sets/steel/0.jpg").unlink()
    assert world("steel", "--from", other) == 2
    assert "recorded when it was first used" in capsys.readouterr().err


def test_what_is_no_archive_is_not_recorded(world, capsys):
    world.add_archive("steel", checksum=False)
    world.site.files["steel.zip"] = b"<html>please sign in</html>"
    assert world("steel") == 2
    assert "neither a tar nor a zip" in capsys.readouterr().err
    assert not (world.data / "archives/checksums.yaml").exists()


def test_verify_counts_and_names_what_is_missing(world, capsys):
    world.add_archive("voc")
    assert world("voc", "--verify") == 1
    assert "0 of 3 images" in capsys.readouterr().out
    world("voc")
    capsys.readouterr()
    assert world("--verify") == 0
    (world.data / "sets/voc/1.jpg").unlink()
    (world.data / "sets/voc/.hidden.jpg").write_bytes(b"")
    assert world("voc", "--verify") == 1
    said = capsys.readouterr().out
    assert "incomplete 2 of 3 images" in said
    assert "2 of 3 listed images; not there: 1.jpg" in said
    assert len(world.site.log) == 1  # verifying fetches nothing


def test_steps_of_the_user_are_explained(world, capsys):
    archive = world.add_archive("steel", url=None, checksum=False)
    world.items["steel"]["steps"] = "Sign in and accept the rules."
    assert world("steel") == 2
    assert "Sign in and accept the rules." in capsys.readouterr().err
    assert world("steel", "--from", archive) == 0
    assert world("steel") == 0  # complete now


def test_plan_does_not_fit_on_the_disk(world, monkeypatch, capsys):
    world.add_archive("voc", size=10**6)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(10**6))
    assert world("voc") == 2
    assert "1 MB are needed and 1 MB are free" in capsys.readouterr().err
    assert world.site.log == []


def test_dry_run_and_list_fetch_nothing(world, capsys):
    world.add_archive("voc", size=451_020_800)
    assert world("voc", "--dry-run") == 0
    assert world("--list") == 0
    assert capsys.readouterr().out.count("voc.zip  451 MB") == 2
    assert world.site.log == []
    assert not world.data.exists()


def test_interruption_exits_with_130_and_goes_on(world, monkeypatch, capsys):
    world.add_archive("voc")

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bring, "unpack", interrupted)
        assert world("voc") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert world("voc") == 0
    assert len(world.site.log) == 1


def test_one_failing_file_does_not_stop_the_others(world, capsys):
    world.add_archive("voc")
    gone = {"name": "gone.zip", "url": world.site.url("gone.zip"), "unpack": {"set": "."}, "unpacked": 1}
    counts = [{"what": "things", "files": ["gone"], "expected": 1}]
    world.items["voc"]["files"].insert(0, gone | {"counts": counts})
    assert world("voc") == 2
    assert "gone.zip could not be fetched" in capsys.readouterr().err
    assert (world.data / "sets/voc/0.jpg").exists()
    assert world("voc", "--only", "v*") == 0


def test_a_second_process_is_told(world, capsys):
    world.add_archive("voc")
    store = Store(world.data)
    store.archives.mkdir(parents=True)
    item = load_manifest(MANIFEST)["voc2007"]
    with bring._alone(store, item), pytest.raises(CamexpError, match="another process"), bring._alone(store, item):
        pass


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name what to fetch: voc"),
        (["vok"], "there is no 'vok' to fetch; there are: voc"),
        (["voc", "--only", "x"], "--only x: voc has voc.zip"),
        (["voc", "voc2", "--from", "f"], "--from goes with one item"),
    ],
)
def test_mistakes_on_the_command_line(world, capsys, arguments, said):
    world.add_archive("voc")
    world.add_archive("voc2")
    assert world(*arguments) == 2
    assert said in capsys.readouterr().err


# checkpoints


@pytest.fixture
def checkpoint(world, monkeypatch) -> list[tuple[str, str]]:
    """An item with one checkpoint of random bytes; the calls of its converter."""
    name = f"net-{SHA.digits[:8]}.pth.tar"
    world.site.files[name] = BODY
    url = world.site.url(name)
    world.add("nets", name=name, url=url, checksum=f"sha256:{SHA.digits[:8]}", convert="net.safetensors")
    calls: list[tuple[str, str]] = []

    def converted(source: Path, target: Path) -> None:
        calls.append((source.name, target.name))
        target.write_bytes(source.read_bytes()[::-1])

    monkeypatch.setattr(convert, "convert_torchray", converted)
    return calls


def test_checkpoint_is_converted_once(world, checkpoint, capsys):
    assert world("nets") == 0
    assert world("nets") == 0
    name = f"net-{SHA.digits[:8]}.pth.tar"
    assert checkpoint == [(name, "net.safetensors")]
    assert (world.data / "sets/nets" / name).read_bytes() == BODY
    assert (world.data / "sets/nets/net.safetensors").read_bytes() == BODY[::-1]
    assert len(world.site.log) == 1
    assert "ok         net.safetensors" in capsys.readouterr().out


def test_lost_conversion_is_made_again_without_the_network(world, checkpoint):
    world("nets")
    (world.data / "sets/nets/net.safetensors").unlink()
    assert world("nets", "--verify") == 1
    assert world("nets") == 0
    assert len(checkpoint) == 2
    assert len(world.site.log) == 1


def test_checkpoint_fetched_by_hand(world, checkpoint, tmp_path):
    own = tmp_path / "downloaded.tar"
    own.write_bytes(BODY)
    assert world("nets", "--from", own) == 0
    assert own.read_bytes() == BODY
    assert checkpoint == [(f"net-{SHA.digits[:8]}.pth.tar", "net.safetensors")]
    assert world.site.log == []


def test_wrong_checkpoint_is_not_converted(world, checkpoint, capsys):
    world.site.files[next(iter(world.site.files))] = b"other"
    assert world("nets") == 2
    assert "wrong checksum" in capsys.readouterr().err
    assert checkpoint == []


def test_failed_conversion_is_tried_again(world, checkpoint, monkeypatch, capsys):
    def broken(source: Path, target: Path) -> None:
        raise CamexpError("no TorchRay file")

    with monkeypatch.context() as patch:
        patch.setattr(convert, "convert_torchray", broken)
        assert world("nets") == 2
    assert "no TorchRay file" in capsys.readouterr().err
    assert world("nets") == 0
    assert len(checkpoint) == 1


# the manifest itself


def test_manifest_of_the_package():
    items = load_manifest()
    assert set(items) == {"voc2007", "coco2014", "coco2014_train", "severstal", "weights"}
    files = [file for item in items.values() for file in item.files]
    assert len({file.name for file in files}) == len(files)
    for item in items.values():
        assert item.licence
        assert item.folder
        for file in item.files:
            assert file.unpack or file.convert
            assert file.urls or item.steps
            assert all(url.rpartition("/")[2] == file.name for url in file.urls)


def test_manifest_agrees_with_public_tools():
    from torchvision.datasets.voc import DATASET_YEAR_DICT  # noqa: PLC0415  (only this test needs it)

    items = load_manifest()
    known = {entry["filename"]: f"md5:{entry['md5']}" for entry in DATASET_YEAR_DICT.values()}
    assert {f.name: str(f.checksum) for f in items["voc2007"].files}.items() <= known.items()
    for file in items["weights"].files:
        assert file.checksum is not None
        assert file.checksum.algorithm == "sha256"
        assert f"-{file.checksum.digits}.pth.tar" in file.name
    assert all(len(f.checksum.digits) == 64 for f in items["coco2014"].files)
    assert items["severstal"].files[0].checksum is None
    assert items["coco2014_train"].files[0].checksum is None


def test_manifest_fits_the_configs_of_the_data_sets():
    items = load_manifest()
    for name, placed in (("voc2007", "VOCdevkit/VOC2007"), ("coco2014", "coco"), ("severstal", "severstal")):
        assert items[name].folder == placed
    assert {count.expected for item in items.values() for f in item.files for count in f.counts} == {
        4952, 5011, 40504, 82783, 12568, 1
    }  # fmt: skip
    assert items["voc2007"].counts[0].expected == 9963
    assert items["coco2014_train"].folder == items["coco2014"].folder
    recipe = yaml.safe_load((MANIFEST.parent / "recipe" / "coco2014.yaml").read_text())["recipe"]
    assert recipe["train"]["split"] in items["coco2014_train"].files[0].unpack
    assert recipe["test"]["split"] in items["coco2014"].files[1].unpack
    made = {file.convert for file in items["weights"].files}
    assert made == {f"{d}_{m}.safetensors" for d in ("voc2007", "coco2014") for m in ("vgg16", "resnet50")}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"licence": ""}, "a licence and files are needed"),
        ({"folder": "../out"}, "'../out' must be a relative path"),
        ({"colour": "red"}, "colour"),
        ({"files": [{"name": "a", "checksum": "md5:123"}]}, "at least 8 hex digits, not 'md5:123'"),
        ({"files": [{"name": "a", "checksum": "crc:12345678"}]}, "a checksum is md5: or sha256:"),
        ({"files": [{"name": "/a"}]}, "'/a' must be"),
        ({"files": [{"name": "a", "unpack": {"a": "."}}]}, "it needs `unpacked`"),
    ],
)
def test_malformed_manifest(tmp_path, change, said):
    item = {"title": "t", "licence": "l", "folder": "f", "files": [{"name": "a"}]}
    path = tmp_path / "manifest.yaml"
    path.write_text(yaml.safe_dump({"voc": item | change}))
    with pytest.raises(CamexpError, match=f"the item 'voc' is malformed: .*{said}"):
        load_manifest(path)


@pytest.mark.parametrize("text", [None, "a: [", "- a"])
def test_unreadable_manifest(tmp_path, text):
    path = tmp_path / "manifest.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CamexpError, match="manifest"):
        load_manifest(path)
