// The panel of receptive fields: what the last click on the selected object needed of the network, layer by layer.

import { meter, segments, select } from "./controls";
import { calm, h, icon, setIcon } from "./dom";
import { count, duration, percent } from "./format";
import { GraphView } from "./graph_view";
import { Planes } from "./planes";
import type { Session } from "./session";
import { ramp } from "./stage";
import { layerIndex, maskOf, type Item, type Look, type State, type Store } from "./state";
import type { StageCost, Trace, TraceLayer } from "./types";

const PLAY_MS = 650;
const LOOKS: [Look, string][] = [
  ["all", "P3 to P7"],
  ["near", "P3 to P5"],
  ["scales", "Scales"],
];

export class NetworkPanel {
  private readonly empty = h(
    "div",
    { class: "empty" },
    h("p", { class: "lead" }, "Click a thing in the photo."),
    h("p", {}, "Here you see which window of every layer its mask needs; everything else is never computed."),
  );
  private readonly body = h("div", { class: "sections" });
  private readonly headline = h("section", { class: "headline", "aria-label": "Cost of this click" });
  private readonly slider = h("input", { type: "range", min: 0, step: 1, id: "layer", "aria-label": "Layer" });
  private readonly layerName = h("output", { class: "layer-name", for: "layer" });
  private readonly layerFacts = h("p", { class: "layer-facts" });
  private readonly play = h("button", { class: "icon-button", "aria-label": "Play through the layers" }, icon("play"));
  private readonly onlyNew = h("input", { type: "checkbox", id: "only-new", role: "switch" });
  private readonly stages = h("ul", { class: "stages", "aria-label": "Multiply-adds by stage" });
  private readonly nodeText = h("p", { class: "node-text" }, "");
  private readonly compared = h("div", { class: "compared", "aria-live": "polite" });
  private readonly mapped = h("div", { class: "mapped" });
  private readonly planes: Planes;
  private readonly graph: GraphView;
  private readonly graphCanvas = h("canvas", { class: "graph", role: "img", "aria-label": "Graph of the network" });
  private readonly looks: HTMLElement;
  private timer = 0;
  private shown: { trace: Trace; clicks: number } | null = null;
  private drawnState: unknown[] = [];

  constructor(
    root: HTMLElement,
    private readonly store: Store,
    private readonly session: Session,
  ) {
    const planesCanvas = h("canvas", { class: "planes", "aria-hidden": "true" });
    this.planes = new Planes(planesCanvas, (index) => this.pick(index));
    this.graph = new GraphView(this.graphCanvas, (text) => (this.nodeText.textContent = text));
    this.slider.addEventListener("input", () => this.pick(Number(this.slider.value)));
    this.play.addEventListener("click", () => (this.timer ? this.stop() : this.start()));
    this.onlyNew.addEventListener("change", () => store.set({ onlyNew: this.onlyNew.checked }));
    this.looks = segments<Look>("What a click asks", LOOKS, "all", (look) => void this.session.lookAgain(look));
    this.body.append(
      this.headline,
      h(
        "section",
        { class: "fields" },
        h("h2", {}, "Windows"),
        planesCanvas,
        h("div", { class: "row" }, this.play, this.slider),
        h("div", { class: "layer-line" }, this.layerName, this.layerFacts),
        h(
          "label",
          { class: "switch", for: "only-new" },
          this.onlyNew,
          h("span", { class: "track" }),
          "Only what this click computed",
        ),
        legend(),
      ),
      h("section", {}, h("h2", {}, "What a click asks"), this.looks),
      h("section", {}, h("h2", {}, "Multiply-adds by stage"), this.stages),
      h("section", {}, h("h2", {}, "Graph"), this.graphCanvas, this.nodeText),
      h("section", {}, h("h2", {}, "Against the full network"), this.compared),
      h("section", {}, h("h2", {}, "Click tolerance"), this.mapped),
    );
    root.append(this.empty, this.body);
    store.subscribe(() => this.render());
    this.render();
  }

  /** Steps through the layers. */
  step(by: number): void {
    const layers = this.store.selected?.result.trace?.layers;
    if (!layers) return;
    this.pick(Math.min(Math.max(layerIndex(layers, this.store.state.layer) + by, 0), layers.length - 1));
  }

  private pick(index: number): void {
    this.stop();
    this.show(index);
  }

  private show(index: number): void {
    const layer = this.store.selected?.result.trace?.layers[index];
    if (layer) this.store.set({ layer: layer.name, showTolerance: false });
  }

  private start(): void {
    const advance = (): void => {
      const layers = this.store.selected?.result.trace?.layers;
      if (!layers || this.store.state.tab !== "network") return this.stop();
      const next = (layerIndex(layers, this.store.state.layer) + 1) % layers.length;
      this.show(next);
      if (next === layers.length - 1) this.stop();
    };
    setIcon(this.play, "pause");
    this.play.setAttribute("aria-label", "Pause");
    this.timer = window.setInterval(advance, calm() ? 2 * PLAY_MS : PLAY_MS);
    advance();
  }

