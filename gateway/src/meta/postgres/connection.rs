//! Connections to the database: made, prepared, and made again when they break.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Error, NoTls, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::super::store::StoreError;
use super::PostgresConfig;
use super::address::Address;

/// How long one attempt to connect may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Pause after the first failed attempt; doubles up to the other.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// A peer that is gone without a word is noticed after this long.
const SILENCE_MAX: Duration = Duration::from_secs(15);

const CREATE: &str = "CREATE TABLE IF NOT EXISTS holdfast_kv \
                      (k BYTEA NOT NULL, i INT8 NOT NULL, v BYTEA NOT NULL, PRIMARY KEY (k, i))";
/// Wishes: refused by databases that do not know them, and then not needed.
///
/// A scan of the whole table would make every other writer's row a conflict; a commit that is not on disk is no commit;
/// a gateway that died in a transaction must not hold its locks.
const WISHES: [&str; 5] = [
    "SET synchronous_commit = on",
    "SET enable_seqscan = off",
    "SET enable_bitmapscan = off",
    "SET statement_timeout = '30s'",
    "SET idle_in_transaction_session_timeout = '30s'",
];

/// One connection with its statements prepared.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) get: Statement,
    pub(super) many: Statement,
    pub(super) page: Statement,
    pub(super) own: Statement,
    pub(super) keys_of: Statement,
    pub(super) delete: Statement,
    pub(super) upsert: Statement,
}

impl Session {
    async fn prepare(client: Client) -> Result<Self, Error> {
        for wish in WISHES {
            match client.batch_execute(wish).await {
                Err(error) if is_lost(&error) => return Err(error),
                _ => {}
            }
        }
        let [get, many, page, own, keys_of, delete, upsert] = [
            "SELECT i, v FROM holdfast_kv WHERE k = $1",
            "SELECT k, i, v FROM holdfast_kv WHERE k = ANY($1)",
            "SELECT k, i, v FROM holdfast_kv WHERE k >= $1 AND k < $2 ORDER BY k, i LIMIT $3",
            "SELECT k, v FROM holdfast_kv WHERE k = ANY($1) AND i = $2",
            "SELECT DISTINCT k FROM holdfast_kv WHERE k >= $1 AND k < $2 ORDER BY k LIMIT $3",
            "DELETE FROM holdfast_kv WHERE k = ANY($1)",
            "INSERT INTO holdfast_kv (k, i, v) SELECT * FROM UNNEST($1::BYTEA[], $2::INT8[], $3::BYTEA[]) \
             ON CONFLICT (k, i) DO UPDATE SET v = EXCLUDED.v",
        ];
        Ok(Self {
            get: client.prepare(get).await?,
            many: client.prepare(many).await?,
            page: client.prepare(page).await?,
            own: client.prepare(own).await?,
            keys_of: client.prepare(keys_of).await?,
            delete: client.prepare(delete).await?,
            upsert: client.prepare(upsert).await?,
            client,
        })
    }
}

/// Makes connections.
pub(super) struct Connector {
    config: Config,
    tls: Option<MakeRustlsConnect>,
    patience: Duration,
}

impl Connector {
    /// Reads the URL, and the certificates that it names.
    pub(super) fn new(config: &PostgresConfig) -> Result<Self, StoreError> {
        let Address { config: mut parsed, tls } = Address::parse(&config.url)?;
        if parsed.get_application_name().is_none() {
            parsed.application_name("holdfast");
        }
        if parsed.get_connect_timeout().is_none() {
            parsed.connect_timeout(CONNECT_WITHIN);
        }
        parsed.keepalives_idle(SILENCE_MAX).tcp_user_timeout(SILENCE_MAX);
        let tls = tls.map(|tls| tls.client().map(MakeRustlsConnect::new)).transpose()?;
        Ok(Self { config: parsed, tls, patience: config.patience })
    }

    async fn client(&self) -> Result<Client, Error> {
        let failed = |error: Error| tracing::debug!(%error, "a connection to the metadata database ended");
        match &self.tls {
            Some(tls) => {
                let (client, connection) = self.config.connect(tls.clone()).await?;
                tokio::spawn(async move { connection.await.unwrap_or_else(failed) });
                Ok(client)
            }
            None => {
                let (client, connection) = self.config.connect(NoTls).await?;
                tokio::spawn(async move { connection.await.unwrap_or_else(failed) });
                Ok(client)
            }
        }
    }

    /// Makes the table, and refuses a database that forgets what it acknowledged.
    pub(super) async fn prepare_database(&self) -> Result<(), StoreError> {
        let deadline = Instant::now() + self.patience;
        let client = patiently(deadline, || self.client()).await?;
        if let Err(error) = client.batch_execute(CREATE).await {
            // Two gateways that make it at the same time may collide in the catalogue; then it is there.
            let there = client.query("SELECT k FROM holdfast_kv LIMIT 1", &[]).await;
            if there.is_err() {
                return Err(backend("make its table", &error));
            }
        }
        // Databases without the setting have no such switch.
        if let Ok(row) = client.query_one("SHOW fsync", &[]).await
            && row.try_get::<_, &str>(0).is_ok_and(|value| value == "off")
        {
            return Err(StoreError::Backend {
                operation: "promise anything",
                detail:
                    "the database runs with fsync = off; what it acknowledged would not survive a power cut"
                        .to_owned(),
                retryable: false,
            });
        }
        Ok(())
    }

