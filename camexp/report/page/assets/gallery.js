// The gallery: maps over their images, by image or by method, and a viewer for one of them.
"use strict";
const gallery = JSON.parse(document.getElementById("gallery-data").textContent);
const viewer = { items: [], place: 0 };
const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

const percent = (value, metric) => (value === undefined ? "no value" : `${value.toFixed(1)} ${metric.unit}`.trim());
const nameOf = (pair) => `${pair.image_id}: ${pair.class_name}`;

// Better values first; what has no value last.
function compare(metric) {
  const worth = (map) => (map.values[metric.name] === undefined ? -Infinity : map.values[metric.name] * (metric.higher ? 1 : -1));
  return (a, b) => worth(b.map) - worth(a.map);
}

function picture(pair, map) {
  const box = element("div", { className: "picture" });
  box.style.aspectRatio = `${pair.width} / ${pair.height}`;
  const layer = (key, className, alt) => element("img", { className, alt, src: gallery.pictures[key], decoding: "async" });
  // under a map the photograph is grey, so that colour means the map alone
  box.append(layer(pair.image, map ? "grey" : "photograph", map ? "" : `Image ${pair.image_id} with the outline of ${pair.class_name}`));
  if (map) box.append(layer(map.map, "map", `Map of ${map.label} for ${pair.class_name} in image ${pair.image_id}`));
  box.append(layer(pair.outline, "outline", ""));
  return box;
}

function card(item, text, open) {
  const { pair, map } = item;
  const title = map ? text.title : "Image and ground truth";
  const button = element("button", { type: "button", className: `card${map?.control ? " control" : ""}` }, picture(pair, map));
  button.append(element("strong", { textContent: title }));
  for (const line of text.lines) button.append(element("span", { textContent: line }));
  button.addEventListener("click", open);
  return element("li", {}, button);
}

function cardList(items, textOf) {
  const list = element("ul", { className: "cards" });
  items.forEach((item, place) => list.append(card(item, textOf(item), () => openViewer(items, place))));
  return list;
}

function showPair(group, metric) {
  const pair = group.pairs[Number(byId("gallery-pair").value)] ?? group.pairs[0];
  const maps = pair.maps.filter((map) => filters.shows({ method: map.method })).map((map) => ({ pair, map }));
  const items = [{ pair }, ...maps.sort(compare(metric))];
  const about = [pair.class_name, ...(pair.prob === null ? [] : [`probability ${(100 * pair.prob).toFixed(1)} %`, `covers ${(100 * pair.area).toFixed(1)} %`])];
  const list = cardList(items, ({ map }) =>
    map ? { title: map.label, lines: [...(map.control ? ["control"] : []), `${metric.label} ${percent(map.values[metric.name], metric)}`, ...(map.constant ? ["constant map"] : [])] } : { lines: about },
  );
  byId("gallery-cards").replaceChildren(list);
  byId("gallery-status").textContent = `${nameOf(pair)}: ${maps.length} maps, best ${metric.label} first.`;
}

function showMethod(group, metric) {
  const method = byId("gallery-method").value;
  const items = group.pairs.flatMap((pair) => pair.maps.filter((map) => map.label === method).map((map) => ({ pair, map })));
  items.sort(compare(metric));
  const half = Math.min(6, Math.ceil(items.length / 2));
  const text = ({ pair, map }) => ({ title: pair.class_name, lines: [`image ${pair.image_id}`, `${metric.label} ${percent(map.values[metric.name], metric)}`] });
  const part = (title, chosen) => [element("h3", { textContent: title }), cardList(chosen, text)];
  const worst = items.slice(Math.max(half, items.length - half)).reverse();
  byId("gallery-cards").replaceChildren(
    ...part(`Worst by ${metric.label}`, worst),
    ...part(`Best by ${metric.label}`, items.slice(0, half)),
  );
  byId("gallery-status").textContent = `${method}: of ${items.length} saved maps the ${worst.length} worst and the ${half} best.`;
}

