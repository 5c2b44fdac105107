// What the theme's html lacks: long tables that can be sorted and searched, and help for keyboards and screen readers.
const LONG = 12; // rows from which a table gets these

function number(text) {
  const found = text.replace(/−/g, "-").match(/^[<>~]?\s*([-+]?[\d.,]*\d)/);
  return found ? parseFloat(found[1].replace(/,/g, "")) : NaN;
}

function sorted(rows, column, down) {
  const text = (row) => (row.cells[column] ? row.cells[column].innerText.trim() : "");
  const keyed = rows.map((row) => [row, text(row), number(text(row))]);
  keyed.sort(([, a, x], [, b, y]) => {
    if (isNaN(x) && isNaN(y)) return down ? b.localeCompare(a) : a.localeCompare(b);
    if (isNaN(x) || isNaN(y)) return isNaN(x) ? 1 : -1; // what has no number comes last
    return down ? y - x : x - y;
  });
  return keyed.map(([row]) => row);
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      table.tBodies[0].append(...sorted([...table.tBodies[0].rows], column, down));
    });
  });
}

function makeSearchable(table) {
  const field = document.createElement("input");
  field.type = "search";
  field.className = "search";
  field.placeholder = `search ${table.tBodies[0].rows.length} rows`;
  field.setAttribute("aria-label", field.placeholder);
  table.before(field);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of table.tBodies[0].rows) {
      const text = row.innerText.toLowerCase() || row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}

document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".bd-article .iumad table")) {
    if (table.tHead && table.tBodies.length && table.tBodies[0].rows.length >= LONG) {
      makeSortable(table);
      makeSearchable(table);
    }
  }
  // what scrolls sideways has to be reachable, also if it is unfolded or loaded later
  const reach = () => {
    for (const one of document.querySelectorAll(".bd-article :is(table, figure)")) {
      if (one.scrollWidth > one.clientWidth) one.tabIndex = 0;
    }
  };
  reach();
  addEventListener("load", reach);
  document.addEventListener("toggle", reach, true);
  // the bibliography calls itself a list, but its entries are no list items
  for (const list of document.querySelectorAll(".citation-list[role=list]")) list.removeAttribute("role");
});
