// The little of Markdown that small models write: paragraphs, headings, lists, code, bold. What is
// not understood stays as it is written. Nodes are made one by one and filled with text: nothing
// that a model writes is ever read as HTML.

import { element } from "./dom.js";

const FENCE = /^\s{0,3}(```+|~~~+)\s*([\w+-]*)\s*$/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const ITEM = /^\s{0,6}(?:[-*+]|(\d{1,4})[.)])\s+(.*)$/;

// [{kind: "code" | "heading" | "list" | "paragraph", …}]; an open fence runs to the end.
export function blocks(text) {
  const found = [];
  let open = null;
  for (const line of text.split("\n")) {
    const fence = FENCE.exec(line);
    const last = found.at(-1);
    if (open) {
      if (fence && fence[1].startsWith(open) && !fence[2]) open = null;
      else last.lines.push(line);
    } else if (fence) {
      open = fence[1];
      found.push({ kind: "code", language: fence[2], lines: [] });
    } else if (!line.trim()) {
      if (last) last.closed = true;
    } else {
      place(found, line);
    }
  }
  return found;
}

function place(found, line) {
  const last = found.at(-1);
  const heading = HEADING.exec(line);
  const item = ITEM.exec(line);
  if (heading) {
    found.push({ kind: "heading", lines: [heading[2]], closed: true });
  } else if (item) {
    const ordered = item[1] !== undefined;
    if (last?.kind === "list" && last.ordered === ordered) {
      last.closed = false;
      last.lines.push(item[2]);
    } else {
      found.push({ kind: "list", ordered, start: Number(item[1]), lines: [item[2]] });
    }
  } else if (last?.kind === "list" && !last.closed && /^\s/.test(line)) {
    last.lines[last.lines.length - 1] += `\n${line.trim()}`;
  } else if (last?.kind === "paragraph" && !last.closed) {
    last.lines.push(line);
  } else {
    found.push({ kind: "paragraph", lines: [line] });
  }
}

// [{kind: "code" | "bold" | "text", text}]
export function inline(text) {
  const found = [];
  let rest = 0;
  for (const match of text.matchAll(/(`+)(?!`)(.+?)(?<!`)\1(?!`)|\*\*(?=\S)(.+?)(?<=\S)\*\*/gs)) {
    if (match.index > rest) found.push({ kind: "text", text: text.slice(rest, match.index) });
    found.push(match[1] ? { kind: "code", text: match[2] } : { kind: "bold", text: match[3] });
    rest = match.index + match[0].length;
  }
  if (rest < text.length) found.push({ kind: "text", text: text.slice(rest) });
  return found;
}

const TAGS = { code: "code", bold: "strong" };

// An element of one stretch of text.
export function filled(tag, text, properties = {}) {
  const made = ({ kind, text: own }) => (kind === "text" ? own : element(TAGS[kind], {}, own));
  return element(tag, properties, ...inline(text).map(made));
}

// A list of nodes.
export function render(text) {
  return blocks(text).map((block) => {
    const whole = block.lines.join("\n");
    switch (block.kind) {
      case "code":
        return element("pre", { tabIndex: 0 }, element("code", {}, whole));
      case "heading":
        return filled("p", whole, { className: "heading" });
      case "list": {
        const items = block.lines.map((line) => filled("li", line));
        return block.ordered ? element("ol", { start: block.start }, ...items) : element("ul", {}, ...items);
      }
      default:
        return filled("p", whole);
    }
  });
}
