# The commands of this project; each is a script or a call of go.
.PHONY: build test test-slow lint bench demo fuzz clean

build:
	CGO_ENABLED=0 go build -trimpath -o bin/ ./cmd/tarn ./cmd/tarnd

demo:
	scripts/demo

test:
	scripts/test

test-slow:
	scripts/test-slow

lint:
	scripts/test build

fuzz:
	scripts/test fuzz

bench:
	go run ./test/bench

clean:
	rm -rf bin dist
	rm -f "$${XDG_CACHE_HOME:-/var/cache}"/tarn/guest-* "$${XDG_CACHE_HOME:-/var/cache}"/tarn/bench-*
