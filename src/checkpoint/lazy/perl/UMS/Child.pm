# A process that works for the pager beside it, and has what the pager held when it was forked off.
package UMS::Child;
use strict;
use warnings;

# Its process id. `work` is what it does; it ends when that returns.
sub fork_off {
    my ($work) = @_;
    my $pid = fork() // die "fork: $!\n";
    return $pid if $pid != 0;
    eval { $work->() };
    print STDERR $@;
    exit 0;
}

# It is gone when this returns, and whatever it held open with it.
sub end {
    my ($self) = @_;
    kill 'KILL', $self->{pid};
    waitpid($self->{pid}, 0);
}

1;
