import { spawnSync } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ERROR_CODES } from '#src/telemetry/error-codes.ts';
import { commandNodes, completionScript } from './completion.ts';
import { EXIT_STATUSES } from './exit-statuses.ts';
import { environmentFile, LAYOUT, unitFile } from './install/unit.ts';
import { buildProgram } from './program.ts';
import { renderReference } from './reference.ts';
import { runCli } from './testing/fake-agent.ts';
import { processIo } from './terminal.ts';

const docs = (name: string) => readFile(join(import.meta.dirname, '..', '..', 'docs', name), 'utf8');
const program = () => buildProgram(processIo(), { status: 0, complaint: '' });

describe('documents', () => {
  it('errors.md lists exactly the error codes with their exit statuses', async () => {
    const rows = [...(await docs('errors.md')).matchAll(/^\| `(UMS_E_\w+)` \| (\d+) \|/gm)];
    const listed = rows.map((row) => `${row[1] ?? ''} ${row[2] ?? ''}`);
    const codes = Object.entries(ERROR_CODES).map(([code, { exit }]) => `${code} ${exit}`);
    expect(listed.toSorted()).toEqual(codes.toSorted());
    for (const { exit } of Object.values(ERROR_CODES)) expect(EXIT_STATUSES).toHaveProperty(String(exit));
  });

  it('cli.md is what the command tree says (node src/cli/write-reference.ts writes it)', async () => {
    expect(await docs('cli.md')).toBe(renderReference(program()));
  });

  it('every command explains itself with an example and its exit status', async () => {
    for (const node of commandNodes(program())) {
      if (node.children.length > 0 || ['demo', 'bench', 'lab', 'test'].includes(node.path)) continue;
      const said = await runCli(undefined, [...node.path.split(' '), '--help']);
      expect(said.status, node.path).toBe(0);
      expect(said.out, node.path).toMatch(/Examples?:/);
      expect(said.out, node.path).toContain('Exit status');
      for (const line of said.out.split('\n')) expect(line.length, line).toBeLessThanOrEqual(100);
    }
  });
});

describe('completion', () => {
  it('knows every command, option and choice for every shell', () => {
    for (const shell of ['bash', 'zsh', 'fish']) {
      const script = completionScript(shell, program()) ?? '';
      for (const node of commandNodes(program())) {
        expect(script, `${shell}: ${node.path}`).toContain(node.path);
        for (const option of node.options)
          expect(script).toContain(shell === 'fish' ? `-l ${option.flag.slice(2)}` : option.flag);
      }
      expect(script).toContain('refuse copy expect');
    }
    expect(completionScript('tcsh', program())).toBeUndefined();
  });

  it('makes a bash script that completes', () => {
    const script = completionScript('bash', program()) ?? '';
    const complete = (words: string[]) => {
      const line = words.map((word) => `'${word}'`).join(' ');
      const result = spawnSync(
        'bash',
        ['-c', `${script}\nCOMP_WORDS=(${line}); COMP_CWORD=${words.length - 1}; _ums; echo "\${COMPREPLY[@]}"`],
        { encoding: 'utf8' },
      );
      expect(result.stderr).toBe('');
      return result.stdout.trim().split(' ');
    };
    expect(complete(['ums', 'migr'])).toEqual(['migrate', 'migrations']);
    expect(complete(['ums', 'frontman', 'a'])).toEqual(['add']);
    expect(complete(['ums', 'migrate', 'redis', '--keep'])).toEqual(['--keep-source-stopped']);
    expect(complete(['ums', 'migrate', 'redis', '--bind-mounts', 'c'])).toEqual(['copy']);
  });
});

describe('install', () => {
  it('writes a unit whose variables the environment file sets', () => {
    const unit = unitFile(LAYOUT);
    const environment = environmentFile({ name: 'alpha', peerAddress: '192.0.2.1', peerPort: 7440 });
    for (const [, variable] of unit.matchAll(/\$\{(\w+)\}/g)) expect(environment).toContain(`\n${variable ?? ''}=`);
    for (const line of ['KillMode=process', 'Restart=on-failure', 'TasksMax=infinity']) expect(unit).toContain(line);
  });

  it('says what it would do and does nothing with --dry-run', async () => {
    const said = await runCli(undefined, [
      'install',
      '--dry-run',
      '--name',
      'alpha',
      '--peer-address',
      '192.0.2.1',
      '--json',
    ]);
    expect(said.status).toBe(0);
    expect(said.out).toContain('/etc/systemd/system/ums-agent.service');
    expect(said.out).toContain('NAME=alpha');
    const wrong = await runCli(undefined, ['install', '--dry-run', '--name', 'Al pha', '--peer-address', '192.0.2.1']);
    expect(wrong.status).toBe(2);
  });
});

describe('doctor', () => {
  it('works without an agent and says what the cold technique lacks', async () => {
    const said = await runCli(undefined, ['doctor', '--json']);
    const text: unknown = JSON.parse(said.out);
    expect(text).toHaveProperty('checks');
    expect(said.out).toContain('techniques.cold');
    expect([0, 4]).toContain(said.status);
  });
});
