/** The list of objects: those of the image, and apart from them what is proposed. */
import { byId, iconButton, make } from "./elements.js";

export class ObjectsPanel {
  #rows = new Map(); // id -> row

  constructor(annotator, layers) {
    this.annotator = annotator;
    this.layers = layers;
    this.hidden = new Set();
    this.areAllHidden = false;
    this.labels = new Set();
    layers.isHidden = ({ id }) => this.areAllHidden || this.hidden.has(id);
    layers.colourKey = ({ id, label }) => (byId("colour-by-label").checked && label ? label : id);
  }

  /** Labels to suggest. */
  suggest(labels) {
    for (const label of labels) {
      if (!label || this.labels.has(label)) continue;
      this.labels.add(label);
      byId("labels").append(make("option", { value: label }));
    }
  }

  show({ objects, selected }) {
    const known = new Set(objects.map((object) => object.id));
    for (const [id, row] of this.#rows) {
      if (known.has(id)) continue;
      row.remove();
      this.#rows.delete(id);
    }
    this.#fill(byId("objects"), objects.filter((object) => object.status !== "proposed"), selected);
    const proposals = objects.filter((object) => object.status === "proposed");
    this.#fill(byId("proposals"), proposals, selected);
    byId("proposals-section").hidden = proposals.length === 0;
    byId("proposals-count").textContent = proposals.length;
    byId("objects-count").textContent = objects.length - proposals.length;
    byId("objects-empty").hidden = objects.length > proposals.length;
    this.suggest(objects.map((object) => object.label));
  }

  #fill(list, objects, selected) {
    objects.forEach((object, at) => {
      let row = this.#rows.get(object.id);
      if (!row) this.#rows.set(object.id, (row = this.#row(object.id)));
      if (list.children[at] !== row) list.insertBefore(row, list.children[at] ?? null);
      this.#update(row, object, at, object.id === selected);
    });
  }

  #row(id) {
    const { annotator } = this;
    const number = make("button", { type: "button", class: "swatch", onclick: () => annotator.select(id) });
    const label = make("input", { type: "text", maxLength: 200, placeholder: "label", autocomplete: "off" });
    label.setAttribute("list", "labels");
    label.addEventListener("focus", () => annotator.select(id));
    label.addEventListener("change", () => annotator.setLabel(id, label.value));
    label.addEventListener("keydown", (event) => ["Enter", "Escape"].includes(event.key) && label.blur());
    const note = make("span", { class: "object-note" });
    const accept = iconButton("check", "Accept (A)", () => annotator.accept(id), { class: "icon-button accept" });
    const eye = iconButton("eye", "Show or hide", () => this.#toggle(id), { class: "icon-button eye" });
    const bin = iconButton("bin", "Delete (Del)", () => annotator.remove(id), { class: "icon-button bin" });
    const row = make("li", { class: "object-row" }, number, label, note, accept, eye, bin);
    row.addEventListener("click", (event) => event.target === row && annotator.select(id));
    return row;
  }

  #update(row, object, at, isSelected) {
    const [swatch, label, note, accept, eye, bin] = row.children;
    const name = object.label || `object ${at + 1}`;
    const [red, green, blue] = this.layers.colourOf(object);
    swatch.style.setProperty("--swatch", `rgb(${red} ${green} ${blue})`);
    swatch.textContent = at + 1;
    swatch.setAttribute("aria-label", `Select ${name}`);
    swatch.setAttribute("aria-pressed", String(isSelected));
    label.setAttribute("aria-label", `Label of object ${at + 1}`);
    if (document.activeElement !== label) label.value = object.label;
    note.textContent = object.score === null ? object.source : object.score.toFixed(2);
    note.title = object.score === null ? `Made by ${object.source}` : `Made by ${object.source}; the model's own score`;
    accept.hidden = object.status !== "proposed";
    eye.setAttribute("aria-pressed", String(this.hidden.has(object.id)));
    bin.setAttribute("aria-label", `Delete ${name}`);
    row.classList.toggle("selected", isSelected);
    row.classList.toggle("proposed", object.status === "proposed");
    row.classList.toggle("invisible", this.hidden.has(object.id));
    if (isSelected && !row.classList.contains("seen")) row.scrollIntoView({ block: "nearest" });
    row.classList.toggle("seen", isSelected);
  }

  #toggle(id) {
    if (!this.hidden.delete(id)) this.hidden.add(id);
    this.refresh();
  }

  toggleAll() {
    this.areAllHidden = !this.areAllHidden;
    byId("toggle-all").setAttribute("aria-pressed", String(this.areAllHidden));
    this.refresh();
  }

  refresh() {
    this.layers.setObjects(this.layers.objects);
    if (this.annotator.document) this.show(this.annotator.document.now);
  }

  /** Put the cursor into the label of the selected object. */
  focusLabel() {
    const row = this.#rows.get(this.annotator.document?.now.selected);
    row?.querySelector("input").select();
  }
}
