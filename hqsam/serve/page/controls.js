/** Buttons and fields of the bars: what they do. */
import { byId } from "./elements.js";
import { toggleTheme } from "./theme.js";

/** Connect them with the page. */
export function connectControls(page) {
  const { annotator, tools, view, objects } = page;
  const actions = {
    undo: () => page.undo(),
    redo: () => page.redo(),
    previous: () => page.step(-1),
    next: () => page.step(1),
    done: () => page.toggleDone(),
    fit: () => page.zoom(() => view.fit()),
    full: () => page.zoom(() => view.zoomTo(1)),
    "toggle-all": () => objects.toggleAll(),
    propose: () => page.propose(),
    "accept-all": () => annotator.acceptAll(),
    "edit-proposal": () => page.edit(),
    "help-button": () => page.toggleHelp(),
    "help-close": () => page.toggleHelp(),
    theme: () => toggleTheme(),
  };
  for (const [id, action] of Object.entries(actions)) byId(id).addEventListener("click", action);
  for (const button of byId("tools").children) button.addEventListener("click", () => tools.setTool(button.dataset.tool));
  for (const button of byId("candidates").children) {
    const { candidate } = button.dataset;
    button.addEventListener("click", () => annotator.choose(candidate === "" ? null : Number(candidate)));
  }
  byId("radius").addEventListener("input", ({ target }) => tools.setRadius(Number(target.value)));
  byId("colour-by-label").addEventListener("change", () => objects.refresh());
}
