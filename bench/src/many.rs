//! A bucket of a million keys, and the listings that go through it.
//!
//! The objects have no bytes: a listing reads their rows and nothing else, and rows of empty objects are made like all
//! others, one durable PUT each. Keys lie in folders of a hundred folders of a hundred keys, so that prefixes and
//! delimiters have something to find. Every page is checked: how many lines, and which are the first and the last.

use anyhow::{Result, ensure};

use crate::pattern::Dice;
use crate::s3::{Asked, Session};

/// Below this all of them lie.
pub(crate) const PREFIX: &str = "many/";
/// Keys of an innermost folder, and innermost folders of an outer one.
const WIDTH: u64 = 100;
/// Keys of a full page.
const PAGE: u64 = 1000;

/// The key of this number; keys sort as their numbers do.
pub(crate) fn key(number: u64) -> String {
    format!("{}{:02}.jpg", folder(number / WIDTH), number % WIDTH)
}

/// The innermost folder of this number.
fn folder(number: u64) -> String {
    format!("{PREFIX}d{:02}/e{:02}/", number / WIDTH, number % WIDTH)
}

/// A page of 1,000 keys behind a random one.
pub(crate) async fn list_keys(session: &mut Session, count: u64, dice: &mut Dice) -> Result<()> {
    let at = dice.below(count - PAGE);
    let page = session.list(&Asked { prefix: PREFIX, start_after: &key(at), ..Asked::default() }).await?;
    let expected = (key(at + 1), key(at + PAGE));
    ensure!(page.keys as u64 == PAGE && (&page.first, &page.last) == (&expected.0, &expected.1), "{page:?}");
    Ok(())
}

/// The outer folders: a delimiter rolls up ten thousand keys into each line.
pub(crate) async fn list_folders(session: &mut Session, count: u64) -> Result<()> {
    let page = session.list(&Asked { prefix: PREFIX, delimiter: "/", ..Asked::default() }).await?;
    ensure!((page.keys, page.folders as u64) == (0, count.div_ceil(WIDTH * WIDTH)), "{page:?}");
    Ok(())
}

/// The keys of a random innermost folder.
pub(crate) async fn list_folder(session: &mut Session, count: u64, dice: &mut Dice) -> Result<()> {
    let at = dice.below(count / WIDTH);
    let asked = Asked { prefix: &folder(at), delimiter: "/", ..Asked::default() };
    let page = session.list(&asked).await?;
    let expected = (key(at * WIDTH), key(at * WIDTH + WIDTH - 1));
    ensure!(page.keys as u64 == WIDTH && (&page.first, &page.last) == (&expected.0, &expected.1), "{page:?}");
    Ok(())
}

/// All pages, one after the other; returns the time of each in microseconds.
pub(crate) async fn walk(session: &mut Session, count: u64) -> Result<Vec<u64>> {
    let (mut seen, mut token, mut latencies_us) = (0u64, String::new(), Vec::new());
    loop {
        let begin = std::time::Instant::now();
        let page = session.list(&Asked { prefix: PREFIX, token: &token, ..Asked::default() }).await?;
        latencies_us.push(u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX));
        ensure!(page.first == key(seen), "page {} begins at {}", latencies_us.len(), page.first);
        seen += page.keys as u64;
        match page.next {
            Some(next) => token = next,
            None => {
                ensure!(seen == count, "{seen} keys were listed instead of {count}");
                return Ok(latencies_us);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_keys_sort_as_their_numbers() {
        let numbers = [0, 1, 99, 100, 9_999, 10_000, 123_456, 999_999];
        let keys = numbers.map(key);
        assert!(keys.is_sorted());
        assert_eq!((keys[0].as_str(), keys[7].as_str()), ("many/d00/e00/00.jpg", "many/d99/e99/99.jpg"));
        assert!(key(123_456).starts_with(&folder(1_234)));
    }
}
