# `make help` lists the targets. Build output and tools live outside of the clone, in the user's cache folder.
SHELL := /bin/bash
.DEFAULT_GOAL := help

CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fetchr
export CARGO_TARGET_DIR ?= $(CACHE)/target

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

lint: ## rustfmt and clippy
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

test: lint ## everything
	cargo test --locked --workspace

.PHONY: help lint test
