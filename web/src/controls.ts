// Small controls that both panels use: radio buttons in a row, and meters.

import { h } from "./dom";

export function segments<T extends string>(
  label: string,
  options: readonly (readonly [T, string])[],
  chosen: T,
  pick: (value: T) => void,
): HTMLElement {
  const group = h("div", { class: "segments", role: "radiogroup", "aria-label": label });
  options.forEach(([value, text], at) => {
    const button = h("button", { role: "radio", "data-value": value }, text);
    button.addEventListener("click", () => pick(value));
    button.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const next = options[(at + by + options.length) % options.length]![0];
      pick(next);
      group.querySelector<HTMLElement>(`[data-value="${next}"]`)!.focus();
    });
    group.append(button);
  });
  select(group, chosen);
  return group;
}

export function select(group: HTMLElement, value: string): void {
  for (const button of group.querySelectorAll<HTMLElement>("button")) {
    const on = button.dataset["value"] === value;
    button.setAttribute("aria-checked", String(on));
    button.tabIndex = on ? 0 : -1;
  }
}

export function meter(share: number, label: string): HTMLElement {
  const bar = h("div", {
    class: "meter",
    role: "meter",
    "aria-label": label,
    "aria-valuemin": 0,
    "aria-valuemax": 100,
    "aria-valuenow": Math.round(share * 100),
  });
  const fill = h("span", {});
  fill.style.width = `${Math.min(100, Math.max(share * 100, 0.6))}%`;
  bar.append(fill);
  return bar;
}
