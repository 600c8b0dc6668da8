// Draws the chart in the colours of the page, light or dark, and filters the gallery.
"use strict";

const chart = document.getElementById("chart");
const source = document.getElementById("chart-data").textContent;
let shown = 0;
const isDark = window.matchMedia("(prefers-color-scheme: dark)");
const isNarrow = window.matchMedia("(max-width: 640px)");

function drawChart() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const grid = style.getPropertyValue("--line").trim();
  const soft = style.getPropertyValue("--soft").trim();
  const paper = style.getPropertyValue("--card").trim();
  // "#010203" stands for the colour of text: see PAGE_INK in experiments/reporting/draw.py.
  const { data, layout } = JSON.parse(source.replaceAll("#010203", ink))[shown];
  layout.font = { family: style.getPropertyValue("font-family"), color: ink, size: isNarrow.matches ? 11 : 13 };
  layout.modebar = { orientation: "v", bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: ink };
  layout.hoverlabel = { bgcolor: paper, bordercolor: grid, font: { color: ink }, align: "left" };
  for (const axis of ["xaxis", "xaxis2", "yaxis", "yaxis2"]) {
    Object.assign(layout[axis], { gridcolor: grid, linecolor: grid, tickcolor: grid, fixedrange: isNarrow.matches });
  }
  if (isNarrow.matches) {
    Object.assign(layout.margin, { l: 44, r: 6 });
  }
  Plotly.react(chart, data, layout, {
    responsive: true,
    displaylogo: false,
    displayModeBar: isNarrow.matches ? false : "hover",
    modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
  });
}

function press(button) {
  for (const other of button.parentElement.children) {
    other.setAttribute("aria-pressed", String(other === button));
  }
}

function filterCards(button) {
  press(button);
  const wanted = button.dataset.filter;
  for (const card of document.querySelectorAll(".card")) {
    card.hidden = wanted !== "" && !card.dataset.categories.split(" ").includes(wanted);
  }
}

document.documentElement.classList.add("scripted");
drawChart();
isDark.addEventListener("change", drawChart);
isNarrow.addEventListener("change", drawChart);
window.addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
for (const button of document.querySelectorAll("#switch button")) {
  button.addEventListener("click", () => {
    press(button);
    shown = Number(button.dataset.chart);
    drawChart();
  });
}
for (const button of document.querySelectorAll("#gallery .filters button")) {
  button.addEventListener("click", () => filterCards(button));
}
