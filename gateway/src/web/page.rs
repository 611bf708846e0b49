//! The status page: server-rendered, no scripts, readable on a phone. Anybody sees whether the gateway works and how full
//! it is; which nodes there are and what they did is for the administrator, as in the API.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::api::{NodeRow, Status};
use super::{admin, meta_failed, nodes, plan, refuse, status};
use crate::gateway::Core;

mod durability;

/// Culprits shown.
const CULPRITS_SHOWN: usize = 10;

const STYLE: &str = "
:root{color-scheme:light dark;--fg:#16202a;--bg:#f6f7f9;--card:#fff;--dim:#5b6875;--line:#dde2e8;--ok:#0a7d4b;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--fg:#e6eaef;--bg:#10151a;--card:#182028;--dim:#93a1af;--line:#2a3540;--ok:#4cc38a;--bad:#ff8a80}}
*{box-sizing:border-box}body{margin:0;font:16px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg)}
main{max-width:60rem;margin:0 auto;padding:1rem}h1{font-size:1.4rem;margin:.5rem 0}h2{font-size:1.05rem;margin:1.5rem 0 .5rem}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.6rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.6rem .8rem}
.card b{display:block;font-size:1.25rem}.dim{color:var(--dim);font-size:.85rem}.ok{color:var(--ok)}.bad{color:var(--bad)}
.table{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:.5rem}
table{border-collapse:collapse;width:100%;font-size:.9rem}th,td{text-align:left;padding:.4rem .7rem;border-bottom:1px solid var(--line);white-space:nowrap}
tr:last-child td{border-bottom:0}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}code{font-size:.85em}td.wrap{white-space:normal}
";

/// What anybody may see.
pub(super) async fn show(State(core): State<Arc<Core>>) -> Response {
    page(&core, false).await
}

/// All of it, for whoever brings the admin token: as a bearer, or as the password that a browser asks for.
pub(super) async fn show_all(State(core): State<Arc<Core>>, headers: HeaderMap) -> Response {
    let presented = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if presented.and_then(token_of).is_some_and(|token| core.config.keys.admin_token().matches(&token)) {
        return page(&core, true).await;
    }
    let refusal =
        refuse(StatusCode::UNAUTHORIZED, "give the token in DIR/admin-token as the password, with any name");
    ([(header::WWW_AUTHENTICATE, "Basic realm=\"Holdfast\", charset=\"UTF-8\"")], refusal).into_response()
}

fn token_of(authorization: &str) -> Option<String> {
    if let Some(token) = authorization.strip_prefix("Bearer ") {
        return Some(token.trim().to_owned());
    }
    let pair = STANDARD.decode(authorization.strip_prefix("Basic ")?.trim()).ok()?;
    let pair = String::from_utf8(pair).ok()?;
    pair.split_once(':').map(|(_, password)| password.to_owned())
}

async fn page(core: &Arc<Core>, is_admin: bool) -> Response {
    let status = match status::gather(core).await {
        Ok(status) => status,
        Err(error) => return meta_failed(&error),
    };
    let mut html = String::with_capacity(16 * 1024);
    head(&mut html, &status);
    cards(&mut html, &status);
    if is_admin {
        let plan = match plan::gather(core).await {
            Ok(plan) => plan,
            Err(error) => return meta_failed(&error),
        };
        node_table(&mut html, &nodes::rows(core).await);
        culprit_table(&mut html, core);
        durability::section(&mut html, &plan, &status.repair, core.config.clock.now_ms());
    } else {
        html.push_str(
            "<p class=dim>Nodes, evidence and durability are for the administrator: \
             <a href=/admin>sign in</a> with any name and the token in <code>DIR/admin-token</code>.</p>",
        );
    }
    repair_line(&mut html, &status);
    let _ = write!(
        html,
        "<p class=dim>{} · namespace <code>{}</code> · up {} s · <a href=/api/v1/status>status</a> · \
         <a href=/api/v1/openapi.json>API</a> · <a href=/metrics>metrics</a></p></main></body></html>",
        escaped(&status.software),
        escaped(&status.namespace),
        status.uptime_s
    );
    let policy = "default-src 'none'; style-src 'unsafe-inline'";
    ([(header::CONTENT_SECURITY_POLICY, policy), (header::REFRESH, "10")], Html(html)).into_response()
}

fn head(html: &mut String, status: &Status) {
    let _ = write!(
        html,
        "<!doctype html><html lang=en><head><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width,initial-scale=1\"><title>Holdfast</title>\
         <style>{STYLE}</style></head><body><main><h1>Holdfast</h1>"
    );
    if status.ready {
        html.push_str("<p class=ok>Reads and writes work.</p>");
    }
    for problem in &status.problems {
        let _ = write!(html, "<p class=bad>{}</p>", escaped(problem));
    }
}

