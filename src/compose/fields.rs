//! The fields of a cluster file (compose.md §1): one table for reading, layout and schema.

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Version,
    Path,
    Name,
    Endpoint,
    Endpoints,
    Flag,
    Access,
    Transport,
    HostCidr4,
    HostCidr6,
    RouteCidr,
    Rate,
    Priority,
    One(Table),
    Many(Table),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    Root,
    Peer,
    Service,
    Interface,
    Qos,
    Route,
}

pub struct Field {
    pub name: &'static str,
    pub kind: Kind,
    pub required: bool,
    /// For editors and `explain`.
    pub about: &'static str,
}

const fn required(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { name, kind, required: true, about }
}

const fn optional(name: &'static str, kind: Kind, about: &'static str) -> Field {
    Field { name, kind, required: false, about }
}

const ROOT: &[Field] = &[
    required("version", Kind::Version, "Version of the file format: v1"),
    optional("license", Kind::Path, "License document for peers that are not bootstrapped yet, relative to this file"),
    required("peers", Kind::Many(Table::Peer), "Peers of the cluster; unlisted ones are kept"),
    optional("services", Kind::Many(Table::Service), "Services; unlisted ones are kept, or deleted with --prune"),
];

const PEER: &[Field] = &[
    required("name", Kind::Name, "Unique name; services refer to it, and every listed peer uses it"),
    optional("endpoints", Kind::Endpoints, "Addresses of the API, host:port, in the order they are tried"),
    optional("address", Kind::Endpoint, "Old form of a single endpoint; ignored beside endpoints"),
    optional("qos_enabled", Kind::Flag, "Whether traffic to this peer is shaped; default true"),
    optional("api_access", Kind::Access, "Expected API access, public or internal; a difference is a warning"),
];

const SERVICE: &[Field] = &[
    required("name", Kind::Name, "Unique name of the service"),
    required("source_peer", Kind::Name, "Peer where the traffic enters"),
    required("target_peer", Kind::Name, "Peer where the traffic leaves"),
    optional("transport_type", Kind::Transport, "tcp or kcp; default tcp"),
    optional("fully_transparent", Kind::Flag, "Keep the client's address; needs an interface; default false"),
    optional("interface", Kind::One(Table::Interface), "Interface of its own (MACVLAN)"),
    optional("qos", Kind::One(Table::Qos), "Limits"),
    optional("routes", Kind::Many(Table::Route), "Which traffic the service carries"),
];

const INTERFACE: &[Field] = &[
    required("enabled", Kind::Flag, "Whether the service has an interface of its own"),
    optional("ipv4", Kind::HostCidr4, "IPv4 address of the interface, for example 192.168.100.10/24"),
    optional("ipv6", Kind::HostCidr6, "IPv6 address of the interface"),
];

const QOS: &[Field] = &[optional("bandwidth_limit_mbps", Kind::Rate, "Limit in Mbit/s, 0 is unlimited; default 0")];

const ROUTE: &[Field] = &[
    optional("source_cidr", Kind::RouteCidr, "Traffic from this network; without it any source matches"),
    optional("dest_cidr", Kind::RouteCidr, "Traffic to this network; without it any destination matches"),
    optional("priority", Kind::Priority, "Among equally specific routes the higher value wins; default 100"),
];

impl Table {
    pub const ALL: [Table; 6] = [Table::Root, Table::Peer, Table::Service, Table::Interface, Table::Qos, Table::Route];

    /// In canonical order.
    pub fn fields(self) -> &'static [Field] {
        match self {
            Table::Root => ROOT,
            Table::Peer => PEER,
            Table::Service => SERVICE,
            Table::Interface => INTERFACE,
            Table::Qos => QOS,
            Table::Route => ROUTE,
        }
    }
    pub fn field(self, name: &str) -> Option<&'static Field> {
        self.fields().iter().find(|f| f.name == name)
    }
    /// As errors name it: `unknown key … of a peer`.
    pub fn words(self) -> &'static str {
        match self {
            Table::Root => "the file",
            Table::Peer => "a peer",
            Table::Service => "a service",
            Table::Interface => "an interface",
            Table::Qos => "qos",
            Table::Route => "a route",
        }
    }
}
