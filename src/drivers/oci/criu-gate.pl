#!/usr/bin/perl
# Stands in for criu while a container is dumped or restored: runc finds it first in its PATH and starts it as it would
# start criu. It lies (as a link) in DIR/bin, where DIR has the settings:
#
#   criu      path of the real program
#   signal    for a dump: the descriptor that leads to the agent
#   smaps     for a dump: lists of mappings for CRIU to read in place of the kernel's, by process
#   wait      for a restore that may begin only once DIR/go says so: seconds until it is given up
#   refresh   for a restore that waited: a mount, with its flags, whose cached names are to be forgotten
#   home-v2   for a restore: the control group that CRIU shall work in
#
# Whatever is not the dump or the restore itself (runc asks for versions and features) goes to criu at once. The rest
# waits here, with everything before it done, until the service stands still and its images are there. If the agent goes
# away meanwhile a dump is given up, before anything was touched; a restore is given up when it has waited too long.
use strict;
use warnings;

use constant { MSG_PEEK => 2, DUMP => 1, RESTORE => 2, MOUNT => 165, UNSHARE => 272, MS_REMOUNT => 32, MS_BIND => 4096,
    MS_PRIVATE => 1 << 18, CLONE_NEWNS => 0x20000 };

# Descriptors that runc hands on are criu's: Perl must not close them at the exec.
$^F = 1 << 20;

my $dir = $0 =~ s{/bin/[^/]*$}{}r;

sub content {
    my ($name) = @_;
    open(my $file, '<', "$dir/$name") or return undef;
    my $line = <$file>;
    chomp $line if defined $line;
    return $line;
}

my $criu = content('criu') or die "criu-gate: $dir names no criu\n";

sub go {
    exec {$criu} 'criu', @ARGV or die "criu-gate: $criu: $!\n";
}

# What is asked for is the first field of runc's request, which stays in the socket for criu. The handle is a package's,
# because one that goes out of scope would close the descriptor.
sub request {
    return 0 unless @ARGV == 2 && $ARGV[0] eq 'swrk';
    open(our $socket, '+<&=', $ARGV[1]) or return 0;
    recv($socket, my $head, 2, MSG_PEEK) // return 0;
    my ($field, $type) = unpack('CC', $head . "\0\0");
    return $field == 8 ? $type : 0;
}

sub dump_gate {
    my $number = content('signal') // return;
    open(our $agent, '+<&=', $number) or die "criu-gate: descriptor $number: $!\n";
    syswrite($agent, 'w') or exit 1;
    sysread($agent, my $word, 1);
    exit 1 unless defined $word && $word eq 'g';
    show_other_maps();
}

# CRIU is shown other lists of mappings than the kernel's: see hidden-memory.ts, which also checks that it worked. Nobody
# else sees them, because they are mounted in a mount namespace of CRIU's own. Asked for on x86-64 only: calls have numbers.
sub show_other_maps {
    my @lists = glob("$dir/smaps/*") or return;
    my ($source, $proc) = ('none', '/proc');
    syscall(UNSHARE, CLONE_NEWNS) == 0 or die "criu-gate: no mount namespace: $!\n";
    syscall(MOUNT, $source, $proc, 0, MS_PRIVATE, 0) == 0 or die "criu-gate: /proc: $!\n";
    for my $list (@lists) {
        my $target = '/proc/' . ($list =~ s{.*/}{}r) . '/smaps';
        syscall(MOUNT, $list, $target, 0, MS_BIND, 0) == 0 or die "criu-gate: $target: $!\n";
    }
}

# runc has put this process into the container's control group. CRIU must not be in it when it is frozen, and moving a
# process costs milliseconds: so it leaves while nobody waits for it.
sub leave_group {
    my $home = content('home-v2') // return;
    for my $root ('/sys/fs/cgroup', '/sys/fs/cgroup/unified') {
        open(my $procs, '>', "$root$home/cgroup.procs") or next;
        syswrite($procs, "$$\n");
        close($procs);
        return;
    }
}

# Files have been written beneath the container's mounted overlay while this waited. Mounting it again, as it is, makes the
# kernel forget what it knows of names in it, unless they are in use. Asked for on x86-64 only: the call has a number.
sub refresh {
    my ($flags, $path) = split(/ /, content('refresh') // return, 2);
    my ($source, $type) = ('none', 'overlay');
    syscall(MOUNT, $source, $path, $type, MS_REMOUNT | $flags, 0) == 0 or die "criu-gate: $path: $!\n";
}

sub restore_gate {
    leave_group();
    my $limit_s = content('wait') // return;
    my $fifo = "$dir/go";
    system('mkfifo', '-m', '600', "$fifo.new") == 0 or die "criu-gate: no $fifo.new\n";
    # Opened for both, it can be opened for writing from the moment it has its name.
    open(my $agent, '+<', "$fifo.new") or die "criu-gate: $fifo: $!\n";
    rename("$fifo.new", $fifo) or die "criu-gate: $fifo: $!\n";
    alarm $limit_s;
    sysread($agent, my $word, 1);
    alarm 0;
    close($agent);
    exit 1 unless defined $word && $word eq 'g';
    refresh();
}

my $request = request();
dump_gate() if $request == DUMP;
restore_gate() if $request == RESTORE;
go();
