//! Answers with their entity tags (RFC 9110, section 8.8), and what a client that has one already gets.
//!
//! A tag is a hash of what is answered, so that equal answers of any replica have equal tags. It is strong, except of a
//! page that another follows: its cursor carries the time of the request, and only the rest of it is compared.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{page::List, problem::Problem};

/// Bytes of the hash that a tag shows: two answers of one resource share so many by chance never.
const TAG_BYTES: usize = 16;

/// A document that was found.
#[derive(Debug)]
pub(crate) struct Answer {
    body: Vec<u8>,
    kind: &'static str,
    tag: String,
}

impl Answer {
    /// The document `value`.
    pub(crate) fn whole<T: Serialize>(value: &T) -> Result<Self, Problem> {
        let body = serde_json::to_vec(value).map_err(|error| Problem::unwritable(&error))?;
        Ok(Self::text(body, "application/json"))
    }

    /// The page `list`.
    pub(crate) fn page<T: Serialize>(list: &List<T>) -> Result<Self, Problem> {
        let mut answer = Self::whole(list)?;
        if list.next_cursor.is_some() {
            let items = serde_json::to_vec(&list.items).map_err(|error| Problem::unwritable(&error))?;
            answer.tag = format!("W/{}", hash(&items));
        }
        Ok(answer)
    }

    /// A text of the media type `kind`.
    pub(crate) fn text(body: impl Into<Vec<u8>>, kind: &'static str) -> Self {
        let body = body.into();
        let tag = hash(&body);
        Self { body, kind, tag }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.kind));
        // It may be kept, but is to be asked for again each time: findings are revised.
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        if let Ok(tag) = HeaderValue::from_str(&self.tag) {
            headers.insert(header::ETAG, tag);
        }
        response
    }
}

/// `response`, or 304 without a body where the client that sent `asked` has it already (RFC 9110, section 13.1.2).
pub(crate) fn unless_known(asked: &[HeaderValue], mut response: Response) -> Response {
    let known = |tag: &HeaderValue| tag.to_str().is_ok_and(|tag| names(asked, tag));
    if response.status() != StatusCode::OK || !response.headers().get(header::ETAG).is_some_and(known) {
        return response;
    }
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    *response.body_mut() = Body::empty();
    for name in [header::CONTENT_TYPE, header::CONTENT_LENGTH] {
        response.headers_mut().remove(name);
    }
    response
}

/// The tags that a client says it has.
pub(crate) fn asked(headers: &HeaderMap) -> Vec<HeaderValue> {
    headers.get_all(header::IF_NONE_MATCH).iter().cloned().collect()
}

/// Whether `tag` is among `asked`, by the weak comparison. No tag of ours holds a comma.
fn names(asked: &[HeaderValue], tag: &str) -> bool {
    let opaque = tag.trim_start_matches("W/");
    let mut tags = asked
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == opaque)
}

fn hash(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let tag = digest.first_chunk::<TAG_BYTES>().map_or(0, |bytes| u128::from_be_bytes(*bytes));
    format!("\"{tag:032x}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: conditions as clients write them: one tag, several, weak and strong, any, other, and no text at all.
    /// Guarantees: exactly those that name the tag match.
    #[test]
    fn conditions_name_tags() {
        let value = |text: &str| HeaderValue::from_bytes(text.as_bytes()).unwrap();
        for (asked, tag, matches) in [
            (&["\"a\""][..], "\"a\"", true),
            (&["W/\"a\""], "\"a\"", true),
            (&["\"a\""], "W/\"a\"", true),
            (&["\"b\" , W/\"a\""], "\"a\"", true),
            (&["\"b\"", "\"a\""], "\"a\"", true),
            (&["*"], "\"a\"", true),
            (&["a"], "\"a\"", false),
            (&["\"A\"", "", ",", "W/", "\u{fc}"], "\"a\"", false),
            (&[], "\"a\"", false),
        ] {
            let asked: Vec<_> = asked.iter().map(|text| value(text)).collect();
            assert_eq!(names(&asked, tag), matches, "{asked:?} {tag}");
        }
    }

    /// Scenario: the same page asked for twice, a page with another row, and a last page.
    /// Guarantees: the time in the cursor changes no tag, a row does; only a page that another follows has a weak one.
    #[test]
    fn pages_with_equal_rows_have_equal_tags() {
        let page = |items: &[u64], cursor: Option<&str>| {
            let list = List { items: items.to_vec(), next_cursor: cursor.map(str::to_owned) };
            Answer::page(&list).unwrap().tag
        };
        assert_eq!(page(&[1, 2], Some("l.1.5.2.x")), page(&[1, 2], Some("l.1.6.2.x")));
        assert_ne!(page(&[1, 2], Some("l.1.5.2.x")), page(&[1, 3], Some("l.1.5.2.x")));
        assert!(page(&[1], Some("l.1.5.2.x")).starts_with("W/"));
        assert!(page(&[1], None).starts_with('"'));
        assert_ne!(page(&[1], None), page(&[], None));
    }
}
