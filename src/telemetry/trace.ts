import { appendFileSync } from 'node:fs';
export async function T<X>(label: string, p: Promise<X> | X): Promise<X> {
  const a = performance.now();
  try {
    return await p;
  } finally {
    const b = performance.now();
    appendFileSync('/run/ums-trace', `${(performance.timeOrigin + a).toFixed(0)} ${label} ${(b - a).toFixed(1)}\n`);
  }
}
