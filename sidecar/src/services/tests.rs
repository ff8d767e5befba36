use bytes::Bytes;

use super::*;

/// A Service of `shop` with one port and endpoints there, `10.0.0.N` and `fd00::N`.
fn service(name: &str, cluster_ips: &[&str], spoken: v1::Spoken, last: &[u8]) -> v1::Service {
    let octets = |ip: &&str| match ip.parse().unwrap() {
        IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
    };
    let v6 = |last: &u8| std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, (*last).into()).octets();
    let endpoints = v1::Endpoints {
        port: 8080,
        v4: last.iter().flat_map(|last| [10, 0, 0, *last]).collect::<Vec<u8>>().into(),
        v6: last.iter().flat_map(v6).collect::<Vec<u8>>().into(),
    };
    v1::Service {
        name: Some(v1::ServiceName { namespace: "shop".to_owned(), name: name.to_owned() }),
        cluster_ips: cluster_ips.iter().map(octets).collect(),
        ports: vec![v1::ServicePort { port: 80, spoken: spoken.into(), endpoints: vec![endpoints] }],
    }
}

fn message(whole: bool, changed: Vec<v1::Service>, gone: &[&str]) -> v1::Services {
    let gone = gone.iter().map(|name| v1::ServiceName { namespace: "shop".to_owned(), name: (*name).to_owned() });
    v1::Services {
        version: "1".to_owned(),
        whole,
        changed,
        gone: gone.collect(),
        cluster_domain: "cluster.local".to_owned(),
        left_out: 0,
    }
}

fn told(changed: Vec<v1::Service>) -> Services {
    Services::after(None, message(true, changed, &[]), "shop", &Services::default()).unwrap()
}

fn seen(port: Option<&Arc<Port>>, asked: Option<&str>) -> Vec<String> {
    let endpoints = port.and_then(|port| port.endpoints(asked.map(|asked| asked.parse().unwrap())));
    endpoints.into_iter().flat_map(|endpoints| endpoints.addresses.iter().map(ToString::to_string)).collect()
}

#[test]
fn service_is_found_by_its_addresses_and_by_each_spelling_of_its_name() {
    let services = told(vec![service("carts", &["10.96.0.7", "fd96::7"], v1::Spoken::H2c, &[1, 2])]);
    let (v4, v6) = (["10.0.0.1:8080", "10.0.0.2:8080"], ["[fd00::1]:8080", "[fd00::2]:8080"]);
    let at = |address: &str| services.at(address.parse().unwrap());
    assert_eq!(seen(at("10.96.0.7:80"), Some("10.96.0.7:80")), v4);
    assert_eq!(seen(at("[fd96::7]:80"), Some("[fd96::7]:80")), v6, "of the same family");
    let name = |asked: &str| Arc::clone(&at(asked).unwrap().endpoints(Some(asked.parse().unwrap())).unwrap().name);
    assert_ne!(name("10.96.0.7:80"), name("[fd96::7]:80"), "what is known of one family is not forgotten for the other");
    assert!(at("10.96.0.7:81").is_none() && at("10.0.0.1:8080").is_none());
    for host in ["carts", "carts.shop", "carts.shop.svc", "carts.shop.svc.cluster.local"] {
        assert_eq!(seen(services.named(host, 80), None), v4, "{host}: the family of the Service's first address");
    }
    for host in ["carts.bank", "cards", "carts.shop.example", ""] {
        assert!(services.named(host, 80).is_none(), "{host}");
    }
    assert!(services.named("carts", 8080).is_none());
    assert!(services.speaks_h2c("10.96.0.7:80".parse().unwrap()) && !services.speaks_h2c("10.96.0.8:80".parse().unwrap()));
    assert_eq!(at("10.96.0.7:80").unwrap().speaker(), Some(Speaker::Client));
    assert_eq!((services.len(), services.endpoints()), (1, 4));
}

