// Where the photo lies on the screen: fit, zoom and pan. Photo coordinates here are pixel edges; a click on the middle
// of pixel (0, 0) is (0.5, 0.5) here and (0, 0) for the server.

import type { Point } from "./types";

export interface Size {
  readonly width: number;
  readonly height: number;
}

/** screen = photo * scale + (x, y), in CSS pixels. */
export interface View {
  readonly scale: number;
  readonly x: number;
  readonly y: number;
}

export const MAX_SCALE = 32;

export function clamp(value: number, low: number, high: number): number {
  return Math.min(Math.max(value, low), high);
}

export function fitScale(photo: Size, screen: Size, margin: number): number {
  const across = Math.max(1, screen.width - 2 * margin) / photo.width;
  const down = Math.max(1, screen.height - 2 * margin) / photo.height;
  return Math.min(across, down);
}

export function fit(photo: Size, screen: Size, margin = 0): View {
  const scale = fitScale(photo, screen, margin);
  return { scale, x: (screen.width - photo.width * scale) / 2, y: (screen.height - photo.height * scale) / 2 };
}

export function toPhoto(view: View, x: number, y: number): Point {
  return [(x - view.x) / view.scale, (y - view.y) / view.scale];
}

export function toScreen(view: View, x: number, y: number): Point {
  return [x * view.scale + view.x, y * view.scale + view.y];
}

/** Scales about a point of the screen, which stays where it is. */
export function zoomAt(view: View, factor: number, x: number, y: number, least: number): View {
  const scale = clamp(view.scale * factor, least, Math.max(MAX_SCALE, least));
  const ratio = scale / view.scale;
  return { scale, x: x - (x - view.x) * ratio, y: y - (y - view.y) * ratio };
}

/** Keeps the photo on the screen: centred along an axis where it fits, without a gap at its edges where it does not. */
export function settle(view: View, photo: Size, screen: Size, margin = 0): View {
  const along = (offset: number, length: number, room: number): number =>
    length <= room - 2 * margin ? (room - length) / 2 : clamp(offset, room - margin - length, margin);
  return {
    scale: view.scale,
    x: along(view.x, photo.width * view.scale, screen.width),
    y: along(view.y, photo.height * view.scale, screen.height),
  };
}

/** The server's coordinates of a point, inside the photo: pixel centres are integers, a tenth of a pixel is enough. */
export function toClick(point: Point, photo: Size): Point {
  const along = (value: number, length: number): number => Math.round(clamp(value - 0.5, 0, length - 1) * 10) / 10;
  return [along(point[0], photo.width), along(point[1], photo.height)];
}
