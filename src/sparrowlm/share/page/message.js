// One turn of a conversation as the page shows it.

import { button, copy, element, fit } from "./dom.js";
import { filled, render } from "./markdown.js";
import { spell, tokenBox } from "./nearly.js";
import { cells, within } from "./tokens.js";
import { count, word } from "./words.js";

// `acts` is what its buttons do: {edit(node, text), retry(node), turn(node, step), again(node)}, and
// of a text also which come first and what is copied: {first(node), whole(node)}. `place` is where
// it stands among its versions: {i, n}.
export function question(node, place, acts) {
  const box = element("article", { className: `turn ${node.role}`, id: `turn-${node.id}` });
  const text = filled("div", node.content, { className: "said" });
  const named = node.role === "tool" ? [element("p", { className: "name" }, word("tool_result"))] : [];
  const edit = () => editing(box, node, acts);
  const row = actions(
    versions(node, place, acts),
    copyButton(() => node.content),
    button(word("edit"), edit),
  );
  box.append(element("h2", { className: "unseen" }, word("you")), ...named, text, row);
  return box;
}

function editing(box, node, acts) {
  const area = element("textarea", { value: node.content, "aria-label": word("edit") });
  const before = [...box.childNodes];
  const leave = () => {
    box.replaceChildren(...before);
    box.querySelector(".acts button:last-child").focus();
  };
  const submit = element("button", { type: "submit", className: "wide" }, word("save"));
  const row = element("p", {}, submit, button(word("cancel"), leave));
  const form = element("form", { className: "editing" }, area, row);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (area.value.trim()) acts.edit(node, area.value);
  });
  area.addEventListener("input", () => fit(area));
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") leave();
    else if (sends(event)) form.requestSubmit();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  box.replaceChildren(form);
  fit(area);
  area.focus();
}

// Enter, but not the one that ends the composition of a Chinese word.
export function sends(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

// An answer: {box, update(running)}, which shows what its node holds by now; `shade`: as tokens,
// `plain`: without Markdown, `signed`: with the name of its model.
export function answer(node, place, acts, { shade, plain, signed }) {
  const box = element("article", { className: "turn assistant", id: `turn-${node.id}` });
  const thought = element("details", { className: "thought", hidden: true }, element("summary"));
  const thinking = written(shade || plain);
  const content = written(shade || plain);
  const calls = element("div");
  const foot = element("div");
  thought.append(thinking.box);
  content.box.className = "content";
  box.append(thought, content.box, calls, foot);

  function update(running) {
    const all = shade && node.tokens ? cells(node.tokens) : [];
    const thoughts = all.length && node.thinking ? within(all, node.thinking) : null;
    const said = all.length && node.content ? within(all, node.content, thoughts?.end) : null;
    thinking.fill(node.thinking ?? "", thoughts?.cells);
    content.fill(node.content, said?.cells);
    thought.hidden = !node.thinking;
    thought.firstChild.textContent = word(running && !node.content ? "thinking" : "thought");
    calls.replaceChildren(...(node.calls ?? []).map(called));
    const empty = running && !node.content && !node.thinking && !node.calls?.length;
    box.classList.toggle("running", running);
    box.setAttribute("aria-busy", String(running));
    if (empty) foot.replaceChildren(element("p", { className: "waiting" }, word("waiting")));
    else if (running) foot.replaceChildren();
    else foot.replaceChildren(...ending(node, place, acts, signed));
  }
  return { box, update };
}

// A text that grows: as tokens where they are given, or else as it is, or as Markdown.
function written(plain) {
  const box = element("div");
  let tokens = null;
  let last = null;
  function fill(text, found) {
    if (!text) {
      box.replaceChildren();
      tokens = null;
    } else if (found) {
      if (!tokens) box.replaceChildren((tokens = tokenBox()));
      spell(tokens, found);
    } else if (text !== last || tokens) {
      tokens = null;
      const nodes = plain ? [text] : render(text);
      box.replaceChildren(element("div", { className: plain ? "text plain" : "text" }, ...nodes));
      for (const pre of box.querySelectorAll("pre")) {
        const held = element("div", { className: "code" }, copyButton(() => pre.textContent));
        pre.replaceWith(held);
        held.prepend(pre);
      }
    }
    last = text;
  }
  return { box, fill };
}

function called(call) {
  return element(
    "section",
    { className: "call" },
    element("p", { className: "name" }, word("calls", { name: call.name })),
    element("pre", { tabIndex: 0 }, pretty(call.arguments)),
  );
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function ending(node, place, acts, signed) {
  const parts = [];
  if (node.error) parts.push(complaint(node.error, () => acts.again(node)));
  else if (!node.content && !node.thinking && !node.calls?.length) {
    parts.push(element("p", { className: "waiting" }, word("error_empty")));
  }
  const buttons = [versions(node, place, acts), ...(acts.first?.(node) ?? [])];
  if (node.content) buttons.push(copyButton(() => acts.whole?.(node) ?? node.content));
  if (!node.error) buttons.push(button(word("retry"), () => acts.retry(node)));
  const told = [signed ? node.model : "", stats(node)].filter(Boolean).join(" · ");
  parts.push(actions(...buttons, element("span", { className: "stats" }, told)));
  return parts;
}

function stats({ stats: found, end }) {
  const parts = [];
  if (found?.tokens) parts.push(word("stat_tokens", { n: found.tokens }));
  if (found?.speed) parts.push(word("stat_speed", { n: count(Math.round(found.speed)) }));
  if (found?.context) parts.push(word("stat_context", { n: found.used, all: found.context }));
  if (end === "length" || end === "stopped") parts.push(word(`finish_${end}`));
  return parts.join(" · ");
}

// What went wrong, in words, with a way on.
export function complaint({ kind, values }, again) {
  const lines = [element("p", {}, word(`error_${kind}`, values))];
  if (kind === "long") lines.push(element("p", {}, word("error_long_fix")));
  return element("div", { className: "error", role: "alert" }, ...lines, button(word("again"), again));
}

function actions(...parts) {
  return element("div", { className: "acts" }, ...parts);
}

function versions(node, { i, n }, acts) {
  if (n < 2) return "";
  return element(
    "span",
    { className: "versions" },
    button("‹", () => acts.turn(node, -1), { "aria-label": word("before"), disabled: i === 0 }),
    element("span", {}, word("of", { i: i + 1, n })),
    button("›", () => acts.turn(node, 1), { "aria-label": word("after"), disabled: i === n - 1 }),
  );
}

function copyButton(text) {
  const made = button(word("copy"), async () => {
    await copy(text());
    made.textContent = word("copied");
    setTimeout(() => (made.textContent = word("copy")), 1500);
  });
  return made;
}
