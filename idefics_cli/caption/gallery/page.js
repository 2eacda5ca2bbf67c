"use strict";
// Rows and thumbnails lie in blocks of the page; thumbnails are looked at when a card is drawn.
const blocks = [...document.querySelectorAll("script.rows")].map((e) => JSON.parse(e.textContent));
const thumbs = [...document.querySelectorAll("script.thumbs")];
const perBlock = blocks.length ? blocks[0].length : 1;
const rows = blocks.flat();
const columns = JSON.parse(document.querySelector("script.columns").textContent);
const $ = (id) => document.getElementById(id);

const said = (row) => columns.map((name) => row[name]).filter((text) => text).join("\n");
const hay = rows.map((r) => [r.file_name, said(r), r.error || ""].join("\n").toLowerCase());
const kinds = {
  all: ["All", () => true],
  ok: ["Captioned", (row) => row.status === "ok"],
  error: ["Failed", (row) => row.status !== "ok"],
  cut: ["Cut off", (row) => row.finish === "length"],
};
const number = (n) => n.toLocaleString("en");

let shown = rows.map((_, i) => i); // indices of the rows that pass the filters
let active = 0; // position in `shown` that the keyboard is at
let layout = { columns: 1, width: 0, height: 0, gap: 14 };
const cells = new Map(); // position -> element, of what is near the screen

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) {
    made.textContent = text;
    made.dir = "auto";
  }
  return made;
}

const decoded = new Map();
function thumbnail(index) {
  const block = Math.floor(index / perBlock);
  if (!decoded.has(block)) {
    if (decoded.size > 20) decoded.delete(decoded.keys().next().value);
    decoded.set(block, thumbs[block].textContent.split("\n"));
  }
  return decoded.get(block)[index % perBlock];
}

// "-": it cannot be shown. Empty: there is no thumbnail, but the file.
function picture(row, index) {
  const data = thumbnail(index);
  const source = data ? data : isFile(row) && row.href;
  if (data === "-" || !source) return null;
  const image = element("img");
  image.alt = said(row) || row.file_name;
  image.decoding = "async";
  image.loading = "lazy";
  image.onerror = () => image.remove();
  image.src = source;
  return image;
}

function isFile(row) {
  return Boolean(row.href) && !/^https?:/.test(row.href);
}

function size(row) {
  return row.width ? `${row.width} × ${row.height}` : "";
}

function card(position) {
  const index = shown[position];
  const row = rows[index];
  const cell = element("div", "cell");
  cell.setAttribute("role", "listitem");
  cell.setAttribute("aria-setsize", shown.length);
  cell.setAttribute("aria-posinset", position + 1);
  const button = element("button", row.status === "ok" ? "card" : "card failed");
  button.type = "button";
  button.dataset.position = position;
  button.tabIndex = position === active ? 0 : -1;
  const thumb = element("span", "thumb", "no preview");
  const image = picture(row, index);
  if (image) thumb.append(image);
  if (row.status !== "ok") thumb.append(element("span", "badge", "failed"));
  else if (row.finish === "length") thumb.append(element("span", "badge", "cut off"));
  const words = element("span", "words");
  words.append(element("span", "text", row.status === "ok" ? said(row) : row.error));
  const foot = element("span", "foot");
  const name = element("span", "name", row.file_name.split("/").pop());
  name.title = row.file_name;
  foot.append(name, element("span", "size", size(row)));
  button.append(thumb, words, foot);
  cell.append(button);
  return cell;
}

function measure() {
  const width = $("grid").clientWidth;
  const narrow = window.innerWidth <= 560;
  const gap = narrow ? 10 : 14;
  const count = Math.max(1, Math.floor((width + gap) / ((narrow ? 160 : 220) + gap)));
  layout = { columns: count, width: (width - gap * (count - 1)) / count, gap };
  layout.height = Math.round(layout.width * 0.75) + 136;
}

function place(cell, position) {
  const { columns: count, width, height, gap } = layout;
  const x = (position % count) * (width + gap);
  const y = Math.floor(position / count) * (height + gap);
  cell.style.width = `${width}px`;
  cell.style.height = `${height}px`;
  cell.style.transform = `translate(${x}px, ${y}px)`;
}

// Only what is near the screen is in the document; what has the focus stays.
function draw() {
  const grid = $("grid");
  const step = layout.height + layout.gap;
  const lines = Math.ceil(shown.length / layout.columns);
  grid.style.height = `${Math.max(0, lines * step - layout.gap)}px`;
  const top = -grid.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(top / step) - 2) * layout.columns;
  const last = Math.min(
    shown.length, (Math.floor((top + window.innerHeight) / step) + 3) * layout.columns);
  for (const [position, cell] of cells) {
    const has = cell.contains(document.activeElement);
    if ((position < first || position >= last) && !has) {
      cell.remove();
      cells.delete(position);
    }
  }
  for (let position = first; position < last; position++) {
    if (!cells.has(position)) {
      const cell = card(position);
      cells.set(position, cell);
      const next = [...cells.keys()].filter((p) => p > position).sort((a, b) => a - b)[0];
      grid.insertBefore(cell, next === undefined ? null : cells.get(next));
    }
    place(cells.get(position), position);
  }
}

let asked = 0;
function redraw() {
  asked = asked || requestAnimationFrame(() => { asked = 0; draw(); });
}

function clear() {
  for (const cell of cells.values()) cell.remove();
  cells.clear();
}

