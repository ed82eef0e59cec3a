// What the browser keeps: settings in one entry, every conversation in one of its own. Where
// storage is off or full the page goes on without.

const SETTINGS = "sparrow.settings";
const TALK = "sparrow.talk.";

export const DEFAULTS = {
  system: "", tools: "", thinking: false,
  temperature: null, top_p: null, top_k: null, max_tokens: null, seed: null, // null: the server's own
  shade: false, theme: "auto", language: null, model: null,
};

function read(name) {
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch {
    return null;
  }
}

function write(name, value) {
  try {
    localStorage.setItem(name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

export function loadSettings() {
  return { ...DEFAULTS, ...read(SETTINGS) };
}

export function saveSettings(settings) {
  write(SETTINGS, settings);
}

// The conversations of a kind, latest first.
export function loadTalks(kind) {
  const found = [];
  try {
    for (let place = 0; place < localStorage.length; place += 1) {
      const name = localStorage.key(place);
      const talk = name.startsWith(TALK) ? read(name) : null;
      if (talk?.kind === kind && Array.isArray(talk.nodes)) found.push(talk);
    }
  } catch {
    return [];
  }
  return found.sort((one, other) => other.changed - one.changed);
}

// False where there is no room. Probabilities are the larger part, so those of other
// conversations go first.
export function saveTalk(talk) {
  if (write(TALK + talk.id, talk)) return true;
  for (const other of [...loadTalks("chat"), ...loadTalks("text")]) {
    if (other.id === talk.id) continue;
    for (const node of other.nodes) delete node.tokens;
    write(TALK + other.id, other);
  }
  return write(TALK + talk.id, talk);
}

export function deleteTalk(talk) {
  try {
    localStorage.removeItem(TALK + talk.id);
  } catch {
    // Nothing was kept, then.
  }
}
