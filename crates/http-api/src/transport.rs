//! What happens to a request before it finds its endpoint, and to a response after it: paths decoded, cleaned and kept
//! printable, compression, `Vary`, `Date`.

use crate::api::Api;
use crate::backend::Backend;
use crate::go::{escape_path, path_unescape};
use crate::routes::{DecodedPath, Peer};
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, DATE, LOCATION, VARY};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use quorate_rt::Rt;
use regex::Regex;
use std::io::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};
use tower::ServiceExt as _;

/// Bodies beyond this are compressed off the async threads.
const GZIP_INLINE_LEN_BYTES_MAX: usize = 64 * 1024;

/// Answers one request.
pub async fn answer<R: Rt, B: Backend>(
    api: &Api<R, B>,
    router: Router,
    peer: Peer,
    mut request: Request<Body>,
) -> Response<Body> {
    let wants_gzip = accepts_gzip(request.headers());
    let mut response = match prepare(&mut request, api.config().disable_unprintable_char_filter) {
        Err(response) => *response,
        Ok(()) => {
            request.extensions_mut().insert(peer);
            if request.uri().query().is_some_and(|query| query.contains("index=")) {
                detach(&mut request);
            }
            match router.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
    };
    if wants_gzip {
        response = compressed(api.rt(), response).await;
    }
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    let wall = UNIX_EPOCH + Duration::from_secs(api.rt().wall_now().as_secs());
    if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(wall)) {
        headers.insert(DATE, date);
    }
    response
}

/// Decodes and checks the path; what is left of the request's URI is its plain form, for the router.
fn prepare(request: &mut Request<Body>, unprintable_allowed: bool) -> Result<(), Box<Response<Body>>> {
    let status = |status| {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        Box::new(response)
    };
    let uri = request.uri();
    // A key is text here: a path that is not UTF-8 is refused, where Consul would keep other bytes than were sent.
    let Some(path) = path_unescape(uri.path()) else {
        return Err(status(StatusCode::BAD_REQUEST));
    };
    if !unprintable_allowed && !is_printable(&path) {
        return Err(status(StatusCode::BAD_REQUEST));
    }
    let clean = clean_path(&path);
    if clean != path {
        return Err(Box::new(redirect(request.method(), &clean, uri.query())));
    }
    if uri.path().contains('%') {
        // The router matches text: an escaped letter must not hide an endpoint.
        let mut plain = escape_path(&path);
        if let Some(query) = uri.query() {
            plain.push('?');
            plain.push_str(query);
        }
        let plain = PathAndQuery::try_from(plain).map_err(|_| status(StatusCode::BAD_REQUEST))?;
        let mut parts = http::uri::Parts::default();
        parts.path_and_query = Some(plain);
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| status(StatusCode::BAD_REQUEST))?;
    }
    request.extensions_mut().insert(DecodedPath(Arc::from(path)));
    Ok(())
}

/// Lets go of the connection's buffer, which the head of a request is a part of: a read that waits would hold its 8 KiB for
/// minutes, and many wait.
fn detach(request: &mut Request<Body>) {
    let uri = Bytes::from(request.uri().to_string());
    if let Ok(uri) = Uri::from_maybe_shared(uri) {
        *request.uri_mut() = uri;
    }
    for value in request.headers_mut().values_mut() {
        let copy = HeaderValue::from_bytes(value.as_bytes());
        let mut copy = copy.expect("what was a value is one");
        copy.set_sensitive(value.is_sensitive());
        *value = copy;
    }
}

/// Go's `unicode.IsPrint` for each character: letters, marks, numbers, punctuation, symbols, and the ASCII space.
fn is_printable(path: &str) -> bool {
    if path.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return true;
    }
    static PRINTABLE: OnceLock<Regex> = OnceLock::new();
    PRINTABLE
        .get_or_init(|| Regex::new(r"\A[\p{L}\p{M}\p{N}\p{P}\p{S} ]*\z").expect("a constant expression"))
        .is_match(path)
}

/// Go's `cleanPath`: no empty, `.` or `..` segments; a final slash stays.
pub fn clean_path(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    let mut clean = String::with_capacity(path.len() + 1);
    for segment in &segments {
        clean.push('/');
        clean.push_str(segment);
    }
    if clean.is_empty() || path.ends_with('/') {
        clean.push('/');
    }
    clean
}

