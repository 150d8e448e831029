// Filters by data set, network and method: hides what does not fit and tells the charts and the gallery.
"use strict";
const filters = { dataset: "", model: "", methods: null, listeners: [] };

filters.shows = ({ dataset, model, method }) =>
  (!dataset || !filters.dataset || filters.dataset === dataset) &&
  (!model || !filters.model || filters.model === model) &&
  (!method || !filters.methods || filters.methods.has(method));

// Fills a select with [value, text]; keeps the choice where it is still there. Returns whether anything is left.
function fill(select, options) {
  const before = select.value;
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  if (options.some(([value]) => value === before)) select.value = before;
  return options.length > 0;
}

function applyToTables() {
  for (const part of document.querySelectorAll("#tables [data-model], #tables [data-method]:not(details)"))
    part.hidden = !filters.shows({ model: part.dataset.model, method: part.dataset.method });
  const tables = [...document.querySelectorAll("article.table")];
  for (const table of tables) {
    const lines = [...table.querySelectorAll("table[data-layout=papers] tbody tr:not(.model)")];
    const methods = [...table.querySelectorAll("table[data-layout=papers] thead [data-method]")];
    table.hidden =
      !filters.shows({ dataset: table.dataset.dataset }) || lines.every((line) => line.hidden) || methods.every((method) => method.hidden);
  }
  const shown = tables.filter((table) => !table.hidden).length;
  document.getElementById("filter-status").textContent = `${shown} of ${tables.length} tables shown.`;
  document.getElementById("no-tables").hidden = shown > 0;
}

function readFilters() {
  const boxes = [...document.querySelectorAll("#filter-methods input")];
  const chosen = boxes.filter((box) => box.checked).map((box) => box.value);
  filters.dataset = document.getElementById("filter-dataset").value;
  filters.model = document.getElementById("filter-model").value;
  filters.methods = chosen.length === boxes.length ? null : new Set(chosen);
  document.getElementById("methods-count").textContent =
    chosen.length === boxes.length ? `all ${boxes.length}` : `${chosen.length} of ${boxes.length}`;
  applyToTables();
  for (const listener of filters.listeners) listener();
}

function chooseLayout(name) {
  for (const radio of document.querySelectorAll("input[name=layout]")) radio.checked = radio.value === name;
  for (const box of document.querySelectorAll(".scroll[data-layout]")) box.hidden = box.dataset.layout !== name;
}

// On a narrow window a row per method reads better: at first, and after a reset.
const usualLayout = () => (matchMedia("(max-width: 640px)").matches ? "methods" : "papers");

function startFilters() {
  const form = document.getElementById("filters");
  if (!form) return;
  const setAll = (checked) => () => {
    for (const box of document.querySelectorAll("#filter-methods input")) box.checked = checked;
    readFilters();
  };
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("change", (event) => {
    if (event.target.name === "layout") chooseLayout(event.target.value);
    else readFilters();
  });
  form.addEventListener("reset", () =>
    setTimeout(() => {
      chooseLayout(usualLayout());
      readFilters();
    }),
  );
  document.getElementById("methods-all").addEventListener("click", setAll(true));
  document.getElementById("methods-none").addEventListener("click", setAll(false));
  document.getElementById("filters-reset").addEventListener("click", () => form.reset());
  const methods = document.getElementById("filter-methods");
  methods.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    methods.open = false;
    methods.querySelector("summary").focus();
  });
  document.addEventListener("click", (event) => {
    if (!methods.contains(event.target)) methods.open = false;
  });
  chooseLayout(usualLayout());
  for (const notes of document.querySelectorAll("details.notes")) notes.open = usualLayout() === "papers";
  readFilters();
}
