import assert from "node:assert/strict";
import { test } from "node:test";
import { polygons, rings, signedArea, smooth, type Ring } from "../src/outline";
import { drawing, random } from "./helpers";
import type { Bitmap } from "../src/rle";

/** Fills rings by the even-odd rule, at pixel centres. */
function fill(found: Ring[], width: number, height: number): Uint8Array {
  const data = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      let crossings = 0;
      for (const ring of found) {
        for (let i = 0; i < ring.length; i += 2) {
          const j = (i + 2) % ring.length;
          const [x0, y0, y1] = [ring[i]!, ring[i + 1]!, ring[j + 1]!];
          if (x0 === ring[j] && x0 > x + 0.5 && Math.min(y0, y1) < y + 0.5 && y + 0.5 < Math.max(y0, y1)) crossings++;
        }
      }
      data[y * width + x] = crossings % 2;
    }
  }
  return data;
}

function total(mask: Bitmap): number {
  return mask.data.reduce((sum, value) => sum + value, 0);
}

test("one pixel has a ring around it, clockwise", () => {
  assert.deepEqual(rings(drawing("... .#. ...")), [[2, 1, 2, 2, 1, 2, 1, 1]]);
});

test("a hole's ring runs the other way", () => {
  const found = rings(drawing("### #.# ###"));
  assert.equal(found.length, 2);
  assert.deepEqual(found.map(signedArea), [18, -2]);
});

test("pixels that touch at a corner are apart", () => {
  assert.equal(rings(drawing("#. .#")).length, 2);
});

test("rings filled again give the mask, with and without holes cut open", () => {
  for (let seed = 0; seed < 120; seed++) {
    const mask = random(3 + (seed % 13), 3 + ((seed * 7) % 11), 0.3 + (seed % 6) / 10, seed);
    const found = rings(mask);
    assert.deepEqual(fill(found, mask.width, mask.height), mask.data);
    assert.equal(found.reduce((sum, ring) => sum + signedArea(ring), 0) / 2, total(mask));
    const closed = polygons(found);
    assert.deepEqual(fill(closed, mask.width, mask.height), mask.data);
    assert.ok(closed.every((ring) => signedArea(ring) > 0));
  }
});

test("islands in holes stay polygons of their own", () => {
  const mask = drawing("####### #.....# #.###.# #.#.#.# #.###.# #.....# #######");
  const closed = polygons(rings(mask));
  assert.equal(closed.length, 2);
  assert.deepEqual(fill(closed, 7, 7), mask.data);
});

test("smoothing stays within reach and keeps straight edges", () => {
  const square = drawing(Array(12).fill("#".repeat(12)).join(" "));
  const points = smooth(rings(square)[0]!);
  assert.equal(points.length, 2 * 48);
  const middle = [...points].filter((_, i) => i % 2 === 0).filter((x) => x === 0 || x === 12);
  assert.ok(middle.length >= 16);
  assert.ok([...points].every((value) => value >= 0 && value <= 12));
  assert.deepEqual([...smooth(rings(drawing("#"))[0]!)], [1, 0.5, 0.5, 1, 0, 0.5, 0.5, 0]);
});
