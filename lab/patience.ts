/**
 * How many times longer than usual everything may take: 1, or what UMS_LAB_PATIENCE says, where a machine is known to be
 * slow (emulated, for instance). Limits of the lab and of tests are multiplied by it.
 */
const PATIENCE_MAX = 100;

function readPatience(): number {
  const asked = Number(process.env['UMS_LAB_PATIENCE'] ?? 1);
  return Number.isFinite(asked) ? Math.min(Math.max(asked, 1), PATIENCE_MAX) : 1;
}

export const PATIENCE = readPatience();
