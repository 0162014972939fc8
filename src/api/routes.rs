//! Routes of a service (api.md §6): part of the service's record, written by its owner.

use super::{
    admission::Request,
    answer::{Answer, Outcome, clip, invalid, not_found},
    fields::Fields,
    forward,
    services::{check_version, find, if_match},
    transaction,
};
use crate::{
    model::{Code, Refused, Route, RouteId, Service, ServiceBody, UnixTime, default_priority, parse_route_cidr},
    routing::{CompiledRoute, sort_routes},
    wire::record::kind,
};
use ipnet::IpNet;
use serde_json::json;

const ROUTES_PER_SERVICE_MAX: usize = 1000;

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
        let fields = fields.only(&["source_cidr", "dest_cidr", "priority"])?;
        let (source, dest) = (cidr(&fields, "source_cidr")?, cidr(&fields, "dest_cidr")?);
        let priority = match fields.integer("priority", u64::from(u16::MAX))? {
            Some(n) => u16::try_from(n).map_err(Refused::internal)?,
            None => default_priority(),
        };
        match (source, dest) {
            (None, None) => Err(fields.missing("dest_cidr").with_hint("a route needs source_cidr or dest_cidr")),
            (Some(s), Some(d)) if s.addr().is_ipv4() != d.addr().is_ipv4() => {
                let text = format!("source_cidr {s} and dest_cidr {d} are of different families");
                Err(Refused::new(Code::InvalidCidr, text))
            }
            _ => Ok(Self { source, dest, priority }),
        }
    }
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
    let dry_run = r.dry_run()?;
    let wishes = Wish::read_all(&r.body)?;
    let (service, author, now) = (find(&r)?, r.identity()?, r.now());
    let service_id = service.id.to_string();
    if service.body.source_peer_id != author.peer_id {
        return forward::to_owner(&r, service.body.source_peer_id).await;
    }
    let ids = transaction::write(r.node(), dry_run, move |tx| {
        let mut body = tx.service(service.id)?.ok_or_else(|| not_found("service was just deleted"))?.body;
        let ids = append(&mut body, &wishes, tx.own_version()? + 1, now)?;
        tx.put_service(&author, service.id, &body)?;
        Ok(ids)
    });
    let ids = ids.await?;
    let answer = Answer::created(&json!({"count": ids.len(), "route_ids": ids}))?;
    forward::name_written(&r, answer, kind::SERVICE, &service_id)
}

/// Adds all or, by an error, none. `version` is that of the record to be.
fn append(body: &mut ServiceBody, wishes: &[Wish], version: u64, now: UnixTime) -> Result<Vec<RouteId>, Refused> {
    let mut ids = Vec::with_capacity(wishes.len());
    for wish in wishes {
        if let Some(same) = body.routes.iter().find(|r| (r.source_cidr, r.dest_cidr) == (wish.source, wish.dest)) {
            let any = |net: Option<IpNet>| net.map_or("any".to_owned(), |n| n.to_string());
            let text = format!(
                "route {} from {} to {} already exists in this service",
                same.id,
                any(wish.source),
                any(wish.dest)
            );
            return Err(Refused::new(Code::AlreadyExists, text));
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

pub(super) async fn delete(r: Request) -> Outcome {
    let dry_run = r.dry_run()?;
    let if_match = if_match(&r)?;
    let text = r.param("rid").to_owned();
    let unknown = move || not_found(format!("route `{}` not found", clip(&text)));
    let (service, author, now) = (find(&r)?, r.identity()?, r.now());
    let service_id = service.id.to_string();
    let id: RouteId = r.param("rid").parse().map_err(|_| unknown())?;
    if !service.body.routes.iter().any(|route| route.id == id) {
        return Err(unknown());
    }
    if service.body.source_peer_id != author.peer_id {
        return forward::to_owner(&r, service.body.source_peer_id).await;
    }
    transaction::write(r.node(), dry_run, move |tx| {
        let mut body = tx.service(service.id)?.ok_or_else(&unknown)?.body;
        let at = body.routes.iter().position(|route| route.id == id).ok_or_else(&unknown)?;
        check_version(if_match, body.routes[at].version)?;
        body.routes.remove(at);
        body.updated_at = now;
        tx.put_service(&author, service.id, &body)?;
        Ok(())
    })
    .await?;
    forward::name_written(&r, Answer::no_content(), kind::SERVICE, &service_id)
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
}
