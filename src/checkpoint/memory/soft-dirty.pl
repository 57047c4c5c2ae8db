#!/usr/bin/perl
# Says whether the kernel's soft-dirty bits can be used, and which page frames are those of zeros: a page that is dropped
# and read again is such a frame, and has no soft-dirty bit though its content changed.
#
# Prints "ok ZERO_FRAME HUGE_ZERO_FRAME" (0: there is none) or "no REASON". The huge frame stays the same as long as
# somebody uses it, so this program then waits until its input ends.
use strict;
use warnings;
use POSIX ();

use constant { SYS_READ => 0, SYS_MMAP => 9, SYS_MADVISE => 28, MADV_HUGEPAGE => 14, MADV_NOHUGEPAGE => 15, PAGE => 4096 };
use constant { PRESENT => 1 << 63, SOFT_DIRTY => 1 << 55, FRAME => (1 << 55) - 1, IS_ZERO_PAGE => 1 << 24 };

sub map_memory { my ($bytes) = @_; return syscall(SYS_MMAP, 0, $bytes, 3, 0x22, -1, 0) }
sub touch { my ($at) = @_; return unpack("P1", pack("Q", $at)) }

sub word_at {
    my ($path, $index) = @_;
    open(my $file, "<:raw", $path) or return 0;
    sysseek($file, $index * 8, 0) or return 0;
    my $got = sysread($file, my $bytes, 8);
    return defined $got && $got == 8 ? unpack("Q", $bytes) : 0;
}
sub entry { my ($at) = @_; return word_at("/proc/self/pagemap", $at / PAGE) }

sub clear {
    open(my $file, ">", "/proc/self/clear_refs") or return 0;
    return (syswrite($file, "4") // 0) == 1;
}

sub frames {
    my $at = map_memory(2 * PAGE);
    syscall(SYS_MADVISE, $at, 2 * PAGE, MADV_NOHUGEPAGE);
    open(my $input, "<", "/dev/urandom") or return "no /dev/urandom cannot be read";
    my $write = sub { syscall(SYS_READ, fileno($input), $at, 8) };
    $write->();
    clear() or return "no the kernel does not know soft-dirty bits";
    return "no soft-dirty bits are not cleared" if entry($at) & SOFT_DIRTY;
    $write->();
    return "no soft-dirty bits are not set (the kernel was built without them)" unless entry($at) & SOFT_DIRTY;
    touch($at + PAGE);
    my $zero = entry($at + PAGE) & FRAME;
    return "no page frames are hidden from this user" if $zero == 0;
    return "ok $zero " . huge_zero_frame($zero);
}

sub huge_zero_frame {
    my ($zero) = @_;
    my $huge = 2 << 20;
    my $at = map_memory(2 * $huge);
    $at += $huge - $at % $huge;
    syscall(SYS_MADVISE, $at, $huge, MADV_HUGEPAGE);
    touch($at);
    my ($first, $second) = map { entry($_) & FRAME } $at, $at + PAGE;
    return 0 if $first == $zero || $second != $first + 1;
    return word_at("/proc/kpageflags", $first) & IS_ZERO_PAGE ? $first : 0;
}

$| = 1;
my $answer = (POSIX::uname())[4] eq "x86_64" ? frames() : "no this helper is for x86-64";
print "$answer\n";
sysread(STDIN, my $end, 1) if $answer =~ /^ok/;
