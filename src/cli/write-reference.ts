import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { buildProgram } from './program.ts';
import { renderReference } from './reference.ts';
import { processIo } from './terminal.ts';

const program = buildProgram(processIo(), { status: 0, complaint: '' });
await writeFile(join(import.meta.dirname, '..', '..', 'docs', 'cli.md'), renderReference(program));
