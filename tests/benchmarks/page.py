"""What the page of a graph costs a browser: CPU time to open, click, slide, pan and zoom.

    python tests/benchmarks/page.py [--sizes 600x8000 2000x40000] [--rounds 3] [--out page.json]

For a synthetic graph of each size, and as a desktop and as a phone (390 px wide, four times
slowed down), Chromium opens the page afresh and is led through what a reader does. Reported are
the seconds that the page's thread was busy (`TaskDuration` of the browser's own metrics), the
median of the rounds: another program on the machine makes them no longer, as it would the time on
a clock. The clock's milliseconds stand beside them, for quiet machines; so do the frames that
came while panning and zooming, sixty a second being the most, and the size of the file. `script`
and `layout` are the parts of opening spent in scripts and in styles and layout.

Beside each figure stands its ratio to a yardstick, the same sum of square roots in the same
browser, so that figures of two machines can be compared. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))

from circuit_tracer.view import render
from tests.view.conftest import synthetic

ARGUMENTS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
VIEWS = {
    "desktop": ({"viewport": {"width": 1440, "height": 900}}, 1),
    "phone": ({"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}, 4),
}
YARDSTICK = """() => { let sum = 0;
    for (let k = 1; k < 4e7; k++) sum += Math.sqrt(k);
    return sum; }"""
SETTLED = """async () => {
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    while (circuit.busy()) await frame();
    await frame(); await frame(); }"""
PLACE = """(id) => {
    const [x, y] = circuit.project(circuit.drawing().byId.get(id));
    const box = document.getElementById("stage").getBoundingClientRect();
    return [box.left + x, box.top + y]; }"""
SLIDE = """(share) => { const slider = document.getElementById("influence");
    slider.value = share; slider.dispatchEvent(new Event("input")); }"""
MOVE = """async ([zooming, frames, there]) => {
    const stage = document.getElementById("stage"), box = stage.getBoundingClientRect();
    const at = { clientX: box.left + box.width / 2, clientY: box.top + box.height / 2,
        bubbles: true, cancelable: true };
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    const start = performance.now();
    for (let k = 0; k < frames; k++) {
        const way = k < frames * there ? 1 : -1;
        stage.dispatchEvent(new WheelEvent("wheel", zooming ? { ...at, deltaY: -30 * way }
            : { ...at, deltaX: 12 * way }));
        await frame();
    }
    return (1000 * frames) / (performance.now() - start); }"""
FRAMES = 60


class Opened:
    """A page with its browser's own meter."""

    def __init__(self, browser, html, options, slower):
        self.context = browser.new_context(offline=True, **options)
        self.tab = self.context.new_page()
        self.meter = self.context.new_cdp_session(self.tab)
        self.meter.send("Performance.enable", {"timeDomain": "threadTicks"})
        self.meter.send("Emulation.setCPUThrottlingRate", {"rate": slower})
        self.path = html

    def read(self):
        found = self.meter.send("Performance.getMetrics")["metrics"]
        return {one["name"]: one["value"] for one in found}

    def cost(self, act):
        """(CPU ms, clock ms, what it gives) of an act and of all that follows from it."""
        before = self.read()
        given = act()
        self.tab.evaluate(SETTLED)
        after = self.read()
        spent = {
            name: 1000 * (after[name] - before[name]) for name in ("TaskDuration", "Timestamp")
        }
        return spent["TaskDuration"], spent["Timestamp"], given

    def load(self):
        self.tab.goto(self.path.as_uri())
        self.tab.wait_for_selector("html[data-ready=yes]", timeout=240_000)


def one_round(browser, path, drawing, options, slower):
    """Figures of a page opened once."""
    page = Opened(browser, path, options, slower)
    _, yardstick, _ = plain = page_cost(page)
    cpu, clock, _ = page.cost(page.load)
    metrics = page.read()
    found = {
        "yardstick": plain[:2],
        "open": (cpu, clock),
        "script": (1000 * metrics["ScriptDuration"],),
        "layout": (1000 * (metrics["LayoutDuration"] + metrics["RecalcStyleDuration"]),),
    }
    ranked = sorted(drawing.nodes, key=lambda node: -node.influence)
    chosen = [node.id for node in ranked if node.kind == "feature"][:8]
    places = [page.tab.evaluate(PLACE, id) for id in chosen]
    clicks = [page.cost(lambda at=at: page.tab.mouse.click(*at)) for at in places]
    found["click"] = tuple(median(click[place] for click in clicks) for place in (0, 1))
    page.tab.keyboard.press("Escape")
    page.tab.evaluate(SETTLED)
    slides = [page.cost(lambda at=at: page.tab.evaluate(SLIDE, at)) for at in (60, 95, 80)]
    found["slide"] = tuple(median(slide[place] for slide in slides) for place in (0, 1))
    page.tab.evaluate(MOVE, [True, 6, 1])  # there is room to pan in what is zoomed into
    for name, zooming in (("pan", False), ("zoom", True)):
        cpu, clock, rate = page.cost(lambda z=zooming: page.tab.evaluate(MOVE, [z, FRAMES, 0.5]))
        found[name] = (cpu / FRAMES, clock / FRAMES, rate)
    page.context.close()
    return found


def page_cost(page):
    """The yardstick, in an empty page."""
    before = page.read()
    page.tab.evaluate(YARDSTICK)
    after = page.read()
    spent = [1000 * (after[name] - before[name]) for name in ("TaskDuration", "Timestamp")]
    return (*spent, None)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["600x8000", "2000x40000"])
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    from playwright.sync_api import sync_playwright

    results = {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        chromium = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = play.chromium.launch(executable_path=chromium, args=ARGUMENTS.split())
        for size in chosen.sizes:
            nodes, edges = map(int, size.split("x"))
            tokens = tuple(f" t{k}" for k in range(chosen.tokens))
            drawing = synthetic(nodes - 40, edges, tokens=tokens)
            path = Path(folder) / f"{size}.html"
            path.write_text(render(drawing), encoding="utf-8")
            print(f"{size}: file {path.stat().st_size / 1e6:.2f} MB")
            for view, (options, slower) in VIEWS.items():
                rounds = [
                    one_round(browser, path, drawing, options, slower) for _ in range(chosen.rounds)
                ]
                results[f"{size} {view}"] = said(f"{size} {view}", rounds)
        browser.close()
    if chosen.out:
        chosen.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def said(title, rounds):
    """Prints the medians of a view, and returns them."""
    medians = {
        name: [round(median(one[name][place] for one in rounds), 2) for place in range(len(value))]
        for name, value in rounds[0].items()
    }
    yardstick = medians["yardstick"][0]
    print(f"  {title:24} {'CPU ms':>8} {'ratio':>7} {'clock ms':>9}")
    for name, (cpu, *rest) in medians.items():
        clock = f"{rest[0]:9.1f}" if rest else ""
        frames = f"  {rest[1]:.0f} frames a second" if len(rest) > 1 else ""
        print(f"  {name:>24} {cpu:8.1f} {cpu / yardstick:7.3f} {clock}{frames}")
    return medians


if __name__ == "__main__":
    main()
