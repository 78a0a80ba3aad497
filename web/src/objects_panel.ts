// The panel of objects: the selected one and its answer, the alternatives, all layers, the backdrop, exports.

import { meter, segments, select } from "./controls";
import { h, icon, setIcon, type IconName } from "./dom";
import { copy, download, json, picture, type JsonKind, type PictureKind, type Product } from "./exports";
import { count, duration, percent } from "./format";
import { thumbnail } from "./masks";
import { note, warn } from "./notify";
import type { Session } from "./session";
import { maskOf, type Backdrop, type Doc, type Item, type Layers, type Store } from "./state";
import type { Rle } from "./types";

const PICTURES: [PictureKind, string, string][] = [
  ["cutout", "Cut-out", "PNG, transparent"],
  ["blur", "Blurred background", "PNG"],
  ["overlay", "Overlay", "PNG, photo and mask"],
  ["mask", "Mask", "PNG, black and white"],
];
const ANNOTATIONS: [JsonKind, string, string][] = [
  ["rle", "Run lengths", "JSON, COCO RLE"],
  ["polygons", "Polygons", "JSON, COCO"],
];

export class ObjectsPanel {
  private drawn: { doc: Doc | null; layers: Layers } | null = null;
  private readonly body = h("div", { class: "sections" });
  private readonly empty = h(
    "div",
    { class: "empty" },
    h("p", { class: "lead" }, "Click a thing in the photo."),
    h("p", {}, "Its mask appears as a layer. Shift-click adds a point to it; A shows what the other levels see."),
  );
  private readonly answer = h("section", { class: "answer", "aria-label": "Selected object" });
  private readonly list = h("ul", { class: "layers", "aria-label": "Objects" });
  private readonly backdrops: HTMLElement;
  private readonly blurRow: HTMLElement;
  private readonly rows = new Map<number, Row>();
  private rowsOf: Doc | null = null;
  private all = false;

  constructor(
    root: HTMLElement,
    private readonly store: Store,
    private readonly session: Session,
  ) {
    this.backdrops = segments<Backdrop>(
      "Background",
      [
        ["photo", "Photo"],
        ["cutout", "Cut out"],
        ["blur", "Blur"],
      ],
      "photo",
      (backdrop) => this.store.set({ backdrop }),
    );
    const strength = h("input", { type: "range", min: 2, max: 6, step: 1, value: 4, id: "blur" });
    strength.addEventListener("input", () => this.store.set({ blur: Number(strength.value) }));
    this.blurRow = h("div", { class: "row blur" }, h("label", { for: "blur" }, "Strength"), strength);
    this.body.append(
      this.answer,
      h("section", {}, h("h2", {}, "Objects"), this.list),
      h("section", {}, h("h2", {}, "Background"), this.backdrops, this.blurRow),
      this.exports(),
    );
    root.append(this.empty, this.body);
    store.subscribe(() => this.render());
    this.render();
  }

  /** Opens the name of the selected object for typing. */
  rename(): void {
    const name = this.list.querySelector<HTMLInputElement>('[aria-current="true"] input');
    name?.focus();
    name?.select();
  }

  private render(): void {
    const { state, layers } = this.store;
    const some = layers.items.length > 0;
    this.empty.hidden = some;
    this.body.hidden = !some;
    select(this.backdrops, state.backdrop);
    this.blurRow.hidden = state.backdrop !== "blur";
    if (this.drawn?.doc === state.doc && this.drawn.layers === layers) return;
    this.drawn = { doc: state.doc, layers };
    this.renderAnswer(state.doc);
    this.renderList(state.doc, layers);
  }

