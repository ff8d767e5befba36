//! Consistent hashing: each address has many points on a ring, and a key goes to the next point. It must come out alike in all pods and
//! versions, so the hash is spelled out.

use std::net::SocketAddr;

/// Points of one address. With a hundred the most loaded of ten addresses has about a quarter more than its share.
const POINTS: u64 = 100;

/// Addresses, by their index in the order in which they were given.
#[derive(Debug)]
pub(super) struct Ring {
    points: Vec<(u64, u32)>,
}

impl Ring {
    /// Addresses in ascending order. The port makes a difference only where two have the same IP, so that it may change.
    pub(super) fn new(addresses: impl Iterator<Item = SocketAddr>) -> Self {
        let mut last = None;
        let mut seed = |address: SocketAddr| match last.replace(address.ip()) {
            Some(ip) if ip == address.ip() => hash(address.to_string().as_bytes()),
            _ => hash(address.ip().to_string().as_bytes()),
        };
        let of = |(index, address): (u32, SocketAddr)| {
            let seed = seed(address);
            (0..POINTS).map(move |point| (mix(seed.wrapping_add(point.wrapping_mul(0x9e37_79b9_7f4a_7c15))), index))
        };
        let mut points: Vec<_> = (0..).zip(addresses).flat_map(of).collect();
        points.sort_unstable();
        Self { points }
    }

    /// The address of a key; of one that is not fit, the next along the ring.
    pub(super) fn find(&self, key: u64, fit: impl Fn(usize) -> bool) -> Option<usize> {
        let from = self.points.partition_point(|(point, _)| *point < key);
        let along = self.points[from..].iter().chain(&self.points[..from]);
        along.map(|(_, index)| *index as usize).find(|index| fit(*index))
    }
}

/// FNV-1a, then mixed so that keys that are alike lie far apart.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fnv))
}

/// The last steps of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(count: u8) -> Vec<SocketAddr> {
        (0..count).map(|last| SocketAddr::from(([10, 0, 0, last], 80))).collect()
    }

    fn spread(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        let ring = Ring::new(addresses.iter().copied());
        (0..10_000u32).map(|key| addresses[ring.find(hash(&key.to_be_bytes()), |_| true).unwrap()]).collect()
    }

    #[test]
    fn keys_spread_evenly() {
        let addresses = addresses(10);
        let spread = spread(&addresses);
        for address in &addresses {
            let share = spread.iter().filter(|found| *found == address).count();
            assert!((600..1500).contains(&share), "{address}: {share} of 10000");
        }
    }

    #[test]
    fn keys_stay_where_they_are_when_addresses_come_and_go() {
        let (ten, nine) = (addresses(10), addresses(9));
        let moved = spread(&ten).into_iter().zip(spread(&nine)).filter(|(before, after)| before != after).collect::<Vec<_>>();
        assert!(moved.iter().all(|(before, _)| *before == ten[9]), "only those of the address that went");
    }

    #[test]
    fn unfit_address_is_passed_over_and_the_others_keep_their_keys() {
        let ring = Ring::new(addresses(3).into_iter());
        for key in 0..1000u32 {
            let key = hash(&key.to_be_bytes());
            let (all, without) = (ring.find(key, |_| true).unwrap(), ring.find(key, |index| index != 1).unwrap());
            assert!(without != 1 && (all == 1 || all == without));
        }
        assert_eq!(ring.find(7, |_| false), None);
    }

    #[test]
    fn port_moves_no_key_and_two_ports_of_one_address_share_them() {
        let elsewhere: Vec<_> = addresses(10).into_iter().map(|address| SocketAddr::new(address.ip(), 8080)).collect();
        let ips = |spread: Vec<SocketAddr>| spread.into_iter().map(|address| address.ip()).collect::<Vec<_>>();
        assert_eq!(ips(spread(&addresses(10))), ips(spread(&elsewhere)));
        let two = [80, 81].map(|port| SocketAddr::from(([10, 0, 0, 1], port)));
        let first = spread(&two).into_iter().filter(|address| *address == two[0]).count();
        assert!((3000..7000).contains(&first), "{first} of 10000");
    }

    #[test]
    fn hash_is_the_same_in_every_version() {
        assert_eq!(hash(b"10.0.0.1"), 9_201_335_628_853_528_275);
    }
}
