# Fills the memory of restored processes through their userfaultfds: what a process waits for first, then what has just
# become final, then everything else that is final.
package UMS::Filler;
use strict;
use warnings;
use Errno qw(EAGAIN EEXIST ENOENT ESRCH ENOSPC);
use UMS::Kernel;
use UMS::Memory;
use UMS::Store;

use constant {
    # A background copy is not interrupted, so it is as long as a fault may have to wait: about 0.4 ms, and 0.05 ms where
    # a fault was seen lately.
    CHUNK_PAGES => READ_PAGES,
    CHUNK_AMID_FAULTS => 32,
    AMID_FAULTS_US => 2000,
    # Fewer pages are not worth the word to the second process.
    HAND_PAGES => 128,
    # What is there beside a page that is waited for is installed with it: it must be anyhow, and saves the next fault.
    CLUSTER_PAGES => 8,
    SCAN_PAGES => 16384,
    # What a process will probably touch next.
    AHEAD_PAGES => 15,
    RECENT_MAX => 4096,
    RECENT_PAGES => 128,
    # A page that has no place although nothing said that it was given up.
    MISPLACED_LIMIT_US => 10e6,
    RESCAN_US => 100e3,
    # Fewer pages are not worth a call that gives them back.
    RELEASE_PAGES => 16,
    BUCKETS => 24,
};
my ($EVENT_FAULT, $EVENT_FORK, $EVENT_REMAP, $EVENT_REMOVE, $EVENT_UNMAP) = (0x12, 0x13, 0x14, 0x15, 0x16);

# demand: called with (pid, first, count, urgent). adopt: with (serial, descriptor) of a new process. release: with serial.
# release_pages: with (file, first, count) of what nobody reads any more. hand: a UMS::Hand, or undef.
sub new {
    my ($class, %options) = @_;
    return bless {
        %options, serial => 0, tasks => {}, stores => {}, waiting => {}, retry => [], recent => [],
        early => [], sweep => [], rescan_us => 0, fault_us => 0, misplaced_us => 0, background => 0,
        hurried => 0, faults => 0, remote => 0, zeros => 0, copied => 0, total => 0, latency => [(0) x BUCKETS], remote_latency => [(0) x BUCKETS],
    }, $class;
}

