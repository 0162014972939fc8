//! Taking peers in: after a handshake as trusted ones, after a voucher as candidates for one (cluster.md §3, §4).

use super::{Author, Ledger, Own, PeerRow, cluster, side::side};
use crate::{
    gossip::Discovery,
    handshake::{self, Accepted},
    model::{Code, Endpoint, PeerId, Refused, UnixTime},
    planted::{Bug, planted},
    wire::{
        handshake::bounded_endpoints,
        record::{PeerBody, ReadmissionBody, Record, RecordKey, Voucher, kind},
    },
};
use std::{collections::BTreeSet, time::Duration};

/// How often a member looks for own vouchers that are half over.
pub const VOUCHER_CHECK_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// More wait for the next look: half the life of a voucher has 84.
const RENEWED_AT_ONCE_MAX: usize = 64;

/// A peer that has proven itself, to be stored.
#[derive(Debug, Clone)]
pub struct Acceptance {
    pub accepted: Accepted,
    /// As the operator calls it here.
    pub local_name: Option<String>,
    /// The other side began the handshake.
    pub we_answered: bool,
    pub now: UnixTime,
}

/// Stores a proven peer: trust, its record, our word about it, and what the two clusters become. Gives the records that
/// the gossip machine has to know before it is told of the trust.
///
/// Revocations, the license and the node limits are judged once more: they may have changed since the handshake did,
/// and two handshakes may have passed the limit at the same time.
pub fn accept<L: Ledger>(ledger: &L, own: Own<'_>, acceptance: &Acceptance) -> Result<Vec<Record>, Refused> {
    let side = side(ledger, own).map_err(Into::into)?;
    let side = side.ok_or_else(|| Refused::new(Code::NotBootstrapped, "agent is not bootstrapped"))?;
    handshake::judge_again(side.here(own), &acceptance.accepted)
        .map_err(|reason| Refused::new(reason.code(), reason.text()))?;
    store(ledger, own, &side.local, acceptance).map_err(Into::into)
}

fn store<L: Ledger>(
    ledger: &L,
    own: Own<'_>,
    local: &handshake::Local,
    acceptance: &Acceptance,
) -> Result<Vec<Record>, L::Error> {
    let Acceptance { accepted, local_name, we_answered, now } = acceptance;
    let (peer, key, author) = (accepted.peer_id, accepted.public_key, own.author);
    let mut brought = vec![accepted.record.clone()];
    if accepted.readmitted {
        let answers = ledger.revocations()?.against(peer, &key);
        let readmission = ReadmissionBody { peer_id: peer, public_key: key, answers, readmitted_at: *now };
        brought.push(ledger.put_own(author, kind::READMISSION, &peer.to_string(), &readmission)?);
    }
    let mut row = PeerRow::trusted(peer, key, accepted.endpoints.clone(), *now);
    row.license_id = Some(accepted.license_id);
    row.local_name.clone_from(local_name);
    ledger.put_peer(&row)?;
    ledger.put_verified(&accepted.record)?;
    let voucher = if *we_answered {
        accepted.voucher.clone()
    } else {
        handshake::issue_voucher(local, peer, key, accepted.endpoints.clone(), *now)
    };
    vouch(ledger, author, &voucher, *now)?;
    if !planted(Bug::MergeForgetsId) {
        cluster::take_ids(ledger, author, &BTreeSet::from([accepted.cluster_id]))?;
    }
    learn_own_endpoints(ledger, own, &accepted.own_endpoints, *we_answered)?;
    Ok(brought)
}

/// Keeps the own word about a peer. One that says the same and is not half over stays as it is.
fn vouch<L: Ledger>(ledger: &L, author: &Author, voucher: &Voucher, now: UnixTime) -> Result<(), L::Error> {
    let peer = voucher.subject_peer_id;
    let is_said = own_word(ledger, author, peer)?.is_some_and(|held| {
        held.subject_public_key == voucher.subject_public_key
            && held.subject_endpoints == voucher.subject_endpoints
            && held.customer_id == voucher.customer_id
            && is_fresh(&held, now)
    });
    if !is_said {
        ledger.put_own(author, kind::VOUCHER, &peer.to_string(), voucher)?;
    }
    Ok(())
}

fn own_word<L: Ledger>(ledger: &L, author: &Author, peer: PeerId) -> Result<Option<Voucher>, L::Error> {
    let key = RecordKey { kind: kind::VOUCHER.into(), id: peer.to_string(), owner: author.peer_id };
    let held = ledger.record(&key)?.filter(|record| !record.deleted);
    Ok(held.and_then(|record| record.body_as().ok()))
}

/// Neither half over nor from a clock that was ahead.
fn is_fresh(voucher: &Voucher, now: UnixTime) -> bool {
    voucher.expires_at > now.plus(handshake::VOUCHER_LIFETIME / 2) && voucher.issued_at <= now
}

