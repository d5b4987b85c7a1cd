/** The page: puts its parts together and shows what they say. */
import { Annotator } from "./annotator.js";
import { api } from "./api.js";
import { AnnotationDocument } from "./document.js";
import { connectControls } from "./controls.js";
import { byId } from "./elements.js";
import { ImagesPanel } from "./images-panel.js";
import { listen, showShortcuts, shortcuts } from "./keys.js";
import { Layers } from "./layers.js";
import { ObjectsPanel } from "./objects-panel.js";
import { Pictures } from "./pictures.js";
import { Predictor } from "./predictor.js";
import { followTheme } from "./theme.js";
import { Tools } from "./tools.js";
import { View } from "./view.js";

const FUSION_NAMES = { sam: "SAM", hq: "HQ", sum: "Sum" };
const SLOW_MS = 300; // after this long, waiting is said

class Page {
  #documents = new Map(); // id of an image -> promise of an AnnotationDocument
  #loaded = new Set();
  #pictures = new Pictures();
  #opening = 0;

  constructor(state) {
    this.state = state;
    const forced = new URLSearchParams(location.search).get("decoder");
    this.predictor = new Predictor(state, forced);
    this.annotator = new Annotator(this.predictor, state.model.default_fusion);
    this.view = new View();
    this.stage = byId("stage");
    this.layers = new Layers(this.stage, this.view);
    this.tools = new Tools(this.stage, this.view, this.layers, this.annotator);
    this.objects = new ObjectsPanel(this.annotator, this.layers);
    this.images = new ImagesPanel((image) => this.open(image));
    this.objects.suggest(state.labels);
    this.#showModel();
    this.#fusions();
    this.#listen();
    connectControls(this);
    this.keys = shortcuts(this);
    showShortcuts(this.keys);
    listen(this.keys, this.tools);
    this.tools.setTool("prompt");
  }

  async start() {
    await this.images.more();
    const wanted = location.hash.slice(1);
    const first = (wanted && (await this.images.find(wanted))) || this.images.images.find(({ state }) => state !== "done");
    const image = first ?? this.images.images[0];
    if (image) await this.open(image);
    else this.say("There are no images in this folder.");
    this.showCounts();
  }

  /** Show an image. */
  async open(image) {
    const turn = ++this.#opening;
    this.images.show(image);
    this.stage.classList.add("loading");
    this.say(`Opening ${image.name}`);
    try {
      const [document, picture] = await Promise.all([this.#document(image), this.#pictures.get(image)]);
      if (turn !== this.#opening) return;
      this.#show(document, picture);
      this.#prepare(image);
    } catch (error) {
      if (turn !== this.#opening) return;
      this.say(`${image.name}: ${error.message}`, "error");
      const shown = this.annotator.document?.image;
      if (shown) this.images.show(shown);
    } finally {
      if (turn === this.#opening) this.stage.classList.remove("loading");
    }
  }

  async #document(image) {
    const known = this.#documents.get(image.id);
    if (!known) {
      const loading = this.#load(image);
      this.#documents.set(image.id, loading);
      loading.catch(() => this.#documents.delete(image.id));
      return loading;
    }
    const document = await known;
    if (document.isSaved) await document.refresh();
    return document;
  }

  async #load(image) {
    const document = new AnnotationDocument(image);
    document.addEventListener("change", () => this.#changed(document));
    document.addEventListener("saved", () => this.#saved(document));
    document.addEventListener("conflict", () => this.#conflict(document));
    await document.load();
    this.#loaded.add(document);
    return document;
  }

  #show(document, picture) {
    history.replaceState(null, "", `#${document.image.id}`);
    this.tools.cancel();
    this.annotator.open(document);
    this.layers.setPicture(picture);
    this.#pictures.shown = document.image.id;
    this.view.setImage(document.image.width, document.image.height);
    this.stage.setAttribute("aria-label", `Picture ${document.image.name}`);
    byId("image-title").textContent = document.image.name;
    this.#changed(document);
    this.#saved(document);
    if (document.conflict) this.#conflict(document);
    this.showZoom();
    this.layers.draw();
    this.say(`${document.image.name}, ${document.image.width} × ${document.image.height}`);
  }

  /** Take up the model that the server has now, which `hqsam round` may have replaced. */
  async #followModel() {
    const state = await api.state();
    if (state.model.fingerprint === this.state.model.fingerprint) return;
    this.state = state;
    this.predictor.renew(state);
    this.#showModel();
  }

  #showModel() {
    const { name, round } = this.state.model;
    byId("model").textContent = round ? `${name}, round ${round}` : name;
  }

  /** Let the server and the browser get ready for this image, and for the next ones. */
  async #prepare(image) {
    await this.#followModel().catch(() => {}); // the next image tries again
    this.predictor.open(image);
    const next = await this.images.neighbour(1);
    const ids = [image, next].filter(Boolean).map(({ id }) => id);
    api.prefetch(ids).catch(() => {}); // only a hint
    if (next) this.#pictures.get(next).catch(() => {}); // shown once it is opened
  }

  #changed(document) {
    const { objects, state } = document.now;
    const proposals = objects.filter((object) => object.status === "proposed").length;
    this.images.update(document.image, { state, objects: objects.length - proposals, proposals });
    if (document !== this.annotator.document) return;
    const selected = document.now.selected;
    this.layers.setObjects(
      objects.map((object) => ({ object, mask: () => this.annotator.maskOf(object), selected: object.id === selected })),
    );
    this.objects.show(document.now);
    this.#showDraft();
    this.#showState(document);
  }

  #showDraft() {
    const draft = this.annotator.document?.now.draft;
    const { overlay } = this.layers;
    overlay.points = [...(draft?.points ?? []), ...this.annotator.pending];
    overlay.box = this.annotator.pendingBox ?? draft?.box ?? null;
    this.layers.draw("top");
    const used = draft?.answer && draft.answer.count > 1 ? draft.chosen : -1;
    for (const button of byId("candidates").children) {
      const { candidate } = button.dataset;
      const isOn = candidate === "" ? draft?.candidate === null : draft?.candidate === Number(candidate);
      button.setAttribute("aria-pressed", String(Boolean(draft) && isOn));
      button.classList.toggle("used", candidate !== "" && Number(candidate) === used);
      button.disabled = !draft?.answer;
    }
  }

  #showState(document) {
    const isDone = document.now.state === "done";
    byId("done").setAttribute("aria-pressed", String(isDone));
    byId("undo").disabled = !document.canUndo;
    byId("redo").disabled = !document.canRedo;
  }

