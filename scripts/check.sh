#!/usr/bin/env bash
# What CI asks beside the tests (`make check`), cheapest first. Dependencies are checked once: clippy, rustdoc and (but for the two
# workspace members) the portable half share their artefacts.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck disable=SC2046  # several words
set -- $(scripts/features)
portable=(--no-default-features --exclude diffusion)

# Paths of one machine, or of the folder this is developed in, have no place in the repository.
local_path='(^|[^[:alnum:]_.~$})/-])/(work|root|home|Users|tmp)/[[:alnum:]_.-]|\.\./sha[r]ed'

scripts/phase format cargo fmt --all --check
scripts/phase "paths of one machine" sh -c '! git grep -nIE "$1" -- . ":!Cargo.lock"' sh "$local_path"
scripts/phase imports python3 scripts/check-imports.py
scripts/phase clippy cargo clippy --workspace --all-targets --locked "$@" -- -D warnings
scripts/phase "clippy, portable" cargo clippy --workspace --all-targets --locked "${portable[@]}" -- -D warnings
RUSTDOCFLAGS="-D warnings" scripts/phase docs \
  cargo doc --workspace --no-deps --document-private-items --locked "$@"
scripts/phase "tests, portable" cargo test --workspace --locked "${portable[@]}"
