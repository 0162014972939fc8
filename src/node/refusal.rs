use crate::model::{Code, Refused};

/// An error of our own: logged whole, told to the caller only as INTERNAL.
pub(super) fn internal(e: impl std::error::Error) -> Refused {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    tracing::error!(error = %text, "request failed inside the agent");
    Refused::new(Code::Internal, "internal error; the agent's log has the reason")
}
