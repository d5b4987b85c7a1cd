/**
 * Masks for prompts, from the decoder in the browser or from the server: whoever asks does not notice which.
 *
 * An answer is {source, where, ms, token, masks: [{score, mask, rle}]}; of `mask` and `rle` one is made from the other
 * when it is first read.
 */
import { api, ApiError } from "./api.js";
import { BrowserDecoder } from "./decoder.js";
import { decodeRle, encodeRle } from "./rle.js";

class Candidate {
  #mask;
  #rle;

  constructor({ mask = null, rle = null, score }) {
    this.#mask = mask;
    this.#rle = rle;
    this.score = score;
  }

  get mask() {
    return (this.#mask ??= decodeRle(this.#rle));
  }

  get rle() {
    return (this.#rle ??= encodeRle(this.#mask));
  }
}

export class Predictor {
  #decoder = null;
  #forced;

  /**
   * @param {object} state `/api/state`
   * @param {?string} forced "server", or "browser", "wasm", "webgpu"; null is the browser where it can
   */
  constructor(state, forced) {
    this.#forced = forced;
    this.reason = "";
    const wanted = forced !== "server" && (state.browser_decoder?.available || (forced && state.browser_decoder));
    if (!wanted) {
      this.reason = forced === "server" ? "" : (state.browser_decoder?.reason ?? "");
      return;
    }
    this.#decoder = new BrowserDecoder(state, ["wasm", "webgpu"].includes(forced) ? forced : null);
    this.#decoder.ready.catch((error) => this.#giveUp(error));
  }

  /** Get the browser ready for an image; the server answers until it is. */
  async open(image) {
    try {
      await this.#decoder?.load(image);
    } catch (error) {
      this.reason = error.message;
    }
  }

  /**
   * @param {object} image
   * @param {object} prompt {points, box, previous: {answer, candidate} or null, fusion, multimask}
   * @param {AbortSignal} [signal]
   */
  async predict(image, prompt, signal) {
    if (this.#isForcedHere) await this.#decoder?.load(image);
    if (this.#decoder?.can(image, prompt.fusion)) {
      try {
        return await this.#here(image, prompt);
      } catch (error) {
        if (this.#isForcedHere) throw error;
        this.#decoder.forget(image);
        this.reason = error.message;
      }
    }
    return this.#there(image, prompt, signal);
  }

  get #isForcedHere() {
    return Boolean(this.#forced) && this.#forced !== "server";
  }

  #giveUp(error) {
    this.reason = error.message;
    if (!this.#isForcedHere) this.#decoder = null;
  }

  async #here(image, prompt) {
    const begin = performance.now();
    const found = await this.#decoder.predict(image, { ...prompt, previous: tokenOf(prompt.previous, "browser") });
    const masks = found.masks.map((candidate) => new Candidate(candidate));
    const ms = performance.now() - begin;
    return { source: "browser", where: `browser (${this.#decoder.provider})`, ms, token: found.answer, masks };
  }

  async #there(image, prompt, signal) {
    const begin = performance.now();
    const body = { ...prompt, previous: tokenOf(prompt.previous, "server") };
    let found;
    try {
      found = await api.predict(image.id, body, signal);
    } catch (error) {
      if (!(error instanceof ApiError && error.status < 500 && body.previous)) throw error;
      found = await api.predict(image.id, { ...body, previous: null }, signal); // it may have forgotten the answer
    }
    const masks = found.masks.map((candidate) => new Candidate(candidate));
    return { source: "server", where: "server", ms: performance.now() - begin, token: found.answer, masks };
  }
}

/** An earlier answer, where the one who is asked gave it. */
function tokenOf(previous, source) {
  return previous?.answer.source === source ? { answer: previous.answer.token, candidate: previous.candidate } : null;
}

/** One request at a time; of what is asked meanwhile only the newest is answered. */
export class Latest {
  #running = null;
  #next = null;

  constructor(ask) {
    this.ask = ask;
  }

  /** Resolves to null for what a newer request or `drop` made needless. */
  request(value) {
    this.#next?.resolve(null);
    return new Promise((resolve, reject) => {
      this.#next = { value, resolve, reject };
      if (!this.#running) this.#run();
    });
  }

  drop() {
    this.#next?.resolve(null);
    this.#next = null;
    if (this.#running) this.#running.dropped = true;
  }

  async #run() {
    while (this.#next) {
      const call = (this.#running = this.#next);
      this.#next = null;
      try {
        const answer = await this.ask(call.value);
        call.resolve(call.dropped ? null : answer);
      } catch (error) {
        if (call.dropped) call.resolve(null);
        else call.reject(error);
      }
    }
    this.#running = null;
  }
}
