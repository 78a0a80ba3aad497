// Talks to the server. Every failure becomes an ApiError with a message and a hint that can be shown as they are.

import type { GraphNode, Info, Job, Photo, Rle, SegmentRequest, Segmentation } from "./types";

export class ApiError extends Error {
  constructor(
    readonly code: string,
    message: string,
    readonly hint: string,
    readonly status: number,
    /** Seconds that the server asks to wait, where it does. */
    readonly retryAfter: number | null = null,
  ) {
    super(message);
  }
}

/** The code of a request that reached no server. */
export const UNREACHABLE = "unreachable";

export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === "AbortError";
}

type Listener = (reachable: boolean) => void;

export class Api {
  private listener: Listener = () => {};
  private reachable = true;

  /** Called when the server is lost and when it is found again. */
  onReachable(listener: Listener): void {
    this.listener = listener;
  }

  info(): Promise<Info> {
    return this.json("GET", "/api/info");
  }

  async photos(): Promise<Photo[]> {
    return (await this.json<{ photos: Photo[] }>("GET", "/api/photos")).photos;
  }

  upload(file: Blob, name: string, signal?: AbortSignal): Promise<Photo> {
    const headers = {
      "Content-Type": file.type.startsWith("image/") ? file.type : "application/octet-stream",
      "X-File-Name": encodeURIComponent(name),
    };
    return this.json("POST", "/api/photos", file, signal, headers);
  }

  remove(photo: string): Promise<void> {
    return this.json("DELETE", `/api/photos/${encodeURIComponent(photo)}`);
  }

  fileUrl(photo: string, thumbnail?: number): string {
    return `/api/photos/${encodeURIComponent(photo)}/file${thumbnail ? `?thumbnail=${thumbnail}` : ""}`;
  }

  async file(photo: string, signal?: AbortSignal): Promise<Blob> {
    return (await this.request("GET", this.fileUrl(photo), undefined, signal)).blob();
  }

  segment(request: SegmentRequest, signal: AbortSignal): Promise<Segmentation> {
    return this.json("POST", "/segment", request, signal);
  }

  async graph(photo: string): Promise<GraphNode[]> {
    return (await this.json<{ nodes: GraphNode[] }>("GET", `/api/photos/${encodeURIComponent(photo)}/graph`)).nodes;
  }

  async startTolerance(photo: string, rle: Rle, most: number): Promise<string> {
    return (await this.json<{ job: string }>("POST", "/api/tolerance", { photo, rle, most })).job;
  }

  job(id: string): Promise<Job> {
    return this.json("GET", `/api/jobs/${encodeURIComponent(id)}`);
  }

  cancelJob(id: string): Promise<void> {
    return this.json("DELETE", `/api/jobs/${encodeURIComponent(id)}`);
  }

  private async json<T>(
    method: string,
    path: string,
    body?: Blob | object,
    signal?: AbortSignal,
    headers: Record<string, string> = {},
  ): Promise<T> {
    const response = await this.request(method, path, body, signal, headers);
    return (response.status === 204 ? undefined : await response.json()) as T;
  }

  private async request(
    method: string,
    path: string,
    body?: Blob | object,
    signal?: AbortSignal,
    headers: Record<string, string> = {},
  ): Promise<Response> {
    const init: RequestInit = { method, headers: { ...headers } };
    if (signal) init.signal = signal;
    if (body instanceof Blob) init.body = body;
    else if (body) {
      init.body = JSON.stringify(body);
      init.headers = { ...headers, "Content-Type": "application/json" };
    }
    let response: Response;
    try {
      response = await fetch(path, init);
    } catch (error) {
      if (isAbort(error)) throw error;
      // A server that refuses a body early closes the connection, which looks the same as no server at all.
      if (await this.alive()) throw refusedEarly(body);
      this.set(false);
      throw new ApiError(UNREACHABLE, "The server does not answer.", "It may have been stopped; start it again.", 0);
    }
    this.set(true);
    if (!response.ok) throw await asError(response);
    return response;
  }

  private set(reachable: boolean): void {
    if (reachable === this.reachable) return;
    this.reachable = reachable;
    this.listener(reachable);
    if (!reachable) void this.waitForServer();
  }

  private async alive(): Promise<boolean> {
    try {
      return (await fetch("/healthz", { cache: "no-store", signal: AbortSignal.timeout(4000) })).ok;
    } catch {
      return false;
    }
  }

  private async waitForServer(): Promise<void> {
    for (let wait = 500; !this.reachable; wait = Math.min(wait * 1.5, 5000)) {
      await new Promise((resolve) => setTimeout(resolve, wait));
      if (await this.alive()) this.set(true);
    }
  }
}

function refusedEarly(body: Blob | object | undefined): ApiError {
  return body instanceof Blob
    ? new ApiError("too_large", "The server broke off the upload.", "Pick a smaller file.", 413)
    : new ApiError("interrupted", "The connection broke off.", "Try again.", 0);
}

async function asError(response: Response): Promise<ApiError> {
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  try {
    const { error } = (await response.json()) as { error: { code: string; message: string; hint?: string } };
    return new ApiError(error.code, error.message, error.hint ?? "", response.status, retryAfter);
  } catch {
    const text = `The server answered ${response.status} ${response.statusText}`.trim();
    return new ApiError("internal", `${text}.`, "Try again; the server's log may say more.", response.status, retryAfter);
  }
}
