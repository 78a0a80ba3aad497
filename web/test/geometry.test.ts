import assert from "node:assert/strict";
import { test } from "node:test";
import { fit, MAX_SCALE, settle, toClick, toPhoto, toScreen, zoomAt } from "../src/geometry";

const photo = { width: 600, height: 400 };
const screen = { width: 320, height: 500 };

test("a fitted photo touches the nearer sides and is centred", () => {
  assert.deepEqual(fit(photo, screen, 10), { scale: 0.5, x: 10, y: 150 });
});

test("screen and photo coordinates invert each other", () => {
  const view = { scale: 1.7, x: -33, y: 12.5 };
  const [x, y] = toScreen(view, ...toPhoto(view, 101, 57));
  assert.ok(Math.abs(x - 101) < 1e-9 && Math.abs(y - 57) < 1e-9);
});

test("zooming leaves the point under the cursor where it is, within the limits", () => {
  const view = fit(photo, screen, 10);
  const before = toPhoto(view, 77, 200);
  const closer = zoomAt(view, 3, 77, 200, view.scale);
  const after = toPhoto(closer, 77, 200);
  assert.ok(Math.abs(before[0] - after[0]) < 1e-9 && Math.abs(before[1] - after[1]) < 1e-9);
  assert.equal(zoomAt(view, 1e9, 0, 0, view.scale).scale, MAX_SCALE);
  assert.equal(zoomAt(view, 0, 0, 0, view.scale).scale, view.scale);
  assert.equal(zoomAt({ scale: 50, x: 0, y: 0 }, 2, 0, 0, 50).scale, 50);
});

test("a photo larger than the screen shows no gap, a smaller one is centred", () => {
  assert.deepEqual(settle({ scale: 2, x: 100, y: 100 }, photo, screen), { scale: 2, x: 0, y: 0 });
  assert.deepEqual(settle({ scale: 2, x: -5000, y: -5000 }, photo, screen), { scale: 2, x: -880, y: -300 });
  assert.deepEqual(settle({ scale: 0.5, x: 90, y: -90 }, photo, screen), { scale: 0.5, x: 10, y: 150 });
});

test("clicks are pixel centres inside the photo", () => {
  assert.deepEqual(toClick([0.5, 0.5], photo), [0, 0]);
  assert.deepEqual(toClick([300.27, 12], photo), [299.8, 11.5]);
  assert.deepEqual(toClick([-3, 400], photo), [0, 399]);
});
