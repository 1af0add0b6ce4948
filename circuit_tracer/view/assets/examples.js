// What a store says of a feature, drawn: texts with the heat of every token, the histogram of its
// activations, its languages. Pages give `detail` with the `words` that its texts are made of.

// The detail of a feature in a drawing; null where it has none.
function detailIn(drawing, layer, feature) {
  const detail = drawing.details.of[`${layer}.${feature}`];
  return detail ? { ...detail, words: drawing.details.words } : null;
}

function firingOf(detail) {
  const said = [];
  if (detail.density !== null) said.push(`fires at ${percent(detail.density)} of tokens`);
  if (detail.largest !== null) said.push(`largest ${number(detail.largest)}`);
  if (detail.mean !== null) said.push(`mean ${number(detail.mean)}`);
  return said.length ? [h("p", { class: "firing" }, said.join(" · "))] : [];
}

// Text of examples, by group, with the heat of every token.
function examplesOf(title, detail, groups, said = []) {
  const some = groups.flatMap(([name, low, high, examples]) => [
    groups.length > 1 || low === null ? h("p", { class: "group" }, groupName(name),
      low === null ? null : h("small", {}, low === high ? number(low) : `${number(low)} to ${number(high)}`)) : null,
    h("ul", { class: "examples" }, examples.map((example) => exampleOf(example, detail)))]);
  return h("section", { class: "meaning", "aria-label": title }, heading(title), said, some.filter(Boolean));
}

function groupName(name) {
  const quantile = /^Interval (\d+)$/.exec(name);
  return quantile ? `Interval ${quantile[1]}${quantile[1] === "1" ? ", the strongest" : ""}` : name;
}

function exampleOf([language, position, numbers, fires, [before, after]], { largest, words }) {
  const heat = new Map();
  for (let k = 0; k < fires.length; k += 2) heat.set(fires[k], fires[k + 1]);
  const most = largest || Math.max(...heat.values(), 1e-12);
  const tokens = numbers.map((word, place) => {
    const [, blank, text] = /^( *)(.*)$/su.exec(seen(words[word])), value = heat.get(place) ?? 0;
    if (!value && place !== position) return place === 0 && /^<[^<>\s]{1,24}>$/.test(text) ? h("span", { class: "special" }, text) : blank + text;
    const share = Math.max(0, Math.min(value / most, 1));
    const element = h(place === position ? "b" : "span", { class: "heat", title: `${visible(words[word])}  ${number(value)}` }, text || blank);
    element.style.setProperty("--heat", `${Math.round(14 + 56 * share)}%`);
    return text ? [blank, element] : element;
  });
  return h("li", {}, h("small", {}, number(heat.get(position) ?? 0), language && h("span", { class: "lang", title: `Language: ${language}` }, language)),
    h("p", { dir: "auto", lang: language || null }, before ? "…" : null, tokens, after ? "…" : null));
}

// A token as it stands in a text: blanks stay, and what cannot be seen is made visible.
function seen(token) {
  return [...token].map((character) => SEEN[character] ?? (/[\p{Cc}\u202a-\u202e\u2066-\u2069]/u.test(character) ? "�" : character)).join("");
}

// The share of the activations in a histogram that lie below a value; within a bin by its logarithm.
function shareBelow(bins, value) {
  let below = 0, all = 0;
  for (const [low, high, count] of bins) {
    all += count;
    const part = low > 0 ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
    below += count * Math.min(Math.max(part, 0), 1);
  }
  return all ? below / all : 0;
}

// With a mark at an activation where one is given.
function histogramOf(detail, value = null) {
  const bins = detail.bins.filter(([low, high]) => high > low);
  if (!bins.length) return [];
  const most = Math.max(...bins.map(([, , count]) => count)), wide = 100 / bins.length;
  const picture = svg("svg", { viewBox: "0 0 100 44", preserveAspectRatio: "none", class: "histogram", role: "img" });
  bins.forEach(([low, high, count], k) => {
    const high_ = count ? Math.max(0.8, (42 * count) / most) : 0;
    const bar = svg("rect", { x: ((k + 0.06) * wide).toFixed(2), width: (0.88 * wide).toFixed(2), y: (43 - high_).toFixed(2), height: high_.toFixed(2) });
    bar.append(svg("title", {}, `${number(low)} to ${number(high)}: ${counted(count)}`));
    picture.append(bar);
  });
  picture.append(svg("path", { d: "M0 43.5H100", class: "zero" }));
  const [first, last] = [bins[0][0], bins.at(-1)[1]];
  let words = `${counted(bins.reduce((sum, [, , count]) => sum + count, 0))} activations, ${number(first)} to ${number(last)}`, mark = null;
  if (value !== null) {
    const place = bins.findIndex(([, high]) => value < high), k = place < 0 ? bins.length - 1 : place, [low, high] = bins[k];
    const part = low > 0 ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
    const at = wide * (k + Math.min(Math.max(part, 0), 1)), share = shareBelow(bins, value);
    picture.append(svg("path", { d: `M${at.toFixed(2)} 0V44`, class: "here" }));
    const rank = share >= 0.995 ? "as strong as it gets" : share <= 0.005 ? "as weak as it gets" : `stronger than ${percent(share)} of them`;
    words += `; here ${number(value, 4)}, ${rank}`;
    mark = h("p", { class: "here" }, h("span", {}, "here "), h("strong", {}, number(value, 4)), ` · ${rank}`);
  }
  picture.setAttribute("aria-label", `Histogram: ${words}`);
  return [heading("Activations"), picture, h("p", { class: "ends-of", "aria-hidden": "true" }, h("span", {}, number(first)), h("span", {}, number(last))), mark];
}

function languagesOf(detail) {
  const rates = Object.entries(detail.rates).sort((a, b) => b[1] - a[1]);
  if (rates.length < 2) return [];
  const most = rates[0][1] || 1;
  return [heading("Languages"), h("ul", { class: "rates" }, rates.map(([name, rate]) => {
    const line = h("span", { class: "bar", "aria-hidden": "true" }, h("i"));
    line.firstChild.style.width = `${(100 * rate) / most}%`;
    return h("li", {}, h("bdi", {}, name), line, h("span", { class: "value" }, percent(rate)));
  })), h("p", { class: "firing" }, "share of the tokens of each", detail.evenness === null ? "" : ` · evenness ${number(detail.evenness, 2)} of 1`)];
}
