#!/usr/bin/perl
# The first process of a capsule. It does what only a first process can, so that everything else may fail and be started
# again without the service noticing:
#
#   - it reaps every process that loses its parent, the service's own first process among them, and tells the supervisor
#     (`ums capsule run`) how each ended;
#   - it hands signals on to the supervisor, which knows what they mean to the service;
#   - it starts the supervisor, again when that ends without a last word, and tells the new one what the old one was told;
#   - it ends with the status that the supervisor names.
#
# Lines to the supervisor, on its descriptor 3: "reaped PID STATUS", as wait(2) has it, and "signal NAME". Its last word,
# on its descriptor 4: "exit STATUS". Nothing here may wait for anything but the kernel: a first process that hangs cannot
# be helped.
use strict;
use warnings;
use Errno qw(EAGAIN EINTR);
use Fcntl qw(F_GETFL F_SETFL O_NONBLOCK);
use POSIX qw(:sys_wait_h :signal_h);

my @node  = ('/opt/ums/node/bin/node', '--disable-warning=ExperimentalWarning', '--max-semi-space-size=1',
    '--heap-growing-percent=300');
my $main  = '/opt/ums/app/src/cli/main.ts';
my @names = qw(HUP INT QUIT USR1 USR2 TERM WINCH);
# What a new supervisor is told again, and how often there may be a new one.
my $told_max    = 1024;
my $starts_max  = 5;
my $starts_time = 60;

my (@told, @pending, @starts, %caught, $to, $from, $supervisor);
my $last_words = '';

exec { $node[0] } @node, $main, 'capsule', 'run', @ARGV or die "capsule: $node[0] cannot be started: $!\n" if $$ != 1;

# All signals wait until sigsuspend: between looking and sleeping none may be missed.
my $all = POSIX::SigSet->new;
$all->fillset;
my $none = POSIX::SigSet->new;
sigprocmask(SIG_BLOCK, $all);
for my $name (@names) {
    $SIG{$name} = sub { $caught{$name} = 1 };
}
$SIG{$_} = sub { } for qw(CHLD ALRM);
$SIG{PIPE} = 'IGNORE';

start();
while (1) {
    sigsuspend($none);
    for my $name (grep { delete $caught{$_} } @names) {
        report("signal $name");
    }
    while ((my $pid = waitpid(-1, WNOHANG)) > 0) {
        if ($pid == $supervisor) { supervisor_ended($?) }
        else                     { remember("reaped $pid $?") }
    }
    flush_pending();
    # A supervisor that did not take its lines yet gets them a little later.
    alarm(@pending ? 1 : 0);
}

sub start {
    my $now = time;
    @starts = grep { $_ > $now - $starts_time } @starts;
    if (@starts >= $starts_max) {
        print STDERR "capsule: the supervisor ended $starts_max times within $starts_time s\n";
        exit 70;
    }
    push @starts, $now;
    pipe(my $events, $to)   or die "capsule: pipe: $!\n";
    pipe($from, my $words) or die "capsule: pipe: $!\n";
    for my $end ($to, $from) {
        fcntl($end, F_SETFL, fcntl($end, F_GETFL, 0) | O_NONBLOCK) or die "capsule: fcntl: $!\n";
    }
    $supervisor = fork // die "capsule: fork: $!\n";
    if ($supervisor == 0) {
        $SIG{$_} = 'DEFAULT' for @names, 'CHLD', 'ALRM', 'PIPE';
        sigprocmask(SIG_SETMASK, $none);
        # The pipes' own numbers may be among those that they shall get.
        my ($three, $four) = map { POSIX::dup2(fileno $_, 10 + fileno $_) } $events, $words;
        POSIX::dup2($three, 3);
        POSIX::dup2($four,  4);
        POSIX::close($_) for $three, $four;
        # The rest of the environment is the service's, which finds it in /proc/1/environ: NODE_OPTIONS, for instance, is
        # not meant for the supervisor.
        delete @ENV{grep { !/^(?:PATH|HOME|UMS_\w+)$/ } keys %ENV};
        $ENV{UMS_CAPSULE_INIT} = 1;
        $ENV{NODE_COMPILE_CACHE} = '/opt/ums/compiled';
        $ENV{NODE_COMPILE_CACHE_PORTABLE} = 1;
        # CRIU gives a process that had no further groups those that it has itself, and Docker gives some to everybody.
        my @groups = ('/usr/bin/setpriv', '--clear-groups', '--');
        my @line = (@groups, own_cgroup_view(), @node, $main, 'capsule', 'run', @ARGV);
        exec { $line[0] } @line or print STDERR "capsule: $line[0] cannot be started: $!\n";
        POSIX::_exit(127);
    }
    close $events;
    close $words;
    @pending = map { "$_\n" } @told;
    flush_pending();
}

# In the control group namespace of its host, a capsule's paths would lead nowhere in what it sees of the hierarchy.
sub own_cgroup_view {
    open my $file, '<', '/proc/self/cgroup' or return ();
    return (grep { m{^0::/[^/\n]} } <$file>) ? ('/usr/bin/unshare', '--cgroup', '--') : ();
}

sub supervisor_ended {
    my ($status) = @_;
    while (1) {
        my $read = sysread $from, $last_words, 256, length $last_words;
        next if !defined $read && $! == EINTR;
        last if !$read || length $last_words > 4096;
    }
    exit $1 if $last_words =~ /^exit (\d{1,3})$/m;
    my $how = $status & 127 ? 'signal ' . ($status & 127) : 'status ' . ($status >> 8);
    print STDERR "capsule: the supervisor ended by itself ($how) and is started again\n";
    close $_ for $to, $from;
    $last_words = '';
    start();
}

sub remember {
    my ($line) = @_;
    push @told, $line;
    shift @told if @told > $told_max;
    report($line);
}

sub report {
    push @pending, "$_[0]\n";
    shift @pending if @pending > $told_max;
}

sub flush_pending {
    while (@pending) {
        my $written = syswrite $to, $pending[0];
        # Lines are shorter than what a pipe takes as a whole or not at all.
        return unless defined $written;
        shift @pending;
    }
}
