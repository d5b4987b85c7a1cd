/**
 * Masks for prompts, from the decoder in the browser or from the server: whoever asks does not notice which.
 *
 * An answer is {source, where, ms, token, masks: [{score, mask, rle}]}; of `mask` and `rle` one is made from the other
 * when it is first read.
 */
import { api, ApiError } from "./api.js";
import { BrowserDecoder } from "./decoder.js";
import { decodeRle, encodeRle } from "./rle.js";

const NEWEST_SHARE = 0.3;
const FORGETTING = 0.98;

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
  #hasFailed = false;
  #fingerprint = "";
  #pace = { browser: 0, server: 0 }; // recent milliseconds an answer; 0 before the first one

  /**
   * @param {object} state `/api/state`
   * @param {?string} forced "server", or "browser", "wasm", "webgpu"; null is the faster of the two
   */
  constructor(state, forced) {
    this.#forced = forced;
    this.reason = "";
    this.#begin(state);
  }

  /** Go on with what the server has now; without effect while that is the same model. */
  renew(state) {
    if (state.model.fingerprint === this.#fingerprint) return;
    this.#decoder?.close();
    this.#decoder = null;
    this.#hasFailed = false;
    this.#begin(state);
  }

  #begin(state) {
    if (this.#decoder) return; // two images were opened while the server was asked
    this.#fingerprint = state.model.fingerprint;
    const { available, reason } = state.browser_decoder;
    this.reason = available ? "" : reason;
    if (this.#forced === "server" || !(available || this.#isForcedHere)) return;
    const provider = ["wasm", "webgpu"].includes(this.#forced) ? this.#forced : null;
    this.#decoder = new BrowserDecoder(state, provider);
    const decoder = this.#decoder;
    decoder.ready.catch((error) => decoder === this.#decoder && this.#giveUp(error));
  }

  /** Get the browser ready for an image; the server answers until it is. */
  async open(image) {
    try {
      // the server may have been making the decoder's file when the page was loaded
      if (!this.#decoder && !this.#hasFailed && this.#forced !== "server") this.#begin(await api.state());
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
    if (this.#decoder?.can(image, prompt.fusion) && this.#prefers(prompt)) {
      try {
        return await this.#here(image, prompt);
      } catch (error) {
        this.reason = error.message;
        this.#decoder.forget(image);
        if (this.#isForcedHere) {
          await this.#decoder.load(image); // it keeps the embeddings of a few images only
          return this.#here(image, prompt);
        }
        this.open(image);
      }
    }
    return this.#there(image, prompt, signal);
  }

  get #isForcedHere() {
    return Boolean(this.#forced) && this.#forced !== "server";
  }

  /** Whether the browser is to answer: it gave the answer that is fed back, or it is the faster one. */
  #prefers({ previous }) {
    if (this.#isForcedHere) return true;
    if (previous) return previous.answer.source === "browser";
    const { browser, server } = this.#pace;
    return !browser || !server || browser <= server;
  }

  #timed(source, begin) {
    const ms = performance.now() - begin;
    const known = this.#pace[source];
    this.#pace[source] = known ? known * (1 - NEWEST_SHARE) + ms * NEWEST_SHARE : ms;
    this.#pace[source === "server" ? "browser" : "server"] *= FORGETTING; // the slower one gets another try some day
    return ms;
  }

  #giveUp(error) {
    this.reason = error.message;
    this.#hasFailed = true;
    if (!this.#isForcedHere) this.#decoder = null;
  }

  async #here(image, prompt) {
    const begin = performance.now();
    const found = await this.#decoder.predict(image, { ...prompt, previous: tokenOf(prompt.previous, "browser") });
    const masks = found.masks.map((candidate) => new Candidate(candidate));
    const ms = this.#timed("browser", begin);
    return { source: "browser", where: `browser (${this.#decoder.provider})`, ms, token: found.answer, masks };
  }

  async #there(image, prompt, signal) {
    const wasEncoded = image.encoded; // else it is not the pace of prompts
    const begin = performance.now();
    const body = { ...prompt, previous: tokenOf(prompt.previous, "server") };
    let found;
    try {
      found = await api.predict(image.id, body, signal);
    } catch (error) {
      if (!(error instanceof ApiError && error.status < 500 && body.previous)) throw error;
      found = await api.predict(image.id, { ...body, previous: null }, signal); // it may have forgotten the answer
    }
    image.encoded = true;
    const masks = found.masks.map((candidate) => new Candidate(candidate));
    const ms = wasEncoded ? this.#timed("server", begin) : performance.now() - begin;
    return { source: "server", where: "server", ms, token: found.answer, masks };
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