sub add_task {
    my ($self, $pid, $fd, $memory) = @_;
    my $plan = $self->{plan}{$pid} // [];
    open(my $handle, '+<&=', $fd) or die "userfaultfd: $!\n";
    my $serial = ++$self->{serial};
    $self->{stores}{$pid} //= UMS::Store->new($self->{store}, "process:$pid");
    $self->{adopt}->($serial, $fd);
    $self->{hand}->adopt($serial, $fd, $pid) if defined $self->{hand};
    $self->{total} += $_->[1] for defined $memory ? () : @$plan;
    $self->{tasks}{$serial} = { serial => $serial, pid => $pid, fd => $fd, handle => $handle,
        memory => $memory // UMS::Memory->new($plan), misplaced => {} };
    push @{ $self->{sweep} }, [$serial, 0] if $self->{background};
    return $serial;
}

# Called when restore has put every process's memory into place.
sub begin {
    my ($self) = @_;
    $self->{background} = 1;
    $self->{began_us} = now_us();
    $self->check_done($_) for values %{ $self->{tasks} };
    $self->sweep_again;
}

# The processes run, and nothing else waits for the processor: from here on the second process helps.
sub hurry { my ($self) = @_; $self->{hurried} = 1 }

# Pages that must be there before the processes run are fetched as if they had touched them. `early`: pid => [[first, count]].
sub want_early {
    my ($self, $early) = @_;
    my $now = now_us();
    for my $task (values %{ $self->{tasks} }) {
        for my $range (@{ $early->{ $task->{pid} } // [] }) {
            push @{ $self->{early} }, map { [$task->{serial}, $_] } $range->[0] .. $range->[0] + $range->[1] - 1;
        }
    }
    for my $page ($self->open_early) {
        my $task = $self->{tasks}{ $page->[0] } or next;
        $self->fault($task, $page->[1], $now);
    }
}

sub open_early {
    my ($self) = @_;
    return grep {
        my ($serial, $page) = @$_;
        my $memory = ($self->{tasks}{$serial} // {})->{memory};
        my $piece = defined $memory ? $memory->piece_at($page) : undef;
        defined $piece && $memory->is_open($piece, $page);
    } @{ $self->{early} };
}

sub lacks_early {
    my ($self) = @_;
    $self->{early} = [$self->open_early];
    return scalar @{ $self->{early} };
}

sub sweep_again {
    my ($self) = @_;
    $self->{sweep} = [map { [$_, 0] } sort { $a <=> $b } keys %{ $self->{tasks} }];
    $self->{rescan_us} = now_us() + RESCAN_US;
}

sub finished { my ($self) = @_; return $self->{background} && !keys %{ $self->{tasks} } }

# Events of one process. What it has done to its address space is noted before any page is put there: once an event has
# been read the process goes on, and a page put into a range that it gave up would be seen instead of zeros.
sub read_events {
    my ($self, $serial) = @_;
    my $task = $self->{tasks}{$serial} or return;
    my @messages = uffd_read($task->{handle});
    return $self->gone($task) if @messages && !defined $messages[0];
    my @faults;
    for my $message (@messages) {
        my ($event, $one, $two, $three) = @$message;
        my $memory = $task->{memory};
        if ($event == $EVENT_FAULT) { push @faults, $two >> 12 }
        elsif ($event == $EVENT_FORK) { $self->add_task($task->{pid}, $one & 0xffffffff, $memory->clone) }
        elsif ($event == $EVENT_REMAP) { $memory->move($one >> 12, $two >> 12, $three >> 12) }
        elsif ($event == $EVENT_REMOVE || $event == $EVENT_UNMAP) { $memory->drop($one >> 12, ($two - $one) >> 12) }
        else { die "unexpected userfaultfd event $event\n" }
    }
    $self->{faults} += @faults;
    my $now = now_us();
    $self->{fault_us} = $now if @faults;
    $self->fault($task, $_, $now) for @faults;
    $self->check_done($task);
}

# A process waits for this page. `since`: when that was seen.
sub fault {
    my ($self, $task, $page, $since, $remote) = @_;
    my $memory = $task->{memory};
    my $piece = $memory->piece_at($page);
    my $image = defined $piece ? $piece->[3] + $page - $piece->[0] : undef;
    if (defined $piece && !$memory->is_open($piece, $page)) { uffd_wake($task->{fd}, $page, 1) }
    elsif (!defined $piece) {
        my (undef, $error) = uffd_zero($task->{fd}, $page, 1);
        return push @{ $self->{retry} }, [$task->{serial}, $page, $since, $remote] if $error == EAGAIN;
        return $self->gone($task) if $error == ESRCH || $error == ENOSPC;
        uffd_wake($task->{fd}, $page, 1) if $error;
    }
    else {
        my $states = $self->{stores}{ $task->{pid} }->states($image, CLUSTER_PAGES);
        return $self->wait_for($task, $page, $image, $since) unless $states =~ /^(?:F+|Z+)/;
        my (undef, undef, $open) = $memory->next_open($page, $+[0]);
        my (undef, $error) = $self->install($task, $piece, $page, $open, substr($states, 0, 1));
        return push @{ $self->{retry} }, [$task->{serial}, $page, $since, $remote] if $error == EAGAIN;
        uffd_wake($task->{fd}, $page, 1) if $error;
    }
    my $bucket = int(log(now_us() - $since + 1) / log(2));
    $self->{ $remote ? 'remote_latency' : 'latency' }[$bucket < BUCKETS ? $bucket : BUCKETS - 1]++;
}

sub wait_for {
    my ($self, $task, $page, $image, $since) = @_;
    my $waiters = $self->{waiting}{ $task->{pid} }{$image} //= [];
    push @$waiters, [$task->{serial}, $page, $since, 1];
    return if @$waiters > 1;
    $self->{remote}++;
    $self->{demand}->($task->{pid}, $image, 1, 1);
    my $piece = $task->{memory}->piece_at($page);
    my $ahead = $piece->[0] + $piece->[1] - $page - 1;
    $ahead = AHEAD_PAGES if $ahead > AHEAD_PAGES;
    $self->{demand}->($task->{pid}, $image + 1, $ahead, 0) if $ahead > 0;
}

# Puts final pages, which lie in one piece, where they belong: (pages done, error of the rest).
sub install {
    my ($self, $task, $piece, $page, $count, $state) = @_;
    my $image = $piece->[3] + $page - $piece->[0];
    return $self->settle($task, $piece, $page, $count, $state, uffd_zero($task->{fd}, $page, $count)) if $state eq 'Z';
    my $hand = $self->{hurried} && $count >= HAND_PAGES && !$self->amid_faults ? $self->{hand} : undef;
    my $own = defined $hand ? $count >> 1 : $count;
    my $helped = $own < $count && $hand->copy($task->{serial}, $page + $own, $image + $own, $count - $own);
    $own = $count unless $helped;
    my @own = $self->copy_here($task, $page, $image, $own);
    my @helped = $helped ? $hand->copied : ();
    my ($done, $error) = $self->settle($task, $piece, $page, $own, $state, @own);
    return ($done, $error) if !$helped || !exists $self->{tasks}{ $task->{serial} };
    my ($more, $problem) = $self->settle($task, $piece, $page + $own, $count - $own, $state, @helped);
    return $done < $own ? ($done, $error) : ($own + $more, $problem);
}

sub copy_here {
    my ($self, $task, $page, $image, $count) = @_;
    return uffd_copy($task->{fd}, $page, $self->{stores}{ $task->{pid} }->content($image, $count), $count);
}

# Notes what came of it.
sub settle {
    my ($self, $task, $piece, $page, $count, $state, $done, $error) = @_;
    my $memory = $task->{memory};
    $self->{ $state eq 'Z' ? 'zeros' : 'copied' } += $done;
    $memory->mark_done($piece, $page, $done) if $done > 0;
    $self->release_pages($task, $piece->[3] + $page - $piece->[0], $done) if $state eq 'F' && $done >= RELEASE_PAGES;
    return ($done, 0) if $done == $count;
    # There already: another thread was faster, or the process has written there before its first copy.
    if ($error == EEXIST) {
        $memory->mark_done($piece, $page + $done, 1);
        return ($done + 1, 0);
    }
    if ($error == ESRCH || $error == ENOSPC) { $self->gone($task) }
    elsif ($error == ENOENT) {
        # A copy must lie in one mapping, and the process may have divided what was one.
        return $self->install($task, $piece, $page, $count >> 1, $state) if $done == 0 && $count > 1;
        $self->misplace($task, $page + $done) if $done == 0;
    }
    elsif ($error != EAGAIN) { local $! = $error; die "a page could not be placed: $!\n" }
    return ($done, $error);
}

# What the process has got, the store need not hold any more: its memory serves for the pages that come next, so that a
# host needs room for a service once, not twice. A process that was forked off before may still lack the page; one that
# is forked off later has it from its parent.
sub release_pages {
    my ($self, $task, $image, $count) = @_;
    return if grep { $_->{pid} == $task->{pid} && $_ != $task } values %{ $self->{tasks} };
    my $store = $self->{stores}{ $task->{pid} };
    $self->{release_pages}->($store->data_path, $image, $count) if $store->is_sealed;
}

# Only a page that lies nowhere comes here; if no event explains it in time, the memory cannot be made whole.
sub misplace {
    my ($self, $task, $page) = @_;
    $task->{misplaced}{$page} //= now_us();
    die sprintf("page %x of process %d has no place\n", $page, $task->{pid})
        if now_us() - $task->{misplaced}{$page} > MISPLACED_LIMIT_US;
}

sub gone {
    my ($self, $task) = @_;
    $self->remove_task($task);
}

sub check_done {
    my ($self, $task) = @_;
    return unless $self->{background} && $task->{memory}{open} == 0 && exists $self->{tasks}{ $task->{serial} };
    $self->remove_task($task);
}

# When the last holder lets go, the kernel wakes whoever waits and forgets the registration.
sub remove_task {
    my ($self, $task) = @_;
    delete $self->{tasks}{ $task->{serial} };
    $self->{hand}->drop($task->{serial}) if defined $self->{hand};
    $self->{release}->($task->{serial}, $task->{fd});
    close $task->{handle};
}

# Pages have become final.
sub arrived {
    my ($self, $pid, $first, $count) = @_;
    $self->serve_waiting($pid, $first, $count);
    push @{ $self->{recent} }, [$pid, $first, $count] if $self->{background} && @{ $self->{recent} } < RECENT_MAX;
}

sub serve_waiting {
    my ($self, $pid, $first, $count) = @_;
    my $waiting = $self->{waiting}{$pid} or return;
    return unless %$waiting;
    my @images = $count < keys %$waiting ? $first .. $first + $count - 1
        : grep { $_ >= $first && $_ < $first + $count } keys %$waiting;
    for my $image (@images) {
        my $waiters = $waiting->{$image} or next;
        next unless $self->{stores}{$pid}->states($image, 1) =~ /^[FZ]/;
        delete $waiting->{$image};
        push @{ $self->{retry} }, @$waiters;
    }
}

# Without word from the agent, the store itself says what has become final.
sub look_for_waiting {
    my ($self) = @_;
    for my $pid (keys %{ $self->{waiting} }) {
        for my $image (keys %{ $self->{waiting}{$pid} }) { $self->serve_waiting($pid, $image, 1) }
    }
}

sub has_waiting { my ($self) = @_; return scalar grep { %$_ } values %{ $self->{waiting} } }

sub demand_again {
    my ($self) = @_;
    for my $pid (keys %{ $self->{waiting} }) {
        $self->{demand}->($pid, $_, 1, 1) for sort { $a <=> $b } keys %{ $self->{waiting}{$pid} };
    }
}

sub serve_retries {
    my ($self) = @_;
    my @again = splice(@{ $self->{retry} });
    for my $waiter (@again) {
        my ($serial, $page, $since, $remote) = @$waiter;
        my $task = $self->{tasks}{$serial} or next;
        $self->fault($task, $page, $since, $remote);
        $self->check_done($task);
    }
}

# One step in the background; false when there is nothing to do until something happens.
sub work {
    my ($self) = @_;
    return 0 unless $self->{background};
    if (my $recent = shift @{ $self->{recent} }) {
        my ($pid, $first, $count) = @$recent;
        if ($count > RECENT_PAGES) {
            unshift @{ $self->{recent} }, [$pid, $first + RECENT_PAGES, $count - RECENT_PAGES];
            $count = RECENT_PAGES;
        }
        for my $task (grep { $_->{pid} == $pid } values %{ $self->{tasks} }) {
            for my $place ($task->{memory}->places($first, $count)) { $self->fill($task, @$place) }
            $self->check_done($task);
        }
        return 1;
    }
    my $turn = $self->{sweep}[0] or return 0;
    my ($serial, $page) = @$turn;
    my $task = $self->{tasks}{$serial};
    my $next = defined $task ? $self->fill_from($task, $page) : undef;
    if (defined $next) { $turn->[1] = $next }
    else { shift @{ $self->{sweep} } }
    $self->check_done($task) if defined $task;
    return 1;
}

sub fill {
    my ($self, $task, $page, $count) = @_;
    my $end = $page + $count;
    while ($page < $end) {
        my ($piece, $first, $open) = $task->{memory}->next_open($page, CHUNK_PAGES) or return;
        return if $first >= $end;
        $page = $self->fill_run($task, $piece, $first, $open < $end - $first ? $open : $end - $first);
        return unless exists $self->{tasks}{ $task->{serial} };
    }
}

# Returns the page to go on from, or undef at the end of this process's memory.
sub fill_from {
    my ($self, $task, $page) = @_;
    my ($piece, $first, $open) = $task->{memory}->next_open($page, SCAN_PAGES) or return undef;
    return $self->fill_run($task, $piece, $first, $open);
}

sub amid_faults { my ($self) = @_; return now_us() - $self->{fault_us} < AMID_FAULTS_US }

# Installs the final ones among these open pages, CHUNK_PAGES at most; returns the page to go on from.
sub fill_run {
    my ($self, $task, $piece, $first, $count) = @_;
    my $image = $piece->[3] + $first - $piece->[0];
    my $store = $self->{stores}{ $task->{pid} };
    my $budget = $self->amid_faults ? CHUNK_AMID_FAULTS : CHUNK_PAGES;
    my $states = $store->states($image, $count < $budget ? $count : $budget);
    # Where nothing has arrived yet, a longer look costs less than many short ones.
    $states = $store->states($image, $count) if $count > $budget && $states !~ /[FZ]/;
    while ($states =~ /F+|Z+/g) {
        my ($at, $run) = ($-[0], $+[0] - $-[0]);
        return $first + $at if $budget <= 0;
        $run = $budget if $run > $budget;
        my ($done, $error) = $self->install($task, $piece, $first + $at, $run, substr($states, $at, 1));
        # A process that changes its address space is left alone: its event comes first, and the next sweep here.
        return $first + $count if $error == EAGAIN && $done == 0 || !exists $self->{tasks}{ $task->{serial} };
        return $first + $at + ($done > 0 ? $done : 1) if $done < $run;
        $budget -= $run;
    }
    return $first + (length $states || $count);
}

sub counters {
    my ($self) = @_;
    my $open = 0;
    $open += $_->{memory}{open} for values %{ $self->{tasks} };
    my ($user, $system, @hands) = times;
    my $elapsed = defined $self->{began_us} ? now_us() - $self->{began_us} : 0;
    return { elapsed_ms => int($elapsed / 1e3), cpu_ms => int(($user + $system + $hands[0] + $hands[1]) * 1e3),
        faults => $self->{faults}, remote_faults => $self->{remote}, pages => $self->{copied},
        zero_pages => $self->{zeros}, open_pages => $open, total_pages => $self->{total},
        processes => scalar keys %{ $self->{tasks} }, latency_us => $self->{latency},
        remote_latency_us => $self->{remote_latency} };
}

1;
