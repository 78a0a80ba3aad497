// What clicks do: ask the server, take the answer in as an object, and everything else that asks about an object.

import { ApiError, UNREACHABLE, type Api } from "./api";
import { duration, percent } from "./format";
import { note, report, say } from "./notify";
import { iou } from "./rle";
import { COLOURS, maskOf, type Doc, type Item, type Look, type Store } from "./state";
import type { Point, SegmentRequest, Segmentation } from "./types";

/** A mask that agrees so well with an object's is the same thing clicked again. */
const SAME = 0.85;
const TOLERANCE_CLICKS = 400;
const POLL_MS = 400;
const BUSY_TRIES = 4;

const LOOKS: Record<Look, Pick<SegmentRequest, "levels" | "zoom">> = {
  all: {},
  near: { levels: [3, 5], zoom: "off" },
  scales: { zoom: "auto" },
};

export class Session {
  /** Sends a photo again that the server has forgotten; the library's business. */
  restore: (doc: Doc, signal: AbortSignal) => Promise<void> = async () => {};

  private current: AbortController | null = null;

  constructor(
    private readonly api: Api,
    private readonly store: Store,
  ) {}

  /** A click: a new object, or one point more on the selected one. */
  async click(point: Point, add: boolean): Promise<void> {
    const target = add ? this.store.selected : null;
    await this.segment(target ? [...target.points, point] : [point], target);
  }

  /** Looks at the selected object, and at all that are clicked from now on, in another way. */
  async lookAgain(look: Look): Promise<void> {
    this.store.set({ look });
    const item = this.store.selected;
    if (item && item.look !== look) await this.segment(item.points, item);
  }

  private async segment(points: readonly Point[], target: Item | null): Promise<void> {
    const { doc, look } = this.store.state;
    if (!doc) return;
    const started = performance.now();
    const request = { photo: doc.photo.id, points: [...points], ...LOOKS[look], trace: true };
    const result = await this.ask(doc, request, points.at(-1)!);
    if (!result) return;
    const roundTrip = performance.now() - started;
    if (!doc.graph?.length) doc.graph = null;
    doc.clicks.push({ macs: result.macs, full: result.full_macs });
    const masks = result.masks.filter((mask) => mask.area > 0);
    if (!masks.length) {
      this.store.set({});
      note("Nothing found here. Click in the middle of a thing.");
      say("Nothing found here.");
      return;
    }
    const found = { points, masks, chosen: 0, complete: false, look, result, roundTrip };
    this.take(doc, target ?? this.again(masks[0]!), found);
  }

  private again(mask: Item["masks"][number]): Item | null {
    return this.store.visible.find((item) => iou(maskOf(item).rle, mask.rle) >= SAME) ?? null;
  }

  private take(
    doc: Doc,
    target: Item | null,
    found: Omit<Item, "id" | "name" | "colour" | "visible">,
  ): void {
    const { items } = this.store.layers;
    const known = target && items.some((item) => item.id === target.id);
    if (known) {
      const changed = items.map((item) => (item.id === target.id ? { ...item, ...found, visible: true } : item));
      this.store.push({ items: changed, selected: target.id });
    } else {
      const id = ++doc.count;
      const colour = COLOURS[(id - 1) % COLOURS.length]!;
      const item: Item = { id, name: `Object ${id}`, colour, visible: true, ...found };
      this.store.push({ items: [...items, item], selected: id });
    }
    const item = this.store.selected!;
    const mask = maskOf(item);
    say(
      `${item.name}: score ${mask.score.toFixed(2)}, level P${mask.level}, ` +
        `${duration(item.result.timing_ms.predict)}, ${percent(item.result.macs / item.result.full_macs)} of the network`,
    );
  }

  /** Sends a segmentation; a newer one cancels it. Null where there is no answer to show. */
  private async ask(doc: Doc, request: SegmentRequest, pending: Point | null): Promise<Segmentation | null> {
    this.current?.abort();
    const control = new AbortController();
    this.current = control;
    this.store.set({ pending });
    try {
      const result = await this.patient(doc, request, control.signal);
      return control.signal.aborted || this.store.state.doc !== doc ? null : result;
    } catch (error) {
      if (this.current === control) report(error);
      return null;
    } finally {
      if (this.current === control) {
        this.current = null;
        this.store.set({ pending: null });
      }
    }
  }