  private renderAnswer(doc: Doc | null): void {
    const item = this.store.selected;
    this.answer.hidden = !item || !doc;
    if (!item || !doc) return;
    const mask = maskOf(item);
    const { timing_ms, macs, full_macs } = item.result;
    const [x0, y0, x1, y1] = mask.box;
    const server = timing_ms.queue + timing_ms.set_image + timing_ms.capture + timing_ms.predict;
    const facts: [string, string, string][] = [
      ["Score", mask.score.toFixed(2), "how sure the network is"],
      ["Level", `P${mask.level}`, "the pyramid level that answered"],
      ["Box", `${Math.round(x1 - x0)}×${Math.round(y1 - y0)}`, "width and height in pixels"],
      ["Mask", percent(mask.area / (doc.photo.width * doc.photo.height)), "share of the photo"],
      ["Network", duration(timing_ms.predict), `${duration(server)} on the server with waiting and preparation`],
      ["Round trip", duration(item.roundTrip), "from click to answer"],
    ];
    const share = macs / full_macs;
    this.answer.replaceChildren(
      h(
        "dl",
        { class: "facts" },
        ...facts.map(([name, value, title]) => h("div", { title }, h("dt", {}, name), h("dd", {}, value))),
      ),
      h(
        "div",
        { class: "cost", title: `${count(macs)} of ${count(full_macs)} multiply-adds` },
        meter(share, "Share of the network computed"),
        h("p", {}, h("strong", {}, percent(share)), " of the network computed for this click"),
      ),
      this.alternatives(doc, item),
    );
  }

  private alternatives(doc: Doc, item: Item): HTMLElement {
    const button = h(
      "button",
      { class: "button", id: "cycle", title: "What the other pyramid levels see (A)" },
      icon("cycle"),
      item.complete ? "Next mask" : "Other masks",
      h("kbd", {}, "A"),
    );
    button.addEventListener("click", () => void this.session.cycle());
    if (item.complete && item.masks.length < 2) button.disabled = true;
    const row = h("div", { class: "alternatives" }, button);
    if (item.complete && item.masks.length > 1) {
      const choices = item.masks.map((mask, index) => {
        const label = `Mask ${index + 1}, level P${mask.level}, score ${mask.score.toFixed(2)}`;
        const choice = h(
          "button",
          { class: "choice", "aria-label": label, "aria-pressed": String(index === item.chosen), title: label },
          cut(doc, mask.rle, 48),
          h("span", {}, `P${mask.level}`),
        );
        choice.addEventListener("click", () => this.session.choose(item, index));
        return choice;
      });
      row.append(h("div", { class: "choices" }, ...choices));
    }
    return row;
  }

  /** Rows stay the same elements, so that a name being typed survives an answer that comes in. */
  private renderList(doc: Doc | null, layers: Layers): void {
    if (this.rowsOf !== doc) this.rows.clear();
    this.rowsOf = doc;
    const wanted = new Map(layers.items.map((item) => [item.id, item]));
    for (const id of this.rows.keys()) if (!wanted.has(id)) this.rows.delete(id);
    const elements = [...layers.items].reverse().map((item) => {
      const row = this.rows.get(item.id) ?? new Row(item.id, this.store);
      this.rows.set(item.id, row);
      row.show(doc!, item, item.id === layers.selected);
      return row.element;
    });
    if (elements.some((element, i) => this.list.children[i] !== element) || this.list.children.length !== elements.length) {
      this.list.replaceChildren(...elements);
    }
  }

  private exports(): HTMLElement {
    const rows = [
      ...PICTURES.map(([kind, name, what]) =>
        this.exportRow(kind, name, what, (doc, items) => picture(kind, doc, items, this.store.state.blur)),
      ),
      ...ANNOTATIONS.map(([kind, name, what]) =>
        this.exportRow(kind, name, what, (doc, items) => Promise.resolve(json(kind, doc, items))),
      ),
    ];
    const scope = segments<"one" | "all">(
      "What to export",
      [
        ["one", "Selected"],
        ["all", "All visible"],
      ],
      "one",
      (chosen) => {
        this.all = chosen === "all";
        select(scope, chosen);
      },
    );
    return h("section", {}, h("h2", {}, "Export"), scope, h("ul", { class: "exports" }, ...rows));
  }

