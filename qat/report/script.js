const root = document.documentElement, toggle = document.querySelector("#theme");
const paint = theme => { root.dataset.theme = theme; toggle.textContent = theme === "dark" ? "Light" : "Dark"; };
paint(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
toggle.addEventListener("click", () => paint(root.dataset.theme === "dark" ? "light" : "dark"));

for (const table of document.querySelectorAll("table.sorted")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => head.firstChild.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach(h => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    const key = row => row.cells[i].dataset.v ?? row.cells[i].textContent.trim();
    const keyed = [...body.rows].map(row => [key(row), row]);
    keyed.sort(([a], [b]) => a === "" ? 1 : b === "" ? -1 : sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b));
    body.append(...keyed.map(([, row]) => row));
  }));
  table.closest(".searched").querySelector("input").addEventListener("input", event => {
    const wanted = event.target.value.toLowerCase();
    for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));
