//! What servers tell of each other, and which slot a key has. Nothing here asks anybody.

use std::collections::BTreeMap;

use redis::Value;

use super::settings::Address;

/// Slots of a cluster.
const SLOTS: usize = 16384;
/// Primaries of a cluster, at most: to each of them there is a connection.
const MOST: usize = 512;
/// Who serves a slot that nobody serves.
const NOBODY: u16 = u16::MAX;

/// Where a key is in a cluster.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Slot(u16);

/// Which server is the primary of which slot.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Map {
    primaries: Vec<Address>,
    /// By slot, which of them. None: the first has all.
    slots: Option<Box<[u16]>>,
}

/// What a sentinel tells of the primary.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Told {
    /// Which of what is told is newer.
    pub(super) epoch: u64,
    pub(super) primary: Address,
}

/// The answer is not one that a server of this kind gives.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("its answer is not understood")]
pub(super) struct Foreign;

impl Slot {
    /// Of a key: of what is in its first braces, if that is not empty.
    pub(crate) fn of(key: &str) -> Self {
        let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
        let counts = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
        Self(crc16(counts.as_bytes()) % SLOTS as u16)
    }
}

/// CRC-16/XMODEM, as the specification of Redis Cluster has it.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 })
    })
}

impl Map {
    /// One has all.
    pub(super) fn one(primary: Address) -> Self {
        Self { primaries: vec![primary], slots: None }
    }

    /// All of them.
    pub(super) fn primaries(&self) -> &[Address] {
        &self.primaries
    }

    /// Which of them serves a slot.
    pub(super) fn index(&self, slot: Slot) -> Option<usize> {
        let index = self.slots.as_ref().map_or(0, |slots| slots[usize::from(slot.0)]);
        (usize::from(index) < self.primaries.len()).then_some(index.into())
    }

    /// Who serves a slot.
    pub(super) fn at(&self, slot: Slot) -> Option<&Address> {
        self.index(slot).map(|index| &self.primaries[index])
    }

    /// As a node answers `CLUSTER SLOTS` that was asked at an address.
    pub(super) fn of_slots(answer: &Value, asked: &Address) -> Result<Self, Foreign> {
        let mut slots = vec![NOBODY; SLOTS].into_boxed_slice();
        let mut primaries = BTreeMap::new();
        for range in list(answer)? {
            let [Value::Int(first), Value::Int(last), primary, ..] = list(range)? else { return Err(Foreign) };
            let [host, Value::Int(port), ..] = list(primary)? else { return Err(Foreign) };
            // Unless it knows better, a node is where it was reached.
            let host = text(host).filter(|host| !["", "?"].contains(host)).unwrap_or(&asked.host);
            let address = Address::new(host, u16::try_from(*port).map_err(|_| Foreign)?);
            let next = primaries.len();
            let index = *primaries.entry(address).or_insert(next);
            let (first, last) = (usize::try_from(*first).map_err(|_| Foreign)?, usize::try_from(*last).map_err(|_| Foreign)?);
            slots.get_mut(first..=last).ok_or(Foreign)?.fill(index as u16);
            if primaries.len() > MOST {
                return Err(Foreign);
            }
        }
        let mut in_order: Vec<(Address, usize)> = primaries.into_iter().collect();
        in_order.sort_by_key(|(_, index)| *index);
        Ok(Self { primaries: in_order.into_iter().map(|(address, _)| address).collect(), slots: Some(slots) })
    }
}

impl Told {
    /// As a sentinel answers `SENTINEL MASTER`.
    pub(super) fn of(answer: &Value) -> Result<Self, Foreign> {
        let fields = list(answer)?;
        let field = |name: &str| fields.chunks_exact(2).find(|pair| text(&pair[0]) == Some(name)).and_then(|pair| text(&pair[1]));
        let number = |name| field(name)?.parse::<u64>().ok();
        let port = number("port").and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
        let host = field("ip").filter(|host| !host.is_empty());
        let (Some(host), Some(port)) = (host, port) else { return Err(Foreign) };
        Ok(Self { epoch: number("config-epoch").unwrap_or(0), primary: Address::new(host, port) })
    }
}

/// Whether this answer to `ROLE` is that of a primary.
pub(super) fn is_primary(role: &Value) -> bool {
    list(role).is_ok_and(|role| role.first().and_then(text) == Some("master"))
}

/// Whether this answer to `CLUSTER INFO` is that of a node that sees enough of its cluster to serve.
pub(super) fn is_served(info: &Value) -> bool {
    text(info).is_some_and(|info| info.lines().any(|line| line.trim_end() == "cluster_state:ok"))
}

