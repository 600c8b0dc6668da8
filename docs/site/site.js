// Names and focus that the theme leaves out: of the search dialog, of lists of pages, of tables that scroll.
addEventListener("load", () => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  document.querySelectorAll(".md-nav[aria-labelledby]").forEach((list) => {
    list.setAttribute("aria-label", list.querySelector(".md-nav__title").textContent.trim());
    list.removeAttribute("aria-labelledby");
  });
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((part) => (part.tabIndex = 0));
});
