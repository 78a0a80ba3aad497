// The network's planes in a row, seen from the side, each with its window: from the photo on the left to the mask.

import { sharp } from "./dom";
import { COMPUTED, KEPT } from "./stage";
import type { Photo, TraceLayer } from "./types";

const LEAN = 0.4; // how far a plane's far edge rises, as a share of its width
const NARROW = 0.4; // width of a plane on the screen, as a share of its own
const HEIGHT = 168;

interface Drawn {
  layers: readonly TraceLayer[];
  photo: Photo;
  bitmap: ImageBitmap;
  selected: number;
  onlyNew: boolean;
}

export class Planes {
  private centres: number[] = [];
  private drawn: Drawn | null = null;

  constructor(
    private readonly canvas: HTMLCanvasElement,
    pick: (index: number) => void,
  ) {
    const at = (event: PointerEvent): void => {
      const x = event.clientX - canvas.getBoundingClientRect().left;
      let best = 0;
      this.centres.forEach((centre, i) => {
        if (Math.abs(centre - x) < Math.abs(this.centres[best]! - x)) best = i;
      });
      if (this.centres.length) pick(best);
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      at(event);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) at(event);
    });
    new ResizeObserver(() => this.drawn && this.draw(this.drawn)).observe(canvas);
  }

  draw(drawn: Drawn): void {
    this.drawn = drawn;
    const width = this.canvas.clientWidth;
    if (!width) return;
    const context = sharp(this.canvas, width, HEIGHT);
    const { layers, photo, selected } = drawn;
    const aspect = photo.width / photo.height;
    const tall = Math.min(118, (width * 0.48) / aspect);
    const [w, h] = [tall * aspect, tall];
    const across = w * NARROW;
    const rise = w * NARROW * LEAN;
    const step = (width - across - 16) / Math.max(1, layers.length - 1);
    this.centres = layers.map((_, i) => 8 + across / 2 + i * step);
    const order = layers.map((_, i) => i).filter((i) => i !== selected);
    if (layers[selected]) order.push(selected);
    for (const i of order) {
      const layer = layers[i]!;
      // Coarser planes are drawn smaller, gently: the pyramid narrows and widens again.
      const stride = Math.max(1, (layers[0]?.plane[1] ?? layer.plane[1]) / layer.plane[1]);
      const size = Math.max(0.5, 1 - 0.075 * Math.log2(stride));
      const [x, y] = [this.centres[i]!, HEIGHT / 2 + 2];
      context.save();
      context.transform(
        (across / w) * size,
        (-rise / w) * size,
        0,
        size,
        x - (across / 2) * size,
        y - (h / 2) * size + (rise / 2) * size,
      );
      this.plane(context, drawn, layer, w, h, i === selected);
      context.restore();
    }
  }

  private plane(
    context: CanvasRenderingContext2D,
    { photo, bitmap, onlyNew }: Drawn,
    layer: TraceLayer,
    w: number,
    h: number,
    selected: boolean,
  ): void {
    const [sx, sy] = [w / photo.width, h / photo.height];
    const rectangle = ([x0, y0, x1, y1]: TraceLayer["photo_box"]): [number, number, number, number] => [
      x0 * sx,
      y0 * sy,
      Math.max(1.5, (x1 - x0) * sx),
      Math.max(1.5, (y1 - y0) * sy),
    ];
    context.fillStyle = selected ? "#0d0f12" : "rgb(30 34 40 / 78%)";
    context.fillRect(0, 0, w, h);
    if (selected || layer.name === "image") {
      context.globalAlpha = 0.3;
      context.drawImage(bitmap, 0, 0, w, h);
      context.globalAlpha = 1;
      for (const lit of onlyNew ? layer.computed_photo : [layer.photo_box]) {
        context.save();
        context.beginPath();
        context.rect(...rectangle(lit));
        context.clip();
        context.drawImage(bitmap, 0, 0, w, h);
        context.restore();
      }
    }
    const input = layer.name === "image"; // read, not computed
    if (!onlyNew && !input) {
      context.fillStyle = `${KEPT}${selected ? "26" : "55"}`;
      context.fillRect(...rectangle(layer.photo_box));
    }
    context.fillStyle = `${COMPUTED}${selected ? "60" : "a0"}`;
    if (!input) for (const computed of layer.computed_photo) context.fillRect(...rectangle(computed));
    context.strokeStyle = selected ? "#fff" : "rgb(255 255 255 / 28%)";
    context.lineWidth = selected ? 2 : 1;
    context.strokeRect(0, 0, w, h);
  }
}
