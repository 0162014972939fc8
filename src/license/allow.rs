use super::state::State;
use crate::{
    model::{Code, Refused, UnixTime},
    planted::{Bug, planted},
};

/// The command that ends every restriction.
pub const RENEWAL_COMMAND: &str = "arctic license update --license-file license.json";

/// What a request or message does, cut as the allow-lists of licensing.md §3 are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointGroup {
    /// `/livez`, `/readyz`, `/v1/cluster/identity`.
    Probe,
    /// `/metrics`, `/v1/openapi.json`, `/.well-known/*`.
    Published,
    /// `POST /v1/oauth/token`.
    Token,
    /// `GET` and `PUT /v1/license`.
    License,
    /// `DELETE /v1/peers/self`.
    LeaveCluster,
    /// Every other `GET`, `routes/explain`, diag, `cluster/sync`, lock.
    Read,
    /// Creating or updating peers, services, routes: the block that no recovery token lifts.
    CreateOrUpdate,
    /// Deleting peers, services, routes; credentials and their rotation; `cluster/init`.
    Administer,
    /// Gossip between trusted peers.
    Gossip,
    /// A handshake with a peer that is already trusted.
    HandshakeKnownPeer,
    /// A handshake that would add a peer.
    HandshakeNewPeer,
    /// Anything without a row of its own.
    Unlisted,
}

impl EndpointGroup {
    pub const ALL: [EndpointGroup; 12] = [
        EndpointGroup::Probe,
        EndpointGroup::Published,
        EndpointGroup::Token,
        EndpointGroup::License,
        EndpointGroup::LeaveCluster,
        EndpointGroup::Read,
        EndpointGroup::CreateOrUpdate,
        EndpointGroup::Administer,
        EndpointGroup::Gossip,
        EndpointGroup::HandshakeKnownPeer,
        EndpointGroup::HandshakeNewPeer,
        EndpointGroup::Unlisted,
    ];

    /// The last state in which the group is served.
    fn served_until(self) -> State {
        match self {
            Self::CreateOrUpdate if planted(Bug::WritesPastGrace) => State::ReadOnly,
            Self::Probe | Self::Token | Self::License | Self::LeaveCluster => State::Suspended,
            Self::Published | Self::Read | Self::Gossip | Self::HandshakeKnownPeer => State::ReadOnly,
            Self::CreateOrUpdate | Self::Administer | Self::HandshakeNewPeer | Self::Unlisted => State::GracePeriod,
        }
    }

    /// Whether a valid recovery token opens the group in every state. Messages between peers carry none.
    fn opens_to_recovery(self) -> bool {
        !matches!(self, Self::CreateOrUpdate | Self::Gossip | Self::HandshakeKnownPeer | Self::HandshakeNewPeer)
    }

    fn is_handshake(self) -> bool {
        matches!(self, Self::HandshakeKnownPeer | Self::HandshakeNewPeer)
    }
}

/// A request refused because of the state of the license. `Display` is the error text, `hint` what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}license {}{}", self.handshake_prefix(), self.state.spoken(), self.since_suffix())]
pub struct LicenseRefusal {
    pub state: State,
    pub since: UnixTime,
    pub group: EndpointGroup,
}

impl LicenseRefusal {
    /// HTTP status of both codes: 403.
    pub fn code(&self) -> Code {
        if self.state == State::Suspended { Code::LicenseSuspended } else { Code::LicenseReadOnly }
    }

    /// State, since when, and the command that renews.
    pub fn hint(&self) -> String {
        format!("the license is {} since {}; renew it: {RENEWAL_COMMAND}", self.state.spoken(), self.since)
    }

    fn handshake_prefix(&self) -> &'static str {
        if self.group.is_handshake() { "handshake failed: " } else { "" }
    }

    /// The handshake texts are fixed by the specification and end with the state.
    fn since_suffix(&self) -> String {
        if self.group.is_handshake() {
            String::new()
        } else {
            format!(" since {}; renew it with `{RENEWAL_COMMAND}`", self.since)
        }
    }
}

impl From<LicenseRefusal> for Refused {
    fn from(r: LicenseRefusal) -> Self {
        Refused::new(r.code(), r.to_string()).with_hint(r.hint())
    }
}

/// Whether a request of `group` is served in `state`, which began at `since`. `recovery`: the request carries a valid
/// recovery token.
pub fn check(state: State, since: UnixTime, group: EndpointGroup, recovery: bool) -> Result<(), LicenseRefusal> {
    if state <= group.served_until() || (recovery && group.opens_to_recovery()) {
        Ok(())
    } else {
        Err(LicenseRefusal { state, since, group })
    }
}
