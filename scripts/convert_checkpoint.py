"""Convert one of TorchRay's checkpoints for `model.architecture=vgg16_caffe` or `resnet50_caffe`.

python scripts/convert_checkpoint.py vgg16_voc-b050e8c3.pth.tar data/weights/voc2007_vgg16.safetensors

`make weights` fetches and converts all four. Exit status: 0 done, 2 a mistake that the message explains.
"""

import argparse
import sys
from pathlib import Path

from camexp.command import exit_status
from camexp.models.convert import convert_torchray, provenance


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the file as TorchRay publishes it (.pth.tar)")
    parser.add_argument("target", type=Path, help="the .safetensors file to write")
    args = parser.parse_args(argv)
    return exit_status(lambda: convert(args.source, args.target))


def convert(source: Path, target: Path) -> int:
    """Convert a file, and print what it has become."""
    convert_torchray(source, target)
    about = provenance(target)
    print(f"{target}: {about['architecture']} from {about['source']} (SHA-256 {about['source_sha256']})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