  private stop(): void {
    clearInterval(this.timer);
    this.timer = 0;
    setIcon(this.play, "play");
    this.play.setAttribute("aria-label", "Play through the layers");
  }

  private render(): void {
    const { state } = this.store;
    const item = this.store.selected;
    const trace = item?.result.trace;
    this.empty.hidden = !!trace;
    this.body.hidden = !trace;
    if (!item || !trace || state.tab !== "network" || !state.doc) {
      if (state.tab !== "network" && this.timer) this.stop();
      return;
    }
    void this.session.loadGraph(state.doc);
    const now = [item, state.layer, state.onlyNew, state.doc.graph, state.doc.clicks.length];
    if (now.some((value, i) => value !== this.drawnState[i])) {
      this.drawnState = now;
      this.renderTrace(state, item, trace);
    }
    select(this.looks, state.look);
    this.renderComparison(state, item);
    this.renderTolerance(state, item);
  }

  private renderTrace(state: State, item: Item, trace: Trace): void {
    const doc = state.doc!;
    if (this.shown?.trace !== trace || this.shown.clicks !== doc.clicks.length) {
      this.shown = { trace, clicks: doc.clicks.length };
      this.renderHeadline(state, item);
      this.renderStages(trace.stages);
    }
    const at = layerIndex(trace.layers, state.layer);
    const layer = trace.layers[at];
    this.slider.max = String(trace.layers.length - 1);
    this.slider.value = String(at);
    if (layer) this.renderLayer(layer);
    const { photo, bitmap } = doc;
    this.planes.draw({ layers: trace.layers, photo, bitmap, selected: at, onlyNew: state.onlyNew });
    if (doc.graph?.length) {
      this.graph.draw(doc.graph, trace, state.onlyNew);
      this.graphCanvas.setAttribute(
        "aria-label",
        `Graph of ${doc.graph.length} nodes: ${trace.visited.length} needed, ${trace.computed.length} computed anew`,
      );
    }
  }

  private renderHeadline(state: State, item: Item): void {
    const { macs, full_macs, timing_ms } = item.result;
    const clicks = state.doc!.clicks.slice(-16);
    const most = Math.max(...clicks.map((click) => click.macs), 1);
    const bars = clicks.map((click, i) => {
      const bar = h("span", { title: `${count(click.macs)} multiply-adds` });
      bar.style.height = `${Math.max(4, (100 * click.macs) / most)}%`;
      if (i === clicks.length - 1) bar.className = "now";
      return bar;
    });
    this.headline.replaceChildren(
      h(
        "div",
        { class: "figure" },
        h("p", { class: "number" }, percent(macs / full_macs)),
        h("p", {}, `of the network: ${count(macs)} of ${count(full_macs)} multiply-adds in ${duration(timing_ms.predict)}`),
      ),
    );
    if (clicks.length < 2) return;
    const label = "Cost of the clicks on this photo so far";
    this.headline.append(h("div", { class: "clicks", role: "img", "aria-label": label }, ...bars));
  }

  private renderLayer(layer: TraceLayer): void {
    const [y0, y1, x0, x1] = layer.demand;
    const [rows, columns] = layer.plane;
    const share = ((y1 - y0) * (x1 - x0)) / (rows * columns);
    this.layerName.textContent = nameOf(layer);
    const anew = layer.computed.reduce((sum, [a, b, c, d]) => sum + (b - a) * (d - c), 0);
    const wanted = `${y1 - y0} × ${x1 - x0} of ${rows} × ${columns} cells (${percent(share)})`;
    const news = anew ? `${percent(anew / Math.max(1, (y1 - y0) * (x1 - x0)))} of it computed now` : "all of it kept";
    this.layerFacts.textContent = `${wanted}, ${news}`;
    this.slider.setAttribute("aria-valuetext", `${nameOf(layer)}: ${wanted}, ${news}`);
  }

  private renderStages(stages: readonly StageCost[]): void {
    const most = Math.max(1, ...stages.map((stage) => stage.full_macs));
    const rows = stages.map(({ stage, macs, full_macs }) => {
      const full = h("span", { class: "full" });
      const done = h("span", { class: "done" });
      full.style.width = `${(100 * full_macs) / most}%`;
      done.style.width = `${(100 * macs) / most}%`;
      done.hidden = !macs;
      const text = `${count(macs)} of ${count(full_macs)}`;
      return h(
        "li",
        { title: `${stage}: ${text} multiply-adds` },
        h("span", { class: "stage" }, stage),
        h("span", { class: "bar", "aria-hidden": "true" }, full, done),
        h("span", { class: "amount" }, full_macs ? percent(macs / full_macs) : "–"),
        h("span", { class: "sr" }, `: ${text} multiply-adds`),
      );
    });
    this.stages.replaceChildren(...rows);
  }

