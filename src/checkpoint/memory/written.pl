#!/usr/bin/perl
# Asks the kernel which pages of other processes were written. One process a migration, and nothing in Node can do this:
# it needs ioctl, ptrace and pidfd_getfd.
#
# How: a userfaultfd in asynchronous write-protect mode belongs to an address space and can only be made from inside it.
# So one thread of the process is stopped for about a millisecond and made to call userfaultfd(), this helper takes a
# copy of the descriptor (pidfd_getfd), and the thread is made to close its own. From then on nothing is left in the
# process; the kernel marks a page as written when its write protection is lifted, without telling anybody, and
# PAGEMAP_SCAN reads the marks and protects the pages again in one step. When this helper ends, however it ends, the
# kernel takes the protection away.
#
# Frames on stdin:  u32 length, u8 command, u32 pid, u64...       Frames on stdout: u32 length, u8 status, payload
#   P probe          -                                              text: why it does not work here; empty: it does
#   A attach         -                                              u32 microseconds the thread was stopped
#   R round          spans                                          u32 failed, written, present, microseconds; then
#   F final          spans                                          failed mappings' starts (u64), page regions (3 * u64)
#   D detach         -                                              -
#   S smaps          -                                              /proc/PID/smaps
# A span is: lowest address, highest address, number of mappings, and start and end of each. The addresses of a span
# reach as far as no mapping of another sort is in the way, so that one that grows meanwhile is not cut in two.
# Status: 0 done, 1 there is no such process, 2 failed (payload: why), 3 the process has another address space now.
use strict;
use warnings;
use POSIX ();

require((__FILE__ =~ m{^(.*)/} ? $1 : ".") . "/../awake.pl");

use constant {
    PAGEMAP_SCAN => 0xC0606610, SCAN_WP => 1, SCAN_CHECK => 2,
    WRITTEN => 2, PRESENT_OR_SWAPPED => 8 | 16, ZERO_PAGE => 32, GUARD => 256,
    UFFDIO_API => 0xC018AA3F, UFFDIO_REGISTER => 0xC020AA00, UFFDIO_UNREGISTER => 0x8010AA01, UFFDIO_WRITEPROTECT => 0xC018AA06, REGISTER_WP => 2,
    PIECE => 128 << 20,
    # Write protection, also of what is not there yet, resolved by the kernel itself.
    FEATURES => 1 << 0 | 1 << 13 | 1 << 15,
    # O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY: the last is what needs no privilege of the program.
    UFFD_FLAGS => 02000000 | 04000 | 1,
    SYS_READ => 0, SYS_CLOSE => 3, SYS_MMAP => 9, SYS_MUNMAP => 11, SYS_IOCTL => 16, SYS_MREMAP => 25, SYS_MADVISE => 28, SYS_SETITIMER => 38,
    SYS_WAIT4 => 61, SYS_PTRACE => 101, SYS_TGKILL => 234, SYS_CLOCK => 228, SYS_KCMP => 312, SYS_UFFD => 323, SYS_PIDFD_OPEN => 434,
    SYS_PIDFD_GETFD => 438,
    REGIONS => 32768, REGION_BYTES => 24, REGIONS_MAX => 1 << 23, FRAME_MAX => 64 << 20,
    DONE => 0, VANISHED => 1, FAILED => 2, REPLACED => 3,
};

my %uffd;      # pid => our descriptor
my @kept;      # descriptors whose twin could not be closed in the process: to know it again
my $empty = ZERO_PAGE; # categories of pages that hold nothing
my $regions;   # address of the buffer for page regions

sub now_us { my $t = "\0" x 16; syscall(SYS_CLOCK, 1, $t); my ($s, $ns) = unpack("qq", $t); return $s * 1e6 + $ns / 1e3 }
sub text_of { my ($path) = @_; open(my $file, "<", $path) or return undef; local $/; return scalar <$file> }
sub error { my ($what) = @_; return "$what: $!" }

# ---- Marks ----------------------------------------------------------------------------------------------------------

