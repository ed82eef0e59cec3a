// What a person sees first: the name of the model, what it is, and what one could begin with.

import { element } from "./dom.js";
import { filled } from "./markdown.js";
import { isBase } from "./run.js";
import { count, word } from "./words.js";

// `send` is called with the example that is chosen.
export function welcome(model, send) {
  const sort = isBase(model) ? "base" : "chat";
  const context = model.sparrow?.context ?? model.max_model_len;
  const parameters = model.sparrow?.parameters;
  const facts = [];
  if (parameters) facts.push(word("fact_parameters", { n: count(parameters) }));
  if (context) facts.push(word("fact_context", { n: context }));
  const examples = [1, 2, 3].map((number) => {
    const text = word(`example_${sort}_${number}`);
    const example = filled("button", text.trim(), { type: "button", onclick: () => send(text) });
    return element("li", {}, example);
  });
  return element(
    "section",
    { className: "welcome" },
    element("h2", {}, model.id),
    element("p", { className: "facts" }, facts.join(" · ")),
    element("p", {}, word(`about_${sort}`)),
    element("ul", { className: "examples", "aria-label": word("examples") }, ...examples),
  );
}
