# What README names. Nothing has to be exported: setup gets what is missing, scripts/features picks cargo's features.
.PHONY: help setup build demo build-tests test figures figures-all fuzz check bench
.DEFAULT_GOAL := help

export PATH := $(CURDIR)/.tools/cmake/data/bin:$(PATH)
# Read when a recipe runs, so after `setup` may have brought cmake.
features = $$(scripts/features)

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1|\2/p' Makefile | column -t -s '|'

setup: ## libtorch into .libtorch, cmake and nasm for libjpeg-turbo
	@scripts/setup

build: setup ## the program: target/release/social-reward
	cargo build --release --locked $(features)

demo: build ## the whole pipeline on generated data, on a CPU
	target/release/social-reward demo

build-tests: setup
	scripts/phase "build tests" cargo test --workspace --locked $(features) --no-run

test: build-tests ## all tests
	scripts/phase tests cargo test --workspace --locked $(features)

figures: setup ## the longer test: a whole demo on one seed, a quarter of an hour
	scripts/phase figures cargo test --workspace --locked $(features) --test integration -- --ignored --nocapture demo::figures::the_demo

figures-all: setup ## the same on three seeds
	scripts/phase figures cargo test --workspace --locked $(features) --test integration -- --ignored --nocapture demo::figures::every

fuzz: setup ## damaged files for every reader, ten minutes each (FUZZ_SECONDS=600), a name picks readers: make fuzz READER=weights
	MUTATION_SECONDS=$(or $(FUZZ_SECONDS),600) cargo test --workspace --locked $(features) --test mutations --no-fail-fast -- $(READER)

check: setup ## what CI asks beside the tests: format, lints, docs, portable tests
	scripts/check.sh

bench: setup ## measured against the peers (wants the Python packages that benches/peers names)
	cargo bench --locked $(features)
