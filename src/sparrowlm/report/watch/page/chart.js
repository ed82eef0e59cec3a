// One chart on a canvas: lines of several runs over one axis, and a cursor that reads them.

import { frame, label, logTicks, nearest, quantile, settled, smooth, ticks } from "./scale.js";
import { figure, knows, say, tickText } from "./words.js";

const LEFT = 50, RIGHT = 12, TOP = 8, BOTTOM = 24; // around the frame, in CSS pixels
const DOTS = 60; // held-out points that are marked one by one
const FONT = '11px system-ui, -apple-system, "Segoe UI", "Noto Sans", "PingFang SC", "Microsoft YaHei", sans-serif';

export class Chart {
  // `panel` is one of panels.js; `move(x)` is called where the cursor goes, with null where it leaves.
  constructor(panel, move) {
    this.panel = panel;
    this.move = move;
    this.lines = [];
    this.element = build("figure", "chart");
    this.title = build("figcaption", "", this.element);
    this.plot = build("div", "plot", this.element);
    this.canvas = build("canvas", "", this.plot);
    this.cover = build("canvas", "", this.plot);
    this.told = build("div", "told", this.plot);
    this.told.hidden = true;
    this.note = build("p", "note", this.element);
    this.plot.tabIndex = 0;
    this.plot.setAttribute("role", "img");
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  listen() {
    const follow = (event) => this.move(this.valueAt(event.offsetX), this);
    this.plot.addEventListener("pointermove", follow);
    this.plot.addEventListener("pointerdown", follow);
    this.plot.addEventListener("pointerleave", () => this.move(null));
    this.plot.addEventListener("blur", () => this.move(null));
    this.plot.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") this.move(null);
      if (!way || !this.end) return;
      event.preventDefault();
      const from = this.cursor ?? (way < 0 ? this.end : 0);
      const pace = this.end / (event.shiftKey ? 10 : 100);
      this.move(Math.min(Math.max(from + way * pace, 0), this.end), this);
    });
  }

  // Take new values in. `lines` are {name, color, dash, train, held} with tracks of the store;
  // `view` is {axis: name, unit: what one of its units holds, smoothing: share, log}.
  show(lines, view) {
    this.view = view;
    this.lines = lines.map((line) => prepared(line, this.panel.exact ? 0 : view.smoothing))
      .filter(({ train, held }) => train || held);
    this.draw();
  }

  draw() {
    if (!this.view) return;
    this.measure();
    this.paint();
    this.point(this.cursor ?? null);
  }

  // Sizes, axes and words.
  measure() {
    const { key } = this.panel;
    const [name, source] = key.split("/");
    const title = source ? `${say(name)} · ${source}` : say(name);
    this.title.replaceChildren(build("b", "", null, title));
    if (knows(`unit_${name}`)) build("small", "", this.title, say(`unit_${name}`));
    this.width = this.plot.clientWidth;
    this.height = this.plot.clientHeight;
    this.end = Math.max(0, ...tracks(this.lines).map((track) => track.places.at(-1) ?? 0)) / this.view.unit;
    const positive = tracks(this.lines).every((track) => every(track.mean, (value) => value > 0));
    this.log = this.view.log && positive;
    let values = [...bounds(this.lines, this.log)];
    if (!values.length) values = filled(tracks(this.lines).flatMap((track) => track.mean));
    if (!values.length) values = [0.5, 1];
    [this.low, this.high] = this.log ? stretched(values) : frame(values, { zero: this.panel.zero });
    const top = Math.max(...tracks(this.lines).map((track) => greatest(track.high ?? track.mean)));
    const above = top > this.high && this.lines.length;
    this.note.textContent = above ? say("above", figure(key, top)) : "";
    this.plot.setAttribute("aria-label", `${title}. ${this.spoken()} ${say("chartHelp")}`);
  }

  spoken() {
    return this.lines.map(({ name, train, held }) => {
      const last = (held ?? train).mean.findLast((value) => value != null);
      return `${name}: ${figure(this.panel.key, last)}.`;
    }).join(" ");
  }

  x(value) {
    return LEFT + (value / (this.end || 1)) * (this.width - LEFT - RIGHT);
  }

  y(value) {
    const place = this.log
      ? Math.log(this.high / value) / Math.log(this.high / this.low)
      : (this.high - value) / (this.high - this.low);
    return TOP + place * (this.height - TOP - BOTTOM);
  }

  valueAt(offset) {
    const share = (offset - LEFT) / (this.width - LEFT - RIGHT);
    return Math.min(Math.max(share, 0), 1) * this.end;
  }

  paint() {
    const pen = penOf(this.canvas, this.width, this.height);
    const style = getComputedStyle(this.plot);
    this.colors = (name) => style.getPropertyValue(name).trim();
    this.axes(pen);
    pen.save();
    pen.beginPath();
    pen.rect(LEFT, 0, this.width - LEFT - RIGHT + 4, this.height - BOTTOM + 1);
    pen.clip();
    pen.lineJoin = "round";
    for (const line of this.lines) this.band(pen, line);
    for (const line of this.lines) this.line(pen, line);
    pen.restore();
  }

  axes(pen) {
    pen.font = FONT;
    pen.fillStyle = this.colors("--soft");
    pen.strokeStyle = this.colors("--line");
    pen.lineWidth = 1;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    const heights = this.log ? logTicks(this.low, this.high) : ticks(this.low, this.high);
    const beside = this.log && this.high > 10 * this.low ? null : heights;
    for (const tick of heights) {
      const y = Math.round(this.y(tick)) + 0.5;
      stroke(pen, [[LEFT, y], [this.width - RIGHT, y]]);
      pen.fillText(tickText(this.panel.key, tick, beside ?? [tick]), LEFT - 8, y);
    }
    pen.strokeStyle = this.colors("--faint");
    stroke(pen, [[LEFT, this.height - BOTTOM + 0.5], [this.width - RIGHT, this.height - BOTTOM + 0.5]]);
    pen.textBaseline = "top";
    const places = this.end ? ticks(0, this.end, this.width < 420 ? 4 : 6) : [];
    const name = say(this.view.name);
    pen.textAlign = "right";
    pen.fillText(name, this.width - RIGHT, this.height - BOTTOM + 8);
    const free = this.width - RIGHT - pen.measureText(name).width - 10;
    pen.textAlign = "center";
    for (const tick of places) {
      const text = label(tick, places);
      if (this.x(tick) + pen.measureText(text).width / 2 < free) pen.fillText(text, this.x(tick), this.height - BOTTOM + 8);
    }
  }

  // What lies behind a smoothed line: its range where a place stands for many steps, else each step.
  band(pen, { color, train }) {
    if (!train || train.calm === train.mean && !train.low) return;
    pen.globalAlpha = train.low ? 0.16 : 0.22;
    if (train.low) {
      const outline = (values) => this.points({ ...train, mean: values });
      const shape = [...outline(train.high), ...outline(train.low).reverse()];
      pen.fillStyle = this.colors(color);
      trace(pen, shape);
      pen.fill();
    } else {
      pen.strokeStyle = this.colors(color);
      pen.lineWidth = 1;
      stroke(pen, this.points(train));
    }
    pen.globalAlpha = 1;
  }

  line(pen, { color, dash, train, held }) {
    pen.strokeStyle = pen.fillStyle = this.colors(color);
    pen.setLineDash(dash);
    if (train) {
      pen.lineWidth = 1.6;
      const points = this.points({ ...train, mean: train.calm });
      stroke(pen, points);
      if (points.length === 1) disc(pen, points[0], 2.5);
    }
    if (held) {
      const points = this.points(held);
      pen.lineWidth = train ? 1.2 : 1.8;
      stroke(pen, points);
      pen.setLineDash([]);
      if (points.length <= DOTS) {
        for (const point of points) {
          pen.fillStyle = this.colors("--paper");
          disc(pen, point, 4.4);
          pen.fillStyle = this.colors(color);
          disc(pen, point, 3);
        }
      }
    }
    pen.setLineDash([]);
  }

  // The places on the canvas. Steps without a value are passed over: a reward is there only where
  // answers were written. Kept near the frame, which cuts them: a canvas loses lines that leave it
  // by far.
  points({ places, mean }) {
    const found = [];
    mean.forEach((value, index) => {
      if (value == null) return;
      const y = Math.min(Math.max(this.y(value), -this.height), 2 * this.height);
      found.push([this.x(places[index] / this.view.unit), y]);
    });
    return found;
  }

  // Show what all lines are at `x` of the axis, with their names where `whole`; nothing where it
  // is null.
  point(x, whole = this.whole) {
    this.cursor = x;
    this.whole = whole;
    this.told.classList.toggle("brief", !whole);
    const pen = penOf(this.cover, this.width, this.height);
    this.told.hidden = x == null || !this.lines.length;
    if (this.told.hidden) return;
    pen.strokeStyle = this.colors("--soft");
    pen.setLineDash([3, 3]);
    stroke(pen, [[Math.round(this.x(x)) + 0.5, TOP], [Math.round(this.x(x)) + 0.5, this.height - BOTTOM]]);
    const place = label(x, ticks(0, this.end || 1, 100));
    const where = this.view.name === "step" ? say("at", place) : `${place} ${say(this.view.name)}`;
    this.told.replaceChildren(build("b", "", null, where));
    for (const line of this.lines) this.read(pen, line, x);
    const right = this.x(x) < this.width / 2;
    this.told.style.left = right ? `${this.x(x) + 12}px` : "auto";
    this.told.style.right = right ? "auto" : `${this.width - this.x(x) + 12}px`;
  }

  read(pen, { name, color, train, held }, x) {
    const parts = [[train && { ...train, mean: train.calm }, "train"], [held, "held"]];
    for (const [track, kind] of parts) {
      if (!track?.places.length) continue;
      const end = track.places.at(-1) / this.view.unit;
      if (x > end + this.end / 100) continue; // it has not come so far
      let at = nearest(track.places, x * this.view.unit);
      while (at > 0 && track.mean[at] == null) at--;
      const value = track.mean[at];
      if (value == null) continue;
      const row = build("p", "", this.told);
      const key = build("i", kind, row);
      key.style.background = this.colors(color);
      build("span", "", row, parts.every(([other]) => other) ? `${name}, ${say(kind)}` : name);
      build("b", "", row, figure(this.panel.key, value));
      pen.fillStyle = this.colors(color);
      if (this.y(value) > 0 && this.y(value) < this.height - BOTTOM) {
        disc(pen, [this.x(track.places[at] / this.view.unit), this.y(value)], 3.5);
      }
    }
  }
}

