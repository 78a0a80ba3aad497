// Puts the page together.

import { Api, ApiError, UNREACHABLE } from "./api";
import { Camera } from "./camera";
import { byId } from "./dom";
import { duration } from "./format";
import { listen } from "./keyboard";
import { Library } from "./library";
import { NetworkPanel } from "./network_panel";
import { banner, report } from "./notify";
import { ObjectsPanel } from "./objects_panel";
import { Session } from "./session";
import { Stage } from "./stage";
import { maskOf, Store, type State, type Tab } from "./state";

const COARSE = window.matchMedia("(pointer: coarse)");

const START: State = {
  info: null,
  photos: [],
  doc: null,
  loading: null,
  pending: null,
  tab: "objects",
  backdrop: "photo",
  blur: 4,
  adding: false,
  look: "all",
  layer: "P3",
  onlyNew: false,
  camera: "off",
  comparison: null,
  tolerance: null,
  showTolerance: false,
};

const api = new Api();
const store = new Store(START);
const session = new Session(api, store);
const stage = new Stage(byId<HTMLCanvasElement>("canvas"), byId("stage"), store, (point, add) => {
  void session.click(point, add || store.state.adding);
});
const library = new Library(api, store, session);
const camera = new Camera(store, library, session);
const objects = new ObjectsPanel(byId("objects"), store, session);
const network = new NetworkPanel(byId("network"), store, session);

function showTab(tab: Tab): void {
  store.set({ tab });
  document.body.classList.remove("collapsed");
}

function help(): void {
  byId<HTMLDialogElement>("help-dialog").showModal();
}

for (const tab of ["objects", "network"] as const) {
  const button = byId(`${tab}-tab`);
  button.addEventListener("click", () => {
    // On a phone the panel is a sheet: the open tab closes it.
    const again = store.state.tab === tab;
    showTab(tab);
    if (again && window.matchMedia("(max-width: 800px)").matches) document.body.classList.toggle("collapsed");
  });
  button.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.preventDefault();
    const other = tab === "objects" ? "network" : "objects";
    showTab(other);
    byId(`${other}-tab`).focus();
  });
}

byId("undo").addEventListener("click", () => store.undo());
byId("redo").addEventListener("click", () => store.redo());
byId("help").addEventListener("click", help);
byId("help-close").addEventListener("click", () => byId<HTMLDialogElement>("help-dialog").close());
byId("help-dialog").addEventListener("click", (event) => {
  if (event.target === event.currentTarget) (event.currentTarget as HTMLDialogElement).close();
});
byId("camera").addEventListener("click", () => void camera.toggle());
byId("fit").addEventListener("click", () => stage.fit());
byId("zoom-in").addEventListener("click", () => stage.zoomBy(1.5));
byId("zoom-out").addEventListener("click", () => stage.zoomBy(1 / 1.5));
byId("add").addEventListener("click", () => store.set({ adding: !store.state.adding }));
byId("next-mask").addEventListener("click", () => void session.cycle());

function render(): void {
  const { state, selected } = store;
  const history = state.doc?.history;
  byId<HTMLButtonElement>("undo").disabled = !history?.canUndo;
  byId<HTMLButtonElement>("redo").disabled = !history?.canRedo;
  for (const tab of ["objects", "network"] as const) {
    const on = state.tab === tab;
    byId(`${tab}-tab`).setAttribute("aria-selected", String(on));
    byId(`${tab}-tab`).tabIndex = on ? 0 : -1;
    byId(tab).hidden = !on;
  }
  const number = store.layers.items.length;
  byId("count").textContent = number ? String(number) : "";
  byId("title").textContent = state.doc && state.camera === "off" ? state.doc.photo.name : "";
  document.title = state.doc ? `${state.doc.photo.name} – TraceNet` : "TraceNet";
  const { info } = state;
  byId("model").textContent = info ? `${info.model} · ${info.backend}` : "";
  byId("loading").hidden = !state.loading;
  byId("loading-text").textContent = state.loading ?? "";
  byId("stage").setAttribute("aria-busy", String(!!state.pending || !!state.loading));
  renderStageChrome(state);
  const add = byId<HTMLButtonElement>("add");
  add.disabled = byId<HTMLButtonElement>("next-mask").disabled = !selected;
  if (!selected && state.adding) state.adding = false;
  add.setAttribute("aria-pressed", String(state.adding));
  const chip = byId("chip");
  chip.hidden = !selected || state.camera === "live" || state.camera === "starting";
  if (selected) {
    const mask = maskOf(selected);
    chip.style.setProperty("--colour", selected.colour);
    byId("chip-name").textContent = selected.name;
    byId("chip-score").textContent = mask.score.toFixed(2);
    byId("chip-level").textContent = `P${mask.level}`;
    byId("chip-time").textContent = duration(selected.result.timing_ms.predict);
    byId("chip-trip").textContent = duration(selected.roundTrip);
  }
}

function renderStageChrome(state: State): void {
  const video = byId<HTMLVideoElement>("video");
  const live = state.camera === "live" || state.camera === "starting";
  video.hidden = !video.srcObject;
  byId("camera").setAttribute("aria-pressed", String(state.camera !== "off"));
  byId("camera-bar").hidden = state.camera === "off" || state.camera === "starting";
  byId("resume").hidden = byId("keep").hidden = state.camera !== "frozen" || !!state.pending;
  byId("flip").classList.toggle("away", state.camera !== "live");
  byId("tools").hidden = !state.doc || live;
  const hint = byId("hint");
  const fresh = !!state.doc && !state.doc.history.canUndo && !state.pending && state.camera === "off";
  hint.hidden = !(fresh || state.camera === "live");
  hint.textContent = state.camera === "live" ? "Tap a thing to freeze and segment it" : `${COARSE.matches ? "Tap" : "Click"} any thing in the photo`;
}

store.subscribe(render);
listen({ store, stage, session, library, camera, objects, network, showTab, help });

/** The server's facts and photos; the photo asked for in the address (#id), or the first one, is shown. */
async function load(): Promise<void> {
  const [info] = await Promise.all([api.info(), library.refresh()]);
  store.set({ info });
  const { photos, doc } = store.state;
  if (doc) return;
  const wanted = location.hash.slice(1);
  const first = photos.find((photo) => encodeURIComponent(photo.id) === wanted) ?? photos[0];
  if (first) await library.show(first);
}

api.onReachable((reachable) => {
  banner(reachable);
  if (reachable) void load().catch(report);
});
load().catch((error: unknown) => {
  if (!(error instanceof ApiError && error.code === UNREACHABLE)) report(error);
});
