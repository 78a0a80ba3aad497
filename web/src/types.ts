// What the server answers. Coordinates are photo pixels after EXIF rotation; integers are pixel centres.

export type Point = readonly [x: number, y: number];
/** (x0, y0, x1, y1). */
export type Box = readonly [number, number, number, number];

/** COCO's uncompressed RLE: runs in column-major order, zeros first. */
export interface Rle {
  readonly size: readonly [height: number, width: number];
  readonly counts: readonly number[];
}

export interface Info {
  version: string;
  model: string;
  backend: string;
  device: string;
  working_size: number;
  levels: [number, number];
  has_level_head: boolean;
  limits: { max_bytes: number; max_pixels: number; photos_per_visitor: number; queue: number };
}

export interface Photo {
  id: string;
  name: string;
  width: number;
  height: number;
  source: "bundled" | "folder" | "upload";
}

export interface Mask {
  rle: Rle;
  score: number;
  box: Box;
  level: number;
  zoom: number;
  area: number;
}

export interface TraceLayer {
  name: string;
  stage: string;
  plane: [height: number, width: number];
  /** Window that the click needs, in cells: y0, y1, x0, x1. */
  demand: [number, number, number, number];
  /** The same in photo pixels, edges rather than centres. */
  photo_box: Box;
  /** What this click computed anew; empty where everything was kept. */
  computed: [number, number, number, number][];
  computed_photo: Box[];
  macs: number;
  full_macs: number;
}

export interface StageCost {
  stage: string;
  macs: number;
  full_macs: number;
}

export interface Trace {
  layers: TraceLayer[];
  stages: StageCost[];
  /** Indices of graph nodes that the click needed, and of those computed anew. */
  visited: number[];
  computed: number[];
}

export interface Segmentation {
  photo: string;
  width: number;
  height: number;
  masks: Mask[];
  timing_ms: { queue: number; set_image: number; capture: number; predict: number };
  macs: number;
  full_macs: number;
  kept_bytes: number;
  full?: { ms: number; max_error: number; max_logit: number };
  trace?: Trace;
}

export interface SegmentRequest {
  photo: string;
  points: Point[];
  levels?: [number, number];
  zoom?: "off" | "auto";
  alternatives?: boolean;
  trace?: boolean;
  forget?: boolean;
  full?: boolean;
  keep_older?: boolean;
}

export interface GraphNode {
  name: string;
  op: string;
  stage: string;
  plane: [number, number] | null;
  inputs: number[];
  full_macs: number;
}

export interface Tolerance {
  step: number;
  clicks: number;
  share: number;
  points: [x: number, y: number, iou: number][];
}

export interface Job {
  state: "waiting" | "running" | "done" | "cancelled" | "failed";
  done: number;
  total: number;
  error?: { message: string; hint?: string } | string | null;
  result?: Tolerance | null;
}