#[test]
fn message_changes_what_it_names_and_leaves_the_rest() {
    let first = told(vec![
        service("a", &["10.96.0.1"], v1::Spoken::Unknown, &[1]),
        service("b", &["10.96.0.2"], v1::Spoken::Unknown, &[2]),
        service("c", &["10.96.0.3"], v1::Spoken::Unknown, &[3]),
    ]);
    let changed =
        vec![service("b", &["10.96.0.2"], v1::Spoken::Unknown, &[4]), service("a", &["10.96.0.1"], v1::Spoken::Unknown, &[1])];
    let second = Services::after(Some(&first), message(false, changed, &["c"]), "shop", &first).unwrap();
    let endpoints =
        |services: &Services, name: &str| services.named(name, 80)?.endpoints(None).map(|of| Arc::clone(&of.addresses));
    assert!(Arc::ptr_eq(&endpoints(&first, "a").unwrap(), &endpoints(&second, "a").unwrap()), "followers see no change");
    assert_eq!(seen(second.named("b", 80), None), ["10.0.0.4:8080"]);
    assert!(second.named("c", 80).is_none());
    let whole = Services::after(Some(&second), message(true, Vec::new(), &[]), "shop", &second).unwrap();
    assert!(whole.is_empty());
}

#[test]
fn service_without_endpoints_has_nobody_to_choose() {
    let mut spoken_only = service("db", &["10.96.0.1"], v1::Spoken::ServerFirst, &[]);
    spoken_only.ports[0].endpoints.clear();
    let services = told(vec![spoken_only, service("empty", &["10.96.0.2"], v1::Spoken::Unknown, &[])]);
    for (host, speaker) in [("db", Some(Speaker::Server)), ("empty", None)] {
        let port = services.named(host, 80).unwrap();
        assert!(port.endpoints(None).is_none() && port.speaker() == speaker, "{host}");
    }
}

#[test]
fn what_cannot_be_used_is_left_out_and_counted_and_the_rest_is_taken() {
    type Spoil = fn(&mut v1::Service);
    let (v4, v6) = (["10.0.0.1:8080"], ["[fd00::1]:8080"]);
    let good = || service("carts", &["10.96.0.7", "fd96::7"], v1::Spoken::Unknown, &[1]);
    let cases: [(&str, usize, &[&str], Spoil); 8] = [
        ("no name", 1, &[], |service| service.name = None),
        ("an empty name", 1, &[], |service| service.name.as_mut().unwrap().name.clear()),
        ("half an address", 1, &v4, |service| service.cluster_ips[1] = Bytes::from_static(b"123")),
        ("half an endpoint", 1, &v6, |service| service.ports[0].endpoints[0].v4 = Bytes::from_static(b"12345")),
        ("port 0", 1, &[], |service| service.ports[0].port = 0),
        ("endpoints at port 0", 2, &[], |service| service.ports[0].endpoints[0].port = 0),
        ("a port beyond all", 2, &[], |service| service.ports[0].endpoints[0].port = 65_536),
        ("a second port 0", 2, &v4, |service| {
            let nowhere = v1::Endpoints { port: 0, ..service.ports[0].endpoints[0].clone() };
            service.ports[0].endpoints.push(nowhere);
        }),
    ];
    for (what, unusable, left, spoil) in cases {
        let mut bad = good();
        spoil(&mut bad);
        let services = told(vec![bad, service("cards", &["10.96.0.8"], v1::Spoken::Unknown, &[2])]);
        assert_eq!(services.unusable(), unusable, "{what}");
        assert_eq!(seen(services.named("carts", 80), None), left, "{what}");
        assert_eq!(seen(services.named("cards", 80), None), ["10.0.0.2:8080"], "{what}");
    }
    let next = Services::after(Some(&told(vec![good()])), message(false, Vec::new(), &[]), "shop", &Services::default());
    assert_eq!(next.unwrap().unusable(), 0, "it is that of the message");
    let mut unknown = good();
    unknown.ports[0].spoken = 99;
    assert!(told(vec![unknown]).named("carts", 80).unwrap().speaker().is_none(), "a word of a later version");
    let mut endless = good();
    endless.ports[0].endpoints[0].v4 = (0..=65_536_u32).flat_map(u32::to_be_bytes).collect::<Vec<u8>>().into();
    let read = Services::after(None, message(true, vec![endless], &[]), "shop", &Services::default());
    assert_eq!(read.unwrap_err(), BadServices::TooMany);
}

#[test]
fn people_are_told_how_many_services_are_left_out() {
    let nothing = Services::default();
    let told =
        |left_out| v1::Services { left_out, ..message(true, vec![service("carts", &["10.96.0.7"], v1::Spoken::H2c, &[1])], &[]) };
    let before = Services::after(None, told(3), "shop", &nothing).unwrap();
    assert_eq!(before.describe()["leftOut"], 3);
    let after = Services::after(Some(&before), told(0), "shop", &before).unwrap();
    assert_eq!(after.describe()["leftOut"], 0);
}
