// One answer: what is asked of the server, and how its chunks become a node. Nothing here knows of
// the page.

import { ApiError, stream } from "./api.js";
import { messages, path } from "./talk.js";
import { tokenOf, tokensOf } from "./tokens.js";

const TOP = 5; // how many tokens the model nearly said

export function isBase(model) {
  return model.sparrow?.kind === "base";
}

// {path, body} of a request for `node`. What is not set is left to the server.
export function request(talk, node, model, settings) {
  const body = { model: model.id };
  for (const name of ["temperature", "top_p", "top_k", "max_tokens", "seed"]) {
    if (settings[name] !== null) body[name] = settings[name];
  }
  if (talk.kind === "text") {
    const { content } = path(talk).find((one) => one.id === node.parent);
    return { path: "v1/completions", body: { ...body, prompt: content, logprobs: TOP } };
  }
  Object.assign(body, { messages: messages(talk, node.id), logprobs: true, top_logprobs: TOP });
  if (settings.thinking) body.chat_template_kwargs = { enable_thinking: true };
  if (talk.tools?.length) body.tools = talk.tools;
  return { path: "v1/chat/completions", body };
}

// Fills `node` and calls `changed` after every chunk. What went wrong is node.error.
export async function run(talk, node, model, settings, signal, changed) {
  const asked = request(talk, node, model, settings);
  let first = 0;
  let last = 0;
  let usage = null;
  try {
    for await (const chunk of stream(asked.path, asked.body, signal)) {
      usage = chunk.usage ?? usage;
      const choice = chunk.choices?.[0];
      if (!choice) continue;
      take(node, choice);
      last = performance.now();
      if (node.tokens?.length) first ||= last;
      changed();
    }
  } catch (error) {
    if (error.name === "AbortError") node.end = "stopped";
    else if (error instanceof ApiError) node.error = { kind: error.kind, values: error.values };
    else throw error;
  }
  const tokens = usage?.completion_tokens ?? node.tokens?.length ?? 0;
  node.stats = {
    tokens,
    speed: tokens > 3 && last > first ? ((tokens - 1) * 1000) / (last - first) : null,
    used: usage?.total_tokens,
    context: usage && (model.sparrow?.context ?? model.max_model_len),
  };
}

function take(node, choice) {
  const delta = choice.delta ?? { content: choice.text };
  node.content += delta.content ?? "";
  if (delta.reasoning_content) node.thinking = (node.thinking ?? "") + delta.reasoning_content;
  for (const call of delta.tool_calls ?? []) takeCall(node, call);
  const given = choice.logprobs;
  if (given) {
    const tokens = given.content ? given.content.map(tokenOf) : tokensOf(given);
    node.tokens = [...(node.tokens ?? []), ...tokens];
  }
  if (choice.finish_reason) node.end = choice.finish_reason;
}

// A call may come whole or in pieces.
function takeCall(node, { index = 0, id, function: part }) {
  node.calls ??= [];
  const call = (node.calls[index] ??= { id: "", name: "", arguments: "" });
  call.id ||= id ?? "";
  call.name ||= part?.name ?? "";
  call.arguments += part?.arguments ?? "";
}
