// Sorting: by a metric's heading, in both layouts; best first, then worst first, then the paper's order.
"use strict";

// Puts the children of `parent` that belong to an item into the order of `items`; others stay in front.
function reorder(parent, items) {
  const parts = new Map([...parent.children].filter((part) => part.dataset.item).map((part) => [part.dataset.item, part]));
  if (parts.size) parent.append(...items.map((item) => parts.get(item)));
}

function sortedItems(table, line, direction) {
  const cells = [...table.querySelectorAll(`td[data-line="${line}"]`)];
  const entries = cells.map((cell) => ({ item: cell.dataset.item, value: cell.dataset.value }));
  entries.sort((a, b) => a.item - b.item);
  if (direction !== "none") {
    const sign = direction === "ascending" ? 1 : -1;
    // what was not run comes last in either direction
    entries.sort((a, b) => (a.value === "") - (b.value === "") || sign * (a.value - b.value));
  }
  return entries.map((entry) => entry.item);
}

function sortBy(heading) {
  const table = heading.closest("table");
  const first = heading.querySelector("button").dataset.higher ? "descending" : "ascending";
  const steps = [first, first === "descending" ? "ascending" : "descending", "none"];
  const current = heading.getAttribute("aria-sort");
  const direction = current === "none" ? steps[0] : steps[steps.indexOf(current) + 1];
  for (const other of table.querySelectorAll("th.sortable")) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", direction);
  const items = sortedItems(table, heading.dataset.line, direction);
  const parents = table.dataset.layout === "methods" ? table.tBodies : table.rows;
  for (const parent of parents) reorder(parent, items);
  const order = { [steps[0]]: "best first", [steps[1]]: "worst first", none: "in the paper’s order" }[direction];
  document.getElementById("filter-status").textContent = `Methods ${order} by ${heading.querySelector("button").textContent}.`;
}

function startTables() {
  for (const heading of document.querySelectorAll("th.sortable"))
    heading.querySelector("button").addEventListener("click", () => sortBy(heading));
}
