//! Who asks, once it is proven.

use crate::{
    model::{ClientId, Code, PeerId, Refused, ScopeSet},
    wire::request::OnBehalf,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Caller {
    Anonymous,
    /// A client with an access token.
    Client {
        client_id: ClientId,
        scopes: ScopeSet,
    },
    /// An operator on this host.
    Recovery,
    /// A trusted peer, for itself.
    Peer(PeerId),
    /// A trusted peer, for a client that asked it.
    Forwarded {
        by: PeerId,
        client: OnBehalf,
    },
}

impl Caller {
    pub(super) fn scopes(&self) -> ScopeSet {
        match self {
            Self::Client { scopes, .. } => scopes.clone(),
            Self::Forwarded { client, .. } => client.scopes.clone(),
            Self::Recovery => ScopeSet::admin(),
            Self::Anonymous | Self::Peer(_) => ScopeSet::default(),
        }
    }

    /// The form in which another peer is asked for the same: because it owns the object, or because the operator named
    /// it (`proxied`). One hop: what was forwarded is not forwarded again.
    pub(super) fn on_behalf(&self, proxied: bool) -> Result<OnBehalf, Refused> {
        match self {
            Self::Client { client_id, scopes } => {
                Ok(OnBehalf { client_id: *client_id, scopes: scopes.clone(), proxied })
            }
            Self::Recovery => Err(Refused::new(Code::Forbidden, "a recovery token counts only on its own agent")
                .with_hint("call the agent of that peer itself, or use a credential")),
            Self::Forwarded { client: OnBehalf { proxied: true, .. }, .. } => Err(Refused::new(
                Code::Conflict,
                "this peer does not own the object, and a request is forwarded only once",
            )
            .with_hint("send the request without a target peer (without --peer), or to the owner of the object")),
            Self::Forwarded { .. } => {
                Err(Refused::new(Code::Conflict, "a forwarded request reached an agent that does not own the object")
                    .with_hint("the cluster has not converged yet; try again"))
            }
            Self::Anonymous | Self::Peer(_) => Err(Refused::new(Code::Forbidden, "no client to forward for")),
        }
    }

    pub(super) fn client_id(&self) -> Option<ClientId> {
        match self {
            Self::Client { client_id, .. } | Self::Forwarded { client: OnBehalf { client_id, .. }, .. } => {
                Some(*client_id)
            }
            Self::Anonymous | Self::Recovery | Self::Peer(_) => None,
        }
    }

    /// Whether this is a client that chose to call this very agent.
    pub(super) fn is_operator(&self) -> bool {
        matches!(self, Self::Client { .. } | Self::Forwarded { client: OnBehalf { proxied: true, .. }, .. })
    }

    pub(super) fn is_authenticated(&self) -> bool {
        *self != Self::Anonymous
    }
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Anonymous => f.write_str("anonymous"),
            Self::Client { client_id, .. } => write!(f, "{client_id}"),
            Self::Recovery => f.write_str("recovery"),
            Self::Peer(id) => write!(f, "{id}"),
            Self::Forwarded { by, client } => write!(f, "{} via {by}", client.client_id),
        }
    }
}
