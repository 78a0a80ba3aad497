// The camera as a live viewfinder: a tap freezes the frame and segments what was tapped.

import { byId } from "./dom";
import { clamp, fit } from "./geometry";
import type { Library } from "./library";
import { say, warn } from "./notify";
import type { Session } from "./session";
import type { Store } from "./state";
import type { Photo, Point } from "./types";

export class Camera {
  private readonly video = byId<HTMLVideoElement>("video");
  private stream: MediaStream | null = null;
  private facing: "environment" | "user" = "environment";
  private frozen: Photo | null = null;
  /** What was shown before the camera. */
  private before: Photo | null = null;

  constructor(
    private readonly store: Store,
    private readonly library: Library,
    private readonly session: Session,
  ) {
    this.video.addEventListener("click", (event) => {
      const box = this.video.getBoundingClientRect();
      void this.freeze([event.clientX - box.left, event.clientY - box.top]);
    });
    byId("resume").addEventListener("click", () => void this.resume());
    byId("keep").addEventListener("click", () => this.keep());
    byId("flip").addEventListener("click", () => void this.flip());
    byId("leave").addEventListener("click", () => void this.leave());
    store.subscribe(() => {
      // A photo was picked from the strip.
      if (this.store.state.camera !== "off") return;
      this.frozen = null;
      if (this.stream) this.stop();
    });
  }

  toggle(): Promise<void> {
    return this.store.state.camera === "off" ? this.start() : this.leave();
  }

  async start(): Promise<void> {
    if (!navigator.mediaDevices?.getUserMedia) {
      warn("The browser gives cameras to secure pages only.", "Open this page by https, or on the machine itself by 127.0.0.1.");
      return;
    }
    this.session.cancel();
    if (this.store.state.camera === "off") this.before = this.store.state.doc?.photo ?? null;
    this.store.set({ camera: "starting" });
    try {
      const wanted = { facingMode: this.facing, width: { ideal: 1280 }, height: { ideal: 960 } };
      this.stream = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
      this.video.srcObject = this.stream;
      await this.video.play();
      const devices = await navigator.mediaDevices.enumerateDevices();
      byId("flip").hidden = devices.filter((device) => device.kind === "videoinput").length < 2;
      this.store.set({ camera: "live" });
      say("The camera is on. Tap a thing.");
    } catch (error) {
      this.stop();
      this.store.set({ camera: "off" });
      warn(...explain(error));
    }
  }

  /** Keeps the frame that was tapped, and clicks where the tap was; without a point, in the middle. */
  async freeze(at?: Point): Promise<void> {
    const { videoWidth: width, videoHeight: height } = this.video;
    if (this.store.state.camera !== "live" || !width) return;
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width, height });
    canvas.getContext("2d")!.drawImage(this.video, 0, 0);
    this.video.pause();
    this.store.set({ camera: "frozen" });
    const room = this.video.getBoundingClientRect();
    const view = fit({ width, height }, room);
    const [x, y] = at ?? [room.width / 2, room.height / 2];
    const point: Point = [
      clamp(Math.round((x - view.x) / view.scale), 0, width - 1),
      clamp(Math.round((y - view.y) / view.scale), 0, height - 1),
    ];
    const blob = await new Promise<Blob | null>((done) => canvas.toBlob(done, "image/jpeg", 0.92));
    const photo = blob && (await this.library.upload(blob, `Camera ${new Date().toLocaleTimeString()}`));
    if (!photo) return this.resume();
    await this.library.show(photo);
    this.stop();
    this.frozen = photo;
    this.store.set({ camera: "frozen" });
    await this.session.click(point, false);
  }

  /** Back to the live picture; a frame that was not kept is forgotten. */
  async resume(): Promise<void> {
    const { frozen } = this;
    this.frozen = null;
    await this.start();
    if (frozen) await this.library.remove(frozen);
  }

  keep(): void {
    this.frozen = null;
    this.stop();
    this.store.set({ camera: "off" });
  }

  async leave(): Promise<void> {
    const { frozen } = this;
    this.frozen = null;
    this.stop();
    this.store.set({ camera: "off" });
    if (frozen) await this.library.remove(frozen);
    const { doc, photos } = this.store.state;
    const back = this.before ?? photos[0];
    if (back && !photos.some((photo) => photo.id === doc?.photo.id)) await this.library.show(back);
  }

  private async flip(): Promise<void> {
    this.facing = this.facing === "user" ? "environment" : "user";
    this.stop();
    await this.start();
  }

  private stop(): void {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = null;
    this.video.srcObject = null;
  }
}

function explain(error: unknown): [string, string] {
  const name = error instanceof DOMException ? error.name : "";
  if (name === "NotAllowedError") return ["The camera is not allowed.", "Allow it for this page in the browser's settings."];
  if (name === "NotFoundError") return ["There is no camera here.", "Open or drop a photo instead."];
  if (name === "NotReadableError") return ["Another program uses the camera.", "Close it and try again."];
  return ["The camera did not start.", error instanceof Error ? error.message : ""];
}
