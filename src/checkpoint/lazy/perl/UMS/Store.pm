# The page store: SPACE.data holds page p at p * 4096, SPACE.state one byte a page, written after the data.
package UMS::Store;
use strict;
use warnings;
use UMS::Kernel;

sub new {
    my ($class, $directory, $space) = @_;
    return bless { sealed => "$directory/sealed.json", path => "$directory/$space" }, $class;
}

# The files come into being with the first page.
sub ready {
    my ($self) = @_;
    return 1 if defined $self->{state};
    open(my $data, '<:raw', "$self->{path}.data") or return 0;
    open(my $state, '<:raw', "$self->{path}.state") or return 0;
    ($self->{data}, $self->{state}) = ($data, $state);
    return 1;
}

# One character a page, from `first`: F final, Z final and all zeros, anything else not final. May be shorter than asked.
sub states {
    my ($self, $first, $count) = @_;
    return '' unless $self->ready && sysseek($self->{state}, $first, 0);
    my $got = sysread($self->{state}, my $bytes, $count);
    die "$self->{path}.state: $!\n" unless defined $got;
    # Two low bits: 2 is final. 4: all zeros. 8 says something that matters to the store only.
    $bytes =~ tr/\x02\x0a\x06\x0e\x00-\xff/FFZZ\-/;
    return $bytes;
}

# Address of these pages' content in this process, until the next call. Reading costs less than mapping: what is read lies
# in the processor's cache when the kernel takes it from there, and no page of the file has to be mapped and unmapped.
sub content {
    my ($self, $first, $count) = @_;
    return read_pages($self->{data}, $first, $count);
}

# Whether nobody reads a page again that has been placed. Before the store is sealed somebody may: a page that arrives may
# be sent as a copy of one that is here.
sub is_sealed { my ($self) = @_; return $self->{is_sealed} ||= -e $self->{sealed} }

sub data_path { my ($self) = @_; return "$self->{path}.data" }

1;
