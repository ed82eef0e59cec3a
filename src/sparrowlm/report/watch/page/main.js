// The page: asks for what is new every second or so, and shows it.

import { Chart, build } from "./chart.js";
import { groupsOf, look } from "./panels.js";
import { Store } from "./store.js";
import { choices, keyed, listRuns, momentPlace, showDifference, showEvents, showMoment } from "./views.js";
import { say, speak, spoken } from "./words.js";

const EVERY = 1500, HIDDEN = 10000; // milliseconds between two questions
const AT_FIRST = 6; // runs that are shown without being chosen: as many as there are colors
const EVENTS = 100;

const find = (name) => document.getElementById(name);
const store = new Store();
const charts = new Map(); // panel key -> Chart
const places = new Map(); // run id -> the place of its color, which it keeps
const picked = new Map(); // run id -> shown or not, where a person has said so
const moment = { run: "", place: null }; // place null: the newest, whatever comes

// What a person has set stays for the next time, in this browser.
const settings = {
  axis: "step", smoothing: "4", log: "", theme: "auto",
  language: navigator.language.startsWith("zh") ? "zh" : "en",
  ...JSON.parse(localStorage.getItem("sparrow-watch") ?? "{}"),
};

function set(name, value) {
  settings[name] = value;
  localStorage.setItem("sparrow-watch", JSON.stringify(settings));
  show();
}

const runs = () => store.overview.runs;
const lookOf = (id) => look(places.get(id) ?? 0);
const isShown = (id) => picked.get(id) ?? (places.get(id) ?? 0) < AT_FIRST;
const shownRuns = () => runs().filter((run) => isShown(run.id));

function giveColors() {
  for (const { id } of runs()) if (!places.has(id)) places.set(id, places.size);
}

function show() {
  applyTheme();
  speak(settings.language);
  giveColors();
  showTools();
  showRuns();
  showCurves();
  showSamples();
  showSettings();
  showEventsOfAll();
}

const dark = matchMedia("(prefers-color-scheme: dark)");

function applyTheme() {
  const auto = dark.matches ? "dark" : "light";
  document.documentElement.dataset.theme = settings.theme === "auto" ? auto : settings.theme;
}

function showTools() {
  find("theme").textContent = `${say("theme")}: ${say(`theme_${settings.theme}`)}`;
  for (const input of find("axis").querySelectorAll("input")) input.checked = input.value === settings.axis;
  find("smoothing").value = settings.smoothing;
  find("log").checked = Boolean(settings.log);
}

function showRuns() {
  listRuns(find("runs"), runs(), { isShown, lookOf, pick: (id, shown) => (picked.set(id, shown), tick()) });
  const { roots, left_out: more } = store.overview;
  const note = find("runs-note");
  note.textContent = more ? say("leftOut", more) : runs().length ? "" : say("noRuns", roots.join(", "));
  note.hidden = !note.textContent;
}

// The unit of the time axis, so that its numbers stay short.
function timeUnit(tracks) {
  const longest = Math.max(0, ...tracks.map(({ train, evals }) =>
    Math.max(train.axes.seconds.at(-1) ?? 0, evals.axes.seconds.at(-1) ?? 0)));
  if (longest >= 3 * 3600) return { name: "hours", unit: 3600 };
  return longest >= 120 ? { name: "minutes", unit: 60 } : { name: "seconds", unit: 1 };
}

function showCurves() {
  const shown = shownRuns();
  const tracks = shown.map((run) => store.curves.get(run.id)).filter(Boolean);
  const time = settings.axis === "seconds";
  const view = {
    axis: settings.axis, ...(time ? timeUnit(tracks) : { name: settings.axis, unit: 1 }),
    smoothing: Number(settings.smoothing) / 200, log: settings.log,
  };
  const groups = groupsOf(tracks);
  find("key").hidden = !groups.length;
  if (!groups.length) {
    const word = runs().length && !shown.length ? "choose" : "waiting";
    find("curves").replaceChildren(build("p", "note", null, say(word)));
    return;
  }
  keyed(find("curves"), groups, ({ group }) => group, ({ group }) => section(group), (part, { group, panels }) => {
    part.querySelector("h2").textContent = say(group);
    keyed(part.querySelector(".charts"), panels, ({ key }) => key, chartOf, (_, panel) => {
      charts.get(panel.key).show(shown.map((run) => lineOf(run, panel, view)), view);
    });
  });
}

function section(group) {
  const part = build("section", `group ${group}`);
  build("h2", "", part);
  build("div", "charts", part);
  return part;
}

