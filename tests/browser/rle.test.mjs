import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import {
  bitsOfMask, decodeRle, emptyMask, encodeRle, maskArea, maskHas, maskOfBits, readRuns, writeRuns,
} from "../../hqsam/serve/page/rle.js";

/** Made by pycocotools: [{name, size, counts, bits}], bits row by row. */
const cases = JSON.parse(readFileSync(`${process.env.HQSAM_FIXTURES}/rle.json`));

for (const { name, size, counts, bits } of cases) {
  const [height, width] = size;
  const full = Uint8Array.from(bits, Number);

  test(`${name}: text to mask and back`, () => {
    const mask = decodeRle({ size, counts });
    assert.deepEqual([...bitsOfMask(mask)], [...full]);
    assert.equal(maskArea(mask), full.reduce((sum, bit) => sum + bit, 0));
    assert.deepEqual(encodeRle(mask), { size, counts });
    assert.equal(writeRuns(readRuns(counts)), counts);
  });

  test(`${name}: the window is the smallest one, and any window gives the same text`, () => {
    const mask = maskOfBits(full, width, height);
    const decoded = decodeRle({ size, counts });
    assert.deepEqual({ ...mask, bits: [...mask.bits] }, { ...decoded, bits: [...decoded.bits] });
    const whole = { width, height, x: 0, y: 0, w: width, h: height, bits: full };
    assert.equal(encodeRle(whole).counts, counts);
  });
}

test("pixels are looked up in the picture's frame", () => {
  const mask = { width: 9, height: 7, x: 4, y: 2, w: 2, h: 2, bits: Uint8Array.of(1, 0, 0, 1) };
  const inside = [];
  for (let y = 0; y < 7; y++) for (let x = 0; x < 9; x++) if (maskHas(mask, x, y)) inside.push([x, y]);
  assert.deepEqual(inside, [[4, 2], [5, 3]]);
});

test("an empty mask has no pixel", () => {
  assert.equal(maskArea(emptyMask(5, 4)), 0);
  assert.deepEqual(encodeRle(emptyMask(5, 4)), { size: [4, 5], counts: writeRuns([20]) });
});

test("damaged texts are refused", () => {
  for (const counts of ["", "!!", "5o", "ooooooooo0", "é"]) {
    assert.throws(() => decodeRle({ size: [4, 5], counts }), /run length/);
  }
});
