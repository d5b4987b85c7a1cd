/** Keyboard shortcuts, and the overlay that lists them. */
import { byId, make } from "./elements.js";

/** [keys, what they do, action], in groups. A key is written as the event's `key`; "Ctrl+" stands for Cmd as well. */
export function shortcuts(page) {
  const { annotator, tools, view } = page;
  const selected = () => annotator.document?.now.selected;
  const withView = (change) => () => page.zoom(change);
  return {
    Segment: [
      ["q", "Prompts: left click inside, right click outside, drag a box", () => tools.setTool("prompt")],
      ["Enter n", "Object is good, begin the next one", () => annotator.finish()],
      ["1", "First of the three candidates", () => annotator.choose(0)],
      ["2", "Second candidate", () => annotator.choose(1)],
      ["3", "Third candidate", () => annotator.choose(2)],
      ["0", "Let the model choose the candidate", () => annotator.choose(null)],
      ["t", "SAM, HQ or their sum", () => page.nextFusion()],
    ],
    Draw: [
      ["b", "Brush; the right button erases", () => tools.setTool("brush")],
      ["x", "Eraser", () => tools.setTool("eraser")],
      ["[", "Smaller brush", () => tools.setRadius(Math.min(tools.radius - 1, tools.radius / 1.25))],
      ["]", "Larger brush", () => tools.setRadius(Math.max(tools.radius + 1, tools.radius * 1.25))],
      ["Ctrl+z", "Undo", () => page.undo()],
      ["Ctrl+Shift+z Ctrl+y", "Redo", () => page.redo()],
    ],
    Objects: [
      ["v", "Select by clicking on a mask", () => tools.setTool("select")],
      ["ArrowDown", "Next object", () => annotator.step(1)],
      ["ArrowUp", "Previous object", () => annotator.step(-1)],
      ["l", "Write its label", () => page.objects.focusLabel()],
      ["e", "Edit it with clicks", () => page.edit()],
      ["a", "Accept the proposal", () => annotator.accept(selected())],
      ["Shift+a", "Accept all proposals", () => annotator.acceptAll()],
      ["Delete Backspace r", "Delete the object, reject the proposal", () => annotator.remove(selected())],
      ["h", "Hide all masks, or show them", () => page.objects.toggleAll()],
    ],
    Images: [
      ["ArrowRight k", "Next image", () => page.step(1)],
      ["ArrowLeft j", "Previous image", () => page.step(-1)],
      ["m", "Done, go to the next one that is not", () => page.markDone()],
    ],
    View: [
      ["f", "Fit the picture", withView(() => view.fit())],
      ["z", "100 %", withView(() => view.zoomTo(1))],
      ["+ =", "Zoom in (or the wheel)", withView(() => view.zoomTo(view.scale * 1.25))],
      ["-", "Zoom out", withView(() => view.zoomTo(view.scale / 1.25))],
      ["Space", "With the left button: move the picture (or the middle button)", null],
      ["Escape", "Leave: a drag, the object, this help", () => page.escape()],
      ["?", "This help", () => page.toggleHelp()],
    ],
  };
}

const SYMBOLS = { ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→", Delete: "Del", Escape: "Esc" };

/** Listen for the shortcuts. */
export function listen(groups, tools) {
  const actions = new Map();
  for (const [keys, , action] of Object.values(groups).flat()) {
    if (action) for (const key of keys.split(" ")) actions.set(key, action);
  }
  document.addEventListener("keydown", (event) => {
    const dialog = document.querySelector("dialog[open]"); // nothing happens behind it
    if (isTyping(event.target) || (dialog && !(dialog.id === "help" && event.key === "?"))) return;
    if (event.key === " " && (tools.isOver || !isControl(event.target))) {
      tools.setSpace(true);
      event.preventDefault();
      return;
    }
    const action = actions.get(nameOf(event));
    if (!action || belongsTo(event.target, event.key)) return;
    event.preventDefault();
    action();
  });
  document.addEventListener("keyup", (event) => {
    if (event.key !== " " || !tools.isSpaceDown) return;
    tools.setSpace(false);
    event.preventDefault(); // the button that was clicked last is not pressed again
  });
  addEventListener("blur", () => tools.setSpace(false));
}

function nameOf(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const isLetter = key.toLowerCase() !== key.toUpperCase() || event.key.length > 1;
  const shift = event.shiftKey && isLetter ? "Shift+" : ""; // "?" and "+" need Shift on some keyboards
  return (event.ctrlKey || event.metaKey ? "Ctrl+" : "") + (event.altKey ? "Alt+" : "") + shift + key;
}

const isTyping = (element) => element.matches?.("input:not([type=checkbox], [type=range], [type=radio]), textarea, select");
const isControl = (element) => element.matches?.("button, input, select, summary, a[href]");

/** Keys that a control needs itself. */
const belongsTo = (element, key) =>
  (key === "Enter" && isControl(element)) || (key.startsWith("Arrow") && element.matches?.("input[type=range]"));

/** Fill the overlay. */
export function showShortcuts(groups) {
  const sections = Object.entries(groups).map(([title, rows]) =>
    make("section", {}, make("h3", { textContent: title }), make("dl", {}, ...rows.flatMap(line))),
  );
  byId("shortcuts").replaceChildren(...sections);
}

function line([keys, text]) {
  const parts = keys.split(" ").map((key) => make("kbd", { textContent: key === "+" ? key : key.split("+").map(symbol).join(" ") }));
  return [make("dt", {}, ...parts), make("dd", { textContent: text })];
}

const symbol = (key) => SYMBOLS[key] ?? (key.length === 1 ? key.toUpperCase() : key);
