# A second pair of hands for the filler: copies half of each piece, at the same time as the filler copies the other half.
# Both work on one address space, so nothing may be read of what a process does to it while this one is at work:
# whoever gives it a piece waits for the end of it before anything else.
package UMS::Hand;
use strict;
use warnings;
use Errno qw(EAGAIN);
use Socket qw(AF_UNIX SOCK_SEQPACKET PF_UNSPEC);
use UMS::Kernel;

use constant MESSAGE_MAX => 4096;

# To be called before there is any descriptor that only one process may hold.
sub new {
    my ($class) = @_;
    socketpair(my $ours, my $theirs, AF_UNIX, SOCK_SEQPACKET, PF_UNSPEC) or die "socketpair: $!\n";
    my $pid = fork() // die "fork: $!\n";
    if ($pid == 0) {
        close $ours;
        eval { work($theirs) };
        print STDERR $@;
        exit 0;
    }
    close $theirs;
    return bless { socket => $ours, pid => $pid, knows => {} }, $class;
}

# From here on it can help with this process. `path`: the file with its pages.
sub adopt {
    my ($self, $serial, $fd, $path) = @_;
    $self->{knows}{$serial} = 1 if send_descriptor($self->{socket}, "a $serial", $fd) && $self->say("f $serial $path");
}

sub drop {
    my ($self, $serial) = @_;
    $self->say("d $serial") if delete $self->{knows}{$serial};
}

# Begins to copy these pages of the file to `page`; false when it cannot.
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

# It is gone when this returns, and whatever it held open with it.
sub end {
    my ($self) = @_;
    kill 'KILL', $self->{pid};
    waitpid($self->{pid}, 0);
}

sub work {
    my ($socket) = @_;
    my %held;
    while (1) {
        my ($got, $line, $fd) = receive_message($socket);
        return if $got <= 0;
        my ($what, $serial, @words) = split(/ /, $line, $line =~ /^f/ ? 3 : -1);
        if ($what eq 'a') { open($held{$serial}{memory}, '+<&=', $fd) or die "userfaultfd: $!\n" }
        elsif ($what eq 'f') { $held{$serial}{path} = $words[0] }
        elsif ($what eq 'd') { delete $held{$serial} }
        elsif ($what eq 'c') { syswrite($socket, join(' ', copy_of($held{$serial}, @words))) }
    }
}

sub copy_of {
    my ($held, $page, $image, $count) = @_;
    my $file = $held->{file};
    if (!defined $file) {
        open($file, '<:raw', $held->{path}) or die "$held->{path}: $!\n";
        $held->{file} = $file;
    }
    return uffd_copy(fileno($held->{memory}), $page, read_pages($file, $image, $count), $count);
}

1;
