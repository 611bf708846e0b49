//! The Debian package: built from the program under test, with what belongs into it.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use holdfast_tests::{program, succeeded};

#[test]
fn the_package_has_the_program_the_unit_and_its_settings() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let out = tempfile::tempdir()?;
    let built = Command::new(root.join("packaging/build-deb.sh")).arg(program()?).arg(out.path()).output()?;
    let package = succeeded(built, "build-deb.sh")?.trim().to_owned();
    let fields = succeeded(Command::new("dpkg-deb").args(["--field", &package]).output()?, "dpkg-deb")?;
    assert!(fields.contains("Package: holdfast\n") && fields.contains("Depends: libc6"), "{fields}");
    let unpacked = out.path().join("unpacked");
    succeeded(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&unpacked).output()?, "dpkg-deb -x")?;
    for file in [
        "usr/bin/holdfast",
        "usr/lib/systemd/system/holdfast-node.service",
        "etc/holdfast/node.env",
        "usr/share/doc/holdfast/OPERATIONS.md",
    ] {
        assert!(unpacked.join(file).is_file(), "{file} is missing");
    }
    let version = Command::new(unpacked.join("usr/bin/holdfast")).arg("--version").output()?;
    assert!(succeeded(version, "holdfast --version")?.starts_with("holdfast "));
    // Every setting that the unit's file names is an option of the program.
    let help = succeeded(Command::new(program()?).args(["node", "run", "--help"]).output()?, "--help")?;
    let settings = std::fs::read_to_string(unpacked.join("etc/holdfast/node.env"))?;
    for line in
        settings.lines().map(|line| line.trim_start_matches('#')).filter(|line| line.starts_with("HOLDFAST_"))
    {
        let name = line.split('=').next().unwrap_or_default();
        assert!(help.contains(name), "{name} is no option of `holdfast node run`");
    }
    Ok(())
}
