# The memory of one process that is still to be filled: where each page of the image lies now, and which are done.
#
# Pieces [start, count, at, image] are sorted by start: `count` pages of the process from page `start` are those of the
# image from page `image`; `at` is their place in the string of marks.
package UMS::Memory;
use strict;
use warnings;

use constant { OPEN => '0', DONE => '1' };

# `plan`: sorted [first, count] of the image, neighbours and overlaps already joined.
sub new {
    my ($class, $plan) = @_;
    my ($total, @pieces) = (0);
    for my $range (@$plan) {
        my ($first, $count) = @$range;
        push @pieces, [$first, $count, $total, $first];
        $total += $count;
    }
    return bless { pieces => \@pieces, marks => OPEN x $total, open => $total, total => $total, cursor => 0 }, $class;
}

# A fork's child: what is filled in the parent it has, what is not it lacks too.
sub clone {
    my ($self) = @_;
    return bless { %$self, pieces => [map { [@$_] } @{ $self->{pieces} }], cursor => 0 }, ref $self;
}

# Index of the first piece that ends after `page`.
sub index_of {
    my ($self, $page) = @_;
    my $pieces = $self->{pieces};
    my ($low, $high) = (0, scalar @$pieces);
    while ($low < $high) {
        my $middle = ($low + $high) >> 1;
        if ($pieces->[$middle][0] + $pieces->[$middle][1] <= $page) { $low = $middle + 1 }
        else { $high = $middle }
    }
    return $low;
}

sub piece_at {
    my ($self, $page) = @_;
    my $piece = $self->{pieces}[$self->index_of($page)];
    return defined $piece && $piece->[0] <= $page ? $piece : undef;
}

sub is_open {
    my ($self, $piece, $page) = @_;
    return substr($self->{marks}, $piece->[2] + $page - $piece->[0], 1) eq OPEN;
}

sub mark_done {
    my ($self, $piece, $page, $count) = @_;
    my $at = $piece->[2] + $page - $piece->[0];
    $self->{open} -= (substr($self->{marks}, $at, $count) =~ tr/0//);
    substr($self->{marks}, $at, $count) = DONE x $count;
}

# The next open pages at or after `page`: (piece, page, count), at most `most`.
sub next_open {
    my ($self, $page, $most) = @_;
    my $pieces = $self->{pieces};
    for (my $index = $self->index_of($page); $index < @$pieces; $index++) {
        my $piece = $pieces->[$index];
        my ($start, $count, $at) = @$piece;
        my $from = $page > $start ? $page : $start;
        my $found = index($self->{marks}, OPEN, $at + $from - $start);
        next if $found < 0 || $found >= $at + $count;
        my $limit = $at + $count - $found;
        $limit = $most if $limit > $most;
        my $closed = index(substr($self->{marks}, $found, $limit), DONE);
        $limit = $closed if $closed >= 0;
        return ($piece, $start + $found - $at, $limit);
    }
    return;
}

# Makes piece borders at both ends of a range and takes the pieces between them out.
sub cut_out {
    my ($self, $first, $count) = @_;
    $self->split_at($first);
    $self->split_at($first + $count);
    my $from = $self->index_of($first);
    my $to = $self->index_of($first + $count);
    return splice(@{ $self->{pieces} }, $from, $to - $from);
}

sub split_at {
    my ($self, $page) = @_;
    my $index = $self->index_of($page);
    my $piece = $self->{pieces}[$index];
    return unless defined $piece && $piece->[0] < $page;
    my ($start, $count, $at, $image) = @$piece;
    my $head = $page - $start;
    splice(@{ $self->{pieces} }, $index, 1,
        [$start, $head, $at, $image], [$page, $count - $head, $at + $head, $image + $head]);
}

# The process has given these pages up: whatever is there from now on begins as zeros.
sub drop {
    my ($self, $first, $count) = @_;
    for my $piece ($self->cut_out($first, $count)) { $self->mark_done($piece, $piece->[0], $piece->[1]) }
}

sub move {
    my ($self, $from, $to, $count) = @_;
    my @moved = $self->cut_out($from, $count);
    $self->drop($to, $count);
    $_->[0] += $to - $from for @moved;
    splice(@{ $self->{pieces} }, $self->index_of($to), 0, @moved);
}

# Where pages of the image lie now, as [page, count]: after a move not where they were.
sub places {
    my ($self, $first, $count) = @_;
    my @places;
    for my $piece (@{ $self->{pieces} }) {
        my $low = $first > $piece->[3] ? $first : $piece->[3];
        my $high = $first + $count < $piece->[3] + $piece->[1] ? $first + $count : $piece->[3] + $piece->[1];
        push @places, [$piece->[0] + $low - $piece->[3], $high - $low] if $low < $high;
    }
    return @places;
}

1;
