/** Decoded pictures: the one on the screen, and its neighbours. */
import { api } from "./api.js";

const KEPT = 3;

export class Pictures {
  #pictures = new Map(); // id -> promise of an ImageBitmap
  shown = null; // id of the image on the screen, whose picture is kept

  /** The upright picture of an image. */
  get(image) {
    const known = this.#pictures.get(image.id);
    this.#pictures.delete(image.id);
    const picture = known ?? this.#load(image);
    this.#pictures.set(image.id, picture);
    if (!known) picture.catch(() => this.#pictures.delete(image.id));
    const ids = [...this.#pictures.keys()];
    if (ids.length > KEPT) this.#drop(ids.find((id) => id !== this.shown));
    return picture;
  }

  async #load(image) {
    const bitmap = await createImageBitmap(await api.file(image.id), { imageOrientation: "from-image" });
    if (bitmap.width !== image.width || bitmap.height !== image.height) {
      throw new Error(
        `the browser reads ${bitmap.width} x ${bitmap.height} pixels, the server ${image.width} x ${image.height}`,
      );
    }
    return bitmap;
  }

  #drop(id) {
    this.#pictures.get(id).then((bitmap) => bitmap.close()).catch(() => {}); // what never loaded needs no closing
    this.#pictures.delete(id);
  }
}
