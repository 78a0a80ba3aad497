// The network's graph, a band per stage: within a band nodes go from left to right by depth, those of equal depth
// (the pyramid's levels) stand under each other. What the click visited is lit, what it computed anew has its own colour.

import { sharp } from "./dom";
import { count } from "./format";
import { COMPUTED, KEPT } from "./stage";
import type { GraphNode, Trace } from "./types";

const LABEL = 82;
const LANE = 12;
const LANES = 10;
const WIDEST = 24; // between two columns
const BAND_GAP = 16;
const PAD = 8;

interface Placed {
  readonly x: number;
  readonly y: number;
  readonly r: number;
}

interface Layout {
  readonly nodes: Placed[];
  readonly bands: { stage: string; y: number; height: number }[];
  readonly height: number;
}

/** Depth of every node within its stage: one more than its deepest producer there. */
export function depths(nodes: readonly Pick<GraphNode, "stage" | "inputs">[]): number[] {
  const depth: number[] = [];
  nodes.forEach((node, i) => {
    const before = node.inputs.filter((j) => j < i && nodes[j]!.stage === node.stage).map((j) => depth[j]! + 1);
    depth.push(Math.max(0, ...before));
  });
  return depth;
}

/** Column and lane of nodes by depth: those of one depth stand under each other, in as many columns as they need. */
export function columns(depth: readonly number[], lanes: number): { column: number; lane: number }[] {
  const number: number[] = [];
  for (const d of depth) number[d] = (number[d] ?? 0) + 1;
  const first: number[] = [];
  let next = 0;
  number.forEach((n, d) => {
    first[d] = next;
    next += Math.ceil(n / lanes);
  });
  const filled: number[] = [];
  return depth.map((d) => {
    const k = filled[d] ?? 0;
    filled[d] = k + 1;
    return { column: first[d]! + Math.floor(k / lanes), lane: k % lanes };
  });
}

function layOut(nodes: readonly GraphNode[], width: number): Layout {
  const depth = depths(nodes);
  const stages = [...new Set(nodes.map((node) => node.stage))];
  const most = Math.max(1, ...nodes.map((node) => node.full_macs));
  const placed: Placed[] = [];
  const bands: Layout["bands"] = [];
  let top = PAD;
  for (const stage of stages) {
    const members = nodes.map((_, i) => i).filter((i) => nodes[i]!.stage === stage);
    // The network's inputs have no stage and no order: they stand in a row.
    const places = columns(members.map((i) => depth[i]!), stage ? LANES : 1);
    const last = Math.max(...places.map(({ column }) => column));
    const height = LANE * (1 + Math.max(...places.map(({ lane }) => lane)));
    const step = Math.min(WIDEST, (width - LABEL - 2 * PAD) / Math.max(1, last));
    members.forEach((i, k) => {
      const { column, lane } = places[k]!;
      const r = 1.8 + 2.8 * Math.sqrt(nodes[i]!.full_macs / most);
      placed[i] = { x: LABEL + PAD + column * step, y: top + (lane + 0.5) * LANE, r };
    });
    bands.push({ stage, y: top, height });
    top += height + BAND_GAP;
  }
  return { nodes: placed, bands, height: top - BAND_GAP + PAD };
}

export class GraphView {
  private layout: Layout | null = null;
  private laidOut: { nodes: readonly GraphNode[]; width: number } | null = null;
  private last: { nodes: readonly GraphNode[]; trace: Trace; onlyNew: boolean } | null = null;
  private hovered: number | null = null;

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly describe: (text: string) => void,
  ) {
    const near = (event: PointerEvent): void => this.hover(event);
    canvas.addEventListener("pointermove", near);
    canvas.addEventListener("pointerdown", near);
    canvas.addEventListener("pointerleave", () => this.point(null));
    new ResizeObserver(() => this.last && this.draw(this.last.nodes, this.last.trace, this.last.onlyNew)).observe(canvas);
  }

  draw(nodes: readonly GraphNode[], trace: Trace, onlyNew: boolean): void {
    this.last = { nodes, trace, onlyNew };
    const width = this.canvas.clientWidth;
    if (!width || !nodes.length) return;
    if (!this.layout || this.laidOut?.nodes !== nodes || this.laidOut.width !== width) {
      this.layout = layOut(nodes, width);
      this.laidOut = { nodes, width };
      this.canvas.style.height = `${this.layout.height}px`;
    }
    const { nodes: places, bands, height } = this.layout;
    const context = sharp(this.canvas, width, height);
    const visited = new Set(trace.visited);
    const computed = new Set(trace.computed);
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    for (const band of bands) {
      context.fillStyle = "#a9b0ba";
      context.fillText(band.stage || "input", 0, band.y + band.height / 2);
    }
    const edge = (i: number, j: number): void => {
      const [from, to] = [places[j]!, places[i]!];
      context.moveTo(from.x, from.y);
      if (Math.abs(to.y - from.y) < 1) context.lineTo(to.x, to.y);
      else {
        const middle = (from.y + to.y) / 2;
        context.bezierCurveTo(from.x, middle, to.x, middle, to.x, to.y);
      }
    };
    const edges = (lit: boolean): void => {
      context.beginPath();
      nodes.forEach((node, i) => {
        for (const j of node.inputs) if (lit === (computed.has(i) && computed.has(j)) && places[j]) edge(i, j);
      });
    };
    edges(false);
    context.strokeStyle = "rgb(255 255 255 / 9%)";
    context.lineWidth = 1;
    context.stroke();
    edges(true);
    context.strokeStyle = `${COMPUTED}66`;
    context.stroke();
    nodes.forEach((_, i) => {
      const { x, y, r } = places[i]!;
      context.beginPath();
      context.arc(x, y, r, 0, 2 * Math.PI);
      context.fillStyle = computed.has(i) ? COMPUTED : visited.has(i) && !onlyNew ? KEPT : "#3a404a";
      context.fill();
    });
    if (this.hovered !== null && places[this.hovered]) {
      const { x, y, r } = places[this.hovered]!;
      context.beginPath();
      context.arc(x, y, r + 3, 0, 2 * Math.PI);
      context.strokeStyle = "#fff";
      context.lineWidth = 1.5;
      context.stroke();
    }
  }

  private hover(event: PointerEvent): void {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let best: number | null = null;
    let nearest = 14;
    this.layout?.nodes.forEach((place, i) => {
      const distance = Math.hypot(place.x - x, place.y - y);
      if (distance < nearest) [best, nearest] = [i, distance];
    });
    this.point(best);
  }

  private point(index: number | null): void {
    if (index === this.hovered || !this.last) return;
    this.hovered = index;
    const { nodes, trace, onlyNew } = this.last;
    this.draw(nodes, trace, onlyNew);
    if (index === null) return this.describe("");
    const node = nodes[index]!;
    const plane = node.plane ? ` · ${node.plane[0]} × ${node.plane[1]} cells` : "";
    const cost = node.full_macs ? ` · ${count(node.full_macs)} multiply-adds in full` : "";
    this.describe(`${node.name} · ${node.op}${plane}${cost}`);
  }
}
