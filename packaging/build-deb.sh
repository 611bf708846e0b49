#!/usr/bin/env bash
# Builds a Debian package with the program, the node's systemd unit and its settings.
#
#   packaging/build-deb.sh PROGRAM OUT_DIR
#
# PROGRAM is the built `holdfast`. Needs dpkg-deb and dpkg-shlibdeps' data only; touches nothing outside OUT_DIR.
# Prints the package's path.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
program=${1:?usage: build-deb.sh PROGRAM OUT_DIR}
out=${2:?usage: build-deb.sh PROGRAM OUT_DIR}
[ -x "$program" ] || { echo "build-deb: $program is not a program; run \`make build\` first" >&2; exit 1; }
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' "$here/../Cargo.toml")
architecture=$(dpkg --print-architecture)
mkdir -p "$out"
stage=$(mktemp -d "$out/stage.XXXXXX")
trap 'rm -rf "$stage"' EXIT
root="$stage/holdfast"

install -D -m 0755 "$program" "$root/usr/bin/holdfast"
if command -v strip >/dev/null; then strip --strip-debug "$root/usr/bin/holdfast"; fi
install -D -m 0644 "$here/holdfast-node.service" "$root/usr/lib/systemd/system/holdfast-node.service"
install -D -m 0640 "$here/debian/node.env" "$root/etc/holdfast/node.env"
install -D -m 0644 "$here/../docs/OPERATIONS.md" "$root/usr/share/doc/holdfast/OPERATIONS.md"
install -D -m 0644 "$here/debian/copyright" "$root/usr/share/doc/holdfast/copyright"
mkdir -p "$root/DEBIAN"
for script in postinst prerm postrm; do
  install -m 0755 "$here/debian/$script" "$root/DEBIAN/$script"
done
echo /etc/holdfast/node.env >"$root/DEBIAN/conffiles"

# The C library that the program was linked against is the oldest that it runs with.
glibc=$(objdump -T "$root/usr/bin/holdfast" 2>/dev/null | sed -n 's/.*GLIBC_\([0-9.]*\).*/\1/p' | sort -uV | tail -1 || true)
cat >"$root/DEBIAN/control" <<CONTROL
Package: holdfast
Version: $version
Architecture: $architecture
Maintainer: The Holdfast authors <holdfast@localhost>
Section: net
Priority: optional
Depends: libc6 (>= ${glibc:-2.36}), libgcc-s1, libstdc++6, ca-certificates, passwd
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)
Description: decentralized, content-addressed storage for AI datasets and checkpoints
 Holdfast stores content-addressed blocks on other people's disks, protected by
 Reed-Solomon stripes, and checks every byte against its name. This package has
 the one program for disk owners, uploaders and auditors, and a systemd unit for
 a storage node.
CONTROL
package="$out/holdfast_${version}_${architecture}.deb"
dpkg-deb --root-owner-group --build "$root" "$package" >/dev/null
echo "$package"
