// From a model's tokens to what may be shown of them. A token can be a part of a character, so
// tokens are joined by their bytes until characters are whole. Nothing here knows of the page.
//
//   token = {name, bytes?, p, top: [[name, p], …]}    a token that was said; bytes where they are
//                                                     not those of its name, null of a special one
//   cell  = {text, tokens: [token, …]}                what is shown as one piece

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const lenient = new TextDecoder("utf-8", { ignoreBOM: true });
const encoder = new TextEncoder();

// An entry of OpenAI's logprobs.content.
export function tokenOf(entry) {
  const top = (entry.top_logprobs ?? []).map((one) => [named(one), short(one.logprob)]);
  const token = { name: named(entry), p: short(entry.logprob), top };
  if (entry.bytes === null) return { ...token, bytes: null };
  const bytes = bytesOf(entry);
  return lenient.decode(new Uint8Array(bytes)) === token.name ? token : { ...token, bytes };
}

// The older logprobs of /v1/completions: strings alone, with bytes that are no whole character
// written like \\xe9.
export function tokensOf({ tokens, token_logprobs: drawn, top_logprobs: tops }) {
  const entry = (token, logprob) => ({ token, logprob, bytes: unescaped(token) });
  return tokens.map((token, place) => {
    const top = Object.entries(tops?.[place] ?? {}).map(([name, logprob]) => entry(name, logprob));
    top.sort((one, other) => other.logprob - one.logprob);
    return tokenOf({ ...entry(token, drawn[place]), top_logprobs: top });
  });
}

// Undefined where nothing is escaped.
function unescaped(token) {
  if (!/\\x[89a-f]/.test(token)) return undefined;
  const parts = token.split(/(\\x[89a-f][0-9a-f])/);
  return parts.flatMap((part, place) => (place % 2 ? [parseInt(part.slice(2), 16)] : [...encoder.encode(part)]));
}

function bytesOf({ token, bytes }) {
  return bytes ?? [...encoder.encode(token)];
}

// A token's own text; bytes that are no text by themselves as <E4 B8>.
function named(entry) {
  const bytes = bytesOf(entry);
  if (!bytes.length) return entry.token;
  try {
    return strict.decode(new Uint8Array(bytes));
  } catch {
    return `<${bytes.map((byte) => byte.toString(16).toUpperCase().padStart(2, "0")).join(" ")}>`;
  }
}

// A probability of four digits is enough, and conversations are kept in little room.
function short(logprob) {
  return Number(Math.exp(logprob).toPrecision(4));
}

// How many more bytes the last character needs: 0 where it is whole, or can never be.
export function missing(bytes) {
  for (let back = 1; back <= Math.min(3, bytes.length); back += 1) {
    const byte = bytes[bytes.length - back];
    if (byte >= 0xc2 && byte < 0xf5) return Math.max(0, (byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4) - back);
    if (byte < 0x80 || byte >= 0xc0) return 0;
  }
  return 0;
}

export function cells(tokens) {
  const found = [];
  let held = [];
  let bytes = [];
  const flush = () => {
    if (held.length) found.push({ text: lenient.decode(new Uint8Array(bytes)), tokens: held });
    [held, bytes] = [[], []];
  };
  for (const token of tokens) {
    if (token.bytes === null) {
      flush();
      found.push({ text: token.name, tokens: [token] });
      continue;
    }
    held.push(token);
    bytes.push(...(token.bytes ?? encoder.encode(token.name)));
    if (!missing(bytes)) flush();
  }
  flush();
  return found;
}

// The cells that make up `text`, from cell number `begin` on, and where they end. Not all that is
// said is shown: tags, ends, white space around them and a stop string are passed over. Null
// where the text is something else.
export function within(all, text, begin = 0) {
  const found = [];
  let place = 0;
  let number = begin;
  for (; number < all.length && place < text.length; number += 1) {
    const shown = shownOf(all[number].text, text, place);
    if (shown) found.push({ text: shown, tokens: all[number].tokens });
    place += shown.length;
  }
  return place === text.length ? { cells: found, end: number } : null;
}

// What of a cell stands at a place of the text: all, or all but white space before it, or what the
// text ends with, or nothing.
function shownOf(said, text, place) {
  const rest = said.trimStart();
  if (text.startsWith(said, place)) return said;
  if (rest && text.startsWith(rest, place)) return rest;
  const left = text.slice(place);
  return said.startsWith(left) || rest.startsWith(left) ? left : "";
}

// 0 (sure) to 6 (a guess), of the least likely of a cell's tokens.
export function doubt(cell) {
  const p = Math.min(...cell.tokens.map((token) => token.p));
  return [0.9, 0.7, 0.5, 0.3, 0.15, 0.05].filter((bound) => p < bound).length;
}
