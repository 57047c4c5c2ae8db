# Gives back the memory of pages that the store need not hold any more, in a process of its own: that costs the kernel
# nearly as much as placing them, and a process may be waiting for the next one.
package UMS::Releaser;
use strict;
use warnings;
use Fcntl qw(F_GETFL F_SETFL O_NONBLOCK);
use UMS::Child;
use UMS::Kernel;

our @ISA = ('UMS::Child');

# To be called before there is any descriptor that only one process may hold.
sub new {
    my ($class) = @_;
    pipe(my $out, my $in) or die "pipe: $!\n";
    my $pid = UMS::Child::fork_off(sub { close $in; work($out) });
    close $out;
    fcntl($in, F_SETFL, fcntl($in, F_GETFL, 0) | O_NONBLOCK);
    return bless { in => $in, pid => $pid }, $class;
}

# Pages of a file, by their numbers. What it cannot take now stays until the whole store goes.
sub release {
    my ($self, $path, $first, $count) = @_;
    syswrite($self->{in}, "$first $count $path\n");
}

sub work {
    my ($out) = @_;
    my %files;
    while (my $line = <$out>) {
        my ($first, $count, $path) = $line =~ /^(\d+) (\d+) (.+)$/ or next;
        my $file = $files{$path};
        if (!defined $file) {
            open($file, '+<:raw', $path) or die "$path: $!\n";
            $files{$path} = $file;
        }
        punch_hole($file, $first * PAGE, $count * PAGE);
    }
}

1;
