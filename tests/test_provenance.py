"""What a run says of the machine that made it."""

from pathlib import Path

import torch

from camexp.provenance import environment, processor

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
