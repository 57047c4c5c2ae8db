/** Numbers in the sentences that explain a decision. */
export function sayDuration(duration_ms: number): string {
  if (duration_ms < 999.5) return `${Math.round(duration_ms)} ms`;
  if (duration_ms < 99_950) return `${(duration_ms / 1000).toFixed(1)} s`;
  return `${Math.round(duration_ms / 60_000)} min`;
}

export function sayBytes(bytes: number): string {
  const mib = bytes / 2 ** 20;
  if (mib >= 1024) return `${(mib / 1024).toFixed(1)} GiB`;
  return mib >= 10 ? `${Math.round(mib)} MiB` : `${mib.toFixed(1)} MiB`;
}

export function sayShare(share: number): string {
  return `${Math.round(share * 100)} %`;
}
