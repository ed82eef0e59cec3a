// The answer as tokens: shaded by how unsure the model was of each, and what it nearly said of the
// one that is pointed at or focused. One token of an answer takes part in the Tab order; arrow
// keys, Home and End move along the rest.

import { at, element } from "./dom.js";
import { doubt } from "./tokens.js";
import { percent, word } from "./words.js";

const known = new WeakMap(); // span -> cell
let shown = null;

// Brings `box` to show `cells`, leaving alone what is there already: a stream only appends.
export function spell(box, cells) {
  cells.forEach((cell, place) => {
    const old = box.children[place];
    if (old?.textContent === cell.text && known.get(old).tokens.length === cell.tokens.length) {
      known.set(old, cell);
      return;
    }
    const span = element("span", { className: "token", tabIndex: place ? -1 : 0 }, cell.text);
    span.dataset.doubt = doubt(cell);
    known.set(span, cell);
    if (old) old.replaceWith(span);
    else box.append(span);
  });
  while (box.children.length > cells.length) box.lastChild.remove();
}

// A box that `spell` fills.
export function tokenBox() {
  return element("div", { className: "text tokens", role: "group", "aria-label": word("tokens_label") });
}

// Listens for all answers below `root`.
export function watch(root) {
  const cellOf = (event) => (known.has(event.target) ? event.target : null);
  root.addEventListener("pointerover", (event) => cellOf(event) && show(event.target));
  root.addEventListener("pointerout", (event) => {
    if (cellOf(event) && document.activeElement !== event.target) hide();
  });
  root.addEventListener("focusin", (event) => (cellOf(event) ? show(event.target) : hide()));
  root.addEventListener("focusout", hide);
  root.addEventListener("keydown", (event) => cellOf(event) && move(event));
  at("scroll").addEventListener("scroll", hide, { passive: true });
  window.addEventListener("resize", hide);
}

function move(event) {
  const box = event.target.parentNode;
  const next = {
    ArrowRight: event.target.nextElementSibling,
    ArrowLeft: event.target.previousElementSibling,
    Home: box.firstElementChild,
    End: box.lastElementChild,
  }[event.key];
  if (!next) return;
  event.preventDefault();
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function show(span) {
  const tip = at("nearly");
  tip.replaceChildren(...known.get(span).tokens.map(told));
  tip.hidden = false;
  shown?.removeAttribute("aria-describedby");
  shown = span;
  span.setAttribute("aria-describedby", "nearly");
  beside(span, tip);
}

export function hide() {
  at("nearly").hidden = true;
  shown?.removeAttribute("aria-describedby");
  shown = null;
}

// Above the token's first line where there is room, and inside of the window.
function beside(span, tip) {
  const [line] = span.getClientRects();
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, line.left), innerWidth - width - 8);
  const above = line.top - height - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 8 ? above : Math.min(line.bottom + 8, innerHeight - height - 8)}px`;
}

function told({ name, p, top }) {
  const rows = top.some(([other]) => other === name) ? top : [...top, [name, p]];
  const list = element("ol", { "aria-label": word("nearly") });
  for (const [other, share] of rows) {
    const bar = element("i");
    bar.style.width = `${100 * share}%`;
    const row = element(
      "li",
      { className: other === name ? "said" : "" },
      element("code", {}, visible(other)),
      element("span", { className: "bar", "aria-hidden": "true" }, bar),
      element("span", { className: "share" }, percent(share)),
    );
    list.append(row);
  }
  return list;
}

// White space can be all that a token is.
function visible(name) {
  return name.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "␍");
}
