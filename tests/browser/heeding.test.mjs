import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { heedClicks } from "../../hqsam/serve/page/heeding.js";

/** Made by hqsam.heeding: [{name, grid, logits, sam, before, clicks, heeded, changed}]. */
const cases = JSON.parse(readFileSync(`${process.env.HQSAM_FIXTURES}/heeding.json`));

for (const { name, grid, logits, sam, before, clicks, heeded } of cases) {
  const fed = before ? Float32Array.from(before) : undefined;
  test(`${name}: the same logits as the predictor's`, () => {
    const found = heedClicks(Float32Array.from(logits), Float32Array.from(sam), grid, clicks, fed);
    assert.deepEqual(found, Float32Array.from(heeded));
  });

  test(`${name}: logits of the padding take no part`, () => {
    const isShown = (at) => at % grid.stride < grid.width && Math.floor(at / grid.stride) < grid.height;
    const [mine, its] = [logits, sam].map((values, mask) =>
      Float32Array.from(values, (value, at) => (isShown(at) ? value : mask ? -5 : 5)),
    );
    const found = heedClicks(mine, its, grid, clicks, fed);
    found.forEach((value, at) => assert.equal(value, isShown(at) ? Math.fround(heeded[at]) : 5));
  });
}

test("some of the cases have something to do", () => {
  assert.ok(cases.filter(({ changed }) => changed).length >= 16);
});

test("the arguments are left alone, and come back where there is nothing to do", () => {
  const grid = { stride: 4, width: 4, height: 4 };
  const [all, none] = [new Float32Array(16).fill(5), new Float32Array(16).fill(-5)];
  assert.equal(heedClicks(all, none, grid, [[2, 2, 1]]), all); // heeded already
  assert.equal(heedClicks(all, all, grid, [[2, 2, 0]]), all); // SAM does not heed it either
  assert.equal(heedClicks(all, none, grid, [[2, 2, -1]]), all); // no click
  assert.equal(heedClicks(all, none, grid, []), all);
  assert.deepEqual(heedClicks(all, none, grid, [[2, 2, 0]]), none);
  assert.ok(all.every((value) => value === 5));
});
