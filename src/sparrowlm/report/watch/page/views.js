// The parts of the page that are not charts: runs, samples, settings, events.

import { build } from "./chart.js";
import { count, duration, figure, say, whole } from "./words.js";

// Keep one child of `parent` for each item, in order, so that focus and what a person has opened
// stay where they are while a run goes on.
export function keyed(parent, items, nameOf, create, update) {
  const held = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, place) => {
    const name = nameOf(item);
    const child = held.get(name) ?? create(item);
    held.delete(name);
    child.dataset.key = name;
    if (parent.children[place] !== child) parent.insertBefore(child, parent.children[place] ?? null);
    update(child, item);
  });
  for (const child of held.values()) child.remove();
}

// The list of runs: `pick(id, shown)` is called where a person chooses.
export function listRuns(parent, runs, { isShown, lookOf, pick }) {
  const create = (run) => {
    const item = build("li", "run");
    const label = build("label", "", item);
    const box = build("input", "", label);
    box.type = "checkbox";
    box.addEventListener("change", () => pick(run.id, box.checked));
    build("i", "color", label);
    build("b", "name", label, run.id);
    build("span", "state", label);
    build("div", "bar", item).append(build("i"));
    build("p", "where", item);
    build("p", "how", item);
    return item;
  };
  keyed(parent, runs, (run) => run.id, create, (item, run) => {
    const find = (name) => item.querySelector(name);
    item.dataset.state = run.state;
    item.title = run.folder;
    find("input").checked = isShown(run.id);
    find(".color").style.setProperty("--color", `var(${lookOf(run.id).color})`);
    find(".color").dataset.dashed = lookOf(run.id).dash.length > 0;
    find(".state").textContent = say(`state_${run.state}`);
    const bar = find(".bar");
    bar.hidden = run.progress == null || run.state === "finished";
    bar.firstChild.style.width = `${(run.progress ?? 0) * 100}%`;
    find(".where").textContent = where(run);
    find(".how").textContent = how(run);
  });
}

// How far: step 640, 4.2M tokens, 3 min, 64 %, 2 s ago.
function where(run) {
  if (run.step == null) return run.behind ? say("reading", `${count(run.behind)}B`) : say("waiting");
  const parts = [say("at", whole(run.step)), `${count(run.tokens)} ${say("tokens")}`, duration(run.seconds)];
  if (run.progress != null && run.state !== "finished") {
    parts.push(`${Math.floor(run.progress * 100)} %`);
    if (run.state === "running" && run.progress > 0.02 && run.progress < 1) {
      parts.push(say("left", duration(run.seconds * (1 / run.progress - 1))));
    }
  }
  if (run.behind) parts.push(say("reading", `${count(run.behind)}B`));
  else if (run.state !== "finished" && run.age != null) parts.push(say("ago", duration(run.age)));
  return parts.join(" · ");
}

// How well: loss 3.21 · held out 3.05 · 1.402 bits per byte.
function how(run) {
  const parts = [];
  const tell = (word, key, value) => value != null && parts.push(`${word.toLowerCase()} ${figure(key, value)}`);
  tell(say("loss"), "loss", run.loss);
  tell(say("reward"), "reward", run.reward);
  for (const key of ["val_loss", "val_bits_per_byte", "val_reward", "val_accuracy"]) {
    const name = say(key.replace("val_", ""));
    tell(key === "val_loss" ? say("held") : key === "val_bits_per_byte" ? name : `${say("held")}, ${name}`, key, run[key]);
  }
  tell(say("tokens_per_second"), "tokens_per_second", run.tokens_per_second);
  if (run.skipped) parts.push(say("skipped", whole(run.skipped)));
  return parts.join(" · ");
}

// The choices of a list: [{value, text}]; what was chosen stays, where it is still there.
export function choices(select, options) {
  keyed(select, options, (option) => `=${option.value}`, () => build("option"), (element, option) => {
    element.value = option.value;
    element.textContent = option.text;
  });
}

// What a run wrote at one moment.
export function showMoment(parent, moment) {
  parent.replaceChildren();
  if (!moment) {
    build("p", "note", parent, say("noSamples"));
    return;
  }
  for (const { prompt, text } of moment.texts) {
    const sample = build("pre", "sample", parent);
    sample.dir = "auto";
    if (prompt) build("b", "", sample, prompt);
    sample.append(text || say("nothing"));
  }
}

export const momentPlace = (moment) =>
  moment ? [say("at", whole(moment.step)), duration(moment.seconds)].filter(Boolean).join(" · ") : "";

// What two runs differ in.
export function showDifference(parent, rows, [a, b]) {
  if (!rows.length) {
    parent.replaceChildren(build("p", "note", null, say("same")));
    return;
  }
  const table = build("table", "difference");
  const head = build("tr", "", build("thead", "", table));
  for (const text of [say("setting"), a, b, say("meaning")]) build("th", "", head, text).scope = "col";
  const body = build("tbody", "", table);
  for (const row of rows) {
    const line = build("tr", "", body);
    build("th", "", line, row.key).scope = "row";
    build("td", "", line, row.a || "–");
    build("td", "", line, row.b || "–");
    build("td", "help", line, row.meaning);
  }
  parent.replaceChildren(table);
}

// What happened in the runs that are shown, the newest first.
export function showEvents(parent, events) {
  if (!events.length) {
    parent.replaceChildren(build("p", "note", null, say("noEvents")));
    return;
  }
  const table = build("table", "events");
  for (const { name, color, step, seconds, message } of events) {
    const line = build("tr", "", table);
    const run = build("td", "", line);
    build("i", "color", run).style.setProperty("--color", `var(${color})`);
    run.append(name);
    build("td", "number", line, whole(step));
    build("td", "number", line, duration(seconds));
    build("td", "", line, message);
  }
  parent.replaceChildren(table);
}
