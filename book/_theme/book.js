// What the theme's html lacks for readers with a keyboard or a screen reader.
document.addEventListener("DOMContentLoaded", () => {
  // a table that scrolls sideways has to be reachable
  for (const table of document.querySelectorAll(".bd-article table")) {
    if (table.scrollWidth > table.clientWidth) table.tabIndex = 0;
  }
  // the bibliography calls itself a list, but its entries are no list items
  for (const list of document.querySelectorAll(".citation-list[role=list]")) list.removeAttribute("role");
});
