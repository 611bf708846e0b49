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
HOLDFAST_DATA_VENV="$HOLDFAST_CACHE/venv-data-1"
export HOLDFAST_VENV HOLDFAST_DATA_VENV

# Cargo names artefacts of workspace members by their place within the workspace, not by the clone, and judges them by
# time: after a build from another clone its artefacts would pass for ours. Touching the sources makes ours newer.
_clone=$(cd "${HOLDFAST_ROOT:-.}" && pwd -P)
if [ "$(cat "$CARGO_TARGET_DIR/.clone" 2>/dev/null)" != "$_clone" ]; then
  mkdir -p "$CARGO_TARGET_DIR"
  find "$_clone" -path "$_clone/target" -prune -o -name node_modules -prune -o \
    \( -name '*.rs' -o -name Cargo.toml \) -exec touch -c {} +
  printf '%s\n' "$_clone" >"$CARGO_TARGET_DIR/.clone"
fi
