// The arithmetic behind a curve: smoothing, frames and ticks. Free of any drawing; the same rules
// as report/curves.py, which a test compares them with.

// A centered mean over `reach` neighbors to either side, each weighed by the rows it stands for;
// fewer at both ends, so that a steep start is not flattened. Empty places stay empty.
export function smooth(values, share, weights = null) {
  const reach = Math.floor(values.length * share);
  if (!reach) return values;
  const sums = [0], counts = [0];
  values.forEach((value, index) => {
    const weight = value == null ? 0 : (weights?.[index] ?? 1);
    sums.push(sums[index] + (value ?? 0) * weight);
    counts.push(counts[index] + weight);
  });
  return values.map((value, index) => {
    if (value == null) return null;
    const start = index - Math.min(reach, index);
    const stop = Math.min(index + Math.min(reach, index) + 1, values.length);
    return (sums[stop] - sums[start]) / (counts[stop] - counts[start]);
  });
}

export function quantile(values, share) {
  const ordered = Float64Array.from(values).sort();
  return ordered[Math.min(Math.floor(share * ordered.length), ordered.length - 1)];
}

// The places after the first twentieth of a long curve, where a loss falls off a cliff: a frame
// that holds the cliff has no room left for what follows it.
export const settled = (values) => (values.length >= 40 ? values.slice(Math.floor(values.length / 20)) : values);

// [low, high] around values with a little room; from 0 where asked.
export function frame(values, { zero = false, room = 0.06 } = {}) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (zero) low = Math.min(0, low);
  if (high <= low) {
    const pad = Math.abs(high) * 0.05 || 1;
    return [zero ? low : low - pad, high + pad];
  }
  const pad = (high - low) * room;
  return [zero && low === 0 ? 0 : low - pad, high + pad];
}

// Round numbers in [low, high], in steps of 1, 2 or 5 times a power of ten.
export function ticks(low, high, about = 5) {
  const rough = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((multiple) => multiple >= (rough / power) * 0.999) ?? 10);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, place) => clean((first + place) * step));
}

// For a logarithmic axis: powers of ten, with 2 and 5 between where there is room.
export function logTicks(low, high) {
  const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high));
  if (to - from > 12) return [low, high];
  const within = (multiples) => {
    const found = [];
    for (let power = from; power <= to; power++) {
      for (const multiple of multiples) {
        const tick = clean(multiple * 10 ** power);
        if (tick >= low && tick <= high) found.push(tick);
      }
    }
    return found;
  };
  for (const multiples of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 7]]) {
    const found = within(multiples);
    if (found.length >= 3) return found;
  }
  return ticks(low, high).filter((tick) => tick > 0);
}

// A tick's text, with the decimals that tell it from its neighbors.
export function label(value, all) {
  if (value === 0) return "0";
  const greatest = Math.max(...all.map(Math.abs));
  for (const [scale, letter, from] of [[1e9, "B", 1e9], [1e6, "M", 1e6], [1e3, "k", 1e4]]) {
    if (greatest >= from) return String(clean(value / scale)) + letter;
  }
  if (greatest < 1e-3) {
    const [mantissa, power] = value.toExponential(3).split("e");
    return `${Number(mantissa)}e${Number(power)}`;
  }
  const gaps = all.slice(1).map((tick, index) => tick - all[index]);
  const step = gaps.length ? Math.min(...gaps) : all[0];
  const decimals = Math.max(0, -Math.floor(Math.log10(Math.abs(step)) + 1e-9));
  return value.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
}

// The place in ascending `places` that is nearest to `at`.
export function nearest(places, at) {
  let low = 0, high = places.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (places[middle] < at) low = middle + 1; else high = middle;
  }
  return low > 0 && at - places[low - 1] < places[low] - at ? low - 1 : low;
}

// Without what binary fractions add: 0.1 + 0.2 as 0.3.
const clean = (value) => Number(value.toPrecision(12));
