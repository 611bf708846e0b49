//! A PostgreSQL server of a test's own: Debian's programs, a new cluster in a temporary directory, a Unix socket instead
//! of a port, durable as it comes.
//!
//! Needs nothing but the standard library and `tempfile`, because tests of other crates include this file.

use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where Debian keeps the programs of each version.
const VERSIONS: &str = "/usr/lib/postgresql";

/// A running server; stopped and removed when dropped.
pub struct Postgres {
    directory: tempfile::TempDir,
    programs: PathBuf,
    /// Where it listens over TLS, if it does.
    port: Option<u16>,
}

/// What a server over TLS shows, and whom it believes, as PEM.
pub struct ServerTls<'a> {
    /// The server's certificate.
    pub certificate: &'a str,
    /// Its key.
    pub key: &'a str,
    /// Who signs clients' certificates.
    pub client_ca: &'a str,
}

/// How often a free port is looked for: between the look and the server's start somebody else may take it.
const PORT_ATTEMPTS: usize = 5;

impl Postgres {
    /// Makes a cluster and starts a server on it.
    pub fn start() -> Result<Self> {
        let server = Self::prepare()?;
        server.up()?;
        Ok(server)
    }

    /// The same, listening on 127.0.0.1 as well, over TLS and nothing else: in the database `postgres` whoever knows
    /// its name is believed, in `template1` whoever shows a certificate.
    pub fn start_with_tls(tls: &ServerTls<'_>) -> Result<Self> {
        let mut server = Self::prepare()?;
        let data = server.data();
        server.write("server.crt", tls.certificate)?;
        server.write("server.key", tls.key)?;
        server.write("clients.crt", tls.client_ca)?;
        let rules = "local all all trust\nhostssl postgres all 127.0.0.1/32 trust\n\
                     hostssl template1 all 127.0.0.1/32 cert\n";
        std::fs::write(data.join("pg_hba.conf"), rules)?;
        let mut last = Error::other("no port was tried");
        for _ in 0..PORT_ATTEMPTS {
            server.port = Some(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port());
            match server.up() {
                Ok(()) => return Ok(server),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn prepare() -> Result<Self> {
        let server = Self { directory: tempfile::tempdir()?, programs: programs()?, port: None };
        if is_root() {
            // The server refuses to run as root; Debian's package made a user for it.
            let [user, group] = ["-u", "-g"].map(|which| id_of("postgres", which));
            std::os::unix::fs::chown(server.directory.path(), Some(user?), Some(group?))?;
        }
        let data = server.data();
        let options =
            ["--no-sync", "--auth=trust", "--username=holdfast", "--no-locale", "--encoding=UTF8", "-D"];
        server.run("initdb", &[&options[..], &[text(&data)?]].concat())?;
        Ok(server)
    }

    /// Starts the server, after [`Postgres::crash`]; returns when it takes connections.
    pub fn up(&self) -> Result<()> {
        let socket = self.directory.path().display();
        let listen = match self.port {
            None => "-c listen_addresses=''".to_owned(),
            Some(port) => format!(
                "-c listen_addresses=127.0.0.1 -c port={port} -c ssl=on -c ssl_cert_file=server.crt \
                 -c ssl_key_file=server.key -c ssl_ca_file=clients.crt"
            ),
        };
        let options = format!("{listen} -c unix_socket_directories='{socket}' -c shared_buffers=32MB");
        let log = self.directory.path().join("log");
        let data = self.data();
        self.run("pg_ctl", &["start", "-w", "-D", text(&data)?, "-l", text(&log)?, "-o", &options])
    }

    /// Ends every process of the server at once, without a checkpoint: the next start recovers from the log.
    pub fn crash(&self) -> Result<()> {
        let data = self.data();
        self.run("pg_ctl", &["stop", "-w", "-m", "immediate", "-D", text(&data)?])
    }

    /// How clients reach it.
    pub fn url(&self) -> String {
        let socket = self.directory.path().display().to_string().replace('/', "%2F");
        format!("postgres://holdfast@{socket}/postgres")
    }

    /// How clients reach it over TLS, with these options: `sslmode=…`.
    pub fn tls_url(&self, host: &str, database: &str, options: &str) -> Option<String> {
        Some(format!("postgres://holdfast@{host}:{}/{database}?{options}", self.port?))
    }

    /// Writes a file into the data directory that only the server may read.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.data().join(name);
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        if is_root() {
            let [user, group] = ["-u", "-g"].map(|which| id_of("postgres", which));
            std::os::unix::fs::chown(&path, Some(user?), Some(group?))?;
        }
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let program = self.programs.join(program);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(&program);
            command
        } else {
            Command::new(&program)
        };
        let log = self.directory.path().join("programs.log");
        let said = std::fs::File::options().create(true).append(true).open(&log)?;
        let status = command
            .args(arguments)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            // Files, not pipes: the server would hold a pipe open for as long as it runs.
            .stdout(said.try_clone()?)
            .stderr(said)
            .status()?;
        if status.success() {
            return Ok(());
        }
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        Err(Error::other(format!("{} ended with {status}: {said}", program.display())))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Nothing to do about a failure; the server ends by itself once its directory is gone.
        let _ = self.crash();
    }
}

fn programs() -> Result<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir(VERSIONS)
        .map_err(|error| {
            Error::new(error.kind(), format!("{VERSIONS}: {error}; run scripts/setup.sh --tests"))
        })?
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|path| path.join("initdb").exists())
        .collect();
    versions.sort();
    versions
        .pop()
        .ok_or_else(|| Error::other(format!("no server under {VERSIONS}; run scripts/setup.sh --tests")))
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|ours| std::os::unix::fs::MetadataExt::uid(&ours) == 0)
}

fn id_of(user: &str, which: &str) -> Result<u32> {
    let output = Command::new("id").args([which, user]).output()?;
    String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .map_err(|_| Error::other(format!("there is no user {user}; run scripts/setup.sh --tests")))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| Error::other("the temporary directory's path is not UTF-8"))
}
