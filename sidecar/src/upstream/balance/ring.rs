//! Consistent hashing: each address has many points on a ring, and a key goes to the next point. It must come out alike in all pods and
//! versions, so the hash is spelled out.

use std::net::IpAddr;

/// Points of one address. With a hundred the most loaded of ten addresses has about a quarter more than its share.
const POINTS: u64 = 100;

/// Addresses, by their index in the order in which they were given.
#[derive(Debug)]
pub(super) struct Ring {
    points: Vec<(u64, u32)>,
}

impl Ring {
    pub(super) fn new(addresses: impl Iterator<Item = IpAddr>) -> Self {
        let of = |(index, ip): (u32, IpAddr)| {
            let seed = hash(ip.to_string().as_bytes());
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

    fn ips(count: u8) -> Vec<IpAddr> {
        (0..count).map(|last| IpAddr::from([10, 0, 0, last])).collect()
    }

    fn spread(addresses: &[IpAddr]) -> Vec<IpAddr> {
        let ring = Ring::new(addresses.iter().copied());
        (0..10_000u32).map(|key| addresses[ring.find(hash(&key.to_be_bytes()), |_| true).unwrap()]).collect()
    }

    #[test]
    fn keys_spread_evenly() {
        let addresses = ips(10);
        let spread = spread(&addresses);
        for address in &addresses {
            let share = spread.iter().filter(|found| *found == address).count();
            assert!((600..1500).contains(&share), "{address}: {share} of 10000");
        }
    }

    #[test]
    fn keys_stay_where_they_are_when_addresses_come_and_go() {
        let (ten, nine) = (ips(10), ips(9));
        let moved = spread(&ten).into_iter().zip(spread(&nine)).filter(|(before, after)| before != after).collect::<Vec<_>>();
        assert!(moved.iter().all(|(before, _)| *before == ten[9]), "only those of the address that went");
    }

    #[test]
    fn unfit_address_is_passed_over_and_the_others_keep_their_keys() {
        let ring = Ring::new(ips(3).into_iter());
        for key in 0..1000u32 {
            let key = hash(&key.to_be_bytes());
            let (all, without) = (ring.find(key, |_| true).unwrap(), ring.find(key, |index| index != 1).unwrap());
            assert!(without != 1 && (all == 1 || all == without));
        }
        assert_eq!(ring.find(7, |_| false), None);
    }

    #[test]
    fn hash_is_the_same_in_every_version() {
        assert_eq!(hash(b"10.0.0.1"), 9_201_335_628_853_528_275);
    }
}
