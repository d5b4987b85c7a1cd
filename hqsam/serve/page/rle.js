/**
 * COCO's compressed run lengths, and masks as windows of bits.
 *
 * A mask is {width, height, x, y, w, h, bits}: the size of its image, and the window that holds all of its pixels,
 * `bits` row by row, 1 inside. Everything else is outside. A window keeps small objects of large pictures small.
 * Masks are never changed once made, so they may be shared.
 */

/** A mask without a pixel. */
export function emptyMask(width, height) {
  return { width, height, x: 0, y: 0, w: 0, h: 0, bits: new Uint8Array(0) };
}

/**
 * Run lengths out of COCO's text: outside and inside in turn, column by column.
 *
 * 5 bits a character, lowest first, and a bit that says whether another one follows; from the fourth run on the
 * difference to the run before the last.
 */
export function readRuns(text) {
  const runs = [];
  for (let at = 0; at < text.length; ) {
    let value = 0;
    let shift = 0;
    let code;
    do {
      code = text.charCodeAt(at++) - 48;
      if (!(code >= 0 && code < 64) || shift > 30) throw new Error("these are no run lengths of a mask");
      value |= (code & 31) << shift;
      shift += 5;
    } while (code & 32);
    if (code & 16 && shift < 32) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    if (value < 0) throw new Error("a run length of a mask is negative");
    runs.push(value);
  }
  return runs;
}

/** The reverse of `readRuns`. */
export function writeRuns(runs) {
  const codes = [];
  for (let at = 0; at < runs.length; at++) {
    let value = at > 2 ? runs[at] - runs[at - 2] : runs[at];
    let more = true;
    while (more) {
      const low = value & 31;
      value >>= 5;
      more = value !== (low & 16 ? -1 : 0);
      codes.push(String.fromCharCode((more ? low | 32 : low) + 48));
    }
  }
  return codes.join("");
}

/** The mask of {size: [height, width], counts: text}. */
export function decodeRle(rle) {
  const [height, width] = rle.size;
  const runs = readRuns(rle.counts);
  const window = windowOfRuns(runs, height, width);
  if (!window) return emptyMask(width, height);
  const { x, y, w, h } = window;
  const bits = new Uint8Array(w * h);
  let at = 0;
  for (let index = 0; index < runs.length; at += runs[index++]) {
    if (index % 2) fillRun(bits, window, at, at + runs[index], height);
  }
  return { width, height, x, y, w, h, bits };
}

function windowOfRuns(runs, height, width) {
  let [left, right, top, bottom] = [width, -1, height, -1];
  let at = 0;
  for (let index = 0; index < runs.length; at += runs[index++]) {
    if (index % 2 === 0 || runs[index] === 0) continue;
    const last = at + runs[index] - 1;
    const [first, end] = [Math.floor(at / height), Math.floor(last / height)];
    left = Math.min(left, first);
    right = Math.max(right, end);
    top = first === end ? Math.min(top, at % height) : 0;
    bottom = first === end ? Math.max(bottom, last % height) : height - 1;
  }
  if (at !== height * width) throw new Error(`run lengths add up to ${at}, but the mask has ${height * width} pixels`);
  return right < 0 ? null : { x: left, y: top, w: right - left + 1, h: bottom - top + 1 };
}

function fillRun(bits, { x, y, w }, start, end, height) {
  let column = Math.floor(start / height);
  let row = start - column * height;
  for (let left = end - start; left > 0; column++, row = 0) {
    const rows = Math.min(left, height - row);
    let at = (row - y) * w + column - x;
    for (let i = 0; i < rows; i++, at += w) bits[at] = 1;
    left -= rows;
  }
}

/** {size, counts} of a mask. */
export function encodeRle(mask) {
  const { width, height } = mask;
  const flips = flipsOf(mask);
  const runs = [];
  let since = 0;
  for (let at = 0; at < flips.length; at++) {
    // a run that reaches the bottom of a column and goes on at the top of the next ends and begins at one place
    if (flips[at] === flips[at + 1]) at++;
    else {
      runs.push(flips[at] - since);
      since = flips[at];
    }
  }
  if (since < width * height) runs.push(width * height - since);
  return { size: [height, width], counts: writeRuns(runs) };
}

/** Where inside begins and ends, counting pixels column by column; looked for row by row, as the bits lie in memory. */
function flipsOf({ height, x, y, w, h, bits }) {
  const flips = [];
  for (let row = 0, at = 0; row <= h; row++) {
    for (let column = 0; column < w; column++, at++) {
      const above = row > 0 ? bits[at - w] : 0;
      const here = row < h ? bits[at] : 0;
      if (above !== here) flips.push((x + column) * height + y + row);
    }
  }
  return Float64Array.from(flips).sort();
}

/** The mask of whole-image bits, looked for within a window that holds all of it. */
export function maskOfBits(full, width, height, within) {
  const { x, y, w, h } = within ?? { x: 0, y: 0, w: width, h: height };
  let [left, right, top, bottom] = [x + w, -1, y + h, -1];
  for (let row = y; row < y + h; row++) {
    const start = row * width;
    let first = x;
    while (first < x + w && !full[start + first]) first++;
    if (first === x + w) continue;
    let last = x + w - 1;
    while (!full[start + last]) last--;
    left = Math.min(left, first);
    right = Math.max(right, last);
    top = Math.min(top, row);
    bottom = row;
  }
  if (right < 0) return emptyMask(width, height);
  const size = { x: left, y: top, w: right - left + 1, h: bottom - top + 1 };
  const bits = new Uint8Array(size.w * size.h);
  for (let row = 0; row < size.h; row++) {
    const start = (top + row) * width + left;
    bits.set(full.subarray(start, start + size.w), row * size.w);
  }
  return { width, height, ...size, bits };
}

/** Whole-image bits of a mask, written into `full` where it is given. */
export function bitsOfMask(mask, full = new Uint8Array(mask.width * mask.height)) {
  for (let row = 0; row < mask.h; row++) {
    full.set(mask.bits.subarray(row * mask.w, (row + 1) * mask.w), (mask.y + row) * mask.width + mask.x);
  }
  return full;
}

/** Number of pixels inside. */
export function maskArea(mask) {
  let area = 0;
  for (const bit of mask.bits) area += bit;
  return area;
}

/** Whether a pixel is inside. */
export function maskHas(mask, x, y) {
  const [column, row] = [x - mask.x, y - mask.y];
  return column >= 0 && row >= 0 && column < mask.w && row < mask.h && mask.bits[row * mask.w + column] === 1;
}
