/** A stroke of the brush or the eraser: bits of the whole image are changed, and drawn, only where the brush goes. */
import { bitsOfMask, maskOfBits } from "./rle.js";
import { paintMask } from "./layers.js";

const ALPHA = 115;

/** Buffers of the size of an image, kept from stroke to stroke. */
export class Strokes {
  #bits = null;
  #canvas = null;

  /**
   * @param {string} id of the object
   * @param {object} mask before the stroke
   * @param {number[]} colour
   * @param {{erase: boolean, radius: number}} brush radius in pixels of the image
   */
  begin(id, mask, colour, brush) {
    const { width, height } = mask;
    if (this.#canvas?.width !== width || this.#canvas?.height !== height) {
      this.#canvas = new OffscreenCanvas(width, height);
      this.#bits = new Uint8Array(width * height);
    }
    const context = this.#canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (mask.w) context.drawImage(paintMask(mask, colour), mask.x, mask.y);
    bitsOfMask(mask, this.#bits.fill(0));
    return new Stroke(id, mask, this.#bits, this.#canvas, colour, brush);
  }
}

class Stroke {
  #bits;
  #mask;
  #colour;
  #brush;
  #last = null;
  #window;

  constructor(id, mask, bits, canvas, colour, brush) {
    Object.assign(this, { id, canvas });
    [this.#mask, this.#bits, this.#colour, this.#brush] = [mask, bits, colour, brush];
    this.#window = mask.w ? [mask.x, mask.y, mask.x + mask.w, mask.y + mask.h] : null;
  }

  /** Draw on to a place, in exact pixels of the image. */
  to(x, y) {
    const [x0, y0] = this.#last ?? [x, y];
    this.#last = [x, y];
    const { width, height } = this.#mask;
    const { radius, erase } = this.#brush;
    const left = Math.max(0, Math.floor(Math.min(x0, x) - radius));
    const top = Math.max(0, Math.floor(Math.min(y0, y) - radius));
    const right = Math.min(width, Math.ceil(Math.max(x0, x) + radius));
    const bottom = Math.min(height, Math.ceil(Math.max(y0, y) + radius));
    if (left >= right || top >= bottom) return;
    const [dx, dy] = [x - x0, y - y0];
    const length = dx * dx + dy * dy;
    for (let row = top; row < bottom; row++) {
      for (let column = left; column < right; column++) {
        const [px, py] = [column + 0.5 - x0, row + 0.5 - y0];
        const along = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
        const [ex, ey] = [px - along * dx, py - along * dy];
        if (ex * ex + ey * ey <= radius * radius) this.#bits[row * width + column] = erase ? 0 : 1;
      }
    }
    if (!erase) this.#grow(left, top, right, bottom);
    this.#paint(left, top, right - left, bottom - top);
  }

  /** The mask with the stroke. */
  end() {
    const { width, height } = this.#mask;
    if (!this.#window) return maskOfBits(this.#bits, width, height, { x: 0, y: 0, w: 0, h: 0 });
    const [left, top, right, bottom] = this.#window;
    return maskOfBits(this.#bits, width, height, { x: left, y: top, w: right - left, h: bottom - top });
  }

  #grow(left, top, right, bottom) {
    const [a, b, c, d] = this.#window ?? [left, top, right, bottom];
    this.#window = [Math.min(a, left), Math.min(b, top), Math.max(c, right), Math.max(d, bottom)];
  }

  #paint(x, y, w, h) {
    const image = new ImageData(w, h);
    const pixels = new Uint32Array(image.data.buffer);
    const [red, green, blue] = this.#colour;
    const colour = (ALPHA << 24) | (blue << 16) | (green << 8) | red;
    for (let row = 0, at = 0; row < h; row++) {
      const from = (y + row) * this.#mask.width + x;
      for (let column = 0; column < w; column++, at++) if (this.#bits[from + column]) pixels[at] = colour;
    }
    this.canvas.getContext("2d").putImageData(image, x, y);
  }
}
