import assert from "node:assert/strict";
import { test } from "node:test";
import { columns, depths } from "../src/graph_view";
import { count, duration, percent } from "../src/format";
import { History } from "../src/history";

test("undo and redo walk the steps", () => {
  const history = new History("a");
  history.push("b");
  history.push("c");
  assert.equal(history.undo() && history.present, "b");
  assert.equal(history.undo() && history.present, "a");
  assert.equal(history.undo(), false);
  assert.equal(history.redo() && history.present, "b");
  history.push("d");
  assert.equal(history.canRedo, false);
  assert.equal(history.undo() && history.present, "b");
});

test("amending is no step, and old steps fall off", () => {
  const history = new History(0, 3);
  for (let i = 1; i <= 5; i++) history.push(i);
  history.amend(50);
  assert.equal(history.present, 50);
  for (let i = 0; i < 9; i++) history.undo();
  assert.equal(history.present, 2);
});

test("numbers read short", () => {
  assert.equal(count(29_706_675_008), "29.7 G");
  assert.equal(count(836_465_472), "836 M");
  assert.equal(count(12), "12");
  assert.equal(percent(0), "0 %");
  assert.equal(percent(0.0345), "3.5 %");
  assert.equal(percent(0.00002), "< 0.1 %");
  assert.equal(percent(0.482), "48 %");
  assert.equal(duration(6.62), "6.6 ms");
  assert.equal(duration(485.1), "485 ms");
  assert.equal(duration(12_340), "12.3 s");
});

test("depth counts within a stage", () => {
  const node = (stage: string, ...inputs: number[]): { stage: string; inputs: number[] } => ({ stage, inputs });
  const nodes = [node("a"), node("a", 0), node("a", 1, 0), node("b", 2), node("b", 3, 1)];
  assert.deepEqual(depths(nodes), [0, 1, 2, 0, 1]);
});

test("nodes of one depth share columns, as many as they need", () => {
  const places = columns([0, 1, 1, 1, 2], 2);
  assert.deepEqual(places.map(({ column }) => column), [0, 1, 1, 2, 3]);
  assert.deepEqual(places.map(({ lane }) => lane), [0, 0, 1, 0, 0]);
});