sub register {
    my ($fd, $start, $end) = @_;
    my $argument = pack("Q4", $start, $end - $start, REGISTER_WP, 0);
    return syscall(SYS_IOCTL, $fd, UFFDIO_REGISTER, $argument) == 0;
}

# Page regions of [start, end): (start, end, categories) each. undef on failure.
sub scan {
    my ($fd, $start, $end, $flags, $required, $returned) = @_;
    my $found = "";
    while ($start < $end) {
        my $argument = pack("Q12", 96, $flags, $start, $end, 0, $regions, REGIONS, 0,
            $empty, $empty | $required, PRESENT_OR_SWAPPED, $returned);
        my $count = syscall(SYS_IOCTL, $fd, PAGEMAP_SCAN, $argument);
        return undef if $count < 0;
        $found .= unpack("P" . $count * REGION_BYTES, pack("Q", $regions)) if $count > 0;
        return undef if length($found) > REGIONS_MAX * REGION_BYTES;
        my $reached = (unpack("Q12", $argument))[4];
        return undef if $reached <= $start;
        $start = $reached;
    }
    return $found;
}

sub spans_of {
    my @words = @_;
    my @spans;
    while (@words) {
        my ($low, $high, $count) = splice(@words, 0, 3);
        push @spans, [$low, $high, splice(@words, 0, 2 * $count)];
    }
    return @spans;
}

# Lifts the write protection of [low, high), of which all that is mapped is registered. Piece by piece: while one is
# worked upon, the process cannot map or unmap anything.
sub unprotect {
    my ($fd, $low, $high, @mappings) = @_;
    my @bounds = ($low);
    while (my ($start, $end) = splice(@mappings, 0, 2)) {
        for (my $at = $start; $at < $end; $at += PIECE) { push @bounds, $at if $at > $bounds[-1] }
        push @bounds, $end if $end > $bounds[-1];
    }
    push @bounds, $high if $high > $bounds[-1];
    for my $i (1 .. $#bounds) {
        my $argument = pack("Q3", $bounds[$i - 1], $bounds[$i] - $bounds[$i - 1], 0);
        # ENOENT: there is nothing, or something unregistered, which the scan finds out.
        return 0 unless syscall(SYS_IOCTL, $fd, UFFDIO_WRITEPROTECT, $argument) == 0 || $!{ENOENT};
    }
    return 1;
}

# Marks can be trusted only where the mapping was registered all the time since it was last scanned: Linux lets go of one
# into which another is moved (mremap), and leaves the marks of its pages behind, which then say nothing. So the scan
# itself checks the registration, and what fails it is taken on anew: everything there counts as written, and all marks
# are taken away before the first are set. Nothing else may be registered meanwhile.
sub take_on {
    my ($fd, $map, $low, $high, @mappings) = @_;
    my $some = try_to_take_on($fd, $map, $low, $high, @mappings);
    return ($some) if defined $some;
    return (undef, "replaced") if $!{ENOMEM} || $!{ESRCH};
    my ($written, @odd) = ("");
    while (my ($start, $end) = splice(@mappings, 0, 2)) {
        $some = try_to_take_on($fd, $map, $start, $end, $start, $end);
        push @odd, $start unless defined $some;
        $written .= $some // all_written(scan($map, $start, $end, 0, 0, 0) // return (undef, "failed"));
    }
    return ($written, @odd);
}

# undef unless all that is mapped there is registered, and has only marks that were set here.
sub try_to_take_on {
    my ($fd, $map, $low, $high, @mappings) = @_;
    return undef unless register($fd, $low, $high);
    my $some = unprotect($fd, $low, $high, @mappings) ? scan($map, $low, $high, SCAN_WP | SCAN_CHECK, WRITTEN, WRITTEN) : undef;
    return $some if defined $some;
    # What stayed registered must not be taken for something whose marks are known.
    my $range = pack("Q2", $low, $high - $low);
    syscall(SYS_IOCTL, $fd, UFFDIO_UNREGISTER, $range);
    $! = 0;
    return undef;
}

