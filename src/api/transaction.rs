//! Writing to the store on behalf of a request, or trying to.

use crate::{
    model::Refused,
    node::Node,
    store::{StoreError, Tx},
};

/// What ends a transaction without a commit.
enum Ended<T> {
    Refused(Refused),
    DryRun(T),
}

impl<T> From<StoreError> for Ended<T> {
    fn from(e: StoreError) -> Self {
        Self::Refused(e.into())
    }
}

/// Commits what `f` writes, or, in a dry run, rolls it back and still gives its result.
pub(super) async fn write<T, F>(node: &Node, dry_run: bool, f: F) -> Result<T, Refused>
where
    T: Send + 'static,
    F: FnOnce(&Tx<'_>) -> Result<T, Refused> + Send + 'static,
{
    let written = node.store().write_as_member(move |tx| {
        let value = f(tx).map_err(Ended::Refused)?;
        if dry_run { Err(Ended::DryRun(value)) } else { Ok(value) }
    });
    match written.await {
        Ok(value) | Err(Ended::DryRun(value)) => Ok(value),
        Err(Ended::Refused(refused)) => Err(refused),
    }
}
