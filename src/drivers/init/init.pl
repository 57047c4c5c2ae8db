# The first process of a migratable container. It starts the service, passes signals on to it, collects what ends, and ends
# with the service's own exit status, so that the engine sees the service as if it were there alone. Beside it, it keeps
# the agent running, and at the agent's request it starts CRIU. Standard input, output and error are the service's.
#
#   perl init.pl [PROGRAM [ARGUMENT...]]
#
# With UMS_INIT=wait it starts no service and waits for one that arrives. It is Perl because a first process must collect
# every orphan (waitpid(-1)) and start CRIU under a process id of its choice (clone3), neither of which Node can do.
use strict;
use warnings;
use Config;

# The kernel hands out ids below this one only until it has reached it for the first time (RESERVED_PIDS in kernel/pid.c).
# The init, the agent with all its threads and CRIU live below it and the service above, in every container: so nothing of
# ours ever has an id that a service brings along.
my $RESERVED = 300;
# How long the service waits for the agent to say that it has all its threads; it takes a tenth of a second.
my $THREADS_LIMIT_S = 3;
my ($WNOHANG, $AF_UNIX, $SOCK_STREAM, $EEXIST) = (1, 1, 1, 17);
my ($SIGCHLD, $PR_SET_CHILD_SUBREAPER) = (17, 36);
my $CLONE3 = 435;
my ($SETSID, $PRCTL, $FSYNC, $SETGROUPS) = $Config{archname} =~ /^x86_64/ ? (112, 157, 74, 116) : (157, 167, 82, 159);
my ($REQUEST_BYTES_MAX, $CONNECTIONS_MAX) = (65_536, 16);
# An agent that ends within this time of its start, this often in a row, is not started again.
my ($AGENT_STARTS_MAX, $AGENT_PAUSE_S, $AGENT_STEADY_S) = (20, 1, 60);
# A child that ends just before the wait below is seen at the wait's end: soon while a migration waits for it.
my ($WAIT_S, $WAIT_BUSY_S) = (1, 0.01);
my ($REMAINS_ROUNDS, $REMAINS_PAUSE_S) = (500, 0.01);
my @FORWARDED = qw(HUP INT QUIT TERM USR1 USR2 WINCH);

my $HOME = '/.ums';
my %SETTINGS = read_settings("$HOME/settings");
my $RUN = $ENV{UMS_RUN_DIR} // "$HOME/run";
my $STATE = $ENV{UMS_STATE_DIR} // "$HOME/state";
# What migrations have made of it, for a start of this container after its end: "here" when the service has come, so that it
# is started although the container was made to wait; "away" when it has left, and "held" while it is about to, so that it
# is not started a second time. Whether one that was held begins anew is for the agent to say: it may have arrived elsewhere.
my $PLACE = "$STATE/place";

my $service = 0;         # process id of the service's first process, 0 without one
my $released = 0;        # the service's end is not ours: it has left, or a migration goes back
my $arriving = 0;        # it has come and may yet go back: were the container to end with it, nobody could say so
my $agent = 0;
my ($agent_starts, $agent_since, $agent_due) = (0, 0, 0);
my $begin_by = 0;        # when the first service is started at the latest; 0 when that has been settled
my %waiting;             # process id of CRIU => who waits for its end, and what it brings
my $stopping = 0;        # a signal to end, while there is no service

exit main(@ARGV);

sub main {
    my @program = @_;
    # Docker lists root's own group once more, Podman does not, and CRIU gives a process no fewer groups than it has itself.
    # Without CAP_SETGID it stays.
    syscall($SETGROUPS, 0, 0) if !grep { $_ != 0 } split ' ', $);
    make_directories();
    # Processes that stood still ended with the container.
    unlink "$RUN/frozen.json";
    my $door = open_door("$RUN/init.sock");
    for my $name (@FORWARDED) { $SIG{$name} = sub { forward($name) } }
    # Its own wake-up: without a handler the end of a child would not interrupt the wait below.
    $SIG{CHLD} = sub { };
    my $has_agent = ($ENV{UMS_AGENT} // '') ne 'off';
    $begin_by = time + ($has_agent ? $THREADS_LIMIT_S : 0);
    start_agent() if $has_agent;
    my %open;
    while (1) {
        my $status = collect(\%open);
        return $status if defined $status;
        return 0 if $stopping && !$service;
        start_agent() if $has_agent && !$agent && time >= $agent_due;
        begin(@program) if $begin_by && (time >= $begin_by || !$has_agent);
        serve($door, \%open);
    }
}

