//! Which bucket and key a request names: by path, or by host name where the host is a bucket of a domain that is ours.

use http::{Request, header};
use s3s::S3Result;
use s3s::host::{S3Host, VirtualHost};

/// Always ours: names below it lead to this machine, so that virtual-host style needs no set-up to be tried.
const LOCAL_DOMAIN: &str = "localhost";

/// The domains below which host names are buckets.
#[derive(Clone, Debug)]
pub(crate) struct Domains(Vec<String>);

impl Domains {
    /// `localhost`, and the operator's.
    pub(crate) fn new(more: &[String]) -> Self {
        let mut domains = vec![LOCAL_DOMAIN.to_owned()];
        domains.extend(more.iter().map(|domain| domain.trim_matches('.').to_ascii_lowercase()));
        // The longest first: a domain may lie below another.
        domains.sort_by_key(|domain| std::cmp::Reverse(domain.len()));
        Self(domains)
    }

    /// The bucket that a Host header names, if it names one.
    pub(crate) fn bucket_of<'a>(&self, host: &'a str) -> Option<&'a str> {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        self.0.iter().find_map(|domain| {
            let at = name.len().checked_sub(domain.len())?;
            let (front, back) = (name.get(..at)?, name.get(at..)?);
            back.eq_ignore_ascii_case(domain).then_some(())?;
            front.strip_suffix('.').filter(|bucket| !bucket.is_empty())
        })
    }
}

impl S3Host for Domains {
    fn parse_host_header<'a>(&'a self, host: &'a str) -> S3Result<VirtualHost<'a>> {
        let parsed = VirtualHost::new(host);
        Ok(match self.bucket_of(host) {
            Some(bucket) => parsed.with_bucket(bucket),
            None => parsed,
        })
    }
}

/// What a request is about, percent-decoded; the key is empty for a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) bucket: String,
    pub(crate) key: String,
}

/// The target of a request; `None` for the service itself and for paths that cannot be decoded.
pub(crate) fn target<B>(request: &Request<B>, domains: &Domains) -> Option<Target> {
    let path = super::refuse::decoded(request.uri().path());
    let path = path.strip_prefix('/').unwrap_or(&path);
    let host = request.headers().get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (bucket, key) = match domains.bucket_of(host) {
        Some(bucket) => (bucket, path),
        None => path.split_once('/').unwrap_or((path, "")),
    };
    (!bucket.is_empty()).then(|| Target { bucket: bucket.to_owned(), key: key.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_below_our_domains_are_buckets_and_others_are_not() {
        let domains = Domains::new(&["s3.example.org".to_owned(), "eu.s3.example.org".to_owned()]);
        for (host, bucket) in [
            ("data.localhost:9000", Some("data")),
            ("my.data.s3.example.org", Some("my.data")),
            ("data.EU.s3.example.org:443", Some("data")),
            ("localhost:9000", None),
            ("s3.example.org", None),
            ("127.0.0.1:9000", None),
            ("[::1]:9000", None),
            ("notlocalhost", None),
            (".localhost", None),
            ("data.example.org", None),
        ] {
            assert_eq!(domains.bucket_of(host), bucket, "{host}");
        }
    }

    #[test]
    fn targets_are_found_in_either_style() {
        let domains = Domains::new(&[]);
        let find = |uri: &str, host: &str| {
            target(&Request::builder().uri(uri).header("host", host).body(()).unwrap(), &domains)
        };
        let of = |bucket: &str, key: &str| Some(Target { bucket: bucket.to_owned(), key: key.to_owned() });
        assert_eq!(find("/b/a%20c/d?x=1", "127.0.0.1:1"), of("b", "a c/d"));
        assert_eq!(find("/a/b", "data.localhost"), of("data", "a/b"));
        assert_eq!(find("/b", "127.0.0.1:1"), of("b", ""));
        assert_eq!(find("/", "127.0.0.1:1"), None);
    }
}
