// A conversation is a tree: an edited question or a repeated answer stands beside the one before,
// and `chosen` says which of them is shown. Nothing here knows of the page or the server.
//
//   talk = {id, kind: "chat" | "text", title, model, system, changed, nodes, chosen}
//   node = {id, parent, role, content, thinking?, calls?, callId?, tokens?, end?, stats?, error?}

export function begin(kind, model) {
  const id = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 8)}`;
  return { id, kind, model, title: "", system: "", changed: Date.now(), nodes: [], chosen: {} };
}

export function add(talk, parent, node) {
  const id = 1 + Math.max(0, ...talk.nodes.map((one) => one.id));
  const added = { id, parent, ...node };
  talk.nodes.push(added);
  talk.chosen[parent] = id;
  talk.changed = Date.now();
  if (!talk.title) talk.title = title(added.content);
  return added;
}

function title(text) {
  const line = text.trim().split("\n")[0];
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}

// Takes a node out, with what stands under it.
export function remove(talk, node) {
  for (const child of talk.nodes.filter((one) => one.parent === node.id)) remove(talk, child);
  talk.nodes = talk.nodes.filter((one) => one !== node);
  delete talk.chosen[node.id];
  const left = siblings(talk, node);
  if (left.length) talk.chosen[node.parent] = left.at(-1).id;
  else delete talk.chosen[node.parent];
}

export function siblings(talk, node) {
  return talk.nodes.filter((one) => one.parent === node.parent);
}

// What is shown, from the top.
export function path(talk) {
  const byId = new Map(talk.nodes.map((node) => [node.id, node]));
  const found = [];
  for (let node = byId.get(talk.chosen[0]); node; node = byId.get(talk.chosen[node.id])) found.push(node);
  return found;
}

// The tool calls at the end that have no answer yet.
export function unanswered(talk) {
  const shown = path(talk);
  const asked = shown.findLastIndex((node) => node.role === "assistant" && node.calls?.length);
  if (asked < 0) return [];
  const answered = shown.slice(asked + 1);
  if (answered.some((node) => node.role !== "tool")) return [];
  return shown[asked].calls.filter((call) => !answered.some((node) => node.callId === call.id));
}

// Turns as OpenAI's API and `sparrow train` read them.
export function messages(talk, until = Infinity) {
  const turns = talk.system ? [{ role: "system", content: talk.system }] : [];
  for (const node of path(talk)) {
    if (node.id === until) break;
    if (node.role === "assistant" && !node.content && !node.calls?.length) continue;
    const turn = { role: node.role, content: node.content };
    if (node.thinking) turn.reasoning_content = node.thinking;
    if (node.calls?.length) {
      turn.tool_calls = node.calls.map(({ id, name, arguments: given }) => ({
        id, type: "function", function: { name, arguments: given },
      }));
    }
    if (node.role === "tool") turn.tool_call_id = node.callId;
    turns.push(turn);
  }
  return turns;
}

// One line a conversation: {"conversations": […]} of chats, {"text": …} of texts.
export function exported(talks) {
  const rows = talks.map((talk) => {
    if (talk.kind === "text") return { text: path(talk).slice(-2).map((node) => node.content).join("") };
    const tools = talk.tools?.length ? { tools: talk.tools } : {};
    return { conversations: messages(talk), ...tools };
  });
  const full = rows.filter((row) => row.text || row.conversations?.some((turn) => turn.role === "assistant"));
  return full.map((row) => `${JSON.stringify(row)}\n`).join("");
}
