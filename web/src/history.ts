// Undo and redo over immutable snapshots.

export class History<T> {
  private past: T[] = [];
  private future: T[] = [];

  constructor(
    private now: T,
    private readonly depth = 100,
  ) {}

  get present(): T {
    return this.now;
  }

  get canUndo(): boolean {
    return this.past.length > 0;
  }

  get canRedo(): boolean {
    return this.future.length > 0;
  }

  /** A new state that undo leads back from. */
  push(next: T): void {
    this.past.push(this.now);
    if (this.past.length > this.depth) this.past.shift();
    this.now = next;
    this.future = [];
  }

  /** A new state in place of the present one: what is not worth a step of its own, such as a selection. */
  amend(next: T): void {
    this.now = next;
  }

  undo(): boolean {
    const last = this.past.pop();
    if (last === undefined) return false;
    this.future.push(this.now);
    this.now = last;
    return true;
  }

  redo(): boolean {
    const next = this.future.pop();
    if (next === undefined) return false;
    this.past.push(this.now);
    this.now = next;
    return true;
  }
}
