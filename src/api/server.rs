//! The accept loop: HTTP/1.1 over `env::Net`, bounded in connections, head size and time (api.md §2,
//! security.md row 15).

use super::{
    Api, admission,
    answer::{not_found, refusal},
    endpoints::{Endpoint, endpoints},
};
use crate::{
    env::{BoxListener, BoxStream},
    model::{Code, Refused, RequestId, UnixTime},
    wire::request::HEADER_PEER,
};
use axum::{
    Router,
    body::Body,
    extract::{RawPathParams, rejection::RawPathParamsRejection},
    response::Response,
    routing::{MethodFilter, on},
};
use hyper::{
    Request,
    body::Incoming,
    header::{DATE, HeaderName, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt;

/// Further connections are closed as soon as they are accepted.
const CONNECTIONS_MAX: usize = 1024;
const HEAD_MAX_BYTES: usize = 16 * 1024;
const HEAD_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long running requests may take to finish at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept, which means that file descriptors ran out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
pub(super) const HEADER_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("an endpoint has a method that the router does not know: {0}")]
    Method(String),
}

#[derive(Clone, Copy)]
struct Connected {
    source: IpAddr,
    request_id: RequestId,
}

pub(super) async fn run(
    api: Arc<Api>,
    mut listener: BoxListener,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let router = router(api.clone())?;
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, source) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!(error = %e, "api connection was not accepted");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            tracing::debug!(%source, "api connection closed: {CONNECTIONS_MAX} are open");
            continue;
        };
        let connection = serve_connection(api.clone(), router.clone(), stream, source.ip(), shutdown.clone());
        connections.spawn(async move {
            connection.await;
            drop(slot);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(DRAIN_TIMEOUT, connections.wait()).await.is_err() {
        tracing::warn!("api requests still ran {} s after the stop and were cut off", DRAIN_TIMEOUT.as_secs());
    }
    Ok(())
}

async fn serve_connection(
    api: Arc<Api>,
    router: Router,
    stream: BoxStream,
    source: IpAddr,
    shutdown: CancellationToken,
) {
    let service = service_fn(move |request| answer(api.clone(), router.clone(), source, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_READ_TIMEOUT)
        .max_header_size(HEAD_MAX_BYTES)
        .max_buf_size(HEAD_MAX_BYTES)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = &mut connection => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN_TIMEOUT, &mut connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(e) = ended {
        tracing::debug!(%source, error = %e, "api connection ended");
    }
}

async fn answer(
    api: Arc<Api>,
    router: Router,
    source: IpAddr,
    mut request: Request<Incoming>,
) -> Result<Response, Infallible> {
    let request_id = api.mint_request_id();
    request.extensions_mut().insert(Connected { source, request_id });
    let Ok(mut response) = router.oneshot(request.map(Body::new)).await;
    super::lock(&api.counts).request(response.status());
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::try_from(request_id.to_string()) {
        // A proxied answer keeps the id that its body has.
        headers.entry(HEADER_REQUEST_ID).or_insert(id);
    }
    let own_id = api.node.identity().and_then(|i| HeaderValue::try_from(i.peer_id.to_string()).ok());
    if let Some(id) = own_id {
        headers.entry(HEADER_PEER).or_insert(id);
    }
    headers.extend(http_date(api.node.env().clock.unix()).map(|date| (DATE, date)));
    Ok(response)
}

fn router(api: Arc<Api>) -> Result<Router, ServeError> {
    let mut router = Router::new();
    for endpoint in endpoints() {
        let filter = MethodFilter::try_from(endpoint.method.clone())
            .map_err(|_| ServeError::Method(endpoint.method.to_string()))?;
        let (api, path, endpoint) = (api.clone(), endpoint.path, Arc::new(endpoint));
        let handler = move |params: Result<RawPathParams, RawPathParamsRejection>, request: Request<Body>| {
            dispatch(api.clone(), endpoint.clone(), params, request)
        };
        router = router.route(path, on(filter, handler));
    }
    Ok(router.method_not_allowed_fallback(wrong_method).fallback(unknown_path))
}

async fn dispatch(
    api: Arc<Api>,
    endpoint: Arc<Endpoint>,
    params: Result<RawPathParams, RawPathParamsRejection>,
    request: Request<Body>,
) -> Response {
    let Connected { source, request_id } = connected(&request);
    let Ok(params) = params else { return refusal(&not_found("no such object: the path is not UTF-8"), request_id) };
    let params = params.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    admission::serve(api, &endpoint, source, request_id, params, request).await
}

async fn wrong_method(request: Request<Body>) -> Response {
    let text = format!("{} does not take {}", super::answer::clip(request.uri().path()), request.method());
    refusal(&Refused::new(Code::MethodNotAllowed, text), connected(&request).request_id)
}

async fn unknown_path(request: Request<Body>) -> Response {
    let text = format!("no endpoint {}", super::answer::clip(request.uri().path()));
    refusal(&not_found(text), connected(&request).request_id)
}

fn connected(request: &Request<Body>) -> Connected {
    *request.extensions().get().expect("`answer` puts it into every request")
}

/// IMF-fixdate (RFC 9110 §5.6.7).
fn http_date(now: UnixTime) -> Option<HeaderValue> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
    let t = OffsetDateTime::from_unix_timestamp(i64::try_from(now.as_secs()).ok()?).ok()?;
    let day = DAYS.get(usize::from(t.weekday().number_days_from_monday()))?;
    let month = MONTHS.get(usize::from(u8::from(t.month())) - 1)?;
    let (h, m, s) = t.to_hms();
    HeaderValue::try_from(format!("{day}, {:02} {month} {:04} {h:02}:{m:02}:{s:02} GMT", t.day(), t.year())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_have_the_fixed_form() {
        assert_eq!(http_date(UnixTime::from_secs(784_111_777)).unwrap(), "Sun, 06 Nov 1994 08:49:37 GMT");
    }
}