sub round_of {
    my ($pid, @words) = @_;
    my $started = now_us();
    my $fd = $uffd{$pid} // return answer(REPLACED);
    open(my $pagemap, "<", "/proc/$pid/pagemap") or return answer(VANISHED);
    my $map = fileno($pagemap);
    my ($written, $present, @odd) = ("", "");
    for my $span (spans_of(@words)) {
        my ($low, $high, @mappings) = @$span;
        my ($edge, @anew) = ($low);
        while (my ($start, $end) = splice(@mappings, 0, 2)) {
            my $some = scan($map, $start, $end, SCAN_WP | SCAN_CHECK, WRITTEN, WRITTEN);
            push @anew, $start, $end unless defined $some;
            $written .= $some if defined $some;
            next if !@anew || !defined $some && @mappings;
            my ($more, @failed) = take_on($fd, $map, $edge, defined $some ? $start : $high, @anew);
            return $failed[0] eq "replaced" ? answer(REPLACED) : failed("PAGEMAP_SCAN") unless defined $more;
            $written .= $more;
            push @odd, @failed;
            @anew = ();
        }
        continue { $edge = $end unless @anew }
        $present .= scan($map, $low, $high, 0, 0, 0) // return failed("PAGEMAP_SCAN");
    }
    return findings($started, $written, $present, @odd);
}

# Nothing runs there any more: marks are read, and left as they are.
sub final_of {
    my ($pid, @words) = @_;
    my $started = now_us();
    open(my $pagemap, "<", "/proc/$pid/pagemap") or return answer(VANISHED);
    my $map = fileno($pagemap);
    my $pages = "";
    for my $span (spans_of(@words)) {
        my (undef, undef, @mappings) = @$span;
        while (my ($start, $end) = splice(@mappings, 0, 2)) {
            my $some = exists $uffd{$pid} ? scan($map, $start, $end, SCAN_CHECK, 0, WRITTEN) : undef;
            $pages .= $some // all_written(scan($map, $start, $end, 0, 0, 0) // return failed("PAGEMAP_SCAN"));
        }
    }
    return findings($started, $pages, "");
}

# For those who can wait: from here on this process gives way to others.
sub smaps_of {
    my ($pid) = @_;
    setpriority(0, 0, 10);
    my $text = text_of("/proc/$pid/smaps");
    return defined $text ? answer(DONE, $text) : answer(VANISHED);
}

sub findings {
    my ($started, $written, $present, @odd) = @_;
    my @counts = (scalar @odd, length($written) / REGION_BYTES, length($present) / REGION_BYTES, int(now_us() - $started));
    return answer(DONE, pack("L4 Q*", @counts, @odd) . $written . $present);
}

sub all_written { my @words = unpack("Q*", $_[0]); for (my $i = 2; $i < @words; $i += 3) { $words[$i] = WRITTEN } return pack("Q*", @words) }

sub release { my ($pid) = @_; my $fd = delete $uffd{$pid}; POSIX::close($fd) if defined $fd }

sub open_api {
    my ($fd) = @_;
    my $api = pack("Q3", 0xAA, FEATURES, 0);
    return syscall(SYS_IOCTL, $fd, UFFDIO_API, $api) == 0;
}

# ---- Into the process and out again ---------------------------------------------------------------------------------

use constant {
    SEIZE => 0x4206, INTERRUPT => 0x4207, DETACH => 17, CONT => 7, TO_SYSCALL => 24, GETREGS => 12, SETREGS => 13,
    GETSIGMASK => 0x420a, SETSIGMASK => 0x420b, GET_RSEQ => 0x420f,
    TRACESYSGOOD => 1, SUSPEND_SECCOMP => 1 << 21,
    SYSCALL_STOP => 5 | 0x80, EVENT_STOP => 128, WAIT_ALL => 0x40000000,
    # A thread in an uninterruptible call does not stop. Once a thread was changed it must be changed back: only a freeze
    # keeps it from stopping then.
    STOP_LIMIT_US => 300_000, CALL_LIMIT_US => 5_000_000, RETURN_LIMIT_US => 60_000_000,
    # Where in user_regs_struct.
    RAX => 10, RIP => 16, CS => 17, ORIG_RAX => 15, RDI => 14,
};

