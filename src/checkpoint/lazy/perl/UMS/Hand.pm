# A second pair of hands for the filler: copies half of each piece, at the same time as the filler copies the other half.
# Both work on one address space, so nothing may be read of what a process does to it while this one is at work:
# whoever gives it a piece waits for the end of it before anything else.
package UMS::Hand;
use strict;
use warnings;
use Errno qw(EAGAIN);
use Socket qw(AF_UNIX SOCK_SEQPACKET PF_UNSPEC);
use UMS::Child;
use UMS::Kernel;
use UMS::Store;

our @ISA = ('UMS::Child');

use constant MESSAGE_MAX => 4096;

# To be called before there is any descriptor that only one process may hold. `store`: the directory of the page store.
sub new {
    my ($class, $store) = @_;
    socketpair(my $ours, my $theirs, AF_UNIX, SOCK_SEQPACKET, PF_UNSPEC) or die "socketpair: $!\n";
    my $pid = UMS::Child::fork_off(sub { close $ours; work($theirs, $store) });
    close $theirs;
    return bless { socket => $ours, pid => $pid, knows => {} }, $class;
}

# From here on it can help with this process, of which the page store speaks by `pid`.
sub adopt {
    my ($self, $serial, $fd, $pid) = @_;
    $self->{knows}{$serial} = 1 if send_descriptor($self->{socket}, "a $serial $pid", $fd);
}

sub drop {
    my ($self, $serial) = @_;
    $self->say("d $serial") if delete $self->{knows}{$serial};
}

# Begins to copy these pages of the store to `page`; false when it cannot.
sub copy {
    my ($self, $serial, $page, $image, $count) = @_;
    return $self->{knows}{$serial} && $self->say("c $serial $page $image $count");
}

# What came of it: (pages done, error of the rest). Where it has died nobody knows, and what is there already says so when
# it is copied again.
sub copied {
    my ($self) = @_;
    my $got = sysread($self->{socket}, my $line, MESSAGE_MAX);
    return split(/ /, $line) if $got;
    $self->{knows} = {};
    return (0, EAGAIN);
}

sub say {
    my ($self, $line) = @_;
    return 1 if syswrite($self->{socket}, $line);
    $self->{knows} = {};
    return 0;
}

sub work {
    my ($socket, $directory) = @_;
    my %held;
    while (1) {
        my ($got, $line, $fd) = receive_message($socket);
        return if $got <= 0;
        my ($what, $serial, @words) = split(/ /, $line);
        if ($what eq 'a') {
            open(my $memory, '+<&=', $fd) or die "userfaultfd: $!\n";
            $held{$serial} = { memory => $memory, store => UMS::Store->new($directory, "process:$words[0]") };
        }
        elsif ($what eq 'd') { delete $held{$serial} }
        elsif ($what eq 'c') { syswrite($socket, join(' ', copy_of($held{$serial}, @words))) }
    }
}

sub copy_of {
    my ($held, $page, $image, $count) = @_;
    $held->{store}->ready or die "there is no page store\n";
    return uffd_copy(fileno($held->{memory}), $page, $held->{store}->content($image, $count), $count);
}

1;
