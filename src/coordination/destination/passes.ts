import { UmsError } from '#src/telemetry/errors.ts';

/** Passes over files that one stream has brought and that were applied; whoever restores waits for the last of them. */
export class Passes {
  #applied = 0;
  #ended: UmsError | undefined;
  readonly #waiting: { count: number; resolve: () => void; reject: (error: UmsError) => void }[] = [];

  applied(): void {
    this.#applied += 1;
    for (const { count, resolve } of this.#waiting) if (count <= this.#applied) resolve();
  }

  /** No pass comes any more. */
  end(): void {
    this.#ended = new UmsError('UMS_E_TRANSFER', {
      message: `The stream of files ended after ${this.#applied} passes, before the last of them`,
      fault: 'source',
      mend: 'Try again.',
    });
    for (const { reject } of this.#waiting) reject(this.#ended);
  }

  /** Resolves when so many were applied; rejects when the stream has ended before. */
  async wait(count: number): Promise<void> {
    if (count <= this.#applied) return;
    if (this.#ended !== undefined) throw this.#ended;
    await new Promise<void>((resolve, reject) => this.#waiting.push({ count, resolve, reject }));
  }
}