# Not copied: the kernel writes into the last argument.
sub ptrace { return syscall(SYS_PTRACE, $_[0], $_[1], $_[2], $_[3]) == 0 }

# Waits until the thread has stopped; (signal, event), () after its end or the time limit.
sub wait_stop {
    my ($tid, $limit_us) = @_;
    my ($status, $timer, $before) = ("\0" x 8, pack("q4", 0, 0, int($limit_us / 1e6), $limit_us % 1e6), "\0" x 32);
    # The handler does nothing but end the waiting.
    local $SIG{ALRM} = sub { };
    syscall(SYS_SETITIMER, 0, $timer, $before);
    my $got = syscall(SYS_WAIT4, $tid, $status, WAIT_ALL, 0);
    my $reason = $!;
    $timer = pack("q4", 0, 0, 0, 0);
    syscall(SYS_SETITIMER, 0, $timer, $before);
    $! = $reason;
    return () if $got < 0;
    $status = unpack("L", $status);
    return () if ($status & 0xff) != 0x7f;
    return ($status >> 8 & 0xff, $status >> 16);
}

# Stops the thread where the kernel would restart an interrupted call: signals that come first are passed on.
sub stop_thread {
    my ($tid) = @_;
    ptrace(INTERRUPT, $tid, 0, 0) or return 0;
    for (1 .. 64) {
        my ($signal, $event) = wait_stop($tid, STOP_LIMIT_US) or return 0;
        return 1 if $event == EVENT_STOP;
        ptrace(CONT, $tid, 0, $event == 0 && $signal < 0x80 ? $signal : 0) or return 0;
    }
    return 0;
}

my $stop_signals = 0;   # SIGSTOP cannot be blocked: it is held back and sent again

# Makes the stopped thread carry out one system call; its result, undef if that did not come about.
sub inject {
    my ($tid, $regs, $at, $number, $argument) = @_;
    my @words = unpack("Q27", $regs);
    @words[RAX, RIP, RDI, ORIG_RAX] = ($number, $at, $argument, ~0);
    my $changed = pack("Q27", @words);
    ptrace(SETREGS, $tid, 0, $changed) or return undef;
    my $stops = 0;
    for (1 .. 64) {
        ptrace(TO_SYSCALL, $tid, 0, 0) or return undef;
        my ($signal, $event) = wait_stop($tid, CALL_LIMIT_US) or return undef;
        $stop_signals += $signal == POSIX::SIGSTOP() && $event == 0;
        next unless $signal == SYSCALL_STOP;
        next if ++$stops < 2;
        my $after = "\0" x 216;
        ptrace(GETREGS, $tid, 0, $after) or return undef;
        return unpack("q", pack("Q", (unpack("Q27", $after))[RAX]));
    }
    return undef;
}

# A restartable sequence that is left and entered again would not notice it; there the thread must not be touched.
sub in_rseq {
    my ($pid, $tid, $ip) = @_;
    my $configuration = "\0" x 24;
    return 0 if syscall(SYS_PTRACE, GET_RSEQ, $tid, 24, $configuration) <= 0;
    my ($area) = unpack("Q", $configuration) or return 0;
    my $descriptor = read_memory($pid, $area + 8, 8) or return 0;
    $descriptor = unpack("Q", $descriptor) or return 0;
    my $bytes = read_memory($pid, $descriptor, 32) or return 1;
    my (undef, $start, $length) = unpack("Q3", $bytes);
    return $ip >= $start && $ip < $start + $length;
}

sub read_memory {
    my ($pid, $address, $bytes) = @_;
    open(my $memory, "<:raw", "/proc/$pid/mem") or return undef;
    sysseek($memory, $address, 0) or return undef;
    my $got = sysread($memory, my $content, $bytes);
    return defined $got && $got == $bytes ? $content : undef;
}

