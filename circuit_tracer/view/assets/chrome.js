// What stands around every picture and works alike: theme, search box, save menu, help, tabs. The
// page says what they change: S, TABS, SAVERS, setQuery(), setTab().

function applyTheme() {
  const dark = S.theme ? S.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", dark);
}

// themed() shows the theme that S names.
function wireChrome(themed) {
  $("search").addEventListener("input", (event) => setQuery(event.target.value));
  $("theme").addEventListener("click", () => {
    S.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    themed();
    writeHash();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (!S.theme) themed(); });
  $("help").addEventListener("click", () => $("keys").showModal());
  $("skip").addEventListener("click", (event) => { event.preventDefault(); $("panel").focus(); });
  for (const button of document.querySelectorAll("[data-save]"))
    button.addEventListener("click", () => { $("save").open = false; SAVERS[button.dataset.save](); });
  for (const leaving of ["pointerdown", "focusin"])
    document.addEventListener(leaving, (event) => { if (!event.target.closest("#save")) $("save").open = false; });
  wireTabs();
}

function wireTabs() {
  for (const button of document.querySelectorAll("[role=tab]")) button.addEventListener("click", () => setTab(button.dataset.tab));
  $("tabs").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    setTab(TABS[(TABS.indexOf(S.tab) + by + TABS.length) % TABS.length]);
    $(`tab-${S.tab}`).focus();
    event.preventDefault();
  });
}

function markTabs() {
  for (const tab of TABS) {
    const button = $(`tab-${tab}`), on = tab === S.tab;
    button.setAttribute("aria-selected", on);
    button.tabIndex = on ? 0 : -1;
  }
  $("panel").setAttribute("aria-labelledby", `tab-${S.tab}`);
}
