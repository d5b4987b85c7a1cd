/** Where the picture lies on the screen: positions in CSS pixels of the stage, pixels of the picture. */

const MOST = 64;
const MARGIN = 24;

export class View {
  constructor() {
    this.scale = 1;
    this.x = 0;
    this.y = 0;
    this.width = 1; // of the picture
    this.height = 1;
    this.stage = { width: 1, height: 1 };
    this.fitted = true; // stays fitted when the window changes
  }

  setImage(width, height) {
    Object.assign(this, { width, height });
    this.fit();
  }

  setStage(width, height) {
    const [dx, dy] = [(width - this.stage.width) / 2, (height - this.stage.height) / 2];
    this.stage = { width, height };
    if (this.fitted) this.fit();
    else this.pan(dx, dy);
  }

  get fitScale() {
    const room = (side, pixels) => Math.max(1, side - 2 * MARGIN) / pixels;
    return Math.min(room(this.stage.width, this.width), room(this.stage.height, this.height), MOST);
  }

  fit() {
    this.scale = this.fitScale;
    this.x = (this.stage.width - this.width * this.scale) / 2;
    this.y = (this.stage.height - this.height * this.scale) / 2;
    this.fitted = true;
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.fitted = false;
    this.#keepInSight();
  }

  /** Zoom to a scale so that the place under the cursor stays; the middle of the stage without a cursor. */
  zoomTo(scale, x = this.stage.width / 2, y = this.stage.height / 2) {
    const next = Math.min(MOST, Math.max(this.fitScale / 4, scale));
    this.x = x - ((x - this.x) * next) / this.scale;
    this.y = y - ((y - this.y) * next) / this.scale;
    this.scale = next;
    this.fitted = false;
    if (next === 1) [this.x, this.y] = [Math.round(this.x), Math.round(this.y)]; // pixel on pixel
    this.#keepInSight();
  }

  /** Exact position in the picture, 0 to width from its left to its right edge. */
  place(x, y) {
    return [(x - this.x) / this.scale, (y - this.y) / this.scale];
  }

  /** The pixel there, the nearest one for places beside the picture. */
  pixel(x, y) {
    const [column, row] = this.place(x, y).map(Math.floor);
    return [Math.min(this.width - 1, Math.max(0, column)), Math.min(this.height - 1, Math.max(0, row))];
  }

  isInside(x, y) {
    const [column, row] = this.place(x, y);
    return column >= 0 && row >= 0 && column < this.width && row < this.height;
  }

  #keepInSight() {
    const keep = (at, length, room) => Math.min(room - MARGIN, Math.max(MARGIN - length, at));
    this.x = keep(this.x, this.width * this.scale, this.stage.width);
    this.y = keep(this.y, this.height * this.scale, this.stage.height);
  }
}
