// Masks drawn with characters, and random ones.

import type { Bitmap } from "../src/rle";

/** "#" is inside; rows are separated by blanks. */
export function drawing(text: string): Bitmap {
  const rows = text.trim().split(/\s+/);
  const width = rows[0]!.length;
  const data = Uint8Array.from(rows.join(""), (character) => (character === "#" ? 1 : 0));
  return { width, height: rows.length, data };
}

/** The same numbers on every run. */
export function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32;
  };
}

export function random(width: number, height: number, share: number, seed: number): Bitmap {
  const draw = generator(seed);
  return { width, height, data: Uint8Array.from({ length: width * height }, () => (draw() < share ? 1 : 0)) };
}
