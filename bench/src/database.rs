//! Where the gateway under test keeps its metadata: in its own directory, or in PostgreSQL.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result};

#[allow(unreachable_pub, dead_code)]
#[path = "../../tests/src/postgres.rs"]
mod postgres;

use postgres::Postgres;

/// What `--meta` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Database {
    /// RocksDB in the data directory.
    Rocks,
    /// A PostgreSQL server that this program starts, as Debian ships it.
    Postgres,
    /// A database that runs already. What a run leaves in it stays there.
    At(String),
}

impl FromStr for Database {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "rocksdb" => Ok(Self::Rocks),
            "postgres" => Ok(Self::Postgres),
            url if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
                Ok(Self::At(url.to_owned()))
            }
            other => Err(format!("`{other}` is neither rocksdb, nor postgres, nor a postgres:// URL")),
        }
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rocks => "RocksDB",
            Self::Postgres | Self::At(_) => "PostgreSQL",
        })
    }
}

/// A database for one table of the report; a server that was started for it ends with it.
pub(crate) struct Started {
    /// What the gateway is told; nothing for RocksDB.
    pub(crate) url: Option<String>,
    _server: Option<Postgres>,
}

impl Database {
    /// Starts what needs starting.
    pub(crate) fn start(&self) -> Result<Started> {
        match self {
            Self::Rocks => Ok(Started { url: None, _server: None }),
            Self::At(url) => Ok(Started { url: Some(url.clone()), _server: None }),
            Self::Postgres => {
                let server = Postgres::start().context("cannot start a PostgreSQL server")?;
                Ok(Started { url: Some(server.url()), _server: Some(server) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_are_named_as_people_name_them() {
        assert_eq!("rocksdb".parse(), Ok(Database::Rocks));
        assert_eq!("postgres".parse(), Ok(Database::Postgres));
        assert!(matches!("postgres://u@h/d".parse(), Ok(Database::At(_))));
        assert!("mysql".parse::<Database>().is_err());
    }
}
