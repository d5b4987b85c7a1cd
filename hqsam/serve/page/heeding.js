/**
 * Clicks that are heeded, as `SamPredictor.predict(heed_clicks=True)` does it (hqsam/heeding.py). A click that corrects the
 * answer before decides what responds to it; where another is not done by the mask with HQ, and by SAM's own mask it is,
 * the region around it takes SAM's logits.
 */
const SHARES = [0.25, 0.5, 0.75]; // of the response at the click, where its region ends
const LARGEST = 0.05; // region of a click over the mask that it corrects
const CERTAIN = 4; // logits of the contrary that stay
const DECIDED = 1; // logits that the region of a correction gets at least

/**
 * @param {Float32Array} logits row by row, of a mask with HQ
 * @param {Float32Array} sam SAM's of the same prompts
 * @param {{stride: number, width: number, height: number}} grid logits of a row, and how many columns and rows of them
 *   the picture is seen in; the others are of the padding
 * @param {Array<[number, number, number]>} clicks x and y in logits from the first one's corner, and the label: 1 is
 *   inside, 0 outside, any other no click
 * @param {Float32Array} [before] logits of the answer that was fed back, row by row as the others
 * @returns {Float32Array} `logits` itself where there is nothing to do
 */
export function heedClicks(logits, sam, grid, clicks, before) {
  const seen = clicks
    .filter(([, , label]) => label === 0 || label === 1)
    .map((click) => judged(click, logits, sam, grid, before));
  const corrections = seen.filter((click) => click.corrects);
  const followers = seen.filter((click) => !click.corrects && !click.isHeeded && click.bySam);
  if (!corrections.length && !followers.length) return logits;
  const result = logits.slice();
  for (const click of followers) {
    const heeds = (value) => value > 0 === click.isInside;
    const differing = connected(click, grid, (at) => heeds(sam[at]) && !heeds(logits[at]));
    const isSpared = (other) =>
      (other.isHeeded && !other.bySam) || (other.corrects && other.isInside !== click.isInside);
    for (const at of around(differing, click, grid, seen.filter(isSpared))) result[at] = sam[at];
  }
  for (const click of corrections) {
    const contrary = seen.filter((other) => other.isInside !== click.isInside);
    for (const at of around(responding(click, logits, before, grid), click, grid, contrary)) {
      result[at] = click.isInside ? Math.max(result[at], DECIDED) : Math.min(result[at], -DECIDED);
    }
  }
  return result;
}

/** A click with its cell, who heeds it, and whether it is a correction. */
function judged([placeX, placeY, label], logits, sam, grid, before) {
  const cell = (place, size) => Math.min(Math.max(Math.trunc(place), 0), size - 1);
  const isInside = label === 1;
  const heeds = (mask) => valueAt(mask, placeX, placeY, grid) > 0 === isInside;
  const [isHeeded, bySam] = [heeds(logits), heeds(sam)];
  const corrects = Boolean(before) && (!heeds(before) || !(isHeeded || bySam));
  return { x: cell(placeX, grid.width), y: cell(placeY, grid.height), isInside, isHeeded, bySam, corrects };
}

/** Bilinear between the middles of the cells, as masks of pixels are made. */
function valueAt(mask, placeX, placeY, { stride, width, height }) {
  const [x0, x1, right] = neighbours(placeX, width);
  const [y0, y1, down] = neighbours(placeY, height);
  const row = (y) => mask[y * stride + x0] * (1 - right) + mask[y * stride + x1] * right;
  return row(y0) * (1 - down) + row(y1) * down;
}

function neighbours(place, size) {
  const at = Math.min(Math.max(place - 0.5, 0), size - 1);
  const low = Math.floor(at);
  return [low, Math.min(low + 1, size - 1), at - low];
}

/** The connected cells that moved with a correction. */
function responding(click, logits, before, grid) {
  const sign = click.isInside ? 1 : -1;
  const moved = (at) => sign * Math.fround(logits[at] - before[at]);
  const isOpen = (at) => before[at] > 0 !== click.isInside && sign * logits[at] > -CERTAIN;
  const there = moved(click.y * grid.stride + click.x);
  const most = LARGEST * area(before, grid);
  for (const share of SHARES) {
    const found = connected(click, grid, (at) => isOpen(at) && moved(at) > Math.fround(share * there), most);
    if (found) return found;
  }
  return new Set();
}

function area(mask, { stride, width, height }) {
  let count = 0;
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) count += mask[y * stride + x] > 0 ? 1 : 0;
  return count;
}

/** Cells that are connected over edges with that of a click; null where they are more than `most`. */
function connected(click, { stride, width, height }, isIn, most = Infinity) {
  const found = new Set();
  const open = [];
  const visit = (x, y) => {
    const at = y * stride + x;
    if (x < 0 || y < 0 || x >= width || y >= height || found.has(at) || !isIn(at)) return;
    found.add(at);
    open.push([x, y]);
  };
  visit(click.x, click.y);
  while (open.length) {
    if (found.size > most) return null;
    const [x, y] = open.pop();
    visit(x - 1, y);
    visit(x + 1, y);
    visit(x, y - 1);
    visit(x, y + 1);
  }
  return found;
}

/** Cells and those next to the click, which its pixel is interpolated from, without what is nearer to other clicks. */
function around(cells, click, { stride, width, height }, spared) {
  const found = new Set(cells);
  for (let y = Math.max(click.y - 1, 0); y <= Math.min(click.y + 1, height - 1); y++) {
    for (let x = Math.max(click.x - 1, 0); x <= Math.min(click.x + 1, width - 1); x++) found.add(y * stride + x);
  }
  return [...found].filter((at) => {
    const [x, y] = [at % stride, Math.floor(at / stride)];
    return spared.every((other) => squared(click, x, y) <= squared(other, x, y));
  });
}

function squared(click, x, y) {
  return (x - click.x) ** 2 + (y - click.y) ** 2;
}
