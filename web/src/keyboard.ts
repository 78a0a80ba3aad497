// Keys. Letters act wherever the focus is but in text fields; arrows and Enter move and click the crosshair on the photo.

import { byId } from "./dom";
import type { Camera } from "./camera";
import type { Library } from "./library";
import type { NetworkPanel } from "./network_panel";
import type { ObjectsPanel } from "./objects_panel";
import type { Session } from "./session";
import type { Stage } from "./stage";
import type { Store, Tab } from "./state";

export interface Parts {
  store: Store;
  stage: Stage;
  session: Session;
  library: Library;
  camera: Camera;
  objects: ObjectsPanel;
  network: NetworkPanel;
  showTab: (tab: Tab) => void;
  help: () => void;
}

const ARROWS: Record<string, [number, number]> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};

export function listen(parts: Parts): void {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const target = event.target as HTMLElement;
    if (target instanceof HTMLInputElement && target.type === "text") return;
    const done = event.ctrlKey || event.metaKey ? shortcut(parts, event) : !event.altKey && plain(parts, event, target);
    if (done) event.preventDefault();
  });
  byId("stage").addEventListener("keydown", (event) => {
    const arrow = ARROWS[event.key];
    if (!arrow || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    parts.stage.moveCrosshair(arrow[0], arrow[1], event.altKey);
  });
}

function shortcut({ store }: Parts, event: KeyboardEvent): boolean {
  const key = event.key.toLowerCase();
  if (key === "z" && !event.shiftKey) store.undo();
  else if ((key === "z" && event.shiftKey) || key === "y") store.redo();
  else return false;
  return true;
}

function plain(parts: Parts, event: KeyboardEvent, target: HTMLElement): boolean {
  const { store, stage, session } = parts;
  const onStage = target.id === "stage";
  const selected = store.selected;
  switch (event.key) {
    case "Enter":
      if (!onStage) return false;
      if (store.state.camera === "live") void parts.camera.freeze();
      else return stage.clickCrosshair(event.shiftKey);
      return true;
    case "Escape":
      return session.cancel() || stage.hideCrosshair() || deselect(store);
    case "Delete":
    case "Backspace":
      if (!selected) return false;
      store.remove(selected.id);
      return true;
    case "?":
      parts.help();
      return true;
    case "+":
    case "=":
      stage.zoomBy(1.3);
      return true;
    case "-":
      stage.zoomBy(1 / 1.3);
      return true;
    case "0":
      stage.fit();
      return true;
    case "[":
      parts.network.step(-1);
      return true;
    case "]":
      parts.network.step(1);
      return true;
  }
  switch (event.key.toLowerCase()) {
    case "a":
      void session.cycle();
      return true;
    case "h":
      if (selected) store.change(selected.id, { visible: !selected.visible });
      return true;
    case "r":
      parts.showTab("objects");
      parts.objects.rename();
      return true;
    case "n":
      parts.showTab(store.state.tab === "network" ? "objects" : "network");
      return true;
    case "o":
      parts.library.pick();
      return true;
    case "c":
      void parts.camera.toggle();
      return true;
    case "j":
      parts.library.step(1);
      return true;
    case "k":
      parts.library.step(-1);
      return true;
  }
  return false;
}

function deselect(store: Store): boolean {
  if (store.layers.selected === null) return false;
  store.select(null);
  return true;
}
