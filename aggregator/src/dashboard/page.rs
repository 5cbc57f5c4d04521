//! The page and its files, and what holds for every answer: whose name it was asked by, and what a browser may do.

use std::sync::Arc;

use axum::{
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    Shared,
    problem::{not_found, problem},
};
use crate::metrics::Answered;

/// The page takes nothing from elsewhere, asks nobody else, writes no markup out of text, and stands in no other page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    form-action 'none'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
    trusted-types 'none'";

/// What every answer says to the browser.
const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

pub(super) async fn index(headers: HeaderMap) -> Response {
    file("index.html", &headers)
}

pub(super) async fn asset(Path(path): Path<String>, headers: HeaderMap) -> Response {
    file(&path, &headers)
}

/// A file of the page. Those with a hash in their name never change; of the others the browser asks again.
fn file(path: &str, headers: &HeaderMap) -> Response {
    let Some(asset) = tapio_ui::asset(path) else { return not_found() };
    let caching = if asset.is_immutable { "public, max-age=31536000, immutable" } else { "no-cache" };
    let told = [(header::ETAG, asset.etag), (header::CACHE_CONTROL, caching)];
    let known = headers.get(header::IF_NONE_MATCH).and_then(|tags| tags.to_str().ok());
    if known.is_some_and(|tags| tags.split(',').any(|tag| tag.trim().trim_start_matches("W/") == asset.etag))
    {
        return (StatusCode::NOT_MODIFIED, told).into_response();
    }
    (told, [(header::CONTENT_TYPE, asset.content_type)], asset.bytes).into_response()
}

/// Refuses requests by a name that is not this machine's, adds the headers, and counts.
pub(super) async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let resource = match request.uri().path() {
        "/" | "/index.html" => "page",
        "/api/v1/status" => "status",
        "/api/v1/incidents" => "incidents",
        "/api/v1/nodes" => "nodes",
        "/api/v1/updates" => "updates",
        _ => "other",
    };
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let mut response = if shared.is_encrypted || is_this_machine(host) {
        next.run(request).await
    } else {
        problem(
            StatusCode::MISDIRECTED_REQUEST,
            "urn:tapio:problem:foreign-host",
            "the dashboard is not asked by this name",
            "without a certificate it answers to localhost, 127.0.0.1 and [::1] only, so that no other page can read \
             it: use one of them, or serve it with a certificate (dashboard.certificate) that has the name"
                .to_owned(),
        )
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if !response.headers().contains_key(header::CACHE_CONTROL) {
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    let answered = Answered { resource, status: response.status().as_u16() };
    shared.metrics.requests.get_or_create(&answered).inc();
    response
}

/// Whether a Host header names loopback, at whatever port: ports are forwarded.
fn is_this_machine(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let is_port_odd = authority.port_u16().is_none() && authority.as_str() != name;
    if is_port_odd || authority.as_str().contains('@') {
        return false;
    }
    let literal = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || literal.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: the names by which browsers ask, of this machine and of pages that point their name here.
    /// Guarantees: only this machine's are answered.
    #[test]
    fn only_names_of_this_machine_are_answered() {
        for own in ["localhost", "LocalHost:7404", "127.0.0.1:7404", "127.0.0.2", "[::1]:7404", "[::1]"] {
            assert!(is_this_machine(own), "{own}");
        }
        for foreign in [
            "",
            "evil.example",
            "evil.example:7404",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
            "evil.example@localhost",
            "10.0.0.1:7404",
            "[::2]:7404",
            "localhost:port",
        ] {
            assert!(!is_this_machine(foreign), "{foreign}");
        }
    }
}
