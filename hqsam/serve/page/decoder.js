/** The page's side of the decoder in the browser. */
import { api } from "./api.js";

export class BrowserDecoder {
  #worker;
  #calls = new Map();
  #last = 0;
  #embedded = new Map(); // id of an image -> {ready, promise}
  #fusions = [];

  /**
   * @param {object} state `/api/state`
   * @param {?string} force "wasm" or "webgpu"; null takes the best there is
   */
  constructor(state, force) {
    this.model = state.model;
    this.provider = "";
    this.#worker = new Worker(new URL("decoder-worker.js", import.meta.url), { type: "module" });
    this.#worker.onmessage = ({ data }) => this.#answered(data);
    this.#worker.onerror = (event) => this.#broken(event.message || "the decoder's worker failed");
    const { decoder, runtime } = state.browser_decoder;
    const absolute = (path) => new URL(path, location.href).href;
    this.ready = this.#call("start", {
      decoder: absolute(decoder),
      runtime: absolute(runtime),
      imageSize: state.model.image_size,
      fingerprint: state.model.fingerprint,
      force,
    }).then(({ provider, outputs }) => {
      this.provider = provider;
      // SAM's masks beside the HQ token are nearly, but not quite, those of plain SAM: these come from the server
      this.#fusions = outputs.includes("low_res_masks_sam") ? ["hq", "sum"] : [state.model.default_fusion];
    });
  }

  /** Fetch what the encoder made of an image; the server makes it first where it has to. */
  load(image) {
    const known = this.#embedded.get(image.id);
    if (known) return known.promise;
    const entry = { ready: false };
    entry.promise = this.#embed(image).then(
      () => (entry.ready = true),
      (error) => {
        this.#embedded.delete(image.id);
        throw error;
      },
    );
    this.#embedded.set(image.id, entry);
    return entry.promise;
  }

  async #embed(image) {
    await this.ready;
    const url = (part) => new URL(api.embeddingUrl(image.id, part), location.href).href;
    const urls = { image_embeddings: url("image_embeddings"), hq_features: url("hq_features") };
    const { provider } = await this.#call("embed", { image: image.id, width: image.width, height: image.height, urls });
    this.provider = provider;
  }

  /** Whether it can answer at once. */
  can(image, fusion) {
    return this.#embedded.get(image.id)?.ready && this.#fusions.includes(fusion);
  }

  /** {answer, masks: [{mask, score}], ms} */
  predict(image, prompt) {
    return this.#call("predict", { ...prompt, image: image.id });
  }

  /** End the worker; what it was asked is answered with an error. */
  close() {
    this.#worker.terminate();
    this.#broken("the model was replaced");
  }

  /** An image's embedding went out of the worker. */
  forget(image) {
    this.#embedded.delete(image.id);
  }

  #call(kind, content) {
    const id = ++this.#last;
    return new Promise((resolve, reject) => {
      this.#calls.set(id, { resolve, reject });
      this.#worker.postMessage({ ...content, id, kind });
    });
  }

  #answered({ id, result, error }) {
    const call = this.#calls.get(id);
    this.#calls.delete(id);
    if (error === undefined) call.resolve(result);
    else call.reject(new Error(error));
  }

  #broken(message) {
    for (const { reject } of this.#calls.values()) reject(new Error(message));
    this.#calls.clear();
  }
}
