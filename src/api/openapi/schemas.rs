//! The shapes of api.md as JSON Schema 2020-12.

use crate::{
    model::{Code, Scope},
    node::EVENT_TYPES,
};
use serde_json::{Map, Value, json};

/// One parameter of a query.
pub(super) fn parameter(name: &str) -> Value {
    let (schema, description) = match name {
        "dry_run" => (flag(), "Only validate; nothing changes."),
        "wait" => (json!({"enum": ["applied"]}), "Answer once the reconcilers of both ends have applied the change."),
        "timeout_s" => (whole(1, 120), "How long to wait; goes with wait=applied. 30 if left out."),
        "is_local" => (flag(), "Only the agent itself, or only others."),
        "requires_interface" => (flag(), "Only services with an interface, or only those without."),
        "status" => (json!({"enum": STATUSES}), "Only peers of this status."),
        "source_peer_id" | "target_peer_id" => (id(), "Only services of this peer."),
        "force" => (flag(), "Whoever holds it."),
        "local" => (flag(), "Only the called agent."),
        "id" => (text_of(64), "Only this one."),
        "type" => (
            json!({"enum": event_patterns()}),
            "Only events of this type, or family as peer.*; several between commas.",
        ),
        "since" => (json!({"const": "0"}), "0: begin with all events that are kept."),
        "limit" => (whole(1, 10_000), "How many."),
        "verbose" => (flag(), "Has no effect: every check is always shown."),
        "exclude" => (text_of(256), "Checks that are left out, between commas."),
        _ => (text(), ""),
    };
    json!({"schema": schema, "description": description, "required": false})
}

const STATUSES: [&str; 5] = ["discovered", "handshaking", "healthy", "unhealthy", "unreachable"];
const STATES: [&str; 5] = ["valid", "warning", "grace_period", "read_only", "suspended"];

fn event_patterns() -> Vec<String> {
    let families = EVENT_TYPES.iter().filter_map(|kind| Some(format!("{}.*", kind.split_once('.')?.0)));
    let mut all: Vec<String> = families.chain(EVENT_TYPES.map(str::to_owned)).collect();
    all.dedup();
    all
}

fn text() -> Value {
    json!({"type": "string"})
}
fn text_of(max: usize) -> Value {
    json!({"type": "string", "maxLength": max})
}
fn id() -> Value {
    json!({"type": "string", "pattern": "^[a-z]{3,4}_[0-9A-HJKMNP-TV-Z]{26}$"})
}
fn at() -> Value {
    json!({"type": "string", "format": "date-time"})
}
fn flag() -> Value {
    json!({"type": "boolean"})
}
fn whole(min: u64, max: u64) -> Value {
    json!({"type": "integer", "minimum": min, "maximum": max})
}
fn count() -> Value {
    json!({"type": "integer", "minimum": 0})
}
fn list(items: Value) -> Value {
    json!({"type": "array", "items": items})
}
fn nullable(schema: Value) -> Value {
    json!({"anyOf": [schema, {"type": "null"}]})
}
fn one_of(words: &[&str]) -> Value {
    json!({"type": "string", "enum": words})
}
fn refer(schema: &str) -> Value {
    super::reference(schema)
}

/// An answer: all of these fields are there, and more may come with later versions.
fn answer<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let required: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    let properties: Map<String, Value> = fields.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect();
    json!({"type": "object", "required": required, "properties": properties})
}

/// Fields that an answer may also have.
fn and_maybe<const N: usize>(mut schema: Value, fields: [(&str, Value); N]) -> Value {
    for (name, field) in fields {
        schema["properties"][name] = field;
    }
    schema
}

/// A request: no other fields, and those that are `required`.
fn request<const N: usize>(required: &[&str], fields: [(&str, Value); N]) -> Value {
    let properties: Map<String, Value> = fields.into_iter().map(|(n, v)| (n.to_owned(), v)).collect();
    json!({"type": "object", "required": required, "properties": properties, "additionalProperties": false})
}

