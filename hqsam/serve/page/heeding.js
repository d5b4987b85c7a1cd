/**
 * Clicks that are heeded, as `SamPredictor.predict(heed_clicks=True)` does it (hqsam/heeding.py): where the mask with HQ
 * does not do what a click says, and SAM's own mask does, the region around the click takes SAM's logits.
 */

/**
 * @param {Float32Array} logits row by row, of a mask with HQ
 * @param {Float32Array} sam SAM's of the same prompts
 * @param {{stride: number, width: number, height: number}} grid logits of a row, and how many columns and rows of them
 *   the picture is seen in; the others are of the padding
 * @param {Array<[number, number, number]>} clicks x and y in logits from the first one's corner, and the label: 1 is
 *   inside, 0 outside, any other no click
 * @returns {Float32Array} `logits` itself where there is nothing to do
 */
export function heedClicks(logits, sam, grid, clicks) {
  const seen = clicks.filter(([, , label]) => label === 0 || label === 1).map((click) => judged(click, logits, sam, grid));
  const todo = seen.filter((click) => click.bySam && !click.isHeeded);
  if (!todo.length) return logits;
  const result = logits.slice();
  const kept = seen.filter((click) => click.isHeeded && !click.bySam);
  for (const click of todo) {
    for (const at of around(click, logits, sam, grid)) {
      const [x, y] = [at % grid.stride, Math.floor(at / grid.stride)];
      if (kept.every((other) => squared(click, x, y) <= squared(other, x, y))) result[at] = sam[at];
    }
  }
  return result;
}

/** A click with its cell, and who heeds it. */
function judged([placeX, placeY, label], logits, sam, grid) {
  const cell = (place, size) => Math.min(Math.max(Math.trunc(place), 0), size - 1);
  const isInside = label === 1;
  const heeds = (mask) => valueAt(mask, placeX, placeY, grid) > 0 === isInside;
  return { x: cell(placeX, grid.width), y: cell(placeY, grid.height), isInside, isHeeded: heeds(logits), bySam: heeds(sam) };
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

/** The connected cells in which only SAM's mask does what the click says, and those next to the click. */
function around(click, logits, sam, { stride, width, height }) {
  const heeds = (value) => value > 0 === click.isInside;
  const found = new Set();
  const open = [];
  const visit = (x, y) => {
    const at = y * stride + x;
    if (x < 0 || y < 0 || x >= width || y >= height || found.has(at)) return;
    if (!heeds(sam[at]) || heeds(logits[at])) return;
    found.add(at);
    open.push([x, y]);
  };
  visit(click.x, click.y);
  while (open.length) {
    const [x, y] = open.pop();
    visit(x - 1, y);
    visit(x + 1, y);
    visit(x, y - 1);
    visit(x, y + 1);
  }
  // the pixel that was clicked is interpolated from these
  for (let y = Math.max(click.y - 1, 0); y <= Math.min(click.y + 1, height - 1); y++) {
    for (let x = Math.max(click.x - 1, 0); x <= Math.min(click.x + 1, width - 1); x++) found.add(y * stride + x);
  }
  return found;
}

function squared(click, x, y) {
  return (x - click.x) ** 2 + (y - click.y) ** 2;
}
