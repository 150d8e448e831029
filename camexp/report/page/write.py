"""The page: everything that was measured in one file that loads nothing."""

import base64
import hashlib
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

import camexp
from camexp.experiment import Experiment, label_of
from camexp.files import make_folder, write_atomically
from camexp.report.build import Table, build_tables
from camexp.report.collect import Results, read_results
from camexp.report.figures import write_figures
from camexp.report.layout import model_name
from camexp.report.page.charts import build_charts
from camexp.report.page.gallery import build_gallery
from camexp.report.page.overall import overall
from camexp.report.page.series import Tables
from camexp.report.page.summary import summarise
from camexp.report.page.tables import TableView, table_views
from camexp.report.verdicts import Tolerance

SCRIPTS = ("filters.js", "tables.js", "charts.js", "gallery.js", "start.js")

COLOUR_MAP = "viridis"
"""Perceptually uniform, and readable for the colour-blind."""


def build(
    results: Path, experiments: list[Experiment] | None, output: Path, tolerance: Tolerance | None = None
) -> Path:
    """Write `index.html` and `figures/` into the folder `output` from the runs below `results`; the page's path.

    Parameters
    ----------
    experiments: the tables; None for those that have a run, as `print_report` chooses them.
    """
    found = read_results(results)
    return write_page(found, build_tables(found, experiments, tolerance), output, tolerance)


def write_page(
    found: Results, built: list[Table], output: Path, tolerance: Tolerance | None = None, figures: bool = True
) -> Path:
    """Write the page of tables that are already built; returns its path.

    Parameters
    ----------
    figures: write the figures for papers too, which takes longer than the page.
    """
    make_folder(output)
    tables = [(table.experiment, table.cells) for table in built]
    drawn = write_figures(tables, found.runs, output / "figures") if figures else []
    path = output / "index.html"
    write_atomically(path, _render(found, tables, drawn, tolerance))
    return path


def _render(found: Results, tables: Tables, figures: list[dict[str, Any]], tolerance: Tolerance | None) -> str:
    environment = Environment(
        loader=PackageLoader("camexp.report.page", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    views = table_views(tables, tolerance)
    scripts = [get_plotlyjs(), "\n".join(_asset(name) for name in SCRIPTS)]
    return environment.get_template("page.html.j2").render(
        summary=summarise(found, datetime.now(UTC)),
        tables=views,
        **_choices(views),
        overall=overall(tables),
        charts=[chart.as_json() for chart in build_charts(tables, found.runs)],
        figures=figures,
        gallery=build_gallery(tables, found.runs),
        colours=_colours(),
        style=Markup(_asset("page.css")),
        scripts=[Markup(script) for script in scripts],
        script_sources=Markup(" ".join(_source(script) for script in scripts)),
        icon=_icon(),
        version=camexp.__version__,
    )


def _asset(name: str) -> str:
    return resources.files("camexp.report.page").joinpath("assets", name).read_text(encoding="utf-8")


def _source(script: str) -> str:
    """The hash by which the page's policy admits a script, and no other."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _choices(views: list[TableView]) -> dict[str, Any]:
    """What the filters offer: the data sets, models and methods of the tables."""
    models = {model.name: model_name(model.name) for view in views for model in view.models}
    methods = {column["method"]: label_of(column["method"]) for view in views for column in view.columns}
    return {
        "datasets": list(dict.fromkeys(view.dataset for view in views)),
        "models": list(models.items()),
        "methods": list(methods.items()),
    }


def _colours() -> dict[str, str]:
    """The colour map as the tables of an SVG filter, one per channel, and as the stops of a gradient."""
    levels = matplotlib.colormaps[COLOUR_MAP](np.linspace(0, 1, 33))[:, :3]
    channels = {
        name: " ".join(f"{value:.3f}" for value in levels[:, place])
        for place, name in enumerate(("red", "green", "blue"))
    }
    stops = ",".join(matplotlib.colors.to_hex(level) for level in levels[::4])
    return channels | {"stops": stops}


def _icon() -> str:
    """A small target, as a data URI: browsers ask for an icon otherwise."""
    drawing = (
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'>"
        "<rect width='32' height='32' rx='7' fill='#440154'/>"
        "<circle cx='16' cy='16' r='11' fill='#21918c'/><circle cx='16' cy='16' r='5' fill='#fde725'/></svg>"
    )
    return f"data:image/svg+xml;base64,{base64.b64encode(drawing.encode()).decode()}"
