import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";
import { Annotator } from "../../hqsam/serve/page/annotator.js";
import { AnnotationDocument } from "../../hqsam/serve/page/document.js";
import { encodeRle } from "../../hqsam/serve/page/rle.js";
import { Latest } from "../../hqsam/serve/page/predictor.js";

const [WIDTH, HEIGHT] = [8, 6];
const square = (x, y, side = 1) => ({
  width: WIDTH, height: HEIGHT, x, y, w: side, h: side, bits: new Uint8Array(side * side).fill(1),
});

/** Answers with the pixel of the last point; remembers what it was asked. */
class FakePredictor {
  asked = [];

  async predict(image, prompt) {
    this.asked.push(prompt);
    const [x, y] = prompt.points.at(-1) ?? prompt.box;
    const masks = (prompt.multimask ? [0.2, 0.9, 0.5] : [0.7]).map((score, at) => {
      const mask = square(x, y, prompt.multimask ? at + 1 : 1);
      return { score, mask, rle: encodeRle(mask) };
    });
    return { source: "server", where: "test", ms: 1, token: `t${this.asked.length}`, masks };
  }
}

let predictor;
let annotator;
let document;

beforeEach(() => {
  globalThis.fetch = async () => ({ ok: true, json: async () => ({ revision: 1 }) });
  predictor = new FakePredictor();
  annotator = new Annotator(predictor, "sum");
  document = new AnnotationDocument({ id: "i", width: WIDTH, height: HEIGHT });
  annotator.open(document);
});

const objects = () => document.now.objects;

test("one click is ambiguous: the best of three; more clicks refine it from what was answered", async () => {
  annotator.click(1, 1, 1);
  annotator.click(2, 2, 1);
  await annotator.click(3, 3, 0);
  assert.equal(objects().length, 1);
  assert.deepEqual(predictor.asked.map(({ multimask }) => multimask), [true, false, false]);
  assert.deepEqual(predictor.asked.map(({ points }) => points.length), [1, 2, 3]);
  assert.equal(predictor.asked[1].previous.candidate, 1);
  assert.equal(predictor.asked[2].previous.answer.token, "t2");
  assert.deepEqual(objects()[0].prompts, { points: [[1, 1, 1], [2, 2, 1], [3, 3, 0]], box: null });
  assert.equal(document.now.state, "started");
});

test("undo goes back click by click, prompts included", async () => {
  annotator.click(1, 1, 1);
  await annotator.click(2, 2, 1);
  document.undo();
  assert.equal(document.now.draft.points.length, 1);
  await annotator.click(4, 4, 1);
  assert.deepEqual(predictor.asked[2].points, [[1, 1, 1], [4, 4, 1]]);
  document.undo();
  document.undo();
  assert.deepEqual([objects().length, document.now.draft], [0, null]);
});

test("boxes, and clicks behind `finish`, begin objects", async () => {
  annotator.box([0, 0, 3, 3]);
  await annotator.box([4, 0, 6, 3]);
  annotator.finish();
  await annotator.click(1, 1, 1);
  assert.deepEqual(objects().map(({ source }) => source), ["box", "box", "clicks"]);
  assert.deepEqual(predictor.asked.map(({ multimask }) => multimask), [false, false, true]);
});

test("a candidate is asked for where the answer had one mask, with the same prompts", async () => {
  annotator.click(1, 1, 1);
  await annotator.click(2, 2, 1);
  await annotator.choose(2);
  assert.deepEqual([predictor.asked[2].multimask, predictor.asked[2].previous.answer.token], [true, "t1"]);
  assert.equal(document.now.draft.chosen, 2);
  await annotator.choose(null);
  assert.equal(predictor.asked[3].multimask, false);
});

test("another fusion answers the same prompts again", async () => {
  await annotator.click(1, 1, 1);
  await annotator.setFusion("sam");
  assert.deepEqual([objects().length, predictor.asked[1].fusion, predictor.asked[1].previous], [1, "sam", null]);
});

test("a point outside needs something to take away from", async () => {
  await annotator.click(1, 1, 0);
  assert.deepEqual([objects().length, predictor.asked.length], [0, 0]);
});

test("an object that is finished before its mask has come gets no later clicks", async () => {
  annotator.click(1, 1, 1);
  annotator.finish();
  await annotator.click(4, 4, 1);
  assert.deepEqual(objects().map(({ prompts }) => prompts.points), [[[1, 1, 1]], [[4, 4, 1]]]);
});

test("an object that is selected while a mask is awaited stays selected", async () => {
  annotator.stroked("o", square(5, 5));
  const clicked = annotator.click(1, 1, 1);
  annotator.select("o");
  await clicked;
  await new Promise(setImmediate);
  assert.deepEqual([document.now.selected, document.now.draft], ["o", null]);
});

test("an object that is deleted, or undone, while its next mask is awaited stays away", async () => {
  await annotator.click(1, 1, 1);
  let clicked = annotator.click(2, 2, 1);
  annotator.remove(objects()[0].id);
  await clicked;
  assert.equal(objects().length, 0);
  await annotator.click(1, 1, 1);
  clicked = annotator.click(2, 2, 1);
  document.undo();
  await clicked;
  assert.equal(objects().length, 0);
});

