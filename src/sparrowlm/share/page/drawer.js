// The drawer of settings and the field for the API key.

import { useKey } from "./api.js";
import { at } from "./dom.js";
import { DEFAULTS } from "./store.js";
import { word } from "./words.js";

const NAMES = ["system", "tools", "thinking", "temperature", "top_p", "top_k", "max_tokens", "seed"];

// Keeps `settings` and the form of the drawer the same; `changed` is called after every change.
export function drawer(settings, changed) {
  const form = at("settings");
  const fields = form.elements;

  function show() {
    for (const name of NAMES) {
      if (name === "thinking") fields[name].checked = settings[name];
      else fields[name].value = settings[name] ?? "";
    }
  }

  form.addEventListener("input", ({ target }) => {
    if (target === fields.tools) {
      target.setCustomValidity(toolsOf(target.value) ? "" : word("error_tools"));
    }
    if (!NAMES.includes(target.name) || !target.validity.valid) return;
    if (target.type === "checkbox") settings[target.name] = target.checked;
    else if (target.type === "number") settings[target.name] = target.value === "" ? null : target.valueAsNumber;
    else settings[target.name] = target.value;
    changed();
  });
  at("defaults").addEventListener("click", () => {
    for (const name of NAMES) settings[name] = DEFAULTS[name];
    fields.tools.setCustomValidity("");
    show();
    changed();
  });
  at("drawer").addEventListener("click", (event) => {
    if (event.target === at("drawer")) at("drawer").close(); // outside of it
  });
  at("open-settings").addEventListener("click", () => {
    show();
    at("drawer").showModal();
  });
}

// What the server does where nothing is set stands in the fields as their placeholders.
export function showDefaults(defaults = {}) {
  for (const name of ["temperature", "top_p", "top_k"]) {
    at("settings").elements[name].placeholder = defaults[name] ?? "";
  }
}

// True once a key was given.
export function askKey() {
  const dialog = at("key");
  return new Promise((resolve) => {
    const input = dialog.querySelector("input");
    input.value = "";
    dialog.returnValue = "";
    dialog.addEventListener("submit", () => {
      useKey(input.value);
      input.value = "";
      dialog.returnValue = "given";
    }, { once: true });
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "given"), { once: true });
    dialog.showModal();
  });
}

// The tools as they were typed: a list, or null where they are no JSON list.
export function toolsOf(text) {
  if (!text.trim()) return [];
  try {
    const found = JSON.parse(text);
    return Array.isArray(found) ? found.map(wrapped) : null;
  } catch {
    return null;
  }
}

// OpenAI wraps a signature in {"type": "function"}; a bare one is taken as well.
function wrapped(tool) {
  return tool?.function ? tool : { type: "function", function: tool };
}
