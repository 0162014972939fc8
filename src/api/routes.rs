//! Routes of a service (api.md §6): part of the service's record, written by its owner.

use super::{
    admission::Request,
    answer::{Answer, Outcome, clip, invalid, not_found},
    fields::Fields,
    services::{check_version, find, finish, if_match, to_source},
    transaction,
};
use crate::{
    model::{Code, Refused, Route, RouteId, Service, ServiceBody, UnixTime, default_priority, parse_route_cidr},
    routing::{CompiledRoute, sort_routes},
};
use ipnet::IpNet;
use serde_json::json;

const ROUTES_PER_SERVICE_MAX: usize = 1000;
const FIELDS: [&str; 3] = ["source_cidr", "dest_cidr", "priority"];

/// A route as asked for: every rule checked that needs no store.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wish {
    source: Option<IpNet>,
    dest: Option<IpNet>,
    priority: u16,
}

impl Wish {
    fn read_all(body: &[u8]) -> Result<Vec<Self>, Refused> {
        let fields = Fields::parse(body)?.only(&["routes"])?;
        fields.objects("routes", ROUTES_PER_SERVICE_MAX)?.into_iter().map(Self::read).collect()
    }

    fn read(fields: Fields) -> Result<Self, Refused> {
        let fields = fields.only(&FIELDS)?;
        let (source, dest) = (cidr(&fields, "source_cidr")?, cidr(&fields, "dest_cidr")?);
        let wish = Self { source, dest, priority: priority(&fields)?.unwrap_or_else(default_priority) };
        wish.check_together()?;
        Ok(wish)
    }

    fn check_together(&self) -> Result<(), Refused> {
        match (self.source, self.dest) {
            (None, None) => Err(Refused::new(Code::MissingField, "field `dest_cidr` is missing")
                .with_hint("a route needs source_cidr or dest_cidr")),
            (Some(s), Some(d)) if s.addr().is_ipv4() != d.addr().is_ipv4() => {
                let text = format!("source_cidr {s} and dest_cidr {d} are of different families");
                Err(Refused::new(Code::InvalidCidr, text))
            }
            _ => Ok(()),
        }
    }

    fn is_of(&self, route: &Route) -> bool {
        (route.source_cidr, route.dest_cidr) == (self.source, self.dest)
    }
}

/// A change of a route; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Patch {
    source: Option<Option<IpNet>>,
    dest: Option<Option<IpNet>>,
    priority: Option<u16>,
}

impl Patch {
    fn read(body: &[u8]) -> Result<Self, Refused> {
        let fields = Fields::parse(body)?.only(&FIELDS)?.no_nulls_but(&["source_cidr", "dest_cidr"])?;
        let given = |field| if fields.has(field) { cidr(&fields, field).map(Some) } else { Ok(None) };
        Ok(Self { source: given("source_cidr")?, dest: given("dest_cidr")?, priority: priority(&fields)? })
    }

    /// The route as it is to be.
    fn apply(&self, old: &Route) -> Result<Wish, Refused> {
        let wish = Wish {
            source: self.source.unwrap_or(old.source_cidr),
            dest: self.dest.unwrap_or(old.dest_cidr),
            priority: self.priority.unwrap_or(old.priority),
        };
        wish.check_together()?;
        Ok(wish)
    }
}

fn priority(fields: &Fields) -> Result<Option<u16>, Refused> {
    let priority = fields.integer("priority", u64::from(u16::MAX))?;
    priority.map(|n| u16::try_from(n).map_err(Refused::internal)).transpose()
}

fn cidr(fields: &Fields, field: &str) -> Result<Option<IpNet>, Refused> {
    let Some(text) = fields.text(field)? else { return Ok(None) };
    parse_route_cidr(text).map(Some).map_err(|e| {
        Refused::new(Code::InvalidCidr, e.to_string()).with_details(json!({"field": field, "value": clip(text)}))
    })
}

/// Routes of a service, most preferred first (dataplane.md §6).
pub(super) fn in_order(service: &Service) -> Vec<&Route> {
    let mut compiled: Vec<_> = service.body.routes.iter().map(|r| CompiledRoute::new(service, r)).collect();
    sort_routes(&mut compiled);
    compiled.iter().filter_map(|c| service.body.routes.iter().find(|r| Some(r.id) == c.route)).collect()
}

