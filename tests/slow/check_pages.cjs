// Opens HTML pages in headless Chromium and prints, as JSON, what is wrong with each of them.
//
//   NODE_PATH=FOLDER/node_modules node tests/slow/check_pages.cjs [--shots FOLDER] PAGE...
//
// The packages axe-core and playwright-core have to be in NODE_PATH; CHROMIUM is the path of the browser. A page
// is opened at 1280 and 400 pixels, light and dark. Problems are violations of axe, messages on the console that
// are errors or warnings, requests (a page makes none but that for itself), content that is wider than the
// window, and what does not answer to its controls. With --shots, screenshots are saved, and what is printed.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { chromium } = require("playwright-core");

const AXE = fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf-8");
const WIDTHS = [1280, 400];

async function openPage(browser, file, width, colorScheme, problems) {
  const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme, bypassCSP: true });
  const page = await context.newPage();
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) problems.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => problems.push(`console: ${error.message}`));
  const url = `file://${path.resolve(file)}`;
  page.on("request", (request) => {
    const target = request.url();
    if (target !== url && !target.startsWith("data:") && !target.startsWith("blob:")) problems.push(`request: ${target}`);
  });
  await page.goto(url);
  await page.waitForTimeout(600);
  return page;
}

async function runAxe(page, problems) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  for (const violation of violations) {
    const where = violation.nodes.slice(0, 3).map((node) => `${node.target.join(" ")} ${node.failureSummary ?? ""}`);
    problems.push(`axe: ${violation.impact} ${violation.id} (${violation.nodes.length}): ${where.join(" | ").slice(0, 700)}`);
  }
}

// Returns what the page shows after a budget is typed or slid, the files of its buttons, and what its filters show.
async function useControls(page, problems) {
  const used = { budgets: [], files: {}, cards: null };
  if (await page.locator("#budget").isVisible().catch(() => false)) {
    const read = () =>
      page.evaluate(() => {
        const text = (id) => document.getElementById(id).textContent;
        const policy = document.getElementById("budget-policy").value;
        const budget = Number(document.getElementById("budget-number").value);
        return { policy, budget, score: text("budget-score"), cost: text("budget-cost"), saved: text("budget-saved"), options: text("budget-options"), note: text("budget-note") };
      });
    for (const policy of await page.locator("#budget-policy option").allTextContents()) {
      await page.selectOption("#budget-policy", policy);
      for (const budget of ["0.5", "3", "10", "30", "60", "100", "5000"]) {
        await page.fill("#budget-number", budget);
        used.budgets.push(await read());
      }
    }
    const before = (await read()).budget;
    await page.locator("#budget-slider").focus();
    await page.keyboard.press("Home");
    await page.keyboard.press("PageUp");
    if ((await read()).budget === before) problems.push("controls: the slider does not move the budget");
    used.budgets.push(await read());
  }
  await page.evaluate(() => document.querySelectorAll("details").forEach((details) => (details.open = true)));
  const buttons = page.locator("[data-file]");
  for (let index = 0; index < (await buttons.count()); index += 1) {
    const name = await buttons.nth(index).getAttribute("data-file");
    const save = async () => {
      const waiting = page.waitForEvent("download", { timeout: 5000 });
      await buttons.nth(index).click();
      return waiting;
    };
    // Chromium drops a download after ten within a short time.
    const again = async () => page.waitForTimeout(2000).then(save);
    const failed = (error) => ({ suggestedFilename: () => `no download: ${error.message}`, path: async () => null });
    const download = await save().catch(again).catch(failed);
    const saved = await download.path();
    if (download.suggestedFilename() !== name || !saved) problems.push(`controls: ${name}: ${download.suggestedFilename()}`);
    else used.files[name] = fs.statSync(saved).size;
  }
  if (await page.locator(".card .zoom").count()) {
    const count = () => page.locator(".card:visible").count();
    const all = await count();
    const type = await page.locator("#card-filters select[name=type] option").nth(1).textContent();
    await page.selectOption("#card-filters select[name=type]", type);
    const types = await page.locator(".card:visible").evaluateAll((shown) => [...new Set(shown.map((card) => card.dataset.type))]);
    if (types.join() !== type) problems.push(`controls: the filter ${type} shows ${types}`);
    await page.selectOption("#card-filters select[name=type]", "");
    await page.fill("#card-filters input[name=text]", "no such words anywhere");
    if (await count()) problems.push("controls: the text filter shows other cards");
    await page.fill("#card-filters input[name=text]", "");
    if ((await count()) !== all) problems.push("controls: cards do not come back");
    while (await page.locator("#show-more").isVisible()) await page.locator("#show-more").click();
    used.cards = { first: all, all: await count() };
  }
  return used;
}

async function checkPage(browser, file, shots) {
  const result = { page: file, problems: [], used: null };
  const name = path.basename(file, ".html");
  for (const width of WIDTHS) {
    for (const scheme of ["light", "dark"]) {
      const problems = [];
      const page = await openPage(browser, file, width, scheme, problems);
      const [scrolled, inner] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
      if (scrolled > inner) problems.push(`layout: ${scrolled} pixels wide in a window of ${inner}`);
      if (shots) await page.screenshot({ path: path.join(shots, `${name}-${width}-${scheme}.png`), fullPage: true });
      if (width === 1280 && scheme === "light") result.used = await useControls(page, problems);
      await page.evaluate(() => document.querySelectorAll("details").forEach((details) => (details.open = true)));
      await runAxe(page, problems);
      if (shots && scheme === "light") await page.screenshot({ path: path.join(shots, `${name}-${width}-open.png`), fullPage: true });
      if (await page.locator(".card .zoom").count()) {
        await page.locator(".card .zoom").first().click();
        await page.waitForTimeout(200);
        await runAxe(page, problems);
        if (shots) await page.screenshot({ path: path.join(shots, `${name}-${width}-${scheme}-viewer.png`) });
        await page.keyboard.press("Escape");
      }
      result.problems.push(...new Set(problems.map((problem) => `${width} ${scheme}: ${problem}`)));
      if (shots && width === 1280 && scheme === "light") {
        await page.emulateMedia({ media: "print" });
        await page.setViewportSize({ width: 720, height: 1000 }); // A4 with its margins
        await page.screenshot({ path: path.join(shots, `${name}-print.png`), fullPage: true });
      }
      await page.context().close();
    }
  }
  return result;
}

async function main(args) {
  const index = args.indexOf("--shots");
  const shots = index < 0 ? null : args.splice(index, 2)[1];
  if (shots) fs.mkdirSync(shots, { recursive: true });
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  const results = [];
  for (const file of args) results.push(await checkPage(browser, file, shots));
  await browser.close();
  console.log(JSON.stringify(results, null, 1));
}

main(process.argv.slice(2));
