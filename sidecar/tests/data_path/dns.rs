//! Names: a name server of the tests' own, over UDP.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::SOA},
};
use sidecar::server::NameServers;
use socket2::{Domain, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    time::{Instant, timeout},
};

use crate::support::{Origin, Proxy, eventually, ms, read_head, until};

/// What a name server says of a name.
#[derive(Clone)]
pub(crate) enum Says {
    Addresses(Vec<IpAddr>, u32),
    Broken,
    Nothing,
}

/// A name server; of names that it does not know it says that they do not exist, for 2 s.
pub(crate) struct Names {
    address: SocketAddr,
    zone: Arc<Mutex<HashMap<String, Says>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Names {
    pub(crate) async fn serve() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (zone, asked) = (Arc::new(Mutex::new(HashMap::new())), Arc::new(Mutex::new(Vec::new())));
        let names = Self { address, zone: Arc::clone(&zone), asked: Arc::clone(&asked) };
        tokio::spawn(async move {
            let mut packet = [0; 4096];
            loop {
                let (len, client) = socket.recv_from(&mut packet).await.unwrap();
                let question = Message::from_vec(&packet[..len]).unwrap();
                let query = question.queries[0].clone();
                let name = query.name().to_ascii().to_lowercase();
                if query.query_type == RecordType::A {
                    asked.lock().unwrap().push(name.clone());
                }
                let says = zone.lock().unwrap().get(&name).cloned();
                if let Some(answer) = answer(question.into_response(), &name, query.query_type, says) {
                    socket.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
                }
            }
        });
        names
    }

    pub(crate) fn set(&self, name: &str, says: Says) {
        self.zone.lock().unwrap().insert(format!("{name}."), says);
    }

    fn forget(&self, name: &str) {
        self.zone.lock().unwrap().remove(&format!("{name}."));
    }

    pub(crate) fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| **asked == format!("{name}.")).count()
    }

    pub(crate) fn servers(&self, search: &[&str], ndots: usize) -> NameServers {
        NameServers::Fixed {
            servers: vec![self.address],
            search: search.iter().map(|&domain| domain.to_owned()).collect(),
            ndots,
        }
    }
}

fn answer(mut answer: Message, name: &str, wanted: RecordType, says: Option<Says>) -> Option<Message> {
    let owner = Name::from_ascii(name).unwrap();
    match says {
        Some(Says::Addresses(addresses, ttl)) => {
            for address in addresses {
                match address {
                    IpAddr::V4(v4) if wanted == RecordType::A => {
                        answer.add_answer(Record::from_rdata(owner.clone(), ttl, RData::A(v4.into())));
                    }
                    IpAddr::V6(v6) if wanted == RecordType::AAAA => {
                        answer.add_answer(Record::from_rdata(owner.clone(), ttl, RData::AAAA(v6.into())));
                    }
                    _ => {}
                }
            }
        }
        Some(Says::Nothing) => return None,
        Some(Says::Broken) => answer.metadata.response_code = ResponseCode::ServFail,
        None => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, 2);
            answer.add_authority(Record::from_rdata(Name::root(), 2, RData::SOA(soa)));
        }
    }
    Some(answer)
}

fn loopback() -> IpAddr {
    Ipv4Addr::LOCALHOST.into()
}

async fn ask(proxy: &Proxy, host: &str, port: u16) -> u16 {
    proxy.ask(&format!("GET http://{host}:{port}/ HTTP/1.1\r\nhost: {host}:{port}\r\n\r\n")).await.status
}

/// An origin that closes after each answer, so that each request needs an address.
async fn origin() -> Origin {
    Origin::answering_once("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok").await
}

#[tokio::test]
async fn name_is_asked_for_once_while_its_addresses_hold() {
    let (names, origin) = (Names::serve().await, origin().await);
    names.set("web.example", Says::Addresses(vec![loopback()], 60));
    let proxy = Proxy::forward_by(names.servers(&[], 1));
    let port = origin.address.port();
    let at_once = futures::future::join_all((0..20).map(|_| ask(&proxy, "Web.Example", port))).await;
    assert!(at_once.iter().all(|status| *status == 200), "{at_once:?}");
    assert_eq!(ask(&proxy, "web.example", port).await, 200);
    assert_eq!(names.asked("web.example"), 1);
    assert_eq!(proxy.metric("fetchr_dns_lookups_total{outcome=\"found\"}"), 1.0);
}

#[tokio::test]
async fn address_that_changes_is_followed_when_its_time_is_over() {
    let (names, origin) = (Names::serve().await, origin().await);
    names.set("web.example", Says::Addresses(vec![[127, 0, 0, 9].into()], 1));
    let proxy = Proxy::forward_by(names.servers(&[], 1));
    let port = origin.address.port();
    assert_eq!(ask(&proxy, "web.example", port).await, 502, "nobody listens there");
    names.set("web.example", Says::Addresses(vec![loopback()], 1));
    until("the new address", async || ask(&proxy, "web.example", port).await == 200).await;
}

