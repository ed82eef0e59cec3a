// The server of this page, spoken to as any client of OpenAI's API would.

const KEY = "sparrow.key";

// What went wrong, as a kind that words.js has a sentence for.
export class ApiError extends Error {
  constructor(kind, values = {}) {
    super(kind);
    this.kind = kind;
    this.values = values;
  }
}

// The key is kept for the tab alone: whoever uses the browser next has to know it.
export function useKey(key) {
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    useKey.held = key;
  }
}

function key() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return useKey.held;
  }
}

// Relative to the page, so that a proxy may put both below a folder.
async function call(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (key()) headers.Authorization = `Bearer ${key()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("away");
  }
  if (!response.ok) throw fault(response.status, await said(response), response.headers.get("Retry-After"));
  return response;
}

async function said(response) {
  try {
    return (await response.json()).error ?? {};
  } catch {
    return { message: `${response.status} ${response.statusText}` };
  }
}

// From a status and the server's {"message", "type", "param", "code"} to a kind.
export function fault(status, error, retryAfter) {
  const message = error.message ?? String(status);
  if (status === 401) return new ApiError("key");
  if (retryAfter) return new ApiError("busy_wait", { n: retryAfter });
  if (status === 429) return new ApiError("busy");
  if (error.code === "context_length_exceeded") {
    const numbers = (message.match(/\d+/g) ?? []).slice(0, 2).map(Number);
    // Whichever order the sentence has them in: what is asked for is more than what there is.
    const [limit, given] = numbers.sort((one, other) => one - other);
    if (given) return new ApiError("long", { given, limit });
  }
  return new ApiError(status >= 500 ? "server" : "refused", { message });
}

// The models that may be talked to: [{id, chat, context, parameters}].
export async function models() {
  const { data } = await (await call("v1/models")).json();
  return data;
}

// The chunks of a streamed answer, up to its [DONE].
export async function* stream(path, body, signal) {
  const response = await call(path, {
    method: "POST",
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw fault(chunk.error.status ?? 500, chunk.error);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError("broken");
  }
  throw new ApiError("broken");
}

// The data of server-sent events, however the network cuts them.
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const whole = (held + value).split(/\r?\n\r?\n/);
      held = whole.pop();
      for (const event of whole) {
        const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
