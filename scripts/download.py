"""Fetch the papers' data sets and checkpoints, check and unpack them. Nothing is fetched unless this script is called.

    python scripts/download.py voc2007                                  # or another of those that --list shows
    python scripts/download.py voc2007 --from VOCtest_06-Nov-2007.tar   # an archive fetched by hand
    python scripts/download.py voc2007 --verify                         # count what is there
    python scripts/download.py --list

What is interrupted goes on when the same command is given again. Exit status: 0 done, 1 what is there is incomplete,
2 a mistake or an obstacle that the message explains, 130 interrupted. The manifest is configs/download.yaml.
"""

import argparse
import sys
from pathlib import Path

from camexp.command import exit_status
from camexp.download.bring import Store, assign, bring, only
from camexp.download.fetch import Network
from camexp.download.manifest import MANIFEST, Item, load_manifest
from camexp.download.tell import print_list, print_plan, print_verified
from camexp.errors import CamexpError


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_status(lambda: run(args), "interrupted: what has come stays, and the same command goes on from there")


def run(args: argparse.Namespace) -> int:
    """Do what the command line asks; the exit status."""
    manifest = load_manifest(args.manifest)
    store = Store(args.data_dir)
    items = [only(item, args.only) for item in chosen(manifest, args.items)]
    if args.list:
        print_list(store, items or manifest.values())
        return 0
    if args.verify:
        complete = [print_verified(store, item) for item in items or manifest.values()]
        return int(not all(complete))
    if not items:
        raise CamexpError(f"name what to fetch: {', '.join(manifest)} (--list shows them)")
    if args.given and len(items) > 1:
        raise CamexpError("--from goes with one item")
    return max(handle(store, item, args) for item in items)


def chosen(manifest: dict[str, Item], names: list[str]) -> list[Item]:
    """The items by name, each once; raises `CamexpError` for a name that is not in the manifest."""
    for name in names:
        if name not in manifest:
            raise CamexpError(f"there is no {name!r} to fetch; there are: {', '.join(manifest)}")
    return [manifest[name] for name in dict.fromkeys(names)]


def handle(store: Store, item: Item, args: argparse.Namespace) -> int:
    """Plan, bring and count one item; the exit status."""
    given = assign(item, args.given)
    print_plan(store, item, given)
    if args.dry_run:
        return 0
    network = Network(timeout=args.timeout, retries=args.retries)
    bring(store, item, given, network, args.overwrite, args.delete_archives)
    return int(not print_verified(store, only(item, list(given))))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("items", nargs="*", metavar="ITEM", help="voc2007, coco2014, coco2014_train, severstal, weights")
    made.add_argument("--list", action="store_true", help="show what there is, with licence and state")
    made.add_argument("--verify", action="store_true", help="count files, say what is missing; 1 when incomplete")
    made.add_argument(
        "--from", dest="given", action="append", type=Path, default=[], metavar="FILE",
        help="use this file, fetch nothing (may be repeated)",
    )  # fmt: skip
    made.add_argument("--only", action="append", default=[], metavar="NAME", help="only these files (may have *)")
    made.add_argument("--dry-run", action="store_true", help="show the plan, fetch nothing")
    made.add_argument("--data-dir", type=Path, default=Path("data"), help="where everything goes (data)")
    made.add_argument("--delete-archives", action="store_true", help="delete each archive when it is unpacked")
    made.add_argument("--overwrite", action="store_true", help="replace files there that differ from the archive's")
    made.add_argument("--retries", type=int, default=4, help="tries in a row that bring nothing, per address (4)")
    made.add_argument("--timeout", type=float, default=30.0, help="seconds to wait for an answer (30)")
    made.add_argument("--manifest", type=Path, default=MANIFEST, help="what can be fetched (configs/download.yaml)")
    return made


if __name__ == "__main__":
    sys.exit(main())