test("what history holds of an answer is not its masks", async () => {
  await annotator.click(1, 1, 1);
  assert.deepEqual(Object.keys(document.now.draft.answer).sort(), ["count", "source", "token"]);
});

test("a prompt whose mask is empty changes nothing", async () => {
  const said = [];
  annotator.addEventListener("message", ({ detail }) => said.push(detail));
  predictor.predict = async () => {
    const mask = { ...square(0, 0), w: 0, h: 0, bits: new Uint8Array(0) };
    return { source: "server", where: "", ms: 1, token: "t", masks: [{ score: 0.1, mask, rle: encodeRle(mask) }] };
  };
  await annotator.click(1, 1, 1);
  assert.deepEqual([objects().length, document.canUndo, annotator.pending.length, said.length], [0, false, 0, 1]);
});

test("an error of the model is said, and the next prompt is answered", async () => {
  const said = [];
  annotator.addEventListener("message", ({ detail }) => said.push(detail));
  const { predict } = FakePredictor.prototype;
  predictor.predict = async () => {
    predictor.predict = predict;
    throw new Error("no");
  };
  await annotator.click(1, 1, 1);
  await annotator.click(2, 2, 1);
  assert.deepEqual([said, objects()[0].prompts.points], [["no"], [[2, 2, 1]]]);
});

test("editing an object without prompts begins from its box", async () => {
  annotator.stroked("o", square(2, 1, 3));
  annotator.edit();
  await annotator.click(5, 5, 0);
  assert.deepEqual(predictor.asked[0].box, [2, 1, 4, 3]);
  assert.deepEqual(objects().map(({ id, source }) => [id, source]), [["o", "clicks"]]);
});

test("a brush makes and changes objects, an eraser removes what it leaves nothing of", () => {
  annotator.stroked("o", square(2, 1, 3));
  annotator.stroked("o", square(2, 1, 2));
  assert.deepEqual(objects().map(({ id, source, prompts }) => [id, source, prompts]), [["o", "brush", null]]);
  annotator.stroked("o", { ...square(0, 0), w: 0, h: 0, bits: new Uint8Array(0) });
  assert.equal(objects().length, 0);
  assert.equal(annotator.strokeTarget(true), null);
});

test("proposals are accepted one by one, deleted, or accepted together", () => {
  const proposed = ["p", "q", "r", "s"].map((id, at) => ({
    id, label: "", rle: encodeRle(square(at, 0)), status: "proposed", source: "proposal", score: 0.9, prompts: null, seconds: null,
  }));
  document.apply({ objects: proposed });
  annotator.select("p");
  annotator.accept("p");
  assert.equal(document.now.selected, "q");
  annotator.remove("q");
  assert.equal(document.now.selected, "r");
  annotator.acceptAll();
  assert.deepEqual(objects().map(({ id, status }) => id + status), ["paccepted", "raccepted", "saccepted"]);
});

test("a stroke on a proposal makes it an object", () => {
  const rle = encodeRle(square(0, 0));
  document.apply({ objects: [{ id: "p", label: "", rle, status: "proposed", source: "proposal", score: 1, prompts: null, seconds: null }] });
  annotator.stroked("p", square(0, 0, 2));
  assert.deepEqual(objects().map(({ id, status, source }) => [id, status, source]), [["p", "accepted", "brush"]]);
});

test("the label of the last object is that of the next one", () => {
  annotator.stroked("o", square(0, 0));
  annotator.setLabel("o", "  cat\n ");
  annotator.finish();
  annotator.stroked("n", square(3, 3));
  assert.deepEqual(objects().map(({ label }) => label), ["cat", "cat"]);
});

test("a long label ends with a whole letter", () => {
  annotator.stroked("o", square(0, 0));
  annotator.setLabel("o", "x".repeat(199) + "🐈🐈");
  assert.equal(objects()[0].label, "x".repeat(199) + "🐈");
});

test("of objects at a pixel the smallest is selected", () => {
  annotator.stroked("large", square(0, 0, 5));
  annotator.stroked("small", square(1, 1, 2));
  assert.equal(annotator.at(2, 2, () => false).id, "small");
  assert.equal(annotator.at(2, 2, ({ id }) => id === "small").id, "large");
  assert.equal(annotator.at(7, 5, () => false), null);
});

test("of hovers in flight the latest wins", async () => {
  const calls = [];
  const latest = new Latest((value) => new Promise((resolve) => calls.push([value, resolve])));
  const answers = [1, 2, 3].map((value) => latest.request(value));
  assert.deepEqual(calls.map(([value]) => value), [1]);
  calls[0][1]("one");
  assert.deepEqual(await Promise.all(answers.slice(0, 2)), ["one", null]);
  await new Promise(setImmediate);
  assert.deepEqual(calls.map(([value]) => value), [1, 3]);
  latest.drop();
  calls[1][1]("three");
  assert.equal(await answers[2], null);
});
