// What the theme leaves out: names of the search dialog and of lists of pages, focus of tables that scroll.
addEventListener("load", () => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  document.querySelectorAll(".md-nav[aria-labelledby]").forEach((list) => {
    list.setAttribute("aria-label", list.querySelector(".md-nav__title")?.textContent.trim() ?? "Pages");
    list.removeAttribute("aria-labelledby");
  });
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((part) => (part.tabIndex = 0));
});
