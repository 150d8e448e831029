"""What a run says of the machine that made it."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from camexp.provenance import commit, environment, processor

INSTRUCTIONS = torch.backends.cpu.get_cpu_capability()


def test_processor_is_named_as_linux_names_it(tmp_path: Path) -> None:
    described = tmp_path / "cpuinfo"
    described.write_text(
        "processor\t: 0\nmodel name\t: Fast CPU: 3 GHz\n\nprocessor\t: 1\nmodel name\t: Fast CPU: 3 GHz\n"
    )
    assert processor(described) == f"Fast CPU: 3 GHz ({INSTRUCTIONS})"


def test_processor_without_a_name_is_the_architecture(tmp_path: Path) -> None:
    described = tmp_path / "cpuinfo"
    described.write_text("processor\t: 0\nmodel name\t:\n")  # as on some virtual machines
    names = {processor(described), processor(tmp_path / "missing")}
    assert len(names) == 1
    (name,) = names
    assert name.removesuffix(f" ({INSTRUCTIONS})") not in ("", name)


def test_environment_names_the_processor_and_its_threads() -> None:
    found = environment(torch.device("cpu"))
    assert found["device"] == processor()
    assert (found["device_type"], found["threads"]) == ("cpu", torch.get_num_threads())


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_tells_of_changed_code_and_configs_alone(tmp_path: Path) -> None:
    def git(*asked: str) -> str:
        who = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.com", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *who, *asked]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    files = [tmp_path / folder / "file" for folder in ("code", "configs", "docs")]
    for file in files:
        file.parent.mkdir()
        file.write_text("before")
    code, configs = files[0].parent, files[1].parent
    assert commit(code, configs) is None
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message=all")
    head = git("rev-parse", "HEAD")
    (code / "untracked").touch()
    assert commit(code, configs) == head
    for file, changes in zip(files, ("+changes", "+changes", ""), strict=True):
        file.write_text("after")
        assert commit(code, configs) == head + changes
        file.write_text("before")
    assert commit(code, code / "configs") is None  # installed