fn list(value: &Value) -> Result<&[Value], Foreign> {
    match value {
        Value::Array(values) => Ok(values),
        _ => Err(Foreign),
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn range(first: i64, last: i64, host: Value, port: i64) -> Value {
        let node = |host, port| Value::Array(vec![host, Value::Int(port), bulk("id")]);
        Value::Array(vec![Value::Int(first), Value::Int(last), node(host, port), node(bulk("replica"), 1)])
    }

    #[test]
    fn keys_have_the_slots_that_the_specification_says() {
        for (key, slot) in [
            ("123456789", 0x31c3),
            ("foo", 12182),
            ("{foo}bar", 12182),
            ("a{foo}{bar}", 12182),
            ("", 0),
            ("fetchr:shop:{purge:Deployment/web}:log", Slot::of("purge:Deployment/web").0),
        ] {
            assert_eq!(Slot::of(key), Slot(slot), "{key}");
        }
        assert_eq!(Slot::of("{}foo"), Slot(crc16(b"{}foo") % 16384), "empty braces are no tag");
        assert_eq!(Slot::of("a}{foo}"), Slot(12182));
    }

    #[test]
    fn slots_are_where_a_node_says() {
        let asked = Address::new("seed", 7000);
        let answer = Value::Array(vec![
            range(0, 100, bulk("10.0.0.1"), 6379),
            range(200, 16383, bulk("10.0.0.2"), 6379),
            range(101, 150, bulk("10.0.0.1"), 6379),
            range(151, 151, Value::Nil, 6380),
            range(152, 152, bulk("?"), 6380),
        ]);
        let map = Map::of_slots(&answer, &asked).unwrap();
        let shown: Vec<String> = map.primaries().iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["10.0.0.1:6379", "10.0.0.2:6379", "seed:6380"]);
        for (slot, expected) in [
            (0, Some("10.0.0.1")),
            (101, Some("10.0.0.1")),
            (151, Some("seed")),
            (152, Some("seed")),
            (160, None),
            (200, Some("10.0.0.2")),
            (16383, Some("10.0.0.2")),
        ] {
            assert_eq!(map.at(Slot(slot)).map(|address| &*address.host), expected, "{slot}");
        }
        assert_eq!(Map::one(asked.clone()).at(Slot(16383)), Some(&asked));
        assert_eq!(Map::default().at(Slot(0)), None);
    }

    #[test]
    fn what_no_node_says_is_refused() {
        let asked = Address::new("seed", 7000);
        let many = (0..=MOST as i64).map(|index| range(index, index, bulk("a"), index + 1)).collect();
        for answer in [
            Value::Nil,
            Value::Array(vec![Value::Nil]),
            Value::Array(vec![Value::Array(vec![Value::Int(0), Value::Int(1)])]),
            Value::Array(vec![range(0, 16384, bulk("a"), 1)]),
            Value::Array(vec![range(-1, 5, bulk("a"), 1)]),
            Value::Array(vec![range(9, 5, bulk("a"), 1)]),
            Value::Array(vec![range(0, 5, bulk("a"), 65536)]),
            Value::Array(many),
        ] {
            assert_eq!(Map::of_slots(&answer, &asked), Err(Foreign), "{answer:?}");
        }
    }

    #[test]
    fn sentinels_tell_the_primary_and_since_which_epoch() {
        let told = |fields: &[&str]| Told::of(&Value::Array(fields.iter().map(|field| bulk(field)).collect()));
        let primary = Address::new("10.0.0.1", 6379);
        let fields = ["name", "main", "ip", "10.0.0.1", "port", "6379", "config-epoch", "7"];
        assert_eq!(told(&fields), Ok(Told { epoch: 7, primary: primary.clone() }));
        assert_eq!(told(&fields[..6]), Ok(Told { epoch: 0, primary }));
        for wrong in [&["ip", "10.0.0.1"][..], &["ip", "", "port", "1"], &["ip", "a", "port", "0"], &["ip", "a", "port", "70000"]]
        {
            assert_eq!(told(wrong), Err(Foreign), "{wrong:?}");
        }
        assert_eq!(Told::of(&Value::Nil), Err(Foreign));
    }

    #[test]
    fn roles_and_states_are_read() {
        assert!(is_primary(&Value::Array(vec![bulk("master"), Value::Int(0), Value::Array(Vec::new())])));
        assert!(!is_primary(&Value::Array(vec![bulk("slave"), bulk("10.0.0.1")])));
        assert!(!is_primary(&Value::Nil));
        assert!(is_served(&bulk("cluster_enabled:1\r\ncluster_state:ok\r\n")));
        assert!(!is_served(&bulk("cluster_state:fail\r\n")) && !is_served(&Value::Nil));
    }
}
