// The page: what is shown, and what happens when something is typed or pressed.

import { models } from "./api.js";
import { askKey, drawer, showDefaults, toolsOf } from "./drawer.js";
import { at, button, download, element, fit } from "./dom.js";
import { answer, complaint, question, sends } from "./message.js";
import { hide, watch } from "./nearly.js";
import { isBase, run } from "./run.js";
import { deleteTalk, loadSettings, loadTalks, saveSettings, saveTalk } from "./store.js";
import { add, begin, exported, path, remove, siblings, unanswered } from "./talk.js";
import { welcome } from "./welcome.js";
import { speak, translate, word } from "./words.js";

const settings = loadSettings();
const page = { models: [], model: null, talk: null, running: null, views: new Map(), trouble: null };
// The Enter that was pressed before the server had said which models it has.
let early = null;

// What is shown

const base = () => Boolean(page.model && isBase(page.model));
const kind = () => (base() ? "text" : "chat");

function render() {
  hide();
  translate(document);
  const shown = page.talk ? path(page.talk) : [];
  document.body.classList.toggle("base", base());
  document.body.classList.toggle("empty", !shown.length);
  document.title = page.model ? `${page.model.id} · Sparrow` : "Sparrow";
  at("new").textContent = word(base() ? "new_text" : "new");
  at("shade").setAttribute("aria-pressed", String(settings.shade));
  renderModels();
  renderTalks();
  renderColumn(shown);
  renderComposer(shown);
}

function renderModels() {
  const several = page.models.length > 1;
  at("models").hidden = !several;
  at("model").hidden = several;
  at("model").textContent = page.model?.id ?? "";
  const options = page.models.map(({ id }) => element("option", { value: id }, id));
  at("models").replaceChildren(...options);
  at("models").value = page.model?.id ?? "";
  showDefaults(page.model?.sparrow?.defaults);
}

function renderTalks() {
  const talks = page.model ? loadTalks(kind()) : [];
  const rows = talks.map((talk) => {
    const title = talk.title || word("untitled");
    const open = button(title, () => choose(talk), { className: "open" });
    if (talk.id === page.talk?.id) open.setAttribute("aria-current", "true");
    const label = word("delete_named", { title });
    const gone = button("×", () => forget(talk), { className: "gone", title: word("delete"), "aria-label": label });
    return element("li", {}, open, gone);
  });
  at("talks").replaceChildren(...rows);
  at("export").hidden = !talks.length;
}

function renderColumn(shown) {
  page.views.clear();
  const parts = base() && shown.length ? sheet(shown) : shown.map(turn);
  if (page.trouble) parts.push(complaint(page.trouble, start));
  else if (!page.model) parts.push(element("p", { className: "waiting" }, word("loading")));
  else if (!shown.length) parts.push(welcome(page.model, send));
  at("column").replaceChildren(...parts);
  toEnd();
}

function place(node) {
  const all = siblings(page.talk, node);
  return { i: all.indexOf(node), n: all.length };
}

function turn(node) {
  if (node.role !== "assistant") return question(node, place(node), acts);
  const style = { shade: settings.shade, plain: base(), signed: page.models.length > 1 };
  const view = answer(node, place(node), base() ? textActs : acts, style);
  page.views.set(node.id, view);
  view.update(page.running?.node === node);
  return view.box;
}

// A text and what the model went on with, in one piece.
function sheet(shown) {
  const node = shown.findLast((one) => one.role === "text");
  const last = shown.at(-1);
  const parts = [element("span", { className: "given" }, node.content)];
  if (last.role === "assistant") parts.push(turn(last));
  return [element("div", { className: code() ? "sheet code" : "sheet" }, ...parts)];
}

// Indented lines want letters of one width.
const code = () => /^(\t| {2,})\S/m.test(wholeText());

function renderComposer(shown) {
  const ask = at("ask");
  const [call] = page.talk ? unanswered(page.talk) : [];
  const prompt = base() ? word("ask_text") : call ? word("ask_tool", { name: call.name }) : word("ask");
  ask.placeholder = prompt;
  ask.setAttribute("aria-label", prompt);
  ask.setAttribute("enterkeyhint", base() ? "enter" : "send");
  const running = Boolean(page.running);
  at("send").hidden = running;
  at("stop").hidden = !running;
  at("send").disabled = !page.model;
  at("send").setAttribute("aria-label", word(base() ? "go_on" : "send"));
  at("send").title = word(base() ? "go_on" : "send");
  // What had the focus may be gone: it goes where the next key is wanted.
  if ([document.body, at("send"), at("stop")].includes(document.activeElement)) {
    if (running) at("stop").focus();
    else focusAsk();
  }
  const shading = settings.shade && shown.length;
  at("hint").textContent = word(shading ? "hint_shade" : base() ? "hint_text" : "hint");
  fit(ask);
}

