//! Paging by keyset: a token names the last finding of a page, so a page stays right while findings are announced.

use std::cmp::Ordering;

use tapio_schemas::{finding::Finding, units::UnixMicros};

use crate::grpc::refusal::Refusals;

/// Findings of a page when nothing is asked for.
const SIZE_DEFAULT: usize = 100;
/// Findings of a page at most.
const SIZE_MAX: usize = 1_000;
/// The form of a token's text, so that a later one can be told apart.
const FORM: &str = "p1";

/// Which page.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) size: usize,
    after: Option<(UnixMicros, String)>,
}

/// What orders findings: neither changes when a finding is revised.
pub(super) fn key(finding: &Finding) -> (UnixMicros, &str) {
    (finding.announced_at, finding.id.as_str())
}

/// The token of the page behind `finding`.
pub(super) fn token(finding: &Finding) -> String {
    format!("{FORM}.{:x}.{}", finding.announced_at.0, finding.id)
}

impl Page {
    pub(super) fn of(size: u32, token: &str, refusals: &mut Refusals) -> Self {
        let size = match usize::try_from(size) {
            Ok(0) => SIZE_DEFAULT,
            Ok(size @ 1..=SIZE_MAX) => size,
            _ => {
                refusals.add(
                    "page_size",
                    format_args!("{size} is too many: it is 1 to {SIZE_MAX}, or 0 for {SIZE_DEFAULT}"),
                );
                SIZE_DEFAULT
            }
        };
        let after = (!token.is_empty()).then(|| parse(token)).and_then(|after| {
            let refused = "it is no page's token; use next_page_token of the page before, unchanged";
            refusals.check("page_token", after.ok_or(refused))
        });
        Self { size, after }
    }

    /// Whether a finding stands on this page or behind it.
    pub(super) fn is_behind(&self, finding: &Finding) -> bool {
        self.after.as_ref().is_none_or(|(at, id)| key(finding).cmp(&(*at, id.as_str())) == Ordering::Less)
    }
}

fn parse(token: &str) -> Option<(UnixMicros, String)> {
    let mut parts = token.split('.');
    let (form, at, id) = (parts.next()?, parts.next()?, parts.next()?);
    if form != FORM || parts.next().is_some() || !id.starts_with("f-") {
        return None;
    }
    Some((UnixMicros(u64::from_str_radix(at, 16).ok()?), id.to_owned()))
}
