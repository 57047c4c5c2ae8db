# Does in the directory where it stands what tar cannot: removes paths, writes parts of files, sets a directory's times.
# It runs where confine.sh puts it, so that no name leads out of the tree. Node has no call for times in nanoseconds
# nor for extended attributes; Perl's syscall() has, and perl-base is on every Debian.
#
# Commands on standard input, each a letter, a u32 length and so many bytes, numbers little-endian:
#   d PATH\0...        adds to the list of deletions
#   x                  removes what the list names, once it is complete
#   f HEAD             opens a file; HEAD: u64 size, u32 mode, uid, gid, i64 s, u32 ns, u32 n, n bytes of path,
#                      u32 count, count x (u32 n, name, u32 n, value) of extended attributes
#   b u64 offset DATA  writes into it
#   c                  gives it its size, owner, mode, attributes and times
#   m HEAD             sets a directory's owner, mode and times (without attributes)
#   k                  answers with the letter k
use strict;
use warnings;
use Config;
use Fcntl qw(O_WRONLY O_NOFOLLOW S_ISREG S_ISDIR);

my ($UTIMENSAT, $FSETXATTR, $FLISTXATTR, $FREMOVEXATTR) =
    $Config{archname} =~ /^x86_64/  ? (280, 190, 196, 199)
  : $Config{archname} =~ /^aarch64/ ? (88, 7, 13, 16)
  :                                   ();
my $LIMIT = 8 * 1024 * 1024;
# What says something about this host and not about the file stays as it is.
my $OF_THE_HOST = qr/^(?:(?:trusted|user)\.overlay\.(?:origin|impure|nlink|upper|uuid)|security\.selinux)\z/;

$| = 1;
binmode STDIN;
binmode STDOUT;

sub shown { my ($text) = @_; $text =~ s/([^\x21-\x5b\x5d-\x7e\x80-\xff ])/sprintf '\\%03o', ord $1/ge; return $text }
sub fail { my ($what, $path, $why) = @_; print STDERR "apply: ", shown($path), ": Cannot $what: $why\n"; exit 2 }

sub take {
  my ($size, $may_end) = @_;
  my $bytes = '';
  while (length $bytes < $size) {
    my $got = sysread STDIN, $bytes, $size - length $bytes, length $bytes;
    next if !defined $got && $!{EINTR};
    fail('read', 'the commands', $!) if !defined $got;
    exit 0 if $got == 0 && $may_end && $bytes eq '';
    fail('go on', 'the commands', 'they were cut off') if $got == 0;
  }
  return $bytes;
}

sub remove {
  my ($path, $device) = @_;
  my @stats = lstat $path;
  if (!@stats) {
    return if $!{ENOENT} || $!{ENOTDIR};
    fail('remove', $path, $!);
  }
  if (S_ISDIR($stats[2])) {
    fail('remove', $path, 'something is mounted there') if $stats[0] != $device;
    opendir my $directory, $path or fail('remove', $path, $!);
    my @names = grep { $_ ne '.' && $_ ne '..' } readdir $directory;
    closedir $directory;
    remove("$path/$_", $device) for @names;
    rmdir $path or fail('remove', $path, $!);
  } else {
    unlink $path or $!{ENOENT} or fail('remove', $path, $!);
  }
}

sub head {
  my ($bytes) = @_;
  my %head;
  @head{qw(size mode uid gid s ns)} = unpack 'Q< L< L< L< q< L<', substr $bytes, 0, 32;
  ($head{path}, my $count, my $rest) = unpack 'L</a L< a*', substr $bytes, 32;
  $head{attributes} = [$count > 0 ? unpack "(L</a L</a)$count", $rest : ()];
  return \%head;
}

sub times_of { my ($head) = @_; return pack 'q q q q', 0, 0x3ffffffe, $head->{s}, $head->{ns} }

sub attributes {
  my ($file, $head) = @_;
  my %wanted = @{$head->{attributes}};
  my $list = "\0" x 65_536;
  my $size = syscall $FLISTXATTR, fileno $file, $list, length $list;
  fail('list the attributes of', $head->{path}, $!) if $size < 0 && !$!{EOPNOTSUPP};
  for my $name ($size > 0 ? split /\0/, substr $list, 0, $size : ()) {
    next if exists $wanted{$name} || $name =~ $OF_THE_HOST;
    syscall($FREMOVEXATTR, fileno $file, "$name") == 0 or fail('remove an attribute of', $head->{path}, $!);
  }
  for my $name (keys %wanted) {
    my $value = $wanted{$name};
    syscall($FSETXATTR, fileno $file, "$name", $value, length $value, 0) == 0
      or fail('set an attribute of', $head->{path}, $!);
  }
}

sub finish {
  my ($file, $head) = @_;
  truncate $file, $head->{size} or fail('set the size of', $head->{path}, $!);
  # The mode comes after the owner, as a change of owner clears setuid and setgid; writing clears capabilities.
  chown $head->{uid}, $head->{gid}, $file or fail('set the owner of', $head->{path}, $!);
  chmod $head->{mode}, $file or fail('set the mode of', $head->{path}, $!);
  attributes($file, $head);
  syscall($UTIMENSAT, fileno $file, 0, times_of($head), 0) == 0 or fail('set the times of', $head->{path}, $!);
  close $file or fail('write', $head->{path}, $!);
}

my ($list, $file, $head) = ('');
while (1) {
  my ($command, $size) = unpack 'a L<', take(5, 1);
  fail('take', 'a command', "it has $size bytes") if $size > $LIMIT;
  my $bytes = $size > 0 ? take($size) : '';
  if ($command eq 'd') {
    $list .= $bytes;
  } elsif ($command eq 'x') {
    my $device = (lstat '.')[0];
    remove("./$_", $device) for split /\0/, $list;
    $list = '';
  } elsif ($command eq 'f') {
    fail('write parts of', 'a file', 'its system calls are not known on this processor') if !defined $UTIMENSAT;
    $head = head($bytes);
    sysopen $file, "./$head->{path}", O_WRONLY | O_NOFOLLOW or fail('open', $head->{path}, $!);
    S_ISREG((stat $file)[2]) or fail('open', $head->{path}, 'it is no regular file');
  } elsif ($command eq 'b') {
    my $offset = unpack 'Q<', $bytes;
    sysseek $file, $offset, 0 or fail('write', $head->{path}, $!);
    for (my $at = 8; $at < $size;) {
      my $written = syswrite $file, $bytes, $size - $at, $at;
      fail('write', $head->{path}, $!) if !defined $written;
      $at += $written;
    }
  } elsif ($command eq 'c') {
    finish($file, $head);
  } elsif ($command eq 'm') {
    my $directory = head($bytes);
    my $path = $directory->{path} eq '' ? '.' : "./$directory->{path}";
    my @stats = lstat $path or fail('look at', $directory->{path}, $!);
    S_ISDIR($stats[2]) or fail('set the times of', $directory->{path}, 'it is no directory');
    chown $directory->{uid}, $directory->{gid}, $path or fail('set the owner of', $path, $!);
    chmod $directory->{mode}, $path or fail('set the mode of', $path, $!);
    syscall($UTIMENSAT, -100, $path, times_of($directory), 0x100) == 0 or fail('set the times of', $path, $!);
  } elsif ($command eq 'k') {
    print 'k';
  } else {
    fail('take', 'a command', 'it is not known');
  }
}
