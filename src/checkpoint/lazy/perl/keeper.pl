#!/usr/bin/perl
# keeper.pl DIR DESCRIPTOR: holds duplicates of every userfaultfd of a lazy restore. The pager starts it, with a socket at DESCRIPTOR.
#
# A userfaultfd makes a process wait that touches a page which is not there yet. When its last holder dies, the kernel lets
# the process go on with a page of zeros instead: wrong memory, silently. With this second holder, the death of the pager
# means that whoever needs a page waits, until somebody freezes or ends the service.
#
# From the pager: "h SERIAL\n" with a descriptor: hold it; "d SERIAL\n": let go of it; "?\n": answered by the number held;
# "e\n": the end. From anybody at DIR/keeper.sock: "status" and "end", a line each. The pager's death is not the end.
use strict;
use warnings;
use Socket qw(PF_UNIX SOCK_STREAM pack_sockaddr_un);

BEGIN { unshift @INC, __FILE__ =~ m{^(.*)/} ? $1 : '.' }
use UMS::Kernel;

my ($directory, $descriptor) = @ARGV;
die "usage: keeper.pl DIR DESCRIPTOR\n" unless defined $descriptor;
require_x86_64();
chdir $directory or die "$directory: $!\n";
umask 0077;
$SIG{$_} = 'IGNORE' for qw(HUP PIPE INT TERM);
open(my $pager, '+<&=', $descriptor) or die "descriptor $descriptor: $!\n";
$| = 1;

unlink 'keeper.sock';
socket(my $listener, PF_UNIX, SOCK_STREAM, 0) or die "socket: $!\n";
bind($listener, pack_sockaddr_un('keeper.sock')) or die "keeper.sock: $!\n";
listen($listener, 8) or die "listen: $!\n";

my %held;
my $input = '';
my @arrived;

sub finish {
    unlink 'keeper.sock';
    exit 0;
}

# Each message of the pager is one line, and a descriptor comes with the line that it belongs to.
sub pager_says {
    my ($got, $bytes, $fd) = receive_message($pager);
    return 0 if $got <= 0;
    push @arrived, $fd if defined $fd;
    $input .= $bytes;
    while ($input =~ s/^(.)(?: (\d+))?\n//) {
        if ($1 eq 'h') { hold($2) }
        elsif ($1 eq 'd') { release($2) }
        elsif ($1 eq '?') { syswrite($pager, scalar(keys %held) . "\n") }
        elsif ($1 eq 'e') { finish() }
    }
    return 1;
}

sub hold {
    my ($serial) = @_;
    my $fd = shift @arrived;
    return unless defined $fd;
    open(my $handle, '+<&=', $fd) or return;
    $held{$serial} = $handle;
}

sub release {
    my ($serial) = @_;
    delete $held{$serial};
}

# Clients say one line and get one; a client that says nothing is not waited for.
sub client_says {
    accept(my $client, $listener) or return;
    my $ready = '';
    vec($ready, fileno($client), 1) = 1;
    return unless select($ready, undef, undef, 1);
    sysread($client, my $line, 64) or return;
    syswrite($client, scalar(keys %held) . "\n");
    finish() if $line =~ /^end\b/;
}

while (1) {
    my $ready = '';
    vec($ready, fileno($listener), 1) = 1;
    vec($ready, fileno($pager), 1) = 1 if defined $pager;
    select($ready, undef, undef, undef) > 0 or next;
    # Whatever goes wrong: as long as this process lives, memory cannot become wrong.
    eval { undef $pager if defined $pager && vec($ready, fileno($pager), 1) && !pager_says() };
    eval { client_says() if vec($ready, fileno($listener), 1) };
}
