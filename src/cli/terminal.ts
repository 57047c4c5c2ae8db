/** What a command may touch of the world: tests give their own. */
export interface Io {
  out(text: string): void;
  err(text: string): void;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly outIsTty: boolean;
  /** Columns of the terminal, 80 when there is none. */
  columns(): number;
  now_ms(): number;
  /** Calls `handler` at each Ctrl-C until the returned function is called. */
  onInterrupt(handler: () => void): () => void;
}

export function processIo(): Io {
  return {
    out: (text) => void process.stdout.write(text),
    err: (text) => void process.stderr.write(text),
    env: process.env,
    outIsTty: process.stdout.isTTY,
    columns: () => (process.stdout.isTTY ? Math.max(40, process.stdout.columns) : 80),
    now_ms: () => Date.now(),
    onInterrupt: (handler) => {
      process.on('SIGINT', handler);
      return () => void process.off('SIGINT', handler);
    },
  };
}

type Paint = (text: string) => string;
export interface Style {
  readonly bold: Paint;
  readonly dim: Paint;
  readonly red: Paint;
  readonly green: Paint;
  readonly yellow: Paint;
  readonly cyan: Paint;
}

const plain: Paint = (text) => text;
const escape =
  (open: number, close: number): Paint =>
  (text) =>
    `\u001B[${open}m${text}\u001B[${close}m`;

export function makeStyle(color: boolean): Style {
  if (!color) return { bold: plain, dim: plain, red: plain, green: plain, yellow: plain, cyan: plain };
  return {
    bold: escape(1, 22),
    dim: escape(2, 22),
    red: escape(31, 39),
    green: escape(32, 39),
    yellow: escape(33, 39),
    cyan: escape(36, 39),
  };
}

/** Colours are for a terminal that shows them and a reader who has not declined them (NO_COLOR, TERM=dumb, --no-color). */
export function wantsColor(io: Io, allowed: boolean): boolean {
  const declined = (io.env['NO_COLOR'] ?? '') !== '' || io.env['TERM'] === 'dumb';
  return allowed && io.outIsTty && !declined;
}
