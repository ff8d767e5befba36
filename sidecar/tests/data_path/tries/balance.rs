//! `loadBalancing`: one address of a name for each try.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sidecar::server::NameServers;
use tokio::{
    io::AsyncWriteExt,
    net::UdpSocket,
    time::{Instant, sleep},
};

use super::{BUSY, Does, GET, OK, events, origin, origin_at};
use crate::{
    dns::{Names, Says},
    support::{Origin, Proxy, read_head},
};

/// Origins of one name: each on an address of its own, with a script.
struct Fleet {
    proxy: Proxy,
    came: Vec<Arc<AtomicUsize>>,
    _names: Names,
}

impl Fleet {
    async fn start(scripts: &[&'static [Does]], sections: &str) -> Self {
        let names = Names::serve().await;
        let (first, came) = origin(scripts[0]).await;
        let (port, mut all) = (first.address.port(), vec![came]);
        let mut addresses: Vec<IpAddr> = vec![first.address.ip()];
        for (last, script) in (2..).zip(&scripts[1..]) {
            let address = SocketAddr::from(([127, 0, 0, last], port));
            addresses.push(address.ip());
            all.push(origin_at(address, script).await.1);
        }
        names.set("web.example", Says::Addresses(addresses, 60));
        let proxy = Proxy::to_name(&format!("http://web.example:{port}"), names.servers(&[], 1), |_| {});
        proxy.apply(&format!(r#"[{{"name": "rule", {sections}}}]"#));
        Self { proxy, came: all, _names: names }
    }

    async fn ask(&self, times: usize) -> Vec<u16> {
        let mut statuses = Vec::new();
        for _ in 0..times {
            statuses.push(self.proxy.ask(GET).await.status);
        }
        statuses
    }

    fn came(&self) -> Vec<usize> {
        self.came.iter().map(|came| came.load(Ordering::SeqCst)).collect()
    }
}

#[tokio::test]
async fn name_that_nobody_resolves_takes_no_longer_than_the_request_may() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let servers = NameServers::Fixed { servers: vec![silent.local_addr().unwrap()], search: Vec::new(), ndots: 1 };
    let proxy = Proxy::to_name("http://web.example:80", servers, |_| {});
    proxy.apply(r#"[{"name": "rule", "loadBalancing": {}, "timeouts": {"connect": "20s", "request": "200ms"}}]"#);
    let start = Instant::now();
    assert_eq!(proxy.ask(GET).await.status, 504);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn addresses_take_turns() {
    let fleet = Fleet::start(&[&[Does::Say(OK)] as &[_]; 3], r#""loadBalancing": {"policy": "RoundRobin"}"#).await;
    assert_eq!(fleet.ask(30).await, [200; 30]);
    assert_eq!(fleet.came(), [10, 10, 10]);
}

#[tokio::test]
async fn requests_of_one_key_go_to_one_address_and_keys_spread() {
    let hash = r#""loadBalancing": {"policy": "RingHash", "hash": {"source": "Header", "name": "x-user"}}"#;
    let fleet = Fleet::start(&[&[Does::Say(OK)] as &[_]; 3], hash).await;
    for user in 0..20 {
        let before = fleet.came();
        for _ in 0..3 {
            let request = format!("GET / HTTP/1.1\r\nhost: a\r\nx-user: {user}\r\n\r\n");
            assert_eq!(fleet.proxy.ask(&request).await.status, 200);
        }
        let came: Vec<usize> = fleet.came().iter().zip(before).map(|(after, before)| after - before).collect();
        assert!(came.contains(&3), "user {user}: {came:?}");
    }
    assert!(fleet.came().iter().all(|came| *came > 0), "{:?}", fleet.came());
}

#[tokio::test]
async fn slow_address_gets_fewer_requests() {
    let names = Names::serve().await;
    let came = [0, 1, 2].map(|_| Arc::new(AtomicUsize::new(0)));
    let mut address: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let mut addresses = Vec::new();
    for (number, count) in came.iter().enumerate() {
        let count = Arc::clone(count);
        let origin = Origin::scripted_at(address, move |mut stream, _| {
            let count = Arc::clone(&count);
            async move {
                while read_head(&mut stream).await.is_some() {
                    count.fetch_add(1, Ordering::SeqCst);
                    if number == 1 {
                        sleep(Duration::from_millis(100)).await;
                    }
                    stream.write_all(OK.as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        addresses.push(origin.address.ip());
        address = SocketAddr::from(([127, 0, 0, u8::try_from(number).unwrap() + 2], origin.address.port()));
    }
    names.set("web.example", Says::Addresses(addresses, 60));
    let proxy = Proxy::to_name(&format!("http://web.example:{}", address.port()), names.servers(&[], 1), |_| {});
    proxy.apply(r#"[{"name": "rule", "loadBalancing": {}}]"#);
    for _ in 0..100 {
        assert_eq!(proxy.ask(GET).await.status, 200);
    }
    let slow = came[1].load(Ordering::SeqCst);
    assert!((1..20).contains(&slow), "{slow} of 100 went to the slow address");
}

#[tokio::test]
async fn address_that_fails_is_left_out() {
    let fleet = Fleet::start(
        &[&[Does::Say(OK)], &[Does::Say(BUSY)], &[Does::Say(OK)]],
        r#""loadBalancing": {"policy": "RoundRobin", "ejection": {"consecutiveFailures": 3, "time": "1h"}}"#,
    )
    .await;
    let bad = fleet.ask(60).await.iter().filter(|status| **status != 200).count();
    assert_eq!((bad, fleet.came()[1]), (3, 3));
    assert_eq!(events(&fleet.proxy, "loadBalancing", "ejected", "enforce"), 1.0);
}

#[tokio::test]
async fn further_try_goes_to_another_address() {
    let fleet = Fleet::start(
        &[&[Does::Say(OK)], &[Does::Close], &[Does::Say(OK)]],
        r#""retry": {"backoff": {"base": "1ms"}, "budget": {"percent": 100, "burst": 100}}, "loadBalancing": {"policy": "RoundRobin"}"#,
    )
    .await;
    assert_eq!(fleet.ask(60).await, [200; 60]);
    assert_eq!(fleet.came()[1], 5, "as many as it takes to leave it out");
}

#[tokio::test]
async fn addresses_that_all_fail_are_still_asked() {
    let fleet = Fleet::start(
        &[&[Does::Say(BUSY)] as &[_]; 3],
        r#""loadBalancing": {"policy": "RoundRobin", "ejection": {"consecutiveFailures": 1, "time": "1h", "maxEjectedPercent": 100}}"#,
    )
    .await;
    assert_eq!(fleet.ask(20).await, [503; 20]);
    assert_eq!(fleet.came().iter().sum::<usize>(), 20);
    assert_eq!(events(&fleet.proxy, "loadBalancing", "ejected", "enforce"), 2.0);
}

#[tokio::test]
async fn balancing_in_shadow_chooses_and_changes_nothing() {
    let fleet =
        Fleet::start(&[&[Does::Say(OK)], &[Does::Say(OK)]], r#""loadBalancing": {"mode": "Shadow", "policy": "RoundRobin"}"#)
            .await;
    assert_eq!(fleet.ask(10).await, [200; 10]);
    let mut came = fleet.came();
    came.sort_unstable();
    assert_eq!(came, [0, 10], "one connection carries them all");
    assert_eq!(events(&fleet.proxy, "loadBalancing", "chosen", "shadow"), 10.0);
}
