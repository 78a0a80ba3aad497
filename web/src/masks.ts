// What is drawn of a mask, made once per mask: its bytes, the smoothed path, and small pictures for lists.

import { rings, smooth } from "./outline";
import { bounds, decode, type Bitmap } from "./rle";
import type { Box, Rle } from "./types";

interface Drawn {
  readonly bitmap: Bitmap;
  readonly path: Path2D;
  readonly bounds: Box | null;
}

const drawn = new WeakMap<Rle, Drawn>();

export function drawable(rle: Rle): Drawn {
  let found = drawn.get(rle);
  if (!found) {
    const bitmap = decode(rle);
    found = { bitmap, path: pathOf(bitmap), bounds: bounds(bitmap) };
    drawn.set(rle, found);
  }
  return found;
}

function pathOf(bitmap: Bitmap): Path2D {
  const path = new Path2D();
  for (const ring of rings(bitmap)) {
    const points = smooth(ring);
    path.moveTo(points[0]!, points[1]!);
    for (let i = 2; i < points.length; i += 2) path.lineTo(points[i]!, points[i + 1]!);
    path.closePath();
  }
  return path;
}

/** The object cut out of its photo, as large as fits into the canvas. */
export function thumbnail(canvas: HTMLCanvasElement, photo: ImageBitmap, rle: Rle, size: number): void {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = canvas.height = Math.round(size * ratio);
  const context = canvas.getContext("2d")!;
  const { bounds: box, path } = drawable(rle);
  if (!box) return;
  const [x0, y0, x1, y1] = box;
  const scale = (canvas.width * 0.9) / Math.max(x1 - x0, y1 - y0);
  context.setTransform(
    scale,
    0,
    0,
    scale,
    canvas.width / 2 - ((x0 + x1) / 2) * scale,
    canvas.height / 2 - ((y0 + y1) / 2) * scale,
  );
  context.imageSmoothingQuality = "high";
  context.clip(path, "evenodd");
  context.drawImage(photo, 0, 0);
}

export function surface(width: number, height: number): [HTMLCanvasElement, CanvasRenderingContext2D] {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width));
  canvas.height = Math.max(1, Math.round(height));
  return [canvas, canvas.getContext("2d")!];
}

/** Longest sides of the blurred and of the greyed photo: neither needs more to look as it should. */
const BLURRED_SIDE = 1024;
const GREYED_SIDE = 2048;

/**
 * The photo blurred by halving and doubling, which every browser does fast; `strength` is the number of halvings. A
 * large photo is made smaller first, so that a strength looks the same on every photo.
 */
export function blurred(photo: ImageBitmap, strength: number): HTMLCanvasElement {
  let [width, height] = within(photo, BLURRED_SIDE);
  let source = resized(photo, width, height);
  const sizes: [number, number][] = [];
  for (let i = 0; i < strength && Math.min(width, height) > 4; i++) {
    sizes.push([width, height]);
    [width, height] = [Math.ceil(width / 2), Math.ceil(height / 2)];
    source = resized(source, width, height);
  }
  for (const [w, h] of sizes.reverse()) source = resized(source, w, h);
  return source;
}

function within(photo: ImageBitmap, side: number): [number, number] {
  const scale = Math.min(1, side / Math.max(photo.width, photo.height));
  return [Math.max(1, Math.round(photo.width * scale)), Math.max(1, Math.round(photo.height * scale))];
}

function resized(source: CanvasImageSource, width: number, height: number): HTMLCanvasElement {
  const [canvas, context] = surface(width, height);
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, width, height);
  return canvas;
}

/** The photo without colour and darkened: what a layer did not look at. */
export function greyed(photo: ImageBitmap): HTMLCanvasElement {
  const [width, height] = within(photo, GREYED_SIDE);
  const [canvas, context] = surface(width, height);
  context.drawImage(photo, 0, 0, width, height);
  context.globalCompositeOperation = "saturation";
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  context.globalCompositeOperation = "source-over";
  context.fillStyle = "rgb(16 18 22 / 66%)";
  context.fillRect(0, 0, width, height);
  return canvas;
}