#[tokio::test]
async fn last_addresses_serve_while_the_name_server_is_down() {
    let (names, origin) = (Names::serve().await, origin().await);
    names.set("web.example", Says::Addresses(vec![loopback()], 0));
    let proxy = Proxy::forward_by(names.servers(&[], 1));
    let port = origin.address.port();
    assert_eq!(ask(&proxy, "web.example", port).await, 200);
    for says in [Says::Broken, Says::Nothing] {
        names.set("web.example", says);
        let asked = names.asked("web.example");
        // At least once its time is over and the name was asked for in vain.
        until("a question in vain", async || {
            assert_eq!(ask(&proxy, "web.example", port).await, 200);
            names.asked("web.example") > asked
        })
        .await;
        assert_eq!(ask(&proxy, "web.example", port).await, 200);
    }
}

#[tokio::test]
async fn name_that_flips_to_absent_is_doubted_first() {
    let (names, origin) = (Names::serve().await, origin().await);
    names.set("web.example", Says::Addresses(vec![loopback()], 0));
    let proxy = Proxy::forward_by(names.servers(&[], 1));
    let port = origin.address.port();
    assert_eq!(ask(&proxy, "web.example", port).await, 200);
    names.forget("web.example");
    until("two answers that it is absent", async || {
        assert_eq!(ask(&proxy, "web.example", port).await, 200);
        proxy.metric("fetchr_dns_lookups_total{outcome=\"absent\"}") >= 2.0
    })
    .await;
}

#[tokio::test]
async fn absent_name_is_502_and_not_asked_for_again_at_once() {
    let names = Names::serve().await;
    let proxy = Proxy::forward_by(names.servers(&[], 1));
    for _ in 0..5 {
        let refused = proxy.ask("GET http://absent.example/ HTTP/1.1\r\nhost: absent.example\r\n\r\n").await;
        assert_eq!(refused.status, 502);
        assert!(refused.field("proxy-status").contains("dns_error"), "{}", refused.head);
    }
    assert_eq!(names.asked("absent.example"), 1);
}

#[tokio::test]
async fn short_names_are_completed_as_in_a_cluster() {
    let (names, origin) = (Names::serve().await, origin().await);
    names.set("web.shop.svc.cluster.local", Says::Addresses(vec![loopback()], 60));
    let search = ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"];
    let proxy = Proxy::forward_by(names.servers(&search, 5));
    let port = origin.address.port();
    for short in ["web", "web.shop", "web.shop.svc.cluster.local"] {
        assert_eq!(ask(&proxy, short, port).await, 200, "{short}");
    }
    assert_eq!(names.asked("web.shop.shop.svc.cluster.local"), 1);
    assert_eq!(names.asked("web"), 0, "the first that is there ends the search");
}

/// A name that may be another's must not be used because the right one can't be asked for.
#[tokio::test]
async fn search_ends_where_nobody_can_tell() {
    let (names, origin) = (Names::serve().await, origin().await);
    names.set("web.shop.svc.cluster.local", Says::Broken);
    names.set("web", Says::Addresses(vec![loopback()], 60));
    let proxy = Proxy::forward_by(names.servers(&["shop.svc.cluster.local"], 5));
    assert_eq!(ask(&proxy, "web", origin.address.port()).await, 502);
    assert_eq!(names.asked("web"), 0);
}

#[tokio::test]
async fn slow_names_do_not_keep_others_from_being_asked_for() {
    let (names, origin) = (Names::serve().await, origin().await);
    names.set("web.example", Says::Addresses(vec![loopback()], 60));
    for n in 0..60 {
        names.set(&format!("slow{n}.example"), Says::Nothing);
    }
    let proxy = Proxy::forward_by(names.servers(&[], 1));
    let slow = (0..60).map(|n| {
        let client = proxy.client();
        async move {
            let mut client = client.await;
            client.send(format!("GET http://slow{n}.example/ HTTP/1.1\r\nhost: slow{n}.example\r\n\r\n")).await;
            client
        }
    });
    let slow = futures::future::join_all(slow).await;
    eventually("the slow names asked for", || (0..60).all(|n| names.asked(&format!("slow{n}.example")) > 0)).await;
    assert_eq!(ask(&proxy, "web.example", origin.address.port()).await, 200);
    for mut client in slow {
        assert_eq!(client.response().await.status, 504);
    }
}

#[tokio::test]
async fn address_that_does_not_answer_costs_a_moment_and_not_the_request() {
    let names = Names::serve().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // A socket with a full backlog drops further handshakes.
    let silent = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 2], port));
    silent.bind(&address.into()).unwrap();
    silent.listen(0).unwrap();
    let mut fill = Vec::new();
    while let Ok(Ok(stream)) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        fill.push(stream);
    }
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_head(&mut stream).await.unwrap();
            let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
            tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.unwrap();
        }
    });
    names.set("web.example", Says::Addresses(vec![[127, 0, 0, 2].into(), loopback()], 60));
    let proxy = Proxy::to_name(&format!("http://web.example:{port}"), names.servers(&[], 1), |settings| {
        settings.upstream.connect_timeout = ms(10_000);
    });
    for _ in 0..4 {
        let start = Instant::now();
        assert_eq!(proxy.ask("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.text(), "ok");
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }
}