    async fn session(&self) -> Result<Session, Error> {
        Session::prepare(self.client().await?).await
    }
}

/// One place for a connection; whoever finds it broken makes it anew, and the others wait for that.
pub(super) struct Slot {
    connector: Arc<Connector>,
    held: tokio::sync::Mutex<Held>,
}

/// What the last attempt to connect came to.
enum Held {
    /// None was made, or the connection was let go.
    Nothing,
    Open(Arc<Session>),
    /// It failed, at this time.
    Failed(Instant, StoreError),
}

impl Slot {
    pub(super) fn new(connector: Arc<Connector>) -> Self {
        Self { connector, held: tokio::sync::Mutex::new(Held::Nothing) }
    }

    /// The connection, waiting with the connector's patience for a database that is not there. All who wait at once wait for the
    /// same attempt and hear the same of it: were each to try by itself, the last of many would wait for hours.
    pub(super) async fn session(&self) -> Result<Arc<Session>, StoreError> {
        let asked = Instant::now();
        let mut held = self.held.lock().await;
        match &*held {
            Held::Open(session) if !session.client.is_closed() => return Ok(Arc::clone(session)),
            Held::Failed(at, error) if *at >= asked => return Err(error.clone()),
            _ => {}
        }
        match patiently(asked + self.connector.patience, || self.connector.session()).await {
            Ok(fresh) => {
                let fresh = Arc::new(fresh);
                *held = Held::Open(Arc::clone(&fresh));
                Ok(fresh)
            }
            Err(error) => {
                *held = Held::Failed(Instant::now(), error.clone());
                Err(error)
            }
        }
    }

    /// Lets the connection go.
    pub(super) async fn close(&self) {
        *self.held.lock().await = Held::Nothing;
    }
}

/// Tries until it works, cannot work, or takes too long.
async fn patiently<T, F>(deadline: Instant, mut attempt: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut pause = PAUSE_FIRST;
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) if !is_passing(&error) || Instant::now() + pause > deadline => {
                return Err(backend("connect", &error));
            }
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Whether the connection broke, rather than a statement failed.
pub(super) fn is_lost(error: &Error) -> bool {
    match error.code() {
        // The server says that it ends the connection.
        Some(code) => {
            [&SqlState::ADMIN_SHUTDOWN, &SqlState::CRASH_SHUTDOWN, &SqlState::CANNOT_CONNECT_NOW]
                .contains(&code)
                || code.code().starts_with("08")
        }
        // Without a code and without a broken socket it is our own mistake, which a new connection does not mend.
        None => {
            let source = std::error::Error::source(error);
            error.is_closed() || source.is_some_and(|source| source.is::<std::io::Error>())
        }
    }
}

/// Whether another transaction was in the way and the same one may go through when run again.
pub(super) fn is_conflict(error: &Error) -> bool {
    error.code().is_some_and(|code| {
        *code == SqlState::T_R_SERIALIZATION_FAILURE
            || *code == SqlState::T_R_DEADLOCK_DETECTED
            // Two that put the same new row: with the other one committed, the next try sees it.
            || *code == SqlState::UNIQUE_VIOLATION
    })
}

/// Whether waiting may help.
fn is_passing(error: &Error) -> bool {
    match error.code() {
        // Resources, interventions, a standby that is not promoted yet.
        Some(code) => {
            is_lost(error)
                || code.code().starts_with("53")
                || code.code().starts_with("57")
                || *code == SqlState::READ_ONLY_SQL_TRANSACTION
        }
        // Anything below SQL: refused, reset, timed out, a failed look-up of the name. A certificate that is not to be
        // trusted now will not be in a moment.
        None => !is_distrusted(error),
    }
}

/// Whether the server could not show that it is who it should be.
fn is_distrusted(error: &Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let io = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = io.and_then(|io| io.downcast_ref::<rustls::Error>());
        if matches!(tls, Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        source = inner.source();
    }
    false
}

/// The store's error for the database's.
pub(super) fn backend(operation: &'static str, error: &Error) -> StoreError {
    StoreError::Backend { operation, detail: full(error), retryable: is_passing(error) || is_conflict(error) }
}

/// The whole story in one line: the outer error alone says "db error".
pub(super) fn full(error: &Error) -> String {
    let mut text = match error.as_db_error() {
        Some(said) => format!("{} ({})", said.message(), said.code().code()),
        None => error.to_string(),
    };
    if error.as_db_error().is_none()
        && let Some(source) = std::error::Error::source(error)
    {
        text.push_str(": ");
        text.push_str(&source.to_string());
    }
    text.chars().take(400).collect()
}
