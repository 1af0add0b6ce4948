"use strict";
{
  const table = document.getElementById("table"), body = table.tBodies[0];
  const rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const words = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

  // What a row is sorted by; undefined for a prompt that failed, which goes last either way.
  const key = (row, column) => {
    const cell = row.cells[column];
    if (!cell || cell.classList.contains("failed")) return undefined;
    if (!("value" in cell.dataset)) return cell.textContent;
    return cell.dataset.value === "" ? undefined : Number(cell.dataset.value);
  };
  const compare = (a, b) => typeof a === "number" ? a - b : words.compare(a, b);

  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = rows.map((row, place) => ({ row, place, by: key(row, column) }));
    keyed.sort((a, b) => (a.by === undefined) - (b.by === undefined)
      || (a.by === undefined ? 0 : (down ? -1 : 1) * compare(a.by, b.by)) || a.place - b.place);
    body.append(...keyed.map((one) => one.row));
  }));

  const filter = document.getElementById("filter"), count = document.getElementById("count");
  const show = () => {
    const wanted = filter.value.toLocaleLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = !row.textContent.toLocaleLowerCase().includes(wanted);
      shown += !row.hidden;
    }
    count.textContent = wanted ? `${shown} of ${rows.length}` : "";
  };
  filter.addEventListener("input", show);
  document.querySelector(".tools").hidden = false;
  show();
}
