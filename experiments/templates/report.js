// Draws the chart in the colours of the page, moves the budget, filters the gallery, shows images, saves files.
// Text from data enters the page as text only.
"use strict";

const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const isDark = window.matchMedia("(prefers-color-scheme: dark)");
const isNarrow = window.matchMedia("(max-width: 640px)");

document.documentElement.classList.add("scripted");

function press(button) {
  for (const other of button.parentElement.children) {
    other.setAttribute("aria-pressed", String(other === button));
  }
}

// --- Chart -------------------------------------------------------------------------------------------------

const chart = byId("chart");
const source = byId("chart-data")?.textContent;
let shown = 0;
let point = null; // the operating point of the budget, {cost, score}

function drawChart() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const grid = style.getPropertyValue("--line").trim();
  const soft = style.getPropertyValue("--soft").trim();
  const paper = style.getPropertyValue("--card").trim();
  // "#010203" stands for the colour of text: see PAGE_INK in experiments/reporting/draw.py.
  const { data, layout } = JSON.parse(source.replaceAll("#010203", ink))[shown];
  if (point && shown === 0) {
    const marker = { size: 17, symbol: "circle-open", color: ink, line: { width: 2.5 } };
    const ring = { type: "scatter", mode: "markers", marker, name: "your budget", hoverinfo: "skip", showlegend: false };
    data.push({ ...ring, x: [point.cost], y: [point.score], xaxis: "x", yaxis: "y" });
  }
  layout.font = { family: style.getPropertyValue("font-family"), color: ink, size: isNarrow.matches ? 11 : 13 };
  layout.modebar = { orientation: "v", bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink };
  layout.hoverlabel = { bgcolor: paper, bordercolor: grid, font: { color: ink }, align: "left" };
  for (const axis of ["xaxis", "xaxis2", "yaxis", "yaxis2"]) {
    Object.assign(layout[axis], { gridcolor: grid, linecolor: grid, tickcolor: grid, fixedrange: isNarrow.matches });
  }
  if (isNarrow.matches) {
    Object.assign(layout.margin, { l: 44, r: 6 });
  }
  layout.uirevision = shown; // what a reader has hidden or zoomed stays when the budget moves
  Plotly.react(chart, data, layout, {
    responsive: true,
    displaylogo: false,
    displayModeBar: isNarrow.matches ? false : "hover",
    modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
  });
}

if (chart) {
  drawChart();
  isDark.addEventListener("change", drawChart);
  isNarrow.addEventListener("change", drawChart);
  for (const button of all("#switch button")) {
    button.addEventListener("click", () => {
      press(button);
      shown = Number(button.dataset.chart);
      drawChart();
    });
  }
}

// --- Budget: chooses a row of the table of operating points and shows its cells ----------------------------

const budgetForm = byId("budget");
if (budgetForm) {
  const [policy, number, slider] = ["budget-policy", "budget-number", "budget-slider"].map(byId);
  const rows = all("#points tbody tr");
  const ofPolicy = () => rows.filter((row) => row.dataset.policy === policy.value);
  // A budget is compared as it is shown, so that one typed from the table allows that point.
  const budgetOf = (row) => Number(row.cells[1].textContent);
  const ends = () => [budgetOf(ofPolicy()[0]), budgetOf(ofPolicy().at(-1))];

  function showBudget() {
    const candidates = ofPolicy();
    const budget = Number(number.value);
    const within = candidates.filter((row) => budgetOf(row) <= budget);
    const row = within.at(-1) ?? candidates[0];
    const next = candidates[within.length];
    const cells = [...row.cells].map((cell) => cell.textContent);
    const [, least, cost, score, saved, options] = cells;
    byId("budget-cost").textContent = cost;
    byId("budget-score").textContent = score;
    byId("budget-saved").textContent = saved;
    byId("budget-options").textContent = options;
    const following = next && within.length ? ` The next point needs a budget of ${next.cells[1].textContent}.` : "";
    byId("budget-note").textContent = within.length
      ? `Operating point with a mean of ${least} on the calibration samples, measured on the test samples.${following}`
      : `No operating point is within this budget; the cheapest needs ${least} on the calibration samples.`;
    point = { cost: Number(row.dataset.cost), score: Number(row.dataset.score) };
    drawChart();
  }

  function moveSlider() {
    const [low, high] = ends();
    const share = high > low ? Math.log(Number(number.value) / low) / Math.log(high / low) : 1;
    slider.value = String(Math.round(1000 * Math.min(1, Math.max(0, share || 0))));
    slider.setAttribute("aria-valuetext", number.value);
  }

  slider.addEventListener("input", () => {
    const [low, high] = ends();
    number.value = String(Number((low * (high / low) ** (Number(slider.value) / 1000)).toPrecision(3)));
    slider.setAttribute("aria-valuetext", number.value);
    showBudget();
  });
  for (const control of [number, policy]) {
    control.addEventListener("input", () => {
      moveSlider();
      showBudget();
    });
  }
  budgetForm.addEventListener("submit", (event) => event.preventDefault());
  moveSlider();
  showBudget();
}

