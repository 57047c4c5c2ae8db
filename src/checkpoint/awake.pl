# The first hardware breakpoint on a machine makes the kernel patch itself and wait for all of its processors: about ten
# milliseconds (account_event in kernel/events/core.c: synchronize_rcu). CRIU sets one at the end of a dump, and of a
# restore, while the service stands still. Where some process counts events of its own that has been done already, so
# this one counts events that never happen, as long as it lives. Numbers are those of x86-64.
use strict;
use warnings;

sub keep_breakpoints_quick {
    my ($SYS_PERF_EVENT_OPEN, $SOFTWARE, $DUMMY, $SIZE, $DISABLED_FOR_KERNEL, $CLOEXEC) = (298, 1, 9, 64, 1 | 1 << 5 | 1 << 6, 8);
    my $event = pack("L2 Q x24 Q x16", $SOFTWARE, $SIZE, $DUMMY, $DISABLED_FOR_KERNEL);
    # Where it is not allowed, all is as it would be without it.
    return syscall($SYS_PERF_EVENT_OPEN, $event, 0, -1, -1, $CLOEXEC) >= 0;
}

1;
