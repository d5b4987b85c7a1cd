/** Mouse and pen on the stage: prompts, brush, selecting, zoom and pan. */
import { Strokes } from "./stroke.js";

const DRAG_PX = 5;
const [LEFT, MIDDLE, RIGHT] = [0, 1, 2];

export class Tools extends EventTarget {
  #stage;
  #drag = null;
  #strokes = new Strokes();
  #at = null; // of the mouse, in the stage

  constructor(stage, view, layers, annotator) {
    super();
    this.#stage = stage;
    Object.assign(this, { view, layers, annotator, tool: "prompt", radius: 12, isSpaceDown: false });
    stage.addEventListener("pointerdown", (event) => this.#down(event));
    stage.addEventListener("pointermove", (event) => this.#move(event));
    stage.addEventListener("pointerup", (event) => this.#up(event));
    stage.addEventListener("pointercancel", () => this.cancel());
    stage.addEventListener("pointerleave", () => this.#leave());
    stage.addEventListener("contextmenu", (event) => event.preventDefault());
    stage.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
  }

  /** Whether the mouse is over the picture's stage. */
  get isOver() {
    return this.#at !== null;
  }

  setTool(tool) {
    this.cancel();
    this.tool = tool;
    if (tool !== "prompt") this.annotator.unhover();
    this.#stage.dataset.tool = tool;
    this.#cursor();
    this.dispatchEvent(new Event("change"));
  }

  setRadius(radius) {
    this.radius = Math.min(500, Math.max(1, Math.round(radius)));
    this.#cursor();
    this.dispatchEvent(new Event("change"));
  }

  setSpace(isDown) {
    this.isSpaceDown = isDown;
    this.#stage.classList.toggle("panning", isDown);
  }

  /** Forget a box or a stroke that is being drawn; whether there was one. */
  cancel() {
    const had = this.#drag !== null && this.#drag.kind !== "pan";
    this.#drag = null;
    this.layers.overlay.drag = null;
    this.layers.overlay.stroke = null;
    this.layers.draw("top", "objects");
    return had;
  }

  #position(event) {
    const { left, top } = this.#stage.getBoundingClientRect();
    return [event.clientX - left, event.clientY - top];
  }

  #down(event) {
    if (!this.annotator.document || this.#drag) return;
    const at = this.#position(event);
    const kind = this.#kindOf(event);
    if (!kind) return;
    this.#stage.setPointerCapture(event.pointerId);
    this.#drag = { kind, button: event.button, from: at, last: at, isLong: false };
    if (kind === "stroke" && !this.#beginStroke(at, event)) this.#drag = null;
  }

  #kindOf({ button }) {
    if (button === MIDDLE || (button === LEFT && this.isSpaceDown)) return "pan";
    if (this.tool === "prompt" && (button === LEFT || button === RIGHT)) return "prompt";
    if (this.tool === "select" && button === LEFT) return "select";
    return this.tool === "brush" || this.tool === "eraser" ? "stroke" : null;
  }

  #beginStroke(at, { button }) {
    const erase = (this.tool === "eraser") !== (button === RIGHT);
    const target = this.annotator.strokeTarget(erase);
    if (!target) return false;
    const object = this.annotator.document.object(target.id) ?? { id: target.id, label: "" };
    const colour = this.layers.colourOf(object);
    const stroke = this.#strokes.begin(target.id, target.mask, colour, { erase, radius: this.radius });
    stroke.to(...this.view.place(...at));
    this.layers.overlay.stroke = stroke;
    this.layers.draw("objects");
    return true;
  }

  #move(event) {
    this.#at = this.#position(event);
    const drag = this.#drag;
    if (drag) this.#dragTo(drag, event);
    else if (this.tool === "prompt") this.#hover();
    this.#cursor();
    this.dispatchEvent(new CustomEvent("place", { detail: this.view.isInside(...this.#at) ? this.view.pixel(...this.#at) : null }));
  }

  #hover() {
    if (this.isSpaceDown || !this.view.isInside(...this.#at)) this.annotator.unhover();
    else this.annotator.hover(...this.view.pixel(...this.#at));
  }

  #dragTo(drag, event) {
    const [x, y] = this.#at;
    drag.isLong ||= Math.hypot(x - drag.from[0], y - drag.from[1]) > DRAG_PX;
    if (drag.kind === "pan" || (drag.kind === "select" && drag.isLong)) {
      this.view.pan(x - drag.last[0], y - drag.last[1]);
      this.layers.draw();
    } else if (drag.kind === "stroke") {
      // the browser gathers fast movements: without what lies between, round strokes have corners
      for (const part of event.getCoalescedEvents?.() ?? [event]) {
        this.layers.overlay.stroke.to(...this.view.place(...this.#position(part)));
      }
      this.layers.draw("objects");
    } else if (drag.kind === "prompt" && drag.isLong && drag.button === LEFT) {
      this.annotator.unhover();
      this.layers.overlay.drag = this.#boxOf(drag.from, this.#at);
      this.layers.draw("top");
    }
    drag.last = [x, y];
  }

  #boxOf(from, to) {
    const [[x0, y0], [x1, y1]] = [this.view.pixel(...from), this.view.pixel(...to)];
    return [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
  }

  #up(event) {
    const drag = this.#drag;
    if (!drag || event.button !== drag.button) return;
    const at = this.#position(event);
    this.#drag = null;
    if (drag.kind === "stroke") this.#endStroke();
    else if (drag.kind === "select" && !drag.isLong) this.#selectAt(at);
    else if (drag.kind === "prompt") this.#prompt(drag, at);
  }

  #endStroke() {
    const { stroke } = this.layers.overlay;
    this.layers.overlay.stroke = null;
    this.annotator.stroked(stroke.id, stroke.end());
    this.layers.draw("objects");
  }

  #selectAt(at) {
    const object = this.view.isInside(...at) && this.annotator.at(...this.view.pixel(...at), this.layers.isHidden);
    this.annotator.select(object ? object.id : null);
  }

  #prompt(drag, at) {
    this.layers.overlay.drag = null;
    this.layers.draw("top");
    if (drag.isLong && drag.button === LEFT) {
      const box = this.#boxOf(drag.from, at);
      if (box[2] > box[0] && box[3] > box[1]) this.annotator.box(box);
    } else if (this.view.isInside(...drag.from)) {
      this.annotator.click(...this.view.pixel(...drag.from), drag.button === LEFT ? 1 : 0);
    }
  }

  #leave() {
    this.#at = null;
    this.annotator.unhover();
    this.#cursor();
    this.dispatchEvent(new CustomEvent("place", { detail: null }));
  }

  #wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 30 : 1;
    const factor = Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0015));
    this.view.zoomTo(this.view.scale * factor, ...this.#position(event));
    this.layers.draw();
    this.dispatchEvent(new Event("change"));
  }

  /** The brush's circle follows the mouse. */
  #cursor() {
    const isBrush = this.tool === "brush" || this.tool === "eraser";
    const had = this.layers.overlay.brush;
    this.layers.overlay.brush = null;
    if (isBrush && this.#at) {
      const [x, y] = this.view.place(...this.#at);
      this.layers.overlay.brush = { x, y, radius: this.radius, erase: this.tool === "eraser" };
    }
    if (had || this.layers.overlay.brush) this.layers.draw("top");
  }
}
