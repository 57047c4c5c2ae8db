import { readFileSync } from 'node:fs';
import { z } from 'zod';

/** The version in package.json, which stands beside src/ in a checkout and in an installation. */
export const VERSION: string = z
  .object({ version: z.string() })
  .parse(JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8'))).version;
