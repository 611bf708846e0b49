# Sourced, not run: where builds keep what outlives a clone. Every variable can be set from outside.
# HOLDFAST_CACHE holds RocksDB's archive, the cargo target directory and the test clients.
HOLDFAST_CACHE=${HOLDFAST_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/holdfast}
export HOLDFAST_CACHE
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOLDFAST_CACHE/target}
_rocksdb_version=$(sed -n '/^name = "librocksdb-sys"$/{n;s/^version = "\(.*\)"$/\1/p}' "${HOLDFAST_ROOT:-.}/Cargo.lock" | head -1)
if [ -z "${ROCKSDB_LIB_DIR:-}" ]; then
  ROCKSDB_LIB_DIR="$HOLDFAST_CACHE/rocksdb-${_rocksdb_version}-$(uname -m)"
fi
export ROCKSDB_LIB_DIR
export ROCKSDB_STATIC=1
# RocksDB is C++; with an archive of our own, the linker must be told so.
export CXXSTDLIB=${CXXSTDLIB:-stdc++}
command -v mold >/dev/null 2>&1 && export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="${CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS:--C link-arg=-fuse-ld=mold}"
HOLDFAST_VENV="$HOLDFAST_CACHE/venv-2"
export HOLDFAST_VENV
