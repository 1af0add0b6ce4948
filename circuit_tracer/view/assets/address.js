// The address of the page as the keeper of its state. Each page says what it keeps: hashOf() writes
// it, READERS read it, one a key, and resetState() is how a page without an address begins.

let writing = 0;
// Writes the state to the address: at once with push (a step that the browser's Back undoes),
// else a little later, so that a slider does not write a hundred times.
function writeHash(push = false) {
  clearTimeout(writing);
  const write = () => {
    writing = 0;
    const wanted = "#" + hashOf();
    if (wanted === (location.hash || "#")) return;
    try {
      history[push ? "pushState" : "replaceState"](null, "", wanted);
    } catch {
      // Some frames may not write their address; the page works without.
    }
  };
  if (push) write();
  else writing = setTimeout(write, 120);
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return null;
  }
}

function whole(text, low, high, use) {
  const value = /^\d{1,9}$/.test(text) ? Number(text) : NaN;
  if (value >= low && value <= high) use(value);
  return value >= low && value <= high;
}

// Sets S from the address; values that name nothing are ignored, and a notice says which.
function readHash() {
  resetState();
  const ignored = [];
  for (const part of location.hash.replace(/^#/, "").split("&").filter(Boolean)) {
    const cut = part.indexOf("=");
    const key = cut < 0 ? part : part.slice(0, cut), text = cut < 0 ? "" : part.slice(cut + 1);
    const reader = Object.hasOwn(READERS, key) ? READERS[key] : null;
    if (!reader || !reader(text)) ignored.push(shortened(decode(key) ?? key, 24));
  }
  document.querySelectorAll("#notices .from-hash").forEach((line) => line.remove());
  if (!ignored.length) return;
  notice(`The address asks for something this page does not have (${ignored.join(", ")}); it is ignored.`);
  $("notices").lastElementChild.classList.add("from-hash");
}
