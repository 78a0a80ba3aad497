// Files of what was segmented: cut-outs, masks and overlays as PNG, COCO annotations as JSON.

import { blurred, drawable, surface } from "./masks";
import { polygons, rings } from "./outline";
import { area, bounds, encode, union, type Bitmap } from "./rle";
import { maskOf, type Doc, type Item } from "./state";

export type PictureKind = "cutout" | "blur" | "overlay" | "mask";
export type JsonKind = "rle" | "polygons";

export interface Product {
  readonly blob: Blob;
  readonly name: string;
}

function stem(doc: Doc): string {
  return doc.photo.name.replace(/\.[A-Za-z0-9]{1,5}$/, "").replace(/[^\p{L}\p{N}_-]+/gu, "_") || "photo";
}

export async function picture(kind: PictureKind, doc: Doc, items: readonly Item[], blur: number): Promise<Product> {
  const { width, height } = doc.photo;
  const [canvas, context] = surface(width, height);
  const together = union(items.map((item) => drawable(maskOf(item).rle).bitmap));
  if (kind === "mask") drawStencil(context, together);
  else if (kind === "overlay") drawOverlay(context, doc, items);
  else {
    drawMasked(context, doc, together);
    if (kind === "blur") {
      context.globalCompositeOperation = "destination-over";
      context.imageSmoothingQuality = "high";
      context.drawImage(blurred(doc.bitmap, blur), 0, 0, width, height);
    }
  }
  return { blob: await png(canvas), name: `${stem(doc)}_${kind}.png` };
}

function png(canvas: HTMLCanvasElement): Promise<Blob> {
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("The picture is too large for this browser."))));
  });
}

/** White inside the mask, black outside. */
function drawStencil(context: CanvasRenderingContext2D, mask: Bitmap): void {
  const pixels = new ImageData(mask.width, mask.height);
  const opaque = new Uint32Array(new Uint8Array([0, 0, 0, 255]).buffer)[0]!;
  const words = new Uint32Array(pixels.data.buffer); // one per pixel
  for (let i = 0; i < words.length; i++) words[i] = mask.data[i] ? 0xffffffff : opaque;
  context.putImageData(pixels, 0, 0);
}

/** The photo's pixels inside the mask, transparent outside. */
function drawMasked(context: CanvasRenderingContext2D, doc: Doc, mask: Bitmap): void {
  context.drawImage(doc.bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, mask.width, mask.height);
  const words = new Uint32Array(pixels.data.buffer); // one per pixel
  for (let i = 0; i < words.length; i++) if (!mask.data[i]) words[i] = 0;
  context.putImageData(pixels, 0, 0);
}

function drawOverlay(context: CanvasRenderingContext2D, doc: Doc, items: readonly Item[]): void {
  context.drawImage(doc.bitmap, 0, 0);
  const line = Math.max(1.5, Math.max(doc.photo.width, doc.photo.height) / 400);
  for (const item of items) {
    const { path } = drawable(maskOf(item).rle);
    context.globalAlpha = 0.42;
    context.fillStyle = item.colour;
    context.fill(path, "evenodd");
    context.globalAlpha = 1;
    context.lineJoin = "round";
    context.strokeStyle = item.colour;
    context.lineWidth = line;
    context.stroke(path);
  }
}

/** A COCO document of one photo. Boxes and areas are those of the masks. */
export function annotations(kind: JsonKind, doc: Doc, items: readonly Item[]): object {
  return {
    images: [{ id: 1, file_name: doc.photo.name, width: doc.photo.width, height: doc.photo.height }],
    categories: [{ id: 1, name: "object" }],
    annotations: items.map((item, index) => {
      const mask = maskOf(item);
      const { bitmap } = drawable(mask.rle);
      const [x0, y0, x1, y1] = bounds(bitmap) ?? [0, 0, 0, 0];
      return {
        id: index + 1,
        image_id: 1,
        category_id: 1,
        segmentation: kind === "rle" ? encode(bitmap) : polygons(rings(bitmap)),
        bbox: [x0, y0, x1 - x0, y1 - y0],
        area: area(mask.rle),
        iscrowd: 0,
        score: mask.score,
        name: item.name,
        points: item.points,
        level: mask.level,
      };
    }),
  };
}

export function json(kind: JsonKind, doc: Doc, items: readonly Item[]): Product {
  const text = JSON.stringify(annotations(kind, doc, items));
  return { blob: new Blob([text], { type: "application/json" }), name: `${stem(doc)}_${kind}.json` };
}

export function download({ blob, name }: Product): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** To the clipboard: pictures as PNG, annotations as text. */
export async function copy(product: Promise<Product>): Promise<void> {
  if (!navigator.clipboard) throw new Error("The browser lets secure pages use the clipboard only.");
  const { blob } = await product;
  if (blob.type === "image/png") await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
  else await navigator.clipboard.writeText(await blob.text());
}
