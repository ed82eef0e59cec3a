// What the server has told so far: runs, and their curves as they grow.

export class Store {
  constructor() {
    this.overview = { runs: [], roots: [], left_out: 0 };
    this.curves = new Map(); // id -> {known, train, evals, events}
    this.written = new Map(); // id -> {version, moments}
  }

  // Ask for the list of runs, then for what is new in the curves of those that are shown.
  async refresh(isShown) {
    const overview = await ask("/api/runs");
    const ids = new Set(overview.runs.map((run) => run.id));
    for (const id of this.curves.keys()) if (!ids.has(id)) this.curves.delete(id);
    this.overview = overview;
    const wanted = overview.runs.filter((run) => isShown(run.id));
    const changed = await Promise.all(wanted.map((run) => this.follow(run.id)));
    return changed.some(Boolean);
  }

  async follow(id) {
    const before = this.curves.get(id);
    const query = new URLSearchParams({ run: id, known: before?.known ?? "" });
    const news = await ask(`/api/series?${query}`);
    if (!news || before?.known === news.known) return false; // gone in between, or nothing new
    this.curves.set(id, {
      known: news.known,
      train: joined(before?.train, news.train),
      evals: joined(before?.evals, news.evals),
      events: news.events,
    });
    return true;
  }

  async samples(run) {
    const held = this.written.get(run.id);
    if (held && held.version === run.samples) return held;
    const fresh = await ask(`/api/samples?${new URLSearchParams({ run: run.id })}`);
    if (fresh) this.written.set(run.id, fresh);
    return fresh;
  }

  difference(a, b) {
    return ask(`/api/difference?${new URLSearchParams({ a, b })}`);
  }

  // A number of one run as {places, mean, low, high, width}, or nothing.
  line(id, kind, key, axis) {
    const track = this.curves.get(id)?.[kind];
    const column = track?.columns[key];
    if (!column) return null;
    return { places: track.axes[axis], width: track.width, ...column };
  }
}

// A track with what is new in it; from its start where the server began again.
export function joined(before, news) {
  if (!before || news.start === 0 || before.width !== news.width) return news;
  const from = news.start;
  const extend = (old, fresh) => {
    const kept = (old ?? []).slice(0, from);
    while (kept.length < from) kept.push(null);
    return kept.concat(fresh);
  };
  const axes = {}, columns = {};
  for (const name of Object.keys(news.axes)) axes[name] = extend(before.axes[name], news.axes[name]);
  for (const [key, parts] of Object.entries(news.columns)) {
    columns[key] = {};
    for (const [part, values] of Object.entries(parts)) {
      columns[key][part] = extend(before.columns[key]?.[part], values);
    }
  }
  return { start: 0, width: news.width, axes, columns };
}

// What the server says; null of what is not there any more.
async function ask(address) {
  const answer = await fetch(address);
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Error(`${address}: ${answer.status}`);
  return answer.json();
}