  /** Waits where the server is busy, and brings a photo back that a restarted server does not know. */
  private async patient(doc: Doc, request: SegmentRequest, signal: AbortSignal): Promise<Segmentation> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await this.api.segment({ ...request, photo: doc.photo.id }, signal);
      } catch (error) {
        if (!(error instanceof ApiError) || attempt >= BUSY_TRIES) throw error;
        if (error.code === "not_found" && doc.source) {
          await this.restore(doc, signal);
        } else if (error.code === "busy") await pause((error.retryAfter ?? 1) * 1000, signal);
        else throw error;
      }
    }
  }

  cancel(): boolean {
    if (!this.current) return false;
    this.current.abort();
    this.current = null;
    this.store.set({ pending: null });
    return true;
  }

  /** The next of the masks that the levels propose for the selected object; asks for them at the first call. */
  async cycle(): Promise<void> {
    const { doc } = this.store.state;
    const item = this.store.selected;
    if (!doc || !item || this.store.state.pending) return;
    if (!item.complete) {
      const point = item.points.at(-1)!;
      const request = { photo: doc.photo.id, points: [...item.points], ...LOOKS[item.look], alternatives: true };
      const result = await this.ask(doc, request, point);
      if (!result || !this.store.layers.items.includes(item)) return;
      const shown = maskOf(item);
      const others = result.masks.filter((mask) => mask.area > 0 && iou(mask.rle, shown.rle) < 0.999);
      this.store.change(item.id, { masks: [shown, ...others], chosen: 0, complete: true }, false);
      if (!others.length) note("The other levels propose nothing else here.");
    }
    const now = this.store.selected!;
    if (now.masks.length > 1) this.choose(now, (now.chosen + 1) % now.masks.length);
  }

  choose(item: Item, chosen: number): void {
    if (chosen === item.chosen) return;
    this.store.change(item.id, { chosen });
    const mask = item.masks[chosen]!;
    say(`Mask ${chosen + 1} of ${item.masks.length}: score ${mask.score.toFixed(2)}, level P${mask.level}`);
  }

  async loadGraph(doc: Doc): Promise<void> {
    if (doc.graph) return;
    doc.graph = [];
    try {
      doc.graph = await this.api.graph(doc.photo.id);
    } catch (error) {
      report(error); // the next click asks again
      return;
    }
    this.store.set({});
  }

  /** Computes this click anew, and the whole network beside it. */
  async compare(item: Item): Promise<void> {
    const { doc } = this.store.state;
    if (!doc || this.store.state.comparison?.result === "running") return;
    this.store.set({ comparison: { of: item.result, result: "running" } });
    const request = { photo: doc.photo.id, points: [...item.points], ...LOOKS[item.look], forget: true, full: true };
    const result = await this.ask(doc, request, null);
    if (!result?.full) {
      this.store.set({ comparison: null });
      return;
    }
    const { ms, max_error, max_logit } = result.full;
    const compared = { clickMs: result.timing_ms.predict, fullMs: ms, maxError: max_error, maxLogit: max_logit };
    this.store.set({ comparison: { of: item.result, result: compared } });
    say(`Click ${duration(compared.clickMs)}, full network ${duration(ms)}`);
  }

  /** Tries clicks all over the photo in the background: which of them give the same object? */
  async mapTolerance(item: Item): Promise<void> {
    const { doc } = this.store.state;
    if (!doc) return;
    await this.cancelTolerance();
    try {
      const of = maskOf(item).rle;
      const job = await this.api.startTolerance(doc.photo.id, of, TOLERANCE_CLICKS);
      this.store.set({ tolerance: { of, job, done: 0, total: 0, result: null }, showTolerance: true });
      await this.follow(job);
    } catch (error) {
      this.store.set({ tolerance: null });
      report(error);
    }
  }

  private async follow(job: string): Promise<void> {
    for (;;) {
      await pause(POLL_MS);
      const { tolerance } = this.store.state;
      if (tolerance?.job !== job) return;
      let state;
      try {
        state = await this.api.job(job);
      } catch (error) {
        if (error instanceof ApiError && error.code === UNREACHABLE) continue;
        throw error;
      }
      if (this.store.state.tolerance?.job !== job) return;
      if (state.state === "done" && state.result) {
        this.store.set({ tolerance: { ...tolerance, ...progress(state), result: state.result } });
        say(`${percent(state.result.share)} of the clicks tried give this object.`);
        return;
      }
      if (state.state === "cancelled") {
        this.store.set({ tolerance: null });
        return;
      }
      if (state.state === "failed") {
        const failure = typeof state.error === "string" ? { message: state.error } : state.error;
        throw new ApiError("failed", failure?.message ?? "The map could not be computed.", failure?.hint ?? "", 500);
      }
      this.store.set({ tolerance: { ...tolerance, ...progress(state) } });
    }
  }

  async cancelTolerance(): Promise<void> {
    const { tolerance } = this.store.state;
    if (!tolerance) return;
    this.store.set({ tolerance: null });
    if (tolerance.result) return;
    try {
      await this.api.cancelJob(tolerance.job);
    } catch (error) {
      if (!(error instanceof ApiError && error.code === "not_found")) report(error);
    }
  }

  /** Another photo is shown: what was asked about the last one no longer matters. */
  leave(): void {
    this.cancel();
    void this.cancelTolerance();
    this.store.set({ comparison: null, adding: false });
  }
}

function progress({ done, total }: { done: number; total: number }): { done: number; total: number } {
  return { done, total };
}

function pause(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = (): void => {
      clearTimeout(timer);
      reject(signal!.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

