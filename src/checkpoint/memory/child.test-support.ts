import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';

/** A program with `megabytes` of memory at a known place, which writes bytes into it when told to. */
const PROGRAM = String.raw`
$| = 1; my $memory = "\1" x ($ARGV[0] << 20); my $address = unpack("Q", pack("P", $memory));
print "$address\n";
my $shift = -$address % 4096;
my $pair;
open(my $input, "<", "/dev/urandom") or die;
sub random { syscall(0, fileno($input), $_[0], $_[1]); }
# Sixteen pages that are written, and four elsewhere that are not: what is moved beside the first becomes one with it.
sub pair {
  my $at = syscall(9, 0, 1 << 20, 0, 0x22, -1, 0);
  syscall(11, $at, 1 << 20);
  syscall(9, $at, 16 * 4096, 3, 0x32, -1, 0);
  syscall(9, $at + 100 * 4096, 4 * 4096, 3, 0x32, -1, 0);
  random($at, 16 * 4096);
  return $at;
}
while (<STDIN>) {
  my ($what, $offset, $bytes, $value) = split;
  if ($what eq "fill") { substr($memory, $offset, $bytes) = chr($value) x $bytes; }
  if ($what eq "drop") { syscall(28, $address + $offset, 0 + $bytes, 4); }
  if ($what eq "pair") { $pair = pair(); $_ = $pair / 4096; print "$_\n"; next; }
  if ($what eq "poke") { random($pair + $offset - $shift, 8); }
  if ($what eq "join") { syscall(25, $pair + 100 * 4096, 4 * 4096, 4 * 4096, 3, $pair + 16 * 4096) == $pair + 16 * 4096 or print "no "; }
  if ($what eq "exec") { exec $^X, "-e", q{$| = 1; my $new = "\7" x (1 << 20); print unpack("Q", pack("P", $new)), "\n"; <STDIN>}; }
  print "done\n";
}`;

export interface Child {
  readonly pid: number;
  /** The first whole page of its memory. */
  readonly first: number;
  /** Carries out a command and returns its answer. Offsets count from `first`. */
  tell(
    what: 'fill' | 'drop' | 'exec' | 'pair' | 'poke' | 'join',
    page?: number,
    pages?: number,
    value?: number,
  ): Promise<string>;
  end(): Promise<void>;
}

export async function startChild(megabytes: number): Promise<Child> {
  const child = spawn('perl', ['-e', PROGRAM, String(megabytes)], { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const answer = async (): Promise<string> => String((await lines.next()).value);
  const address = Number(await answer());
  const first = Math.ceil(address / 4096);
  const shift = first * 4096 - address;
  return {
    pid: child.pid ?? 0,
    first,
    tell: (what, page = 0, pages = 1, value = 0) => {
      child.stdin.write(`${what} ${page * 4096 + shift} ${pages * 4096} ${value}\n`);
      return answer();
    },
    end: () => end(child),
  };
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
}
