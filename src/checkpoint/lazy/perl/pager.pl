#!/usr/bin/perl
# pager.pl DIR WORK STORE: fills the memory of a lazily restored service from the page store, in the place of CRIU's own
# lazy-pages daemon (docs/design-decisions.md says why). It takes the userfaultfds from `criu restore --lazy-pages`, which
# looks for them at lazy-pages.socket in its work directory, and answers every fault from STORE; what is not final there
# yet it demands from the agent. It outlives the agent, ends by itself when everything is filled, and leaves its end in
# DIR/result.json. A second process, keeper.pl, holds the userfaultfds too.
#
# Commands at DIR/control.sock, a line each; the answer is a line "ok COMMAND …" or "error COMMAND text":
#   serve              the plan is there: listen for restore. DIR/plan: "PID FIRST COUNT" a line, and "early PID FIRST COUNT"
#                      for those of them that must be there before the processes run
#   hold               answered when restore is finished, the early pages are in their places and the keeper has every
#                      descriptor: "ok hold COUNT"
#   listen             demands go to this connection: "demand PID FIRST COUNT urgent|ahead"
#   final PID FIRST COUNT   these pages have become final; no answer
#   hurry              the processes run: filling may take a second processor; no answer
#   status             "ok status JSON"
#   stop               the service is gone: let go of everything and end
use strict;
use warnings;
use Errno qw(EAGAIN EINTR);
use Fcntl qw(F_SETFD F_GETFL F_SETFL O_NONBLOCK);
use Socket qw(AF_UNIX PF_UNIX SOCK_STREAM PF_UNSPEC pack_sockaddr_un);

