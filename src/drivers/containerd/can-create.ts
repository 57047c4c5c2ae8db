import { readFile } from 'node:fs/promises';
import type { Finding } from '../contract.ts';
import { isMissing } from '../oci/cgroup.ts';
import { exists } from '../oci/files.ts';
import { bindFindings, deviceFindings, findingOf } from '../oci/findings.ts';
import { findProgram } from '../oci/runtime.ts';
import type { Specification } from '../specification.ts';
import { type ContainerdClient, decodeOptions } from './client.ts';
import { stdioIn } from './create.ts';
import { ContainerdRefusal } from './grpc.ts';
import { logFileOf } from './losses.ts';

const APPARMOR_PROFILES = '/sys/kernel/security/apparmor/profiles';

/** What stands against recreating the container here. Creates nothing. */
export async function canCreate(client: ContainerdClient, specification: Specification): Promise<Finding[]> {
  if (!(await exists(client.address))) {
    const why = 'The service is a container of containerd.';
    return [findingOf('error', 'engine.missing', 'containerd does not run here', why, 'apt install containerd')];
  }
  const findings: Finding[] = [];
  for (const [program, id] of [
    ['runc', 'runtime.missing'],
    ['ctr', 'client.missing'],
  ] as const) {
    if ((await findProgram(program)) !== undefined) continue;
    const mend = `apt install ${program === 'ctr' ? 'containerd' : program}`;
    findings.push(findingOf('error', id, `There is no ${program} here`, 'Restoring needs it.', mend));
  }
  findings.push(...(await nameFindings(client, specification)));
  for (const mount of specification.mounts) if (mount.kind === 'bind') findings.push(...(await bindFindings(mount)));
  for (const device of specification.devices) findings.push(...(await deviceFindings(device.source)));
  findings.push(...(await logFindings(specification)), ...(await runtimeFindings(specification)));
  return findings;
}

async function nameFindings(client: ContainerdClient, { name, containerd }: Specification): Promise<Finding[]> {
  const why = 'The service keeps its name.';
  if ((await client.container(name)) !== undefined) {
    const what = `A container named ${name} exists here`;
    return [findingOf('error', 'name.taken', what, why, `ctr containers rm ${name}, if nobody needs it`)];
  }
  const snapshotter = containerd?.snapshotter ?? 'overlayfs';
  try {
    if ((await client.snapshot(snapshotter, name)) === undefined) return [];
    const what = `A snapshot named ${name} exists here`;
    return [findingOf('error', 'snapshot.taken', what, why, `ctr snapshots rm ${name}, if nobody needs it`)];
  } catch (error) {
    if (!(error instanceof ContainerdRefusal)) throw error;
    const what = `containerd has no snapshotter ${snapshotter} here`;
    const mend = 'Install or configure it here';
    return [findingOf('error', 'snapshotter.missing', what, 'The service’s files are kept by it.', mend)];
  }
}

async function logFindings(specification: Specification): Promise<Finding[]> {
  const stdio = stdioIn(specification);
  const file = logFileOf(stdio);
  if (file !== undefined && (await exists(file))) {
    const why = 'The service’s log goes there, and nothing is overwritten.';
    return [findingOf('error', 'log.taken', `${file} exists here`, why, 'Move it away')];
  }
  if (stdio.kind !== 'uri' || !stdio.uri.startsWith('binary:')) return [];
  const program = decodeURIComponent(new URL(stdio.uri).pathname);
  if (await exists(program)) return [];
  const why = 'The service’s output is given to it.';
  return [findingOf('error', 'log.program', `There is no ${program} here`, why, 'Install it here, too')];
}

async function runtimeFindings({ containerd, securityOptions }: Specification): Promise<Finding[]> {
  const findings: Finding[] = [];
  const options = containerd?.options;
  const binary = decodeOptions(
    options === undefined ? undefined : { type_url: options.type, value: Buffer.from(options.base64, 'base64') },
  ).binary_name;
  if (binary.startsWith('/') && !(await exists(binary))) {
    const why = 'The container’s record names it as its runtime.';
    findings.push(findingOf('error', 'runtime.missing', `There is no ${binary} here`, why, 'Install it here, too'));
  }
  const profile = securityOptions.find((option) => option.startsWith('apparmor='))?.slice('apparmor='.length);
  if (profile !== undefined && profile !== 'unconfined' && !(await hasProfile(profile))) {
    const what = `The AppArmor profile ${profile} is not loaded here`;
    findings.push(
      findingOf('error', 'apparmor.missing', what, 'The service runs under it.', 'Load it: apparmor_parser'),
    );
  }
  return findings;
}

async function hasProfile(name: string): Promise<boolean> {
  try {
    return (await readFile(APPARMOR_PROFILES, 'utf8')).split('\n').some((line) => line.startsWith(`${name} (`));
  } catch (error) {
    if (isMissing(error)) return false;
    throw error;
  }
}