// On a phone the focus would bring up the keyboard, over what is to be read.
function focusAsk() {
  if (matchMedia("(hover: hover)").matches) at("ask").focus();
}

const scroll = at("scroll");
const nearEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 60;

function toEnd() {
  scroll.scrollTop = scroll.scrollHeight;
}

// What happens

const acts = {
  edit(node, text) {
    stop();
    const { role, callId } = node;
    add(page.talk, node.parent, { role, callId, content: text });
    reply();
  },
  retry(node) {
    stop();
    page.talk.chosen[node.parent] = undefined;
    reply();
  },
  again(node) {
    if (node.content) return acts.retry(node);
    remove(page.talk, node);
    page.talk.chosen[node.parent] = undefined;
    reply();
  },
  turn(node, step) {
    stop();
    const all = siblings(page.talk, node);
    const next = all[all.indexOf(node) + step];
    page.talk.chosen[node.parent] = next.id;
    keep(page.talk);
    render();
    const buttons = at(`turn-${next.id}`).querySelectorAll(".versions button:enabled");
    buttons[step < 0 ? 0 : buttons.length - 1].focus();
  },
};

const wholeText = () => path(page.talk).slice(-2).map((node) => node.content).join("");

const textActs = {
  ...acts,
  whole: wholeText,
  first: (node) => [
    ...(node.error ? [] : [button(word("go_on"), goOn, { className: "main" })]),
    button(word("edit"), rewrite),
  ],
};

function goOn() {
  const { id } = path(page.talk).at(-1);
  add(page.talk, id, { role: "text", content: wholeText() });
  reply();
}

// Back to the box, with what is there by now.
function rewrite() {
  const text = wholeText();
  stop();
  page.talk = null;
  render();
  at("ask").value = text;
  fit(at("ask"));
  at("ask").focus();
}

function send(text) {
  if (!page.model || page.running || !text.trim()) return;
  at("ask").value = "";
  page.talk ??= begin(kind(), page.model.id);
  const [call] = unanswered(page.talk);
  const role = base() ? "text" : call ? "tool" : "user";
  const parent = path(page.talk).at(-1)?.id ?? 0;
  add(page.talk, parent, { role, content: text, ...(call ? { callId: call.id } : {}) });
  if (unanswered(page.talk).length) return keep(page.talk) && render();
  reply();
}

// Asks the server for what follows the last turn.
async function reply() {
  const { talk, model } = page;
  talk.model = model.id;
  if (!base()) {
    talk.system = settings.system.trim();
    talk.tools = toolsOf(settings.tools) ?? [];
  }
  const node = add(talk, path(talk).at(-1).id, { role: "assistant", content: "", model: model.id });
  const controller = new AbortController();
  const running = { node, talk, controller };
  page.running = running;
  at("spoken").replaceChildren();
  keep(talk);
  render();
  const announce = speaker(node);
  let due = 0;
  const changed = () => {
    due ||= requestAnimationFrame(() => {
      due = 0;
      if (page.running === running) show(node, true);
      announce(false);
    });
  };
  await run(talk, node, model, settings, controller.signal, changed);
  cancelAnimationFrame(due);
  announce(true);
  if (page.running === running) page.running = null;
  if (!talk.gone) keep(talk);
  if (page.talk !== talk) return;
  show(node, false);
  renderTalks();
  renderComposer(path(talk));
  if (node.error?.kind === "key" && (await askKey())) acts.again(node);
}

function show(node, running) {
  const follow = nearEnd();
  page.views.get(node.id)?.update(running);
  if (base()) at("column").firstChild.classList.toggle("code", code());
  if (follow) toEnd();
  at("latest").hidden = nearEnd();
}