  private renderComparison(state: State, item: Item): void {
    const comparison = state.comparison?.of === item.result ? state.comparison.result : null;
    const waited = this.compared.querySelector("#compare:disabled") !== null;
    const key = comparison === "running" ? "running" : JSON.stringify(comparison);
    if (this.compared.dataset["key"] === `${item.id}:${key}`) return;
    this.compared.dataset["key"] = `${item.id}:${key}`;
    const button = h(
      "button",
      { class: "button", id: "compare", disabled: comparison === "running" },
      comparison === "running" ? "Computing the whole network …" : "Compare with the full network",
    );
    button.addEventListener("click", () => void this.session.compare(item));
    if (comparison === null || comparison === "running") {
      const text = "Computes this click from nothing, then the whole network: time and largest difference.";
      this.compared.replaceChildren(h("p", {}, text), button);
      return;
    }
    const most = Math.max(comparison.clickMs, comparison.fullMs);
    const bar = (label: string, ms: number, kind: string): HTMLElement => {
      const fill = h("span", { class: kind });
      fill.style.width = `${(100 * ms) / most}%`;
      return h(
        "li",
        {},
        h("span", { class: "stage" }, label),
        h("span", { class: "bar", "aria-hidden": "true" }, fill),
        h("span", { class: "amount" }, duration(ms)),
      );
    };
    const error = comparison.maxError === 0 ? "0" : comparison.maxError.toExponential(1);
    this.compared.replaceChildren(
      h(
        "ul",
        { class: "stages wide" },
        bar("this click", comparison.clickMs, "done"),
        bar("full network", comparison.fullMs, "full"),
      ),
      h(
        "p",
        {},
        h("strong", {}, `${(comparison.fullMs / comparison.clickMs).toFixed(1)} ×`),
        " as fast. Largest difference of a mask value ",
        h("strong", {}, error),
        `, where the largest value is ${comparison.maxLogit.toFixed(1)}.`,
      ),
      button,
    );
    if (waited) this.compared.scrollIntoView({ block: "nearest" });
  }

  private renderTolerance(state: State, item: Item): void {
    const map = state.tolerance?.of === maskOf(item).rle ? state.tolerance : null;
    const key = JSON.stringify([item.id, item.chosen, map?.done, map?.total, !!map?.result, state.showTolerance]);
    if (this.mapped.dataset["key"] === key) return;
    this.mapped.dataset["key"] = key;
    const waited = this.mapped.querySelector("progress") !== null;
    if (!map) {
      const start = h("button", { class: "button", id: "map" }, "Map the clicks");
      start.addEventListener("click", () => void this.session.mapTolerance(item));
      this.mapped.replaceChildren(h("p", {}, "Tries clicks all over the object: which of them give the same mask?"), start);
      return;
    }
    if (!map.result) {
      const bar = h("progress", { max: map.total || 1, "aria-label": "Clicks tried" });
      if (map.total) bar.value = map.done;
      const cancel = h("button", { class: "button", id: "cancel-map" }, "Cancel");
      cancel.addEventListener("click", () => void this.session.cancelTolerance());
      const text = map.total ? `${map.done} of ${map.total} clicks` : "Waiting …";
      const row = h("div", { class: "row" }, bar, cancel);
      // The button stays the same element, so that it keeps the focus while the bar moves.
      const old = this.mapped.querySelector("#cancel-map");
      if (old) {
        this.mapped.querySelector("progress")!.replaceWith(bar);
        this.mapped.querySelector("p")!.textContent = text;
      } else this.mapped.replaceChildren(h("p", {}, text), row);
      return;
    }
    const show = h("input", { type: "checkbox", id: "show-map", role: "switch" });
    show.checked = state.showTolerance;
    show.addEventListener("change", () => this.store.set({ showTolerance: show.checked }));
    const again = h("button", { class: "button", id: "map" }, "Map again");
    again.addEventListener("click", () => void this.session.mapTolerance(item));
    const shades = [0, 0.25, 0.5, 0.75, 1].map((value) => {
      const shade = h("span", {});
      shade.style.background = ramp(value, 1);
      return shade;
    });
    this.mapped.replaceChildren(
      h("p", {}, h("strong", {}, percent(map.result.share)), ` of ${map.result.clicks} clicks give this object (IoU ≥ 0.7).`),
      meter(map.result.share, "Clicks that give this object"),
      h("div", { class: "ramp" }, "another thing", h("span", { class: "shades", "aria-hidden": "true" }, ...shades), "same mask"),
      h("div", { class: "row" }, h("label", { class: "switch", for: "show-map" }, show, h("span", { class: "track" }), "Show"), again),
    );
    if (waited) this.mapped.scrollIntoView({ block: "nearest" });
  }
}

function legend(): HTMLElement {
  const entry = (kind: string, text: string): HTMLElement => h("span", { class: `key ${kind}` }, text);
  return h("p", { class: "legend" }, entry("new", "computed now"), entry("kept", "kept from before"), entry("never", "not needed"));
}

const NAMES: Record<string, string> = {
  image: "Photo",
  "backbone.conv1": "First convolution",
  maskfeat: "Mask features",
  mask_half: "Mask",
};

function nameOf(layer: TraceLayer): string {
  const heads = /^heads(\d)$/.exec(layer.name);
  return NAMES[layer.name] ?? (heads ? `Heads on P${heads[1]}` : layer.name);
}
