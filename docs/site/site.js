// Names and focus that the theme leaves out: of the search dialog and of tables that scroll.
addEventListener("load", () => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((part) => (part.tabIndex = 0));
});
