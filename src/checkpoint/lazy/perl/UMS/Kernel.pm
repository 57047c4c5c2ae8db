# What this needs of Linux and Perl's own functions do not offer. Numbers are those of x86-64.
package UMS::Kernel;
use strict;
use warnings;
use Errno qw(EAGAIN);
use Exporter 'import';
our @EXPORT = qw(PAGE now_us epoll_new epoll_add epoll_remove epoll_wait receive_message send_descriptor
    READ_PAGES read_pages punch_hole uffd_copy uffd_zero uffd_wake uffd_read require_x86_64
    processors);

use constant { PAGE => 4096, EPOLLIN => 1, EPOLL_ADD => 1, EPOLL_DELETE => 2, EVENTS => 64 };
my ($PREAD, $IOCTL, $SENDMSG, $RECVMSG, $CLOCK, $EPOLL_WAIT, $EPOLL_CTL, $FALLOCATE, $EPOLL_CREATE1) =
    (17, 16, 46, 47, 228, 232, 233, 285, 291);
my ($UFFDIO_WAKE, $UFFDIO_COPY, $UFFDIO_ZEROPAGE) = (0x8010aa02, 0xc028aa03, 0xc020aa04);

sub require_x86_64 {
    require Config;
    my $machine = $Config::Config{archname};
    die "the pager knows the system calls of x86_64 only, and this is $machine\n" unless $machine =~ /^x86_64/;
}

# How many processors this process may use.
sub processors {
    my $mask = buffer(1024);
    my $bytes = syscall(204, 0, 1024, $mask); # sched_getaffinity
    return $bytes > 0 ? unpack('%32b*', substr($mask, 0, $bytes)) : 1;
}

# A buffer that is nobody else's: the kernel writes into it behind Perl's back, and Perl shares equal strings.
sub buffer { my ($bytes) = @_; my $buffer = ''; vec($buffer, $bytes - 1, 8) = 0; return $buffer }

my $clock_buffer = buffer(16);

sub now_us {
    syscall($CLOCK, 1, $clock_buffer);
    my ($seconds, $ns) = unpack('qq', $clock_buffer);
    return $seconds * 1e6 + $ns / 1e3;
}

sub epoll_new {
    my $epoll = syscall($EPOLL_CREATE1, 0x80000);
    die "epoll_create1: $!\n" if $epoll < 0;
    return $epoll;
}

sub epoll_add {
    my ($epoll, $fd) = @_;
    my $event = pack('LlL', EPOLLIN, $fd, 0);
    syscall($EPOLL_CTL, $epoll, EPOLL_ADD, $fd, $event) == 0 or die "epoll_ctl: $!\n";
}

# Closing is not enough where another process holds the same file.
sub epoll_remove {
    my ($epoll, $fd) = @_;
    syscall($EPOLL_CTL, $epoll, EPOLL_DELETE, $fd, 0);
}

my $event_buffer = buffer(12 * EVENTS);

# The descriptors on which something has happened.
sub epoll_wait {
    my ($epoll, $timeout_ms) = @_;
    my $count = syscall($EPOLL_WAIT, $epoll, $event_buffer, EVENTS, $timeout_ms);
    return () if $count <= 0;
    my @words = unpack("(LlL)$count", $event_buffer);
    return map { $words[3 * $_ + 1] } 0 .. $count - 1;
}

# Up to `most` bytes and at most one descriptor: (count, bytes, descriptor). A stream ends a message after a descriptor.
sub receive_message {
    my ($socket, $most) = @_;
    $most //= 4096;
    my ($bytes, $control) = (buffer($most), buffer(24));
    my $iov = pack('PQ', $bytes, $most);
    my $message = pack('QLx4PQPQlx4', 0, 0, $iov, 1, $control, 24, 0);
    my $got = syscall($RECVMSG, fileno($socket), $message, 0x40000000); # MSG_CMSG_CLOEXEC
    return ($got, '', undef) if $got <= 0;
    my ($length, $level, $type, $fd) = unpack('Qlll', $control);
    my $passed = $length == 20 && $level == 1 && $type == 1;
    return ($got, substr($bytes, 0, $got), $passed ? $fd : undef);
}

# Up to 255 bytes with a descriptor.
sub send_descriptor {
    my ($socket, $bytes, $fd) = @_;
    my $control = pack('Qlllx4', 20, 1, 1, $fd);
    my $iov = pack('PQ', $bytes, length $bytes);
    my $message = pack('QLx4PQPQlx4', 0, 0, $iov, 1, $control, 24, 0);
    return syscall($SENDMSG, fileno($socket), $message, 0x4000) == length $bytes; # MSG_NOSIGNAL
}

# Most pages that are read at once.
use constant READ_PAGES => 256;
my $pages_buffer = buffer(READ_PAGES * PAGE);
my $pages_address = unpack('Q', pack('P', $pages_buffer));

# Reads so many pages of a file; returns their address, which is the same each time.
sub read_pages {
    my ($handle, $first, $count) = @_;
    my $bytes = $count * PAGE;
    my $got = syscall($PREAD, fileno($handle), $pages_buffer, $bytes, $first * PAGE);
    die $got < 0 ? "pread: $!\n" : "pages are missing in the page store\n" if $got != $bytes;
    return $pages_address;
}

# Gives back what a file holds there; it stays as long as it is, and reads as zeros.
sub punch_hole {
    my ($handle, $offset, $bytes) = @_;
    syscall($FALLOCATE, fileno($handle), 3, $offset, $bytes) == 0 or die "fallocate: $!\n"; # KEEP_SIZE | PUNCH_HOLE
}

# Both return (pages done, error number or 0).
sub uffd_copy {
    my ($fd, $page, $source, $pages) = @_;
    my $request = pack('QQQQq', $page * PAGE, $source, $pages * PAGE, 0, 0);
    return ($pages, 0) if syscall($IOCTL, $fd, $UFFDIO_COPY, $request) == 0;
    my $error = $! + 0;
    my $done = unpack('x32q', $request);
    return ($done > 0 ? $done / PAGE : 0, $done < 0 ? -$done : $error);
}

sub uffd_zero {
    my ($fd, $page, $pages) = @_;
    my $request = pack('QQQq', $page * PAGE, $pages * PAGE, 0, 0);
    return ($pages, 0) if syscall($IOCTL, $fd, $UFFDIO_ZEROPAGE, $request) == 0;
    my $error = $! + 0;
    my $done = unpack('x24q', $request);
    return ($done > 0 ? $done / PAGE : 0, $done < 0 ? -$done : $error);
}

sub uffd_wake {
    my ($fd, $page, $pages) = @_;
    my $range = pack('QQ', $page * PAGE, $pages * PAGE);
    syscall($IOCTL, $fd, $UFFDIO_WAKE, $range);
}

# Messages as [event, three numbers]; undef when the descriptor is at its end.
sub uffd_read {
    my ($handle) = @_;
    my $got = sysread($handle, my $bytes, 32 * 16);
    return defined $got || $! == EAGAIN ? () : undef unless $got;
    return map { [unpack('Cx7QQQ', substr($bytes, 32 * $_, 32))] } 0 .. $got / 32 - 1;
}

1;
