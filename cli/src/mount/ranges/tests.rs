//! Against a server that answers what the test says.

use std::io::{Read, Write};
use std::net::TcpListener;

use super::*;

/// Serves one connection after another, each with these answers, one for each request; returns the address.
fn serve(connections: Vec<Vec<Vec<u8>>>) -> std::io::Result<Url> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || -> std::io::Result<()> {
        for answers in connections {
            let (mut stream, _) = listener.accept()?;
            for answer in answers {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read(&mut byte)? == 0 {
                        break;
                    }
                    request.push(byte[0]);
                }
                stream.write_all(&answer)?;
            }
        }
        Ok(())
    });
    Ok(Url::parse(&format!("http://{address}/bucket/key?signed=1")).expect("a URL"))
}

fn answer(status: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let mut whole = format!("HTTP/1.1 {status}\r\n{more}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    whole.extend_from_slice(body);
    whole
}

async fn collect(range: Range) -> Result<Vec<usize>, BackendError> {
    let Range::Body(mut body) = range else { panic!("no body") };
    let mut lens = Vec::new();
    while let Some(piece) = body.next().await {
        lens.push(piece?.len());
    }
    Ok(lens)
}

#[tokio::test]
async fn pieces_end_where_chunks_do_and_connections_serve_again() -> Result<(), Box<dyn std::error::Error>> {
    let unit = usize::try_from(READ_UNIT)?;
    let body = vec![7; 2 * unit];
    // One connection: a second one would never be accepted.
    let url = serve(vec![vec![
        answer("206 Partial Content", "", &body),
        answer("206 Partial Content", "", b"abc"),
    ]])?;
    let ranges = Ranges::new(&url).ok_or("http")?;
    let start = READ_UNIT / 2;
    let lens = collect(ranges.read(&url, "\"tag\"", start..start + 2 * READ_UNIT).await?).await?;
    assert_eq!(lens, [unit / 2, unit, unit / 2]);
    assert_eq!(collect(ranges.read(&url, "\"tag\"", 5..8).await?).await?, [3]);
    Ok(())
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_is_replaced() -> Result<(), Box<dyn std::error::Error>> {
    let url = serve(vec![
        vec![answer("206 Partial Content", "", b"abc")],
        vec![answer("206 Partial Content", "", b"def")],
    ])?;
    let ranges = Ranges::new(&url).ok_or("http")?;
    for _ in 0..2 {
        assert_eq!(collect(ranges.read(&url, "t", 0..3).await?).await?, [3]);
    }
    Ok(())
}

#[tokio::test]
async fn a_body_cut_short_is_an_error_and_other_lengths_are_not_believed()
-> Result<(), Box<dyn std::error::Error>> {
    let mut cut = answer("206 Partial Content", "", &[1; 1000]);
    cut.truncate(cut.len() - 10);
    let url = serve(vec![vec![cut], vec![answer("206 Partial Content", "", b"four")]])?;
    let ranges = Ranges::new(&url).ok_or("http")?;
    assert!(collect(ranges.read(&url, "t", 0..1000).await?).await.is_err());
    assert!(matches!(ranges.read(&url, "t", 0..3).await?, Range::Unusual));
    Ok(())
}

#[tokio::test]
async fn refusals_are_read_and_what_is_not_plain_is_left_to_others() -> Result<(), Box<dyn std::error::Error>>
{
    let chunked = b"HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let url = serve(vec![
        vec![answer("412 Precondition Failed", "", b"<Error/>"), chunked.to_vec()],
        vec![b"nonsense\r\n\r\n".to_vec()],
        vec![[b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'y'; 2 * HEAD_LEN_MAX]].concat()],
    ])?;
    let ranges = Ranges::new(&url).ok_or("http")?;
    let refused = ranges.read(&url, "t", 0..3).await?;
    let Range::Refused(status, said) = refused else { panic!("not refused") };
    assert_eq!((status, &*said), (StatusCode::PRECONDITION_FAILED, "<Error/>"));
    for _ in 0..3 {
        assert!(matches!(ranges.read(&url, "t", 0..3).await?, Range::Unusual));
    }
    Ok(())
}