/// Gives the own word about trusted peers anew where it is half over, so that members which a long split has kept apart
/// still introduce their newcomers to each other. At most [`RENEWED_AT_ONCE_MAX`] of them, the lowest ids first; gives
/// how many. A contested copy of an identity gives none.
pub fn renew_vouchers<L: Ledger>(ledger: &L, own: Own<'_>, now: UnixTime) -> Result<usize, L::Error> {
    let Some(side) = side(ledger, own)? else { return Ok(0) };
    if ledger.is_contested()? {
        return Ok(0);
    }
    let mut due = Vec::new();
    for peer in ledger.trusted_peers()? {
        if peer.peer_id != own.author.peer_id
            && !own_word(ledger, own.author, peer.peer_id)?.is_some_and(|word| is_fresh(&word, now))
        {
            due.push(peer);
        }
    }
    due.truncate(RENEWED_AT_ONCE_MAX);
    for peer in &due {
        let endpoints = bounded_endpoints(&peer.all_endpoints());
        let voucher = handshake::issue_voucher(&side.local, peer.peer_id, peer.public_key, endpoints, now);
        ledger.put_own(own.author, kind::VOUCHER, &peer.peer_id.to_string(), &voucher)?;
    }
    Ok(due.len())
}

/// How others reach this agent (cluster.md §2): `told` by the peer that called it, the list given to `peers add`, comes
/// before what is known, of which nothing is given up; what a called peer has `told` is the address that it saw, and
/// counts where nothing is known.
fn learn_own_endpoints<L: Ledger>(
    ledger: &L,
    own: Own<'_>,
    told: &[Endpoint],
    we_answered: bool,
) -> Result<(), L::Error> {
    let Some(mut row) = ledger.peer(own.author.peer_id)?.filter(|_| !own.endpoints_are_set) else { return Ok(()) };
    let Some(body) = row.body.take().filter(|body| we_answered || body.endpoints.is_empty()) else { return Ok(()) };
    let mut news = bounded_endpoints(told);
    news.retain(|endpoint| !body.endpoints.contains(endpoint));
    let endpoints = [news.clone(), body.endpoints.clone()].concat();
    if news.is_empty() || bounded_endpoints(&endpoints) != endpoints {
        return Ok(());
    }
    row.endpoints.clone_from(&endpoints);
    let body = PeerBody { endpoints, ..body };
    ledger.put_peer(&row)?;
    ledger.put_own(own.author, kind::PEER, &own.author.peer_id.to_string(), &body).map(drop)
}

/// Keeps a peer that a trusted one vouches for: the endpoints at which a handshake with it is now worth an attempt.
/// None where there is nothing to attempt.
pub fn discovered<L: Ledger>(
    ledger: &L,
    own: Own<'_>,
    found: &Discovery,
    now: UnixTime,
) -> Result<Option<(PeerId, Vec<Endpoint>)>, L::Error> {
    let (Some(voucher), Some(side)) = (&found.voucher, side(ledger, own)?) else { return Ok(None) };
    let (peer, key) = match handshake::accept_voucher(voucher, &side.held, side.local.customer_id, now) {
        Ok(subject) => subject,
        Err(void) => {
            tracing::debug!(peer = %found.peer, reason = %void, "voucher refused");
            return Ok(None);
        }
    };
    if peer == own.author.peer_id || side.held.trusts(&peer) {
        return Ok(None);
    }
    let mut endpoints = found.endpoints.clone();
    endpoints.extend(voucher.subject_endpoints.iter().cloned());
    endpoints.dedup();
    // Of a peer that was met in a handshake before, this remains known.
    let license_id = ledger.peer(peer)?.and_then(|row| row.license_id);
    let row = PeerRow { trusted: false, license_id, ..PeerRow::trusted(peer, key, endpoints.clone(), now) };
    ledger.put_peer(&row)?;
    Ok(Some((peer, endpoints)))
}

/// Forgets candidates for whom no word of a trusted peer stands any more: it was withdrawn, has expired, or its issuer is
/// trusted no longer. Where others vouch for the same peer with another key, that counts from now on; gives the endpoints
/// at which a handshake is worth an attempt, as [`discovered`] does.
pub fn forget_unvouched<L: Ledger>(
    ledger: &L,
    own: Own<'_>,
    now: UnixTime,
) -> Result<Vec<(PeerId, Vec<Endpoint>)>, L::Error> {
    let peers = ledger.peers()?;
    let trusted: BTreeSet<PeerId> = peers.iter().filter(|row| row.trusted).map(|row| row.peer_id).collect();
    let mut met = Vec::new();
    for candidate in peers.iter().filter(|row| row.is_candidate() && row.peer_id != own.author.peer_id) {
        let words = words_about(ledger, candidate.peer_id, &trusted, now)?;
        if words.iter().any(|word| word.subject_public_key == candidate.public_key) {
            continue;
        }
        ledger.forget_peer(candidate.peer_id)?;
        for word in words {
            let found = Discovery { peer: candidate.peer_id, name: None, endpoints: Vec::new(), voucher: Some(word) };
            met.extend(discovered(ledger, own, &found, now)?);
        }
    }
    Ok(met)
}

/// What trusted peers say of this one now.
fn words_about<L: Ledger>(
    ledger: &L,
    peer: PeerId,
    trusted: &BTreeSet<PeerId>,
    now: UnixTime,
) -> Result<Vec<Voucher>, L::Error> {
    let records = ledger.records_about(kind::VOUCHER, &peer.to_string())?;
    let live = records.iter().filter(|record| !record.deleted && trusted.contains(&record.key.owner));
    let words = live.filter_map(|record| record.body_as().ok());
    Ok(words.filter(|word: &Voucher| word.subject_peer_id == peer && word.expires_at > now).collect())
}
