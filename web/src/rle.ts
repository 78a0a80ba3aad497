// Masks as COCO's uncompressed RLE (column-major runs, zeros first) and as row-major bytes.

import type { Rle } from "./types";

export interface Bitmap {
  readonly width: number;
  readonly height: number;
  /** Row-major, 0 or 1. */
  readonly data: Uint8Array;
}

export function decode(rle: Rle): Bitmap {
  const [height, width] = rle.size;
  const data = new Uint8Array(width * height);
  let at = 0;
  let value = 0;
  for (const run of rle.counts) {
    if (value) {
      let y = at % height;
      let x = (at - y) / height;
      for (let i = 0; i < run; i++) {
        data[y * width + x] = 1;
        if (++y === height) {
          y = 0;
          x++;
        }
      }
    }
    at += run;
    value = 1 - value;
  }
  if (at !== data.length) throw new Error(`the runs cover ${at} of ${data.length} pixels`);
  return { width, height, data };
}

export function encode(bitmap: Bitmap): Rle {
  const { width, height, data } = bitmap;
  const counts: number[] = [];
  let value = 0;
  let run = 0;
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      if (data[y * width + x] === value) run++;
      else {
        counts.push(run);
        value = 1 - value;
        run = 1;
      }
    }
  }
  counts.push(run);
  return { size: [height, width], counts };
}

export function area(rle: Rle): number {
  return rle.counts.reduce((sum, run, i) => sum + (i % 2 ? run : 0), 0);
}

/** Pixels inside the mask at x, y; false outside the photo. */
export function inside(bitmap: Bitmap, x: number, y: number): boolean {
  const column = Math.round(x);
  const row = Math.round(y);
  if (column < 0 || row < 0 || column >= bitmap.width || row >= bitmap.height) return false;
  return bitmap.data[row * bitmap.width + column] === 1;
}

/** Intersection over union of two masks of one photo, run by run. Two empty masks agree. */
export function iou(a: Rle, b: Rle): number {
  let together = 0;
  let i = 0;
  let j = 0;
  let left = a.counts[0] ?? 0;
  let right = b.counts[0] ?? 0;
  while (i < a.counts.length && j < b.counts.length) {
    const step = Math.min(left, right);
    if (i % 2 && j % 2) together += step;
    left -= step;
    right -= step;
    if (left === 0) left = a.counts[++i] ?? 0;
    if (right === 0) right = b.counts[++j] ?? 0;
  }
  const either = area(a) + area(b) - together;
  return either ? together / either : 1;
}

export function union(bitmaps: readonly Bitmap[]): Bitmap {
  const first = bitmaps[0];
  if (!first) throw new Error("the union of no masks has no size");
  const data = new Uint8Array(first.data);
  for (const other of bitmaps.slice(1)) for (let i = 0; i < data.length; i++) data[i]! |= other.data[i]!;
  return { width: first.width, height: first.height, data };
}

/** Edges (x0, y0, x1, y1) of the smallest box around the mask, or null where it is empty. */
export function bounds(bitmap: Bitmap): [number, number, number, number] | null {
  const { width, height, data } = bitmap;
  let [x0, y0, x1, y1] = [width, height, 0, 0];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!data[y * width + x]) continue;
      if (x < x0) x0 = x;
      if (x >= x1) x1 = x + 1;
      if (y < y0) y0 = y;
      y1 = y + 1;
    }
  }
  return x1 > x0 ? [x0, y0, x1, y1] : null;
}