  private exportRow(
    kind: string,
    name: string,
    what: string,
    make: (doc: Doc, items: readonly Item[]) => Promise<Product>,
  ): HTMLElement {
    const product = (): Promise<Product> | null => {
      const { doc } = this.store.state;
      const { selected } = this.store;
      const items = this.all ? this.store.visible : selected ? [selected] : [];
      if (doc && items.length) return make(doc, items);
      note(this.all ? "No object is visible." : "Select an object first.");
      return null;
    };
    const save = iconButton("download", `Download ${name}`);
    save.dataset["export"] = kind;
    save.addEventListener("click", () => void product()?.then(download).catch(failed));
    const clip = iconButton("copy", `Copy ${name}`);
    clip.dataset["copy"] = kind;
    clip.addEventListener("click", () => {
      const made = product();
      if (made) copy(made).then(() => note(`${name} copied.`)).catch(failed);
    });
    return h("li", {}, h("div", { class: "named" }, name, h("span", {}, what)), clip, save);
  }
}

/** One object in the list. */
class Row {
  readonly element: HTMLElement;
  private readonly picture = h("canvas", { class: "cut", "aria-hidden": "true" });
  private readonly pick = h("button", { class: "pick" }, this.picture);
  private readonly name = h("input", { type: "text", maxlength: 60, spellcheck: "false", autocomplete: "off" });
  private readonly facts = h("span", {});
  private readonly see = iconButton("eye", "Hide");
  private readonly remove = iconButton("trash", "Delete");
  private item: Item | null = null;

  constructor(
    id: number,
    private readonly store: Store,
  ) {
    this.element = h(
      "li",
      { class: "layer" },
      this.pick,
      h("div", { class: "named" }, this.name, this.facts),
      this.see,
      this.remove,
    );
    this.pick.addEventListener("click", () => store.select(id));
    this.see.addEventListener("click", () => store.change(id, { visible: !this.item!.visible }));
    this.remove.addEventListener("click", () => store.remove(id));
    this.name.addEventListener("focus", () => store.select(id));
    this.name.addEventListener("change", () => this.rename());
    this.name.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.name.value = this.item!.name;
      if (event.key === "Enter" || event.key === "Escape") this.name.blur();
    });
  }

  show(doc: Doc, item: Item, selected: boolean): void {
    const mask = maskOf(item);
    if (!this.item || maskOf(this.item) !== mask) thumbnail(this.picture, doc.bitmap, mask.rle, 40);
    if (document.activeElement !== this.name) this.name.value = item.name;
    this.item = item;
    this.element.className = item.visible ? "layer" : "layer off";
    this.element.setAttribute("aria-current", String(selected));
    this.element.style.setProperty("--colour", item.colour);
    this.pick.setAttribute("aria-pressed", String(selected));
    this.facts.textContent = `${mask.score.toFixed(2)} · P${mask.level}`;
    setIcon(this.see, item.visible ? "eye" : "hidden");
    label(this.pick, `Select ${item.name}`);
    label(this.name, `Name of ${item.name}`);
    label(this.see, `${item.visible ? "Hide" : "Show"} ${item.name}`);
    label(this.remove, `Delete ${item.name}`);
  }

  private rename(): void {
    const text = this.name.value.trim();
    if (text && text !== this.item!.name) this.store.change(this.item!.id, { name: text });
    else this.name.value = this.item!.name;
  }
}

function label(element: HTMLElement, text: string): void {
  element.setAttribute("aria-label", text);
  element.title = text;
}

function failed(error: unknown): void {
  warn("That did not work.", error instanceof Error ? error.message : String(error));
}

function cut(doc: Doc, rle: Rle, size: number): HTMLCanvasElement {
  const canvas = h("canvas", { class: "cut", "aria-hidden": "true" });
  thumbnail(canvas, doc.bitmap, rle, size);
  return canvas;
}

function iconButton(name: IconName, label: string): HTMLButtonElement {
  return h("button", { class: "icon-button", "aria-label": label, title: label }, icon(name));
}