function filter() {
  const words = $("query").value.toLowerCase().split(/\s+/).filter(Boolean);
  const passes = kinds[document.querySelector("#kinds :checked").value][1];
  shown = [];
  rows.forEach((row, i) => {
    if (passes(row) && words.every((word) => hay[i].includes(word))) shown.push(i);
  });
  const all = rows.length === 1 ? "1 picture" : `${number(rows.length)} pictures`;
  $("shown").textContent = shown.length === rows.length ? all : `${number(shown.length)} of ${all}`;
  $("none").hidden = shown.length > 0;
  active = 0;
  clear();
  window.scrollTo(0, 0);
  draw();
}

// One card at a time is reached by Tab; the arrows go from there.
function choose(position) {
  const [old, now] = [cells.get(active), cells.get(position)];
  if (old) old.firstChild.tabIndex = -1;
  if (now) now.firstChild.tabIndex = 0;
  active = position;
}

function go(position) {
  if (!shown.length) return;
  choose(Math.min(Math.max(position, 0), shown.length - 1));
  const step = layout.height + layout.gap;
  const top = $("grid").getBoundingClientRect().top + window.scrollY
    + Math.floor(active / layout.columns) * step;
  const header = document.querySelector("header");
  const covered = getComputedStyle(header).position === "sticky" ? header.offsetHeight : 0;
  if (top - covered - 16 < window.scrollY) window.scrollTo(0, top - covered - 16);
  const bottom = top + layout.height + 16;
  if (bottom > window.scrollY + window.innerHeight) window.scrollTo(0, bottom - window.innerHeight);
  draw();
  cells.get(active).firstChild.focus({ preventScroll: true });
}

function fact(list, name, value) {
  if (value === undefined || value === null || value === "") return;
  list.append(element("dt", "", name));
  const cell = element("dd");
  cell.append(value);
  list.append(cell);
}

let viewed = 0; // position of the picture in the dialog
function open(position) {
  viewed = position;
  const index = shown[position];
  const row = rows[index];
  $("detail-name").textContent = row.file_name;
  const stage = $("stage");
  stage.replaceChildren("no preview");
  const image = picture(row, index);
  stage.classList.toggle("bare", !image);
  if (image) {
    stage.append(image);
    // The file itself is sharper, if it is still where it was.
    const large = new Image();
    large.onload = () => { if (image.isConnected) image.src = large.src; };
    if (isFile(row)) large.src = row.href;
  }
  const facts = $("facts");
  facts.replaceChildren();
  if (row.status !== "ok") {
    facts.append(element("h3", "", "Failed"), element("p", "said failure", row.error));
  }
  for (const name of columns) {
    if (row[name]) {
      facts.append(element("h3", "", name === "caption" ? "Caption" : name));
      facts.append(element("p", "said", row[name]));
    }
  }
  const list = element("dl");
  const link = element("a", "", "open");
  link.href = row.href || "";
  link.target = "_blank";
  link.rel = "noopener";
  fact(list, "File", row.href ? link : "");
  fact(list, "Size", row.width ? `${size(row)} pixels` : "");
  const ends = { stop: "complete", length: "cut off at the limit", cancelled: "stopped" };
  fact(list, "Ended", ends[row.finish]);
  fact(list, "Tokens", row.tokens || "");
  fact(list, "Time", row.seconds ? `${row.seconds} s` : "");
  fact(list, "Kind", row.error_kind);
  fact(list, "Notes", (row.notes || []).join("; "));
  fact(list, "SHA-256", row.sha256);
  facts.append(list);
  $("before").disabled = position === 0;
  $("after").disabled = position === shown.length - 1;
  if (!$("detail").open) $("detail").showModal();
}

for (const [name, [label, passes]] of Object.entries(kinds)) {
  const count = rows.filter(passes).length;
  const box = element("label");
  const input = element("input");
  Object.assign(input, { type: "radio", name: "kind", value: name, checked: name === "all" });
  box.append(input, `${label} `, element("span", "", number(count)));
  if (count || name === "all") $("kinds").append(box);
}

$("filters").addEventListener("submit", (event) => event.preventDefault());
$("filters").addEventListener("input", filter);
$("grid").addEventListener("click", (event) => {
  const button = event.target.closest(".card");
  if (button) open(Number(button.dataset.position));
});
$("grid").addEventListener("focusin", (event) => {
  const button = event.target.closest(".card");
  if (button) choose(Number(button.dataset.position));
});
$("grid").addEventListener("keydown", (event) => {
  const steps = {
    ArrowLeft: -1, ArrowRight: 1, ArrowUp: -layout.columns, ArrowDown: layout.columns,
    Home: -rows.length, End: rows.length,
  };
  if (!(event.key in steps) || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  go(active + steps[event.key]);
});
$("detail").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const position = viewed + step;
  if (step && position >= 0 && position < shown.length) open(position);
});
$("detail").addEventListener("click", (event) => {
  if (event.target === $("detail")) $("detail").close();
});
$("detail").addEventListener("close", () => go(viewed));
$("before").addEventListener("click", () => open(viewed - 1));
$("after").addEventListener("click", () => open(viewed + 1));
$("close").addEventListener("click", () => $("detail").close());
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && event.target !== $("query") && !$("detail").open) {
    event.preventDefault();
    $("query").focus();
  }
});
addEventListener("scroll", redraw, { passive: true });
addEventListener("resize", () => { measure(); redraw(); });
measure();
filter();