function showGallery() {
  const shown = gallery.groups.filter((group) => filters.shows(group));
  fill(byId("gallery-group"), shown.map((group) => [`${group.dataset}/${group.model}`, group.label]));
  const group = shown.find((one) => `${one.dataset}/${one.model}` === byId("gallery-group").value);
  if (!group) {
    byId("gallery-cards").replaceChildren();
    byId("gallery-status").textContent = "No saved map has what the filters ask for.";
    return;
  }
  const labels = new Map(group.pairs.flatMap((pair) => pair.maps.map((map) => [map.label, map])));
  const methods = [...labels.values()].filter((map) => filters.shows({ method: map.method }));
  fill(byId("gallery-pair"), group.pairs.map((pair, place) => [String(place), nameOf(pair)]));
  fill(byId("gallery-method"), methods.map((map) => [map.label, map.label]));
  fill(byId("gallery-metric"), group.metrics.map((one) => [one.name, `${one.label} ${one.higher ? "↑" : "↓"}`]));
  const metric = group.metrics.find((one) => one.name === byId("gallery-metric").value);
  const single = byId("gallery-view").value === "pair";
  byId("gallery-pair-label").hidden = !single;
  byId("gallery-method-label").hidden = single;
  viewer.group = group;
  (single ? showPair : showMethod)(group, metric);
  if (group.pairs.length < group.saved) byId("gallery-status").textContent += ` ${group.pairs.length} of ${group.saved} saved pairs are in this file.`;
}

function openViewer(items, place) {
  Object.assign(viewer, { items, place });
  showInViewer();
  const dialog = byId("viewer");
  if (!dialog.open) dialog.showModal();
}

function showInViewer() {
  const { pair, map } = viewer.items[viewer.place];
  byId("viewer-title").textContent = map ? `${map.label}: ${pair.class_name} in ${pair.image_id}` : `${pair.class_name} in ${pair.image_id}`;
  byId("viewer-picture").replaceChildren(picture(pair, map));
  byId("viewer-values").replaceChildren(...(map ? viewer.group.metrics.map((metric) => valueRow(pair, map, metric)) : []));
  byId("viewer-values").closest(".scroll").hidden = !map;
  byId("viewer-note").textContent = map?.constant ? "This map is constant: it explains nothing." : "";
  byId("viewer-previous").disabled = viewer.place === 0;
  byId("viewer-next").disabled = viewer.place === viewer.items.length - 1;
}

function valueRow(pair, map, metric) {
  const rivals = pair.maps.filter((other) => !other.control && other.values[metric.name] !== undefined);
  const better = rivals.filter((other) => (metric.higher ? 1 : -1) * (other.values[metric.name] - map.values[metric.name]) > 0);
  const rank = map.control || map.values[metric.name] === undefined ? "–" : `${better.length + 1} of ${rivals.length}`;
  const row = element("tr", {}, element("th", { scope: "row", textContent: `${metric.label} ${metric.higher ? "↑" : "↓"}` }));
  row.append(element("td", { textContent: percent(map.values[metric.name], metric) }), element("td", { textContent: rank }));
  return row;
}

function step(by) {
  const place = viewer.place + by;
  if (place < 0 || place >= viewer.items.length) return;
  viewer.place = place;
  showInViewer();
}

function startGallery() {
  if (!byId("gallery-group")) return;
  for (const name of ["group", "view", "pair", "method", "metric"]) byId(`gallery-${name}`).addEventListener("change", showGallery);
  const strength = () => byId("gallery").style.setProperty("--strength", byId("gallery-strength").value / 100);
  byId("gallery-strength").addEventListener("input", strength);
  byId("gallery-outline").addEventListener("change", (event) => byId("gallery").classList.toggle("without-outline", !event.target.checked));
  byId("gallery-controls").addEventListener("submit", (event) => event.preventDefault());
  byId("viewer-previous").addEventListener("click", () => step(-1));
  byId("viewer-next").addEventListener("click", () => step(1));
  byId("viewer").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  filters.listeners.push(showGallery);
  strength();
  showGallery();
}
