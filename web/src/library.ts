// Photos: the strip of thumbnails, opening files (picker, drop, paste), and switching between photos.

import { ApiError, type Api } from "./api";
import { byId, h, icon } from "./dom";
import { bytes } from "./format";
import { note, report, warn } from "./notify";
import type { Session } from "./session";
import { newDoc, type Doc, type Store } from "./state";
import type { Photo } from "./types";

const THUMBNAIL = 160;

export class Library {
  private readonly docs = new Map<string, Doc>();
  private readonly sources = new Map<string, Blob>();
  private readonly strip = byId("strip");
  private readonly picker = byId<HTMLInputElement>("file");
  private shownPhotos: readonly Photo[] | null = null;
  private wanted = 0;

  constructor(
    private readonly api: Api,
    private readonly store: Store,
    private readonly session: Session,
  ) {
    this.picker.addEventListener("change", () => {
      void this.take([...(this.picker.files ?? [])]);
      this.picker.value = "";
    });
    byId("open").addEventListener("click", () => this.pick());
    this.listenForDrops();
    document.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (files.length) void this.take(files);
    });
    session.restore = (doc, signal) => this.restore(doc, signal);
    store.subscribe(() => this.render());
  }

  pick(): void {
    this.picker.click();
  }

  async refresh(): Promise<void> {
    this.store.set({ photos: await this.api.photos() });
  }

  /** Uploads files; the last one is shown. */
  async take(files: File[]): Promise<void> {
    let last: Photo | null = null;
    for (const file of files) last = (await this.upload(file, file.name)) ?? last;
    if (last) await this.show(last);
  }

  async upload(file: Blob, name: string): Promise<Photo | null> {
    const limit = this.store.state.info?.limits.max_bytes;
    if (!file.size) {
      warn(`${name} is empty.`, "Pick another file.");
      return null;
    }
    if (limit && file.size > limit) {
      warn(`${name} has ${bytes(file.size)}; at most ${bytes(limit)} are allowed.`, "Save it smaller and try again.");
      return null;
    }
    this.store.set({ loading: `Opening ${name}` });
    try {
      const photo = await this.api.upload(file, name);
      this.sources.set(photo.id, file);
      this.store.set({ photos: [...this.store.state.photos.filter((other) => other.id !== photo.id), photo] });
      return photo;
    } catch (error) {
      report(error);
      return null;
    } finally {
      this.store.set({ loading: null });
    }
  }

  async show(photo: Photo): Promise<void> {
    const turn = ++this.wanted;
    if (this.store.state.doc?.photo.id === photo.id && this.store.state.camera === "off") return;
    let doc = this.docs.get(photo.id);
    if (!doc) {
      this.store.set({ loading: `Opening ${photo.name}` });
      try {
        const bitmap = await createImageBitmap(await this.api.file(photo.id));
        doc = newDoc(photo, bitmap, this.sources.get(photo.id) ?? null);
        this.docs.set(photo.id, doc);
      } catch (error) {
        if (error instanceof ApiError) report(error);
        else warn(`The browser cannot show ${photo.name}.`, "Save it as JPEG or PNG and open it again.");
        if (error instanceof ApiError && error.code === "not_found") await this.refresh().catch(report);
        return;
      } finally {
        if (turn === this.wanted) this.store.set({ loading: null });
      }
    }
    if (turn !== this.wanted) return;
    this.session.leave();
    this.store.set({ doc, camera: "off" });
    // The address leads back to photos that are there for everyone.
    const hash = photo.source === "upload" ? "" : `#${encodeURIComponent(photo.id)}`;
    history.replaceState(null, "", `${location.pathname}${hash}`);
  }

  /** Forgets an upload, here and on the server. */
  async remove(photo: Photo): Promise<void> {
    const photos = this.store.state.photos.filter((other) => other.id !== photo.id);
    this.docs.delete(photo.id);
    this.sources.delete(photo.id);
    this.store.set({ photos });
    if (this.store.state.doc?.photo.id === photo.id && this.store.state.camera === "off") {
      this.session.leave();
      this.store.set({ doc: null });
      if (photos[0]) await this.show(photos[0]);
    }
    try {
      await this.api.remove(photo.id);
    } catch (error) {
      if (!(error instanceof ApiError && error.code === "not_found")) report(error);
    }
  }

  private async restore(doc: Doc, signal: AbortSignal): Promise<void> {
    const { photo, source } = doc;
    if (!source) return;
    const { id } = await this.api.upload(source, photo.name, signal);
    this.docs.delete(photo.id);
    this.docs.set(id, doc);
    this.sources.set(id, source);
    photo.id = id;
    await this.refresh();
  }

  step(by: number): void {
    const { photos, doc } = this.store.state;
    const at = photos.findIndex((photo) => photo.id === doc?.photo.id);
    const next = photos[(at + by + photos.length) % photos.length];
    if (next) void this.show(next);
  }

  private render(): void {
    const { photos, doc, camera } = this.store.state;
    if (photos !== this.shownPhotos) {
      this.shownPhotos = photos;
      const focused = document.activeElement instanceof HTMLElement ? document.activeElement.dataset["photo"] : null;
      this.strip.replaceChildren(...photos.map((photo) => this.tile(photo)));
      if (focused) this.strip.querySelector<HTMLElement>(`[data-photo="${CSS.escape(focused)}"]`)?.focus();
    }
    for (const button of this.strip.querySelectorAll<HTMLElement>(".tile")) {
      const current = camera === "off" && button.dataset["photo"] === doc?.photo.id;
      if (current === (button.getAttribute("aria-current") === "true")) continue;
      button.setAttribute("aria-current", String(current));
      if (current) button.scrollIntoView({ block: "nearest", inline: "nearest" });
    }
  }

  private tile(photo: Photo): HTMLElement {
    const image = h("img", {
      src: this.api.fileUrl(photo.id, THUMBNAIL),
      alt: "",
      loading: "lazy",
      decoding: "async",
      draggable: "false",
    });
    const button = h(
      "button",
      { class: "tile", "data-photo": photo.id, "aria-current": "false", "aria-label": photo.name, title: photo.name },
      image,
    );
    button.addEventListener("click", () => void this.show(photo));
    if (photo.source !== "upload") return h("li", {}, button);
    const label = `Remove ${photo.name}`;
    const remove = h("button", { class: "remove", "aria-label": label, title: label }, icon("close"));
    remove.addEventListener("click", () => void this.remove(photo));
    return h("li", {}, button, remove);
  }

  private listenForDrops(): void {
    const veil = byId("drop");
    let depth = 0;
    const carriesFiles = (event: DragEvent): boolean => !!event.dataTransfer?.types.includes("Files");
    document.addEventListener("dragenter", (event) => {
      if (!carriesFiles(event)) return;
      depth++;
      veil.hidden = false;
    });
    document.addEventListener("dragleave", () => {
      depth = Math.max(0, depth - 1);
      if (!depth) veil.hidden = true;
    });
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      depth = 0;
      veil.hidden = true;
      const files = [...(event.dataTransfer?.files ?? [])];
      if (files.length) void this.take(files);
      else if (event.dataTransfer?.types.length) note("Drop an image file.");
    });
  }
}
