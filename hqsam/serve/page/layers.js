/**
 * What is drawn: three canvases of the size of the stage, the picture, the objects, and on top prompts and the cursor.
 *
 * A mask is coloured once, in an offscreen canvas of its own window's size at the picture's resolution, and drawn by
 * transform from then on. Moving the mouse redraws the top canvas alone.
 */

const LARGE = 1600; // pixels of a side
const INSIDE = 0.42;
const BETWEEN = 0.1; // between the stripes of proposals
const PREVIEW = [56, 189, 248];
const POSITIVE = "#22c55e";
const NEGATIVE = "#ef4444";

/** Colours of objects: bright on pictures, and apart from each other. */
const PALETTE = [
  [59, 130, 246], [249, 115, 22], [34, 197, 94], [236, 72, 153], [234, 179, 8], [139, 92, 246],
  [20, 184, 166], [244, 63, 94], [132, 204, 22], [6, 182, 212], [217, 70, 239], [245, 158, 11],
];

/** Colours of texts, [red, green, blue]: the same text has the same one, texts that are shown together different ones. */
export class Colours {
  #places = new Map();

  /** The texts that are shown from now on; more than there are colours share them. */
  show(texts) {
    const shown = new Set(texts);
    const used = new Set([...this.#places].filter(([text]) => shown.has(text)).map(([, place]) => place));
    for (const text of shown) {
      if (this.#places.has(text)) continue;
      let place = hashOf(text) % PALETTE.length;
      while (used.has(place) && used.size < PALETTE.length) place = (place + 1) % PALETTE.length;
      used.add(place);
      this.#places.set(text, place);
    }
  }

  of(text) {
    return PALETTE[this.#places.get(text) ?? hashOf(text) % PALETTE.length];
  }
}

function hashOf(text) {
  let hash = 0;
  for (const letter of text) hash = (Math.imul(hash, 31) + letter.codePointAt(0)) | 0;
  return (hash ^ (hash >>> 15)) >>> 0;
}

/** A mask in its colour: a line along its edge, and inside even or, for proposals, in stripes. */
export function paintMask(mask, [red, green, blue], { striped = false, line = 1 } = {}) {
  const canvas = new OffscreenCanvas(Math.max(1, mask.w), Math.max(1, mask.h));
  if (!mask.w) return canvas;
  const { w, h, bits } = mask;
  const image = new ImageData(w, h);
  const pixels = new Uint32Array(image.data.buffer);
  const colour = (alpha) => (Math.round(alpha * 255) << 24) | (blue << 16) | (green << 8) | red;
  const [full, inside, between] = [colour(1), colour(INSIDE), colour(BETWEEN)];
  const period = line * 6;
  const [step, right, bottom] = [line * w, w - line, h - line];
  for (let y = 0, at = 0; y < h; y++) {
    const isRowEdge = y < line || y >= bottom;
    for (let x = 0; x < w; x++, at++) {
      if (!bits[at]) continue;
      const isInside =
        !isRowEdge && x >= line && x < right && bits[at - line] && bits[at + line] && bits[at - step] && bits[at + step];
      if (!striped) {
        pixels[at] = isInside ? inside : full;
        continue;
      }
      const isGap = Math.floor((x + y + mask.x + mask.y) / period) % 2;
      if (isInside) pixels[at] = isGap ? inside : between;
      else pixels[at] = isGap ? between : full;
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

export class Layers {
  #canvases;
  #contexts;
  #wanted = new Set();
  #painted = new Map(); // rle of an object that is shown -> {key, canvas}

  constructor(stage, view) {
    this.view = view;
    this.#canvases = ["picture", "objects", "top"].map((name) => stage.querySelector(`canvas.${name}`));
    this.#contexts = this.#canvases.map((canvas) => canvas.getContext("2d"));
    this.picture = null; // an ImageBitmap
    this.smaller = []; // the same at half the size, at a quarter, ...
    this.objects = []; // {object, mask, selected}
    this.overlay = { points: [], box: null, drag: null, preview: null, brush: null, stroke: null };
    this.colours = new Colours();
    this.colourKey = (object) => object.id;
    this.isHidden = () => false;
  }

  /** Show a picture. Of large ones smaller copies are kept: drawing all pixels where few are seen takes long. */
  async setPicture(picture) {
    this.picture = picture;
    this.smaller = [];
    for (let level = picture; Math.max(level.width, level.height) > LARGE; ) {
      const [resizeWidth, resizeHeight] = [level.width, level.height].map((side) => Math.ceil(side / 2));
      level = await createImageBitmap(level, { resizeWidth, resizeHeight, resizeQuality: "medium" });
      if (this.picture !== picture) return;
      this.smaller.push(level);
      this.draw("picture");
    }
  }

  /** Show these objects, large ones below small ones. */
  setObjects(items) {
    const size = ({ w, h }) => w * h;
    this.objects = [...items].sort((one, two) => size(two.mask()) - size(one.mask()));
    const shown = new Set(items.map(({ object }) => object.rle));
    for (const rle of this.#painted.keys()) if (!shown.has(rle)) this.#painted.delete(rle);
    this.colours.show(items.map(({ object }) => this.colourKey(object)));
    this.draw("objects");
  }

  colourOf(object) {
    return this.colours.of(this.colourKey(object));
  }

  /** The stage has another size, in CSS pixels. */
  resize(width, height) {
    const ratio = globalThis.devicePixelRatio || 1;
    for (const canvas of this.#canvases) {
      [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    }
    this.view.setStage(width, height);
    this.draw();
  }

  /** Ask for layers to be drawn with the next frame: "picture", "objects", "top"; all without a name. */
  draw(...names) {
    if (!this.#wanted.size) requestAnimationFrame(() => this.#frame());
    for (const name of names.length ? names : ["picture", "objects", "top"]) this.#wanted.add(name);
  }

  /** One image pixel where the picture is fitted into a thousand, so that lines can be seen there. */
  get line() {
    return Math.max(1, Math.ceil(Math.max(this.view.width, this.view.height) / 1000));
  }

  /** The coloured canvas of an object, made anew only when its mask, its colour or its state changed. */
  painted({ object, mask }) {
    const key = `${this.colourOf(object)} ${object.status} ${this.line}`;
    const known = this.#painted.get(object.rle);
    if (known?.key === key) return known.canvas;
    const striped = object.status === "proposed";
    const canvas = paintMask(mask(), this.colourOf(object), { striped, line: this.line });
    this.#painted.set(object.rle, { key, canvas });
    return canvas;
  }

  #frame() {
    const wanted = [...this.#wanted];
    this.#wanted.clear();
    if (wanted.includes("picture")) this.#drawPicture(this.#begin(0));
    if (wanted.includes("objects")) this.#drawObjects(this.#begin(1));
    if (wanted.includes("top")) this.#drawTop(this.#begin(2));
  }

  #begin(index) {
    const [canvas, context] = [this.#canvases[index], this.#contexts[index]];
    const ratio = globalThis.devicePixelRatio || 1;
    const { scale, x, y } = this.view;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(scale * ratio, 0, 0, scale * ratio, x * ratio, y * ratio);
    context.imageSmoothingEnabled = scale * ratio < 1 || (index === 0 && scale < 3 && scale !== 1);
    context.imageSmoothingQuality = index === 0 ? "medium" : "low";
    return context;
  }

  #drawPicture(context) {
    const { width, height, scale } = this.view;
    const needed = width * scale * (globalThis.devicePixelRatio || 1);
    const level = this.smaller.findLast((copy) => copy.width >= needed) ?? this.picture;
    if (level) context.drawImage(level, 0, 0, width, height);
  }

  #drawObjects(context) {
    const { stroke } = this.overlay;
    for (const item of this.objects) {
      if (this.isHidden(item.object) || stroke?.id === item.object.id) continue;
      const { x, y } = item.mask();
      context.drawImage(this.painted(item), x, y);
    }
    const chosen = this.objects.find((item) => item.selected);
    if (chosen && !this.isHidden(chosen.object) && stroke?.id !== chosen.object.id) this.#drawFrame(context, chosen.mask());
    if (stroke) context.drawImage(stroke.canvas, 0, 0);
  }

  /** Corners around the selected object; outside of its box, so that no mask's pixel is covered. */
  #drawFrame(context, { x, y, w, h }) {
    if (!w) return;
    const unit = 1 / this.view.scale;
    const gap = 4 * unit;
    const [left, top, right, bottom] = [x - gap, y - gap, x + w + gap, y + h + gap];
    const arm = Math.min(16 * unit, (w + 2 * gap) / 3, (h + 2 * gap) / 3);
    const corners = new Path2D();
    for (const [cx, cy, dx, dy] of [[left, top, 1, 1], [right, top, -1, 1], [left, bottom, 1, -1], [right, bottom, -1, -1]]) {
      corners.moveTo(cx + dx * arm, cy);
      corners.lineTo(cx, cy);
      corners.lineTo(cx, cy + dy * arm);
    }
    twoLines(context, corners, unit, "#fff");
  }

  #drawTop(context) {
    const { points, box, drag, preview, brush } = this.overlay;
    const unit = 1 / this.view.scale;
    if (preview) {
      preview.canvas ??= paintMask(preview.mask, PREVIEW, { line: this.line });
      context.drawImage(preview.canvas, preview.mask.x, preview.mask.y);
    }
    for (const one of [box, drag]) {
      if (one) twoLines(context, rectangle(one), unit, "#fff", one === drag ? [6 * unit, 4 * unit] : []);
    }
    for (const [x, y, label] of points) drawPoint(context, x + 0.5, y + 0.5, label, unit);
    if (brush) {
      const circle = new Path2D();
      circle.arc(brush.x, brush.y, brush.radius, 0, 2 * Math.PI);
      twoLines(context, circle, unit, brush.erase ? "#fca5a5" : "#fff");
    }
  }
}

function rectangle([x0, y0, x1, y1]) {
  const path = new Path2D();
  path.rect(x0, y0, x1 - x0 + 1, y1 - y0 + 1);
  return path;
}

/** A line that is seen on bright and on dark pictures. */
function twoLines(context, path, unit, colour, dash = []) {
  context.setLineDash([]);
  context.strokeStyle = "rgb(0 0 0 / 0.65)";
  context.lineWidth = 3.5 * unit;
  context.stroke(path);
  context.setLineDash(dash);
  context.strokeStyle = colour;
  context.lineWidth = 1.5 * unit;
  context.stroke(path);
  context.setLineDash([]);
}

/** Positive points carry a plus and negative ones a minus: colour alone does not tell them apart for everybody. */
function drawPoint(context, x, y, label, unit) {
  const radius = 7 * unit;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fillStyle = label ? POSITIVE : NEGATIVE;
  context.fill();
  context.strokeStyle = "#fff";
  context.lineWidth = 2 * unit;
  context.stroke();
  context.beginPath();
  context.moveTo(x - radius / 2, y);
  context.lineTo(x + radius / 2, y);
  if (label) {
    context.moveTo(x, y - radius / 2);
    context.lineTo(x, y + radius / 2);
  }
  context.stroke();
}
