//! TLS to a real server with certificates of the test's own.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use super::server::{Postgres, ServerTls};
use super::*;

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.distinguished_name.push(DnType::CommonName, "an authority");
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate for these names, of a server or a client called `common`, and its key.
    fn sign(&self, names: &[&str], common: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

async fn open(url: String) -> Result<Arc<PostgresStore>, StoreError> {
    PostgresStore::open(&PostgresConfig::of_instance(url, 1)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_is_trusted_by_its_certificate_and_its_name_and_never_without() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (Authority::new(), Authority::new());
    // The address alone: the server is not who it should be when it is called by a name.
    let (certificate, key) = ours.sign(&["127.0.0.1"], "database", ExtendedKeyUsagePurpose::ServerAuth);
    let tls = ServerTls { certificate: &certificate, key: &key, client_ca: &ours.pem() };
    let server = Postgres::start_with_tls(&tls).unwrap();
    let [ours_file, other_file] =
        [("ours.pem", &ours), ("other.pem", &other)].map(|(name, ca)| write(dir.path(), name, &ca.pem()));
    let url = |host: &str, database: &str, options: &str| server.tls_url(host, database, options).unwrap();
    let trusting = |mode: &str, file: &Path| format!("sslmode={mode}&sslrootcert={}", file.display());

    for mode in ["require", "verify-ca", "verify-full"] {
        let store = open(url("127.0.0.1", "postgres", &trusting(mode, &ours_file))).await.unwrap();
        let mut transaction = Transaction::default();
        transaction.put(mode.as_bytes().to_vec(), b"1".to_vec());
        store.transact(transaction).await.unwrap();
        assert_eq!(store.get(mode.as_bytes()).await.unwrap().as_deref(), Some(&b"1"[..]));
        let session = store.readers[0].session().await.unwrap();
        let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        assert!(session.client.query_one(encrypted, &[]).await.unwrap().get::<_, bool>(0));
        store.close().await.unwrap();
    }
    let refused = [
        // Signed by somebody else; by nobody that this system knows; and the right one under another name.
        (url("127.0.0.1", "postgres", &trusting("verify-full", &other_file)), "certificate"),
        (url("127.0.0.1", "postgres", "sslmode=require"), "certificate"),
        (url("localhost", "postgres", &trusting("verify-full", &ours_file)), "certificate"),
        (url("localhost", "postgres", &trusting("require", &ours_file)), "certificate"),
        // Plain: the server does not talk to us so.
        (url("127.0.0.1", "postgres", "sslmode=disable"), "pg_hba.conf"),
        (url("127.0.0.1", "postgres", ""), "pg_hba.conf"),
        // Files that are not what they should be.
        (url("127.0.0.1", "postgres", "sslmode=require&sslrootcert=/nonexistent"), "/nonexistent"),
        (
            url("127.0.0.1", "postgres", &trusting("require", &write(dir.path(), "no", "no"))),
            "no certificate",
        ),
    ];
    for (url, says) in refused {
        let error = open(url.clone()).await.err().unwrap_or_else(|| panic!("{url} was believed"));
        assert!(error.to_string().contains(says) && !error.is_retryable(), "{url}: {error}");
    }

    // A database that asks who we are.
    let usage = ExtendedKeyUsagePurpose::ClientAuth;
    let identity = |authority: &Authority, common: &str| {
        let (certificate, key) = authority.sign(&[], common, usage.clone());
        let certificate = write(dir.path(), &format!("{common}.crt"), &certificate);
        let key = write(dir.path(), &format!("{common}.key"), &key);
        format!("&sslcert={}&sslkey={}", certificate.display(), key.display())
    };
    let base = trusting("verify-full", &ours_file);
    let known = format!("{base}{}", identity(&ours, "holdfast"));
    open(url("127.0.0.1", "template1", &known)).await.unwrap().close().await.unwrap();
    let somebody = format!("{base}{}", identity(&ours, "somebody"));
    assert!(open(url("127.0.0.1", "template1", &somebody)).await.is_err(), "another name");
    assert!(open(url("127.0.0.1", "template1", &base)).await.is_err(), "no certificate");
}
