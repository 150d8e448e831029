"""Draw images of a data set with their ground truth, as photographs and as fed to the network, and explanation maps.

  python scripts/show.py dataset=voc2007 index=3
  python scripts/show.py dataset=coco2014 image_id=[139,285] output=two.png
  python scripts/show.py dataset=minivoc index=[0,1,2] model=resnet50 methods=[gradcam,igcam,rise:masks=500]

Options are those of camexp.run (dataset=, model=, model.checkpoint=, protocol.<detail>=, limit=, ...) and:

  index=N or [N,M]       positions in the data set, from 0 (default: 0)
  image_id=ID or [A,B]   the same by name
  methods=A or [A,B]     explain every pair: one row per pair, one column per method. Parameters follow the name:
                         sise:mu=0.3, or as in configs/experiment/ {method: sise, overrides: {mu: 0.3}}.
                         "all" is every method that the network allows; other entries replace those of the same name
  output=FILE            the picture (default: results/show/<dataset>-<index>.png)
  height=224 across=8    pixels of one picture; pictures side by side
  colours=inferno        matplotlib's colour map for the maps
  --config-dir configs   a folder with configs of your own, as of camexp.run

Without methods no network is needed. Exit status: 0 done, 1 something could not be shown and is named, 2 a mistake
that the message explains, 130 interrupted.
"""

import argparse
import difflib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from camexp import config
from camexp.command import exit_status
from camexp.config import compose_config
from camexp.datasets.base import Dataset
from camexp.errors import CamexpError
from camexp.maps import write_image
from camexp.methods import FAMILIES
from camexp.pictures import COLOURS, SheetRow, sheet
from camexp.places import CONFIGS
from camexp.show import MapMaker, Shown, ShownMaps, ground_truth_row, map_rows, maps_of_all, show_all

OWN_OPTIONS = ("index", "image_id", "methods", "output", "height", "across", "colours")
FORMATS = (".png", ".jpg", ".jpeg", ".webp")

# ------------------------------------------------------------------------------------------------- options


def split_options(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """This script's options by name, and the overrides of the config."""
    parts = [argument.partition("=") for argument in arguments]
    own = {name: value for name, equals, value in parts if equals and name in OWN_OPTIONS}
    return own, ["".join(part) for part in parts if part[0] not in own]


def items(value: str) -> list[Any]:
    """The items of "[a,b]" or "a,b", as texts: the image id 000012 keeps its zeros."""
    if not value.startswith("["):
        return value.split(",")
    try:
        content: list[Any] = yaml.load(value, yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise CamexpError(f"{value} is not a list: {' '.join(str(error).split())}") from error
    return content


def whole(own: dict[str, str], name: str, default: int, least: int) -> int:
    """A whole number that an option gives."""
    value = own.get(name, str(default))
    if not value.isdecimal() or int(value) < least:
        raise CamexpError(f"{name} must be a whole number from {least} on, not {value!r}")
    return int(value)


def chosen_indices(dataset: Dataset, own: dict[str, str]) -> list[int]:
    """The images that `index` and `image_id` name; the first one when neither is given."""
    if not own.keys() & {"index", "image_id"}:
        return [0]
    indices = [index_of(dataset, str(item)) for item in items(own["index"])] if "index" in own else []
    name = own.get("image_id", "[]")
    names = items(name) if name.startswith("[") else [name]  # a name may hold commas
    return indices + [index_named(dataset, str(item)) for item in names]


def index_of(dataset: Dataset, text: str) -> int:
    if not text.strip().isdecimal() or int(text) >= len(dataset):
        raise CamexpError(f"index={text}: the data set has {len(dataset)} images, index 0 to {len(dataset) - 1}")
    return int(text)


def index_named(dataset: Dataset, image_id: str) -> int:
    if image_id in dataset.image_ids:
        return dataset.image_ids.index(image_id)
    nearest = difflib.get_close_matches(image_id, dataset.image_ids, n=5, cutoff=0)
    raise CamexpError(f"no image {image_id!r} among the {len(dataset)}; the nearest names: {', '.join(nearest)}")


@dataclass(frozen=True)
class Choice:
    """A method to show: the name of its config, and parameters other than the default ones."""

    name: str
    parameters: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.parameters.items())])

    def overrides(self) -> list[str]:
        return [f"method={self.name}", *(f"method.{name}={value}" for name, value in self.parameters.items())]