// --- Downloads ---------------------------------------------------------------------------------------------

const templates = new Map(all("template[data-name]").map((element) => [element.dataset.name, element]));

function saveFile(name) {
  const element = templates.get(name);
  const text = element.content.textContent;
  const content = "base64" in element.dataset ? Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0)) : text;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "application/octet-stream" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser may not have read it yet
}

for (const button of all("[data-file]")) {
  button.addEventListener("click", () => saveFile(button.dataset.file));
}

// --- Wide tables and navigation ----------------------------------------------------------------------------

function markScroll(box) {
  box.classList.toggle("cut", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
}

const sizes = new ResizeObserver((entries) => entries.forEach((entry) => markScroll(entry.target)));
for (const box of all(".scroll")) {
  box.addEventListener("scroll", () => markScroll(box), { passive: true });
  sizes.observe(box);
}

const links = new Map(all(".contents a").map((link) => [link.hash.slice(1), link]));
const sections = new IntersectionObserver(
  (entries) => {
    for (const entry of entries.filter((seen) => seen.isIntersecting)) {
      for (const [id, link] of links) {
        if (id === entry.target.id) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      }
    }
  },
  { rootMargin: "-20% 0px -75% 0px" },
);
for (const section of all("main > section")) sections.observe(section);

window.addEventListener("beforeprint", () => {
  for (const details of all("details")) details.open = true;
});

// Through a symbolic link to the folder of the report, the relative path leads elsewhere.
const failures = byId("failures-link");
if (failures && decodeURIComponent(location.pathname).split("/").at(-2) !== failures.dataset.folder) {
  failures.href = failures.dataset.uri;
}

// --- Gallery -----------------------------------------------------------------------------------------------

const STEP = 12;
const cards = all(".card");
const filters = byId("card-filters");
let category = "";
let limit = STEP;

function filterCards() {
  const wanted = Object.fromEntries(new FormData(filters));
  const words = (wanted.text ?? "").toLowerCase().split(/\s+/).filter(Boolean);
  const matching = cards.filter((card) => {
    const { type, scale, outcome, categories } = card.dataset;
    const text = words.length ? card.textContent.toLowerCase() : "";
    return (
      (!category || categories.split(" ").includes(category)) &&
      (!wanted.type || wanted.type === type) &&
      (!wanted.scale || wanted.scale === scale) &&
      (!wanted.outcome || wanted.outcome === outcome) &&
      words.every((word) => text.includes(word))
    );
  });
  const order = new Map(matching.map((card, index) => [card, index]));
  for (const card of cards) {
    card.hidden = !order.has(card);
    card.classList.toggle("later", (order.get(card) ?? 0) >= limit);
  }
  byId("num-shown").textContent = `${Math.min(limit, matching.length)} of ${matching.length} shown`;
  byId("show-more").hidden = matching.length <= limit;
}

if (filters) {
  for (const button of all("#categories button")) {
    button.addEventListener("click", () => {
      press(button);
      category = button.dataset.filter;
      limit = STEP;
      filterCards();
    });
  }
  filters.addEventListener("input", () => {
    limit = STEP;
    filterCards();
  });
  filters.addEventListener("submit", (event) => event.preventDefault());
  byId("show-more").addEventListener("click", () => {
    const first = cards.filter((card) => !card.hidden)[limit];
    limit += STEP;
    filterCards();
    first?.querySelector("button")?.focus();
  });
  filterCards();
}

// --- An image as the model sees it at each scale -----------------------------------------------------------

const viewer = byId("viewer");

function drawGrid(context, view, width, height) {
  const [rows, columns] = view.grid;
  const [left, top, right, bottom] = view.box.map((share, index) => share * (index % 2 ? height : width));
  context.fillStyle = "rgba(0, 0, 0, 0.5)"; // what is outside of the box has no tokens
  context.beginPath();
  context.rect(0, 0, width, height);
  context.rect(left, top, right - left, bottom - top);
  context.fill("evenodd");
  context.lineWidth = 1;
  for (const [shift, color] of [[1, "rgba(0, 0, 0, 0.6)"], [0, "rgba(255, 255, 255, 0.85)"]]) {
    context.strokeStyle = color;
    context.beginPath();
    for (let column = 0; column <= columns; column += 1) {
      const x = Math.min(Math.round(left + (column * (right - left)) / columns), width - 1) + 0.5 + shift;
      context.moveTo(x, top);
      context.lineTo(x, bottom);
    }
    for (let row = 0; row <= rows; row += 1) {
      const y = Math.min(Math.round(top + (row * (bottom - top)) / rows), height - 1) + 0.5 + shift;
      context.moveTo(left, y);
      context.lineTo(right, y);
    }
    context.stroke();
  }
}

function drawView(uri, view, description) {
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", description);
  const image = new Image();
  image.addEventListener("load", () => {
    const factor = 480 / Math.max(image.naturalWidth, image.naturalHeight);
    canvas.width = Math.round(image.naturalWidth * factor);
    canvas.height = Math.round(image.naturalHeight * factor);
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = image.naturalWidth > 240; // small pictures show their pixels
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    if (view.grid) drawGrid(context, view, canvas.width, canvas.height);
  });
  image.src = uri;
  return canvas;
}

function describeView(view) {
  const grid = view.grid ? `${view.grid[1]} × ${view.grid[0]} tokens` : "no grid of tokens is known";
  return view.size ? `${view.size[0]} × ${view.size[1]} pixels, ${grid}` : grid;
}

function showScale(card, row, button) {
  press(button);
  const views = JSON.parse(row.dataset.views);
  const shownViews = views.length ? views : [{ picture: null, grid: null, box: [0, 0, 1, 1], size: null }];
  const pictures = all("template.picture", card).map((element) => element.content.textContent);
  const own = card.querySelector(".zoom img").src;
  const panels = shownViews.map((view) =>
    drawView(view.picture === null ? own : pictures[view.picture], view, `Scale ${row.dataset.scale}: ${describeView(view)}`),
  );
  byId("viewer-stage").replaceChildren(...panels);
  const kind = shownViews[0].picture === null ? "The image" : "What the model reads";
  byId("viewer-note").textContent = `${kind}: ${shownViews.map(describeView).join("; ")}`;
  const heads = all("thead th", card).map((cell) => cell.textContent);
  const read = (node) => (node.nodeName === "EM" ? `(${node.textContent})` : node.textContent); // a mark: (chosen)
  const cells = [...row.cells].map((cell) => [...cell.childNodes].map(read).join("").trim().replace(/\s+/g, " "));
  byId("viewer-answer").textContent = heads.map((head, index) => `${head}: ${cells[index]}`).join(" · ");
}

function openViewer(card) {
  const rows = all("tbody tr", card);
  byId("viewer-title").textContent = card.querySelector(".sample").textContent;
  byId("viewer-question").textContent = card.querySelector(".question").textContent;
  const buttons = rows.map((row) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `scale ${row.dataset.scale}`;
    button.addEventListener("click", () => showScale(card, row, button));
    return button;
  });
  byId("viewer-scales").replaceChildren(...buttons);
  const start = Math.max(0, rows.findIndex((row) => row.classList.contains("chosen")));
  viewer.showModal();
  showScale(card, rows[start], buttons[start]);
}

if (viewer) {
  for (const card of cards) {
    card.querySelector(".zoom")?.addEventListener("click", () => openViewer(card));
  }
  byId("viewer-close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => {
    if (event.target === viewer) viewer.close();
  });
}