// A line whose training values are smoothed: the mean over the buckets nearby, `calm`.
function prepared(line, share) {
  const { train } = line;
  if (!train) return line;
  return { ...line, train: { ...train, calm: smooth(train.mean, share) } };
}

const tracks = (lines) => lines.flatMap(({ train, held }) => [train, held].filter(Boolean));

const every = (values, test) => values.every((value) => value == null || test(value));

const greatest = (values) => values.reduce((most, value) => (value > most ? value : most), -Infinity);

// What the frame has to hold: what follows the first fall, but for rare peaks. A logarithmic axis
// has room for the fall.
function* bounds(lines, log) {
  for (const { train, held } of lines) {
    if (train) {
      const calm = filled(log ? train.calm : settled(train.calm));
      const raw = filled(log ? train.mean : settled(train.mean));
      yield* calm;
      if (raw.length) yield* [quantile(raw, 0.003), quantile(raw, 0.997)];
    }
    if (held) yield* filled(log ? held.mean : settled(held.mean));
  }
}

const filled = (values) => values.filter((value) => value != null);

// [low, high] of a logarithmic axis, with a little room.
function stretched(values) {
  const [low, high] = frame(values.map(Math.log));
  return [Math.exp(low), Math.exp(high)];
}

function penOf(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  return pen;
}

function trace(pen, points) {
  pen.beginPath();
  points.forEach((point, index) => pen[index ? "lineTo" : "moveTo"](...point));
}

function stroke(pen, points) {
  trace(pen, points);
  pen.stroke();
}

function disc(pen, [x, y], radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}

export function build(tag, name = "", parent = null, text = null) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text != null) element.textContent = text;
  parent?.append(element);
  return element;
}
