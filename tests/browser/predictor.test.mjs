import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { Predictor } from "../../hqsam/serve/page/predictor.js";

let workers;

/** Answers nothing; remembers what it was told. */
class FakeWorker {
  told = [];
  isEnded = false;

  constructor() {
    workers.push(this);
  }

  postMessage(message) {
    this.told.push(message);
  }

  terminate() {
    this.isEnded = true;
  }
}

const state = (fingerprint) => ({
  model: { fingerprint, image_size: 128, default_fusion: "sum" },
  browser_decoder: { available: true, decoder: "/decoder.onnx", runtime: "/runtime/", reason: null },
});

beforeEach(() => {
  workers = [];
  globalThis.Worker = FakeWorker;
  globalThis.location = { href: "http://127.0.0.1:8000/" };
});

test("the decoder of another model takes the place of the old one", () => {
  const predictor = new Predictor(state("old"), null);
  predictor.renew(state("new"));
  assert.deepEqual(workers.map(({ isEnded }) => isEnded), [true, false]);
  assert.deepEqual(workers.map(({ told }) => told[0].fingerprint), ["old", "new"]);
});

test("the same model keeps its decoder", () => {
  const predictor = new Predictor(state("old"), null);
  predictor.renew(state("old"));
  assert.equal(workers.length, 1);
  assert.equal(workers[0].isEnded, false);
});

test("what the old decoder was asked fails, and the new one stays", async () => {
  const predictor = new Predictor(state("old"), null);
  predictor.renew(state("new"));
  await new Promise(setImmediate); // the old one's failure is heard by now
  assert.equal(predictor.reason, "");
  predictor.renew(state("new"));
  assert.equal(workers.length, 2);
});
