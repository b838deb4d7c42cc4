#!/usr/bin/env bash
# usage: scripts/check.sh [lints | portable]   What CI asks beside the tests (`make check`: both), cheapest first. Dependencies are
# checked once: clippy, rustdoc and (but for the two workspace members) the portable half share their artefacts.
set -euo pipefail
cd "$(dirname "$0")/.."
part=${1:-all}
# shellcheck disable=SC2046  # several words
set -- $(scripts/features)
portable=(--no-default-features --exclude diffusion)

# Paths of one machine, or of the folder this is developed in, have no place in the repository.
local_path='(^|[^[:alnum:]_.~$})/-])/(work|root|home|Users|tmp)/[[:alnum:]_.-]|\.\./sha[r]ed'

if [ "$part" != portable ]; then
  scripts/phase format cargo fmt --all --check
  scripts/phase "paths of one machine" sh -c '! git grep -nIE "$1" -- . ":!Cargo.lock"' sh "$local_path"
  scripts/phase imports python3 scripts/check-imports.py
  scripts/phase clippy cargo clippy --workspace --all-targets --locked "$@" -- -D warnings
  scripts/phase "clippy, portable" cargo clippy --workspace --all-targets --locked "${portable[@]}" -- -D warnings
  RUSTDOCFLAGS="-D warnings" scripts/phase docs \
    cargo doc --workspace --no-deps --document-private-items --locked "$@"
fi
# The tests that damage files read them with the code that `make test` has tested so.
if [ "$part" != lints ]; then
  scripts/phase "tests, portable" cargo test --workspace --locked "${portable[@]}" --lib --bins --test golden --test integration
fi
