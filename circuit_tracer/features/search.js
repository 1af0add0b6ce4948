// The search of an exported site: over the index in the page, without a server. It finds what
// Store.search finds, in the same order.
"use strict";
(() => {
  const index = JSON.parse(document.getElementById("index").textContent);
  const field = document.getElementById("q"), said = document.getElementById("said"), found = document.getElementById("found");
  const MOST = 100;

  // As Python's casefold, for the letters that lower case alone leaves apart.
  const folded = (text) => text.toLowerCase().replaceAll("ß", "ss").replaceAll("ς", "σ").trim();

  function search(wanted) {
    const whole = new Set(), part = new Set(), { words, rows } = index;
    words.forEach((word, number) => {
      if (word === wanted) whole.add(number);
      if (word.includes(wanted)) part.add(number);
    });
    const known = new Set(), order = [];
    const take = (some) => {
      for (const place of some) if (!known.has(place)) order.push(known.add(place) && place);
    };
    const places = rows.map((_, place) => place);
    take(places.filter((place) => index.given[place]?.includes(wanted)));
    for (const [kind, set] of [["fires", whole], ["says", whole], ["fires", part], ["says", part]])
      if (set.size)
        take(places.filter((place) => index[kind][place].some((number) => set.has(number)))
          .sort((a, b) => index.counts[b] - index.counts[a] || a - b));
    return order;
  }

  function cell(row, text, name) {
    const one = row.insertCell();
    one.className = name;
    one.append(text);
    return one;
  }

  function show() {
    const wanted = folded(field.value), order = wanted ? search(wanted) : [], { rows, up } = index;
    said.textContent = !wanted ? "" : !order.length ? "Nothing found."
      : order.length > MOST ? `The first ${MOST} of ${order.length} features.` : `${order.length} feature${order.length > 1 ? "s" : ""}.`;
    found.hidden = !order.length;
    const body = found.tBodies[0];
    body.replaceChildren();
    for (const place of order.slice(0, MOST)) {
      const [layer, one, label, density, largest] = rows[place], row = body.insertRow(), link = document.createElement("a");
      link.href = `${up}${layer}/${one}.html`;
      link.textContent = `${layer}.${one}`;
      cell(row, link, "l");
      cell(row, label, "").dir = "auto";
      cell(row, density, "n");
      cell(row, largest, "n");
    }
  }

  field.value = new URLSearchParams(location.search).get("q") ?? "";
  field.addEventListener("input", show);
  field.form.addEventListener("submit", (event) => {
    event.preventDefault();
    show();
    try {
      history.replaceState(null, "", `?q=${encodeURIComponent(field.value)}`);
    } catch {
      // Where the address may not be written, the search works without.
    }
  });
  show();
})();