// For those who listen: a sentence when it is whole, and the rest at the end.
function speaker(node) {
  let said = 0;
  return (all) => {
    const rest = node.content.slice(said);
    const cut = all ? rest.length : rest.search(/[.!?。！？\n][^.!?。！？\n]*$/) + 1;
    if (rest.slice(0, cut).trim()) at("spoken").append(element("p", {}, rest.slice(0, cut)));
    said += cut;
  };
}

function stop() {
  page.running?.controller.abort();
  page.running = null;
}

function keep(talk) {
  if (!saveTalk(talk)) complain({ kind: "storage" });
  return true;
}

function complain(error) {
  at("column").append(complaint(error, () => render()));
  toEnd();
}

function choose(talk) {
  menu(false);
  if (talk.id !== page.talk?.id) {
    stop();
    page.talk = talk;
    render();
  }
  focusAsk();
}

function forget(talk) {
  deleteTalk(talk);
  if (talk.id === page.talk?.id) {
    stop();
    page.talk.gone = true;
    page.talk = null;
  }
  render();
  at("new").focus();
}

function fresh() {
  stop();
  page.talk = null;
  menu(false);
  render();
  focusAsk();
}

function menu(open) {
  document.body.classList.toggle("menu", open);
  at("menu").setAttribute("aria-expanded", String(open));
  at("main").inert = open;
  if (open) at("new").focus();
}

function pick(id) {
  const before = kind();
  page.model = page.models.find((model) => model.id === id) ?? page.models[0];
  settings.model = page.model.id;
  saveSettings(settings);
  if (kind() !== before) page.talk = null;
}

async function start() {
  page.trouble = null;
  render();
  try {
    page.models = await models();
    pick(settings.model);
  } catch (error) {
    page.trouble = { kind: error.kind ?? "away", values: error.values };
  }
  render();
  if (page.trouble?.kind === "key" && (await askKey())) return start();
  focusAsk();
  const enter = early;
  early = null;
  if (!page.model || !enter) return;
  if (asks(enter)) return send(at("ask").value);
  const { selectionStart, selectionEnd } = at("ask"); // a line of a base model's text
  at("ask").setRangeText("\n", selectionStart, selectionEnd, "end");
  fit(at("ask"));
}

// What is listened to

function dress() {
  if (settings.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = settings.theme;
  at("theme").querySelector(`[value="${settings.theme}"]`).checked = true;
  at("language").querySelector(`[value="${speak(settings.language)}"]`).checked = true;
}

for (const name of ["theme", "language"]) {
  at(name).addEventListener("change", ({ target }) => {
    settings[name] = target.value;
    saveSettings(settings);
    dress();
    render();
  });
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send(at("ask").value);
});
at("ask").addEventListener("input", () => {
  early = null;
  fit(at("ask"));
});
const hurried = (event) => event.key === "Enter" && (event.ctrlKey || event.metaKey);
const asks = (event) => (base() ? hurried(event) : sends(event));
at("ask").addEventListener("keydown", (event) => {
  if (!asks(event)) return;
  event.preventDefault();
  if (page.model) at("composer").requestSubmit();
  else early = event;
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (document.body.classList.contains("menu")) {
    menu(false);
    at("menu").focus();
  } else if (page.running) {
    stop();
  }
});
document.addEventListener("keydown", (event) => {
  if (!hurried(event) || !base() || !page.talk) return;
  if (!page.running && !document.querySelector("dialog[open]")) goOn();
});
at("stop").addEventListener("click", stop);
at("new").addEventListener("click", fresh);
at("export").addEventListener("click", () => {
  download(base() ? "texts.jsonl" : "conversations.jsonl", exported(loadTalks(kind())));
});
at("shade").addEventListener("click", () => {
  settings.shade = !settings.shade;
  saveSettings(settings);
  render();
});
at("models").addEventListener("change", ({ target }) => {
  stop();
  pick(target.value);
  render();
});
at("menu").addEventListener("click", () => menu(!document.body.classList.contains("menu")));
at("veil").addEventListener("click", () => menu(false));
matchMedia("(width > 52rem)").addEventListener("change", () => menu(false));
at("latest").addEventListener("click", toEnd);
scroll.addEventListener("scroll", () => (at("latest").hidden = nearEnd()), { passive: true });
window.addEventListener("pagehide", () => page.running && saveTalk(page.running.talk));

drawer(settings, () => saveSettings(settings));
watch(at("column"));
dress();
start();
