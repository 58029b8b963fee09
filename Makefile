# Everything that is built lies in build/.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

GO ?= go
# Debian's libsqlite3 is linked, not a copy of it; names and users are looked
# up by Go itself, so that nothing else of the C library is needed. HTTP/2 is
# left out, which EST does not need and keyd's socket does not speak: 0.4 MB.
TAGS := libsqlite3,netgo,osusergo,nethttpomithttp2
# When the source was changed: programs judge no certificate at an earlier time
# (pkg/clock), and two builds of one source are the same bytes.
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null)
LDFLAGS := -s -w -buildid= -X github.com/tpm2cloud/tpm2cloud/pkg/clock.built=$(SOURCE_DATE_EPOCH)
BUILD := $(GO) build -trimpath -tags $(TAGS) -ldflags "$(LDFLAGS)"
# The two that link the most are rather small than quick, as in their packages:
# functions are called and not copied, except in cryptography.
SMALL := -gcflags=github.com/...=-l -gcflags=net/...=-l -gcflags=vendor/...=-l

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: deps programs ## the whole way of a device, on a software TPM and a local cloud; evidence in build/demo
	@scripts/demo

.PHONY: test
test: deps ## all tests of all modules; installs what they need first
	@scripts/test $(TESTFLAGS)

.PHONY: test-race
test-race: deps ## the tests with the race detector, which takes four times as long
	@scripts/test -race $(TESTFLAGS)

# FUZZ="Find|Answers" is a part of them.
FUZZTIME ?= 30s
FUZZ ?= .
.PHONY: fuzz
fuzz: deps ## every fuzz test of all modules, one after the other (FUZZTIME=30s FUZZ=Decode)
	@scripts/fuzz '$(FUZZTIME)' '$(FUZZ)'

# TORTUREFLAGS="-torture.seed N" draws the pairs of cuts that an earlier run had.
.PHONY: torture
torture: deps ## cuts the power everywhere and demands the same identities; build/torture.json has the result
	@mkdir -p build
	@cd cmd; $(GO) test -tags $(TAGS) -count=1 -timeout 60m -run '^TestTorture$$' -v -torture -torture.seed 0 -torture.report $(CURDIR)/build/torture.json $(TORTUREFLAGS)

# MUTATIONS="sweep left-lock" is a part of it.
.PHONY: mutations
mutations: deps ## takes out what makes power cuts harmless, one thing at a time; the tests must notice each
	@scripts/mutations $(MUTATIONS)

.PHONY: test-armhf
test-armhf: ## the demo with programs for armhf under qemu-arm; fetches Debian's libraries for armhf
	@scripts/deps armhf
	@$(MAKE) --no-print-directory build build-armhf
	@sysroot=$$(scripts/sysroot armhf); qemu=$$(command -v qemu-arm-static || command -v qemu-arm); \
	rm -rf build/demo-armhf; \
	scripts/demo --dir build/demo-armhf --bin build/armhf --sysroot "$$sysroot" --runner "$$qemu -L $$sysroot"

# As root. Debian's part of an image is cached; what else it has is in IMAGEFLAGS.
ARCH ?= amd64
.PHONY: image
image: ## a golden image, in build/image (ARCH=amd64|armhf|arm64, IMAGEFLAGS="--config DIR")
	@scripts/deps package image
	@$(MAKE) --no-print-directory packages ARCHES=$(ARCH)
	@image/build --arch $(ARCH) $(IMAGEFLAGS)

# As root. SCENARIOS="FirstBoot|Reflash" is a part of it.
SCENARIOS ?= .
.PHONY: test-nspawn
test-nspawn: ## the packages in machines with systemd, in containers: boots, power cuts, updates; as root
	@scripts/deps base image boot repo
	@$(MAKE) --no-print-directory build
	@$(MAKE) --no-print-directory packages ARCHES="amd64 armhf"
	@# In its folder, where go test shows the table of those that pass, too.
	@cd image/boottest; $(GO) test -tags boot -count=1 -timeout 30m -run '^TestNspawn($(SCENARIOS))' -evidence $(CURDIR)/build/test-nspawn

# As root. BOOTS="amd64-crb|armhf" is a part of it; CUTS power cuts are at drawn instants of a first boot.
BOOTS ?= .
CUTS ?= 2
.PHONY: test-boot
test-boot: ## golden images that boot in QEMU, with a kernel and a TPM of their own (BOOTS=amd64-crb, CUTS=20)
	@scripts/deps base image boot
	@$(MAKE) --no-print-directory build packages
	@cd image/boottest; $(GO) test -tags boot -count=1 -timeout 120m -run '^TestQEMU$$/^($(BOOTS))' -cuts $(CUTS) $(BOOTFLAGS) -evidence $(CURDIR)/build/test-boot

