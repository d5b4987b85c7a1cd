/**
 * From the decoder's low-resolution logits to a mask of the picture, as the predictor does it: bilinear to the model's
 * frame, padding cut off, bilinear to the picture, inside where above zero (hqsam/postprocess.py).
 *
 * Both steps are linear and act on rows and columns apart, so each pixel is a sum of 3 x 3 logits at most. A pixel can
 * be inside only where one of them is above zero: nothing is computed outside of their reach.
 */
import { emptyMask, maskOfBits } from "./rle.js";

const TAPS = 3;
const CELL = 4; // logits along a side of a cell of the embedding's grid, of which whole ones are computed
const REACH = 2; // logits on each side that one depends on through the decoder's two 3x3 convolutions

/**
 * What the two steps do along one axis.
 *
 * @param {number} out pixels of the picture
 * @param {number} kept pixels of the resized picture, without padding
 * @param {number} frame pixels of the model's input
 * @param {number} low logits
 * @returns {{first: Int32Array, weights: Float32Array}} for each pixel the first of three neighbouring logits, and
 *   their weights
 */
export function axisWeights(out, kept, frame, low) {
  const first = new Int32Array(out);
  const weights = new Float32Array(out * TAPS);
  for (let at = 0; at < out; at++) {
    const [near, far, share] = neighbours(at, kept / out, kept);
    first[at] = neighbours(near, low / frame, low)[0];
    for (const [pixel, part] of [[near, 1 - share], [far, share]]) {
      const [one, two, rest] = neighbours(pixel, low / frame, low);
      weights[at * TAPS + one - first[at]] += part * (1 - rest);
      weights[at * TAPS + two - first[at]] += part * rest;
    }
  }
  return { first, weights };
}

/**
 * How much of a map of logits a resized picture is seen in, along one axis; the rest is padding (`Shown`,
 * hqsam/models/decoding.py).
 *
 * @param {number} kept pixels of the resized picture, without padding
 * @param {number} frame pixels of the model's input
 * @param {number} low logits
 * @returns {{made: number, right: number}} how many logits are to be computed, and how many of these are those of the
 *   whole map; pixels of the picture depend on no other
 */
export function shownLogits(kept, frame, low) {
  const right = Math.ceil((kept * low) / frame) + 1; // bilinear: one beyond the last
  const made = Math.ceil((right + REACH) / CELL) * CELL;
  return made >= low ? { made: low, right: low } : { made, right };
}

/**
 * Logits of the whole input, to be fed back.
 *
 * @param {Float32Array} logits of its shown part
 * @param {{made: number, right: number}} rows `shownLogits` of the height
 * @param {{made: number, right: number}} columns `shownLogits` of the width
 * @param {number} low logits along a side of the whole
 * @param {number} outside what stands for those of the padding
 */
export function wholeLogits(logits, rows, columns, low, outside) {
  if (rows.right === low && columns.right === low) return logits;
  const whole = new Float32Array(low * low).fill(outside);
  for (let y = 0; y < rows.right; y++) {
    whole.set(logits.subarray(y * columns.made, y * columns.made + columns.right), y * low);
  }
  return whole;
}

function neighbours(at, scale, size) {
  const place = Math.max(0, (at + 0.5) * scale - 0.5);
  const near = Math.min(Math.floor(place), size - 1);
  return [near, Math.min(near + 1, size - 1), place - near];
}

/**
 * The mask of one candidate.
 *
 * @param {Float32Array} logits row by row
 * @param {number} low logits of a row
 * @param {object} columns `axisWeights` of the width
 * @param {object} rows `axisWeights` of the height
 */
export function maskOfLogits(logits, low, columns, rows) {
  const [width, height] = [columns.first.length, rows.first.length];
  const positive = positiveWindow(logits, low);
  if (!positive) return emptyMask(width, height);
  const across = reach(columns.first, positive.left, positive.right);
  const down = reach(rows.first, positive.top, positive.bottom);
  if (!across || !down) return emptyMask(width, height);
  const [w, h] = [across.end - across.start, down.end - down.start];
  const stretched = stretchRows(logits, low, columns, across, [positive.top, positive.bottom]);
  const bits = new Uint8Array(w * h);
  const nothing = new Float32Array(w);
  const last = logits.length / low - 1;
  const row = (index) => stretched.get(Math.min(index, last)) ?? nothing;
  for (let y = 0; y < h; y++) {
    const at = down.start + y;
    const [a, b, c] = [0, 1, 2].map((tap) => row(rows.first[at] + tap));
    const [p, q, r] = rows.weights.subarray(at * TAPS, at * TAPS + TAPS);
    for (let x = 0, to = y * w; x < w; x++, to++) bits[to] = p * a[x] + q * b[x] + r * c[x] > 0 ? 1 : 0;
  }
  const mask = maskOfBits(bits, w, h);
  return { ...mask, width, height, x: mask.w ? mask.x + across.start : 0, y: mask.h ? mask.y + down.start : 0 };
}

function positiveWindow(logits, low) {
  let [left, right, top, bottom] = [low, -1, logits.length / low, -1];
  for (let y = 0, at = 0; at < logits.length; y++) {
    for (let x = 0; x < low; x++, at++) {
      if (logits[at] <= 0) continue;
      left = Math.min(left, x);
      right = Math.max(right, x);
      top = Math.min(top, y);
      bottom = y;
    }
  }
  return right < 0 ? null : { left, right, top, bottom };
}

/** Pixels that read one of the logits `from` to `to`; `first` never falls. */
function reach(first, from, to) {
  let start = 0;
  while (start < first.length && first[start] + TAPS - 1 < from) start++;
  let end = first.length;
  while (end > start && first[end - 1] > to) end--;
  return end > start ? { start, end } : null;
}

/** Rows of logits at the picture's width; two more on either side, which the pixels at the edge read. */
function stretchRows(logits, low, columns, { start, end }, [top, bottom]) {
  const rows = new Map();
  for (let y = Math.max(0, top - TAPS + 1); y <= Math.min(logits.length / low - 1, bottom + TAPS - 1); y++) {
    const row = new Float32Array(end - start);
    for (let x = start; x < end; x++) {
      const from = y * low + columns.first[x];
      const weight = x * TAPS;
      let sum = columns.weights[weight] * logits[from];
      // the third of three may lie beyond the row: its weight is zero there
      if (columns.weights[weight + 1]) sum += columns.weights[weight + 1] * logits[from + 1];
      if (columns.weights[weight + 2]) sum += columns.weights[weight + 2] * logits[from + 2];
      row[x - start] = sum;
    }
    rows.set(y, row);
  }
  return rows;
}