pub(super) async fn list(r: Request) -> Outcome {
    r.query.only(&[])?;
    let service = find(&r)?;
    Answer::ok(&json!({ "routes": in_order(&service) }))
}

pub(super) async fn add(r: Request) -> Outcome {
    let (dry_run, wait) = r.dry_run_or_wait()?;
    let wishes = Wish::read_all(&r.body)?;
    let (service, author, now) = (find(&r)?, r.identity()?, r.now());
    if service.body.source_peer_id != author.peer_id {
        return to_source(&r, &service, wait).await;
    }
    let added = transaction::write(r.node(), dry_run, move |tx| {
        let mut body = tx.service(service.id)?.ok_or_else(just_deleted)?.body;
        let ids = append(&mut body, &wishes, tx.own_version()? + 1, now)?;
        Ok((tx.put_service(&author, service.id, &body)?, ids))
    });
    let (service, ids) = added.await?;
    let answer = Answer::created(&json!({"count": ids.len(), "route_ids": ids}))?;
    finish(&r, answer, wait, &service).await
}

fn just_deleted() -> Refused {
    not_found("service was just deleted")
}

fn already_there(same: &Route) -> Refused {
    let any = |net: Option<IpNet>| net.map_or("any".to_owned(), |n| n.to_string());
    let (source, dest) = (any(same.source_cidr), any(same.dest_cidr));
    let text = format!("route {} from {source} to {dest} already exists in this service", same.id);
    Refused::new(Code::AlreadyExists, text)
}

/// Adds all or, by an error, none. `version` is that of the record to be.
fn append(body: &mut ServiceBody, wishes: &[Wish], version: u64, now: UnixTime) -> Result<Vec<RouteId>, Refused> {
    let mut ids = Vec::with_capacity(wishes.len());
    for wish in wishes {
        if let Some(same) = body.routes.iter().find(|r| wish.is_of(r)) {
            return Err(already_there(same));
        }
        if body.routes.len() >= ROUTES_PER_SERVICE_MAX {
            return Err(invalid(format!("a service has at most {ROUTES_PER_SERVICE_MAX} routes")));
        }
        let id = body.next_route_id;
        let next =
            id.checked_add(1).ok_or_else(|| invalid("this service has used up its route ids: make a new one"))?;
        body.next_route_id = next;
        body.routes.push(Route {
            id,
            source_cidr: wish.source,
            dest_cidr: wish.dest,
            priority: wish.priority,
            version,
            created_at: now,
        });
        ids.push(id);
    }
    body.updated_at = now;
    Ok(ids)
}

pub(super) async fn update(r: Request) -> Outcome {
    let (dry_run, wait) = r.dry_run_or_wait()?;
    let if_match = if_match(&r)?;
    let patch = Patch::read(&r.body)?;
    let (service, id) = find_route(&r)?;
    let (author, now) = (r.identity()?, r.now());
    if service.body.source_peer_id != author.peer_id {
        return to_source(&r, &service, wait).await;
    }
    let updated = transaction::write(r.node(), dry_run, move |tx| {
        let current = tx.service(service.id)?.ok_or_else(just_deleted)?;
        let mut body = current.body.clone();
        let at = position(&body, id)?;
        check_version(if_match, body.routes[at].version)?;
        let wish = patch.apply(&body.routes[at])?;
        if !change(&mut body, at, &wish, tx.own_version()? + 1, now)? {
            return Ok(current);
        }
        Ok(tx.put_service(&author, service.id, &body)?)
    });
    let service = updated.await?;
    let at = position(&service.body, id)?;
    let answer = Answer::ok(&service.body.routes[at])?;
    finish(&r, answer, wait, &service).await
}

