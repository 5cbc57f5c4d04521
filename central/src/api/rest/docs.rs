//! `GET /docs`: a page on which the API can be read and tried. It shows what [`super::openapi`] says and asks this
//! server only; it works without internet.

use axum::{
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};

use super::{answer::Answer, params::Params, problem::Problem};

/// The page takes nothing from elsewhere, asks nobody else, and stands in no other page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

pub(crate) async fn page(params: Params) -> Result<Response, Problem> {
    served(params, include_str!("docs/docs.html"), "text/html; charset=utf-8")
}

pub(crate) async fn script(params: Params) -> Result<Response, Problem> {
    served(params, include_str!("docs/docs.js"), "text/javascript; charset=utf-8")
}

pub(crate) async fn style(params: Params) -> Result<Response, Problem> {
    served(params, include_str!("docs/docs.css"), "text/css; charset=utf-8")
}

fn served(params: Params, text: &'static str, kind: &'static str) -> Result<Response, Problem> {
    params.finish()?;
    let headers: [(HeaderName, HeaderValue); 3] = [
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    Ok((headers, Answer::text(text, kind)).into_response())
}
