# `make help` lists the targets. Build output and tools live outside of the clone, in the user's cache folder.
SHELL := /bin/bash
.DEFAULT_GOAL := help

CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fetchr
export CACHE
export CARGO_TARGET_DIR ?= $(CACHE)/target

# Always the whole workspace: with fewer crates, cargo would choose other features and compile the dependencies again.
RELEASE = cargo build --locked --release --workspace --bins

# The program that is there already, whoever built it.
BUILT_E2E = $(firstword $(wildcard $(CARGO_TARGET_DIR)/release/fetchr-e2e $(CARGO_TARGET_DIR)/debug/fetchr-e2e))
E2E = $(or $(BUILT_E2E),cargo run --locked -q -p fetchr-e2e --bin fetchr-e2e --)

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## release binaries in the target folder's release/
	$(RELEASE)
	@ls -l $(CARGO_TARGET_DIR)/release/fetchr{,-proxy,-init,-operator}

run: ## the standalone proxy with the examples: 127.0.0.1:8080 to 127.0.0.1:9000
	$(RELEASE)
	@$(CARGO_TARGET_DIR)/release/fetchr run -f examples/local/

test: ## everything: lint, licences, unit tests, a real Kubernetes; ends with "N passed, N failed"
	@scripts/test

lint: ## rustfmt and clippy
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

e2e: ## the tests on a real Kubernetes alone; HELM=/path/to/helm takes another helm
	@e2e/tools/install >/dev/null
	cargo test --locked --workspace $(patsubst e2e/tests/%.rs,--test %,$(wildcard e2e/tests/*.rs))

docs: ## the code's own documentation, as HTML
	cargo doc --locked --workspace --no-deps

demo: ## from nothing to policies in force, step by step; KUBECONFIG=... uses a cluster that is there
	@e2e/tools/install >/dev/null
	$(RELEASE)
	@$(CARGO_TARGET_DIR)/release/fetchr-e2e demo

cluster-up: ## a real Kubernetes on this machine, in namespaces of its own; prints its KUBECONFIG
	@e2e/tools/install >/dev/null
	cargo build --locked -q -p fetchr-e2e --bins
	@$(CARGO_TARGET_DIR)/debug/fetchr-e2e cluster up

cluster-down: ## end it and remove its files
	@$(E2E) cluster down

cluster-shell: ## a shell that reaches its pods and Services by address
	@$(E2E) cluster shell

bench: ## fetchr beside other proxies, start, memory, sections, limits, cache, streams, Services; three quarters of an hour; the tables of docs/performance.md and docs/limits.md
	@command -v wrk h2load nginx haproxy varnishd valgrind redis-server >/dev/null || (apt-get update -qq && apt-get install -y -qq wrk nghttp2-client nginx-light haproxy varnish valgrind redis-server)
	$(RELEASE)
	@FETCHR_BENCH_ENVOY=$$(scripts/envoy/install); export FETCHR_BENCH_ENVOY; set -e; \
	for part in $(or $(PARTS),start pass scenarios workers rate idle rules sections limits cache streams endpoints); do \
		$(CARGO_TARGET_DIR)/release/fetchr-bench --binaries $(CARGO_TARGET_DIR)/release --report docs/$$([ $$part = limits ] && echo limits || echo performance).md --figures docs/bench $$part; \
	done

figures: ## fetchr on the cluster on this machine: pods, policies, memory, images; a table of docs/performance.md
	@e2e/tools/install >/dev/null
	$(RELEASE)
	@$(CARGO_TARGET_DIR)/release/fetchr-e2e figures --report docs/performance.md

faults: ## what fails on purpose for long, under load; half an hour; the table of docs/reliability.md
	@e2e/tools/install >/dev/null
	$(RELEASE)
	@$(CARGO_TARGET_DIR)/release/fetchr-e2e faults --report docs/reliability.md

soak: ## mixed load with faults for MINUTES=30, no exchange lost, doubled or mixed up; the tables of docs/reliability.md
	$(RELEASE)
	@$(CARGO_TARGET_DIR)/release/fetchr-e2e soak --minutes $(or $(MINUTES),30) --report docs/reliability.md

fuzz: ## each fuzz target for SECONDS=60; needs a nightly toolchain
	@scripts/fuzz $(if $(filter command line,$(origin SECONDS)),$(SECONDS),60)

generate: ## CRDs and manifests from the code and the chart
	cargo run --locked -q -p fetchr-crds --bin crdgen
	@$(MAKE) --no-print-directory manifests

manifests: ## manifests/fetchr.yaml from the chart
	scripts/manifests >manifests/fetchr.yaml.part && mv manifests/fetchr.yaml.part manifests/fetchr.yaml

.PHONY: help build run test lint e2e docs demo cluster-up cluster-down cluster-shell bench figures faults soak fuzz generate manifests
