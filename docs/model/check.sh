#!/bin/sh
# Checks the model of the commit protocol, and that it finds the mistakes it is given. Installs nothing.
set -eu

for program in spin gcc; do
  if ! command -v "$program" >/dev/null 2>&1; then
    echo "docs/model/check.sh: $program is missing. On Debian: apt-get install spin gcc libc6-dev" >&2
    exit 1
  fi
done

model=$(cd "$(dirname "$0")" && pwd)/commit.pml
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT INT TERM
cd "$place"

# verify NAME DEFINITION...: leaves what the verifier said in NAME.txt; a search that was cut short is a failure.
verify() {
  name=$1
  shift
  spin -a "$@" "$model" >"$name.spin.txt" 2>&1 || { cat "$name.spin.txt" >&2; exit 1; }
  gcc -O2 -DSAFETY -DCOLLAPSE -o pan pan.c
  timeout 600 ./pan -m2000000 >"$name.txt" 2>&1 || { cat "$name.txt" >&2; exit 1; }
  if grep -q 'max search depth too small' "$name.txt"; then
    echo "$name: the search was cut short" >&2
    exit 1
  fi
}

states() {
  sed -n 's/^ *\([0-9][0-9]*\) states, stored.*/\1/p' "$1.txt"
}

verify right -DFAULTS=4
if ! grep -q 'errors: 0' right.txt; then
  cat right.txt >&2
  echo "the protocol breaks an invariant; what happened:" >&2
  spin -t -p -g -DFAULTS=4 "$model" >&2 || true
  exit 1
fi
echo "protocol: $(states right) states, no invariant broken"

for mistake in SETTLING_GOES_BACK ASKS_BY_GIVING_UP THAWS_IN_WINDOW FORGETS_ABORT SURRENDERS_WHOLE; do
  verify "$mistake" "-D$mistake"
  if grep -q 'errors: 0' "$mistake.txt"; then
    echo "$mistake: the model does not find this mistake" >&2
    exit 1
  fi
  echo "$mistake: found ($(sed -n 's/^pan:1: \(.*\)$/\1/p' "$mistake.txt"))"
done
