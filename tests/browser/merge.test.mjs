import assert from "node:assert/strict";
import { test } from "node:test";
import { mergeObjects, sameObjects } from "../../hqsam/serve/page/merge.js";

const object = (id, label = "") => ({
  id, label, rle: { size: [1, 1], counts: "1" }, status: "accepted", source: "box", score: 0.5, prompts: null, seconds: 1,
});
const merge = (base, mine, theirs) => mergeObjects(base, mine, theirs, () => "new").map(({ id, label }) => id + label);

test("additions of both sides stay", () => {
  assert.deepEqual(merge([object("a")], [object("a"), object("b")], [object("a"), object("c")]), ["a", "c", "b"]);
});

test("a change of one side is taken", () => {
  assert.deepEqual(merge([object("a")], [object("a", "1")], [object("a")]), ["a1"]);
  assert.deepEqual(merge([object("a")], [object("a")], [object("a", "2")]), ["a2"]);
});

test("the same change on both sides is one", () => {
  assert.deepEqual(merge([object("a")], [object("a", "1")], [object("a", "1")]), ["a1"]);
});

test("different changes of one object stay both, ours under a new id", () => {
  assert.deepEqual(merge([object("a")], [object("a", "1")], [object("a", "2")]), ["a2", "new1"]);
});

test("deletions of one side are taken where the other side left the object as it was", () => {
  assert.deepEqual(merge([object("a"), object("b")], [object("b")], [object("a"), object("b")]), ["b"]);
  assert.deepEqual(merge([object("a"), object("b")], [object("a"), object("b")], [object("b")]), ["b"]);
});

test("what one side deleted and the other changed stays", () => {
  assert.deepEqual(merge([object("a")], [], [object("a", "2")]), ["a2"]);
  assert.deepEqual(merge([object("a")], [object("a", "1")], []), ["a1"]);
});

test("what the server adds to objects makes no difference", () => {
  assert.ok(sameObjects([object("a")], [{ ...object("a"), bbox: [0, 0, 1, 1], area: 1 }]));
  assert.ok(!sameObjects([object("a")], [object("a", "1")]));
  assert.ok(!sameObjects([object("a")], []));
});