def chosen_methods(own: dict[str, str], overrides: list[str]) -> list[Choice]:
    """The methods that `methods=` names, or without it the one that `method=` does.

    Raises
    ------
    CamexpError: for a name that is no file of configs/method, or what is no parameter.
    """
    single = [override.removeprefix("method=") for override in overrides if override.startswith("method=")]
    value = own.get("methods") or ",".join(single[-1:])
    if not value:
        return []
    given = [choice(item) for item in items(value)]
    named = {method.name for method in given}
    others = [Choice(name) for names in FAMILIES.values() for name in names if name not in named]
    methods = [m for method in given for m in (others if method.name == "all" else [method])]
    folders = [CONFIGS, Path(own.get("config_dir", CONFIGS))]
    known = sorted({path.stem for folder in folders for path in (folder / "method").glob("*.yaml")})
    for method in methods:
        if method.name not in known:
            raise CamexpError(f"no method {method.name!r}; there are all, {', '.join(known)}")
    return methods


def choice(item: Any) -> Choice:
    """A method written as sise:mu=0.3, or as {method: sise, overrides: {mu: 0.3}}."""
    match item:
        case {"method": str(name), "overrides": dict(overrides), **rest} if not rest:
            return Choice(name, {parameter: text_of(value) for parameter, value in overrides.items()})
        case {"method": str(name), **rest} if not rest:
            return Choice(name)
        case str() if all(part.partition("=")[2] for part in item.split(":")[1:]):
            name, *parts = item.strip().split(":")
            return Choice(name, dict(part.split("=", 1) for part in parts))
    raise CamexpError(f"methods: {item} is neither name:parameter=value nor {{method: name, overrides: {{...}}}}")


def text_of(value: Any) -> str:
    """A parameter as an override of Hydra writes it."""
    return f"[{','.join(map(text_of, value))}]" if isinstance(value, list) else str(value)


def output_path(own: dict[str, str], cfg: DictConfig, indices: list[int]) -> Path:
    numbers = "-".join(map(str, indices[:8])) + "-more" * (len(indices) > 8)
    path = Path(own.get("output") or Path(cfg.results_dir) / "show" / f"{cfg.dataset.name}-{numbers}.png")
    if path.suffix.lower() not in FORMATS:
        raise CamexpError(f"output={path}: the name must end in {', '.join(FORMATS)}")
    return path


# --------------------------------------------------------------------------------------------------- entry


def draw(own: dict[str, str], overrides: list[str]) -> int:
    """Do what the options say; the exit status."""
    methods = chosen_methods(own, overrides)
    height, across = whole(own, "height", 224, 16), whole(own, "across", 8, 1)
    cfg = compose_config(overrides)
    dataset = config.make_dataset(cfg)
    indices = chosen_indices(dataset, own)
    output = output_path(own, cfg, indices)
    images, problems = show_all(dataset, indices, config.make_preprocess(cfg))
    rows, columns = [ground_truth_row(shown) for shown in images], []
    if methods and images:
        made = {m.title: config.make_method(compose_config([*overrides, *m.overrides()])) for m in methods}
        classifier, _ = config.make_classifier(cfg, len(dataset.classes))
        maker = MapMaker(classifier, config.make_metrics(cfg)["ebpg"])
        maps, skipped = maps_of_all(maker, made, images)
        rows = rows_with_maps(maker, images, maps, own.get("colours", COLOURS))
        columns, problems = ["photograph", "as fed", *maps], problems + skipped
    else:
        for shown in images:
            tell(shown)
    for problem in problems:
        print(problem, file=sys.stderr)
    if rows:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_image(output, sheet(rows, columns, height, across))
        print(output)
    return int(bool(problems))


def rows_with_maps(
    maker: MapMaker, images: list[Shown], maps: dict[str, list[ShownMaps]], colours: str
) -> list[SheetRow]:
    """The rows of all pairs; what they show is printed too."""
    rows = []
    for number, shown in enumerate(images):
        of_image = {title: several[number] for title, several in maps.items()}
        confidence = maker.confidence(shown)
        tell(shown, confidence, of_image)
        rows += list(map_rows(shown, confidence, list(of_image.values()), colours)) or [ground_truth_row(shown)]
    return rows


def tell(shown: Shown, confidence: list[str] | None = None, maps: dict[str, ShownMaps] | None = None) -> None:
    """Print what the picture shows."""
    print(f"{shown.title}: {shown.size()}")
    for pair, name in enumerate(shown.names):
        said = f", {confidence[pair]}" if confidence else ""
        print(f"  {name}: {shown.share(pair)} of the fed image{said}")
        for title, of_method in (maps or {}).items():
            print(f"    {title}: {of_method.caption(pair)}")
    if not shown.names:
        print("  no pairs to explain")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="*", metavar="option=value")
    parser.add_argument("--config-dir", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args(argv)
    own, overrides = split_options(args.options)
    if args.config_dir is not None:
        own["config_dir"] = str(args.config_dir)
        overrides.append(f"hydra.searchpath=[file://{args.config_dir.absolute()}]")
    return exit_status(lambda: draw(own, overrides))


if __name__ == "__main__":
    sys.exit(main())