/// 301 to a path, keeping the query. Only readers get a page with it (Go's `http.Redirect`).
pub fn redirect(method: &Method, path: &str, query: Option<&str>) -> Response<Body> {
    let mut location = escape_path(path);
    if let Some(query) = query {
        location.push('?');
        location.push_str(query);
    }
    let page = format!("<a href=\"{}\">Moved Permanently</a>.\n\n", escape_html(&location));
    let shows_page = matches!(*method, Method::GET | Method::HEAD);
    let mut response = Response::new(if shows_page { Body::from(page) } else { Body::empty() });
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let headers = response.headers_mut();
    if shows_page {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    }
    match HeaderValue::try_from(location) {
        Ok(location) => {
            headers.insert(LOCATION, location);
        }
        Err(_) => *response.status_mut() = StatusCode::BAD_REQUEST,
    }
    response
}

fn escape_html(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&#34;")
        .replace('\'', "&#39;")
}

/// RFC 9110 section 12.5.3, for the one coding we have.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let named = parts
                .next()
                .is_some_and(|name| name.eq_ignore_ascii_case("gzip") || name == "*");
            let refused = parts
                .filter_map(|part| part.strip_prefix("q="))
                .any(|quality| quality.parse::<f32>().is_ok_and(|quality| quality <= 0.0));
            named && !refused
        })
}

async fn compressed<R: Rt>(rt: &R, response: Response<Body>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    let plain = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            // Replies hold their whole body in memory; there is nothing that could fail.
            tracing::error!(%error, "a response body could not be read");
            Bytes::new()
        }
    };
    if plain.is_empty() {
        return Response::from_parts(parts, Body::empty());
    }
    let packed = if plain.len() <= GZIP_INLINE_LEN_BYTES_MAX {
        gzip(&plain)
    } else {
        rt.run_blocking(move || gzip(&plain)).await
    };
    parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.remove(CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(packed))
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4 + 64), Compression::fast());
    encoder.write_all(plain).expect("memory takes all bytes");
    encoder.finish().expect("memory takes all bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_gos_mux_does() {
        for (path, clean) in [
            ("/v1/catalog//nodes", "/v1/catalog/nodes"),
            ("/v1/kv//a", "/v1/kv/a"),
            ("/v1/./kv/../kv/a/", "/v1/kv/a/"),
            ("/../..", "/"),
            ("/", "/"),
            ("", "/"),
            ("/v1/kv/a", "/v1/kv/a"),
        ] {
            assert_eq!(clean_path(path), clean, "{path}");
        }
    }

    #[test]
    fn a_request_that_waits_holds_no_part_of_the_connections_buffer() {
        let buffer = Bytes::from("/v1/kv/a?index=7 secret".to_owned());
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = Uri::from_maybe_shared(buffer.slice(..16)).unwrap();
        let mut token = HeaderValue::from_maybe_shared(buffer.slice(17..)).unwrap();
        token.set_sensitive(true);
        request.headers_mut().insert("x-consul-token", token);
        assert!(!buffer.is_unique());
        detach(&mut request);
        assert!(buffer.is_unique());
        let token = &request.headers()["x-consul-token"];
        assert_eq!(
            (request.uri().to_string().as_str(), token.to_str().unwrap()),
            ("/v1/kv/a?index=7", "secret")
        );
        assert!(token.is_sensitive());
    }

    #[test]
    fn printable_is_what_go_calls_so() {
        assert!(is_printable("/v1/kv/é b/✓"));
        for path in ["/a\u{1}b", "/a\nb", "/a\u{200b}b", "/a\u{a0}b", "/a\u{7f}"] {
            assert!(!is_printable(path), "{path:?}");
        }
    }

    #[test]
    fn gzip_is_sent_only_when_asked_for() {
        let check = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(value));
            accepts_gzip(&headers)
        };
        assert!(check("gzip"));
        assert!(check("deflate, gzip;q=0.5"));
        assert!(check("*"));
        assert!(!check("gzip;q=0"));
        assert!(!check("identity"));
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    proptest::proptest! {
        #[test]
        fn a_clean_path_stays_as_it_is(path in "[/.a]{0,24}") {
            let clean = clean_path(&path);
            proptest::prop_assert_eq!(clean_path(&clean), clean.clone());
            proptest::prop_assert!(clean.starts_with('/'));
        }
    }
}
