// Which charts there are: those that every run has, in a fixed order, then whatever a stage logs.

const FIXED = {
  curves: ["loss", "bits_per_byte"],
  optimizer: ["lr", "grad_norm"],
  machine: ["tokens_per_second", "mfu", "memory_bytes"],
};
const FROM_ZERO = new Set(["lr", "grad_norm", "tokens_per_second", "mfu", "memory_bytes"]);
const EXACT = new Set(["lr", "memory_bytes"]); // no noise to smooth away
const NO_CURVE = new Set(["skipped"]);
// What a person looks at first in a stage that judges answers.
const FIRST = ["reward", "accuracy", "margin", "kl", "entropy"];

// [{group, panels: [{key, held, zero, exact}]}] of what the shown runs have logged. A panel draws the
// training value `key` and, with it, the held-out value `held`.
export function groupsOf(tracks) {
  const train = new Set(), held = new Set();
  for (const { train: rows, evals } of tracks) {
    Object.keys(rows?.columns ?? {}).forEach((key) => train.add(key));
    Object.keys(evals?.columns ?? {}).forEach((key) => held.add(key));
  }
  const fixed = new Set(Object.values(FIXED).flat());
  const bare = [...held].map((key) => key.replace(/^val_/, ""));
  const others = [...new Set([...train, ...bare])]
    .filter((key) => !fixed.has(key) && !NO_CURVE.has(key) && !key.startsWith("tokens/"));
  const panel = (key) => ({ key, held: `val_${key}`, zero: FROM_ZERO.has(key), exact: EXACT.has(key) });
  const there = ({ key, held: other }) => train.has(key) || held.has(other);
  const rank = (key) => (FIRST.includes(key) ? FIRST.indexOf(key) : FIRST.length);
  const groups = {
    curves: FIXED.curves,
    stage: others.filter((key) => !key.includes("/")).sort((a, b) => rank(a) - rank(b)),
    optimizer: FIXED.optimizer,
    machine: FIXED.machine,
    sources: others.filter((key) => key.includes("/")).sort(),
  };
  return Object.entries(groups)
    .map(([group, keys]) => ({ group, panels: keys.map(panel).filter(there) }))
    .filter(({ panels }) => panels.length);
}

// Six colors that people with any kind of color vision tell apart (after Okabe and Ito), the
// house's own first; the seventh run has the first color again, in dashes.
export const COLORS = 6;
export const DASHES = [[], [7, 4], [2, 3]];

export const look = (place) => ({
  color: `--run-${place % COLORS}`,
  dash: DASHES[Math.floor(place / COLORS) % DASHES.length],
});
