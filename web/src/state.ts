// What the page shows. Objects on a photo are immutable snapshots under an undo stack; everything else is not undone.

import { History } from "./history";
import type { GraphNode, Info, Mask, Photo, Point, Rle, Segmentation, Tolerance, TraceLayer } from "./types";

/** One segmented object: a coloured layer over the photo. */
export interface Item {
  readonly id: number;
  readonly name: string;
  readonly colour: string;
  readonly visible: boolean;
  readonly points: readonly Point[];
  readonly masks: readonly Mask[];
  readonly chosen: number;
  /** Whether `masks` holds the alternatives too. */
  readonly complete: boolean;
  readonly look: Look;
  /** The answer to the last click on this object, and how long it took from click to answer. */
  readonly result: Segmentation;
  readonly roundTrip: number;
}

export interface Layers {
  readonly items: readonly Item[];
  readonly selected: number | null;
}

export interface Doc {
  readonly photo: Photo;
  readonly bitmap: ImageBitmap;
  /** The file as it was uploaded, to upload it again to a server that has forgotten it. */
  readonly source: Blob | null;
  readonly history: History<Layers>;
  /** Ids and colours given out so far. */
  count: number;
  /** Multiply-adds of every click so far, in order. */
  readonly clicks: { macs: number; full: number }[];
  graph: GraphNode[] | null;
}

export type Tab = "objects" | "network";
/** What a click asks: all levels, the near ones only (small windows), or several scales. */
export type Look = "all" | "near" | "scales";
export type Backdrop = "photo" | "cutout" | "blur";

export interface Comparison {
  readonly clickMs: number;
  readonly fullMs: number;
  readonly maxError: number;
  readonly maxLogit: number;
}

export interface State {
  info: Info | null;
  photos: readonly Photo[];
  doc: Doc | null;
  loading: string | null;
  pending: Point | null;
  tab: Tab;
  backdrop: Backdrop;
  blur: number;
  adding: boolean;
  look: Look;
  /** Name of the layer whose window is drawn. */
  layer: string;
  onlyNew: boolean;
  camera: "off" | "starting" | "live" | "frozen";
  /** Belongs to the answer `of` which it was asked. */
  comparison: { of: Segmentation; result: Comparison | "running" } | null;
  /** Belongs to the mask `of` which it was asked. */
  tolerance: { of: Rle; job: string; done: number; total: number; result: Tolerance | null } | null;
  showTolerance: boolean;
}

export const COLOURS = [
  "#4cc9f0",
  "#ffb703",
  "#ff6b9d",
  "#7ae582",
  "#b79cff",
  "#ff8a5b",
  "#5eead4",
  "#f4e04d",
  "#f095ff",
  "#93c5fd",
] as const;

const EMPTY: Layers = { items: [], selected: null };

export function newDoc(photo: Photo, bitmap: ImageBitmap, source: Blob | null): Doc {
  return { photo, bitmap, source, history: new History(EMPTY), count: 0, clicks: [], graph: null };
}

export class Store {
  private readonly listeners: (() => void)[] = [];
  private scheduled = false;

  constructor(public state: State) {}

  subscribe(listener: () => void): void {
    this.listeners.push(listener);
  }

  /** Listeners run once per frame, however many changes it brought; in a tab out of sight, soon. */
  set(change: Partial<State>): void {
    Object.assign(this.state, change);
    if (this.scheduled) return;
    this.scheduled = true;
    const run = (): void => {
      if (!this.scheduled) return;
      this.scheduled = false;
      for (const listener of this.listeners) listener();
    };
    if (document.hidden) setTimeout(run);
    else requestAnimationFrame(run);
  }

  get layers(): Layers {
    return this.state.doc?.history.present ?? EMPTY;
  }

  get selected(): Item | null {
    const { items, selected } = this.layers;
    return items.find((item) => item.id === selected) ?? null;
  }

  get visible(): readonly Item[] {
    return this.layers.items.filter((item) => item.visible);
  }

  /** A step that undo leads back from. */
  push(layers: Layers): void {
    this.state.doc?.history.push(layers);
    this.set({});
  }

  amend(layers: Layers): void {
    this.state.doc?.history.amend(layers);
    this.set({});
  }

  /** Changes one object, as a step or in place. */
  change(id: number, change: Partial<Item>, step = true): void {
    const items = this.layers.items.map((item) => (item.id === id ? { ...item, ...change } : item));
    const next = { ...this.layers, items };
    if (step) this.push(next);
    else this.amend(next);
  }

  select(id: number | null): void {
    if (id !== this.layers.selected) this.amend({ ...this.layers, selected: id });
  }

  remove(id: number): void {
    const { items, selected } = this.layers;
    const rest = items.filter((item) => item.id !== id);
    this.push({ items: rest, selected: selected === id ? (rest.at(-1)?.id ?? null) : selected });
  }

  undo(): boolean {
    const done = this.state.doc?.history.undo() ?? false;
    if (done) this.set({});
    return done;
  }

  redo(): boolean {
    const done = this.state.doc?.history.redo() ?? false;
    if (done) this.set({});
    return done;
  }
}

/** Position of the layer that is shown; where a click did not need it, of one in its place. */
export function layerIndex(layers: readonly TraceLayer[], name: string): number {
  const at = layers.findIndex((layer) => layer.name === name);
  return at >= 0 ? at : Math.max(0, layers.findIndex((layer) => layer.name === "P3"));
}

/** The click-tolerance map of the selected object, where it is computed and to be shown. */
export function shownTolerance(store: Store): Tolerance | null {
  const { tolerance, showTolerance, tab } = store.state;
  const { selected } = store;
  if (!tolerance?.result || !showTolerance || tab !== "network" || !selected) return null;
  return tolerance.of === maskOf(selected).rle ? tolerance.result : null;
}

export function maskOf(item: Item): Mask {
  return item.masks[item.chosen] ?? item.masks[0]!;
}