/// Brings a route to what is wished; whether that changes anything. `version` is that of the record to be.
fn change(body: &mut ServiceBody, at: usize, wish: &Wish, version: u64, now: UnixTime) -> Result<bool, Refused> {
    let id = body.routes[at].id;
    if let Some(same) = body.routes.iter().find(|r| r.id != id && wish.is_of(r)) {
        return Err(already_there(same));
    }
    let route = &mut body.routes[at];
    if wish.is_of(route) && wish.priority == route.priority {
        return Ok(false);
    }
    (route.source_cidr, route.dest_cidr) = (wish.source, wish.dest);
    (route.priority, route.version) = (wish.priority, version);
    body.updated_at = now;
    Ok(true)
}

pub(super) async fn delete(r: Request) -> Outcome {
    let (dry_run, wait) = r.dry_run_or_wait()?;
    let if_match = if_match(&r)?;
    let (service, id) = find_route(&r)?;
    let (author, now) = (r.identity()?, r.now());
    if service.body.source_peer_id != author.peer_id {
        return to_source(&r, &service, wait).await;
    }
    let left = transaction::write(r.node(), dry_run, move |tx| {
        let mut body = tx.service(service.id)?.ok_or_else(just_deleted)?.body;
        let at = position(&body, id)?;
        check_version(if_match, body.routes[at].version)?;
        body.routes.remove(at);
        body.updated_at = now;
        Ok(tx.put_service(&author, service.id, &body)?)
    });
    finish(&r, Answer::no_content(), wait, &left.await?).await
}

/// The service and the route that the path names.
fn find_route(r: &Request) -> Result<(Service, RouteId), Refused> {
    let service = find(r)?;
    let text = r.param("rid");
    let id = text.parse().map_err(|_| unknown(text))?;
    position(&service.body, id)?;
    Ok((service, id))
}

fn position(body: &ServiceBody, id: RouteId) -> Result<usize, Refused> {
    body.routes.iter().position(|route| route.id == id).ok_or_else(|| unknown(&id.to_string()))
}