# As root, because image/inject mounts; make test has what lint needs no root for.
.PHONY: test-image
test-image: ## image/build; image/inject and image/lint on images like Raspberry Pi OS, for amd64 and armhf (root)
	@scripts/deps image
	@$(MAKE) --no-print-directory packages ARCHES="amd64 armhf"
	@image/test-inject amd64 armhf
	@image/test-build amd64

.PHONY: generate
generate: ## debian/tpm2cloud.toml, of scripts/manual/keys.toml and the programs' own keys
	@$(GO) run ./scripts/manual generate

.PHONY: manual
manual: ## the manual pages and bash completions, in build/manual (man -l build/manual/man/tpm2cloud.7)
	@scripts/deps
	@$(GO) run ./scripts/manual make build/manual

.PHONY: lint
lint: ## gofmt, go vet, staticcheck, shellcheck, the manual pages, the import rules
	@scripts/deps lint
	@scripts/lint

.PHONY: build
build: programs ## the programs, in build/bin
	@cd cmd/tpm2cloud-azure && CGO_ENABLED=0 $(BUILD) -o ../../build/bin/ .

# All but tpm2cloud-azure: Azure's SDK takes longer to compile than they do, and
# no device needs it. Where no file of the C library is needed they are static.
.PHONY: programs
programs:
	@echo "building build/bin"
	@CGO_ENABLED=0 $(BUILD) -o build/bin/ ./cmd/tpm2cloud-idevid ./cmd/tpm2cloud-edgecfg
	@CGO_ENABLED=1 $(BUILD) $(SMALL) -o build/bin/ ./cmd/tpm2cloud-ldevid ./cmd/tpm2cloud
	@cd cmd/tpm2cloud-lab && CGO_ENABLED=1 $(GO) build -trimpath -o ../../build/bin/ .

# Debian's armhf is ARMv7 with floating point. The laboratory is built as well,
# because its agent stands for one on the device, and loads the same library.
.PHONY: build-armhf
build-armhf: ## the programs for armhf, in build/armhf
	@echo "building build/armhf"
	@sysroot=$$(scripts/sysroot armhf); \
	export GOARCH=arm GOARM=7 CC="arm-linux-gnueabihf-gcc --sysroot=$$sysroot"; \
	CGO_ENABLED=0 $(BUILD) -o build/armhf/ ./cmd/tpm2cloud-idevid ./cmd/tpm2cloud-edgecfg; \
	CGO_ENABLED=1 $(BUILD) $(SMALL) -o build/armhf/ ./cmd/tpm2cloud-ldevid ./cmd/tpm2cloud; \
	cd cmd/tpm2cloud-lab; CGO_ENABLED=1 $(GO) build -trimpath -o ../../build/armhf/ .

# Debian packages. What each has, and why, is in nfpm.yaml.
.PHONY: packages
packages: ## the Debian packages, in build/packages (ARCHES="amd64 armhf arm64")
	@scripts/packages $(ARCHES)

.PHONY: packages-check
packages-check: ## builds them twice and compares, then lintian and readelf (ARCHES=amd64)
	@scripts/packages --check $(ARCHES)

.PHONY: installed-size
installed-size: ## what the packages add to a minimal Debian 12, beside the reference's way
	@scripts/installed-size

# Devices update from it. Without --key it is signed by a key for tests.
.PHONY: repo
repo: packages ## a signed apt repository of the packages, in build/repo (REPOFLAGS="--key KEYID --uri URI")
	@scripts/deps repo
	@scripts/repo $(REPOFLAGS) build/packages/*.deb

.PHONY: test-repo
test-repo: ## installs, updates, goes back and purges out of such a repository, by Debian's apt; as root
	@scripts/deps repo image
	@$(MAKE) --no-print-directory packages ARCHES=$$(dpkg --print-architecture)
	@scripts/test-repo

.PHONY: bench
bench: ## what a device's identities take, beside the way of the reference scripts (BENCHFLAGS="-n 5")
	@scripts/deps bench
	@$(MAKE) --no-print-directory build
	@$(GO) run -tags $(TAGS) ./scripts/bench $(BENCHFLAGS)

.PHONY: herd
herd: ## what becomes of a CA when 10,000 and 1,000,000 devices are powered on at once; plots in build/herd
	@$(GO) run -tags $(TAGS) ./scripts/herd $(HERDFLAGS)

.PHONY: deps
deps: ## install the packages of Debian that are missing; "make test" and "make demo" do it too
	@scripts/deps

.PHONY: clean
clean: ## remove build/
	@# Directories of a module cache and the like may be read-only.
	@[ ! -d build ] || chmod -R u+w build
	rm -rf build
