import { z } from 'zod';

/**
 * What `ums image build migratable` adds to an image, all of it below one directory, with libraries of its own, so that
 * nothing of the service's files is touched and nothing of them is needed.
 */
export const HOME = '/.ums';
export const LAYOUT = {
  /** Programs, their libraries, and the loader that they name as theirs. */
  bin: `${HOME}/bin`,
  lib: `${HOME}/lib`,
  loader: `${HOME}/lib/ld.so`,
  perl: `${HOME}/perl`,
  app: `${HOME}/app`,
  /** What Node has compiled of it. */
  compiled: `${HOME}/compiled`,
  init: `${HOME}/init.pl`,
  /** For the init: lines of "name value". */
  settings: `${HOME}/settings`,
  /** For the agent: what the image was before. */
  image: `${HOME}/image.json`,
  /** CRIU's options in every call. */
  criu: `${HOME}/criu.conf`,
  /** The command line, for `podman exec` and the like. */
  command: `${HOME}/ums`,
} as const;

const text = z.string().max(131_072);

/** The image as it was, and what moves with the service beside its processes. */
export const migratableSchema = z.object({
  v: z.literal(1),
  /** The service's name, the same in every container of this image. */
  name: z.string().regex(/^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}$/),
  /** Digest of the configuration of the image before, and the names it went by. */
  id: z.string().regex(/^sha256:[0-9a-f]{64}$/),
  names: z.array(z.string().max(4096)).max(64),
  entrypoint: z.array(text).max(256),
  command: z.array(text).max(4096),
  env: z.array(text).max(4096),
  workingDir: z.string().max(4096).startsWith('/'),
  user: z.string().max(512),
  exposedPorts: z.array(z.string().max(512)).max(4096),
  /** Directories whose files move. */
  files: z.array(z.string().max(4096).startsWith('/')).max(64),
});
export type Migratable = z.infer<typeof migratableSchema>;

/** The first words of every process that the init is: it may not depend on the image's loader or environment. */
export const INIT_COMMAND = [
  LAYOUT.loader,
  '--library-path',
  LAYOUT.lib,
  `${LAYOUT.bin}/perl`,
  `-I${LAYOUT.perl}`,
  LAYOUT.init,
] as const;
