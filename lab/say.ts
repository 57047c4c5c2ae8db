/** Tells a person what happens. It goes to standard error, so that `--json` output stays clean. */
export type Say = (line: string) => void;

export const sayToPerson: Say = (line) => {
  process.stderr.write(`${line}\n`);
};
export const saySilently: Say = () => undefined;
