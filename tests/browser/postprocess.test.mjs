import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { axisWeights, maskOfLogits, shownLogits, wholeLogits } from "../../hqsam/serve/page/postprocess.js";
import { bitsOfMask, decodeRle, maskArea } from "../../hqsam/serve/page/rle.js";

/** Made by hqsam.postprocess: [{name, low, frame, input, original, logits, rle}]. */
const cases = JSON.parse(readFileSync(`${process.env.HQSAM_FIXTURES}/postprocess.json`));

for (const { name, low, frame, input, original, logits, rle } of cases) {
  test(`${name}: the same mask as the predictor's`, () => {
    const [rows, columns] = [0, 1].map((axis) => axisWeights(original[axis], input[axis], frame, low));
    const mask = maskOfLogits(Float32Array.from(logits), low, columns, rows);
    assert.deepEqual([mask.height, mask.width], original);
    const [mine, theirs] = [bitsOfMask(mask), bitsOfMask(decodeRle(rle))];
    const different = mine.reduce((sum, bit, at) => sum + (bit !== theirs[at]), 0);
    // sums in another order: a logit that is zero to rounding may fall on either side
    assert.ok(different <= 1e-4 * mine.length, `${different} of ${mine.length} pixels differ`);
    assert.equal(maskArea(mask) === 0, rle.empty);
  });
}

for (const { name, low, frame, input, original, logits } of cases) {
  test(`${name}: logits of the padding take no part`, () => {
    const [rows, columns] = [0, 1].map((axis) => axisWeights(original[axis], input[axis], frame, low));
    const shown = input.map((kept) => shownLogits(kept, frame, low));
    const part = new Float32Array(shown[0].made * shown[1].made).fill(5); // wrong where it was cut
    for (let y = 0; y < shown[0].right; y++) {
      for (let x = 0; x < shown[1].right; x++) part[y * shown[1].made + x] = logits[y * low + x];
    }
    const bits = (values, width) => bitsOfMask(maskOfLogits(Float32Array.from(values), width, columns, rows));
    assert.deepEqual(bits(part, shown[1].made), bits(logits, low));
    const whole = wholeLogits(part, ...shown, low, -16);
    assert.equal(whole.length, low * low);
    whole.forEach((logit, at) => {
      const isRight = Math.floor(at / low) < shown[0].right && at % low < shown[1].right;
      assert.equal(logit, isRight ? Math.fround(logits[at]) : -16);
    });
  });
}

test("as many logits are shown as hqsam.models.decoding.Shown says", () => {
  assert.deepEqual(shownLogits(683, 1024, 256), { made: 176, right: 172 });
  assert.deepEqual(shownLogits(1, 1024, 256), { made: 4, right: 2 });
  assert.deepEqual(shownLogits(1000, 1024, 256), { made: 256, right: 256 });
  assert.deepEqual(shownLogits(1024, 1024, 256), { made: 256, right: 256 });
});

test("weights of every pixel add up to one", () => {
  for (const [out, kept] of [[1, 1], [7, 1024], [4000, 1024], [1024, 683], [3, 5]]) {
    const { first, weights } = axisWeights(out, kept, 1024, 256);
    for (let at = 0; at < out; at++) {
      const sum = weights[3 * at] + weights[3 * at + 1] + weights[3 * at + 2];
      assert.ok(Math.abs(sum - 1) < 1e-6);
      assert.ok(first[at] >= 0 && first[at] < 256 && (at === 0 || first[at] >= first[at - 1]));
    }
  }
});
