// Messages: errors with their hint, short notes, the banner for a server that is gone, and what screen readers say.

import { ApiError, isAbort, UNREACHABLE } from "./api";
import { byId, h, icon } from "./dom";

const STAY_MS = 9000;
const SHORT_MS = 3500;

export function say(text: string): void {
  byId("live").textContent = text;
}

export function note(text: string): void {
  show(h("div", { class: "toast" }, h("p", {}, text)), SHORT_MS);
}

export function warn(message: string, hint = ""): void {
  const toast = h("div", { class: "toast error", role: "alert" }, h("p", {}, ended(message)));
  if (hint) toast.append(h("p", { class: "hint" }, ended(hint[0]!.toUpperCase() + hint.slice(1))));
  toast.append(
    h("button", { class: "icon-button", "aria-label": "Dismiss", onclick: () => toast.remove() }, icon("close")),
  );
  show(toast, STAY_MS);
}

function ended(text: string): string {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

/** Shows what went wrong; what was superseded or cancelled is not news, and a lost server has its banner. */
export function report(error: unknown): void {
  if (isAbort(error)) return;
  if (!(error instanceof ApiError)) {
    warn(error instanceof Error ? error.message : String(error));
    throw error;
  }
  if (error.code === "superseded" || error.code === UNREACHABLE) return;
  warn(error.message, error.hint);
}

function show(toast: HTMLElement, ms: number): void {
  const place = byId("toasts");
  while (place.children.length > 2) place.firstElementChild!.remove();
  place.append(toast);
  setTimeout(() => toast.remove(), ms);
}

export function banner(reachable: boolean): void {
  byId("banner").hidden = reachable;
  say(reachable ? "The server is back." : "The server does not answer. Trying again.");
  if (reachable) note("The server is back.");
}
