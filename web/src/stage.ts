// The photo with everything drawn on it, and what pointers do there: click, zoom, pan, pinch, the keyboard's crosshair.

import { calm, sharp } from "./dom";
import { clamp, fit, fitScale, settle, toClick, toPhoto, toScreen, zoomAt, type Size, type View } from "./geometry";
import { blurred, drawable, greyed } from "./masks";
import { layerIndex, maskOf, shownTolerance, type Doc, type Item, type Store } from "./state";
import type { Box, Point, TraceLayer } from "./types";

export const KEPT = "#6ea8ff";
export const COMPUTED = "#ffb454";

const DRAG = 6; // CSS pixels that a finger may move and still tap
const REVEAL_MS = 380;
const GLIDE_MS = 180;
const GRID_PIXELS = 7; // a window's cells are drawn where they are at least this large on the screen

type Clicked = (point: Point, add: boolean) => void;

export class Stage {
  /** Where the keyboard's crosshair is, in photo coordinates. */
  crosshair: Point | null = null;

  private view: View = { scale: 1, x: 0, y: 0 };
  private room: Size = { width: 1, height: 1 };
  private doc: Doc | null = null;
  private margin = 0;
  private fitted = true;
  private frame = 0;
  private readonly pointers = new Map<number, Point>();
  private press: { at: Point; last: Point; moved: boolean; shift: boolean } | null = null;
  private revealed = new Map<number, { key: unknown; since: number }>();
  private window: { from: Box; to: Box; since: number } | null = null;
  private grey: { of: ImageBitmap; is: CanvasImageSource } | null = null;
  private soft: { of: ImageBitmap; strength: number; is: CanvasImageSource } | null = null;

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly frameElement: HTMLElement,
    private readonly store: Store,
    private readonly clicked: Clicked,
  ) {
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event, true));
    canvas.addEventListener("pointercancel", (event) => this.up(event, false));
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    store.subscribe(() => this.update());
    this.resize();
  }

  zoomBy(factor: number, at: Point = [this.room.width / 2, this.room.height / 2]): void {
    if (!this.doc) return;
    const least = fitScale(this.doc.photo, this.room, this.margin);
    this.place(zoomAt(this.view, factor, at[0], at[1], least));
    this.fitted = this.view.scale <= least * 1.001;
  }

  fit(): void {
    if (!this.doc) return;
    this.fitted = true;
    this.place(fit(this.doc.photo, this.room, this.margin));
  }

  moveCrosshair(dx: number, dy: number, fine: boolean): void {
    if (!this.doc) return;
    const { width, height } = this.doc.photo;
    const step = fine ? 1 : 14 / this.view.scale;
    const [x, y] = this.crosshair ?? [width / 2 - dx * step, height / 2 - dy * step];
    this.crosshair = [clamp(x + dx * step, 0.5, width - 0.5), clamp(y + dy * step, 0.5, height - 0.5)];
    const [sx, sy] = toScreen(this.view, ...this.crosshair);
    const [px, py] = [clamp(sx, 24, this.room.width - 24) - sx, clamp(sy, 24, this.room.height - 24) - sy];
    if (px || py) this.place({ ...this.view, x: this.view.x + px, y: this.view.y + py });
    this.draw();
  }

  clickCrosshair(add: boolean): boolean {
    if (!this.doc || !this.crosshair) return false;
    this.clicked(toClick(this.crosshair, this.doc.photo), add);
    return true;
  }

  hideCrosshair(): boolean {
    if (!this.crosshair) return false;
    this.crosshair = null;
    this.draw();
    return true;
  }

  draw(): void {
    if (!this.frame) this.frame = requestAnimationFrame((now) => this.paint(now));
  }

  private update(): void {
    const { doc } = this.store.state;
    if (doc !== this.doc) {
      this.doc = doc;
      this.crosshair = this.window = null;
      this.revealed.clear();
      this.fit();
    }
    this.draw();
  }

  private resize(): void {
    const { width, height } = this.frameElement.getBoundingClientRect();
    this.room = { width, height };
    this.margin = Math.min(width, height) < 500 ? 4 : 12;
    if (!this.doc) this.draw();
    else if (this.fitted) this.fit();
    else this.place(this.view);
  }

  private place(view: View): void {
    this.view = this.doc ? settle(view, this.doc.photo, this.room, this.margin) : view;
    this.draw();
  }

  // Pointers

  private at(event: PointerEvent | WheelEvent): Point {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  private down(event: PointerEvent): void {
    if (event.button > 1) return;
    this.canvas.setPointerCapture(event.pointerId);
    const at = this.at(event);
    this.pointers.set(event.pointerId, at);
    this.hideCrosshair();
    if (this.pointers.size === 1) this.press = { at, last: at, moved: event.button === 1, shift: event.shiftKey };
    else if (this.press) this.press.moved = true;
  }

  private move(event: PointerEvent): void {
    const at = this.at(event);
    const before = this.pointers.get(event.pointerId);
    if (!before || !this.press) {
      this.canvas.classList.toggle("over-photo", this.overPhoto(at));
      return;
    }
    if (this.pointers.size === 2) this.pinch(event.pointerId, before, at);
    else if (this.press.moved || Math.hypot(at[0] - this.press.at[0], at[1] - this.press.at[1]) > DRAG) {
      this.press.moved = true;
      this.canvas.classList.add("panning");
      const { last } = this.press;
      this.place({ ...this.view, x: this.view.x + at[0] - last[0], y: this.view.y + at[1] - last[1] });
      this.press.last = at;
    }
    this.pointers.set(event.pointerId, at);
  }

  private pinch(id: number, before: Point, at: Point): void {
    const other = [...this.pointers].find(([key]) => key !== id)?.[1];
    if (!other) return;
    const distance = (a: Point, b: Point): number => Math.max(1, Math.hypot(a[0] - b[0], a[1] - b[1]));
    const [mx, my] = [(at[0] - before[0]) / 2, (at[1] - before[1]) / 2];
    this.view = { ...this.view, x: this.view.x + mx, y: this.view.y + my };
    this.zoomBy(distance(at, other) / distance(before, other), [(at[0] + other[0]) / 2, (at[1] + other[1]) / 2]);
  }

  private up(event: PointerEvent, released: boolean): void {
    if (!this.pointers.delete(event.pointerId)) return;
    const { press } = this;
    if (this.pointers.size) {
      if (press) press.last = [...this.pointers.values()][0]!;
      return;
    }
    this.press = null;
    this.canvas.classList.remove("panning");
    if (!released || !press || press.moved || !this.doc || !this.overPhoto(press.at)) return;
    this.clicked(toClick(toPhoto(this.view, ...press.at), this.doc.photo), press.shift);
  }

  private wheel(event: WheelEvent): void {
    event.preventDefault();
    const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 16 : 1;
    this.zoomBy(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0016)), this.at(event));
  }

  private overPhoto(at: Point): boolean {
    if (!this.doc) return false;
    const [x, y] = toPhoto(this.view, ...at);
    return x >= 0 && y >= 0 && x < this.doc.photo.width && y < this.doc.photo.height;
  }

  // Drawing

  private paint(now: number): void {
    this.frame = 0;
    const context = sharp(this.canvas, this.room.width, this.room.height);
    const { view, doc } = this;
    this.canvas.dataset["view"] = doc ? JSON.stringify({ ...view, photo: doc.photo.id }) : "";
    if (!doc) return;
    context.save();
    context.translate(view.x, view.y);
    context.scale(view.scale, view.scale);
    context.imageSmoothingEnabled = view.scale < 6;
    context.imageSmoothingQuality = "high";
    let moving = false;
    const layer = this.shownLayer();
    if (layer) moving = this.paintWindow(context, doc, layer, now) || moving;
    else {
      this.window = null;
      this.paintBackdrop(context, doc);
    }
    for (const item of this.store.visible) moving = this.paintItem(context, doc, item, now, !!layer) || moving;
    this.paintTolerance(context);
    context.restore();
    this.paintPoints(context);
    if (this.store.state.pending) {
      this.paintPending(context, this.store.state.pending, now);
      moving = !calm() || moving;
    }
    if (this.crosshair) this.paintCrosshair(context, toScreen(view, ...this.crosshair));
    this.canvas.dataset["still"] = String(!moving);
    if (moving) this.draw();
  }

  /** The layer whose window is shown: in the network's panel, of the selected object. */
  private shownLayer(): TraceLayer | null {
    const { tab, layer } = this.store.state;
    if (tab !== "network" || shownTolerance(this.store)) return null;
    const layers = this.store.selected?.result.trace?.layers;
    return layers?.[layerIndex(layers, layer)] ?? null;
  }

  private paintBackdrop(context: CanvasRenderingContext2D, doc: Doc): void {
    const { backdrop, blur } = this.store.state;
    const { width, height } = doc.photo;
    const items = this.store.visible;
    if (backdrop === "photo" || !items.length) {
      context.drawImage(doc.bitmap, 0, 0, width, height);
      return;
    }
    if (backdrop === "cutout") this.paintChequers(context, width, height);
    else context.drawImage(this.blurredPhoto(doc.bitmap, blur), 0, 0, width, height);
    for (const item of items) {
      context.save();
      context.clip(drawable(maskOf(item).rle).path, "evenodd");
      context.drawImage(doc.bitmap, 0, 0, width, height);
      context.restore();
    }
  }

  private paintChequers(context: CanvasRenderingContext2D, width: number, height: number): void {
    const cell = 10 / this.view.scale;
    context.fillStyle = "#22252a";
    context.fillRect(0, 0, width, height);
    context.save();
    context.beginPath();
    context.rect(0, 0, width, height);
    context.clip();
    context.fillStyle = "#2c3037";
    for (let y = 0, row = 0; y < height; y += cell, row++) {
      for (let x = row % 2 ? cell : 0; x < width; x += 2 * cell) context.fillRect(x, y, cell, cell);
    }
    context.restore();
  }

  private blurredPhoto(bitmap: ImageBitmap, strength: number): CanvasImageSource {
    if (this.soft?.of !== bitmap || this.soft.strength !== strength) {
      this.soft = { of: bitmap, strength, is: blurred(bitmap, strength) };
    }
    return this.soft.is;
  }

  /** The window of one layer: what it kept lit, what this click computed in its own colour, the rest greyed. */
  private paintWindow(context: CanvasRenderingContext2D, doc: Doc, layer: TraceLayer, now: number): boolean {
    if (this.grey?.of !== doc.bitmap) this.grey = { of: doc.bitmap, is: greyed(doc.bitmap) };
    const { width, height } = doc.photo;
    context.drawImage(this.grey.is, 0, 0, width, height);
    const [box, moving] = this.glide(layer.photo_box, now);
    const { onlyNew } = this.store.state;
    const lit = onlyNew ? (moving ? [] : layer.computed_photo) : [box];
    for (const [x0, y0, x1, y1] of lit) {
      if (x1 <= x0 || y1 <= y0) continue;
      context.save();
      context.beginPath();
      context.rect(x0, y0, x1 - x0, y1 - y0);
      context.clip();
      context.drawImage(doc.bitmap, 0, 0, width, height);
      context.restore();
    }
    const line = 1 / this.view.scale;
    if (!moving) {
      this.paintCells(context, layer);
      const parts = layer.computed_photo;
      // Where all of a window is new, its frame says so, and the photo keeps its colours.
      const whole = parts.length === 1 && parts[0]!.every((edge, i) => Math.abs(edge - layer.photo_box[i]!) < 0.5);
      for (const computed of parts) {
        context.fillStyle = `${COMPUTED}${whole ? "00" : "2c"}`;
        context.fillRect(...sides(computed));
        context.strokeStyle = COMPUTED;
        context.lineWidth = 1.5 * line;
        context.strokeRect(...sides(computed));
      }
    }
    context.strokeStyle = layer.computed.length && !onlyNew ? "#fff" : KEPT;
    context.lineWidth = 2 * line;
    context.strokeRect(...sides(box));
    return moving;
  }

  /** Windows glide from layer to layer. */
  private glide(target: Box, now: number): [Box, boolean] {
    const same = this.window && target.every((value, i) => value === this.window!.to[i]);
    if (!same) {
      const from = this.window && !calm() ? this.blend(now) : target;
      this.window = { from, to: target, since: now };
    }
    return [this.blend(now), now - this.window!.since < GLIDE_MS && !calm() && this.window!.from !== this.window!.to];
  }

  private blend(now: number): Box {
    const { from, to, since } = this.window!;
    const t = clamp((now - since) / GLIDE_MS, 0, 1);
    const eased = t * (2 - t);
    return [0, 1, 2, 3].map((i) => from[i]! + (to[i]! - from[i]!) * eased) as unknown as Box;
  }

  private paintCells(context: CanvasRenderingContext2D, layer: TraceLayer): void {
    const [y0, y1, x0, x1] = layer.demand;
    const [left, top, right, bottom] = layer.photo_box;
    const [cellX, cellY] = [(right - left) / (x1 - x0), (bottom - top) / (y1 - y0)];
    if (!(Math.min(cellX, cellY) * this.view.scale >= GRID_PIXELS)) return;
    context.beginPath();
    for (let i = 1; i < x1 - x0; i++) {
      context.moveTo(left + i * cellX, top);
      context.lineTo(left + i * cellX, bottom);
    }
    for (let i = 1; i < y1 - y0; i++) {
      context.moveTo(left, top + i * cellY);
      context.lineTo(right, top + i * cellY);
    }
    context.strokeStyle = "rgb(255 255 255 / 22%)";
    context.lineWidth = 1 / this.view.scale;
    context.stroke();
  }

  private paintItem(
    context: CanvasRenderingContext2D,
    doc: Doc,
    item: Item,
    now: number,
    outlineOnly: boolean,
  ): boolean {
    const { rle } = maskOf(item);
    const { path } = drawable(rle);
    const selected = item.id === this.store.layers.selected;
    const { backdrop, tab } = this.store.state;
    const mapped = shownTolerance(this.store) !== null;
    if (outlineOnly && !selected) return false;
    if (backdrop !== "photo" && tab === "objects") return false;
    const t = this.progress(item, rle, now);
    const line = 1 / this.view.scale;
    context.save();
    if (t < 1) {
      const [x, y] = item.points.at(-1)!;
      const reach = Math.hypot(Math.max(x, doc.photo.width - x), Math.max(y, doc.photo.height - y));
      context.beginPath();
      context.arc(x + 0.5, y + 0.5, reach * t * t + 4, 0, 2 * Math.PI);
      context.clip();
    }
    if (!outlineOnly && !mapped) {
      context.globalAlpha = selected ? 0.46 : 0.38;
      context.fillStyle = item.colour;
      context.fill(path, "evenodd");
      context.globalAlpha = 1;
    }
    context.lineJoin = "round";
    context.strokeStyle = "rgb(0 0 0 / 55%)";
    context.lineWidth = (selected ? 4.5 : 3) * line;
    context.stroke(path);
    context.strokeStyle = item.colour;
    context.lineWidth = (selected ? 2.25 : 1.25) * line;
    context.stroke(path);
    context.restore();
    if (selected && !outlineOnly && !mapped) this.paintBox(context, maskOf(item).box, item.colour);
    return t < 1;
  }

  /** How far a new mask has opened, from its click outwards. */
  private progress(item: Item, key: unknown, now: number): number {
    const before = this.revealed.get(item.id);
    const shown = before && before.key === key ? before : { key, since: now };
    this.revealed.set(item.id, shown);
    return calm() ? 1 : clamp((now - shown.since) / REVEAL_MS, 0, 1);
  }

  /** The predicted box, as four corners. */
  private paintBox(context: CanvasRenderingContext2D, box: Box, colour: string): void {
    const [x0, y0, x1, y1] = [box[0], box[1], box[2], box[3]];
    const arm = Math.min(14 / this.view.scale, (x1 - x0) / 3, (y1 - y0) / 3);
    if (!(arm > 0)) return;
    context.beginPath();
    for (const [x, y, dx, dy] of [
      [x0, y0, 1, 1],
      [x1, y0, -1, 1],
      [x1, y1, -1, -1],
      [x0, y1, 1, -1],
    ] as const) {
      context.moveTo(x + dx * arm, y);
      context.lineTo(x, y);
      context.lineTo(x, y + dy * arm);
    }
    for (const [stroke, width] of [
      ["rgb(0 0 0 / 50%)", 3.5],
      [colour, 1.5],
    ] as const) {
      context.strokeStyle = stroke;
      context.lineWidth = width / this.view.scale;
      context.stroke();
    }
  }

  private paintPoints(context: CanvasRenderingContext2D): void {
    const { selected } = this.store;
    const { backdrop, tab } = this.store.state;
    if (!selected?.visible || (backdrop !== "photo" && tab === "objects")) return;
    for (const [x, y] of selected.points) {
      const [sx, sy] = toScreen(this.view, x + 0.5, y + 0.5);
      context.beginPath();
      context.arc(sx, sy, 5, 0, 2 * Math.PI);
      context.fillStyle = selected.colour;
      context.fill();
      context.lineWidth = 2;
      context.strokeStyle = "#fff";
      context.stroke();
      context.beginPath();
      context.arc(sx, sy, 6.5, 0, 2 * Math.PI);
      context.lineWidth = 1;
      context.strokeStyle = "rgb(0 0 0 / 60%)";
      context.stroke();
    }
  }

  private paintPending(context: CanvasRenderingContext2D, point: Point, now: number): void {
    const [x, y] = toScreen(this.view, point[0] + 0.5, point[1] + 0.5);
    const t = calm() ? 0.4 : (now % 1100) / 1100;
    context.beginPath();
    context.arc(x, y, 4, 0, 2 * Math.PI);
    context.fillStyle = "#fff";
    context.fill();
    context.beginPath();
    context.arc(x, y, 6 + 26 * t, 0, 2 * Math.PI);
    context.strokeStyle = `rgb(255 255 255 / ${(0.9 * (1 - t)).toFixed(3)})`;
    context.lineWidth = 2;
    context.stroke();
  }

  private paintCrosshair(context: CanvasRenderingContext2D, [x, y]: Point): void {
    for (const [style, width] of [
      ["rgb(0 0 0 / 70%)", 4],
      ["#fff", 1.75],
    ] as const) {
      context.strokeStyle = style;
      context.lineWidth = width;
      context.beginPath();
      for (const [dx, dy] of [
        [1, 0],
        [-1, 0],
        [0, 1],
        [0, -1],
      ] as const) {
        context.moveTo(x + 6 * dx, y + 6 * dy);
        context.lineTo(x + 20 * dx, y + 20 * dy);
      }
      context.stroke();
      context.beginPath();
      context.arc(x, y, 12, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  /** Where clicks give the same object: one square per click tried, from violet (another thing) to yellow. */
  private paintTolerance(context: CanvasRenderingContext2D): void {
    const tolerance = shownTolerance(this.store);
    if (!tolerance) return;
    const { step, points } = tolerance;
    for (const [x, y, agreement] of points) {
      context.fillStyle = ramp(agreement, 0.72);
      context.fillRect(x + 0.5 - step / 2, y + 0.5 - step / 2, step * 0.94, step * 0.94);
    }
  }
}

function sides([x0, y0, x1, y1]: Box): [number, number, number, number] {
  return [x0, y0, x1 - x0, y1 - y0];
}

const RAMP = [
  [76, 29, 149],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
] as const;

/** Colours that grow lighter as they grow yellower, so that they read without colour vision too. */
export function ramp(value: number, alpha: number): string {
  const at = clamp(value, 0, 1) * (RAMP.length - 1);
  const low = RAMP[Math.min(Math.floor(at), RAMP.length - 2)]!;
  const high = RAMP[Math.min(Math.floor(at) + 1, RAMP.length - 1)]!;
  const t = at - Math.min(Math.floor(at), RAMP.length - 2);
  const channel = (i: 0 | 1 | 2): number => Math.round(low[i] + (high[i] - low[i]) * t);
  return `rgb(${channel(0)} ${channel(1)} ${channel(2)} / ${alpha})`;
}