function chartOf(panel) {
  if (!charts.has(panel.key)) charts.set(panel.key, new Chart(panel, pointAll));
  return charts.get(panel.key).element;
}

// Every chart has the cursor at the same place; the one that it is on says whose the values are.
function pointAll(x, chart) {
  for (const other of charts.values()) if (other.element.isConnected) other.point(x, other === chart);
}

// Whether something is other than the last time. What stays is not drawn anew: somebody may be
// selecting text in it.
const drawn = new Map();

function isNew(name, value) {
  const text = JSON.stringify(value);
  const changed = drawn.get(name) !== text;
  drawn.set(name, text);
  return changed;
}

const lineOf = (run, { key, held }, { axis }) => ({
  name: run.id, ...lookOf(run.id),
  train: store.line(run.id, "train", key, axis),
  held: store.line(run.id, "evals", held, axis),
});

async function showSamples() {
  const shown = shownRuns();
  choices(find("samples-run"), shown.map(({ id }) => ({ value: id, text: id })));
  const run = shown.find(({ id }) => id === find("samples-run").value);
  const held = run && run.samples ? await store.samples(run).catch(() => null) : null;
  const moments = held?.moments ?? [];
  if (run?.id !== moment.run) Object.assign(moment, { run: run?.id, place: null });
  const place = Math.min(moment.place ?? moments.length - 1, moments.length - 1);
  const slider = find("moment");
  slider.max = Math.max(moments.length - 1, 0);
  slider.value = Math.max(place, 0);
  slider.disabled = moments.length < 2;
  slider.setAttribute("aria-valuetext", momentPlace(moments[place]));
  find("moment-place").textContent = moments.length
    ? `${momentPlace(moments[place])}  (${say("of", place + 1, moments.length)})` : "";
  if (isNew("samples", [run?.id, place, moments[place] ?? null, spoken()])) showMoment(find("samples"), moments[place]);
}

async function showSettings() {
  const options = runs().map(({ id }) => ({ value: id, text: id }));
  choices(find("a"), options);
  choices(find("b"), [{ value: "", text: say("defaults") }, ...options]);
  const [a, b] = [find("a").value, find("b").value];
  // A run that is resumed for longer has other settings than before: ask again.
  const lengths = runs().filter(({ id }) => id === a || id === b).map(({ length }) => length);
  if (!a || !isNew("settings", [a, b, spoken(), lengths])) return;
  const rows = await store.difference(a, b).catch(() => null);
  if (!rows) drawn.delete("settings");
  else if (find("a").value === a && find("b").value === b) showDifference(find("difference"), rows, [a, b || say("defaults")]);
}

function showEventsOfAll() {
  const events = shownRuns().flatMap((run) => (store.curves.get(run.id)?.events ?? [])
    .map((event) => ({ ...event, name: run.id, color: lookOf(run.id).color })));
  const newest = events.reverse().slice(0, EVENTS);
  if (isNew("events", [newest, spoken()])) showEvents(find("events"), newest);
}

let timer = 0;

// Ask, show, and ask again; at once while the server is still reading a long log.
async function tick() {
  clearTimeout(timer);
  let wait = document.hidden ? HIDDEN : EVERY;
  try {
    await store.refresh((id) => (giveColors(), isShown(id)));
    find("lost").hidden = true;
    if (runs().some((run) => run.behind)) wait = 50;
  } catch {
    find("lost").hidden = false;
  }
  show();
  clearTimeout(timer);
  timer = setTimeout(tick, wait);
}

function listen() {
  find("axis").addEventListener("change", (event) => set("axis", event.target.value));
  find("smoothing").addEventListener("input", (event) => set("smoothing", event.target.value));
  find("log").addEventListener("change", (event) => set("log", event.target.checked ? "yes" : ""));
  find("language").addEventListener("click", () => set("language", spoken() === "zh" ? "en" : "zh"));
  find("theme").addEventListener("click", () => {
    set("theme", { auto: "light", light: "dark", dark: "auto" }[settings.theme]);
  });
  for (const [name, shown] of [["all", true], ["none", false]]) {
    find(name).addEventListener("click", () => {
      for (const { id } of runs()) picked.set(id, shown);
      tick();
    });
  }
  find("moment").addEventListener("input", (event) => {
    const place = Number(event.target.value);
    moment.place = place === Number(event.target.max) ? null : place;
    showSamples();
  });
  find("samples-run").addEventListener("change", showSamples);
  for (const name of ["a", "b"]) find(name).addEventListener("change", showSettings);
  dark.addEventListener("change", show);
  document.addEventListener("visibilitychange", () => document.hidden || tick());
}

listen();
tick();