fn endpoints() -> Value {
    json!({"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 16})
}

fn conditions() -> Value {
    list(answer([
        ("reconciler", one_of(&["network", "firewall", "tproxy", "iptun"])),
        ("status", one_of(&["applied", "pending", "failed"])),
        ("reason", text()),
        ("message", text()),
        ("observed_version", count()),
        ("at", at()),
    ]))
}

fn waited() -> [(&'static str, Value); 2] {
    let unapplied = answer([
        ("peer_id", id()),
        ("peer_name", text()),
        ("reconciler", nullable(text())),
        ("status", one_of(&["pending", "failed"])),
        ("reason", text()),
        ("message", text()),
    ]);
    [("applied", flag()), ("waiting_for", list(unapplied))]
}

/// Every schema, by name.
pub(super) fn all() -> Value {
    let mut all = Map::new();
    let mut add = |name: &str, schema: Value| drop(all.insert(name.to_owned(), schema));
    let codes: Vec<&str> = Code::ALL.iter().map(|code| code.text()).collect();
    add("Anything", json!({"type": "object"}));
    let error = answer([("error", text()), ("code", json!({"type": "string", "enum": codes}))]);
    let more = [("hint", text()), ("details", json!({"type": "object"})), ("request_id", text())];
    add("Error", and_maybe(error, more));
    health(&mut add);
    peers(&mut add);
    services(&mut add);
    routes(&mut add);
    credentials(&mut add);
    cluster(&mut add);
    confirm(&mut add);
    license(&mut add);
    Value::Object(all)
}

fn health(add: &mut impl FnMut(&str, Value)) {
    let status = || one_of(&["ok", "fail"]);
    add("Live", answer([("status", status()), ("timestamp", at())]));
    let check = answer([("name", text()), ("status", status()), ("message", text())]);
    add("Ready", answer([("status", status()), ("timestamp", at()), ("checks", list(check))]));
}

fn peers(add: &mut impl FnMut(&str, Value)) {
    let peer = answer([
        ("id", id()),
        ("name", text()),
        ("self_name", nullable(text())),
        ("public_key", text()),
        ("is_local", flag()),
        ("endpoints", list(text())),
        ("address", nullable(text())),
        ("qos_enabled", flag()),
        ("api_access", nullable(one_of(&["public", "internal"]))),
        ("status", one_of(&STATUSES)),
        ("last_seen", nullable(at())),
        ("rtt_ms", nullable(json!({"type": "number"}))),
        ("version", nullable(text())),
        ("license_id", nullable(id())),
        ("license_state", nullable(text())),
        ("created_at", at()),
    ]);
    add("AddedPeer", and_maybe(peer.clone(), [("warnings", list(text()))]));
    add("Peer", and_maybe(peer, waited()));
    add("PeerList", answer([("peers", list(refer("Peer")))]));
    let name = || json!({"type": "string", "minLength": 1, "maxLength": 63});
    let fields = [("endpoints", endpoints()), ("address", text()), ("name", name()), ("public_key", text())];
    let mut add_peer = request(&[], fields);
    add_peer["anyOf"] = json!([{"required": ["endpoints"]}, {"required": ["address"]}]);
    add("AddPeer", add_peer);
    add("UpdatePeer", request(&[], [("name", name()), ("qos_enabled", flag())]));
    add(
        "Departure",
        answer([
            ("action", json!({"const": "deactivated"})),
            ("peer_id", id()),
            ("public_key", text()),
            ("cluster_id", id()),
            ("version", nullable(count())),
            ("deactivated_at", nullable(at())),
            ("signature", nullable(text())),
        ]),
    );
}

fn services(add: &mut impl FnMut(&str, Value)) {
    let transport = || one_of(&["tcp", "kcp"]);
    let service = answer([
        ("id", id()),
        ("name", text()),
        ("source_peer_id", id()),
        ("source_peer_name", nullable(text())),
        ("target_peer_id", id()),
        ("target_peer_name", nullable(text())),
        ("state", one_of(&["active", "inactive"])),
        ("transport_type", transport()),
        ("effective_transport", transport()),
        ("requires_interface", flag()),
        ("desired_ipv4_cidr", nullable(text())),
        ("desired_ipv6_cidr", nullable(text())),
        ("bandwidth_limit_mbps", count()),
        ("fully_transparent", flag()),
        ("interface_name", nullable(text())),
        ("interface_mac", nullable(text())),
        ("interface_ipv4_cidr", nullable(text())),
        ("interface_ipv6_cidr", nullable(text())),
        ("fwmark", nullable(count())),
        ("conditions", conditions()),
        ("version", count()),
        ("created_at", at()),
        ("updated_at", at()),
    ]);
    let listed = and_maybe(service.clone(), [("route_count", count())]);
    add("ServiceList", answer([("services", list(listed))]));
    add("Service", and_maybe(and_maybe(service, [("routes", list(refer("Route")))]), waited()));
    let settable = [
        ("name", json!({"type": "string", "pattern": "^[A-Za-z0-9._-]{1,63}$"})),
        ("transport_type", transport()),
        ("requires_interface", flag()),
        ("desired_ipv4_cidr", nullable(text())),
        ("desired_ipv6_cidr", nullable(text())),
        ("bandwidth_limit_mbps", whole(0, 400_000)),
        ("fully_transparent", flag()),
    ];
    let mut create = request(&["target_peer_id"], settable.clone());
    create["properties"]["target_peer_id"] = text();
    create["properties"]["source_peer_id"] = text();
    add("CreateService", create);
    add("UpdateService", request(&[], settable));
    add("Applied", answer(waited()));
}

fn routes(add: &mut impl FnMut(&str, Value)) {
    let priority = || whole(0, 65_535);
    let route = answer([
        ("id", count()),
        ("source_cidr", nullable(text())),
        ("dest_cidr", nullable(text())),
        ("priority", priority()),
        ("version", count()),
        ("created_at", at()),
    ]);
    add("Route", and_maybe(route, waited()));
    add("RouteList", answer([("routes", list(refer("Route")))]));
    let fields = || [("source_cidr", nullable(text())), ("dest_cidr", nullable(text())), ("priority", priority())];
    let routes = json!({"type": "array", "items": request(&[], fields()), "minItems": 1, "maxItems": 1000});
    add("AddRoutes", request(&["routes"], [("routes", routes)]));
    add("UpdateRoute", request(&[], fields()));
    add("AddedRoutes", and_maybe(answer([("route_ids", list(count())), ("count", count())]), waited()));
    let protocol = json!({"anyOf": [one_of(&["tcp", "udp", "icmp", "icmpv6"]), whole(0, 255)]});
    let address = || json!({"anyOf": [{"type": "string", "format": "ipv4"}, {"type": "string", "format": "ipv6"}]});
    let packet = [
        ("src", address()),
        ("dst", address()),
        ("proto", protocol),
        ("dport", nullable(whole(0, 65_535))),
        ("iface", nullable(json!({"type": "string", "minLength": 1, "maxLength": 15}))),
    ];
    add("Packet", request(&["src", "dst", "proto"], packet));
    let reasons = [
        "WINS",
        "LESS_PREFERRED",
        "SOURCE_OUTSIDE",
        "DEST_OUTSIDE",
        "OTHER_FAMILY",
        "OTHER_INTERFACE",
        "EXCLUDED",
        "NOT_CARRIED",
        "INACTIVE",
    ];
    let candidate = answer([
        ("service_id", id()),
        ("service_name", nullable(text())),
        ("route_id", nullable(count())),
        ("source_cidr", nullable(text())),
        ("dest_cidr", nullable(text())),
        ("priority", priority()),
        ("interface", nullable(text())),
        ("outcome", one_of(&["wins", "loses"])),
        ("reason", one_of(&reasons)),
        ("message", text()),
    ]);
    add(
        "Explanation",
        answer([
            ("result", one_of(&["captured", "excluded", "not_captured"])),
            ("message", text()),
            ("plane", nullable(one_of(&["tproxy", "iptun"]))),
            ("service_id", nullable(id())),
            ("service_name", nullable(text())),
            ("route_id", nullable(count())),
            ("target_peer_id", nullable(id())),
            ("target_peer_name", nullable(text())),
            ("transport", nullable(one_of(&["tcp", "kcp"]))),
            ("mark", nullable(count())),
            ("limit_mbps", nullable(count())),
            ("candidates", list(candidate)),
            ("candidates_total", count()),
        ]),
    );
}

fn credentials(add: &mut impl FnMut(&str, Value)) {
    let scope_names = Scope::ALL.map(|scope| scope.to_string());
    let scope = || json!({"type": "string", "enum": scope_names});
    add(
        "Token",
        answer([
            ("access_token", text()),
            ("token_type", json!({"const": "Bearer"})),
            ("expires_in", count()),
            ("scope", text()),
        ]),
    );
    let grant = [
        ("grant_type", json!({"const": "client_credentials"})),
        ("client_id", text()),
        ("client_secret", text()),
        ("scope", text()),
    ];
    add("TokenRequest", request(&["grant_type"], grant));
    add(
        "OpenidConfiguration",
        answer([
            ("issuer", id()),
            ("token_endpoint", text()),
            ("jwks_uri", text()),
            ("grant_types_supported", list(text())),
            ("scopes_supported", list(scope())),
            ("id_token_signing_alg_values_supported", list(text())),
            ("token_endpoint_auth_methods_supported", list(text())),
        ]),
    );
    let word = |word: &str| json!({ "const": word });
    let key = answer([
        ("kty", word("OKP")),
        ("crv", word("Ed25519")),
        ("x", text()),
        ("kid", id()),
        ("use", word("sig")),
        ("alg", word("EdDSA")),
    ]);
    add("Keys", answer([("keys", list(key))]));
    let credential = answer([
        ("client_id", id()),
        ("scopes", list(scope())),
        ("description", text()),
        ("issuer_peer_id", id()),
        ("license_id", id()),
        ("created_at", at()),
        ("last_used_at", nullable(at())),
    ]);
    add("CredentialList", answer([("credentials", list(credential))]));
    let short: Vec<String> =
        Scope::ALL.iter().flat_map(|scope| [scope.to_string(), scope.short_name().to_owned()]).collect();
    let scopes = json!({"type": "array", "items": {"type": "string", "enum": short}, "minItems": 1, "maxItems": 7});
    add("CreateCredential", request(&[], [("scopes", scopes), ("description", text_of(256))]));
    let secret = || nullable(text());
    add(
        "NewCredential",
        answer([("client_id", nullable(id())), ("client_secret", secret()), ("scopes", list(scope()))]),
    );
    add("Deleted", answer([("deleted", json!({"const": true}))]));
    let shared = answer([
        ("client_id", id()),
        ("version", count()),
        ("rotated_by", nullable(text())),
        ("rotated_at", nullable(at())),
    ]);
    add("RotatedCredential", {
        let mut rotated = and_maybe(shared.clone(), [("client_secret", secret()), ("old_valid_until", at())]);
        rotated["required"] =
            json!(["client_id", "client_secret", "version", "rotated_by", "rotated_at", "old_valid_until"]);
        rotated
    });
    add("SharedCredential", shared);
}

fn cluster(add: &mut impl FnMut(&str, Value)) {
    add(
        "Identity",
        answer([
            ("peer_id", text()),
            ("public_key", text()),
            ("license_id", text()),
            ("cluster_id", text()),
            ("version", text()),
        ]),
    );
    let registry = answer([("count", count()), ("digest", text())]);
    let by_name = |schema: Value| json!({"type": "object", "additionalProperties": schema});
    let peer = answer([
        ("id", id()),
        ("name", text()),
        ("status", one_of(&STATUSES)),
        ("last_seen", nullable(at())),
        ("endpoint", nullable(text())),
        ("rtt_ms", nullable(json!({"type": "number"}))),
        ("version", nullable(text())),
        ("registries", by_name(text())),
    ]);
    add(
        "ClusterStatus",
        answer([
            ("cluster_id", id()),
            ("aliases", list(id())),
            ("local_peer_id", id()),
            ("converged", flag()),
            ("registries", by_name(registry)),
            ("peers", list(peer)),
            ("license_state", one_of(&STATES)),
            ("lock", nullable(refer("Lock"))),
            ("warnings", list(text())),
        ]),
    );
    add("Synced", answer([("triggered", json!({"const": true})), ("peers", count()), ("reached", count())]));
    add("InitCluster", request(&[], [("force", flag())]));
    add(
        "ClusterInit",
        answer([
            ("cluster_id", id()),
            ("created_by", nullable(id())),
            ("oldest_peer_id", id()),
            ("was_created", flag()),
            ("message", text()),
        ]),
    );
    let lock = answer([
        ("holder_peer", id()),
        ("holder_name", nullable(text())),
        ("client_id", nullable(id())),
        ("purpose", text()),
        ("acquired_at", at()),
        ("ttl_s", count()),
        ("expires_at", at()),
    ]);
    add("Lock", and_maybe(lock, [("token", nullable(text()))]));
    add("LockState", answer([("lock", nullable(refer("Lock")))]));
    add("ClearedLock", answer([("cleared", nullable(refer("Lock")))]));
    let purpose = json!({"type": "string", "minLength": 1, "maxLength": 200, "pattern": "\\S"});
    let mut take = request(&[], [("purpose", purpose), ("ttl_s", whole(5, 600)), ("token", text())]);
    take["anyOf"] = json!([{"required": ["purpose"]}, {"required": ["token"]}]);
    add("TakeLock", take);
    let entry = answer([
        ("time", at()),
        ("actor", text()),
        ("source", text()),
        ("verb", text()),
        ("object", text()),
        ("result", text()),
        ("request_id", text()),
    ]);
    add("AuditList", answer([("entries", list(entry))]));
}

fn confirm(add: &mut impl FnMut(&str, Value)) {
    let pending = answer([
        ("id", text()),
        ("peer_id", id()),
        ("client_id", nullable(id())),
        ("services", list(text())),
        ("created_at", at()),
        ("deadline", at()),
    ]);
    add("PendingConfirm", pending);
    add("Pending", answer([("pending", refer("PendingConfirm"))]));
    add("PendingList", answer([("pending", list(refer("PendingConfirm"))), ("unreached", list(id()))]));
    add("Confirmed", answer([("confirmed", list(refer("PendingConfirm"))), ("unreached", list(id()))]));
    let services = json!({"type": "array", "items": text_of(64), "minItems": 1, "maxItems": 1000});
    let fields = [("within_s", whole(5, 3600)), ("services", services), ("id", text_of(64))];
    add("BeginConfirm", request(&["within_s", "services"], fields));
}

fn license(add: &mut impl FnMut(&str, Value)) {
    let used = || answer([("used", count()), ("max", count())]);
    add(
        "LicenseState",
        answer([
            ("license", json!({"type": "object"})),
            ("state", one_of(&STATES)),
            ("state_since", at()),
            ("effective_time", at()),
            ("expires_at", at()),
            ("grace_ends_at", at()),
            ("read_only_ends_at", at()),
            ("days_left", json!({"type": "integer"})),
            ("clock_suspect", flag()),
            ("nodes", used()),
            ("services", used()),
            ("features", list(text())),
            ("warnings", list(text())),
        ]),
    );
    add("UpdateLicense", json!({"type": "object", "description": "A license document, bare or as `license`."}));
    add(
        "Bootstrap",
        json!({
            "type": "object",
            "description": "A license document, bare or as `license` beside the fields below.",
            "properties": {"license": {"type": "object"}, "name": text(), "description": text(), "endpoints": endpoints()},
        }),
    );
    add(
        "Bootstrapped",
        answer([
            ("peer_id", nullable(id())),
            ("peer_public_key", nullable(text())),
            ("client_id", nullable(id())),
            ("client_secret", nullable(text())),
            ("cluster_id", nullable(id())),
            ("license_id", id()),
            ("expires_at", at()),
            ("max_nodes", count()),
            ("max_services", count()),
        ]),
    );
}
