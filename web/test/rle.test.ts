import assert from "node:assert/strict";
import { test } from "node:test";
import { area, bounds, decode, encode, inside, iou, union } from "../src/rle";
import { drawing, random } from "./helpers";

test("runs go down the columns and begin with zeros", () => {
  const mask = drawing("..# .## .#.");
  assert.deepEqual(encode(mask), { size: [3, 3], counts: [4, 4, 1] });
  assert.deepEqual(encode(drawing("## ##")), { size: [2, 2], counts: [0, 4] });
  assert.deepEqual(encode(drawing("... ...")), { size: [2, 3], counts: [6] });
});

test("decoding what was encoded gives the mask back", () => {
  for (let seed = 0; seed < 40; seed++) {
    const mask = random(1 + (seed % 7), 1 + ((seed * 5) % 11), seed / 39, seed);
    const again = decode(encode(mask));
    assert.deepEqual(again, mask);
    assert.equal(area(encode(mask)), mask.data.reduce((sum, value) => sum + value, 0));
  }
});

test("runs that do not cover the photo are an error", () => {
  assert.throws(() => decode({ size: [2, 2], counts: [3] }), /3 of 4/);
});

test("overlap agrees with counting pixels", () => {
  for (let seed = 0; seed < 40; seed++) {
    const a = random(9, 7, 0.4, seed);
    const b = random(9, 7, 0.6, seed + 100);
    const both = a.data.filter((value, i) => value && b.data[i]).length;
    const either = union([a, b]).data.filter(Boolean).length;
    assert.ok(Math.abs(iou(encode(a), encode(b)) - both / either) < 1e-12);
  }
  assert.equal(iou(encode(drawing("..")), encode(drawing(".."))), 1);
});

test("bounds are edges; a point is inside its pixel", () => {
  const mask = drawing(".... ..#. .##.");
  assert.deepEqual(bounds(mask), [1, 1, 3, 3]);
  assert.equal(bounds(drawing("...")), null);
  assert.equal(inside(mask, 2, 1), true);
  assert.equal(inside(mask, 2.4, 0.6), true);
  assert.equal(inside(mask, 1, 1), false);
  assert.equal(inside(mask, -1, 1), false);
});
