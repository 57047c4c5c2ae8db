import type { Command } from 'commander';
import type { Cli, Runner } from '../command.ts';
import { type Check, techniqueChecks } from '../doctor/checks.ts';
import { criuChecks } from '../doctor/criu.ts';
import { engineChecks } from '../doctor/engines.ts';
import { baseChecks, fileChecks, kernelChecks, rightsChecks } from '../doctor/kernel.ts';
import { wrap } from '../format.ts';

const GROUPS: readonly [Check['group'], string][] = [
  ['base', 'This machine'],
  ['rights', 'Rights'],
  ['kernel', 'Kernel'],
  ['criu', 'CRIU'],
  ['engines', 'Engines'],
  ['files', 'Room'],
  ['techniques', 'Techniques'],
];

const EXIT_LACKING = 4;

export function addDoctor(program: Command, runner: Runner): void {
  const doctor = program
    .command('doctor')
    .description('Say what this machine has and lacks for each technique and engine, and how to get it; needs no agent')
    .addHelpText(
      'after',
      '\nExample:\n  sudo ums doctor\n\nExit status 4 when services cannot be moved from or to this machine as it is.\n',
    );
  runner.action(doctor, async (cli) => {
    const checks = await examine(cli.io.env);
    const cold = checks.find((check) => check.id === 'techniques.cold');
    const able = cold?.status === 'ok';
    cli.show({ able, checks }, () => renderChecks(cli, checks, able));
    return able ? 0 : EXIT_LACKING;
  });
}

async function examine(env: Readonly<Record<string, string | undefined>>): Promise<Check[]> {
  const groups = await Promise.all([
    baseChecks(),
    rightsChecks(),
    kernelChecks(),
    criuChecks(),
    engineChecks(),
    fileChecks(env),
  ]);
  const checks = groups.flat();
  return [...checks, ...techniqueChecks(checks)];
}

export function renderChecks(cli: Cli, checks: readonly Check[], able: boolean): string {
  const { style } = cli;
  const marks = { ok: style.green('✔'), missing: style.red('✗'), warning: style.yellow('!'), info: style.dim('i') };
  const width = Math.min(cli.io.columns(), 100) - 6;
  const lines: string[] = [];
  for (const [group, title] of GROUPS) {
    const own = checks.filter(
      (check) => check.group === group && !(cli.quiet && (check.status === 'ok' || check.status === 'info')),
    );
    if (own.length === 0) continue;
    lines.push(style.bold(title));
    for (const check of own) {
      const [first = '', ...rest] = wrap(`${check.what}: ${check.seen}`, width);
      lines.push(`  ${marks[check.status]} ${first}`, ...rest.map((line) => `      ${line}`));
      if (check.mend !== '') lines.push(...wrap(`To get it: ${check.mend}`, width).map((line) => `      ${line}`));
    }
  }
  lines.push(
    able
      ? `${style.green('✔')} Services can be moved from and to this machine.`
      : `${style.red('✗')} Services cannot be moved from or to this machine yet. \`ums demo\` needs none of this: its test hosts bring their own.`,
  );
  return `${lines.join('\n')}\n`;
}
