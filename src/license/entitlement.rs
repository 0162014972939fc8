use super::{
    EffectiveClock, EndpointGroup, LicenseDocument, LicenseError, LicenseRefusal, State, TrustRoots,
    allow::{self, RENEWAL_COMMAND},
    state::{days_left, grace_ends_at, read_only_ends_at, state_at, state_since, warning_begins_at},
};
use crate::model::{Code, CustomerId, Refused, UnixTime};
use std::{sync::Arc, time::Duration};

/// How far ahead of our time a license may be issued (licensing.md §4).
const ISSUED_AHEAD_ALLOWED: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a license is not taken at bootstrap or update.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    #[error(transparent)]
    Invalid(#[from] LicenseError),
    #[error("license mismatch: it was issued to {theirs}, this cluster belongs to {ours}")]
    OtherCustomer { ours: CustomerId, theirs: CustomerId },
    #[error("license has expired: its grace period ended at {grace_ended_at}")]
    Expired { grace_ended_at: UnixTime },
    #[error("license was issued in the future: at {issued_at}, and here it is {now}")]
    IssuedInFuture { issued_at: UnixTime, now: UnixTime },
}

impl AdmissionError {
    /// HTTP status of all codes: 422.
    pub fn code(&self) -> Code {
        match self {
            AdmissionError::Invalid(e) => e.code(),
            AdmissionError::IssuedInFuture { .. } => Code::LicenseInvalid,
            AdmissionError::OtherCustomer { .. } => Code::LicenseMismatch,
            AdmissionError::Expired { .. } => Code::LicenseExpired,
        }
    }
}

impl From<AdmissionError> for Refused {
    fn from(e: AdmissionError) -> Self {
        match e {
            AdmissionError::Invalid(e) => e.into(),
            e => Refused::new(e.code(), e.to_string()),
        }
    }
}

/// Whether `offered` may become the license of this agent: at bootstrap, where there is no customer yet, and at update,
/// which keeps the customer (licensing.md §4, §5).
pub fn check_admission(
    offered: &LicenseDocument,
    roots: &TrustRoots,
    customer: Option<CustomerId>,
    clock: &EffectiveClock,
) -> Result<(), AdmissionError> {
    offered.verify(roots)?;
    let theirs = offered.customer_id();
    if let Some(ours) = customer.filter(|ours| *ours != theirs) {
        return Err(AdmissionError::OtherCustomer { ours, theirs });
    }
    if state_at(offered.expires_at(), clock.trusted_time()) > State::GracePeriod {
        return Err(AdmissionError::Expired { grace_ended_at: grace_ends_at(offered.expires_at()) });
    }
    if is_issued_in_future(offered, clock) {
        return Err(AdmissionError::IssuedInFuture { issued_at: offered.issued_at(), now: clock.effective_time() });
    }
    Ok(())
}

fn is_issued_in_future(document: &LicenseDocument, clock: &EffectiveClock) -> bool {
    document.issued_at() > clock.effective_time().plus(ISSUED_AHEAD_ALLOWED)
}

/// What the agent may do now: an immutable snapshot, made anew at every tick and renewal and published to all gates.
#[derive(Debug, Clone, PartialEq)]
pub struct Entitlement {
    pub document: Arc<LicenseDocument>,
    pub state: State,
    /// When the license entered `state`.
    pub state_since: UnixTime,
    pub effective_time: UnixTime,
    pub clock_suspect: bool,
    issued_in_future: bool,
}

impl Entitlement {
    pub fn new(document: Arc<LicenseDocument>, clock: &EffectiveClock) -> Self {
        let state = clock.state(document.expires_at());
        Self {
            state,
            state_since: state_since(document.issued_at(), document.expires_at(), state),
            effective_time: clock.effective_time(),
            clock_suspect: clock.is_suspect(),
            issued_in_future: is_issued_in_future(&document, clock),
            document,
        }
    }

    /// The allow-list at this state. `recovery`: the request carries a valid recovery token.
    pub fn check(&self, group: EndpointGroup, recovery: bool) -> Result<(), LicenseRefusal> {
        allow::check(self.state, self.state_since, group, recovery)
    }

    /// Whether the engines carry traffic.
    pub fn data_plane_runs(&self) -> bool {
        self.state.data_plane_runs()
    }
    pub fn grace_ends_at(&self) -> UnixTime {
        grace_ends_at(self.document.expires_at())
    }
    pub fn read_only_ends_at(&self) -> UnixTime {
        read_only_ends_at(self.document.expires_at())
    }
    /// How long until the license enters its next state, if the clock goes on; None in the last one.
    pub fn until_next_state(&self) -> Option<Duration> {
        let expires_at = self.document.expires_at();
        let borders = [warning_begins_at(expires_at), expires_at, self.grace_ends_at(), self.read_only_ends_at()];
        let next = borders.into_iter().find(|border| *border > self.effective_time)?;
        Some(next.saturating_since(self.effective_time))
    }
    pub fn days_left(&self) -> i64 {
        days_left(self.document.expires_at(), self.effective_time)
    }

    /// Sentences for the operator; empty when all is well.
    pub fn warnings(&self) -> Vec<String> {
        let expires_at = self.document.expires_at();
        let mut warnings = Vec::new();
        match self.state {
            State::Valid => {}
            State::Warning => warnings.push(format!("license expires at {expires_at}; renew it: {RENEWAL_COMMAND}")),
            State::GracePeriod => warnings.push(format!(
                "license expired at {expires_at}; changes are blocked from {}; renew it: {RENEWAL_COMMAND}",
                self.grace_ends_at()
            )),
            State::ReadOnly => warnings.push(format!(
                "license is read-only since {}; services stop at {}; renew it: {RENEWAL_COMMAND}",
                self.state_since,
                self.read_only_ends_at()
            )),
            State::Suspended => {
                warnings.push(format!("license is suspended since {}; renew it: {RENEWAL_COMMAND}", self.state_since))
            }
        }
        if self.clock_suspect {
            warnings.push("the clock of this host jumped ahead; check its time synchronisation".to_owned());
        }
        if self.issued_in_future {
            warnings.push(format!(
                "license was issued at {}, which is in the future here; check the clock of this host",
                self.document.issued_at()
            ));
        }
        warnings
    }
}
