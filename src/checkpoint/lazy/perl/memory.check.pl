#!/usr/bin/perl
# memory.check.pl SEED ROUNDS: compares UMS::Memory with a model that keeps every page by itself, under random changes.
use strict;
use warnings;

BEGIN { unshift @INC, __FILE__ =~ m{^(.*)/} ? $1 : '.' }
use UMS::Memory;

my ($seed, $rounds) = @ARGV;
srand $seed;
my $PAGES = 400;

sub random_plan {
    my ($page, @plan) = (int rand 5);
    while ($page < $PAGES) {
        my $count = 1 + int rand 30;
        push @plan, [$page, $count];
        $page += $count + 1 + int rand 10;
    }
    return \@plan;
}

# The model: page => [image page, open].
sub compare {
    my ($memory, $model, $what) = @_;
    my %seen;
    my $last = -1;
    for my $piece (@{ $memory->{pieces} }) {
        die "$what: pieces overlap\n" if $piece->[0] <= $last;
        $last = $piece->[0] + $piece->[1] - 1;
        for my $offset (0 .. $piece->[1] - 1) {
            my $page = $piece->[0] + $offset;
            my $expected = $model->{$page} or die "$what: page $page should not be there\n";
            die "$what: page $page is image page " . ($piece->[3] + $offset) . ", not $expected->[0]\n"
                if $piece->[3] + $offset != $expected->[0];
            die "$what: page $page should be " . ($expected->[1] ? 'open' : 'done') . "\n"
                if ($memory->is_open($piece, $page) ? 1 : 0) != $expected->[1];
            $seen{$page} = 1;
        }
    }
    for my $page (keys %$model) { die "$what: page $page is missing\n" unless $seen{$page} }
    my $open = grep { $_->[1] } values %$model;
    die "$what: $memory->{open} open pages instead of $open\n" if $memory->{open} != $open;
    compare_walk($memory, $model, $what);
}

sub compare_walk {
    my ($memory, $model, $what) = @_;
    my ($page, @found) = (0);
    while (my ($piece, $first, $count) = $memory->next_open($page, 7)) {
        push @found, $first .. $first + $count - 1;
        $page = $first + $count;
    }
    my @open = sort { $a <=> $b } grep { $model->{$_}[1] } keys %$model;
    die "$what: the open pages are @open, and the walk found @found\n" if "@open" ne "@found";
}

sub change {
    my ($memory, $model) = @_;
    my ($first, $count) = (int rand $PAGES, 1 + int rand 40);
    my $kind = int rand 3;
    if ($kind == 0) {
        $memory->drop($first, $count);
        delete $model->{$_} for $first .. $first + $count - 1;
        return "drop $first $count";
    }
    if ($kind == 1) {
        my $to = int rand($PAGES * 2);
        return 'nothing' if $to < $first + $count && $first < $to + $count;
        $memory->move($first, $to, $count);
        my %moved = map { ($to + $_ - $first => delete $model->{$_}) } grep { exists $model->{$_} } $first .. $first + $count - 1;
        delete $model->{$_} for $to .. $to + $count - 1;
        @$model{ keys %moved } = values %moved;
        return "move $first $to $count";
    }
    my ($piece, $page, $open) = $memory->next_open($first, $count) or return 'nothing';
    $memory->mark_done($piece, $page, $open);
    $model->{$_}[1] = 0 for $page .. $page + $open - 1;
    return "done $page $open";
}

for my $round (1 .. $rounds) {
    my $plan = random_plan();
    my $memory = UMS::Memory->new($plan);
    my %model = map { my ($first, $count) = @$_; map { ($_ => [$_, 1]) } $first .. $first + $count - 1 } @$plan;
    my @all = ([$memory, \%model]);
    for my $step (1 .. 40) {
        my ($one, $model) = @{ $all[rand @all] };
        my $what = change($one, $model);
        compare($one, $model, "round $round step $step: $what");
        push @all, [$one->clone, { map { ($_ => [@{ $model->{$_} }]) } keys %$model }] if @all < 4 && rand() < 0.1;
        my ($first, $count) = (int rand $PAGES, 1 + int rand 40);
        my @places = map { my ($at, $n) = @$_; $at .. $at + $n - 1 } $one->places($first, $count);
        my @expected = grep { my $image = $model->{$_}[0]; $image >= $first && $image < $first + $count } keys %$model;
        die "round $round step $step: places\n" if join(' ', sort @places) ne join(' ', sort @expected);
    }
    compare($_->[0], $_->[1], "round $round, at the end") for @all;
}
print "ok\n";
