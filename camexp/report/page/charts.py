"""Every interactive chart of the page."""

from camexp.report.page.ablation_chart import ablation_chart
from camexp.report.page.chart import Chart
from camexp.report.page.distribution_chart import distribution_chart
from camexp.report.page.series import Runs, Tables, ablations, groups, measured, metrics_of, select
from camexp.report.page.time_chart import time_chart


def build_charts(tables: Tables, runs: Runs) -> list[Chart]:
    """For every network on every data set and every metric the run time and the distribution; then the ablations."""
    cells = measured(tables)
    charts: list[Chart | None] = []
    for dataset, model in groups(cells):
        group = select(cells, dataset, model)
        for metric in metrics_of(group):
            charts.append(time_chart(group, dataset, model, metric))
            charts.append(distribution_chart(group, dataset, model, metric, runs))
    charts += [ablation_chart(ablation) for ablation in ablations(tables, runs)]
    return [chart for chart in charts if chart is not None]
