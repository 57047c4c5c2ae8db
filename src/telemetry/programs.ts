/**
 * Where programs that ums runs are found: the system's own. Within a service's container they are ums's, with libraries of
 * their own (`ums image build migratable`), because the image may have none, or others.
 */
export function programsEnvironment(): Record<string, string> {
  const own = process.env['UMS_PROGRAMS'];
  if (own === undefined) return { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' };
  const kept = ['LD_LIBRARY_PATH', 'PERL5LIB'].flatMap((name) => {
    const value = process.env[name];
    return value === undefined ? [] : [[name, value] as const];
  });
  return { PATH: own, ...Object.fromEntries(kept) };
}
