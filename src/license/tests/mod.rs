mod clock;
mod document;
mod gates;
mod machine;

use super::*;
use crate::model::{CustomerId, LicenseId, Rng, SigningKey, UnixTime};
use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const ISSUED: UnixTime = UnixTime::from_secs(1_800_000_000);

fn days(n: u32) -> Duration {
    DAY * n
}

fn vendor() -> SigningKey {
    SigningKey::from_seed([42; 32])
}

fn roots() -> TrustRoots {
    TrustRoots::from_keys([vendor().public()])
}

/// Issued at `ISSUED`, for 365 days, to the customer that `customer` stands for.
fn terms(customer: u8) -> Terms {
    Terms {
        license_id: LicenseId::mint(ISSUED, &mut Rng::from_seed([1; 32])),
        customer_id: CustomerId::mint(ISSUED, &mut Rng::from_seed([customer; 32])),
        customer_name: Some("Nordwind Küste".into()),
        issued_at: ISSUED,
        expires_at: ISSUED.plus(days(365)),
        max_nodes: 5,
        max_services: 20,
        features: Features::from_names(["kcp", "qos", "later_invention"]).unwrap(),
    }
}

fn license() -> LicenseDocument {
    LicenseDocument::issue(&vendor(), terms(2)).unwrap()
}