my $HERE;
BEGIN { ($HERE) = __FILE__ =~ m{^(.*)/}; $HERE //= '.'; unshift @INC, $HERE }
use UMS::Kernel;
use UMS::Filler;
use UMS::Hand;
use UMS::Releaser;
require "$HERE/../../awake.pl";

my ($directory, $work, $store) = @ARGV;
die "usage: pager.pl DIR WORK STORE\n" unless defined $store;
require_x86_64();
umask 0077;
$SIG{$_} = 'IGNORE' for qw(HUP PIPE CHLD);
my $SETSID = 112;
my $RESTORE_FINISHED = 0x52535446;
my ($INPUT_MAX, $OUTPUT_MAX, $PLAN_MAX) = (1 << 16, 1 << 20, 4_000_000);
my $IDLE_MS = 1000;
my $LOOK_MS = 5;
my $KEEPERS_MAX = 100;

my $epoll = epoll_new();
my %on;                 # descriptor => what to do when something is there
my %clients;            # descriptor => { handle, input, output, listens }
my (%plan, %early);
my ($state, $error) = ('waiting', undef);
my ($keeper, $front, $restore, $front_wants);
my $keepers = 0;
my @holders;            # clients that wait for the answer to "hold"
my $spins = 0;

# The agent starts this process early, so that nothing of it is waited for while the service is frozen.
sub start_keeper {
    socketpair(my $ours, my $theirs, AF_UNIX, SOCK_STREAM, PF_UNSPEC) or die "socketpair: $!\n";
    my $pid = fork() // die "fork: $!\n";
    if ($pid == 0) {
        syscall($SETSID);
        fcntl($theirs, F_SETFD, 0);
        exec $^X, "$HERE/keeper.pl", $directory, fileno($theirs);
        die "keeper.pl: $!\n";
    }
    close $theirs;
    return $ours;
}

sub listen_at {
    my ($path) = @_;
    unlink $path;
    socket(my $socket, PF_UNIX, SOCK_STREAM, 0) or die "socket: $!\n";
    bind($socket, pack_sockaddr_un($path)) or die "$path: $!\n";
    listen($socket, 16) or die "$path: $!\n";
    return $socket;
}

sub watch { my ($fd, $action) = @_; $on{$fd} = $action; epoll_add($epoll, $fd) }

my $releaser = UMS::Releaser->new;
my $hand = processors() > 1 ? UMS::Hand->new($store) : undef;
my $filler;
$filler = UMS::Filler->new(
    store => $store,
    plan => \%plan,
    hand => $hand,
    demand => sub {
        my ($pid, $first, $count, $urgent) = @_;
        for my $client (grep { $_->{listens} } values %clients) {
            # A hint is worth nothing when there are more than can be told.
            next if !$urgent && length $client->{output} > 4096;
            say_to($client, "demand $pid $first $count " . ($urgent ? 'urgent' : 'ahead'));
        }
    },
    adopt => sub {
        my ($serial, $fd) = @_;
        until (send_descriptor($keeper, "h $serial\n", $fd)) { renew_keeper() }
        watch($fd, sub { $filler->read_events($serial) });
    },
    release_pages => sub { $releaser->release(@_) },
    release => sub {
        my ($serial, $fd) = @_;
        delete $on{$fd};
        epoll_remove($epoll, $fd);
        syswrite($keeper, "d $serial\n") or renew_keeper();
    },
);

# A dead keeper is no reason to die too: that would be the one thing which it is there to prevent.
sub renew_keeper {
    die "keepers do not live\n" if ++$keepers > $KEEPERS_MAX;
    if (defined $keeper) {
        delete $on{ fileno($keeper) };
        close $keeper;
    }
    $keeper = start_keeper();
    watch(fileno($keeper), \&keeper_says);
    for my $task (values %{ $filler->{tasks} }) {
        send_descriptor($keeper, "h $task->{serial}\n", $task->{fd}) or return renew_keeper();
    }
}

# It speaks when asked only, so this is its end.
sub keeper_says { renew_keeper() unless sysread($keeper, my $line, 32) }

sub held {
    for (1 .. 2) {
        my $line = '';
        return $1 if syswrite($keeper, "?\n") && sysread($keeper, $line, 32) && $line =~ /^(\d+)$/;
        renew_keeper();
    }
    return -1;
}

# The kernel shall end others first, and a process that waits for a page shall not wait for others' work.
sub be_important {
    my ($pid) = @_;
    setpriority(0, $pid, -10);
    open(my $file, '>', "/proc/$pid/oom_score_adj") or return;
    syswrite($file, '-900');
}

sub read_plan {
    open(my $file, '<', "$directory/plan") or die "plan: $!\n";
    my $lines = 0;
    (%plan, %early) = ();
    while (my $line = <$file>) {
        die "the plan is too long\n" if ++$lines > $PLAN_MAX;
        my ($early, $pid, $first, $count) = $line =~ /^(early )?(\d+) (\d+) (\d+)$/ or die "plan: line $lines\n";
        push @{ (defined $early ? \%early : \%plan)->{$pid} }, [$first, $count];
    }
}

# ---- restore's side

sub serve {
    return if defined $front;
    read_plan();
    chdir $work or die "$work: $!\n";
    $front = listen_at('lazy-pages.socket');
    watch(fileno($front), \&accept_restore);
}

sub accept_restore {
    accept(my $connection, $front) or return;
    die "a second restore wants its memory filled\n" if defined $restore;
    ($restore, $front_wants) = ($connection, 'pid');
    watch(fileno($restore), \&restore_says);
}

my $pid_bytes = '';
my $task_pid;

# A pid, 4 bytes, then a byte with the userfaultfd of that process; a zombie has a negative one and no descriptor.
sub restore_says {
    if ($front_wants eq 'descriptor') {
        my ($got, undef, $fd) = receive_message($restore, 1);
        return restore_left() if $got <= 0;
        die "restore sent no userfaultfd\n" unless defined $fd;
        $front_wants = 'pid';
        $filler->add_task($task_pid, $fd);
        return;
    }
    my $got = sysread($restore, my $bytes, 4 - length $pid_bytes);
    return restore_left() unless $got;
    $pid_bytes .= $bytes;
    return if length $pid_bytes < 4;
    ($task_pid) = unpack('l<', $pid_bytes);
    $pid_bytes = '';
    if ($task_pid == $RESTORE_FINISHED) {
        $state = 'serving';
        $filler->want_early(\%early);
        $filler->begin;
    }
    elsif ($task_pid > 0) { $front_wants = 'descriptor' }
}

sub restore_left {
    delete $on{ fileno($restore) };
    close $restore;
    undef $restore;
    die "restore ended before it was finished\n" if $state eq 'waiting';
}

# ---- the agent's side

sub accept_client {
    my ($listener) = @_;
    accept(my $handle, $listener) or return;
    my $flags = fcntl($handle, F_GETFL, 0);
    fcntl($handle, F_SETFL, $flags | O_NONBLOCK);
    my $client = { handle => $handle, input => '', output => '', listens => 0 };
    $clients{ fileno($handle) } = $client;
    watch(fileno($handle), sub { client_says($client) });
}

sub say_to {
    my ($client, $line) = @_;
    $client->{output} .= "$line\n";
    flush_to($client);
}

sub flush_to {
    my ($client) = @_;
    while (length $client->{output}) {
        my $written = syswrite($client->{handle}, $client->{output});
        if (!defined $written) {
            return if $! == EAGAIN && length $client->{output} < $OUTPUT_MAX;
            return drop_client($client);
        }
        substr($client->{output}, 0, $written, '');
    }
}

sub drop_client {
    my ($client) = @_;
    @holders = grep { $_ != $client } @holders;
    my $fd = fileno($client->{handle}) // return;
    delete $clients{$fd};
    delete $on{$fd};
    close $client->{handle};
}

sub client_says {
    my ($client) = @_;
    my $got = sysread($client->{handle}, $client->{input}, $INPUT_MAX, length $client->{input});
    return if !defined $got && ($! == EAGAIN || $! == EINTR);
    return drop_client($client) if !$got;
    while ($client->{input} =~ s/^([^\n]*)\n//) { obey($client, split(/ /, $1)) }
    drop_client($client) if length $client->{input} > $INPUT_MAX;
}

sub obey {
    my ($client, $command, @words) = @_;
    $command //= '';
    if ($command eq 'final') { $filler->arrived(@words[0 .. 2]) if @words == 3 }
    elsif ($command eq 'hurry') { $filler->hurry }
    elsif ($command eq 'serve') {
        eval { serve() };
        say_to($client, $@ eq '' ? 'ok serve' : "error serve $@");
    }
    elsif ($command eq 'hold') {
        push @holders, $client;
        say_all_held();
    }
    elsif ($command eq 'listen') {
        $client->{listens} = 1;
        say_to($client, 'ok listen');
        $filler->demand_again;
    }
    elsif ($command eq 'status') { say_to($client, 'ok status ' . status()) }
    elsif ($command eq 'stop') { end_with('stopped', undef, $client) }
    else { say_to($client, "error $command unknown command") }
}

# The answer waits until restore has handed over everything, which may be read after the question, and the early pages.
sub say_all_held {
    return if !@holders || $state eq 'waiting' || $filler->lacks_early;
    say_held($_) for splice @holders;
}

sub say_held {
    my ($client) = @_;
    my ($held, $tasks) = (held(), scalar keys %{ $filler->{tasks} });
    say_to($client, $held == $tasks ? "ok hold $held" : "error hold the keeper has $held of $tasks descriptors");
}

sub status {
    my $counters = $filler->counters;
    my @fields = map {
        my $value = $counters->{$_};
        "\"$_\":" . (ref $value ? '[' . join(',', @$value) . ']' : $value)
    } sort keys %$counters;
    push @fields, "\"state\":\"$state\"";
    if (defined $error) {
        (my $text = $error) =~ s/[^ -~]|["\\]/ /g;
        push @fields, "\"error\":\"$text\"";
    }
    return '{' . join(',', @fields) . '}';
}

# Only now may the keeper let go, and only if nothing is missing or nobody is left who could see it.
sub end_with {
    my ($how, $why, $client) = @_;
    ($state, $error) = ($how, $why);
    $releaser->end;
    $hand->end if defined $hand;
    open(my $file, '>', "$directory/result.json.new") or die "result.json: $!\n";
    print {$file} status(), "\n";
    close $file;
    rename "$directory/result.json.new", "$directory/result.json";
    syswrite($keeper, "e\n") if $how ne 'failed';
    say_to($client, 'ok stop') if defined $client;
    unlink "$work/lazy-pages.socket";
    unlink "$directory/control.sock";
    exit($how eq 'failed' ? 1 : 0);
}

sub timeout_ms {
    # A process in the middle of a change of its address space must come to run.
    return ++$spins < 20 ? 0 : 1 if @{ $filler->{retry} };
    $spins = 0;
    return 0 if @{ $filler->{recent} } || @{ $filler->{sweep} };
    return $LOOK_MS if $filler->has_waiting && !grep { $_->{listens} } values %clients;
    return $filler->{background} ? 100 : $IDLE_MS;
}

sub run {
    chdir $directory or die "$directory: $!\n";
    unlink 'result.json';
    # The filler waits for the second process, so that one is as important.
    eval { be_important($_) } for $$, defined $hand ? $hand->{pid} : ();
    keep_breakpoints_quick();
    renew_keeper();
    # Its answer says that it has come up; there is time for that now, and none later.
    held();
    my $listener = listen_at('control.sock');
    watch(fileno($listener), sub { accept_client($listener) });
    my $looked_us = 0;
    while (!$filler->finished) {
        for my $fd (epoll_wait($epoll, timeout_ms())) {
            my $action = $on{$fd};
            $action->() if defined $action;
        }
        flush_to($_) for grep { length $_->{output} } values %clients;
        $filler->serve_retries;
        say_all_held();
        $filler->work;
        if (now_us() - $looked_us > $LOOK_MS * 1000) {
            $looked_us = now_us();
            $filler->look_for_waiting;
            $filler->sweep_again if $filler->{background} && !@{ $filler->{sweep} } && $looked_us > $filler->{rescan_us};
        }
    }
    end_with('finished');
}

eval { run() };
chomp(my $reason = $@);
eval { end_with('failed', $reason) };
exit 1;
