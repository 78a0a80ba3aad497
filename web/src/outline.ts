// Outlines of masks: closed rings along the edges between pixels, in pixel edges (a mask of one pixel at the origin
// has the ring 0,0 1,0 1,1 0,1). Outer rings run clockwise on the screen, rings of holes the other way.

import type { Bitmap } from "./rle";

/** x0, y0, x1, y1, ... of one closed ring. */
export type Ring = number[];

const DX = [1, 0, -1, 0];
const DY = [0, 1, 0, -1];

/**
 * Walks every boundary with the mask on its right hand. Where two pixels touch only at a corner, the walk turns right
 * and keeps them apart, so that no ring crosses or touches itself along an edge.
 */
export function rings(bitmap: Bitmap): Ring[] {
  const { width, height, data } = bitmap;
  const at = (x: number, y: number): number =>
    x < 0 || y < 0 || x >= width || y >= height ? 0 : data[y * width + x]!;
  // Every ring has an edge that runs east along the top of a pixel: those are the starts.
  const seen = new Uint8Array(width * height);
  const found: Ring[] = [];
  for (let startY = 0; startY < height; startY++) {
    for (let startX = 0; startX < width; startX++) {
      if (!data[startY * width + startX] || at(startX, startY - 1) || seen[startY * width + startX]) continue;
      const ring: Ring = [];
      let [x, y, heading] = [startX, startY, 0];
      do {
        if (heading === 0) seen[y * width + x] = 1;
        x += DX[heading]!;
        y += DY[heading]!;
        // The two pixels ahead of this corner, on the right and on the left of the heading.
        const right = at(x + AHEAD_RIGHT[heading]![0], y + AHEAD_RIGHT[heading]![1]);
        const left = at(x + AHEAD_LEFT[heading]![0], y + AHEAD_LEFT[heading]![1]);
        const next = !right ? (heading + 1) % 4 : left ? (heading + 3) % 4 : heading;
        if (next !== heading) ring.push(x, y);
        heading = next;
      } while (x !== startX || y !== startY || heading !== 0);
      found.push(ring);
    }
  }
  return found;
}

const AHEAD_RIGHT = [[0, 0], [-1, 0], [-1, -1], [0, -1]] as const;
const AHEAD_LEFT = [[0, -1], [0, 0], [-1, 0], [-1, -1]] as const;

/** Twice the signed area: positive for outer rings, negative for holes. */
export function signedArea(ring: Ring): number {
  let sum = 0;
  for (let i = 0; i < ring.length; i += 2) {
    const j = (i + 2) % ring.length;
    sum += ring[i]! * ring[j + 1]! - ring[j]! * ring[i + 1]!;
  }
  return sum;
}

/**
 * Rings as polygons without holes, the form that COCO annotations have: each hole is joined to the ring around it by a
 * cut of no width, straight up from its topmost edge.
 */
export function polygons(found: Ring[]): Ring[] {
  const outer = found.filter((ring) => signedArea(ring) > 0).map((ring) => [...ring]);
  const holes = found.filter((ring) => signedArea(ring) < 0);
  for (const { hole, start } of holes.map((hole) => ({ hole, start: topLeft(hole) })).sort(byHeight)) {
    cutOpen(outer, hole, start);
  }
  return outer;
}

/** Index of the leftmost of a ring's topmost corners. */
function topLeft(ring: Ring): number {
  let best = 0;
  for (let i = 2; i < ring.length; i += 2) {
    const higher = ring[i + 1]! < ring[best + 1]!;
    if (higher || (ring[i + 1] === ring[best + 1] && ring[i]! < ring[best]!)) best = i;
  }
  return best;
}

function byHeight(a: { hole: Ring; start: number }, b: { hole: Ring; start: number }): number {
  return a.hole[a.start + 1]! - b.hole[b.start + 1]!;
}

/** Joins a hole to the nearest edge above the pixel column that begins at its topmost left corner. */
function cutOpen(outer: Ring[], hole: Ring, start: number): void {
  const [x, y] = [hole[start]!, hole[start + 1]!];
  let best: { ring: Ring; edge: number; y: number } | null = null;
  for (const ring of outer) {
    for (let i = 0; i < ring.length; i += 2) {
      const j = (i + 2) % ring.length;
      const level = ring[i + 1]!;
      const spans = Math.min(ring[i]!, ring[j]!) <= x && x + 1 <= Math.max(ring[i]!, ring[j]!);
      if (level === ring[j + 1] && spans && level < y && (!best || level > best.y)) best = { ring, edge: i, y: level };
    }
  }
  if (!best) throw new Error("a hole without a ring around it");
  const around = [...hole.slice(start), ...hole.slice(0, start), x, y];
  best.ring.splice(best.edge + 2, 0, x, best.y, ...around, x, best.y);
}

/**
 * The ring as it is drawn: through the middles of its unit edges, averaged along the ring. Staircases of pixels become
 * the slopes they stand for; only pictures use this, exports are exact.
 */
export function smooth(ring: Ring, reach = 2): Float32Array {
  const middles: number[] = [];
  for (let i = 0; i < ring.length; i += 2) {
    const [x0, y0] = [ring[i]!, ring[i + 1]!];
    const [x1, y1] = [ring[(i + 2) % ring.length]!, ring[(i + 3) % ring.length]!];
    const [sx, sy] = [Math.sign(x1 - x0), Math.sign(y1 - y0)];
    for (let k = 0; k < Math.abs(x1 - x0) + Math.abs(y1 - y0); k++) {
      middles.push(x0 + sx * (k + 0.5), y0 + sy * (k + 0.5));
    }
  }
  const n = middles.length / 2;
  const width = n > 8 * reach ? reach : 0;
  const out = new Float32Array(middles.length);
  for (let i = 0; i < n; i++) {
    let [x, y] = [0, 0];
    for (let k = -width; k <= width; k++) {
      const j = (i + k + n) % n;
      x += middles[2 * j]!;
      y += middles[2 * j + 1]!;
    }
    out[2 * i] = x / (2 * width + 1);
    out[2 * i + 1] = y / (2 * width + 1);
  }
  return out;
}
