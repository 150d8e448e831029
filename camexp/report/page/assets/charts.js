// Draws the chosen charts with plotly.js, in the page's colours, and their numbers as tables.
"use strict";
const charts = JSON.parse(document.getElementById("chart-data").textContent);

function themed(chart, width) {
  const style = getComputedStyle(document.body);
  const colour = (name) => style.getPropertyValue(name).trim();
  const layout = structuredClone(chart.figure.layout);
  Object.assign(layout, {
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    font: { color: colour("--text"), family: style.fontFamily, size: 12 },
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--muted"), font: { color: colour("--text") } },
    dragmode: false,
  });
  if (chart.kind !== "ablation") {
    for (const shape of layout.shapes ?? []) shape.line.color = colour("--reference");
    for (const note of layout.annotations ?? []) note.font.color = colour("--reference");
  }
  if (width < 560 && chart.kind === "time") {
    layout.margin = { ...layout.margin, l: 44, r: 10 };
    for (const note of layout.annotations ?? []) Object.assign(note, { xanchor: "right", yanchor: "bottom" });
  }
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
    const colours = { gridcolor: colour("--line"), linecolor: colour("--muted"), zerolinecolor: colour("--line") };
    layout[name] = { ...layout[name], ...colours, title: { ...layout[name].title, font: { size: 12 } } };
  }
  if (width < 560 && chart.kind === "ablation") stack(layout);
  return layout;
}

// On a narrow plot small charts stand below each other.
function stack(layout) {
  const names = Object.keys(layout).filter((key) => /^xaxis/.test(key));
  const gap = 0.35 / names.length;
  const height = (1 - gap * (names.length - 1)) / names.length;
  names.forEach((name, place) => {
    const top = 1 - place * (height + gap);
    layout[name].domain = [0, 1];
    layout[name.replace("x", "y")].domain = [top - height, top];
    Object.assign(layout.annotations[place], { x: 0.5, y: top });
  });
  layout.height = 110 + 230 * names.length;
  layout.legend = { ...layout.legend, y: 1 + 0.2 / names.length };
}

// Names of points would cover each other on a narrow plot: there they are numbers, and the caption says of whom.
function traces(chart, width) {
  const shown = chart.figure.data.filter((trace) => filters.shows({ method: trace.meta?.method }));
  if (width >= 560 || chart.kind !== "time") return [shown, ""];
  const names = [];
  const numbered = shown.map((trace) => {
    if (!trace.meta?.method) return trace;
    names.push(`${names.length + 1} ${trace.name}`);
    return { ...trace, text: [String(names.length)] };
  });
  return [numbered, ` ${names.join(", ")}.`];
}

function tableOf(table, chart) {
  const row = (texts, tag, scope) => {
    const line = document.createElement("tr");
    texts.forEach((text, place) => {
      const cell = document.createElement(place === 0 ? "th" : tag);
      cell.scope = place === 0 && tag === "td" ? "row" : scope;
      cell.textContent = text;
      line.append(cell);
    });
    return line;
  };
  table.caption.textContent = chart.title;
  table.tHead.replaceChildren(row(chart.header, "th", "col"));
  table.tBodies[0].replaceChildren(...chart.rows.map((texts) => row(texts, "td", "")));
}

function draw(kind, chart) {
  const figure = document.getElementById(`chart-${kind}`);
  figure.hidden = !chart;
  if (!chart) return;
  figure.querySelector("h3").textContent = chart.title;
  tableOf(figure.querySelector("table"), chart);
  const plot = figure.querySelector(".plot");
  const width = plot.clientWidth;
  const options = { displaylogo: false, responsive: true, displayModeBar: false, scrollZoom: false, doubleClick: false };
  const [shown, key] = traces(chart, width);
  figure.querySelector("figcaption").textContent = chart.text + key;
  Plotly.react(plot, shown, themed(chart, width), options);
}

function drawCharts() {
  const shown = charts.filter((chart) => filters.shows(chart));
  const group = document.getElementById("chart-group");
  const metric = document.getElementById("chart-metric");
  const ablation = document.getElementById("ablation-choice");
  const networks = shown.filter((chart) => chart.metric);
  fill(group, [...new Map(networks.map((chart) => [`${chart.dataset}/${chart.model}`, chart.group]))]);
  const mine = networks.filter((chart) => `${chart.dataset}/${chart.model}` === group.value);
  fill(metric, [...new Map(mine.map((chart) => [chart.metric, chart.metric_label]))]);
  for (const kind of ["time", "distribution"])
    draw(kind, mine.find((chart) => chart.kind === kind && chart.metric === metric.value));
  const ablations = shown.filter((chart) => chart.kind === "ablation");
  fill(ablation, ablations.map((chart) => [chart.title, chart.title]));
  ablation.parentElement.hidden = ablations.length < 2;
  draw("ablation", ablations.find((chart) => chart.title === ablation.value));
}

function startCharts() {
  if (!document.getElementById("chart-group")) return;
  for (const id of ["chart-group", "chart-metric", "ablation-choice"]) document.getElementById(id).addEventListener("change", drawCharts);
  filters.listeners.push(drawCharts);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) requestAnimationFrame(drawCharts);
    width = innerWidth;
  });
  drawCharts();
}