  #saved(document) {
    if (document !== this.annotator.document) return;
    const { state, detail } = document.saved;
    const text = { saved: "Saved", saving: "Saving", unsaved: "Not saved", conflict: "Not saved: changed elsewhere" };
    const place = byId("saved");
    place.dataset.state = state;
    place.textContent = text[state];
    place.title = detail;
    if (state === "unsaved") this.say(`Not saved. ${detail}`, "error");
    if (state === "saved") this.showCounts();
  }

  #conflict(document) {
    if (document !== this.annotator.document) return;
    const dialog = byId("conflict");
    byId("conflict-text").textContent =
      `${document.image.name} was changed in another window or by another person. ` +
      `There it has ${document.conflict.objects.length} objects now, here ${document.now.objects.length}.`;
    byId("take-theirs").onclick = () => this.#resolve(() => document.takeTheirs());
    byId("keep-both").onclick = () => this.#resolve(() => document.keepBoth());
    dialog.onclose = () => document.conflict && this.#conflict(document); // Escape decides nothing
    if (!dialog.open) dialog.showModal();
  }

  #resolve(action) {
    byId("conflict").close();
    action();
    this.say("The image holds what was chosen.");
  }

  #listen() {
    const { annotator, tools, layers } = this;
    annotator.addEventListener("message", ({ detail }) => this.say(detail));
    annotator.addEventListener("answer", ({ detail }) => this.#answered(detail));
    annotator.addEventListener("pending", () => this.#pending());
    annotator.addEventListener("preview", () => {
      const seen = annotator.preview;
      layers.overlay.preview = seen ? { mask: seen.answer.masks[seen.chosen].mask } : null;
      layers.draw("top");
    });
    tools.addEventListener("change", () => this.#showTools());
    tools.addEventListener("place", ({ detail }) => (byId("place").textContent = detail ? detail.join(", ") : ""));
    for (const name of ["pointerdown", "pointermove", "keydown", "wheel"]) {
      document.addEventListener(name, () => annotator.touch(), { passive: true });
    }
    new ResizeObserver(([{ contentRect }]) => {
      layers.resize(contentRect.width, contentRect.height);
      this.showZoom();
    }).observe(this.stage);
    addEventListener("beforeunload", (event) => {
      if ([...this.#loaded].some((document) => !document.isSaved)) event.preventDefault();
    });
  }

  #pending() {
    this.#showDraft();
    const isWaiting = this.annotator.waiting > 0;
    clearTimeout(this.slow);
    if (isWaiting) this.slow = setTimeout(() => this.#sayWaiting(), SLOW_MS);
    else this.stage.classList.remove("waiting");
  }

  #sayWaiting() {
    this.stage.classList.add("waiting");
    if (!this.annotator.document.image.encoded) this.say("The model reads the picture; masks come quickly after that.");
  }

  #answered({ where, ms }) {
    byId("answered").textContent = `${where}, ${Math.round(ms)} ms`;
    byId("answered").title = this.predictor.reason;
    if (this.annotator.waiting) this.say("Left click adds, right click takes away, Enter begins the next object.");
  }

  #fusions() {
    const { fusions } = this.state.model;
    const place = byId("fusions");
    for (const button of place.children) {
      button.hidden = !fusions.includes(button.dataset.fusion);
      button.addEventListener("click", () => this.setFusion(button.dataset.fusion));
    }
    this.#showFusion();
  }

  #showFusion() {
    for (const button of byId("fusions").children) {
      button.setAttribute("aria-pressed", String(button.dataset.fusion === this.annotator.fusion));
    }
  }

  setFusion(fusion) {
    this.annotator.setFusion(fusion);
    this.#showFusion();
    this.say(`Masks of ${FUSION_NAMES[fusion]}`);
  }

  nextFusion() {
    const { fusions } = this.state.model;
    this.setFusion(fusions[(fusions.indexOf(this.annotator.fusion) + 1) % fusions.length]);
  }

  #showTools() {
    const { tool, radius } = this.tools;
    for (const button of byId("tools").children) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
    }
    byId("fusions").hidden = tool !== "prompt" || this.state.model.fusions.length < 2;
    byId("candidates").hidden = tool !== "prompt";
    byId("brush-size").hidden = tool !== "brush" && tool !== "eraser";
    byId("radius").value = radius;
    byId("radius-value").textContent = `${2 * radius} px`;
    this.showZoom();
  }

  /** Change the view and draw it. */
  zoom(change) {
    change();
    this.layers.draw();
    this.showZoom();
  }

  showZoom() {
    byId("zoom").textContent = `${Math.round(this.view.scale * 100)} %`;
  }

  async showCounts() {
    try {
      const { masks, seconds_per_mask: seconds } = await api.statistics();
      const done = this.images.images.filter(({ state }) => state === "done").length;
      const pace = seconds ? ` · ${seconds.toFixed(1)} s each` : "";
      byId("counts").textContent = `${done}/${this.images.total} done · ${masks} masks${pace}`;
    } catch {
      byId("counts").textContent = ""; // shown again with the next answer
    }
  }

  undo() {
    this.annotator.unhover();
    this.annotator.document?.undo();
  }

  redo() {
    this.annotator.unhover();
    this.annotator.document?.redo();
  }

  edit() {
    if (!this.annotator.document?.selected) return this.say("Select an object to edit it.");
    this.tools.setTool("prompt");
    this.annotator.edit();
    return this.say("Left click adds to the object, right click takes away. B draws instead.");
  }

  async step(by) {
    const image = await this.images.neighbour(by);
    if (image) await this.open(image);
    else this.say(by > 0 ? "This is the last image." : "This is the first image.");
  }

  toggleDone() {
    const { document } = this.annotator;
    if (!document) return;
    const isDone = document.now.state === "done";
    this.annotator.setState(isDone ? (document.now.objects.length ? "started" : "todo") : "done");
    this.say(isDone ? "This image is not done." : "This image is done.");
  }

  async markDone() {
    const { document } = this.annotator;
    if (!document) return;
    if (document.now.state !== "done") this.annotator.setState("done");
    const next = await this.images.nextOpen();
    if (next) await this.open(next);
    else this.say("There is no later image that is not done.");
  }

  async propose() {
    const { document } = this.annotator;
    if (!document) return;
    const button = byId("propose");
    button.disabled = true;
    this.stage.classList.add("waiting");
    this.say("Looking for objects; this takes a while.");
    try {
      if (!(await document.flush())) throw new Error("Changes of this image are not saved yet.");
      const { added } = await api.propose(document.image.id);
      await document.refresh();
      this.say(added === 1 ? "One proposal." : `${added} proposals.`);
      if (document === this.annotator.document && !document.now.selected) this.annotator.step(1);
    } catch (error) {
      this.say(error.message, "error");
    } finally {
      button.disabled = false;
      this.stage.classList.remove("waiting");
    }
  }

  escape() {
    if (!this.tools.cancel()) this.annotator.finish();
  }

  toggleHelp() {
    const help = byId("help");
    if (help.open) help.close();
    else help.showModal();
  }

  say(text, kind = "") {
    byId("message").textContent = text;
    byId("message").dataset.kind = kind;
  }
}

followTheme();
try {
  const page = new Page(await api.state());
  window.hqsam = page; // for the console, and for tests
  await page.start();
} catch (error) {
  byId("message").textContent = error.message;
  byId("message").dataset.kind = "error";
}