# Address of a `syscall` instruction that follows `mov $number,%eax`: the vdso has some, and so has the C library.
sub find_syscall {
    my ($pid) = @_;
    my @code = grep { / [r-]-?.?x|r-x/ } split(/\n/, text_of("/proc/$pid/maps") // "");
    for my $line ((grep { /\[vdso\]/ } @code), (grep { !/\[/ } @code)) {
        my ($start, $end) = map { hex } $line =~ /^([0-9a-f]+)-([0-9a-f]+)/ or next;
        my $length = $end - $start > 4 << 20 ? 4 << 20 : $end - $start;
        my $bytes = read_memory($pid, $start, $length) // next;
        return $start + $+[0] - 2 if $bytes =~ /\xb8..\x00\x00\x0f\x05/s;
    }
    return undef;
}

# Calls that the kernel does not restart after a stop: a program sees EINTR there, as it would after SIGSTOP or a
# freeze. Threads that wait in one are taken last.
my %UNRESTARTED = map { $_ => 1 } 232, 281, 441, 65, 220, 128, 208, 333, 69, 70, 42, 43, 44, 45, 46, 47, 288, 299, 307, 426;

sub pick_threads {
    my ($pid) = @_;
    opendir(my $tasks, "/proc/$pid/task") or return ();
    my @tids = grep { /^\d+$/ } readdir($tasks);
    splice(@tids, 64) if @tids > 64;
    my %rank;
    for my $tid (@tids) {
        my ($state) = (text_of("/proc/$pid/task/$tid/stat") // "") =~ /\) (\S)/;
        next if !defined $state || $state =~ /[DZXx]/;
        my ($call) = split(/ /, text_of("/proc/$pid/task/$tid/syscall") // "running");
        $rank{$tid} = $call =~ /^\d+$/ ? ($UNRESTARTED{$call} ? 2 : 0) : 1;
    }
    return sort { $rank{$a} <=> $rank{$b} || $a <=> $b } map { 0 + $_ } keys %rank;
}

# Runs in a child of its own: whatever goes wrong before the thread was changed, its exit is the detachment.
sub borrow {
    my ($pid, $tid, $at, $options, $ask, $close) = @_;
    ptrace(SEIZE, $tid, 0, $options) or return error("ptrace");
    my $started = now_us();
    stop_thread($tid) or return error("the thread did not stop");
    my ($regs, $mask) = ("\0" x 216, "\0" x 8);
    ptrace(GETREGS, $tid, 0, $regs) && ptrace(GETSIGMASK, $tid, 8, $mask) or return error("ptrace");
    my @words = unpack("Q27", $regs);
    return "it is not a 64-bit program" if $words[CS] != 0x33;
    return "again" if $words[ORIG_RAX] == ~0 && in_rseq($pid, $tid, $words[RIP]);
    my $none = pack("Q", ~0);
    ptrace(SETSIGMASK, $tid, 8, $none) or return error("ptrace");
    inject($tid, $regs, $at, SYS_CLOSE, $_) for @$close;
    my $fd = inject($tid, $regs, $at, SYS_UFFD, UFFD_FLAGS);
    my $problem = !defined $fd ? error("the call did not come about") : $fd < 0 ? do { $! = -$fd; error("userfaultfd") } : "";
    if ($problem eq "") {
        $problem = $ask->($fd);
        my $closed = inject($tid, $regs, $at, SYS_CLOSE, $fd);
        $problem = "its descriptor could not be closed" if !defined $closed || $closed != 0;
    }
    # Back into a stop from which the kernel itself restarts what was interrupted.
    stop_thread_again($tid);
    ptrace(SETREGS, $tid, 0, $regs) && ptrace(SETSIGMASK, $tid, 8, $mask) or $problem ||= error("ptrace");
    ptrace(DETACH, $tid, 0, 0) or $problem ||= error("ptrace");
    syscall(SYS_TGKILL, $pid, $tid, POSIX::SIGSTOP()) if $stop_signals > 0;
    return $problem ne "" ? $problem : "stopped " . int(now_us() - $started);
}

sub stop_thread_again {
    my ($tid) = @_;
    ptrace(INTERRUPT, $tid, 0, 0) or return 0;
    # Where no stop came in time the thread is not stopped, and the interruption alone will stop it.
    ptrace(CONT, $tid, 0, 0);
    for (1 .. 64) {
        my ($signal, $event) = wait_stop($tid, RETURN_LIMIT_US) or return 0;
        return 1 if $event == EVENT_STOP;
        $stop_signals += $signal == POSIX::SIGSTOP() && $event == 0;
        ptrace(CONT, $tid, 0, 0);
    }
    return 0;
}

sub attach {
    my ($pid) = @_;
    release($pid);
    my $status = text_of("/proc/$pid/status") // return answer(VANISHED);
    my ($seccomp) = $status =~ /^Seccomp:\s+(\d+)/m;
    my ($foreign, @leaked) = userfaultfds($pid);
    return answer(FAILED, "it uses userfaultfd itself") if $foreign;
    my $at = find_syscall($pid) // return answer(FAILED, "no system call instruction was found in it");
    my $problem = "none of its threads can be stopped";
    for my $tid ((pick_threads($pid)) x 3) {
        my $options = TRACESYSGOOD | ($seccomp ? SUSPEND_SECCOMP : 0);
        $problem = attach_by($pid, $tid, $at, $options, \@leaked);
        return answer(DONE, pack("L", $1)) if $problem =~ /^stopped (\d+)$/;
        last unless $problem =~ /^again|did not stop/;
    }
    push @kept, delete $uffd{$pid} if $problem =~ /could not be closed/ && exists $uffd{$pid};
    release($pid);
    return -e "/proc/$pid" ? answer(FAILED, $problem) : answer(VANISHED);
}

sub attach_by {
    my ($pid, $tid, $at, $options, $leaked) = @_;
    pipe(my $from_child, my $to_parent) && pipe(my $from_parent, my $to_child) or return error("pipe");
    my $child = fork() // return error("fork");
    if ($child == 0) {
        $SIG{$_} = "IGNORE" for qw(INT TERM HUP PIPE);
        my $ask = sub { syswrite($to_parent, "fd $_[0]\n"); sysread($from_parent, my $word, 512); chomp $word; return $word };
        my $outcome = borrow($pid, $tid, $at, $options, $ask, $leaked);
        syswrite($to_parent, "$outcome\n");
        POSIX::_exit(0);
    }
    close($to_parent);
    close($from_parent);
    my $outcome = "its helper ended";
    while (my $line = <$from_child>) {
        chomp $line;
        if ($line =~ /^fd (\d+)$/) { syswrite($to_child, take_over($pid, 0 + $1) . "\n") }
        else { $outcome = $line }
    }
    waitpid($child, 0);
    return $outcome;
}

# Empty, or why it failed.
sub take_over {
    my ($pid, $fd) = @_;
    my $pidfd = syscall(SYS_PIDFD_OPEN, $pid, 0);
    return error("pidfd_open") if $pidfd < 0;
    my $own = syscall(SYS_PIDFD_GETFD, $pidfd, $fd, 0);
    my $problem = $own < 0 ? error("pidfd_getfd") : "";
    POSIX::close($pidfd);
    return $problem if $own < 0;
    $uffd{$pid} = $own;
    return open_api($own) ? "" : error("the kernel's userfaultfd cannot do it");
}

# Whether the process has userfaultfds of its own, and the numbers of those that it got by a fork from a process whose
# descriptor was being taken over just then.
sub userfaultfds {
    my ($pid) = @_;
    opendir(my $fds, "/proc/$pid/fd") or return (0);
    my ($foreign, @leaked) = (0);
    for my $fd (grep { /^\d+$/ } readdir($fds)) {
        next unless (readlink("/proc/$pid/fd/$fd") // "") eq "anon_inode:[userfaultfd]";
        if (grep { syscall(SYS_KCMP, $pid, 0 + $$, 0, 0 + $fd, 0 + $_) == 0 } @kept, values %uffd) { push @leaked, 0 + $fd }
        else { $foreign = 1 }
    }
    return ($foreign, @leaked);
}

# ---- Does it work here? ---------------------------------------------------------------------------------------------

# Tries on this process's own memory what the tracker relies upon; empty if all of it holds.
sub probe {
    return "this helper is for x86-64" unless (POSIX::uname())[4] eq "x86_64";
    my $fd = syscall(SYS_UFFD, UFFD_FLAGS);
    return error("userfaultfd") if $fd < 0;
    my $problem = open_api($fd) ? try_marks($fd) : "the kernel's userfaultfd has no asynchronous write protection (Linux 6.7 has)";
    POSIX::close($fd);
    return $problem;
}

sub try_marks {
    my ($fd) = @_;
    my $pages = 16;
    my $bytes = $pages * 4096;
    my $at = syscall(SYS_MMAP, 0, $bytes, 3, 0x22, -1, 0);
    open(my $zero, "<", "/dev/zero") or return error("/dev/zero");
    open(my $pagemap, "<", "/proc/self/pagemap") or return error("/proc/self/pagemap");
    my ($input, $map) = (fileno($zero), fileno($pagemap));
    my $write = sub { syscall(SYS_READ, $input, $_[0], 4096) };
    my $written = sub { my $r = scan($map, $_[0], $_[0] + $bytes, SCAN_WP | SCAN_CHECK, WRITTEN, WRITTEN); defined $r ? join(" ", map { ($_ - $_[0]) / 4096 } (unpack("Q*", $r))[grep { $_ % 3 < 2 } 0 .. length($r) / 8 - 1]) : "error" };
    $write->($at + $_ * 4096) for 0 .. 7;
    register($fd, $at, $at + $bytes) or return error("UFFDIO_REGISTER");
    my @seen = ($written->($at), $written->($at));
    $write->($at + 3 * 4096);
    $write->($at + 9 * 4096);
    push @seen, $written->($at);
    syscall(SYS_MADVISE, $at + 4096, 4096, 4);
    $write->($at + 4096);
    push @seen, $written->($at);
    my $there = syscall(SYS_MREMAP, $at, $bytes, $bytes, 1 | 2, $at + (1 << 30));
    return error("mremap") if $there < 0;
    push @seen, $written->($there);
    register($fd, $there, $there + $bytes) or return error("UFFDIO_REGISTER");
    push @seen, $written->($there);
    syscall(SYS_MUNMAP, $there, $bytes);
    my $seen = join(", ", @seen);
    return $seen eq "0 8, , 3 4 9 10, 1 2, error, 0 8 9 10" ? "" : "the kernel's marks of written pages are wrong (pages $seen)";
}

# ---- Commands -------------------------------------------------------------------------------------------------------

sub answer { my ($status, $payload) = @_; return pack("C", $status) . ($payload // "") }
sub failed { my ($what) = @_; return answer(FAILED, error($what)) }

sub read_exactly {
    my ($bytes) = @_;
    my $content = "";
    while (length($content) < $bytes) {
        my $got = sysread(STDIN, $content, $bytes - length($content), length($content));
        exit 0 unless $got;
    }
    return $content;
}

sub write_all { my ($bytes) = @_; my $at = 0; while ($at < length($bytes)) { my $put = syswrite(STDOUT, $bytes, 1 << 20, $at); exit 1 unless $put; $at += $put } }

binmode(STDIN);
binmode(STDOUT);
keep_breakpoints_quick() if (POSIX::uname())[4] eq "x86_64";
$regions = syscall(SYS_MMAP, 0, REGIONS * REGION_BYTES, 3, 0x22, -1, 0);
# Kernels before 6.15 do not know of guard pages there, and refuse the question.
if (open(my $own, "<", "/proc/self/pagemap")) {
    $empty |= GUARD;
    $empty = ZERO_PAGE unless defined scan(fileno($own), $regions, $regions + 4096, 0, 0, 0);
}
while (1) {
    my $length = unpack("L", read_exactly(4));
    exit 1 if $length < 5 || $length > FRAME_MAX;
    my ($command, $pid, @words) = unpack("a L Q*", read_exactly($length));
    my $reply = $command eq "P" ? answer(DONE, probe())
        : $command eq "A" ? attach($pid)
        : $command eq "R" ? round_of($pid, @words)
        : $command eq "F" ? final_of($pid, @words)
        : $command eq "S" ? smaps_of($pid)
        : $command eq "D" ? do { release($pid); answer(DONE) }
        : answer(FAILED, "unknown command");
    write_all(pack("L", length($reply)) . $reply);
}
