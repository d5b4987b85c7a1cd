/** The list of images: thumbnails, names and how far each one is. */
import { api } from "./api.js";
import { byId, make } from "./elements.js";

const PAGE = 200;
const STATES = { todo: "to do", started: "started", done: "done" };

export class ImagesPanel {
  #list = byId("images");
  #rows = new Map(); // id -> row
  #loading = null;

  constructor(onopen) {
    this.onopen = onopen;
    this.images = [];
    this.total = 0;
    this.current = null;
    const nearEnd = new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && this.more());
    nearEnd.observe(byId("images-end"));
  }

  /** Load the next images of the list; false at its end. */
  more() {
    this.#loading ??= this.#load().finally(() => {
      this.#loading = null;
    });
    return this.#loading;
  }

  async #load() {
    if (this.images.length && this.images.length >= this.total) return false;
    const { total, images } = await api.images(this.images.length, PAGE);
    this.total = total;
    for (const image of images) {
      this.images.push(image);
      const row = this.#row(image);
      this.#rows.set(image.id, row);
      this.#list.append(row);
      this.update(image);
    }
    return images.length > 0;
  }

  #row(image) {
    const picture = make("img", { src: api.thumbnailUrl(image.id), alt: "", loading: "lazy", decoding: "async" });
    const text = make("span", { class: "image-text" }, make("span", { class: "image-name", textContent: image.name, title: image.name }));
    text.append(make("span", { class: "image-note" }));
    const button = make("button", { type: "button", class: "image-row", onclick: () => this.onopen(image) }, picture, text);
    return make("li", {}, button);
  }

  /** Show what is known of an image. */
  update(image, change = {}) {
    Object.assign(image, change);
    const button = this.#rows.get(image.id)?.firstElementChild;
    if (!button) return;
    button.dataset.state = image.state;
    const counts = [];
    if (image.objects || image.state !== "todo") counts.push(image.objects === 1 ? "1 object" : `${image.objects} objects`);
    if (image.proposals) counts.push(`${image.proposals} proposed`);
    const note = button.querySelector(".image-note");
    note.title = note.textContent = image.problem ?? [STATES[image.state], ...counts].join(" · ");
  }

  show(image) {
    this.#rows.get(this.current?.id)?.firstElementChild.removeAttribute("aria-current");
    this.current = image;
    const row = this.#rows.get(image.id);
    row?.firstElementChild.setAttribute("aria-current", "true");
    row?.scrollIntoView({ block: "nearest" });
  }

  /** The image before or behind the one that is shown; null at the ends. */
  async neighbour(by) {
    const at = this.images.indexOf(this.current) + by;
    if (at >= this.images.length && !(await this.more())) return null;
    return this.images[at] ?? null;
  }

  /** The next image that is not done, from the one that is shown on. */
  async nextOpen() {
    for (let at = this.images.indexOf(this.current) + 1; ; at++) {
      if (at >= this.images.length && !(await this.more())) return null;
      if (this.images[at]?.state !== "done") return this.images[at] ?? null;
    }
  }

  /** The image of an id, loading the list as far as it has to. */
  async find(id) {
    for (;;) {
      const found = this.images.find((image) => image.id === id);
      if (found || !(await this.more())) return found ?? null;
    }
  }
}