# The ids below are ours from now on, and those above the service's.
sub begin {
    my (@program) = @_;
    $begin_by = 0;
    skip_reserved();
    my $place = place();
    my $waits = $place eq '' ? ($ENV{UMS_INIT} // '') eq 'wait' : $place ne 'here';
    $service = start_service(@program) if !$waits;
}

# Lines of "name value".
sub read_settings {
    my ($path) = @_;
    open(my $file, '<', $path) or die "ums-init: $path: $!\n";
    my %settings = map { /^(\S+) (.*)$/ ? ($1 => $2) : () } <$file>;
    return %settings;
}

sub make_directories {
    for my $path ($RUN, $STATE, "$HOME/tmp") {
        mkdir $path, 0700 or -d $path or die "ums-init: $path: $!. Give the container a writable $HOME, for instance a tmpfs.\n";
    }
}

sub place {
    open(my $file, '<', $PLACE) or return '';
    return <$file> // '';
}

# It must outlast a power cut, or the service would begin a second time after it.
sub write_place {
    my ($where) = @_;
    open(my $file, '>', "$PLACE.new") or return 0;
    defined syswrite($file, $where) or return 0;
    syscall($FSYNC, fileno $file) == 0 or return 0;
    close($file) or return 0;
    rename("$PLACE.new", $PLACE) or return 0;
    open(my $directory, '<', $STATE) or return 0;
    return syscall($FSYNC, fileno $directory) == 0;
}

sub open_door {
    my ($path) = @_;
    unlink $path;
    socket(my $door, $AF_UNIX, $SOCK_STREAM, 0) or die "ums-init: socket: $!\n";
    bind($door, pack('S a108', $AF_UNIX, $path)) or die "ums-init: $path: $!\n";
    chmod 0600, $path;
    listen($door, $CONNECTIONS_MAX) or die "ums-init: listen: $!\n";
    return $door;
}

# Once for each container: the first processes of the service come after the ids that are ours.
sub skip_reserved {
    for (1 .. $RESERVED) {
        my $pid = fork // die "ums-init: fork: $!\n";
        end_at_once() if $pid == 0;
        waitpid($pid, 0);
        return if $pid >= $RESERVED - 1;
    }
}

# Without running anything that Perl would do at its end.
sub end_at_once { kill 'KILL', $$; sleep 1 }

sub forward {
    my ($name) = @_;
    if ($service) { kill $name, $service }
    elsif ($name eq 'TERM' || $name eq 'INT' || $name eq 'QUIT') { $stopping = 1 }
}

# Collects what has ended; the status to end with when the service has.
sub collect {
    my ($open) = @_;
    while ((my $pid = waitpid(-1, $WNOHANG)) > 0) {
        my $status = $? & 127 ? 128 + ($? & 127) : $? >> 8;
        if ($pid == $service) {
            return $status if !$released && !$arriving;
            end_remains() if $arriving;
            ($service, $released, $arriving) = (0, 0, 0);
        }
        elsif ($pid == $agent) {
            ($agent, $agent_due) = (0, time + $AGENT_PAUSE_S);
            $agent_starts = 0 if time - $agent_since >= $AGENT_STEADY_S;
        }
        elsif (my $waiter = delete $waiting{$pid}) {
            if ($waiter->{brings} && $status == 0) { ($service, $arriving) = ($waiter->{brings}, 1) }
            elsif ($waiter->{brings}) { end_remains() }
            answer($open, $waiter->{asker}, "ended $status");
        }
    }
    return undef;
}

# What a service has left that has ended before it was handed over, and a CRIU that was killed in its restore: none of that
# may go on. It is all that descends from this process and is not the agent's.
sub end_remains {
    for (1 .. $REMAINS_ROUNDS) {
        my %parent = map { $_ => parent_of($_) } grep { /^\d+$/ } list('/proc');
        my @remains = grep { my $top = top_of($_, \%parent); $top && $top != $agent && !$waiting{$top} } keys %parent;
        return if !@remains;
        kill 'KILL', @remains;
        select(undef, undef, undef, $REMAINS_PAUSE_S);
        waitpid($_, $WNOHANG) for @remains;
    }
}

sub list {
    opendir(my $directory, $_[0]) or return ();
    return readdir $directory;
}

# 0 for one that has ended meanwhile, and for what the engine has put into the container (podman exec).
sub parent_of {
    open(my $file, '<', "/proc/$_[0]/stat") or return 0;
    return (<$file> // '') =~ /.*\) \S (\d+) / ? $1 : 0;
}

# The child of this process that another one descends from, or is itself; 0 if it does not descend from this process.
sub top_of {
    my ($pid, $parent) = @_;
    while (my $above = $parent->{$pid}) {
        return $pid if $above == $$;
        $pid = $above;
    }
    return 0;
}

# One program with a process of its own, under a given id or the next one. Returns in the parent only.
sub launch {
    my ($id, $in_child) = @_;
    my $pid = $id ? clone_as($id) : fork;
    return $pid if !defined $pid || $pid != 0;
    $SIG{$_} = 'DEFAULT' for @FORWARDED, 'CHLD';
    eval { $in_child->(); 1 } or print STDERR "ums-init: $@";
    end_at_once();
}

# fork with an id of ours: clone3 with set_tid (clone3(2)); undef and $! where it cannot be.
sub clone_as {
    my ($id) = @_;
    my $wanted = pack('l', $id);
    my $arguments = pack('Q4 Q Q3 P Q Q', 0, 0, 0, 0, $SIGCHLD, 0, 0, 0, $wanted, 1, 0);
    my $pid = syscall($CLONE3, $arguments, length $arguments);
    return $pid < 0 ? undef : $pid;
}

sub start_service {
    my (@program) = @_;
    die "ums-init: there is no program to start\n" if !@program;
    my $pid = launch(0, sub {
        # It is a session of its own, or CRIU would look for the session's leader; and orphans of the service become its
        # children as they would of a first process, so that they belong to what is dumped.
        syscall($SETSID);
        syscall($PRCTL, $PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        $ENV{HOME} //= '/root';
        delete $ENV{$_} for grep { /^UMS_/ } keys %ENV;
        { no warnings 'exec'; exec { $program[0] } @program }
        print STDERR "ums-init: $program[0]: $!\n";
    });
    return $pid // die "ums-init: fork: $!\n";
}

sub start_agent {
    return if $agent_starts++ >= $AGENT_STARTS_MAX;
    my $pid = launch(0, sub {
        syscall($SETSID);
        our_environment();
        open(STDIN, '<', '/dev/null');
        open(STDOUT, '>>', "$STATE/agent.log") or die "$STATE/agent.log: $!\n";
        open(STDERR, '>&', \*STDOUT);
        my @flags = split / /, $SETTINGS{'node-flags'} // '';
        exec "$HOME/bin/node", @flags, "$HOME/app/src/agent/in-container.ts" or die "node: $!\n";
    });
    ($agent, $agent_since) = ($pid // 0, time);
}

# Programs of ours find each other and their libraries, and nothing of the image's.
sub our_environment {
    my %kept = map { $_ => $ENV{$_} } grep { /^UMS_/ || $_ eq 'HOSTNAME' || $_ eq 'TZ' } keys %ENV;
    %ENV = (%kept,
        PATH => "$HOME/bin", UMS_PROGRAMS => "$HOME/bin", LD_LIBRARY_PATH => "$HOME/lib", PERL5LIB => "$HOME/perl", HOME => "$HOME/state",
        TMPDIR => "$HOME/tmp", CRIU_CONFIG_FILE => "$HOME/criu.conf", LC_ALL => 'C', LANG => 'C',
        UMS_RUN_DIR => $RUN, UMS_STATE_DIR => $STATE, NODE_COMPILE_CACHE => "$HOME/compiled", NODE_COMPILE_CACHE_PORTABLE => 1);
}

# Requests of the agent, one a connection: words with NUL between them, then the end of what it writes.
#
#   threads              the agent has all its threads
#   service              "service PID PLACE RUNS": PID is 0 when there is none, PLACE "-" before any migration, RUNS how
#                        many CRIU there are, also of those whose asker has gone
#   criu ARGUMENT...     runs CRIU under an id of ours: "ended STATUS"; one at a time
#   restore PID ARGUMENT...  the same; if it succeeds, PID is the service, whose end is ours, also if nobody hears of it
#   release              the service is about to be ended, and the container goes on without it
#   place WHERE          "here", "held" or "away": see $PLACE
#   start                starts the program anew
sub serve {
    my ($door, $open) = @_;
    my $bits = '';
    vec($bits, fileno($_), 1) = 1 for $door, map { $_->{socket} } grep { !$_->{asked} } values %$open;
    my $ready = select($bits, undef, undef, %waiting ? $WAIT_BUSY_S : $WAIT_S);
    return if $ready <= 0;
    for my $each (values %$open) {
        next if $each->{asked} || !vec($bits, fileno($each->{socket}), 1);
        my $got = sysread($each->{socket}, $each->{request}, 4096, length $each->{request});
        if ($got && length $each->{request} <= $REQUEST_BYTES_MAX) { next }
        if (!defined $got || $got) { drop($open, $each); next }
        $each->{asked} = 1;
        obey($open, $each, split /\0/, $each->{request});
    }
    return if !vec($bits, fileno($door), 1) || keys %$open >= $CONNECTIONS_MAX;
    accept(my $socket, $door) or return;
    $open->{ fileno $socket } = { socket => $socket, request => '', asked => 0, key => fileno $socket };
}

sub obey {
    my ($open, $asker, $word, @words) = @_;
    $word //= '';
    if ($word eq 'service') { answer($open, $asker, join ' ', 'service', $service, place() || '-', scalar keys %waiting) }
    elsif ($word eq 'threads') {
        begin(@ARGV) if $begin_by;
        answer($open, $asker, 'done');
    }
    elsif ($word eq 'criu' || $word eq 'restore') {
        my $brings = $word eq 'restore' ? shift @words : 0;
        return answer($open, $asker, 'refused') if %waiting || $brings !~ /^\d+$/ || ($brings && $service);
        my $pid = launch_low(sub {
            our_environment();
            exec "$HOME/bin/criu", @words or die "criu: $!\n";
        });
        return answer($open, $asker, "failed $!") if !defined $pid;
        $waiting{$pid} = { asker => $asker, brings => $brings };
    }
    elsif ($word eq 'release') {
        $released = $service != 0;
        answer($open, $asker, 'done');
    }
    elsif ($word eq 'place' && ($words[0] // '') =~ /^(?:here|held|away)$/) {
        my $written = write_place($words[0]);
        $arriving = 0 if $written && $words[0] eq 'here';
        answer($open, $asker, $written ? 'done' : "failed $!");
    }
    elsif ($word eq 'start' && !$service) {
        $service = start_service(@ARGV);
        answer($open, $asker, "service $service");
    }
    else { answer($open, $asker, 'refused') }
}

# The highest of our ids that is free: an id that the service brings along is never below the reserved ones.
sub launch_low {
    my ($in_child) = @_;
    for (my $id = $RESERVED - 1; $id > 1; $id--) {
        next if -e "/proc/$id";
        my $pid = launch($id, $in_child);
        return $pid if defined $pid;
        # Without the capability an id cannot be chosen; CRIU will say so itself.
        return launch(0, $in_child) if $! != $EEXIST;
    }
    return launch(0, $in_child);
}

sub answer {
    my ($open, $asker, $text) = @_;
    # Whoever has gone away does not hear it.
    local $SIG{PIPE} = 'IGNORE';
    syswrite($asker->{socket}, $text);
    drop($open, $asker);
}

sub drop {
    my ($open, $asker) = @_;
    delete $open->{ $asker->{key} };
    close($asker->{socket});
}
