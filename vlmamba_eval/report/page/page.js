"use strict";
// The browser of single questions. Everything that comes from files is written with textContent, never as markup.
(() => {
  const byId = (id) => document.getElementById(id);
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "class") node.className = value;
      else node.setAttribute(name, value);
    }
    node.append(...children);
    return node;
  };

  // ---- light and dark -------------------------------------------------------------------------------------------
  const themes = ["auto", "light", "dark"];
  const themeButton = byId("theme");
  const keep = (name, value) => { try { localStorage.setItem(name, value); } catch { /* a page without storage */ } };
  const kept = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
  const setTheme = (theme) => {
    if (theme === "auto") document.documentElement.removeAttribute("data-theme");
    else document.documentElement.dataset.theme = theme;
    themeButton.textContent = { auto: "◐ auto", light: "○ light", dark: "● dark" }[theme];
    themeButton.dataset.value = theme;
  };
  setTheme(themes.includes(kept("vlmamba-theme")) ? kept("vlmamba-theme") : "auto");
  themeButton.hidden = false;
  themeButton.addEventListener("click", () => {
    const next = themes[(themes.indexOf(themeButton.dataset.value) + 1) % themes.length];
    setTheme(next);
    keep("vlmamba-theme", next);
  });

  // ---- data -----------------------------------------------------------------------------------------------------
  const data = JSON.parse(byId("data").textContent);
  if (!data.tasks.length) return;
  let pictures = null; // parsed when the first one is wanted
  const picture = (index) => {
    if (index < 0) return "";
    pictures ??= JSON.parse(byId("pictures").textContent);
    const source = pictures[index];
    return source === null || source === undefined ? "" : source.startsWith("/9j/") ? `data:image/jpeg;base64,${source}` : source;
  };

  const SIGNS = { r: ["✓", "right"], p: ["½", "partly right"], w: ["✗", "wrong"], u: ["?", "unreadable"], n: ["–", "no answer"], "-": ["·", "not asked"] };
  const STYLE = { r: "right", p: "partly", w: "wrong", u: "unread", n: "none", "-": "none" };
  const right = (sign) => sign === "r";
  const matches = { "": () => true, r: right, p: (s) => s === "p", w: (s) => s !== "r" && s !== "-" && s !== "n", u: (s) => s === "u", n: (s) => s === "n" };
  const letter = (i) => String.fromCharCode(65 + (i % 26));

  const browser = byId("browser"), list = byId("list"), space = byId("space"), detail = byId("detail");
  const taskSelect = byId("task"), groupSelect = byId("group"), search = byId("search"), count = byId("count");
  const runFilters = byId("run-filters"), presets = byId("presets");
  const ROW = 56;
  let task = null, shown = [], current = -1, lowered = null;
  const state = { group: "", signs: [], differ: false, better: "", text: "" }; // better: "0>1", the places of two runs

  // Characters that show nothing, or turn the text around, are named instead.
  const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\ufff9-\ufffb]/;
  const appendText = (node, text) => {
    let plain = "";
    for (const char of text) {
      const alone = char.length === 1 && UNSEEN.test(char);
      if (!alone) { plain += char; continue; }
      if (plain) node.append(plain);
      plain = "";
      node.append(make("span", { class: "control" }, `U+${char.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}`));
    }
    if (plain) node.append(plain);
    return node;
  };
  const words = (text, className = "text") => appendText(make("div", { class: className, dir: "auto" }), text);
  const oneLine = (text) => text.replace(/\s+/g, " ");
  const string = (index) => (index < 0 ? "" : task.strings[index]);
  const sign = (run, i) => task.answers[run].signs[i];

  const lower = () => {
    lowered ??= task.strings.map((text) => text.toLowerCase());
    return lowered;
  };

  const refilter = () => {
    const group = state.group === "" ? -1 : task.groups.indexOf(state.group);
    const needle = state.text.trim().toLowerCase();
    let hit = null;
    if (needle) { hit = new Uint8Array(task.strings.length); lower().forEach((text, i) => { if (text.includes(needle)) hit[i] = 1; }); }
    const tests = state.signs.map((wanted) => matches[wanted] ?? matches[""]);
    const n = task.id.length, runs = task.answers;
    const [winner, loser] = state.better ? state.better.split(">").map((place) => runs[Number(place)]) : [null, null];
    const answered = (run, i) => run.signs[i] !== "n" && run.signs[i] !== "-";
    shown = [];
    for (let i = 0; i < n; i++) {
      if (group >= 0 && !task.members[i].includes(group)) continue;
      if (!tests.every((test, run) => test(runs[run].signs[i]))) continue;
      if (winner && !(answered(winner, i) && answered(loser, i) && winner.credit[i] > loser.credit[i] + 1e-9)) continue;
      if (state.differ && runs.every((run) => run.credit[i] === runs[0].credit[i] && right(run.signs[i]) === right(runs[0].signs[i]))) continue;
      if (hit && !(hit[task.prompt[i]] || hit[task.gold[i]] || task.id[i].toLowerCase().includes(needle)
        || runs.some((run) => run.raw[i] >= 0 && hit[run.raw[i]]))) continue;
      shown.push(i);
    }
    space.style.height = `${shown.length * ROW}px`;
    count.textContent = `${shown.length.toLocaleString("en")} of ${n.toLocaleString("en")} questions`;
    for (const button of presets.children) {
      const same = button.dataset.signs === state.signs.join(",") && (button.dataset.differ === "1") === state.differ;
      button.setAttribute("aria-pressed", String(same && button.dataset.better === state.better));
    }
    drawn.clear();
    space.replaceChildren();
    byId("nothing").hidden = shown.length > 0;
  };

  // ---- the windowed list ----------------------------------------------------------------------------------------
  const drawn = new Map();
  const draw = () => {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 6);
    const last = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 6);
    for (const [place, node] of drawn) {
      if (place < first || place >= last) { node.remove(); drawn.delete(place); }
    }
    for (let place = first; place < last; place++) {
      if (!drawn.has(place)) { const node = item(place); drawn.set(place, node); space.append(node); }
      drawn.get(place).setAttribute("aria-selected", String(shown[place] === current));
    }
    const place = shown.indexOf(current);
    if (place >= 0 && drawn.has(place)) list.setAttribute("aria-activedescendant", `item-${place}`);
    else list.removeAttribute("aria-activedescendant");
  };
  const badge = (run, i) => {
    const [glyph, meaning] = SIGNS[sign(run, i)];
    const node = make("span", { class: `sign ${STYLE[sign(run, i)]}`, title: `${letter(task.who[run])}, ${data.runs[task.who[run]]}: ${meaning}` });
    node.append(make("span", { "aria-hidden": "true" }, glyph), make("span", { class: "unseen" }, `${letter(task.who[run])} ${meaning}`));
    return node;
  };
  const item = (place) => {
    const i = shown[place];
    const node = make("div", { class: "item", role: "option", id: `item-${place}`, "aria-posinset": place + 1, "aria-setsize": shown.length });
    node.style.top = `${place * ROW}px`;
    const source = picture(task.image[i]);
    node.append(source ? make("img", { class: "thumb", src: source, alt: "", loading: "lazy" }) : make("span", { class: "thumb" }));
    const question = make("div", { dir: "auto" });
    appendText(question, oneLine(string(task.prompt[i]).trim().split("\n")[0]).slice(0, 120));
    const id = make("div", { class: "id" });
    appendText(id, task.id[i]);
    node.append(make("div", { class: "words" }, question, id));
    node.append(make("div", { class: "signs" }, ...task.answers.map((_, run) => badge(run, i))));
    node.addEventListener("click", () => { choose(i, true); });
    return node;
  };
  let waiting = false;
  list.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }, { passive: true });
  new ResizeObserver(() => draw()).observe(list);

  // ---- one question ---------------------------------------------------------------------------------------------
  const choose = (i, open = false) => {
    current = i;
    const place = shown.indexOf(i);
    if (place >= 0 && list.clientHeight) {
      const top = place * ROW;
      if (top < list.scrollTop) list.scrollTop = top;
      else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    }
    if (open) browser.classList.add("open");
    showDetail();
    draw();
    remember();
  };
  const move = (step) => {
    if (!shown.length) return;
    const place = shown.indexOf(current);
    choose(shown[Math.min(shown.length - 1, Math.max(0, place < 0 ? 0 : place + step))]);
  };
  const showDetail = () => {
    detail.replaceChildren();
    if (current < 0) return;
    const i = current, place = shown.indexOf(i);
    const button = (label, action, off = false) => {
      const node = make("button", { type: "button" }, label);
      node.disabled = off;
      node.addEventListener("click", action);
      return node;
    };
    const back = button("← list", () => { browser.classList.remove("open"); draw(); list.focus(); });
    back.classList.add("back");
    const link = button("copy link", async () => {
      remember();
      try { await navigator.clipboard.writeText(location.href); link.textContent = "copied"; } catch { link.textContent = "see the address bar"; }
    });
    detail.append(make("div", { class: "move" }, back, button("↑ previous", () => move(-1), place <= 0), button("↓ next", () => move(1), place >= shown.length - 1), link));
    const source = picture(task.image[i]);
    if (source) detail.append(make("div", { class: "picture" }, make("img", { src: source, alt: `The picture of question ${task.id[i]}` })));
    const title = make("h3", { id: "detail-title" });
    appendText(title, task.id[i]);
    detail.append(title);
    const chips = make("div");
    for (const group of task.members[i]) chips.append(appendText(make("span", { class: "chip" }), task.groups[group]));
    detail.append(chips);
    if (!source) detail.append(make("p", { class: "soft" }, task.image[i] === -2 ? "A question without a picture." : "Its picture is not in this page."));
    detail.append(make("h4", {}, "Question"), words(string(task.prompt[i])));
    detail.append(make("h4", {}, "Gold answer"), words(string(task.gold[i]) || "not public"));
    const body = make("tbody");
    task.answers.forEach((run, k) => {
      const letters = make("span", { class: `who r${task.who[k] % 8}` }, letter(task.who[k]));
      const name = make("th", { scope: "row" }, letters);
      appendText(name, data.runs[task.who[k]]);
      const verdict = make("td", { "data-label": "verdict" }, badge(k, i), ` ${SIGNS[sign(k, i)][1]}`);
      const credit = run.credit[i];
      if (credit !== null && credit > 0 && credit < 1) verdict.append(` (${credit})`);
      if (run.cut[i] === "1") verdict.append(make("span", { class: "tag" }, "CUT OFF"));
      const raw = make("td", { "data-label": "answer" });
      raw.append(run.raw[i] < 0 ? make("span", { class: "soft" }, sign(k, i) === "-" ? "not asked" : "none") : words(string(run.raw[i])));
      if (run.error[i] >= 0) raw.append(words(string(run.error[i]), "text soft"));
      const parsed = make("td", { "data-label": "read as" });
      parsed.append(run.parsed[i] < 0 ? make("span", { class: "soft" }, "nothing") : words(string(run.parsed[i])));
      body.append(make("tr", {}, name, verdict, raw, parsed));
    });
    const head = make("tr", {}, ...["run", "verdict", "raw answer", "read as"].map((label) => make("th", { scope: "col" }, label)));
    detail.append(make("table", {}, make("thead", {}, head), body));
    task.answers.forEach((run, k) => {
      if (run.sent[i] < 0) return;
      const sent = string(run.sent[i]).split("\u0000").join(string(task.prompt[i]));
      detail.append(make("details", {}, make("summary", {}, `The whole prompt that ${letter(task.who[k])} was sent`), appendText(make("pre", { dir: "auto" }), sent)));
    });
    detail.scrollTop = 0;
  };

  // ---- filters --------------------------------------------------------------------------------------------------
  const option = (value, label) => make("option", { value }, label);
  const openTask = (index) => {
    task = data.tasks[index];
    lowered = null;
    current = -1;
    taskSelect.value = String(index);
    groupSelect.replaceChildren(option("", "all"), ...task.groups.map((group) => option(group, group)));
    runFilters.replaceChildren(...task.answers.map((_, run) => {
      const select = make("select", { "data-run": run },
        option("", "any"), option("r", "right"), option("w", "wrong"), option("p", "partly right"), option("u", "unreadable"), option("n", "no answer"));
      select.addEventListener("change", () => { state.signs[run] = select.value; state.differ = false; state.better = ""; apply(); });
      const label = make("label", { class: "half" }, `${letter(task.who[run])}: ${data.runs[task.who[run]]}`);
      label.append(select);
      return label;
    }));
    const none = task.answers.map(() => "");
    const whole = task.answers.every((run) => run.credit.every((credit) => credit === null || credit === 0 || credit === 1));
    const made = [["all", none, false, ""]];
    if (task.answers.length > 1) {
      made.push(["runs differ", none, true, ""]);
      const pairs = task.answers.slice(1).flatMap((_, k) => [[0, k + 1], [k + 1, 0]]).slice(0, 8);
      for (const [winner, loser] of pairs) {
        const [won, lost] = [letter(task.who[winner]), letter(task.who[loser])];
        made.push([whole ? `${won} right, ${lost} wrong` : `${won} better than ${lost}`, none, false, `${winner}>${loser}`]);
      }
    } else made.push(["wrong", ["w"], false, ""]);
    task.answers.forEach((run, k) => {
      const only = none.map((_, j) => (j === k ? "u" : ""));
      if (run.signs.includes("u")) made.push([`${letter(task.who[k])} unreadable`, only, false, ""]);
    });
    presets.replaceChildren(...made.map(([label, signs, differ, better]) => {
      const button = make("button", { type: "button", "data-signs": signs.join(","), "data-differ": differ ? "1" : "0", "data-better": better }, label);
      button.addEventListener("click", () => { state.signs = [...signs]; state.differ = differ; state.better = better; apply(); });
      return button;
    }));
    Object.assign(state, { group: "", signs: [...none], differ: false, better: "" });
  };
  const apply = (keepCurrent = false) => {
    groupSelect.value = state.group;
    search.value = state.text;
    runFilters.querySelectorAll("select").forEach((select, run) => { select.value = state.signs[run]; });
    refilter();
    if (!keepCurrent || !shown.includes(current)) {
      current = shown.length ? shown[0] : -1;
      list.scrollTop = 0;
    }
    choose(current);
  };
  data.tasks.forEach((each, index) => taskSelect.append(option(String(index), each.title)));
  taskSelect.addEventListener("change", () => { openTask(Number(taskSelect.value)); apply(); });
  groupSelect.addEventListener("change", () => { state.group = groupSelect.value; apply(); });
  search.addEventListener("input", () => { state.text = search.value; apply(true); });

  // ---- deep links: #q/<task>/<id>?group=..&runs=r,w&better=0>1&text=.. -------------------------------------------------------
  let quiet = true; // until something is chosen, the address stays as it was
  const remember = () => {
    if (quiet || current < 0) return;
    const query = new URLSearchParams();
    if (state.group) query.set("group", state.group);
    if (state.signs.some(Boolean)) query.set("runs", state.signs.join(","));
    if (state.differ) query.set("differ", "1");
    if (state.better) query.set("better", state.better);
    if (state.text) query.set("text", state.text);
    const rest = query.toString();
    const hash = `#q/${encodeURIComponent(task.name)}/${encodeURIComponent(task.id[current])}${rest && `?${rest}`}`;
    try { history.replaceState(null, "", hash); } catch { location.replace(hash); }
  };
  const follow = () => {
    const match = /^#q\/([^/?]*)(?:\/([^?]*))?(?:\?(.*))?$/.exec(location.hash);
    if (!match) return false;
    let name, id;
    try { name = decodeURIComponent(match[1]); id = decodeURIComponent(match[2] ?? ""); } catch { return false; }
    const index = data.tasks.findIndex((each) => each.name === name);
    if (index < 0) return false;
    openTask(index);
    const query = new URLSearchParams(match[3] ?? "");
    if (task.groups.includes(query.get("group"))) state.group = query.get("group");
    const signs = (query.get("runs") ?? "").split(",");
    state.signs = state.signs.map((_, run) => (signs[run] in matches ? signs[run] : ""));
    state.differ = query.get("differ") === "1";
    const better = /^(\d+)>(\d+)$/.exec(query.get("better") ?? "");
    state.better = better && better.slice(1).every((place) => Number(place) < task.answers.length) ? better[0] : "";
    state.text = query.get("text") ?? "";
    current = task.id.indexOf(id);
    apply(true);
    if (id) browser.classList.add("open");
    byId("questions").scrollIntoView({ behavior: "instant" });
    if (current >= 0) { const place = shown.indexOf(current); list.scrollTop = Math.max(0, place * ROW - list.clientHeight / 2); draw(); }
    return true;
  };
  window.addEventListener("hashchange", () => { quiet = true; follow(); quiet = false; });

  // ---- keyboard -------------------------------------------------------------------------------------------------
  const help = byId("help");
  byId("keys").addEventListener("click", () => help.showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const target = event.target;
    const typing = target instanceof HTMLInputElement || target instanceof HTMLSelectElement;
    if (typing) {
      if (event.key === "Escape") { target.blur(); list.focus({ preventScroll: true }); }
      if (event.key === "Enter" && target === search) list.focus();
      return;
    }
    const inList = target === list || target === document.body || detail.contains(target);
    const page = Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
    const actions = {
      j: () => move(1), k: () => move(-1), "/": () => search.focus(), "?": () => help.showModal(),
      Escape: () => { browser.classList.remove("open"); draw(); list.focus({ preventScroll: true }); },
    };
    if (target === list) {
      Object.assign(actions, {
        ArrowDown: () => move(1), ArrowUp: () => move(-1), PageDown: () => move(page), PageUp: () => move(-page),
        Home: () => move(-shown.length), End: () => move(shown.length), Enter: () => { browser.classList.add("open"); showDetail(); },
      });
    }
    if (!(event.key in actions) || (!inList && event.key !== "/" && event.key !== "?" && event.key !== "j" && event.key !== "k")) return;
    event.preventDefault();
    quiet = false;
    actions[event.key]();
    if (event.key === "j" || event.key === "k") {
      const box = browser.getBoundingClientRect();
      if (box.bottom < 80 || box.top > innerHeight - 80) browser.scrollIntoView({ block: "center" });
    }
  });
  browser.addEventListener("pointerdown", () => { quiet = false; });
  for (const node of [presets, byId("filters")]) node.addEventListener("pointerdown", () => { quiet = false; });
  byId("filters").addEventListener("input", () => { quiet = false; }, { capture: true });

  byId("live").hidden = false;
  if (!follow()) { openTask(0); apply(); }
  quiet = false;
})();