fn cards(html: &mut String, status: &Status) {
    let card = |html: &mut String, name: &str, value: String, note: String| {
        let _ = write!(
            html,
            "<div class=card><span class=dim>{name}</span><b>{value}</b><span class=dim>{note}</span></div>"
        );
    };
    html.push_str("<div class=cards>");
    let needed = format!("{} needed to write", status.nodes_needed);
    card(html, "Nodes up", format!("{} of {}", status.nodes_up, status.nodes_known), needed);
    let space = format!("of {} offered", bytes(status.capacity_bytes));
    card(html, "Free", bytes(status.free_bytes), space);
    card(html, "Objects", status.objects.to_string(), bytes(status.object_bytes));
    card(html, "Buckets", status.buckets.to_string(), format!("policy {}", escaped(&status.policy)));
    let queues = if status.deliveries_waiting { "deliveries waiting" } else { "nothing queued" };
    card(html, "Stripes incomplete", status.stripes_incomplete.to_string(), queues.to_owned());
    html.push_str("</div>");
}

fn node_table(html: &mut String, rows: &[NodeRow]) {
    html.push_str(
        "<h2>Nodes</h2><div class=table><table><tr><th>Node<th>State<th class=n>Used<th class=n>Free\
         <th class=n>Blocks<th class=n>Answer<th class=n>Lies</tr>",
    );
    for row in rows {
        let class = if row.state == "up" { "ok" } else { "bad" };
        let agreed = if row.agreed { "" } else { ", no agreement" };
        let _ = write!(
            html,
            "<tr><td title=\"{}\"><code>{}</code><td class={class}>{}{agreed}<td class=n>{}<td class=n>{}\
             <td class=n>{}<td class=n>{}<td class=n>{}</tr>",
            escaped(&row.id),
            escaped(&row.id.chars().skip(5).take(8).collect::<String>()),
            escaped(&row.state),
            bytes(row.used_bytes),
            bytes(row.free_bytes),
            row.blocks,
            millis(row.latency_us),
            row.culprit_count
        );
    }
    if rows.is_empty() {
        html.push_str("<tr><td colspan=7 class=dim>No node is known yet.</tr>");
    }
    html.push_str("</table></div>");
}

fn culprit_table(html: &mut String, core: &Core) {
    let rows = admin::culprit_rows(core);
    if rows.is_empty() {
        return;
    }
    html.push_str(
        "<h2>Caught lying</h2><div class=table><table><tr><th>Node<th>Evidence<th class=n>Times</tr>",
    );
    for row in rows.iter().take(CULPRITS_SHOWN) {
        let _ = write!(
            html,
            "<tr><td><code>{}</code><td class=wrap>{}<td class=n>{}</tr>",
            escaped(&row.node.chars().skip(5).take(8).collect::<String>()),
            escaped(&row.what),
            row.count
        );
    }
    html.push_str("</table></div>");
}

fn repair_line(html: &mut String, status: &Status) {
    let repair = &status.repair;
    let line = match (repair.run, repair.running, &repair.error) {
        (0, ..) => "No repair has run since the start.".to_owned(),
        (_, true, _) => format!(
            "A repair is under way: {} of {} damaged stripes left.",
            repair.progress.remaining, repair.progress.stripes_damaged
        ),
        (_, false, Some(error)) => format!("The last repair stopped early: {}", escaped(error)),
        (_, false, None) => format!(
            "The last repair rebuilt {} shards ({} written); {} stripes wait for nodes.",
            repair.progress.shards_rebuilt,
            bytes(repair.progress.bytes_written),
            repair.progress.waiting
        ),
    };
    let _ = write!(html, "<h2>Repair</h2><p>{line}</p>");
}

fn millis(micros: u64) -> String {
    if micros == 0 { "–".to_owned() } else { format!("{}.{} ms", micros / 1000, micros % 1000 / 100) }
}

fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] =
        [("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000)];
    for (unit, size) in UNITS {
        if bytes >= size {
            return format!("{}.{} {unit}", bytes / size, bytes % size * 10 / size);
        }
    }
    format!("{bytes} B")
}

/// Text as HTML: nothing a peer says becomes markup.
fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            other => html.push(other),
        }
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_peers_say_never_becomes_markup() {
        assert_eq!(escaped("<script>\"'&"), "&lt;script&gt;&quot;&#39;&amp;");
    }

    #[test]
    fn the_token_comes_as_bearer_or_as_a_password() {
        assert_eq!(token_of("Bearer abc ").as_deref(), Some("abc"));
        assert_eq!(token_of(&format!("Basic {}", STANDARD.encode("me:abc"))).as_deref(), Some("abc"));
        assert_eq!(token_of("Basic !"), None);
        assert_eq!(token_of("abc"), None);
    }

    #[test]
    fn sizes_are_for_people() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_530_000), "1.5 MB");
        assert_eq!(bytes(2_000_000_000_000), "2.0 TB");
        assert_eq!(millis(1234), "1.2 ms");
        assert_eq!(millis(0), "–");
    }
}