fn unknown(text: &str) -> Refused {
    not_found(format!("route `{}` not found", clip(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PeerId, Rng, ServiceId};

    fn code(route: &str) -> Code {
        Wish::read_all(format!(r#"{{"routes":[{route}]}}"#).as_bytes()).unwrap_err().code
    }

    fn service() -> Service {
        let (now, mut rng) = (UnixTime::from_secs(1), Rng::from_seed([1; 32]));
        let peer = PeerId::mint(now, &mut rng);
        let body = ServiceBody::plain("s", peer, peer, now);
        Service { id: ServiceId::mint(now, &mut rng), version: 1, body }
    }

    fn wishes(body: &str) -> Vec<Wish> {
        Wish::read_all(body.as_bytes()).unwrap()
    }

    // accepts: 002-45, 002-46
    #[test]
    fn routes_need_canonical_cidrs_of_one_family() {
        assert_eq!(code(r#"{"dest_cidr":"10.0.0.0"}"#), Code::InvalidCidr);
        assert_eq!(code(r#"{"dest_cidr":"10.1.2.3/8"}"#), Code::InvalidCidr);
        assert_eq!(code(r#"{"source_cidr":"10.0.0.0/8","dest_cidr":"fd00::/8"}"#), Code::InvalidCidr);
        assert_eq!(code("{}"), Code::MissingField);
        assert_eq!(code(r#"{"dest_cidr":null}"#), Code::MissingField);
        assert_eq!(code(r#"{"dest_cidr":"10.0.0.0/8","priority":65536}"#), Code::InvalidRequest);
        assert_eq!(code(r#"{"dst_cidr":"10.0.0.0/8"}"#), Code::InvalidRequest);
        assert_eq!(Wish::read_all(br#"{"routes":[]}"#).unwrap_err().code, Code::InvalidRequest);
        assert_eq!(Wish::read_all(b"{}").unwrap_err().code, Code::MissingField);
    }

    #[test]
    fn routes_are_added_all_or_none_and_ids_are_never_reused() {
        let mut s = service();
        let now = UnixTime::from_secs(2);
        let two = wishes(r#"{"routes":[{"dest_cidr":"10.0.0.0/8"},{"source_cidr":"0.0.0.0/0","priority":7}]}"#);
        assert_eq!(append(&mut s.body, &two, 5, now), Ok(vec![1, 2]));
        assert_eq!((s.body.routes[0].priority, s.body.routes[1].priority, s.body.routes[1].version), (100, 7, 5));
        let twice = wishes(r#"{"routes":[{"dest_cidr":"10.9.0.0/16"},{"dest_cidr":"10.0.0.0/8","priority":1}]}"#);
        assert_eq!(append(&mut s.body.clone(), &twice, 6, now).unwrap_err().code, Code::AlreadyExists);
        s.body.routes.clear();
        assert_eq!(append(&mut s.body, &two, 7, now), Ok(vec![3, 4]));
    }

    #[test]
    fn a_service_holds_a_thousand_routes() {
        let (mut s, now) = (service(), UnixTime::from_secs(2));
        let many: Vec<Wish> = (0..1000u32)
            .map(|n| {
                let dest = format!("10.{}.{}.0/24", n / 256, n % 256).parse().unwrap();
                Wish { source: None, dest: Some(dest), priority: 100 }
            })
            .collect();
        assert!(append(&mut s.body, &many, 1, now).is_ok());
        let one = wishes(r#"{"routes":[{"dest_cidr":"11.0.0.0/8"}]}"#);
        assert_eq!(append(&mut s.body, &one, 2, now).unwrap_err().code, Code::InvalidRequest);
    }

    #[test]
    fn the_list_is_in_evaluation_order() {
        let (mut s, now) = (service(), UnixTime::from_secs(2));
        let given = wishes(
            r#"{"routes":[{"dest_cidr":"10.0.0.0/8"},{"dest_cidr":"10.1.0.0/16","priority":1},
                {"source_cidr":"10.0.0.0/8","dest_cidr":"0.0.0.0/0"}]}"#,
        );
        append(&mut s.body, &given, 1, now).unwrap();
        assert_eq!(in_order(&s).iter().map(|r| r.id).collect::<Vec<_>>(), [3, 2, 1]);
    }

    #[test]
    fn an_update_names_what_changes_and_keeps_the_rules() {
        let (mut s, now) = (service(), UnixTime::from_secs(2));
        let two = wishes(
            r#"{"routes":[{"source_cidr":"10.0.0.0/8","dest_cidr":"10.1.0.0/16"},{"dest_cidr":"10.2.0.0/16"}]}"#,
        );
        append(&mut s.body, &two, 1, now).unwrap();
        let mut patched = |at: usize, body: &str| {
            let patch = Patch::read(body.as_bytes()).map_err(|e| e.code)?;
            let wish = patch.apply(&s.body.routes[at]).map_err(|e| e.code)?;
            change(&mut s.body, at, &wish, 9, now).map_err(|e| e.code)
        };
        assert_eq!(patched(0, r#"{"priority":200}"#), Ok(true));
        assert_eq!(patched(0, r#"{"priority":200}"#), Ok(false));
        assert_eq!(patched(0, r#"{"source_cidr":null}"#), Ok(true));
        assert_eq!(patched(0, r#"{"dest_cidr":null}"#), Err(Code::MissingField));
        assert_eq!(patched(0, r#"{"dest_cidr":"10.2.0.0/16"}"#), Err(Code::AlreadyExists));
        assert_eq!(patched(0, r#"{"source_cidr":"fd00::/8"}"#), Err(Code::InvalidCidr));
        assert_eq!(patched(0, r#"{"source_cidr":"fd00::/8","dest_cidr":"fd01::/16"}"#), Ok(true));
        for bad in [r#"{"priority":null}"#, r#"{"id":1}"#, r#"{"priority":"200"}"#, r#"{"priority":65536}"#] {
            assert_eq!(patched(0, bad), Err(Code::InvalidRequest), "{bad}");
        }
        assert_eq!(patched(1, "{}"), Ok(false));
        let [first, second] = [&s.body.routes[0], &s.body.routes[1]];
        assert_eq!((first.version, first.priority, first.id), (9, 200, 1));
        assert_eq!((first.source_cidr, first.dest_cidr), ("fd00::/8".parse().ok(), "fd01::/16".parse().ok()));
        assert_eq!((second.version, second.priority), (1, 100));
    }
}
