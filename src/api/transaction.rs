//! Reading and writing the store on behalf of a request.

use super::answer::{internal, invalid};
use crate::{
    model::Refused,
    node::Node,
    store::{StoreError, Tx, View},
    wire::record::RecordError,
};

/// What ends a transaction without a commit.
pub(super) struct Abort(Refused);

impl From<Refused> for Abort {
    fn from(refused: Refused) -> Self {
        Self(refused)
    }
}

impl From<StoreError> for Abort {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Record(e @ RecordError::TooLarge { .. }) => Self(invalid(e.to_string())),
            e => Self(internal(e)),
        }
    }
}

enum Ended<T> {
    Refused(Refused),
    DryRun(T),
}

impl<T> From<StoreError> for Ended<T> {
    fn from(e: StoreError) -> Self {
        Self::Refused(Abort::from(e).0)
    }
}

pub(super) fn read<T>(node: &Node, f: impl FnOnce(&View<'_>) -> Result<T, Abort>) -> Result<T, Refused> {
    node.store().read(f).map_err(|Abort(refused)| refused)
}

/// Commits what `f` writes, or, in a dry run, rolls it back and still gives its result.
pub(super) async fn write<T, F>(node: &Node, dry_run: bool, f: F) -> Result<T, Refused>
where
    T: Send + 'static,
    F: FnOnce(&Tx<'_>) -> Result<T, Abort> + Send + 'static,
{
    let written = node.store().write(move |tx| {
        let value = f(tx).map_err(|Abort(refused)| Ended::Refused(refused))?;
        if dry_run { Err(Ended::DryRun(value)) } else { Ok(value) }
    });
    match written.await {
        Ok(value) | Err(Ended::DryRun(value)) => Ok(value),
        Err(Ended::Refused(refused)) => Err(refused),
    }
}
